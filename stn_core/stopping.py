"""How many more draws an image needs: a pure function of the votes it has, so that any order gives the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Looks:
    """What images' votes came to each time that they were looked at: after every round of draws.

    Attributes:
        candidate: each image's class to be certified, int64 (images,); -1 where there is none.
        image: which image each look is at, int64 (looks,); looks at the same image follow each other in time.
        top: the candidate's votes so far, int64 (looks,).
        runner_up: the most votes so far of any other class, int64 (looks,).
        trials: estimation draws so far, int64 (looks,).
    """

    candidate: Ints
    image: Ints
    top: Ints
    runner_up: Ints
    trials: Ints


class Rule(Protocol):
    """When an image has votes enough."""

    def more(self, looks: Looks) -> Ints:
        """Draws of each image's next round, int64 (images,); 0 where it has enough."""


@dataclass(frozen=True)
class FixedDraws:
    """The same number for every image, whatever its votes.

    Attributes:
        draws: estimation draws of each image.
    """

    draws: int

    def more(self, looks: Looks) -> Ints:
        return np.maximum(self.draws - latest(looks, looks.trials), 0)


def latest(looks: Looks, values: Ints) -> Ints:
    """Of values for each look, those at the last look at each image, int64 (images,); 0 where there was none."""
    last = np.zeros(len(looks.candidate), dtype=np.int64)
    last[looks.image] = values  # of several for one place numpy keeps the last
    return last
