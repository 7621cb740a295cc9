"""Runs to be compared, image by image, and whether they can be: on the same images, by the same certificates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import RunError, SpecError
from orchestrator.reducing.tables import Line, published, read_certificates
from orchestrator.reporting.reported import ReportedRun, load_run
from stn_core.certificates import CERTIFICATES
from stn_core.confidence import PROTOCOLS
from stn_core.naming import listed, pick
from workers.store import Store

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_COLUMNS = ("index", "label", "correct", "radius", "certificate", "protocol")

#: In place of a radius, where an image is not certified for its label; of a label, where it is not counted yet.
NOT_CERTIFIED, NOT_KNOWN = -1.0, -1

#: Digits of a digest that tell it from others.
_DIGEST = 16


@dataclass(frozen=True)
class Entrant:
    """A run and what it certifies of each of its images.

    Attributes:
        run: its name is no other entrant's.
        uri: where it is kept.
        indices: the data set's indices that it covers, ascending, int64 (images,).
        labels: true classes, NOT_KNOWN where an image is missing, int64 (images,).
        radii: for each line the radius to which an image is certified for its label, in [0, 1] pixel units, or
            NOT_CERTIFIED, float64 (images,).
    """

    run: ReportedRun
    uri: str
    indices: Ints
    labels: Ints
    radii: Mapping[Line, Floats]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def counted(self) -> Ints:
        """Indices of the images that are not missing."""
        return self.indices[self.labels != NOT_KNOWN]

    @property
    def settled(self) -> bool:
        """Whether no more votes will come for these images, unless failed ones are tried again."""
        decided = not self.run.reduced.summary.undecided and not self.run.outdated
        return decided and len(self.counted) == len(self.indices)


def load_entrants(stores: Sequence[Store]) -> list[Entrant]:
    """The runs in ``stores``, partial ones too. Raises RunError, as for a run without a counted image."""
    names = distinct_names([store.uri for store in stores])
    return [_load(store, name) for store, name in zip(stores, names, strict=True)]


def distinct_names(uris: Sequence[str]) -> list[str]:
    """As few of each URI's last components, for all the same number, as tell them apart."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(uris)


def _load(store: Store, name: str) -> Entrant:
    run = load_run(store)
    summary = run.reduced.summary
    if not summary.counted:
        raise RunError(
            f"{store.uri} is empty: of {summary.images} images {summary.failed} failed, {summary.missing} are missing, "
            "and none is counted"
        )
    table = read_certificates(store, run.reduced, _COLUMNS, partial=published(store) is None)
    indices = np.array(run.plan.indices, dtype=np.int64)
    labels = np.full(len(indices), NOT_KNOWN, dtype=np.int64)
    radii = {}
    for line in run.reduced.view.lines:
        own = table.filter(
            pc.and_(pc.equal(table["certificate"], line.certificate), pc.equal(table["protocol"], line.protocol))
        )
        place = np.searchsorted(indices, own["index"].to_numpy())
        labels[place] = own["label"].to_numpy()
        radii[line] = np.full(len(indices), NOT_CERTIFIED)
        radii[line][place] = np.where(own["correct"].to_numpy(), own["radius"].to_numpy(), NOT_CERTIFIED)
    return Entrant(dataclasses.replace(run, name=name), store.uri, indices, labels, radii)


def on_shared_images(entrants: Sequence[Entrant], *, common: bool) -> list[Entrant]:
    """The runs on the images that all of them cover.

    Args:
        entrants: at least one.
        common: whether images that some of them do not cover, or have not counted yet, are left out.

    Raises:
        RunError: the images differ, and how.
    """
    first = entrants[0]
    for other in entrants[1:]:
        if other.run.plan.dataset_sha256 != first.run.plan.dataset_sha256:
            raise RunError(f"{first.name} and {other.name} are of different data sets: {_data_sets(first, other)}")
    shared = functools.reduce(np.intersect1d, (one.counted if common else one.indices for one in entrants))
    if common and not len(shared):
        raise RunError("there is no image that all runs have counted: nothing is left to compare")
    for other in entrants[1:]:
        if not np.array_equal(first.indices, other.indices) and not common:
            offer = f"--common compares the {len(shared)} that all runs have" if len(shared) else "all share none"
            raise RunError(f"{first.name} and {other.name} are of different images: {_images(first, other)}; {offer}")
    chosen = [_of(one, shared) for one in entrants]
    for other in chosen[1:]:
        unlike = (chosen[0].labels != other.labels) & (chosen[0].labels != NOT_KNOWN) & (other.labels != NOT_KNOWN)
        if unlike.any():
            raise RunError(
                f"{first.name} and {other.name} know other classes of the same images: {int(unlike.sum())} labels "
                f"differ, the first that of image {shared[unlike][0]}"
            )
    return chosen


