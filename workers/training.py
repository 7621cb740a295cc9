"""The training loop that runs, one copy per data-parallel worker, under Ray Train.

The order of images and the noise are functions of (seed, epoch, step, position in the global batch): they depend
neither on how many workers share a batch nor on interruptions. Dropout is a function of (seed, epoch, rank).
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from stn_core import noise as noises
from stn_core.training import Batch
from workers.counting import load_model
from workers.images import DatasetError, load_all
from workers.settings import Augmentation, Dataset, Model, Noise, Training
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
        threads: CPU threads of one worker.
        only: of the selected training images, the positions of those to train on; None: all.
        import_paths: folders to import the user's modules from.
        storage: how to reach object storage.
    """

    model: Model
    training: Training
    num_classes: int
    noise: Noise
    threads: int
    only: NDArray[np.int64] | None = None
    import_paths: tuple[str, ...] = ()
    storage: S3Options | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: number, from 1.
        loss: mean training loss over this worker's share of the images.
        accuracy: share of them that the method fits to their labels and that got them.
        validation_clean: accuracy on the validation images, by the first worker; None without any.
        validation_noisy: the same, on one noisy copy of each.
        learning_rate: of the last step.
        wall_s: seconds that the epoch took.
    """

    epoch: int
    loss: float
    accuracy: float
    validation_clean: float | None
    validation_noisy: float | None
    learning_rate: float
    wall_s: float


class Session(Protocol):
    """What the loop needs of the framework that runs it."""

    rank: int
    world_size: int
    device: torch.device

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on this worker's device, its gradients averaged over workers."""

    def restored(self) -> bytes | None:
        """The newest checkpoint's ``state.pt``, if this is not the first start."""

    def report(self, epochs: Sequence[Epoch], checkpoint: Path | None) -> None:
        """Hand over the figures of all epochs so far, and from one worker the folder of its checkpoint."""


def train(job: TrainJob, session: Session) -> None:
    """Train ``job.training.epochs`` epochs, a checkpoint after each; go on after the newest one.

    The checkpoint's ``state.pt`` holds the network's state dict under "network", the figures of epochs under "epochs".
    """
    settings = job.training
    pixels, labels = _load("training.dataset", settings.dataset, job.storage, job.only)
    # One worker measures; the others meet it when they report.
    measured = settings.validation if session.rank == 0 else None
    validation = None if measured is None else _load("training.validation", measured, job.storage)
    steps = max(1, len(pixels) // settings.batch_size)

    noise = job.noise.build()
    torch.manual_seed(settings.seed)
    bare = load_model(job.model.model_copy(update={"checkpoint": None}), job.num_classes)
    restored = session.restored()
    saved = None if restored is None else torch.load(io.BytesIO(restored), map_location="cpu", weights_only=True)
    if saved is not None:
        bare.network.load_state_dict(saved["network"])
    model = session.prepare(bare)
    optimizer = _optimizer(settings, model)
    # One step to spare: the schedule is asked for the rate after the last step too.
    schedule = OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=settings.epochs * steps + 1,
        cycle_momentum=settings.optimizer != "sgd",
    )
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    epochs = [] if saved is None else [Epoch(**epoch) for epoch in saved["epochs"]]

    autocast = torch.autocast(
        session.device.type, torch.bfloat16, enabled=_low_precision(settings.precision, session.device)
    )
    for number in range(len(epochs), settings.epochs):
        start = time.monotonic()
        model.train()
        # Dropout too follows from the epoch alone, so that a resumed training ends as an undisturbed one does.
        torch.manual_seed(_dropout_seed(settings.seed, number, session.rank))
        order = epoch_order(settings.seed, number, len(pixels))
        loss_sum, right, seen, rate = 0.0, 0, 0, 0.0
        for step in range(steps):
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            batch = _share(job, noise, session, pixels[rows], labels[rows], (number, step))
            with autocast:
                loss, logits = settings.loss(number + step / steps)(model, batch)
            optimizer.zero_grad()
            # Shares may differ by an image: so weighted, the mean over workers is the mean over the global batch.
            (loss * (len(batch.clean) * session.world_size / len(rows))).backward()
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            loss_sum, seen = loss_sum + float(loss.detach()) * len(batch.clean), seen + len(batch.clean)
            right += int((logits.argmax(dim=1) == batch.labels).sum())
        clean = noisy = None
        if validation is not None:
            with autocast:
                clean, noisy = _measure(bare, validation, noise, session.device, settings, number)
        epochs.append(Epoch(number + 1, loss_sum / seen, right / seen, clean, noisy, rate, time.monotonic() - start))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if session.rank == 0:
                checkpoint = Path(folder)
                torch.save(
                    {
                        "network": bare.network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                        "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
                    },
                    checkpoint / STATE,
                )
            session.report(epochs, checkpoint)


