"""Count a network's votes under noise: the hot loop (the paper, Algorithm 1, steps 1 to 5)."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stn_core.arithmetic import Precision, arithmetic
from stn_core.noise import Draws, Noise, Phase, check_identity

Ints = NDArray[np.int64]

#: What errors say that are about memory, besides torch.OutOfMemoryError: those of the CPU, cuBLAS, cuDNN, the driver.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "ALLOC_FAILED", "out of memory")


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

    Where memory does not suffice, the pass that failed is done again with half the rows, and so on down to one, and the
    rest likewise; a RuntimeWarning says so once. No draw is left out or counted twice, and its noise is the same.

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
        phase: draws of different phases are independent of each other.
        batch_size: rows per forward pass; None chooses by image size and device.
        device: where to run; None means where the model's parameters are.
        precision: of the forward pass. Logits are compared in float32 always.

    Returns:
        The tally of every image.

    Raises:
        ValueError: an argument does not fit the description above, or the model's output does not.
        MemoryError: not even one row fits.
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
        raise ValueError(f"phase must be one of {', '.join(get_args(Phase))}, got {phase!r}")
    check_identity(_integer(seed, "seed"), image_keys)

    place = torch.device(device) if device is not None else _device_of(model)
    layout = _layout_of(model)
    pixels = pixels.to(place)
    ends = np.cumsum(each)
    begins, total = ends - each, int(ends[-1]) if len(ends) else 0
    device_ends = torch.from_numpy(ends).to(place)
    # Of each image, votes by class, then invalid draws, then ties: one tensor, and so one transfer in the end.
    counts = torch.zeros((len(pixels), num_classes + 2), dtype=torch.int64, device=place)

    def count_rows(noisy: torch.Tensor, start: int) -> int:
        """Count as many draws as fit ``noisy``, from the one numbered ``start`` over all images; how many they are."""
        stop = min(start + len(noisy), total)
        # Images that begin before the rows' end and end after their beginning. They are neighbours.
        first, last = int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(begins, stop, side="left"))
        owner = torch.searchsorted(device_ends, torch.arange(start, stop, device=place), right=True)
        parts = (
            Draws(seed, image_keys[image], phase, firsts[image] + skipped, count)
            for image in range(first, last)
            if (count := min(ends[image], stop) - begins[image] - (skipped := max(0, start - int(begins[image]))))
        )
        noise.perturb(noisy[: stop - start], pixels[first:last], owner - first, parts)
        logits = model(noisy.contiguous(memory_format=layout))
        if logits.ndim != 2 or logits.shape != (len(noisy), num_classes):
            raise ValueError(
                f"the model must return logits of shape ({len(noisy)}, {num_classes}) = (rows, num_classes), "
                f"got {tuple(logits.shape)}"
            )
        logits = logits[: stop - start].float()
        # The first of several largest, and NaN where a row holds one, which equals nothing: no logit is the largest.
        largest, winner = logits.max(dim=1, keepdim=True)
        sharing = (logits == largest).sum(dim=1)
        column = torch.where(sharing > 0, winner.squeeze(1), num_classes)
        row_of_counts = owner * (num_classes + 2)
        where = torch.cat([row_of_counts + column, row_of_counts + (num_classes + 1)])
        what = torch.cat([torch.ones_like(sharing), (sharing > 1).long()])
        # One step, the last: an error leaves all of the rows counted or none.
        counts.view(-1).scatter_add_(0, where, what)
        return stop - start

    asked = rows = batch_size or default_batch_size(pixels[0].numel() if len(pixels) else 1, place)
    noisy: torch.Tensor | None = None
    done = 0
    with _Evaluating(model, place), torch.inference_mode(), arithmetic(precision, place):
        while done < total:
            try:
                if noisy is None:
                    noisy = torch.zeros((rows, *pixels.shape[1:]), dtype=torch.float32, device=place)
                done += count_rows(noisy, done)
                continue
            except (RuntimeError, MemoryError) as error:
                if not _of_memory(error):
                    raise
                if rows == 1:
                    raise MemoryError(
                        f"the memory of {place} does not suffice for one noisy image at a time"
                    ) from error
            # Out here the error is gone, and with it what its traceback held in memory.
            noisy, rows = None, rows // 2
            if place.type == "cuda":
                torch.cuda.empty_cache()
    if rows < asked:
        warnings.warn(f"out of memory with {asked} noisy images at a time: went on with {rows}", RuntimeWarning, 2)
    table = counts.cpu().numpy()
    return Tally(*(np.ascontiguousarray(part) for part in (table[:, :-2], table[:, -2], table[:, -1])))


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


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _of_memory(error: Exception) -> bool:
    """Whether it says that memory does not suffice."""
    told = any(words in str(error) for words in _OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


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
