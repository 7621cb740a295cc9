"""Certified accuracy at every radius, as reports draw it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.numerals import NORMS
from orchestrator.reducing.tables import Line, published, read_certificates
from orchestrator.reporting.reported import ReportedRun
from stn_core.certificates import CERTIFICATES
from stn_core.curves import certified_correct
from workers.store import Store

#: More points than that are no finer a curve to the eye.
_MOST_STEPS = 4000


@dataclass(frozen=True)
class Steps:
    """Certified accuracy at every radius, not only at those asked for: a function that falls in steps.

    Attributes:
        radius: increasing, from 0, in [0, 1] pixel units; float64 (points,).
        accuracy: certified accuracy from just above the radius before up to this one, (points,).
    """

    radius: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def load_steps(store: Store, run: ReportedRun) -> dict[Line, Steps]:
    """The exact curve of each line of ``run``, which is in ``store``. Raises RunError."""
    columns = ["radius", "correct", "certificate", "protocol"]
    partial = published(store) is None
    certificates = read_certificates(store, run.reduced, columns, partial=partial)
    correct = certificates.filter(certificates["correct"])
    found = {}
    for line in run.reduced.view.lines:
        own = pc.and_(pc.equal(correct["certificate"], line.certificate), pc.equal(correct["protocol"], line.protocol))
        found[line] = steps_of(correct.filter(own)["radius"].to_numpy(), run.plan.images)
    return found


def steps_of(radius: NDArray[np.float64], images: int) -> Steps:
    """The curve of the given radii, over ``images`` images."""
    ends = np.unique(np.concatenate([[0.0], radius]))
    accuracy = certified_correct(radius, np.ones(len(radius), dtype=bool), ends) / images
    # The last step falls to nothing.
    return thinned(Steps(np.append(ends, ends[-1]), np.append(accuracy, 0.0)), _MOST_STEPS)


def thinned(steps: Steps, most: int) -> Steps:
    """A curve with some ``most`` points: of each stretch the lowest value, at its right end, is kept."""
    last = len(steps.radius) - 2
    kept = np.unique([*range(0, last + 1, -(-(last + 1) // most)), last, last + 1])
    return Steps(steps.radius[kept], steps.accuracy[kept])


def line_name(run: ReportedRun, line: Line) -> str:
    """A line's name for people; the protocol only where the run has several, the norm likewise."""
    view = run.reduced.view
    name = line.certificate.replace("_", " ")
    if len({CERTIFICATES[certificate].norm for certificate in view.certificates}) > 1:
        name = f"{name} [{NORMS[CERTIFICATES[line.certificate].norm]}]"
    name = name if len(view.protocols) == 1 else f"{name}, {line.protocol}"
    return name if line.guaranteed else f"{name} (not a guarantee)"
