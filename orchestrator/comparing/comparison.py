"""Runs beside each other on the same images: what each certifies, by how much the others differ from the first, and
whether that may be luck of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.comparing.entrants import (
    NOT_CERTIFIED,
    Entrant,
    Floats,
    Ints,
    Setting,
    common_lines,
    differing,
    line_text,
    on_shared_images,
)
from orchestrator.errors import SpecError
from orchestrator.reducing.tables import Line
from orchestrator.reporting.envelope import Envelope, envelope_of
from stn_core.certificates import CERTIFICATES
from stn_core.paired import difference_interval, holm, mcnemar


@dataclass(frozen=True)
class Question:
    """What is to be compared.

    Attributes:
        certificates, protocols: names; none means all that the runs have in common.
        radii: in [0, 1] pixel units, increasing; none means all that some run's table has.
        level: chance of a wrong interval, and of any wrong call that a difference is shown.
        common: whether images that only some of the runs cover may be left out.
    """

    certificates: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    radii: tuple[float, ...] = ()
    level: float = 0.05
    common: bool = False


@dataclass(frozen=True)
class Beside:
    """A run beside the first one, at a radius.

    Attributes:
        gained: images that this run certifies and the first does not.
        lost: images that the first certifies and this run does not.
        judged: what follows for other images; None where votes of one of the two are still to come.
    """

    gained: int
    lost: int
    judged: Judged | None


@dataclass(frozen=True)
class Judged:
    """A difference as one of a random sample.

    Attributes:
        low, high: ends of its interval, fractions.
        p_value: by McNemar's exact test, two-sided.
        p_holm: corrected for every comparison made.
        differs: whether that is at or below the level.
    """

    low: float
    high: float
    p_value: float
    p_holm: float
    differs: bool


@dataclass(frozen=True)
class Standing:
    """A run at a radius.

    Attributes:
        run: its name.
        certified: images certified for their label; missing and failed ones are not.
        best: whether no complete run certifies more, of those that certify any: selection.
        beside: the first run; None for that one itself.
    """

    run: str
    certified: int
    best: bool
    beside: Beside | None


@dataclass(frozen=True)
class Point:
    """All runs at a radius.

    Attributes:
        radius: in [0, 1] pixel units.
        standings: one for each run, in their order.
        guaranteed: fraction of the images that the best run truly certifies, at least, whichever it is and at every
            radius and line at once; None where nothing is guaranteed, or no two runs are complete.
    """

    radius: float
    standings: tuple[Standing, ...]
    guaranteed: float | None


@dataclass(frozen=True)
class Compared:
    """All runs by a line of certificates.

    Attributes:
        line: certificate and protocol.
        points: one for each radius.
        radii: certified radius of each image under each run, or NOT_CERTIFIED, float64 (runs, images).
    """

    line: Line
    points: tuple[Point, ...]
    radii: Floats

    @property
    def norm(self) -> str:
        return CERTIFICATES[self.line.certificate].norm


@dataclass(frozen=True)
class Comparison:
    """An answer.

    Attributes:
        entrants: the runs, on the images compared; the first is what the others are held against.
        covered: images that each run covers.
        level: as it was asked.
        tests: how many comparisons share it.
        beta: probability with which guaranteed figures may be false; None where there are none.
        lines: that all runs have and that were asked for.
        left_out: lines that only some of the runs have.
        settings: in which the runs differ.
    """

    entrants: tuple[Entrant, ...]
    covered: tuple[int, ...]
    level: float
    tests: int
    beta: float | None
    lines: tuple[Compared, ...]
    left_out: tuple[Line, ...]
    settings: tuple[Setting, ...]

    @property
    def complete(self) -> bool:
        return all(one.run.complete for one in self.entrants)

    @property
    def images(self) -> int:
        """Images compared: every figure's denominator."""
        return len(self.entrants[0].indices)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.entrants)

    def __repr__(self) -> str:
        lines = [line_text(one.line) for one in self.lines]
        return f"Comparison(runs={self.names!r}, images={self.images}, complete={self.complete}, lines={lines!r})"

    @property
    def table(self) -> pa.Table:
        """``records`` as a table."""
        return pa.Table.from_pylist(records(self))


