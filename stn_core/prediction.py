"""The smoothed classifier's answer from votes, or none (Cohen et al. 2019, PREDICT; Hung & Fithian 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Predicted:
    """What votes say of each image's most likely class under noise.

    Attributes:
        winner: the most voted class, the lowest of several; -1 without a vote. int64 (images,).
        p_value: of the hypothesis that it is no more likely than the class with the next most votes, two-sided; a wrong
            winner gets one as small as that with at most that chance, whatever the probabilities. (images,).
    """

    winner: Ints
    p_value: NDArray[np.float64]

    def answer(self, alpha: float) -> Ints:
        """The winner, or -1 for abstaining: whatever the probabilities, a class that is not the most likely is answered
        with a chance of at most alpha. int64 (images,)."""
        return np.where(self.p_value <= alpha, self.winner, -1)


def predict(votes: Ints, *, enumerated: bool = False) -> Predicted:
    """Which class wins, and how surely.

    Of the two classes with the most votes, the winner's count among both is tested against an even coin: it is truly
    the most likely of all classes, but for a chance of the p-value (Hung & Fithian 2019, theorem 1).

    Args:
        votes: int64 (images, classes), of draws that nobody saw who chose the images.
        enumerated: the draws are all there are, and votes the probabilities: nothing is left to chance but ties.

    Raises:
        ValueError: ``votes`` are no such counts.
    """
    if votes.ndim != 2 or votes.shape[1] < 2 or (votes < 0).any():
        raise ValueError(f"votes must be counts (images, classes) of two classes or more, got shape {votes.shape}")
    order = np.argsort(-votes, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(votes, order, axis=1).T
    winner = np.where(first > 0, order[:, 0], -1)
    if enumerated:
        return Predicted(winner, np.where(first > second, 0.0, 1.0))
    # P(X >= first) for X ~ Binomial(first + second, 1/2) is the incomplete beta function (Abramowitz & Stegun 1964,
    # 26.5.24): two-sided, twice that, and no more than 1.
    tail = betainc(first, second + 1, 0.5)
    return Predicted(winner, np.where(first > second, np.minimum(1.0, 2 * tail), 1.0))
