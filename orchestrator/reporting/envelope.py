"""The best of several runs at each radius: a choice made after looking, called so, and paid for where it is guaranteed.

A figure with one curve per sigma tempts to read off their upper envelope. As certified accuracy that is selection: no
single network has it. As a guarantee it stands if every run's statement holds at once, which costs each of them its
part of beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.reducing.tables import Line
from orchestrator.reporting.reported import ReportedRun
from stn_core.dataset import truly_certified


@dataclass(frozen=True)
class Best:
    """The best run at a radius.

    Attributes:
        radius: in [0, 1] pixel units.
        run: name of the run with the largest certified accuracy; the first of equals.
        certified_accuracy: its figure: selected, so too good on average.
        guaranteed_accuracy: with probability 1 - beta over all runs' noise, some run's classifier is truly certified on
            at least this fraction, at every radius at once; None where the protocol guarantees nothing.
    """

    radius: float
    run: str
    certified_accuracy: float
    guaranteed_accuracy: float | None


@dataclass(frozen=True)
class Envelope:
    """The best of several runs on the same images, for one line.

    Attributes:
        line: certificate and protocol.
        runs: names of the runs compared.
        beta: probability with which a guaranteed figure may be false: the least of the runs'.
        points: one per radius that all runs report.
    """

    line: Line
    runs: tuple[str, ...]
    beta: float
    points: tuple[Best, ...]


def envelopes(runs: Sequence[ReportedRun]) -> list[Envelope]:
    """The envelope of every line that at least two complete runs on the same images have in common."""
    groups: dict[tuple[object, ...], list[ReportedRun]] = {}
    for run in runs:
        if run.complete:
            for line in run.reduced.view.lines:
                groups.setdefault((line, run.reduced.view.alpha, *_images(run)), []).append(run)
    lines = sum(len(group) > 1 for group in groups.values())
    return [
        _envelope(line, group, lines)
        for (line, *_), group in groups.items()
        if isinstance(line, Line) and len(group) > 1 and _common_radii(group)
    ]


def _common_radii(runs: Sequence[ReportedRun]) -> list[float]:
    return sorted(set.intersection(*(set(run.reduced.view.radii) for run in runs)))


def _images(run: ReportedRun) -> tuple[object, ...]:
    dataset = run.plan.spec.dataset
    return run.plan.dataset_sha256, dataset.every, dataset.limit


def _envelope(line: Line, runs: Sequence[ReportedRun], lines: int) -> Envelope:
    curves = [dict(zip(_column(run, line, "radius"), _column(run, line, "certified"), strict=True)) for run in runs]
    radii = _common_radii(runs)
    return envelope_of(
        line,
        runs,
        radii,
        np.array([[curve[radius] for radius in radii] for curve in curves], dtype=np.int64),
        runs[0].plan.images,
        lines,
    )


def envelope_of(
    line: Line,
    runs: Sequence[ReportedRun],
    radii: Sequence[float],
    certified: NDArray[np.int64],
    images: int,
    lines: int,
) -> Envelope:
    """The envelope of some runs' counts.

    Args:
        line: certificate and protocol of all counts.
        runs: that are compared.
        radii: in [0, 1] pixel units.
        certified: how many images are certified, (runs, radii).
        images: the same for all runs.
        lines: how many lines' envelopes share beta.
    """
    beta = min(run.reduced.view.beta for run in runs)
    best = certified.argmax(axis=0)
    guaranteed: list[float] | None = None
    if line.guaranteed:
        # Every line, run and radius may be the one that is picked.
        truly = [
            truly_certified(
                counts, images, alpha=line.alpha(run.reduced.view.alpha), beta=beta / (lines * certified.size)
            )
            for run, counts in zip(runs, certified, strict=True)
        ]
        guaranteed = (np.max(truly, axis=0) / images).tolist()
    points = tuple(
        Best(
            radius,
            runs[best[i]].name,
            int(certified[best[i], i]) / images,
            None if guaranteed is None else guaranteed[i],
        )
        for i, radius in enumerate(radii)
    )
    return Envelope(line, tuple(run.name for run in runs), beta, points)


def _column(run: ReportedRun, line: Line, name: str) -> list[float]:
    return run.lines[line][name].to_pylist()
