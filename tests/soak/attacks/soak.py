"""Certify images, then try to break each inside its own radius.

An image's certificates are all true but for a chance of alpha: each of them gets an equal part of it. Every attack
finds a direction for each image; along it go as many tries as there are ``FRACTIONS`` of the radius. Each try is voted
on, and where the certified class does not clearly win, voted on again by draws that nobody saw before. A certificate is
contradicted where those speak against it, surely enough for all tries together: see ``p_values_of``.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from stn_core.attacks import Attack, CarliniWagner, ProjectedGradient, Square, Target
from stn_core.attacks.pgd import lengths
from stn_core.certify import Certified, certify
from stn_core.noise import Phase
from stn_core.prediction import predict
from stn_core.votes import count_votes
from tests.soak.attacks.subjects import Subject, shares

#: Of the radius, where along each direction the tries lie.
FRACTIONS = (0.25, 0.5, 0.75, 0.9, 0.99)

#: Only the directions they find count, in either norm.
ATTACKS: dict[str, Attack] = {
    "pgd l2 cross-entropy": ProjectedGradient("l2", steps=15, step_size=0.2),
    "pgd l2 margin": ProjectedGradient("l2", steps=15, step_size=0.2, loss="margin"),
    "pgd linf margin": ProjectedGradient("linf", steps=15, step_size=0.2, loss="margin"),
    "carlini wagner": CarliniWagner(steps=16, searches=3, learning_rate=0.05),
    "square l2": Square("l2", queries=40),
    "square linf": Square("linf", queries=40),
}

#: Those whose radii are attacked. Of the first the control is made: it is tight, whereas the other's radii are so much
#: smaller that they may be enlarged a little and still be true.
CERTIFICATES = ("neyman_pearson_one_class", "renyi")

#: Images that are attacked together; rows of a forward pass.
_GROUP, _ROWS = 20, 128


@dataclass(frozen=True)
class Settings:
    """A soak.

    Attributes:
        tries: perturbed images inside the radii, at least.
        seed: of all noise and attacks.
        out: folder for what was found; None keeps nothing.
        alpha: chance that one of an image's certificates may be false.
        beta: chance that a contradiction is seen where there is none, and again that more images than allowed are
            falsely certified.
        first_draws: votes on each try.
        clear: votes out of those that make a clear winner.
        gradient_draws: noisy copies that the attacks average over.
        control: tries at too large radii of each classifier, at least: some ten turns, as not every attack succeeds.
        tell: told of the progress, in lines.
    """

    tries: int
    seed: int = 0
    out: Path | None = None
    alpha: float = 0.001
    beta: float = 0.01
    first_draws: int = 100
    clear: int = 60
    gradient_draws: int = 16
    control: int = 1000
    tell: Callable[[str], None] = field(default=lambda line: print(line, flush=True))


@dataclass(frozen=True)
class Success:
    """A try whose votes a certificate rules out, unless they are luck, and all it takes to see it again.

    Attributes:
        subject, image, certificate, attack, seed: who, by what.
        radius: that was certified, in [0, 1] pixel units.
        distance: of the perturbed image from the clean one, in L2.
        certified: the class.
        votes: of the fresh draws, by class.
        p_value: the chance of such votes if the certificate is true.
    """

    subject: str
    image: int
    certificate: str
    attack: str
    seed: int
    radius: float
    distance: float
    certified: int
    votes: list[int]
    p_value: float


@dataclass(frozen=True)
class Turn:
    """One attack on some images.

    Attributes:
        attack, certificate: their names.
        images: numbers of those that are attacked together, (images,).
        seed: of the attack and of the votes on what it finds; no two turns of a soak share one.
    """

    attack: str
    certificate: str
    images: NDArray[np.int64]
    seed: int


@dataclass
class Score:
    """What came of the tries.

    Attributes:
        tries: perturbed images inside the radii, all of them voted on.
        doubtful: that were voted on again.
        least: of each certificate, the certified class's smallest share of second votes so far.
        reached: sum of distances from the clean images, as shares of what was asked for.
        succeeded: tries whose second votes speak against the certificate, by luck or truly.
    """

    tries: int = 0
    doubtful: int = 0
    least: dict[str, float] = field(default_factory=dict)
    reached: float = 0.0
    succeeded: list[Success] = field(default_factory=list)

    @property
    def least_share(self) -> float:
        """Of all certificates; 1 where nothing was voted on again."""
        return min(self.least.values(), default=1.0)

    def contradictions(self, beta: float) -> list[Success]:
        """What is no luck, but for a chance of beta in all tries together."""
        return [each for each in self.succeeded if each.p_value * self.tries <= beta]

    def contradicted(self, beta: float) -> int:
        """Images with a contradicted certificate: each counts once."""
        return len({(each.subject, each.image) for each in self.contradictions(beta)})


def soak(subjects: Sequence[Subject], settings: Settings) -> int:
    """Attack, tell what came of it, and keep it; 0 if all is as it must be, 4 if a certificate too many is false, 5 if
    the control does not see certificates that are."""
    began = time.monotonic()
    asked = sum(len(subject.images) for subject in subjects)
    most = allowed(asked, settings.alpha, settings.beta)
    held = [certificates_of(subject, settings) for subject in subjects]
    for subject, certified in zip(subjects, held, strict=True):
        settings.tell(_certified_line(subject, certified))
    each = shares(subjects, settings.tries)
    score = Score()
    for subject, certified, tries in zip(subjects, held, each, strict=True):
        attack(subject, certified, tries, 1.0, settings, score)
    blind = [
        subject.name
        for subject, certified in zip(subjects, held, strict=True)
        if not _control_sees(subject, certified, settings)
    ]
    found = score.contradictions(settings.beta)
    contradicted = score.contradicted(settings.beta)
    figures = {
        "result": "FAILED" if contradicted > most else f"FAILED: no control sees {blind}" if blind else "passed",
        "tries": score.tries,
        "images": asked,
        "images certified": sum(int(_of_any(certified).sum()) for certified in held),
        "certificates": sum(int((~each.abstain).sum()) for certified in held for each in certified.values()),
        "second votes": score.doubtful,
        **{f"least, {name}": share for name, share in score.least.items()},
        "reached": score.reached / max(1, score.tries),
        "contradictions": contradicted,
        "allowed": most,
        "seconds": time.monotonic() - began,
    }
    for name, value in figures.items():
        settings.tell(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value}")
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        kept = {"seed": settings.seed, **figures, "found": [asdict(each) for each in found]}
        (settings.out / "attacks.json").write_text(json.dumps(kept, indent=1) + "\n")
    return 4 if contradicted > most else 5 if blind else 0


def _control_sees(subject: Subject, held: dict[str, Certified], settings: Settings) -> bool:
    """Whether too large radii are found out."""
    control = Score()
    tight = {name: held[name] for name in CERTIFICATES[:1]}
    attack(subject, tight, settings.control, subject.too_far, settings, control)
    found, contradicted = control.contradictions(settings.beta), control.contradicted(settings.beta)
    attacks = Counter(each.attack for each in found)
    most = allowed(len(subject.images), settings.alpha, settings.beta)
    settings.tell(
        f"control {subject.name}: radii times {subject.too_far:g}, {control.tries} tries, "
        f"{len(found)} succeed, {contradicted} of {len(subject.images)} images contradicted, allowed {most}, "
        f"least share {control.least_share:.3f}; by attack: {', '.join(f'{name} {attacks[name]}' for name in ATTACKS)}"
    )
    return contradicted > most


def allowed(images: int, alpha: float, beta: float) -> int:
    """How many images may turn out to be falsely certified: more do with a chance of at most beta.

    Of all images that were to be certified, not of those that were: alpha bounds the chance that an image is certified
    and falsely so. Of those on the verge, few are certified, and of these many may be false.
    """
    return int(stats.binom.isf(beta, images, alpha))


def certificates_of(subject: Subject, settings: Settings) -> dict[str, Certified]:
    """By the certificate's name; each may be false with an equal part of alpha."""

    def votes(phase: Phase, draws: int) -> NDArray[np.int64]:
        return _votes(subject, subject.images, range(len(subject.images)), settings.seed, phase, 0, draws)

    estimation, selection = votes("estimation", subject.draws), votes("selection", settings.first_draws)
    return {
        name: certify(
            estimation,
            selection,
            subject.labels.numpy(),
            certificate=name,
            protocol=subject.protocol,
            noise=subject.noise,
            alpha=settings.alpha / len(CERTIFICATES),
        )
        for name in CERTIFICATES
    }


