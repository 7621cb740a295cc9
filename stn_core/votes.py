"""Count a network's votes under noise: the hot loop (the paper, Algorithm 1, steps 1 to 5)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, SupportsIndex, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stn_core.noise import Draws, Noise, Phase, check_identity

Ints = NDArray[np.int64]

Precision = Literal["float32", "bfloat16", "float16"]

_AUTOCAST_DTYPE = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Tally:
    """What became of the draws of each image: the votes of a row and its invalid draws add up to its draws.

    Attributes:
        votes: int64 (images, num_classes).
        invalid: draws whose logits held a NaN; they vote for no class. int64 (images,).
        ties: draws in which several classes shared the largest logit; the lowest of them got the vote. int64 (images,).
    """

    votes: Ints
    invalid: Ints
    ties: Ints


def count_votes(
    model: nn.Module,
    images: torch.Tensor | np.ndarray,
    *,
    noise: Noise,
    draws: int | Sequence[int] | np.ndarray,
    num_classes: int,
    seed: int,
    keys: Sequence[int] | np.ndarray,
    first_draw: int | Sequence[int] | np.ndarray = 0,
    phase: Phase = "estimation",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
) -> Tally:
    """Classify ``draws`` noisy copies of each image and count the answers.

    Every forward pass has exactly ``batch_size`` rows, drawn from one image after another, the last one padded: the
    arithmetic of a row then does not depend on which images share its call, and counting draws 0-99 equals counting
    0-49 plus 50-99. (Held by the tests for multiples of 16 rows; another batch shape or device may flip near-ties.)

    Args:
        model: maps a float32 batch (rows, channels, height, width) of noisy pixels to logits (rows, num_classes);
            normalisation belongs inside it. Run in evaluation mode; its mode is restored.
        images: (images, channels, height, width), uint8, or floating point in [0, 1]; ``DiscreteGaussian`` and
            ``Splitting`` noise take uint8 only. Never clipped after noise, save as ``DiscreteGaussian`` says.
        noise: the noise to add, in [0, 1] pixel units.
        draws: noisy copies of each image, one number or one per image, (images,).
        num_classes: number of classes, at least 2.
        seed: the job's seed.
        keys: one integer per image, the identity its noise is derived from; images with the same key share noise.
        first_draw: number of the first draw, of all or one per image; ``draws`` consecutive ones are counted.
        phase: "selection" and "estimation" draws are independent of each other.
        batch_size: rows per forward pass; None chooses by image size and device.
        device: where to run; None means where the model's parameters are.
        precision: "bfloat16" and "float16" run the model under autocast. Logits are compared in float32 always.

    Returns:
        The tally of every image.

    Raises:
        ValueError: an argument does not fit the description above, or the model's output does not.
    """
    pixels = _as_pixels(images)
    image_keys = [_integer(key, "keys") for key in keys]
    if len(image_keys) != len(pixels):
        raise ValueError(f"keys must name every image: {len(pixels)} images, {len(image_keys)} keys")
    each = _of_each(draws, len(pixels), "draws")
    firsts = _of_each(first_draw, len(pixels), "first_draw").tolist()
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if phase not in get_args(Phase):
        raise ValueError(f"phase must be selection or estimation, got {phase!r}")
    check_identity(_integer(seed, "seed"), image_keys)

    place = torch.device(device) if device is not None else _device_of(model)
    rows_per_call = batch_size or default_batch_size(pixels[0].numel() if len(pixels) else 1, place)
    votes = torch.zeros(len(pixels) * num_classes, dtype=torch.int64, device=place)
    invalid, ties = (torch.zeros(len(pixels), dtype=torch.int64, device=place) for _ in range(2))
    pixels = pixels.to(place)
    layout = _layout_of(model)
    noisy = torch.zeros((rows_per_call, *pixels.shape[1:]), dtype=torch.float32, device=place)

    with _Evaluating(model, place), torch.inference_mode(), _autocast(precision, place):
        for batch in _batches(each, rows_per_call):
            owner = torch.from_numpy(batch.owner).to(place)
            used = noisy[: len(owner)]
            # The batch's images are neighbours.
            first_image, last_image = batch.parts[0][0], batch.parts[-1][0]
            noise.perturb(
                used,
                pixels[first_image : last_image + 1],
                owner - first_image,
                (
                    Draws(seed, image_keys[image], phase, firsts[image] + first, count)
                    for image, first, count in batch.parts
                ),
            )
            logits = model(noisy.contiguous(memory_format=layout))
            if logits.ndim != 2 or logits.shape != (rows_per_call, num_classes):
                raise ValueError(
                    f"the model must return logits of shape ({rows_per_call}, {num_classes}) = (rows, num_classes), "
                    f"got {tuple(logits.shape)}"
                )
            logits = logits[: len(owner)].float()
            valid = ~logits.isnan().any(dim=1)
            # Adding zero for invalid rows, rather than leaving them out, spares the device a wait for the host.
            votes.scatter_add_(0, owner * num_classes + logits.argmax(dim=1), valid.long())
            invalid.scatter_add_(0, owner, (~valid).long())
            # NaN equals nothing, so invalid rows have no ties.
            tied = (logits == logits.amax(dim=1, keepdim=True)).sum(dim=1) > 1
            ties.scatter_add_(0, owner, tied.long())
    return Tally(*(counts.cpu().numpy() for counts in (votes.view(len(pixels), num_classes), invalid, ties)))


def default_batch_size(pixels_per_image: int, device: torch.device) -> int:
    """Rows per forward pass where the caller names none: a power of two, a function of image size and device kind only.

    CPU batches stay small enough for activations to be reused from the allocator's pool rather than mapped afresh.
    """
    target, most = (2**18, 128) if device.type == "cpu" else (2**26, 4096)
    rows = min(most, max(16, target // max(pixels_per_image, 1)))
    return 1 << (rows.bit_length() - 1)


def _integer(value: SupportsIndex, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be whole numbers, got {value!r}") from None


def _of_each(value: SupportsIndex | Sequence[int] | np.ndarray, images: int, name: str) -> Ints:
    """One number for each image. Raises ValueError."""
    numbers = np.asarray(value if isinstance(value, Sequence | np.ndarray) else _integer(value, name))
    if numbers.dtype.kind not in "iu" and numbers.size:
        raise ValueError(f"{name} must be whole numbers, got {numbers.dtype}")
    if numbers.shape not in ((), (images,)):
        raise ValueError(f"{name} must be one number or one per image, ({images},), got shape {numbers.shape}")
    if numbers.min(initial=0) < 0:
        raise ValueError(f"{name} must not be negative, got {numbers.min()}")
    return np.broadcast_to(numbers.astype(np.int64), (images,))


def _as_pixels(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    if isinstance(images, np.ndarray) and not images.flags.writeable:
        images = images.copy()  # torch warns of arrays it could not write to, as Arrow's are
    pixels = torch.as_tensor(images)
    if pixels.ndim != 4:
        raise ValueError(f"images must be (images, channels, height, width), got shape {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ValueError(f"images must be uint8 or floating point, got {pixels.dtype}")
    # `not (in range)` rather than `out of range`, so that NaN is refused too.
    if pixels.numel() and not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ValueError("floating-point images must lie in [0, 1]; scale them, or pass uint8")
    return pixels.float()


def _layout_of(model: nn.Module) -> torch.memory_format:
    """Channels last where the model's weights are: faster there, and a model that calls ``view`` may not bear it."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 4 and not parameter.is_contiguous()]
    if weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights):
        return torch.channels_last
    return torch.contiguous_format


