"""Images to look at: those with the largest and the smallest radius, clean and noisy, with their votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from orchestrator.reducing.runs import read_index
from orchestrator.reducing.tables import Line
from orchestrator.reporting.page.breakdown import Ballot, of_line
from stn_core.models.classes import imagenet_wnids
from stn_core.naming import one_line
from stn_core.noise import Draws
from workers.images import DatasetError, ImageSet, Index, Pixels, UnreadableImage, indexed, open_dataset
from workers.settings import Encoded, ImageNet
from workers.store import Store, StoreError

Floats = NDArray[np.float32]

#: Of each group, that many images at most.
_SHOWN = 4

#: Groups of images, in the order in which they are shown.
GROUPS = ("largest radius", "smallest radius", "wrong or abstaining")


@dataclass(frozen=True)
class Choice:
    """An image that was chosen to be looked at.

    Attributes:
        group: one of GROUPS.
        index: the image's number in the data set.
        prediction: class that is certified; None where the image abstains.
        radius: certified, in [0, 1] pixel units.
    """

    group: str
    index: int
    prediction: int | None
    radius: float


@dataclass(frozen=True)
class Specimen:
    """A chosen image with its votes and, where the data set is here, its pixels.

    Attributes:
        choice: which it is.
        ballot: its votes.
        clean: in [0, 1], float32 (channels, height, width); None where it cannot be had.
        noisy: the same under the noise of its first estimation draw, as a CPU draws it; not clipped.
    """

    choice: Choice
    ballot: Ballot
    clean: Floats | None = None
    noisy: Floats | None = None


@dataclass(frozen=True)
class Specimens:
    """A run's images to look at.

    Attributes:
        line: of certificates, by which they were chosen.
        images: in the order of GROUPS.
        classes: names by label; None where they are not known.
        absent: why there are no pixels; empty where there are.
    """

    line: Line
    images: tuple[Specimen, ...]
    classes: tuple[str, ...] | None
    absent: str


def choose(certificates: pa.Table, line: Line) -> list[Choice]:
    """The images of one line to look at: of those certified for their label the largest and the smallest radii, and of
    the others those certified for another class by the most, then those that abstain. The lower index wins a tie."""
    own = of_line(certificates, line)
    counted = own.filter(pc.greater(own["draws"], 0))
    down, up = [("radius", "descending"), ("index", "ascending")], [("radius", "ascending"), ("index", "ascending")]
    right = counted.filter(counted["correct"])
    largest = right.sort_by(down).slice(0, _SHOWN)
    rest = right.filter(pc.invert(pc.is_in(right["index"], largest["index"].combine_chunks())))
    groups = (largest, rest.sort_by(up).slice(0, _SHOWN))
    wrong = counted.filter(pc.invert(counted["correct"])).sort_by(down).slice(0, _SHOWN)
    return [
        Choice(group, row["index"], row["prediction"], row["radius"])
        for group, table in zip(GROUPS, (*groups, wrong), strict=True)
        for row in table.select(["index", "prediction", "radius"]).to_pylist()
    ]


def gather(
    store: Store, plan: Plan, line: Line, choices: Sequence[Choice], ballots: Mapping[int, Ballot], most_bytes: int
) -> Specimens:
    """The chosen images with their votes; with pixels if the run's own data set is here.

    Args:
        store: where the run is.
        plan: the run's.
        line: by which the images were chosen.
        choices: the images.
        ballots: their votes; of images without, nothing is shown.
        most_bytes: of 8-bit pixels, two images a specimen; 0: the data set is not even looked for.
    """
    found = [Specimen(choice, ballots[choice.index]) for choice in choices if choice.index in ballots]
    index, classes = _names(store, plan)
    affordable = most_bytes // (2 * int(np.prod(plan.image_shape)))
    if not affordable or not found:
        absent = "Images are left out." if found else "No image is counted."
        return Specimens(line, tuple(found), classes, absent)
    try:
        images = _open(plan, index)
        if images.fingerprint != plan.dataset_sha256:
            raise DatasetError("other images are at dataset.path than the run's")
        # Evenly: of each group the first.
        turn = sorted(found, key=lambda one: [own for own in found if own.choice.group == one.choice.group].index(one))
        shown = {one.choice.index for one in turn[:affordable]}
        pictured = [_pictured(one, images, plan) if one.choice.index in shown else one for one in found]
    # Whatever keeps the data from being read here, votes and certificates are what the page is about.
    except (DatasetError, StoreError, UnreadableImage, OSError, ValueError) as error:
        return Specimens(line, tuple(found), classes, f"The run's data set is not here ({one_line(error)}).")
    return Specimens(line, tuple(pictured), classes, "")


def _names(store: Store, plan: Plan) -> tuple[Index | None, tuple[str, ...] | None]:
    """The data set's index, if the run keeps it, and what it calls its classes."""
    try:
        index = read_index(store)
    except RunError:
        index = None
    if isinstance(plan.spec.dataset, ImageNet):
        return index, imagenet_wnids()
    return index, None if index is None else index.classes


def _open(plan: Plan, index: Index | None) -> ImageSet:
    dataset, options = plan.spec.dataset, plan.spec.store.options
    # By its index nothing is looked for but the images that are shown; each is held against its size there.
    if isinstance(dataset, Encoded) and index is not None:
        return indexed(dataset, options, index)
    return open_dataset(dataset, options)


def _pictured(specimen: Specimen, images: ImageSet, plan: Plan) -> Specimen:
    index = specimen.choice.index
    pixels = images.read(index)
    if pixels.shape != plan.image_shape or images.key(index) != specimen.ballot.key:
        raise DatasetError(f"image {index} is another than the run's")
    clean = pixels.astype(np.float32) / np.float32(255)
    return Specimen(specimen.choice, specimen.ballot, clean, noisy_copy(pixels, specimen.ballot.key, plan))


def noisy_copy(pixels: Pixels, key: int, plan: Plan) -> Floats:
    """An image under the noise of its first estimation draw, as a CPU draws it: float32 of its shape, not clipped."""
    images = torch.from_numpy(pixels[None].copy())
    rows = torch.empty(images.shape, dtype=torch.float32)
    draws = [Draws(seed=plan.spec.sampling.seed, key=key, phase="estimation", number=0)]
    plan.spec.noise.build().perturb(rows, images, torch.zeros(1, dtype=torch.int64), draws)
    return rows[0].numpy()
