"""What became of a run's images, one by one: by class, by radius, by draws, and which failed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.planning.plans import Plan
from orchestrator.reducing.runs import counted_shards, given_up_shards, read_votes
from orchestrator.reducing.tables import Line, View
from stn_core.curves import certified_correct
from workers.store import Store

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Failed images that are listed one by one.
_FAILURES_SHOWN = 20

#: Bins of a histogram of radii.
_BINS = 40

#: Radii of the table by class.
_FEW_RADII = 4

#: Columns of certificates.parquet that this reads.
COLUMNS = ["index", "label", "prediction", "correct", "certificate", "protocol", "radius", "draws"]


@dataclass(frozen=True)
class Ballot:
    """An image's votes.

    Attributes:
        label: its class.
        key: its identity.
        votes: (class, estimation votes), most first, classes without votes left out.
        draws: estimation draws, those without a vote included.
    """

    label: int
    key: int
    votes: tuple[tuple[int, int], ...]
    draws: int


@dataclass(frozen=True)
class Votes:
    """What the votes say that certificates do not.

    Attributes:
        index: of all images in committed shards, int64 (images,).
        majority: whether the most voted class is the label, (images,).
        ballots: of the images asked for that could be counted, by their number in the data set.
        failed: how many images could not be counted.
        failures: data set index to the reason, of the first of them.
        given_up: shard to the reason it was given up, of those that are not counted.
    """

    index: Ints
    majority: NDArray[np.bool_]
    ballots: dict[int, Ballot]
    failed: int
    failures: dict[int, str]
    given_up: dict[int, str]


@dataclass(frozen=True)
class LineBreakdown:
    """One line of certificates, by class and by radius.

    Attributes:
        line: of certificates.
        certified: images of each class certified for it at each of ``radii``, (classes, radii).
        abstained: counted images of each class of which the votes decide nothing, (classes,).
        edges: of the bins, in [0, 1] pixel units; each holds its lower edge, the last its upper too; (bins + 1,).
        right: images certified for their label, by radius, (bins,).
        wrong: images certified for another class, by radius, (bins,).
    """

    line: Line
    certified: Ints
    abstained: Ints
    edges: Floats
    right: Ints
    wrong: Ints


@dataclass(frozen=True)
class Breakdown:
    """A run's images.

    Attributes:
        radii: of the figures by class, in [0, 1] pixel units.
        images: of each class, in the tables, (classes,).
        majority: of these, whose most voted class is the label, (classes,).
        lines: of certificates.
        draws: numbers of estimation draws that counted images have, increasing, (numbers,).
        with_draws: how many images have each, (numbers,).
    """

    radii: tuple[float, ...]
    images: Ints
    majority: Ints
    lines: tuple[LineBreakdown, ...]
    draws: Ints
    with_draws: Ints


def read_ballots(store: Store, plan: Plan, wanted: Collection[int]) -> Votes:
    """The run's votes, gone through once. Raises RunError if they are damaged.

    Args:
        store: where the run is.
        plan: the run's.
        wanted: images whose votes to keep, by their number in the data set.
    """
    indices: list[Ints] = []
    majority: list[NDArray[np.bool_]] = []
    ballots: dict[int, Ballot] = {}
    failures: dict[int, str] = {}
    failed = 0
    shards = counted_shards(store, plan)
    for rows in read_votes(store, plan, shards):
        index = rows.table["index"].to_numpy()
        indices.append(index)
        majority.append((rows.draws > rows.invalid) & (rows.estimation.argmax(axis=1) == rows.labels))
        failed += int((~rows.usable).sum())
        for row in rows.table.filter(pc.is_valid(rows.table["error"])).select(["index", "error"]).to_pylist():
            if len(failures) < _FAILURES_SHOWN:
                failures[row["index"]] = row["error"]
        for place in np.flatnonzero(np.isin(index, list(wanted)) & rows.usable).tolist():
            order = np.argsort(-rows.estimation[place], kind="stable").tolist()
            ballots[int(index[place])] = Ballot(
                label=int(rows.labels[place]),
                key=rows.table["key"][place].as_py(),
                votes=tuple(
                    (number, int(rows.estimation[place, number])) for number in order if rows.estimation[place, number]
                ),
                draws=int(rows.draws[place]),
            )
    given_up = {shard: reason for shard, reason in given_up_shards(store, plan).items() if shard not in set(shards)}
    return Votes(
        np.concatenate([np.zeros(0, np.int64), *indices]),
        np.concatenate([np.zeros(0, bool), *majority]),
        ballots,
        failed,
        failures,
        given_up,
    )


def break_down(certificates: pa.Table, view: View, num_classes: int, votes: Votes) -> Breakdown:
    """Sort a run's images.

    Args:
        certificates: of all lines of the view, with COLUMNS.
        view: what the certificates are.
        num_classes: classes the model votes among; images of others, which fail, are in no class.
        votes: of the same run; what was counted after the certificates were made is left out.
    """
    lines = [(line, of_line(certificates, line)) for line in view.lines]
    largest = max((float(pc.max(own["radius"]).as_py() or 0.0) for _, own in lines), default=0.0)
    # Where something is certified.
    radii = few([radius for radius in view.radii if radius <= largest] or view.radii[:1])
    # The same bins for all lines, so that they can be compared.
    edges = np.linspace(0.0, largest or 1.0, _BINS + 1)
    first = lines[0][1]
    label, draws = first["label"].to_numpy(), first["draws"].to_numpy()
    known = np.isin(votes.index, first["index"].to_numpy())
    right = dict(zip(votes.index[known].tolist(), votes.majority[known].tolist(), strict=True))
    majority = np.array([right.get(index, False) for index in first["index"].to_pylist()], dtype=bool)
    number, times = np.unique(draws[draws > 0], return_counts=True)
    return Breakdown(
        radii=radii,
        images=_by_class(label, num_classes),
        majority=_by_class(label[majority], num_classes),
        lines=tuple(_of_line(line, own, radii, edges, num_classes) for line, own in lines),
        draws=number,
        with_draws=times.astype(np.int64),
    )


def of_line(certificates: pa.Table, line: Line) -> pa.Table:
    """The rows of one line of certificates."""
    certificate = pc.equal(certificates["certificate"], line.certificate)
    return certificates.filter(pc.and_(certificate, pc.equal(certificates["protocol"], line.protocol)))


def few(radii: Sequence[float]) -> tuple[float, ...]:
    """Some of the radii, evenly among them, the first and the last included."""
    places = np.linspace(0, len(radii) - 1, min(_FEW_RADII, len(radii)))
    return tuple(radii[round(place)] for place in places.tolist())


def _of_line(line: Line, own: pa.Table, radii: tuple[float, ...], edges: Floats, num_classes: int) -> LineBreakdown:
    label, radius = own["label"].to_numpy(), own["radius"].to_numpy()
    correct = own["correct"].to_numpy(zero_copy_only=False)
    answered = pc.is_valid(own["prediction"]).to_numpy(zero_copy_only=False)
    counted = own["draws"].to_numpy() > 0
    certified = np.zeros((num_classes, len(radii)), np.int64)
    for number in np.unique(label[(label >= 0) & (label < num_classes)]).tolist():
        is_own = label == number
        certified[number] = certified_correct(radius[is_own], correct[is_own], radii)
    return LineBreakdown(
        line=line,
        certified=certified,
        abstained=_by_class(label[counted & ~answered], num_classes),
        edges=edges,
        right=np.histogram(radius[correct], edges)[0].astype(np.int64),
        wrong=np.histogram(radius[answered & ~correct], edges)[0].astype(np.int64),
    )


def _by_class(labels: Ints, num_classes: int) -> Ints:
    inside = labels[(labels >= 0) & (labels < num_classes)]
    return np.bincount(inside, minlength=num_classes).astype(np.int64)
