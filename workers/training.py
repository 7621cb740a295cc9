"""The training loop that runs, one copy per data-parallel worker, under Ray Train.

The order of images and the noise are functions of (seed, epoch, step, position in the global batch): they depend
neither on how many workers share a batch nor on interruptions. Dropout is a function of (seed, epoch, step, rank).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from stn_core import noise as noises
from stn_core.training import Batch
from workers.counting import load_model
from workers.images import Index
from workers.loading import Source, open_source
from workers.settings import STREAMED, Augmentation, Model, Noise, Training
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
        index, validation_index: of encoded images, made once by the driver.
    """

    model: Model
    training: Training
    num_classes: int
    noise: Noise
    threads: int
    only: NDArray[np.int64] | None = None
    import_paths: tuple[str, ...] = ()
    storage: S3Options | None = None
    index: Index | None = None
    validation_index: Index | None = None

    @property
    def cpus(self) -> int:
        """That one worker needs, with those who decode for it."""
        streamed = (isinstance(images, STREAMED) for images in (self.training.dataset, self.training.validation))
        return self.threads + (self.training.loaders if any(streamed) else 0)


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

    def save(self, checkpoint: Path | None) -> None:
        """Hand over from one worker the folder of a checkpoint within an epoch. All workers call it."""

    def first_says(self, word: bool) -> bool:
        """What the first of the workers says. All call it."""


def train(job: TrainJob, session: Session) -> None:
    """Train ``job.training.epochs`` epochs; go on after the newest checkpoint.

    There is one after each epoch, and after ``checkpoint_s`` within it. Its ``state.pt`` holds the network's state dict
    under "network", the figures of epochs under "epochs", those of one that has begun under "begun".
    """
    settings = job.training
    with contextlib.ExitStack() as stack:
        images = open_source(
            "training.dataset",
            settings.dataset,
            storage=job.storage,
            only=job.only,
            random_crop=settings.random_crop,
            loaders=settings.loaders,
            index=job.index,
        )
        stack.callback(images.close)
        validation = None
        if settings.validation is not None and session.rank == 0:  # one measures; the others meet it when they report
            validation = open_source(
                "training.validation",
                settings.validation,
                storage=job.storage,
                loaders=settings.loaders,
                lasting=False,  # or both would hold processes, of which half idle
                index=job.validation_index,
            )
            stack.callback(validation.close)
        _train(job, session, images, validation)


@dataclass
class _Begun:
    """An epoch's figures so far.

    Attributes:
        steps: done.
        loss: sum over this worker's images.
        right, seen: images.
        wall_s: seconds.
    """

    steps: int = 0
    loss: float = 0.0
    right: int = 0
    seen: int = 0
    wall_s: float = 0.0


