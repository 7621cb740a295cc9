"""The actor that attacks."""

from __future__ import annotations

import torch
from torch import nn

from stn_core.models import weights_sha256
from workers import attempts_table, layout
from workers.attack_settings import Attack
from workers.attacking import AttackJob, attack_images
from workers.counting import load_model, prepared, read_images
from workers.ray_entry import Receipt, ShardActor, WrongInputs, device_name


class AttackingActor(ShardActor):
    """Attacks the images of the shards it is told, and commits what came of it."""

    def __init__(self, job: AttackJob) -> None:
        super().__init__(job.count)
        self._attacks = job
        self._sources = {name: self._source(name, job.asked.attacks[name]) for name in job.names}
        for model in (self._model, *self._sources.values()):
            model.eval().requires_grad_(False)

    def attack(self, number: int) -> Receipt:
        """Attack a shard's images in one way, unless another worker has; ``number`` is of ``AttackJob.number``."""
        name, shard = self._attacks.work(number)
        indices, key = self._job.shard_indices(shard), layout.attempts(name, shard)
        if self._store.exists(key):
            return Receipt(number, len(indices), 0, 0, first=False)
        images = read_images(self._job, indices, self._images)
        with self._working:
            torch.set_num_threads(self._job.threads)  # holds for the calling thread alone
            found = attack_images(self._attacks, name, images, self._model, self._sources[name], self._device)
        provenance = {**self._attacks.provenance[name], "shard": shard, "device": device_name(self._device)}
        first = self._create(key, attempts_table.encode(found.table, provenance))
        failed = sum(error is not None for error in images.errors)
        return Receipt(number, len(indices), failed, found.passes, first)

    def _source(self, name: str, attack: Attack) -> nn.Module:
        """The network that gradients are taken of: never a compiled one, which would be compiled anew for them."""
        job, settings = self._job, attack.source or self._job.model
        if attack.source is None and not job.compile:
            return self._model
        model = load_model(settings, job.num_classes, job.store.options)
        if attack.source is not None and weights_sha256(model.network) != self._attacks.sources_sha256[name]:
            raise WrongInputs(f"the weights of attack {name}'s source that this worker sees are not those planned")
        return prepared(model, settings, compile=False, device=self._device)
