"""What Ray runs on a node to train. Apart from what counts there: Ray Train alone takes a second to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import ray.util.queue
import torch
from torch import nn

from workers.imports import importable
from workers.training import STATE, Epoch, TrainJob, train
from workers.versions import check_pinned


def train_loop(config: dict[str, Any]) -> None:
    """Ray Train's entry: the training loop under its session."""
    check_pinned()
    job: TrainJob = config["job"]
    importable(job.import_paths)
    torch.set_num_threads(job.threads)
    train(job, _RaySession(config["epochs"]))


class _RaySession:
    """``workers.training.Session`` by Ray Train."""

    def __init__(self, epochs: ray.util.queue.Queue) -> None:
        self._epochs = epochs
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def prepare(self, model: nn.Module) -> nn.Module:
        prepared: nn.Module = ray.train.torch.prepare_model(model)
        return prepared

    def restored(self) -> bytes | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return (Path(folder) / STATE).read_bytes()

    def report(self, epochs: Sequence[Epoch], checkpoint: Path | None) -> None:
        kept = None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint))
        ray.train.report(dataclasses.asdict(epochs[-1]), checkpoint=kept)
        if self.rank == 0:
            self._epochs.put(tuple(epochs))

    def save(self, checkpoint: Path | None) -> None:
        ray.train.report({}, checkpoint=None if checkpoint is None else ray.train.Checkpoint.from_directory(checkpoint))
        if self.rank == 0:
            self._epochs.put(())

    def first_says(self, word: bool) -> bool:
        if self.world_size == 1:
            return word
        said = torch.tensor(int(word), device=self.device)
        torch.distributed.broadcast(said, src=0)
        return bool(said)