def _optimizer(settings: Training, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def _share(
    job: TrainJob,
    noise: noises.Noise,
    session: Session,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    step: tuple[int, int],
) -> Batch:
    """A worker's share of the images of a step, which is given as epoch and number. What is random is drawn for the
    global batch, of which each worker keeps its own part."""
    settings = job.training
    own, device = slice(session.rank, None, session.world_size), session.device
    if settings.augment is not None:
        pixels = augmented(pixels, settings.augment, _random(settings.seed, *step, "augmentation"))

    random = batch_random(settings.seed, *step)

    def noisy() -> torch.Tensor:
        return noise.disturb(pixels, random)[own].to(device)

    def draw(sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]) -> torch.Tensor:
        drawn = sample(_random(settings.seed, *step, "attack"), tuple(pixels.shape))
        return torch.from_numpy(drawn)[own].to(device)

    return Batch((pixels[own].float() / 255).to(device), labels[own].to(device), noisy, draw)


def augmented(pixels: torch.Tensor, settings: Augmentation, random: np.random.Generator) -> torch.Tensor:
    """Images (rows, channels, height, width), each shifted and mirrored by its own chance."""
    rows, _, height, width = pixels.shape
    left, top = random.integers(0, 2 * settings.crop + 1, (2, rows))
    mirrored = random.random(rows) < 0.5
    across = left[:, None] + np.arange(width)
    if settings.flip:
        across = np.where(mirrored[:, None], across[:, ::-1], across)
    down = top[:, None] + np.arange(height)
    padded = nn.functional.pad(pixels, [settings.crop] * 4)
    image = torch.arange(rows)[:, None, None]
    # Indices around a slice: the channels come last.
    return padded[image, :, torch.from_numpy(down)[:, :, None], torch.from_numpy(across.copy())[:, None, :]].movedim(
        -1, 1
    )


def _measure(
    model: nn.Module,
    images: tuple[torch.Tensor, torch.Tensor],
    noise: noises.Noise,
    device: torch.device,
    settings: Training,
    epoch: int,
) -> tuple[float, float]:
    """Accuracy on images, and on one noisy copy of each."""
    pixels, labels = images
    model.eval()
    clean = noisy = 0
    with torch.no_grad():
        for step, first in enumerate(range(0, len(pixels), settings.batch_size)):
            rows = slice(first, first + settings.batch_size)
            truth = labels[rows].to(device)
            disturbed = noise.disturb(pixels[rows], _random(settings.seed, epoch, step, "validation"))
            clean += int((model((pixels[rows].float() / 255).to(device)).argmax(dim=1) == truth).sum())
            noisy += int((model(disturbed.to(device)).argmax(dim=1) == truth).sum())
    return clean / len(pixels), noisy / len(pixels)


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of 0 … images - 1."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def batch_random(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Where the noise of a global batch comes from: fresh for every image of every batch."""
    return _random(seed, epoch, step, "noise")


#: Numbers that keep a step's streams apart from each other, and from the epoch's order.
_STREAMS = {"noise": 1, "augmentation": 3, "attack": 4, "validation": 5}


def _random(seed: int, epoch: int, step: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, step, _STREAMS[stream]])


def _dropout_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank, 2]).generate_state(1, np.uint64)[0])


def _load(
    key: str, dataset: Dataset, storage: S3Options | None, only: NDArray[np.int64] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, uint8, and their labels, int64."""
    try:
        images = load_all(dataset, storage, only)
    except DatasetError as error:
        raise DatasetError(f"{key}: {error}") from error
    return torch.from_numpy(images.pixels), torch.from_numpy(images.labels)


def _low_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions bfloat16 is emulated, and slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
