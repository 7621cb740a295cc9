"""Attacked images to look at: what a run kept of them, as PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from orchestrator.attacking.robustness import Attacked, Description, attempted, read_attempts
from orchestrator.planning.plans import Plan
from workers.store import Store

Floats = NDArray[np.float32]

#: Of each attack, that many images at most: enough to see what it does.
_SHOWN = 6


@dataclass(frozen=True)
class Exhibit:
    """An attacked image beside the clean one.

    Attributes:
        attack: by which it was found.
        norm: of the attack.
        index: the image's number in the data set.
        label: its class.
        size: allowed, in the attack's norm, [0, 1] pixel units; the smallest at which the image is not robust, else the
            largest.
        distance: between the two, in the attack's norm, [0, 1] pixel units.
        robust: the label is answered at all sizes.
        answered: class on the attacked image; None where the classifier abstains.
        clean, attacked: as the classifier takes them, in [0, 1], float32 (channels, height, width).
    """

    attack: str
    norm: str
    index: int
    label: int
    size: float
    distance: float
    robust: bool
    answered: int | None
    clean: Floats
    attacked: Floats

    @property
    def scale(self) -> float:
        """The largest difference of a pixel, in [0, 1] pixel units."""
        return float(np.abs(self.attacked - self.clean).max(initial=0.0))


def exhibits(store: Store, plan: Plan, attacked: Attacked, most_bytes: int) -> list[Exhibit]:
    """Of each attack, the first few images that the run keeps. Raises RunError if a shard of attempts is damaged.

    Args:
        store: of the run.
        plan: the run's.
        attacked: what is published of its attacks.
        most_bytes: of 8-bit pixels, of all attacks together, three images an exhibit; PNG takes hardly more.
    """
    affordable = most_bytes // (3 * int(np.prod(plan.image_shape)))
    each = min(_SHOWN, max(1, affordable // max(1, len(attacked.descriptions))))
    shards = attempted(store, plan)
    found: list[Exhibit] = []
    for name, description in attacked.descriptions.items():
        kept = set(plan.indices[: min(description.keep, each)])
        for shard in shards.get(name, []):
            indices = plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size]
            if kept.intersection(indices):
                table = read_attempts(store, plan, description, shard)
                found += _of_shard(table, description, plan, attacked, kept)
    return found[:affordable]


def _of_shard(
    table: pa.Table, description: Description, plan: Plan, attacked: Attacked, kept: set[int]
) -> Iterator[Exhibit]:
    standing = attacked.standings[description.name]
    is_own = pc.equal(attacked.attempts["attack"], description.name)
    is_kept = pc.is_in(attacked.attempts["index"], pa.array(sorted(kept), pa.int64()))
    own = attacked.attempts.filter(pc.and_(is_own, is_kept))
    answers = {(row["index"], row["size"]): row for row in own.drop_columns(["votes"]).to_pylist()}
    pixels = {
        (index, size): image
        for index, size, image in zip(*(table[name].to_pylist() for name in ("index", "size", "pixels")), strict=True)
        if image is not None
    }
    for place, index in enumerate(standing.index.tolist()):
        if index in kept and (index, 0.0) in pixels:
            robust = standing.robust[place]
            size = float(standing.sizes[-1 if robust.all() else int(np.argmin(robust))])
            row = answers[index, size]
            yield Exhibit(
                attack=description.name,
                norm=description.attack.norm,
                index=index,
                label=row["label"],
                size=size,
                distance=row[description.attack.norm],
                robust=bool(robust.all()),
                answered=row["prediction"],
                clean=_image(pixels[index, 0.0], plan),
                attacked=_image(pixels[index, size], plan),
            )


def _image(content: bytes, plan: Plan) -> Floats:
    return np.frombuffer(content, dtype="<f4").reshape(plan.image_shape).astype(np.float32)


def image_png(image: Floats) -> bytes:
    """An image (channels, height, width) of 1 or 3 channels in [0, 1] as PNG, each pixel to the nearest of 8 bits."""
    levels = np.rint(image * 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(sink, format="png")
    return sink.getvalue()


def difference_png(exhibit: Exhibit) -> bytes:
    """Attacked less clean as PNG: grey is no difference, black and white are ``scale`` down and up."""
    change = exhibit.attacked - exhibit.clean
    return image_png(np.float32(0.5) + change / np.float32(2 * exhibit.scale or 1))
