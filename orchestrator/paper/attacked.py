"""The paper's empirical comparisons, Figures 3 and 4: their jobs, and what is read off their runs' attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.attacking.robustness import Attacked
from orchestrator.errors import SpecError
from orchestrator.numerals import NORMS
from orchestrator.reporting.drawing import png
from orchestrator.spec import Spec, validate
from orchestrator.sweeping import Point, beside_checkpoint, of_method, points
from workers.attack_settings import Attack, Attacks
from workers.settings import Method, Model

#: What is said of an attack whose images are made on the attacked network itself.
WHITE_BOX = "white-box"

#: What the images of a black-box attack are made on: "the strongest black-box attacks for both" (the paper, 6.2).
SOURCE: Method = "madry"

#: Steps of the adversary that TRADES and Madry et al. train against, where nobody names another number. Madry et al.
#: take 40 of 0.01 on MNIST; these are fewer and larger, 2.5 epsilon / steps each. On CIFAR-10 that is 2/255, theirs.
ADVERSARY_STEPS = 10


@dataclass(frozen=True)
class Known:
    """What the figures take for images of a kind, where nobody names anything else.

    Attributes:
        epsilon: L-infinity bound of the adversary that is trained against, in [0, 1] pixel units (Madry et al. 2018).
        l2, linf: sizes of attacks in each norm, in [0, 1] pixel units.
    """

    epsilon: float
    l2: tuple[float, ...]
    linf: tuple[float, ...]


_MNIST = Known(
    epsilon=0.3,
    l2=tuple(number / 2 for number in range(1, 9)),
    linf=tuple(number / 20 for number in range(1, 9)),
)
_CIFAR_10 = Known(
    epsilon=8 / 255,
    l2=tuple(number / 4 for number in range(1, 7)),
    linf=tuple(number / 255 for number in range(2, 17, 2)),
)

#: By the network's name.
KNOWN: dict[str, Known] = {
    **dict.fromkeys(("mnist", "mnist_small", "mnist_shallow"), _MNIST),
    **dict.fromkeys(("cifar10", "cifar10_shallow", "cifar_resnet20", "cifar_resnet110"), _CIFAR_10),
}


@dataclass(frozen=True)
class Contender:
    """A network of a figure.

    Attributes:
        label: what it is called there.
        point: its job: to train, and to attack where its spec says how.
    """

    label: str
    point: Point


@dataclass(frozen=True)
class Robust:
    """A point of a figure's curve.

    Attributes:
        network: that was attacked.
        attack: its name in the spec.
        source: "white-box", or by which method the network was trained that the images were made on.
        norm: of the attack.
        size: of its perturbations at most, in that norm, [0, 1] pixel units.
        robust_accuracy: images whose label is answered at all sizes up to this one, a fraction of ``images``.
        broken: images on which another class is, at one of them.
        abstained: images on which nothing is, at one of them, and never another class.
        failed, missing: images that could not be attacked, and that were not yet.
        images: all of them.
    """

    network: str
    attack: str
    source: str
    norm: str
    size: float
    robust_accuracy: float
    broken: int
    abstained: int
    failed: int
    missing: int
    images: int

    @property
    def complete(self) -> bool:
        """Of all images it is known whether they withstand the attack."""
        return not (self.failed or self.missing)


def figure3_jobs(spec: Spec, epsilon: float | None = None, steps: int | None = None) -> list[Contender]:
    """The jobs of Figure 3: STN and TRADES under white-box attacks, and under the same made on a network of Madry et
    al., which comes first and is not attacked itself.

    Args:
        spec: what they have in common; its noise is STN's, its attack section, if any, the white-box attacks.
        epsilon: L-infinity bound of the adversary of TRADES and Madry et al., in [0, 1] pixel units; None: by network.
        steps: of that adversary; None: ADVERSARY_STEPS.

    Raises:
        SpecError: the figure is not about that, or nobody says how to attack.
    """
    _check("Figure 3", spec)
    if spec.training is not None and spec.training.attack is not None:
        raise SpecError("training.attack: Figure 3 has its own for two of its networks: use --epsilon instead")
    if epsilon is None:
        epsilon = _known(
            spec, "Figure 3 does not know what to train TRADES and Madry's network against: name it by --epsilon"
        ).epsilon
    adversary = {"norm": "linf", "epsilon": epsilon, "steps": ADVERSARY_STEPS if steps is None else steps}
    own = _attacks("Figure 3", spec)
    source = _plain("Figure 3", spec, SOURCE, None, adversary)
    transfers = _transfers(own, source.spec.model)
    smoothed, undefended = _values(own, own.attacks), _values(own, _without_draws(own.attacks))
    for section in (smoothed, undefended):
        section["attacks"] |= transfers
    return [
        Contender("Madry et al.", source),
        _stn("Figure 3", spec, (_sigma(spec),), smoothed)[0],
        Contender("TRADES", _plain("Figure 3", spec, "trades", undefended, adversary)),
    ]


def figure4_jobs(spec: Spec, sigmas: Sequence[float]) -> list[Contender]:
    """The jobs of Figure 4: STN for several sigma under white-box attacks, and first a network without any noise, which
    is what the paper means by sigma = 0.

    Args:
        spec: what they have in common; its attack section, if any, the attacks.
        sigmas: of the noise; 0 may be among them.

    Raises:
        SpecError: the figure is not about that, or nobody says how to attack.
    """
    _check("Figure 4", spec)
    noisy = [sigma for sigma in sigmas if sigma != 0]
    if not noisy:
        raise SpecError("Figure 4 compares amounts of noise: name a sigma above 0")
    own = _attacks("Figure 4", spec)
    clean = _plain("Figure 4", spec, "clean", _values(own, _without_draws(own.attacks)), None)
    return [Contender("no noise, sigma = 0", clean), *_stn("Figure 4", spec, noisy, _values(own, own.attacks))]


def _check(figure: str, spec: Spec) -> None:
    if spec.noise.kind != "gaussian":
        raise SpecError(f"{figure} is about gaussian noise, not {spec.noise.kind}")
    if spec.training is None:
        raise SpecError(f"training is missing: {figure} trains its networks, see examples/mnist.yaml")
    if spec.model.checkpoint is None:
        raise SpecError(f"model.checkpoint is missing: {figure} writes its networks' weights beside it")


def _known(spec: Spec, otherwise: str) -> Known:
    try:
        return KNOWN[spec.model.name]
    except KeyError:
        raise SpecError(f"of model.name {spec.model.name!r} {otherwise}") from None


def _attacks(figure: str, spec: Spec) -> Attacks:
    """The white-box attacks: the spec's, or the paper's by kind of image."""
    if spec.attack is None:
        known = _known(spec, f"{figure} knows no sizes of attacks: add an attack section, as examples/attack.yaml has")
        named = {
            "cw": {"kind": "cw", "sizes": known.l2},
            "pgd-linf": {"kind": "pgd", "norm": "linf", "sizes": known.linf},
        }
        return Attacks.model_validate({"attacks": named})
    for name, attack in spec.attack.attacks.items():
        if attack.source is not None:
            raise SpecError(f"attack.attacks.{name}.source: {figure} makes what transfers itself: remove that attack")
    return spec.attack


def _values(attacks: Attacks, named: Mapping[str, Attack]) -> dict[str, Any]:
    """A section with these attacks, as plain data."""
    return {**attacks.model_dump(), "attacks": {name: attack.model_dump() for name, attack in named.items()}}


def _without_draws(attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """The attacks where a network has no noise: all draws would be the same, unless an attack brings its own."""
    return {
        name: attack if attack.noise is not None else attack.model_copy(update={"draws": None})
        for name, attack in attacks.items()
    }


def _transfers(attacks: Attacks, source: Model) -> dict[str, Any]:
    """The same attacks made on another network, by names of their own, as plain data."""
    found = {}
    for name, attack in _without_draws(attacks.attacks).items():
        transfer = f"{name}-{SOURCE}"
        if transfer in attacks.attacks:
            raise SpecError(f"attack.attacks.{transfer}: Figure 3 calls {name} so where it transfers: rename it")
        found[transfer] = {**attack.model_dump(), "source": source.model_dump()}
    return found


def _sigma(spec: Spec) -> float:
    assert spec.noise.kind == "gaussian"
    return spec.noise.sigma


def _stn(figure: str, spec: Spec, sigmas: Sequence[float], attack: Mapping[str, Any]) -> list[Contender]:
    """The smoothed networks, in the places where a sweep has them too."""
    found = []
    for sigma, point in zip(sigmas, points(spec, sigmas, ("stn",)), strict=True):
        whole = validate({**point.spec.model_dump(), "attack": attack}, f"{figure}, {point.name}")
        found.append(Contender(f"STN, sigma = {sigma:g}", Point(point.name, whole)))
    return found


def _plain(
    figure: str, spec: Spec, method: Method, attack: Mapping[str, Any] | None, adversary: Mapping[str, Any] | None
) -> Point:
    """A network that answers without noise, whose only draw is the image itself."""
    content = spec.model_dump(exclude={"confidence"})
    assert spec.model.checkpoint is not None
    content["noise"] = {"kind": "none"}
    content["sampling"] = {"draws": 1, "selection_draws": 0, "seed": spec.sampling.seed}
    content |= {"certificates": (), "radii": (0.0,), "attack": attack}
    content["training"] = of_method(content["training"], method)
    if adversary is not None:
        content["training"]["attack"] = adversary
    content["model"]["checkpoint"] = beside_checkpoint(spec.model.checkpoint, method)
    content["store"]["run"] = f"{spec.store.run.rstrip('/')}/{method}"
    return Point(method, validate(content, f"{figure}, {method}"))


def robust_rows(contenders: Sequence[Contender], attacked: Sequence[Attacked]) -> list[Robust]:
    """A figure's points, network by network.

    Args:
        contenders: those that are attacked.
        attacked: what became of each; attacks that its run has from elsewhere are left out.
    """
    rows = []
    for contender, found in zip(contenders, attacked, strict=True):
        asked = contender.point.spec.attack
        assert asked is not None
        for row in found.curves.to_pylist():
            if row["attack"] not in asked.attacks:
                continue
            source = asked.attacks[row["attack"]].source
            same = ("attack", "norm", "size", "robust_accuracy", "broken", "abstained", "failed", "missing", "images")
            rows.append(
                Robust(
                    network=contender.label,
                    source=WHITE_BOX if source is None else SOURCE,
                    **{name: row[name] for name in same},
                )
            )
    return rows


def robust_png(rows: Sequence[Robust], title: str) -> bytes:
    """Robust accuracy by size of attack: a panel for each norm, a colour for each network, white-box in full lines and
    what transfers dashed, a marker for each attack."""
    networks = list(dict.fromkeys(row.network for row in rows))
    norms = [norm for norm in NORMS if any(row.norm == norm for row in rows)]
    figure = Figure(figsize=(6.5 * len(norms), 5), dpi=150, layout="constrained")
    figure.suptitle(title if all(row.complete for row in rows) else f"{title} (INCOMPLETE)")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        curves = curves_of([row for row in rows if row.norm == norm])
        attacks = list(dict.fromkeys(_made(row) for row in rows if row.norm == norm))
        for label, curve in curves.items():
            axes.plot(
                [row.size for row in curve],
                [row.robust_accuracy for row in curve],
                color=f"C{networks.index(curve[0].network)}",
                linestyle="-" if curve[0].source == WHITE_BOX else "--",
                marker=_MARKERS[attacks.index(_made(curve[0])) % len(_MARKERS)],
                label=label,
            )
        _dress(axes, norm)
    return png(figure)


#: Of a norm's attacks, one after the other.
_MARKERS = "osv^Dx"


def _made(row: Robust) -> str:
    """The name of the white-box attack that a point's attack is, or is a transfer of."""
    return row.attack if row.source == WHITE_BOX else row.attack.removesuffix(f"-{row.source}")


def _dress(axes: Axes, norm: str) -> None:
    axes.set_xlabel(f"size of attack ({NORMS[norm]}, pixels in [0, 1])")
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()


def curves_of(rows: Sequence[Robust]) -> dict[str, list[Robust]]:
    """One norm's points by what their curve is called: network, source, the attack, and whether images lack."""
    found: dict[tuple[str, str, str], list[Robust]] = {}
    for row in rows:
        made = _made(row) if row.source == WHITE_BOX else f"{_made(row)} from {row.source}"
        found.setdefault((row.network, row.source, made), []).append(row)
    named = {}
    for (network, _, made), curve in found.items():
        incomplete = "" if all(row.complete for row in curve) else " (INCOMPLETE)"
        named[f"{network}: {made}{incomplete}"] = sorted(curve, key=lambda row: row.size)
    return named
