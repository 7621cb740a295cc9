"""Attacks held against certificates of the same images: whatever succeeds within a certified radius is a bug of one.

The true robust accuracy lies between the certified curve and the attacked one. An attack that makes the classifier
answer another class than the certified one, no farther away than the certified radius, contradicts the certificate,
unless chance made it look so. Every answer counts by Hung & Fithian's test at beta / attempts, all attempts of the
run, whatever line they are held against: so with probability 1 - beta no verdict on any line is chance of the votes.
How many certificates may be false by chance of their own, ``allowed`` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binom

from orchestrator.attacking.robustness import Attacked
from orchestrator.reducing.tables import Line, published, read_certificates
from orchestrator.reporting.reported import ReportedRun
from stn_core.certificates import CERTIFICATES
from workers.store import Store

Floats = NDArray[np.float64]

#: Distances are computed in float64 of float32 pixels: what is nearer to a radius than that is not called within it.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Contradiction:
    """An attacked image within a certified radius that is answered otherwise.

    Attributes:
        index: the image's number in the data set.
        attack: by what it was found.
        distance: from the clean image, in the certificate's norm, [0, 1] pixel units.
        radius: certified.
        certified, answered: classes.
        p_value: of the answer.
    """

    index: int
    attack: str
    distance: float
    radius: float
    certified: int
    answered: int
    p_value: float


@dataclass(frozen=True)
class Crossing:
    """A size at which fewer images withstand the attacks than are certified.

    Attributes:
        size: in the certificate's norm, [0, 1] pixel units.
        certified: fraction of all images certified at that size.
        attacked: fraction that no attack was seen to break up to that size.
    """

    size: float
    certified: float
    attacked: float


@dataclass(frozen=True)
class Sandwich:
    """A line of certificates, and what attacks made of it.

    Attributes:
        line: of certificates.
        radius: where the curves step, increasing from 0, in the certificate's norm; (points,).
        certified: fraction of all images with at least that certified radius, for their label; (points,).
        attacked: fraction of all images that no attack nearer than that was seen to break; (points,).
        images: whose certified radius holds an attacked image.
        tries: attacked images within certified radii, with votes enough to be sure; where nothing was changed, the
            clean image is none, but its answer is held to the certificate, too.
        undecided: of these, on which the classifier abstains at the attacks' alpha.
        unsure: of these, that are answered otherwise at the attacks' alpha, and not surely enough for all attempts.
        mute: attacked images within certified radii that have fewer votes than ``needed``: they can tell nothing.
        needed: votes of which an answer can be sure enough for all attempts.
        contradictions: of the certificates.
        crossings: of the curves: never without a contradiction.
        allowed: by chance more of the run's certificates are false with probability beta at most.
        beta: with probability 1 - beta no attack was seen to break or contradict anything, on any line of the run, by
            chance of the votes; what was attacked later, and looked at again, has spent another beta.
    """

    line: Line
    radius: Floats
    certified: Floats
    attacked: Floats
    images: int
    tries: int
    undecided: int
    unsure: int
    mute: int
    needed: int
    contradictions: tuple[Contradiction, ...]
    crossings: tuple[Crossing, ...]
    allowed: int
    beta: float

    @property
    def holds(self) -> bool:
        """Nothing contradicts the certificates."""
        return not self.contradictions and not self.crossings


def sandwiches(store: Store, run: ReportedRun, attacked: Attacked) -> list[Sandwich]:
    """One of each line that guarantees something, where there are attempts. Raises RunError."""
    partial = published(store) is None
    columns = ["index", "prediction", "correct", "radius", "certificate", "protocol"]
    certificates = read_certificates(store, run.reduced, columns, partial=partial)
    found = []
    for line in run.reduced.view.lines:
        if line.guaranteed and len(attacked.attempts):
            own = certificates.filter(
                pc.and_(
                    pc.equal(certificates["certificate"], line.certificate),
                    pc.equal(certificates["protocol"], line.protocol),
                )
            )
            view = run.reduced.view
            found.append(
                sandwich(
                    line,
                    own,
                    attacked,
                    images=run.plan.images,
                    alpha=line.alpha(view.alpha),
                    beta=view.beta,
                )
            )
    return found


def sandwich(
    line: Line,
    certificates: pa.Table,
    attacked: Attacked,
    *,
    images: int,
    alpha: float,
    beta: float,
) -> Sandwich:
    """Hold attempts against certificates.

    Args:
        line: of the certificates.
        certificates: of one line, ``index``, ``prediction``, ``correct`` and ``radius``.
        attacked: attempts, all attacks'.
        images: of the run, the denominator of both curves.
        alpha: chance of each certificate to be false.
        beta: chance of any contradiction, on any of the run's lines, to be one of the votes; and of more false
            certificates than allowed.
    """
    attempts = attacked.attempts.filter(pc.greater(attacked.attempts["draws"], 0))
    index, radius, correct, certified = _by_index(certificates)
    distance = attempts[CERTIFICATES[line.certificate].norm].to_numpy()
    answer = attempts["prediction"].fill_null(-1).to_numpy()
    places = np.minimum(np.searchsorted(index, attempts["index"].to_numpy()), len(index) - 1)
    known = (index[places] == attempts["index"].to_numpy()) & (certified[places] >= 0)
    within = known & (distance <= radius[places] * (1 - _ROUNDING))
    # One level for all attempts, not one for those within this line's radii: there are other lines, and an answer that
    # is wrong by chance may lie within any. What is that sure must be answered at the tables' own alpha, too.
    p_value = attempts["p_value"].to_numpy()
    level = beta / max(1, len(p_value))
    sure = (answer >= 0) & (p_value <= level)
    otherwise = (answer >= 0) & (answer != certified[places])
    wrong = np.flatnonzero(within & otherwise & sure)
    # All votes for one class have p = 2 / 2 ** votes: fewer than that contradict nothing, whatever they say.
    needed = math.ceil(1 - math.log2(level))
    changed = within & (distance > 0)
    tried = changed & (attempts["draws"].to_numpy() >= needed)
    contradictions = tuple(
        Contradiction(
            int(index[places[row]]),
            attempts["attack"][row].as_py(),
            float(distance[row]),
            float(radius[places[row]]),
            int(certified[places[row]]),
            int(answer[row]),
            float(p_value[row]),
        )
        for row in wrong
    )
    broken = sure & ~attempts["correct"].to_numpy()
    broken_from = _broken_from(attempts["index"].to_numpy(), distance, broken)
    steps = np.unique(np.concatenate([[0.0], radius[correct], broken_from]))
    lower = np.array([(radius[correct] >= step).sum() for step in steps]) / images
    upper = np.array([images - (broken_from <= step * (1 - _ROUNDING)).sum() for step in steps]) / images
    crossings = tuple(
        Crossing(float(step), float(low), float(high))
        for step, low, high in zip(steps, lower, upper, strict=True)
        if high < low
    )
    return Sandwich(
        line=line,
        radius=steps,
        certified=lower,
        attacked=upper,
        images=len(np.unique(places[tried])),
        tries=int(tried.sum()),
        undecided=int((tried & (answer < 0)).sum()),
        unsure=int((tried & otherwise & ~sure).sum()),
        mute=int((changed & ~tried).sum()),
        needed=needed,
        contradictions=contradictions,
        crossings=crossings,
        # Alpha bounds the chance of an image to be certified and falsely so: of those that are, more may be.
        allowed=int(binom.isf(beta, images, alpha)),
        beta=beta,
    )


def _by_index(certificates: pa.Table) -> tuple[NDArray[np.int64], Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Images' numbers, ascending, certified radii, whether for the label, and classes, -1 for none; the last is an
    image that is none, so that there is one."""
    order = np.argsort(certificates["index"].to_numpy())
    columns = {
        "index": (certificates["index"].to_numpy(), np.iinfo(np.int64).max),
        "radius": (certificates["radius"].to_numpy(), 0.0),
        "correct": (certificates["correct"].to_numpy().astype(bool), False),
        "certified": (certificates["prediction"].fill_null(-1).to_numpy(), -1),
    }
    index, radius, correct, certified = (np.append(values[order], none) for values, none in columns.values())
    return index, radius, correct.astype(bool), certified


def _broken_from(index: NDArray[np.int64], distance: Floats, broken: NDArray[np.bool_]) -> Floats:
    """The least distance at which each image that was broken was, in no order."""
    which, inverse = np.unique(index[broken], return_inverse=True)
    least = np.full(len(which), np.inf)
    np.minimum.at(least, inverse, distance[broken])
    return least