def _of(entrant: Entrant, indices: Ints) -> Entrant:
    own = np.isin(entrant.indices, indices)
    radii = {line: radius[own] for line, radius in entrant.radii.items()}
    return dataclasses.replace(entrant, indices=entrant.indices[own], labels=entrant.labels[own], radii=radii)


def _data_sets(one: Entrant, other: Entrant) -> str:
    told = []
    for entrant in (one, other):
        plan = entrant.run.plan
        cut = {
            name: getattr(plan.spec.dataset, name, None)
            for name in ("split", "resize", "crop", "interpolation", "mode")
        }
        facts = [plan.spec.dataset.kind, f"{plan.dataset_size} images", f"sha-256 {plan.dataset_sha256[:_DIGEST]}…"]
        facts += [f"{name} {value}" for name, value in cut.items() if value is not None]
        told.append(f"{entrant.name} has {', '.join(facts)}")
    return "; ".join(told)


def _images(one: Entrant, other: Entrant) -> str:
    return "; ".join(
        f"only {mine.name} has {listed(lacking.tolist(), 5)}"
        for mine, its in ((one, other), (other, one))
        if len(lacking := np.setdiff1d(mine.indices, its.indices))
    )


def common_lines(entrants: Sequence[Entrant], certificates: Sequence[str], protocols: Sequence[str]) -> list[Line]:
    """The lines that all runs have, of these certificates and protocols; none named means any.

    Raises:
        SpecError: a name that no certificate or protocol has.
        RunError: there is no such line, and what each run has.
    """
    try:
        for name in certificates:
            pick(CERTIFICATES, name, "certificate")
        for name in protocols:
            pick(PROTOCOLS, name, "protocol")
    except ValueError as error:
        raise SpecError(str(error)) from error
    lines = [
        line
        for line in entrants[0].radii
        if all(line in other.radii for other in entrants[1:])
        and (not certificates or line.certificate in certificates)
        and (not protocols or line.protocol in protocols)
    ]
    if not lines:
        has = "; ".join(f"{one.name} has {listed(map(line_text, one.radii))}" for one in entrants)
        asked = "that was asked for " if certificates or protocols else ""
        raise RunError(
            f"no certificate {asked}is in the tables of all runs under the same protocol: {has}; "
            "`stn reduce RUN --certificate NAME --protocol NAME` makes others of the same votes"
        )
    return lines


def line_text(line: Line) -> str:
    """A line as people read it."""
    return f"{line.certificate.replace('_', ' ')} ({line.protocol})"


@dataclass(frozen=True)
class Setting:
    """Something in which runs differ.

    Attributes:
        name: as a spec calls it, or a plan.
        values: of the runs, in their order.
    """

    name: str
    values: tuple[str, ...]


def differing(entrants: Sequence[Entrant]) -> tuple[Setting, ...]:
    """What decides votes or certificates, and is not the same for all runs."""
    every = [_settings(one.run) for one in entrants]
    names = dict.fromkeys(name for settings in every for name in settings)
    found = (Setting(name, tuple(_text(settings.get(name)) for settings in every)) for name in names)
    return tuple(setting for setting in found if len(set(setting.values)) > 1)


def _settings(run: ReportedRun) -> dict[str, Any]:
    view, goal = run.reduced.view, run.reduced.goal
    decided = {f"sampling.{name}": goal[name] for name in ("mode", "draws", "tolerance", "stages") if name in goal}
    # By these, votes decided how many there are to be; elsewhere they decide nothing.
    decided |= {"radii": goal["radii"]} if "radii" in goal else {}
    settings = {"sampling.mode": "fixed", **run.plan.identity(), **decided}
    del settings["resources.shard_size"]
    return {**settings, "confidence.alpha": view.alpha, "confidence.interval": view.interval}


def _text(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    return f"{text[:_DIGEST]}…" if len(text) == 64 and text.isalnum() else text
