"""The smallest perturbation in L2 that fools (Carlini & Wagner 2017, section V-B), of a smoothed classifier.

Every gradient is averaged over the target's draws of noise, as the paper attacks (section 6.2). Against an undefended
network seen through Gaussian noise this is also Li et al.'s attack (2019, "On norm-agnostic robustness of adversarial
training").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from stn_core.attacks.pgd import Norm, lengths, project
from stn_core.attacks.target import Target, margin_loss, outvoted

#: By this factor images are shrunk towards grey before they are turned into arguments of tanh. Those of 0 and of 1 are
#: infinite; and nearer to them tanh is so flat that hundreds of steps hardly move a black pixel.
_SHRINK = 0.999


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini & Wagner's L2 attack, untargeted, with gradient and success averaged over noise.

    It minimises |delta|^2 + c E[max(margin, -confidence)] over perturbations delta that leave pixels in [0, 1], where
    the margin is by how much the label's logit exceeds all others. The constant c is searched for each image: halfway
    between the largest that never fooled and the smallest that did, or ten times as large while none did.

    An image that fools all draws before anything is changed stays as it is.

    The same search serves all sizes: only the direction it finds counts. At its own length the image lies on the
    boundary between two answers, where votes cannot decide; so each perturbed image goes as far along the direction as
    its size allows.

    Attributes:
        steps: of Adam, for each constant; as many times ``Target.draws`` passes, forward and backward.
        searches: constants tried.
        learning_rate: of Adam, in the units of tanh's argument, whose slope at a grey pixel is 1/2 of [0, 1].
        initial_constant: the first c, in squared [0, 1] pixel units for a unit of logits.
        confidence: by how much another logit should exceed the label's, in units of logits: also of a draw that counts
            as fooled.
    """

    steps: int
    searches: int = 6
    learning_rate: float = 0.1
    initial_constant: float = 1.0
    confidence: float = 0.0

    norm: ClassVar[Norm] = "l2"

    def perturb(self, target: Target, clean: torch.Tensor, sizes: Sequence[float]) -> torch.Tensor:
        found = self.smallest(target, clean).offsets
        directions = found / lengths(found).clamp_min(torch.finfo(found.dtype).tiny)
        return torch.stack([project("l2", size, clean + size * directions, clean) for size in sizes])

    def smallest(self, target: Target, clean: torch.Tensor) -> Smallest:
        """The smallest perturbation seen at which the label was outvoted; where it never was, the last one.

        It is looked for in the second half of each search's steps. Of many votes on much the same image the luckiest
        count: with few draws, what is found may be too small to fool most of the time.

        Args:
            target, clean: as of ``perturb``.
        """
        best = Smallest.none(clean)
        constants = torch.full_like(best.sizes, self.initial_constant)
        low, high = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
        for _ in range(self.searches):
            found = self._descend(target, clean, constants)
            best = best.or_smaller(found)
            low = torch.where(found.fooled, low, constants)
            high = torch.where(found.fooled, constants, high)
            constants = torch.where(high.isfinite(), (low + high) / 2, 10 * constants)
        return best

    def _descend(self, target: Target, clean: torch.Tensor, constants: torch.Tensor) -> Smallest:
        """The search with one constant for each image, (images,)."""
        start = torch.atanh(_SHRINK * (2 * clean - 1))
        arguments = start.clone()
        adam = torch.optim.Adam([arguments], lr=self.learning_rate)
        best = Smallest.none(clean)
        for step in range(self.steps):
            # Relative to the start, so that the search begins at the clean image in spite of having shrunk it.
            offsets = (arguments.tanh() - start.tanh()) / 2
            images = (clean + offsets).clamp(0, 1)
            gradient, logits = target.gradient_and_logits(images, self._objective)
            # On their way, images cross the boundary in crude directions, and by luck before they get there: such a one
            # would be the smallest to the end. So only the second half counts, when the direction is found.
            if step >= self.steps // 2:
                best = best.or_smaller(self._tried(images - clean, logits, target.labels))
            slope = (1 - arguments.tanh() ** 2) / 2
            arguments.grad = slope * (2 * offsets - constants.view(-1, 1, 1, 1) * gradient)
            adam.step()
        return best

    def _objective(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each draw by itself: those that are fooled already have no say in where to go."""
        return margin_loss(logits, labels).clamp_max(self.confidence)

    def _tried(self, offsets: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> Smallest:
        """Perturbations and whether they fooled: their draws' logits, (images, draws, classes)."""
        own = nn.functional.one_hot(labels, logits.shape[2])
        fooled = outvoted(logits + self.confidence * own[:, None], labels)
        return Smallest(offsets, lengths(offsets).flatten().masked_fill(~fooled, torch.inf))


@dataclass(frozen=True)
class Smallest:
    """The best perturbation of each image so far.

    Attributes:
        offsets: the perturbations, in [0, 1] pixel units, (images, channels, height, width).
        sizes: L2 norms of those that fooled, in [0, 1] pixel units; infinite of the others, (images,).
    """

    offsets: torch.Tensor
    sizes: torch.Tensor

    @staticmethod
    def none(clean: torch.Tensor) -> Smallest:
        """Before the first."""
        return Smallest(torch.zeros_like(clean), clean.new_full((len(clean),), torch.inf))

    @property
    def fooled(self) -> torch.Tensor:
        """Which did, bool (images,)."""
        return self.sizes.isfinite()

    def or_smaller(self, later: Smallest) -> Smallest:
        """The smaller one of each image; the later one while neither fooled."""
        better = (later.sizes < self.sizes) | ~self.fooled
        return Smallest(
            torch.where(better.view(-1, 1, 1, 1), later.offsets, self.offsets),
            torch.where(better, later.sizes, self.sizes),
        )