def compare(entrants: Sequence[Entrant], question: Question) -> Comparison:
    """Hold runs against the first of them.

    Raises:
        SpecError: fewer than two runs, or a name that is none.
        RunError: they are of different images, or have no certificates in common.
    """
    if len(entrants) < 2:
        raise SpecError("one run is no comparison: name at least two different ones")
    shared = on_shared_images(entrants, common=question.common)
    lines = common_lines(shared, question.certificates, question.protocols)
    every = {radius for one in entrants for radius in one.run.reduced.view.radii}
    radii = question.radii or tuple(sorted(every))
    tables = [np.stack([one.radii[line] for one in shared]) for line in lines]
    counts = [_counts(table, radii) for table in tables]
    best = _envelopes(shared, lines, radii, [certified for certified, _, _ in counts])
    gained, lost = (np.stack([found[which] for found in counts]) for which in (1, 2))
    judged = _judge(gained, lost, shared, question.level)

    def beside(line: int, run: int, point: int) -> Beside:
        at = line, run, point
        return Beside(int(gained[at]), int(lost[at]), judged.get(at))

    def standings(line: int, point: int) -> tuple[Standing, ...]:
        certified = counts[line][0][:, point]
        complete = np.array([one.run.complete for one in shared])
        most = certified[complete].max(initial=0) if complete.sum() > 1 else 0
        return tuple(
            Standing(
                one.name,
                int(certified[run]),
                bool(complete[run] and certified[run] == most > 0),
                beside(line, run - 1, point) if run else None,
            )
            for run, one in enumerate(shared)
        )

    return Comparison(
        entrants=tuple(shared),
        covered=tuple(len(one.indices) for one in entrants),
        level=question.level,
        tests=len(judged),
        beta=best[0].beta if best and any(line.guaranteed for line in lines) else None,
        lines=tuple(
            Compared(
                line,
                tuple(
                    Point(radius, standings(i, j), best[i].points[j].guaranteed_accuracy if best else None)
                    for j, radius in enumerate(radii)
                ),
                tables[i],
            )
            for i, line in enumerate(lines)
        ),
        left_out=_left_out(shared),
        settings=differing(shared),
    )


def _counts(table: Floats, radii: Sequence[float]) -> tuple[Ints, Ints, Ints]:
    """How many images are certified at each radius by each run, (runs, radii); and by each run but the first, alone and
    not, beside the first, (runs - 1, radii)."""
    assert NOT_CERTIFIED < 0 <= min(radii)
    certified, gained, lost = [], [], []
    for radius in radii:  # one at a time: images times radii may be many
        held = table >= radius
        certified.append(held.sum(axis=1))
        gained.append((held[1:] & ~held[0]).sum(axis=1))
        lost.append((held[0] & ~held[1:]).sum(axis=1))
    return np.array(certified).T, np.array(gained).T, np.array(lost).T


def _judge(gained: Ints, lost: Ints, entrants: Sequence[Entrant], level: float) -> dict[tuple[int, ...], Judged]:
    """By place in the counts, (lines, runs - 1, radii); images that are missing are no random ones."""
    settled = [one.settled for one in entrants]
    places = [place for place in np.ndindex(*gained.shape) if settled[0] and settled[1 + place[1]]]
    if not places:
        return {}
    own = tuple(np.array(places).T)
    p_values = mcnemar(gained[own], lost[own])
    low, high = difference_interval(gained[own], lost[own], len(entrants[0].indices), level=level)
    found = zip(low.tolist(), high.tolist(), p_values.tolist(), holm(p_values).tolist(), strict=True)
    return {place: Judged(*values, differs=values[-1] <= level) for place, values in zip(places, found, strict=True)}


def _envelopes(
    entrants: Sequence[Entrant], lines: Sequence[Line], radii: Sequence[float], certified: Sequence[Ints]
) -> list[Envelope]:
    """The best complete run at each radius, by line; none where fewer than two are complete."""
    chosen = [number for number, one in enumerate(entrants) if one.run.complete]
    if len(chosen) < 2:
        return []
    runs, images = [entrants[number].run for number in chosen], len(entrants[0].indices)
    return [
        envelope_of(line, runs, radii, counts[chosen], images, len(lines))
        for line, counts in zip(lines, certified, strict=True)
    ]


def _left_out(entrants: Sequence[Entrant]) -> tuple[Line, ...]:
    every = dict.fromkeys(line for one in entrants for line in one.radii)
    return tuple(line for line in every if not all(line in one.radii for one in entrants))


_JUDGED = tuple(field.name for field in dataclasses.fields(Judged))


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Everything in full precision: a row for each line, radius and run. Fractions of all images, not per cent."""
    return [
        {
            "certificate": compared.line.certificate,
            "protocol": compared.line.protocol,
            "norm": compared.norm,
            "radius": point.radius,
            "run": standing.run,
            "uri": entrant.uri,
            "complete": entrant.run.complete,
            "alpha": compared.line.alpha(entrant.run.reduced.view.alpha),
            "images": comparison.images,
            "certified": standing.certified,
            "certified_accuracy": standing.certified / comparison.images,
            "best": standing.best,
            "best_guaranteed_accuracy": point.guaranteed,
            "baseline": comparison.names[0],
            **_difference(standing.beside, comparison),
        }
        for compared in comparison.lines
        for point in compared.points
        for standing, entrant in zip(point.standings, comparison.entrants, strict=True)
    ]


def _difference(beside: Beside | None, comparison: Comparison) -> dict[str, Any]:
    """What there is of it; the rest is None."""
    judged = None if beside is None else beside.judged
    return {
        "gained": None if beside is None else beside.gained,
        "lost": None if beside is None else beside.lost,
        "difference": None if beside is None else (beside.gained - beside.lost) / comparison.images,
        "level": comparison.level,
        **(dict.fromkeys(_JUDGED) if judged is None else dataclasses.asdict(judged)),
    }
