"""The training loop that runs, one copy per data-parallel worker, under Ray Train.

The order of images and the noise are functions of (seed, epoch, step, position in the global batch): they depend
neither on how many workers share a batch nor on interruptions. Dropout is a function of (seed, epoch, rank).
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from stn_core.training import LOSSES
from workers.counting import load_model
from workers.images import DatasetError, open_dataset, selected
from workers.settings import Model, Noise, Training
from workers.store import S3Options

#: Name of the file a checkpoint consists of.
STATE = "state.pt"


@dataclass(frozen=True)
class TrainJob:
    """All a node needs to train.

    Attributes:
        model: as in the spec; its checkpoint is where the result goes and is not read.
        training: as in the spec.
        num_classes: outputs of the network.
        noise: the training noise.
        gamma: weight of the stability term.
        threads: CPU threads of one worker.
        import_paths: folders to import the user's modules from.
        storage: how to reach object storage.
    """

    model: Model
    training: Training
    num_classes: int
    noise: Noise
    gamma: float
    threads: int
    import_paths: tuple[str, ...] = ()
    storage: S3Options | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: number, from 1.
        loss: mean training loss over the first worker's share of the images.
    """

    epoch: int
    loss: float


class Session(Protocol):
    """What the loop needs of the framework that runs it."""

    rank: int
    world_size: int
    device: torch.device

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on this worker's device, its gradients averaged over workers."""

    def restored(self) -> bytes | None:
        """The newest checkpoint's ``state.pt``, if this is not the first start."""

    def report(self, epoch: Epoch, checkpoint: Path | None) -> None:
        """Hand over an epoch's figures, and from one worker the folder of its checkpoint."""


def train(job: TrainJob, session: Session) -> None:
    """Train ``job.training.epochs`` epochs, a checkpoint after each; go on after the newest one.

    The checkpoint's ``state.pt`` holds the network's state dict under "network".
    """
    settings = job.training
    pixels, labels = _load(settings, job.storage)
    steps = max(1, len(pixels) // settings.batch_size)

    noise = job.noise.build()
    torch.manual_seed(settings.seed)
    bare = load_model(job.model.model_copy(update={"checkpoint": None}), job.num_classes)
    restored = session.restored()
    saved = None if restored is None else torch.load(io.BytesIO(restored), map_location="cpu", weights_only=True)
    if saved is not None:
        bare.network.load_state_dict(saved["network"])
    model = session.prepare(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    # One step to spare: the schedule is asked for the rate after the last step too.
    schedule = OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.epochs * steps + 1)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])

    autocast = torch.autocast(
        session.device.type, torch.bfloat16, enabled=_low_precision(settings.precision, session.device)
    )
    for epoch in range(saved["epoch"] if saved else 0, settings.epochs):
        model.train()
        # Dropout too follows from the epoch alone, so that a resumed training ends as an undisturbed one does.
        torch.manual_seed(_dropout_seed(settings.seed, epoch, session.rank))
        order = epoch_order(settings.seed, epoch, len(pixels))
        loss_sum, seen = 0.0, 0
        for step in range(steps):
            batch = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            own = slice(session.rank, None, session.world_size)
            # Drawn for the global batch, of which each worker keeps its own part.
            noisy = noise.disturb(pixels[batch], batch_random(settings.seed, epoch, step))[own].to(session.device)
            clean = (pixels[batch[own]].float() / 255).to(session.device)
            with autocast:
                loss = LOSSES[settings.method](model, clean, noisy, labels[batch[own]].to(session.device), job.gamma)
            optimizer.zero_grad()
            # Shares may differ by an image: so weighted, the mean over workers is the mean over the global batch.
            (loss * (len(clean) * session.world_size / len(batch))).backward()
            optimizer.step()
            schedule.step()
            loss_sum, seen = loss_sum + float(loss.detach()) * len(clean), seen + len(clean)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if session.rank == 0:
                checkpoint = Path(folder)
                torch.save(
                    {
                        "network": bare.network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                        "epoch": epoch + 1,
                    },
                    checkpoint / STATE,
                )
            session.report(Epoch(epoch + 1, loss_sum / seen), checkpoint)


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of 0 … images - 1."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def batch_random(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Where the noise of a global batch comes from: fresh for every image of every batch."""
    # The fourth number keeps this stream apart from the epoch's order.
    return np.random.default_rng([seed, epoch, step, 1])


def _dropout_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank, 2]).generate_state(1, np.uint64)[0])


def _load(settings: Training, storage: S3Options | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All training images, uint8, and their labels, int64."""
    images = open_dataset(settings.dataset, storage)
    indices = np.array(selected(settings.dataset, len(images)))
    try:
        pixels = np.stack([images.read(index) for index in indices.tolist()])
    except ValueError as error:
        raise DatasetError("training images differ in size: set training.dataset.resize and crop") from error
    return torch.from_numpy(pixels), torch.from_numpy(images.labels[indices])


def _low_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions bfloat16 is emulated, and slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
