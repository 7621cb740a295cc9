"""Certified accuracies that others published, to be shown beside a run on the same data set."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planning.plans import Plan
from workers.settings import Cifar10, ImageNet, Mnist

#: The number of draws of Li et al.
PAPER_DRAWS = 100


@dataclass(frozen=True)
class Literature:
    """A published curve, as points; all L2, under Gaussian noise.

    Attributes:
        source: who, when and where.
        data: the data set, as the publication calls it.
        network: what was certified.
        sigma: of the noise, in [0, 1] pixel units; None where it is not stated.
        draws: n.
        alpha: failure probability of one image's certificate.
        radius: in [0, 1] pixel units, increasing.
        accuracy: certified accuracy at each, a fraction.
        note: what to know of it.
    """

    source: str
    data: str
    network: str
    sigma: float | None
    draws: int
    alpha: float
    radius: tuple[float, ...]
    accuracy: tuple[float, ...]
    note: str = ""

    @property
    def name(self) -> str:
        """For a legend: that it is published, by whom, and what it is of."""
        sigma = "sigma not stated" if self.sigma is None else f"sigma = {self.sigma:g}"
        facts = f"{self.data}, {self.network}, {sigma}, n = {self.draws}, alpha = {self.alpha:g}"
        return f"published: {self.source}: {facts}" + (f"; {self.note}" if self.note else "")


def _cohen(
    data: str, network: str, radius: tuple[float, ...], rows: dict[float, tuple[float, ...]]
) -> list[Literature]:
    source = "Cohen et al. 2019"
    return [
        Literature(source, data, network, sigma, 100_000, 0.001, radius[: len(accuracy)], accuracy)
        for sigma, accuracy in rows.items()
    ]


#: Of their tables of certified accuracy by sigma, as the authors' repository prints them (analysis/latex); the first
#: zero is the last that is kept.
_COHEN_CIFAR10 = _cohen(
    "CIFAR-10",
    "ResNet-110",
    (0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    {
        0.12: (0.59, 0.0),
        0.25: (0.60, 0.43, 0.27, 0.0),
        0.5: (0.55, 0.41, 0.32, 0.23, 0.15, 0.09),
        1.0: (0.39, 0.34, 0.28, 0.22, 0.17, 0.14),
    },
)
_COHEN_IMAGENET = _cohen(
    "ImageNet",
    "ResNet-50",
    (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    {
        0.25: (0.49, 0.0),
        0.5: (0.46, 0.37, 0.29, 0.0),
        1.0: (0.38, 0.33, 0.26, 0.19, 0.15, 0.12),
    },
)


@dataclass(frozen=True)
class PaperStn:
    """What the paper's Table 1 prints of its own method.

    Attributes:
        radius: L2, in [0, 1] pixel units.
        certified: certified accuracy there, a fraction.
        natural: accuracy without perturbation, a fraction.
    """

    radius: float
    certified: float
    natural: float


#: By the name of the paper's network.
PAPER_STN = {"mnist": PaperStn(1.58, 0.690, 0.989), "cifar10": PaperStn(36 / 255, 0.656, 0.805)}


def _li(name: str, data: str, sigma: float | None) -> Literature:
    row = PAPER_STN[name]
    return Literature(
        "Li et al. 2019, Table 1",
        data,
        "STN",
        sigma,
        PAPER_DRAWS,
        0.05,
        (row.radius,),
        (row.certified,),
        f"natural accuracy {100 * row.natural:.1f} %; by an interval that is not exact, see docs/reproduction.md",
    )


_KNOWN = {
    "MNIST": [_li("mnist", "MNIST", 0.7)],
    "CIFAR-10": [_li("cifar10", "CIFAR-10", None), *_COHEN_CIFAR10],
    "ImageNet": _COHEN_IMAGENET,
}

#: Networks made for CIFAR-10.
_CIFAR10_NETWORKS = {"cifar10", "cifar_resnet110"}

#: Its classes, as its folders and tables call them.
_CIFAR10_CLASSES = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}


def data_set(plan: Plan, classes: tuple[str, ...] | None) -> str | None:
    """Which well-known test set a run is on; None where that is not sure.

    Args:
        plan: the run's.
        classes: what its data set calls them, if it does.
    """
    dataset = plan.spec.dataset
    if isinstance(dataset, Mnist):
        return "MNIST" if dataset.split == "test" else None
    if isinstance(dataset, Cifar10):
        return "CIFAR-10" if dataset.split == "test" else None
    if isinstance(dataset, ImageNet):
        return "ImageNet" if dataset.split == "val" else None
    # Other sets have ten classes of that shape: its network or its classes tell, and neither may speak against it.
    if (plan.image_shape, plan.num_classes) != ((3, 32, 32), 10):
        return None
    if classes is not None:
        return "CIFAR-10" if set(classes) == _CIFAR10_CLASSES else None
    return "CIFAR-10" if plan.spec.model.name in _CIFAR10_NETWORKS else None


def literature(plan: Plan, classes: tuple[str, ...] | None = None) -> list[Literature]:
    """What is published of the run's data set; nothing where it is not known for sure, or the noise is not Gaussian."""
    found = data_set(plan, classes)
    return [] if found is None or plan.spec.noise.kind != "gaussian" else _KNOWN[found]