@dataclass(frozen=True)
class _Batch:
    """The rows of one forward pass: draws of one image after another.

    Attributes:
        parts: (image, first draw, number of consecutive draws) each.
        owner: each row's image, int64 (rows,).
    """

    parts: list[tuple[int, int, int]]
    owner: np.ndarray


def _batches(draws: Ints, size: int) -> Iterator[_Batch]:
    """All (image, draw) pairs, image by image, ``size`` at a time. ``draws`` are each image's."""
    ends = np.cumsum(draws)
    begins = ends - draws
    for start in range(0, int(ends[-1]) if len(ends) else 0, size):
        stop = min(start + size, int(ends[-1]))
        # Images that begin before the batch's end and end after its beginning; those without draws do neither.
        inside = np.flatnonzero((begins < stop) & (ends > start) & (draws > 0))
        first, last = np.maximum(begins[inside], start), np.minimum(ends[inside], stop)
        parts = list(zip(inside.tolist(), (first - begins[inside]).tolist(), (last - first).tolist(), strict=True))
        yield _Batch(parts, np.repeat(inside, last - first))


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    if precision == "float32":
        return nullcontext()
    if precision not in _AUTOCAST_DTYPE:
        raise ValueError(f"precision must be float32, bfloat16 or float16, got {precision!r}")
    return torch.autocast(device.type, dtype=_AUTOCAST_DTYPE[precision])


class _Evaluating:
    """The model on ``device`` in evaluation mode, its own mode restored on leaving."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._training = [module for module in model.modules() if module.training]

    def __enter__(self) -> None:
        self._model.to(self._device).eval()

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            module.training = True