def _train(job: TrainJob, session: Session, images: Source, validation: Source | None) -> None:
    settings = job.training
    steps = max(1, len(images) // settings.batch_size)
    noise = job.noise.build()
    torch.manual_seed(settings.seed)
    bare = load_model(job.model.model_copy(update={"checkpoint": None}), job.num_classes)
    restored = session.restored()
    saved = None if restored is None else torch.load(io.BytesIO(restored), map_location="cpu", weights_only=True)
    if saved is not None:
        bare.network.load_state_dict(saved["network"])
    model = session.prepare(bare)
    optimizer = _optimizer(settings, model)
    schedule = _schedule(settings, optimizer, settings.epochs * steps)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    epochs = [] if saved is None else [Epoch(**epoch) for epoch in saved["epochs"]]
    begun = _Begun() if saved is None else _Begun(**saved.get("begun", {}))

    @contextlib.contextmanager
    def checkpoint() -> Iterator[Path | None]:
        """The first worker's folder with the state as it is; the others have none."""
        with tempfile.TemporaryDirectory() as folder:
            if session.rank == 0:
                state = {
                    "network": bare.network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
                    "begun": dataclasses.asdict(begun),
                }
                torch.save(state, Path(folder) / STATE)
            yield Path(folder) if session.rank == 0 else None

    autocast = torch.autocast(
        session.device.type, torch.bfloat16, enabled=_low_precision(settings.precision, session.device)
    )
    kept = time.monotonic()
    for number in range(len(epochs), settings.epochs):
        start = time.monotonic() - begun.wall_s
        model.train()
        order = epoch_order(settings.seed, number, len(images))
        shares = [
            Share(min(settings.batch_size, len(images)), slice(session.rank, None, session.world_size), (number, step))
            for step in range(begun.steps, steps)
        ]
        rows = [order[share.step[1] * settings.batch_size :][: share.rows][share.own] for share in shares]
        seeds = [share.seeds(settings.seed) for share in shares]
        rate = 0.0
        for share, (pixels, labels) in zip(shares, images.batches(rows, seeds), strict=True):
            batch = _batch(settings, noise, session.device, share, pixels, labels)
            # Dropout too follows from the step alone, so that a resumed training ends as an undisturbed one does.
            torch.manual_seed(_dropout_seed(settings.seed, *share.step, session.rank))
            with autocast:
                loss, logits = settings.loss(number + share.step[1] / steps)(model, batch)
            optimizer.zero_grad()
            # Shares may differ by an image: so weighted, the mean over workers is the mean over the global batch.
            (loss * (len(batch.clean) * session.world_size / share.rows)).backward()
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            begun.steps, begun.seen = begun.steps + 1, begun.seen + len(batch.clean)
            begun.loss += float(loss.detach()) * len(batch.clean)
            begun.right += int((logits.argmax(dim=1) == batch.labels).sum())
            begun.wall_s = time.monotonic() - start
            if begun.steps < steps and session.first_says(time.monotonic() - kept >= settings.checkpoint_s):
                with checkpoint() as folder:
                    session.save(folder)
                kept = time.monotonic()
        clean = noisy = None
        if validation is not None:
            with autocast:
                clean, noisy = _measure(bare, validation, noise, session.device, settings, number)
        mean, accuracy = begun.loss / begun.seen, begun.right / begun.seen
        epochs.append(Epoch(number + 1, mean, accuracy, clean, noisy, rate, time.monotonic() - start))
        begun = _Begun()
        with checkpoint() as folder:
            session.report(epochs, folder)
        kept = time.monotonic()


def _optimizer(settings: Training, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def _schedule(settings: Training, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if settings.schedule == "step":
        return LambdaLR(optimizer, lambda step: 0.1 ** (3 * step // steps))
    # One step to spare: the schedule is asked for the rate after the last step too.
    return OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps + 1, cycle_momentum=settings.optimizer != "sgd"
    )


@dataclass(frozen=True)
class Share:
    """A worker's part of a global batch.

    Attributes:
        rows: images of the global batch.
        own: which of them are this worker's.
        step: numbers of the epoch and of the step in it, from 0.
    """

    rows: int
    own: slice
    step: tuple[int, int]

    def seeds(self, seed: int) -> NDArray[np.uint64]:
        """One for each of its own images."""
        drawn: NDArray[np.uint64] = _random(seed, *self.step, "crop").integers(0, 2**63, self.rows, np.uint64)[self.own]
        return drawn


def _batch(
    settings: Training,
    noise: noises.Noise,
    device: torch.device,
    share: Share,
    pixels: torch.Tensor,
    labels: torch.Tensor,
) -> Batch:
    """A worker's images of a step. What is random is drawn for the global batch, of which each keeps its own part."""
    if settings.augment is not None:
        pixels = augmented(pixels, settings.augment, _random(settings.seed, *share.step, "augmentation"), share)
    whole = (share.rows, *pixels.shape[1:])
    random = batch_random(settings.seed, *share.step)

    def noisy() -> torch.Tensor:
        # Noise may depend on the image it falls on, but what is drawn for the others is not kept.
        if len(pixels) == share.rows:
            return noise.disturb(pixels, random).to(device)
        everybodys = torch.zeros(whole, dtype=pixels.dtype)
        everybodys[share.own] = pixels
        return noise.disturb(everybodys, random)[share.own].to(device)

    def draw(sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]) -> torch.Tensor:
        drawn = sample(_random(settings.seed, *share.step, "attack"), whole)
        return torch.from_numpy(drawn)[share.own].to(device)

    return Batch((pixels.float() / 255).to(device), labels.to(device), noisy, draw)


def augmented(pixels: torch.Tensor, settings: Augmentation, random: np.random.Generator, share: Share) -> torch.Tensor:
    """Images (rows, channels, height, width), each shifted and mirrored by its own chance."""
    _, _, height, width = pixels.shape
    left, top = random.integers(0, 2 * settings.crop + 1, (2, share.rows))[:, share.own]
    mirrored = (random.random(share.rows) < 0.5)[share.own]
    across = left[:, None] + np.arange(width)
    if settings.flip:
        across = np.where(mirrored[:, None], across[:, ::-1], across)
    down = top[:, None] + np.arange(height)
    padded = nn.functional.pad(pixels, [settings.crop] * 4)
    image = torch.arange(len(pixels))[:, None, None]
    # Indices around a slice: the channels come last.
    return padded[image, :, torch.from_numpy(down)[:, :, None], torch.from_numpy(across.copy())[:, None, :]].movedim(
        -1, 1
    )


def _measure(
    model: nn.Module, images: Source, noise: noises.Noise, device: torch.device, settings: Training, epoch: int
) -> tuple[float, float]:
    """Accuracy on images, and on one noisy copy of each."""
    model.eval()
    clean = noisy = 0
    rows = [
        np.arange(first, min(first + settings.batch_size, len(images)))
        for first in range(0, len(images), settings.batch_size)
    ]
    with torch.no_grad():
        for step, (pixels, labels) in enumerate(images.batches(rows, [np.zeros(len(own), np.uint64) for own in rows])):
            truth = labels.to(device)
            disturbed = noise.disturb(pixels, _random(settings.seed, epoch, step, "validation"))
            clean += int((model((pixels.float() / 255).to(device)).argmax(dim=1) == truth).sum())
            noisy += int((model(disturbed.to(device)).argmax(dim=1) == truth).sum())
    return clean / len(images), noisy / len(images)


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of 0 … images - 1."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def batch_random(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Where the noise of a global batch comes from: fresh for every image of every batch."""
    return _random(seed, epoch, step, "noise")


#: Numbers that keep a step's streams apart from each other, and from the epoch's order.
_STREAMS = {"noise": 1, "augmentation": 3, "attack": 4, "validation": 5, "crop": 6}


def _random(seed: int, epoch: int, step: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, step, _STREAMS[stream]])


def _dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, rank, 2]).generate_state(1, np.uint64)[0])


def _low_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions bfloat16 is emulated, and slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
