"""One loss per training method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, nll_loss, softmax

from stn_core import dual
from stn_core.attacks import PGD
from stn_core.models import Normalized


@dataclass(frozen=True)
class Batch:
    """One worker's share of the images of a step. What is random is drawn only if a method asks for it.

    Attributes:
        clean: float32 images in [0, 1], (rows, channels, height, width).
        labels: int64 (rows,).
        noisy: draws fresh noise for each image, at every call anew, and returns the noisy images.
        draw: calls a sampler with a generator of this step's own and the shape of all workers' images, and returns
            this worker's rows.
    """

    clean: torch.Tensor
    labels: torch.Tensor
    noisy: Callable[[], torch.Tensor]
    draw: Callable[[Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]], torch.Tensor]


class Outcome(NamedTuple):
    """What a loss came to.

    Attributes:
        loss: mean over the batch, a scalar.
        logits: (rows, classes) of the images that the method fits to the labels.
    """

    loss: torch.Tensor
    logits: torch.Tensor


class Loss(Protocol):
    """A training method's loss: of a model, in training mode, which maps images to logits, on a batch."""

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome: ...


@dataclass(frozen=True)
class Clean:
    """Ordinary training: cross-entropy on the clean image."""

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        return _fit(model, batch.clean, batch.labels)


@dataclass(frozen=True)
class Gaussian:
    """Noise augmentation: cross-entropy on the noisy image (the paper's "without stability training")."""

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        return _fit(model, batch.noisy(), batch.labels)


@dataclass(frozen=True)
class Stability:
    """Stability training: cross-entropy on the clean image, plus gamma times the cross-entropy between the softmax of
    the clean and of the noisy image (the paper, section 5.1)."""

    gamma: float

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        clean, noisy = _logits_of_both(model, batch.clean, batch.noisy())
        stability = cross_entropy(noisy, softmax(clean, dim=1))
        return Outcome(cross_entropy(clean, batch.labels) + self.gamma * stability, clean)


@dataclass(frozen=True)
class Madry:
    """Adversarial training: cross-entropy on an image that maximises it nearby (Madry et al. 2018, eq. 2.1)."""

    attack: PGD

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        return _fit(model, _adversarial(model, batch, self.attack), batch.labels)


@dataclass(frozen=True)
class LogitPairing:
    """Adversarial logit pairing: cross-entropy, half on the clean and half on an adversarial image, plus gamma times
    the mean squared difference of their logits (Kannan et al. 2018)."""

    gamma: float
    attack: PGD

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        adversarial = _adversarial(model, batch, self.attack)
        clean, attacked = _logits_of_both(model, batch.clean, adversarial)
        fits = (cross_entropy(clean, batch.labels) + cross_entropy(attacked, batch.labels)) / 2
        return Outcome(fits + self.gamma * mse_loss(attacked, clean), attacked)


@dataclass(frozen=True)
class Trades:
    """TRADES: cross-entropy on the clean image, plus gamma times the divergence of the answer to an image nearby that
    maximises it (Zhang et al. 2019, eq. 5 and algorithm 1; gamma is their 1/lambda)."""

    gamma: float
    attack: PGD

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        def near(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
            # At the clean image itself the divergence has no slope.
            return np.float32(1e-3) * random.standard_normal(shape, dtype=np.float32)

        with _answering(model):
            with torch.no_grad():
                answer = log_softmax(model(batch.clean).float(), dim=1)
            adversarial = self.attack.perturb(
                lambda images: _divergence(answer, model(images).float()), batch.clean, batch.draw(near)
            )
        clean, attacked = _logits_of_both(model, batch.clean, adversarial)
        fits = cross_entropy(clean, batch.labels)
        return Outcome(fits + self.gamma * _divergence(log_softmax(clean, dim=1), attacked) / len(clean), clean)


@dataclass(frozen=True)
class Consistency:
    """Noise augmentation that has the answers to several noisy copies of an image agree (Jeong & Shin 2020): the mean
    cross-entropy, plus gamma times the mean divergence of the mean answer to each copy's, plus half the mean answer's
    entropy."""

    gamma: float
    draws: int

    #: Jeong & Shin's eta.
    ENTROPY = 0.5

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        logits = model(torch.cat([batch.noisy() for _ in range(self.draws)])).float()
        answers = log_softmax(logits, dim=1).view(self.draws, *batch.labels.shape, -1)
        mean = answers.exp().mean(dim=0)
        # Of tiny probabilities the logarithm is large, and its slope larger.
        log_mean = mean.clamp_min(1e-20).log()
        apart = (mean * (log_mean - answers)).sum(dim=2).mean()
        entropy = -(mean * log_mean).sum(dim=1).mean()
        fits = cross_entropy(logits, batch.labels.repeat(self.draws))
        return Outcome(fits + self.gamma * apart + self.ENTROPY * entropy, log_mean)


@dataclass(frozen=True)
class SmoothAdversarial:
    """Noise augmentation around an image that is hard for the smoothed network: of the images nearby it maximises
    the cross-entropy of the answer's mean over noisy copies, and the network learns of the same copies of it
    (SmoothAdv; Salman et al. 2019)."""

    attack: PGD
    draws: int

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        noise = torch.cat([batch.noisy() - batch.clean for _ in range(self.draws)])
        copies = (self.draws, *(1 for _ in batch.clean.shape[1:]))

        def objective(images: torch.Tensor) -> torch.Tensor:
            answers = softmax(model(images.repeat(copies) + noise).float(), dim=1)
            mean = answers.view(self.draws, len(images), -1).mean(dim=0)
            return nll_loss(mean.clamp_min(1e-20).log(), batch.labels, reduction="sum")

        with _answering(model):
            adversarial = self.attack.perturb(objective, batch.clean, torch.zeros_like(batch.clean))
        logits = model(adversarial.repeat(copies) + noise).float()
        fits = cross_entropy(logits, batch.labels.repeat(self.draws))
        return Outcome(fits, logits.view(self.draws, len(batch.labels), -1).mean(dim=0))


@dataclass(frozen=True)
class Dual:
    """The linear program's training: cross-entropy on the worst logits that its dual allows within an L2 radius (Wong &
    Kolter 2018, theorem 2). The logits are these, and so those are right that are certified.

    Attributes:
        radius: L2, in [0, 1] pixel units.
    """

    radius: float

    def __call__(self, model: nn.Module, batch: Batch) -> Outcome:
        # A wrapper that averages gradients over workers would not see these: they come from no pass through it.
        assert isinstance(model, Normalized)
        with torch.autocast(batch.clean.device.type, enabled=False):
            worst = -dual.margins(model.network, batch.clean, batch.labels, self.radius)
        return Outcome(cross_entropy(worst, batch.labels), worst)


def _fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Outcome:
    logits = model(images).float()
    return Outcome(cross_entropy(logits, labels), logits)


def _logits_of_both(model: nn.Module, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In one pass, so that what a network learns of its batch it learns of both."""
    first, second = model(torch.cat([one, other])).float().chunk(2)
    return first, second


def _adversarial(model: nn.Module, batch: Batch, attack: PGD) -> torch.Tensor:
    def objective(images: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(images).float(), batch.labels, reduction="sum")

    with _answering(model):
        return attack.perturb(objective, batch.clean, batch.draw(attack.random_offsets))


def _divergence(answer: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler, from log-probabilities to logits, summed over the rows."""
    return kl_div(log_softmax(logits, dim=1), answer, reduction="sum", log_target=True)


@contextlib.contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """The model as it answers users, for the time of the block: an attack is on that, and no dropout hides it."""
    model.eval()
    try:
        yield
    finally:
        model.train()
