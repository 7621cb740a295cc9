"""The part of a spec that says how the certified classifier is attacked."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, PositiveInt, Tag, model_validator

from stn_core import attacks
from stn_core import noise as noises
from stn_core.intervals import MOST_TRIALS
from workers.settings import Model, Noise, Section, stepped

_Size = Annotated[FiniteFloat, Field(gt=0, le=1e4)]

_Share = Annotated[FiniteFloat, Field(gt=0, le=1)]

#: Noisy copies that a gradient is averaged over, where the spec names no number.
GRADIENT_DRAWS = 16


class _Attack(Section):
    """What all attacks have in common."""

    sizes: Annotated[tuple[_Size, ...], BeforeValidator(stepped), Field(min_length=1)] = Field(
        description="of perturbations in the attack's norm, in [0, 1] pixel units: a list, or {start, stop, step}"
    )
    draws: PositiveInt | None = Field(
        None, description="noisy copies that each gradient or score is averaged over, n0; default: 16, without noise 1"
    )
    noise: Noise | None = Field(
        None, description="that the attacker averages over; default: the classifier's, and none of a source's"
    )
    source: Model | None = Field(
        None, description="network to make the images on, whose answers are not asked (black-box transfer)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> _Attack:
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes must increase, each once, got {list(self.sizes)}")
        if getattr(self, "norm", "") == "linf" and self.sizes[-1] > 1:
            raise ValueError(
                f"sizes in L-infinity are of pixels in [0, 1], such as 8/255 = 0.0314, got {self.sizes[-1]:g}"
            )
        if self.noise is not None and self.noise.kind == "splitting":
            raise ValueError("noise: gradients pass through noise that is added, and splitting noise is not")
        return self

    def averages_over(self, classifiers: noises.Noise) -> noises.Noise:
        """The noise that the attacker draws, where the attacked classifier has this one."""
        if self.noise is not None:
            chosen = self.noise.build()
        else:
            chosen = noises.NoNoise() if self.source is not None else classifiers
        # Exact draws exist on 8-bit pixels alone; an attacker is free to use any that serve.
        return noises.Gaussian(chosen.scale) if isinstance(chosen, noises.DiscreteGaussian) else chosen

    def gradient_draws(self, averaged: noises.Noise) -> int:
        """How many draws of the noise that is averaged over each gradient or score takes."""
        return self.draws or (1 if isinstance(averaged, noises.NoNoise) else GRADIENT_DRAWS)


class ProjectedGradient(_Attack):
    """Projected gradient ascent (the paper's in L-infinity), gradients averaged over noise, each size by itself."""

    kind: Literal["pgd"]
    norm: Literal["l2", "linf"] = Field(description="that measures its sizes")
    steps: PositiveInt = Field(40, description="of gradient ascent, from each start")
    step_size: _Share | None = Field(None, description="of each, as a share of the size; default: 2.5 / steps")
    restarts: PositiveInt = Field(1, description="random starts, of which the one with the least margin is taken")
    loss: attacks.Loss = Field("cross_entropy", description="margin: has a slope where a network is too sure")

    def build(self) -> attacks.Attack:
        step_size = self.step_size if self.step_size is not None else min(1.0, 2.5 / self.steps)
        return attacks.ProjectedGradient(self.norm, self.steps, step_size, self.restarts, self.loss)


class CarliniWagner(_Attack):
    """The paper's L2 attack: the smallest perturbation that changes the answer, then as far that way as sizes allow."""

    kind: Literal["cw"]
    norm: Literal["l2"] = Field("l2", description="that measures its sizes")
    steps: int = Field(100, ge=2, description="of each search")
    searches: PositiveInt = Field(6, description="for the weight of the answer against the distance")
    learning_rate: Annotated[FiniteFloat, Field(gt=0)] = Field(
        0.1, description="of Adam; with too small a one the search ends before it reaches another answer"
    )
    initial_constant: Annotated[FiniteFloat, Field(gt=0)] = Field(
        1.0, description="first weight of the answer, in squared pixel units for a unit of logits"
    )
    confidence: Annotated[FiniteFloat, Field(ge=0)] = Field(0.0, description="by how much logits are to differ")

    def build(self) -> attacks.Attack:
        return attacks.CarliniWagner(
            steps=self.steps,
            searches=self.searches,
            learning_rate=self.learning_rate,
            initial_constant=self.initial_constant,
            confidence=self.confidence,
        )


class Square(_Attack):
    """The gradient-free Square Attack, by the mean margin over noise alone."""

    kind: Literal["square"]
    norm: Literal["l2", "linf"] = Field(description="that measures its sizes")
    queries: PositiveInt = Field(500, description="squares of the image that are changed in turn, for each size")
    share: _Share = Field(0.8, description="of the pixels, that the first squares change")

    def build(self) -> attacks.Attack:
        return attacks.Square(self.norm, queries=self.queries, share=self.share)


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Attack = Annotated[
    Annotated[ProjectedGradient, Tag("pgd")] | Annotated[CarliniWagner, Tag("cw")] | Annotated[Square, Tag("square")],
    Discriminator(_kind),
]

#: What an attack is called: part of the names of its objects.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Attacks(Section):
    """How `stn attack` attacks the classifier, and asks it for its answers."""

    draws: PositiveInt = Field(1000, le=MOST_TRIALS, description="votes on each attacked image, n")
    alpha: Annotated[FiniteFloat, Field(gt=0, lt=1)] = Field(
        0.001, description="chance of an answer that is not the most likely class; unless sure enough it abstains"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of starts, of the attacker's noise, and of the votes'")
    keep: int = Field(4, ge=0, description="first images of the run, whose attacked versions are kept")
    attacks: dict[Name, Attack] = Field(min_length=1, description="by name; one may be added at any time")

    @model_validator(mode="after")
    def _can_answer(self) -> Attacks:
        if 2 * 0.5**self.draws > self.alpha:
            least = math.ceil(1 - math.log2(self.alpha))
            raise ValueError(
                f"draws: not even {self.draws} votes for one class decide at alpha {self.alpha:g}: "
                f"set draws to {least} or more"
            )
        return self
