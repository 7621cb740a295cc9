"""A classifier as its attacker sees it: answers and gradients, averaged over noise of the attacker's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from stn_core.noise import Draws, Noise, attack_generator, check_identity

#: Of logits (rows, classes) and labels (rows,): one value for each row, which the attacker wants large.
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Target:
    """A smoothed classifier under attack (the paper, 6.2: expectation over randomisation).

    The attacker knows network and noise, and draws the noise itself: ``draws`` fresh copies of each image at every
    call, under the phase "attack", so that nothing is known of the draws that classify the attacked image in the end.

    All images are asked about at once, always in passes of the same shape. What becomes of one of them then depends
    neither on the others nor on how many they are, up to what a row's arithmetic depends on its batch.

    Attributes:
        model: maps float32 images (rows, channels, height, width) to logits; in evaluation mode, on the device where it
            is attacked. Its weights should need no gradients.
        noise: what is added to images, in [0, 1] pixel units; any whose ``perturb`` takes images in floating point, and
            adds what does not depend on them.
        labels: of the images, int64 (images,), on the model's device.
        keys: the images' identities.
        seed: the attack's.
        draws: noisy copies of each image at every call; the paper's n0.
        batch_size: most rows of a forward pass, but for one copy of every image.
        passes: rows that went through the network so far.

    Raises:
        ValueError: there are not as many keys as labels, or a number is out of its range.
    """

    model: nn.Module
    noise: Noise
    labels: torch.Tensor
    keys: Sequence[int]
    seed: int
    draws: int
    batch_size: int
    passes: int = field(default=0, init=False)
    #: Noise that was drawn of every image.
    _drawn: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.draws < 1 or self.batch_size < 1:
            raise ValueError(f"draws and batch_size must be at least 1, got {self.draws} and {self.batch_size}")
        if len(self.keys) != len(self.labels):
            raise ValueError(f"{len(self.keys)} keys for {len(self.labels)} labels")
        check_identity(self.seed, self.keys)

    def generators(self) -> list[np.random.Generator]:
        """For each image, where an attack takes its own choices from; the same at every call."""
        return [attack_generator(self.seed, key) for key in self.keys]

    def gradient(self, images: torch.Tensor, objective: Objective) -> torch.Tensor:
        """The mean over fresh draws r of the gradient of the objective at x + r (the paper, 6.2), images' shape.

        Args:
            images: float32 in [0, 1], as many as there are labels.
            objective: what the attacker wants large.
        """
        return self.gradient_and_logits(images, objective)[0]

    def gradient_and_logits(self, images: torch.Tensor, objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
        """``gradient``, and the logits of the same draws, as of ``logits``: no more passes than for one of them."""
        total = torch.zeros_like(images)
        parts = []
        for noisy, owner, copies in self._noisy(images, self._fresh()):
            with torch.enable_grad():
                logits = self.model(noisy.requires_grad_()).float()
                (found,) = torch.autograd.grad(objective(logits, self.labels[owner]).sum(), noisy)
            # A draw whose logits are NaN votes for no class, and says nothing of where to go.
            found = found.nan_to_num(0, 0, 0)
            total += found.reshape(len(images), copies, *images.shape[1:]).sum(dim=1)
            parts.append(logits.detach().reshape(len(images), copies, -1))
        return total / self.draws, torch.cat(parts, dim=1)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Of fresh draws of each image, float32 (images, draws, classes)."""
        return self._logits(images, self._fresh())

    def margins(self, images: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """By how much the label's logit exceeds all others, on average over fresh draws.

        Returns:
            (images,); with other versions of the same images, (1 + others, images), all over the same draws: what
            noise does to one it does to the others too, and their differences vary less.
        """
        first = self._fresh()
        labels = self.labels.repeat_interleave(self.draws)
        each = [-margin_loss(self._logits(some, first).flatten(0, 1), labels) for some in (images, *others)]
        means = torch.stack(each).view(len(each), len(images), self.draws).nanmean(dim=2)
        return means if others else means[0]

    def fooled(self, images: torch.Tensor) -> torch.Tensor:
        """Whether the label is ``outvoted`` by fresh draws, bool (images,)."""
        return outvoted(self.logits(images), self.labels)

    def _logits(self, images: torch.Tensor, first: int) -> torch.Tensor:
        with torch.no_grad():
            parts = [
                self.model(noisy).float().reshape(len(images), copies, -1)
                for noisy, _, copies in self._noisy(images, first)
            ]
        return torch.cat(parts, dim=1)

    def _fresh(self) -> int:
        """The first of as many draws as are asked for at a call, that nobody saw before."""
        self._drawn += self.draws
        return self._drawn - self.draws

    def _noisy(self, images: torch.Tensor, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """Passes over all images: noisy rows, the image that each is of, and how many rows each image has."""
        count = len(images)
        most = max(1, self.batch_size // count)
        for begin in range(0, self.draws, most):
            copies = min(most, self.draws - begin)
            owner = torch.arange(count, device=images.device).repeat_interleave(copies)
            noisy = torch.empty((count * copies, *images.shape[1:]), dtype=torch.float32, device=images.device)
            parts = (Draws(self.seed, key, "attack", first + begin, copies) for key in self.keys)
            self.noise.perturb(noisy, images.detach(), owner, parts)
            self.passes += len(noisy)
            yield noisy, owner, copies


def outvoted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether some other class has as many votes as the label, or more.

    Args:
        logits: of each image's draws, (images, draws, classes); a draw with a NaN among them has no vote.
        labels: int64 (images,).

    Returns:
        bool (images,).
    """
    valid = ~logits.isnan().any(dim=2)
    votes = torch.zeros_like(logits[:, 0]).scatter_add(1, logits.argmax(dim=2), valid.to(logits.dtype))
    own = votes.gather(1, labels[:, None])
    others = votes.scatter(1, labels[:, None], -1)
    return (others >= own).any(dim=1)


def cross_entropy_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The paper's objective: cross-entropy of each row, (rows,)."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def margin_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """By how much the largest other logit exceeds the label's (Carlini & Wagner 2017, f6 without its floor), of each
    row, (rows,)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - own