def attack(
    subject: Subject, held: dict[str, Certified], tries: int, factor: float, settings: Settings, score: Score
) -> None:
    """Make at least so many tries inside radii times the factor, and add what comes of them to the score.

    Every turn has a seed of its own: attacks begin elsewhere then, and noise is that of no other turn.
    """
    end, began = score.tries + tries, time.monotonic()
    step = max(1000, settings.tries // 50)
    for turn in _turns(held, settings.seed):
        if score.tries >= end:
            return
        before = score.tries
        _take(turn, subject, held[turn.certificate], factor, settings, score)
        if score.tries // step > before // step:
            settings.tell(
                f"{subject.name}, radii times {factor:g}: {score.tries} tries, {score.doubtful} voted on twice, least "
                f"share {score.least_share:.3f}, {score.contradicted(settings.beta)} images contradicted, "
                f"{time.monotonic() - began:.0f} s"
            )


def _turns(held: dict[str, Certified], seed: int) -> Iterator[Turn]:
    """Attacks, certificates and groups of images: all of them in random order, again and again. Images of a group have
    much the same radius, so that one size of attack serves them."""
    random, each = np.random.default_rng(seed), []
    for certificate, certified in held.items():
        usable = np.flatnonzero(certified.radius > 0)
        ordered = usable[np.argsort(certified.radius[usable], kind="stable")]
        groups = np.array_split(ordered, math.ceil(len(ordered) / _GROUP)) if len(ordered) else []
        each += [(name, certificate, group) for name in ATTACKS for group in groups]
    if not each:
        raise ValueError("no image is certified: there is nothing to attack")
    for again in itertools.count():
        for place, number in enumerate(random.permutation(len(each))):
            name, certificate, group = each[number]
            yield Turn(name, certificate, group, seed + 1 + again * len(each) + place)


def _take(turn: Turn, subject: Subject, held: Certified, factor: float, settings: Settings, score: Score) -> None:
    """Attack, vote on the tries, and add what comes of them to the score."""
    radii, classes = factor * held.radius[turn.images], held.prediction[turn.images]
    clean = subject.images[turn.images]
    offsets = _directions(turn, subject, clean, classes, float(radii.mean()), settings.gradient_draws)
    images = torch.cat([stretched(clean, offsets, fraction * radii) for fraction in FRACTIONS])
    distances = distances_of(images, clean.repeat(len(FRACTIONS), 1, 1, 1))
    sizes = np.outer(FRACTIONS, radii).ravel()
    numbers, classes = (np.tile(of_each, len(FRACTIONS)) for of_each in (turn.images, classes))
    limits = np.tile(radii, len(FRACTIONS))
    if (distances >= limits).any():
        raise AssertionError(f"{turn.attack} leaves the radius, by {(distances - limits).max()}")

    def votes(which: NDArray[np.int64], first: int, draws: int) -> NDArray[np.int64]:
        return _votes(subject, images[which], numbers[which], turn.seed, "prediction", first, draws)

    tried = np.flatnonzero(distances > 0)  # a direction of no length is no try
    own = np.take_along_axis(votes(tried, 0, settings.first_draws), classes[tried, None], axis=1)[:, 0]
    doubtful = tried[own < settings.clear]
    # By draws that follow those that chose what is doubtful: nobody saw them.
    second = votes(doubtful, settings.first_draws, subject.second_draws)
    p_values = p_values_of(turn.certificate, second, classes[doubtful])
    score.tries += len(tried)
    score.reached += float((distances[tried] / sizes[tried]).sum())
    score.doubtful += len(doubtful)
    for place, counts, p_value in zip(doubtful, second, p_values, strict=True):
        share = counts[classes[place]] / subject.second_draws
        score.least[turn.certificate] = min(score.least.get(turn.certificate, 1.0), share)
        if p_value <= settings.beta:
            score.succeeded.append(
                Success(
                    subject=subject.name,
                    image=int(numbers[place]),
                    certificate=turn.certificate,
                    attack=turn.attack,
                    seed=turn.seed,
                    radius=float(limits[place]),
                    distance=float(distances[place]),
                    certified=int(classes[place]),
                    votes=counts.tolist(),
                    p_value=float(p_value),
                )
            )


def p_values_of(certificate: str, votes: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The chance of votes that speak as much against a certificate, if it is true.

    All certificates say that the class stays the most likely one; one-class certificates that it keeps a majority, too.

    Args:
        certificate: its name.
        votes: int64 (images, classes), of draws that nobody saw before.
        classes: certified ones, int64 (images,).
    """
    predicted = predict(votes)
    beaten = np.where(predicted.winner == classes, 1.0, predicted.p_value)
    if not certificate.endswith("one_class"):
        return beaten
    own = np.take_along_axis(votes, classes[:, None], axis=1)[:, 0]
    minority = stats.binom.cdf(own, votes.sum(axis=1), 0.5)
    return np.minimum(1.0, 2 * np.minimum(beaten, minority))  # the less likely of two: Bonferroni


def _directions(
    turn: Turn, subject: Subject, clean: torch.Tensor, classes: NDArray[np.int64], size: float, draws: int
) -> torch.Tensor:
    """What the attack adds to each image, about as long in L2 as the size; (images, channels, height, width)."""
    method = ATTACKS[turn.attack]
    if method.norm == "linf":
        size /= math.sqrt(clean[0].numel())
    target = Target(
        subject.model, subject.noise, torch.from_numpy(classes), turn.images.tolist(), turn.seed, draws, _ROWS
    )
    return method.perturb(target, clean, [size])[0] - clean


def stretched(clean: torch.Tensor, offsets: torch.Tensor, sizes: NDArray[np.float64]) -> torch.Tensor:
    """Images in the offsets' directions, as far in L2 as their sizes allow, in [0, 1].

    What is clipped at 0 and 1 makes them shorter, so that all other pixels may go farther.

    Args:
        clean, offsets: (images, channels, height, width).
        sizes: of the perturbations, (images,).
    """
    reach = torch.from_numpy(sizes).float().view(-1, 1, 1, 1)
    images = clean + offsets
    for _ in range(10):
        offsets = images - clean
        offsets = offsets * (reach / lengths(offsets).clamp_min(torch.finfo(torch.float32).tiny))
        images = (clean + offsets).clamp(0, 1)
    return images


def distances_of(images: torch.Tensor, clean: torch.Tensor) -> NDArray[np.float64]:
    """In L2, of each image."""
    return np.asarray(torch.linalg.vector_norm((images.double() - clean.double()).flatten(1), dim=1).numpy())


def _votes(
    subject: Subject,
    images: torch.Tensor,
    keys: Sequence[int] | NDArray[np.int64],
    seed: int,
    phase: Phase,
    first: int,
    draws: int,
) -> NDArray[np.int64]:
    return count_votes(
        subject.model,
        images,
        noise=subject.noise,
        draws=draws,
        num_classes=subject.num_classes,
        seed=seed,
        keys=keys,
        first_draw=first,
        phase=phase,
        batch_size=_ROWS,
    ).votes


def _of_any(certified: dict[str, Certified]) -> NDArray[np.bool_]:
    """Which images have a certificate."""
    return np.any([~each.abstain for each in certified.values()], axis=0)


def _certified_line(subject: Subject, certified: dict[str, Certified]) -> str:
    each = ", ".join(
        f"{name} {int((~one.abstain).sum())}, mean radius {one.radius[~one.abstain].mean():.3f}"
        for name, one in certified.items()
    )
    right = np.mean(next(iter(certified.values())).prediction == subject.labels.numpy())
    return f"{subject.name}: {len(subject.images)} images, certified and right {right:.3f}; {each}"
