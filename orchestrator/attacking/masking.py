"""Whether gradients are masked (Athalye et al. 2018; the paper, 6.2): does anything beat the white-box attack?

A randomised classifier may look robust because its attacker's gradients are bad. Then more draws, more steps, images
made on another network or a search without gradients break images that the white-box attack does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from orchestrator.attacking.robustness import Attacked
from workers.attack_settings import GRADIENT_DRAWS, Attack, ProjectedGradient, Square

#: Chance that a masking check finds something where nothing beats the white-box attack, all comparisons together.
LEVEL = 0.01


#: Settings of a white-box attack that say how much it tries.
_EFFORT = {"steps", "step_size", "draws", "restarts", "searches", "sizes"}


@dataclass(frozen=True)
class Comparison:
    """Another attack beside the white-box one, at one size.

    Attributes:
        norm: of both.
        white_box: the attack that is to be as strong.
        other: the other one.
        relation: how it differs.
        size: in the norm, [0, 1] pixel units.
        images: that both were made on.
        robust, other_robust: of these, against each.
        only_other: not robust against the other alone.
        only_white_box: not robust against the white-box attack alone.
        p_value: of as many or more of the first where both are as strong (McNemar's exact test, one-sided).
        beats: whether the other one is stronger, at a level that all comparisons of the check share.
    """

    norm: str
    white_box: str
    other: str
    relation: str
    size: float
    images: int
    robust: int
    other_robust: int
    only_other: int
    only_white_box: int
    p_value: float
    beats: bool


def masking_check(attacked: Attacked) -> list[Comparison]:
    """What is to be no stronger than white-box attacks, beside them, at all sizes in common.

    Beside the weakest of white-box attacks that differ in steps, draws and starts alone: the others. Beside the one
    that leaves the fewest images robust at a size: transferred images, and searches without gradients.
    """
    pairs = []
    for norm in ("l2", "linf"):
        own = {name: one.attack for name, one in attacked.descriptions.items() if one.attack.norm == norm}
        white = {name: attack for name, attack in own.items() if attack.source is None and attack.kind != "square"}
        alike: dict[str, list[str]] = {}
        for name in sorted(white, key=lambda name: (_effort(white[name]), name)):
            alike.setdefault(white[name].model_dump_json(exclude=_EFFORT), []).append(name)
        for weakest, *others in alike.values():
            pairs += [
                (weakest, other, size)
                for other in others
                for size in white[weakest].sizes
                if size in white[other].sizes
            ]
        for other in own.keys() - white.keys():
            for size in own[other].sizes:
                having = [name for name in white if size in white[name].sizes]
                if having:
                    pairs.append((min(having, key=lambda name: _left(attacked, name, size)), other, size))
    # Attacks that were begun and have no image in common yet show nothing.
    pairs = [pair for pair in sorted(pairs) if len(_both(attacked, *pair[:2])[0])]
    return [_compared(attacked, *pair, level=LEVEL / len(pairs)) for pair in pairs]


def fewest_images(comparisons: int) -> int:
    """Of which one of so many comparisons could find anything: all of them broken by the other attack alone."""
    return math.ceil(math.log2(comparisons / LEVEL))


def _both(attacked: Attacked, one: str, other: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places of the images that two attacks were made on, in each one's standing."""
    index, others = attacked.standings[one].index, attacked.standings[other].index
    _, mine, its = np.intersect1d(index, others, return_indices=True)
    return mine, its


def _effort(attack: Attack) -> int:
    """Draws that a white-box attack takes, up to what attacks of its kind have in common."""
    assert not isinstance(attack, Square)
    times = attack.restarts if isinstance(attack, ProjectedGradient) else attack.searches
    return attack.steps * times * (attack.draws or GRADIENT_DRAWS)


def _left(attacked: Attacked, name: str, size: float) -> float:
    """Fraction of the images that an attack was made on which withstand it."""
    standing = attacked.standings[name]
    return float(standing.robust[:, np.searchsorted(standing.sizes, size)].mean()) if len(standing.index) else 1.0


def _compared(attacked: Attacked, white: str, other: str, size: float, *, level: float) -> Comparison:
    one, two = attacked.standings[white], attacked.standings[other]
    mine, its = _both(attacked, white, other)
    # At sizes that only one of them was made at, it had a chance more.
    sizes = np.intersect1d(one.sizes, two.sizes)
    sizes = sizes[sizes <= size]
    robust = one.correct[mine][:, np.searchsorted(one.sizes, sizes)].all(axis=1)
    other_robust = two.correct[its][:, np.searchsorted(two.sizes, sizes)].all(axis=1)
    only_other, only_white = int((robust & ~other_robust).sum()), int((~robust & other_robust).sum())
    p_value = float(binom.sf(only_other - 1, only_other + only_white, 0.5))
    white_attack, attack = attacked.descriptions[white].attack, attacked.descriptions[other].attack
    return Comparison(
        norm=attack.norm,
        white_box=white,
        other=other,
        relation=relation(white_attack, attack),
        size=size,
        images=len(mine),
        robust=int(robust.sum()),
        other_robust=int(other_robust.sum()),
        only_other=only_other,
        only_white_box=only_white,
        p_value=p_value,
        beats=p_value <= level,
    )


def relation(white_box: Attack, other: Attack) -> str:
    """How an attack differs from the white-box one, for people."""
    if other.source is not None:
        return f"transfer from {other.source.name}"
    if isinstance(other, Square):
        return "gradient-free"
    changed = [
        f"{name} {old} → {new}"
        for name in type(other).model_fields
        if name not in ("kind", "norm", "sizes", "source", "step_size")
        and (old := getattr(white_box, name)) != (new := getattr(other, name))
    ]
    return ", ".join(changed) or "the same again"
