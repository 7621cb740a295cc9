"""How many more draws an image needs: a pure function of the votes it has, so that any order gives the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stn_core.looks import Ints, Looks, latest


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
