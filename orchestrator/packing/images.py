"""Images of a user's own data set as Parquet of PNG, which loses nothing, or not at all."""

from __future__ import annotations

import io
import itertools
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from orchestrator.errors import PackError
from stn_core.naming import one_line
from workers.datasets.base import Pixels
from workers.datasets.encoded import channels_first

#: Bytes of pixels in a part, and images in a group of its rows: what a worker holds of it.
_PART_BYTES = 2**28
_GROUP = 100

#: Those in which every multiple of 1/255 is told from the next by far.
_FLOATS = (torch.float16, torch.float32, torch.float64)

_SCHEMA = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
    ]
)


class Dataset(Protocol):
    """Pairs of image and label by number, as ``torch.utils.data.Dataset`` has them; a list does."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


@dataclass(frozen=True)
class Part:
    """Some of the images.

    Attributes:
        content: a Parquet file.
        images: in it.
        first: number of the first.
    """

    content: bytes
    images: int
    first: int


def count_of(images: Dataset) -> int:
    """How many images there are. Raises PackError where there is none, or no number of them."""
    try:
        count = len(images)
    except TypeError as error:
        raise PackError(f"images must be a data set with a length, or a list of pairs: {one_line(error)}") from error
    if not count:
        raise PackError("the data set is empty: there is nothing to certify")
    return count


def labelled(images: Dataset, number: int, shape: tuple[int, ...] | None = None) -> tuple[Pixels, Any]:
    """One image, uint8 (channels, height, width), and its label. Raises PackError if an image is not that, to the last
    digit, or has another shape than image 0, where that is known."""
    image, label = _pair(images, number)
    pixels = _pixels(image, number)
    if shape is not None and pixels.shape != shape:
        raise PackError(f"image {number} has shape {pixels.shape}, image 0 {shape}: resize or crop them alike")
    return pixels, label


def encode_parts(
    images: Dataset, shape: tuple[int, ...], num_classes: int, classes: Sequence[str] | None
) -> Iterator[Part]:
    """All images with their labels, in their order.

    Args:
        images: the data set.
        shape: that each has, (channels, height, width).
        num_classes: labels lie below.
        classes: names by label.

    Raises:
        PackError: an image or a label is none that can be packed; which one.
    """
    schema = _SCHEMA
    if classes is not None:  # as model hubs say it
        names = {"names": [str(name) for name in classes], "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": names}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows = max(1, _PART_BYTES // int(np.prod(shape)))
    for first in range(0, len(images), rows):
        numbers = range(first, min(first + rows, len(images)))
        encoded: list[dict[str, Any]] = []
        labels: list[int] = []
        for number in numbers:
            pixels, label = labelled(images, number, shape)
            encoded.append({"bytes": _png(pixels), "path": None})
            labels.append(_label(label, number, num_classes))
        sink = io.BytesIO()
        columns = [pa.array(encoded, schema.field("image").type), pa.array(labels, pa.int64())]
        pq.write_table(pa.table(columns, schema=schema), sink, row_group_size=_GROUP, compression="none")
        yield Part(sink.getvalue(), len(numbers), first)


def check_same(there: bytes, part: Part, place: str) -> None:
    """Raise PackError unless a file holds a part's images, labels and names, however they are compressed."""
    if there == part.content:
        return
    try:
        kept, new = (pq.read_table(io.BytesIO(content)) for content in (there, part.content))
        if kept.schema.metadata != new.schema.metadata:
            raise PackError(f"{place} has other names of classes: name another folder, or remove this one")
        pairs = itertools.zip_longest(kept.to_pylist(), new.to_pylist())
        number = next((number for number, (old, own) in enumerate(pairs, part.first) if not _same(old, own)), None)
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise PackError(f"{place} is damaged ({one_line(error)}): remove it, or name another folder") from error
    if number is not None:
        raise PackError(f"{place}: image {number} or its label is another: name another folder, or remove this one")


def _same(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    if one is None or other is None or one["label"] != other["label"]:
        return False
    old, new = (np.asarray(Image.open(io.BytesIO(own["image"]["bytes"]))) for own in (one, other))
    return np.array_equal(old, new)


def _pair(images: Dataset, number: int) -> tuple[Any, Any]:
    try:
        pair = images[number]
        image, label = pair
    except Exception as error:  # the user's code may raise anything
        raise PackError(f"image {number} cannot be had as a pair of image and label: {one_line(error)}") from error
    return image, label


def _label(label: Any, number: int, num_classes: int) -> int:
    try:
        value = operator.index(label)
    except TypeError:
        raise PackError(f"the label of image {number} must be an integer, got {label!r}") from None
    if not 0 <= value < num_classes:
        raise PackError(f"the label of image {number} is {value}, and the network has classes 0 to {num_classes - 1}")
    return value


def _pixels(image: Any, number: int) -> Pixels:
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise PackError(f"image {number} is of PIL's mode {image.mode}: convert it, image.convert('RGB') or ('L')")
        return channels_first(image)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, torch.Tensor):
        raise PackError(f"image {number} is a {type(image).__name__}: give a tensor, an array or an image of PIL")
    image = image.detach().cpu()
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise PackError(
            f"image {number} has shape {tuple(image.shape)}: it must be (channels, height, width), of 1 or 3 channels"
        )
    if image.dtype != torch.uint8:
        image = _on_grid(image, number)
    return np.ascontiguousarray(image.numpy())


def _on_grid(image: torch.Tensor, number: int) -> torch.Tensor:
    """Multiples of 1/255 as 8-bit pixels. Raises PackError for anything else: to round it would be to certify another
    image."""
    if image.dtype not in _FLOATS:
        raise PackError(f"image {number} is of {image.dtype}: give uint8, or float32 in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):
        raise PackError(
            f"image {number} has values from {low:g} to {high:g}: give pixels in [0, 1], and leave normalising them to "
            "pack's argument normalization={'mean': …, 'std': …}"
        )
    levels = (image.double() * 255).round()
    # As far as division by 255 or multiplication by its inverse rounds, in the image's own type: of half precision, a
    # dark pixel may be off by far less than a bright one. What float32 could not tell anyway is let pass.
    apart, least = (image.double() - levels / 255).abs(), torch.finfo(torch.float32).eps
    off = apart.amax()
    if (apart > (torch.finfo(image.dtype).eps * image.double()).clamp_min(least)).any():
        raise PackError(
            f"image {number} is not on the grid of 8-bit pixels (by {float(off) * 255:.2g} of a step), and PNG would "
            "round it: leave out what was done after decoding, or give (255 * image).round().to(torch.uint8), which is "
            "the image that is certified"
        )
    return levels.to(torch.uint8)


def _png(pixels: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(sink, "PNG")
    return sink.getvalue()
