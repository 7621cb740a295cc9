"""The table of bad inputs: what each command says of them, in one line, by which exit code; and nothing is lost."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from orchestrator.cli import main
from stn_core.models import build_network
from tests import troubles
from tests.networks import tiny, tiny_rgb
from tests.object_store import SECRET_KEY
from tests.orchestrator.conftest import few_digits, made  # noqa: F401 - fixtures
from tests.orchestrator.runs import MadeRun, mnist_spec
from tests.troubles import (
    During,
    Trouble,
    World,
    at_no_time,
    both,
    contents,
    copied,
    disk_full_at,
    environment,
    has,
    has_folder,
    in_object_storage,
    lacks,
    leads_to,
    parquet,
    permissions,
    plan_says,
    planned,
    program,
    refused,
    rows_say,
    saved,
    server_answers,
    table_says,
    truncated,
    votes_of,
    votes_say,
)
from tests.workers.samples import IMAGE_STRUCT, encoded, noise_image
from workers import layout

#: How a command tells what is wrong, and by which exit code. Errors are one line.
#: `verify` lists what it found, and `doctor` what to fix, among what is well; `schema` tells it after its table.
Told = Literal["error", "table", "no work", "finding", "fix"]
CODES: dict[Told, int] = {"error": 2, "table": 2, "no work": 3, "finding": 4, "fix": 2}


@dataclass(frozen=True)
class Bad:
    """An input that is bad.

    Attributes:
        name: in words.
        line: of the command, in a ``World``'s folder; {remote} is the run's copy in object storage.
        says: what must be in the line that tells of it; paths are relative to the folder.
        trouble: what is wrong there.
        during: what is wrong while the command runs.
        told: how it is told.
        leaves: what the command may leave behind; everything else is afterwards as it was.
    """

    name: str
    line: str
    says: str
    trouble: Trouble = troubles.nothing
    during: During = at_no_time
    told: Told = "error"
    leaves: frozenset[str] = frozenset()


#: Keys that nobody must get to see.
KEY, PASSWORD = "another-key-that-no-server-knows", "a-password-to-some-gateway"


class Bomb:
    """What it was pickled for happens when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def images(labels: list[Any], label_column: str = "label") -> Trouble:
    """x.parquet, with one good image for each label."""
    good = [{"bytes": encoded(noise_image(1)), "path": None}] * len(labels)
    column = pa.array(labels) if labels else pa.array([], pa.int64())
    return parquet("x.parquet", **{"image": pa.array(good, IMAGE_STRUCT), label_column: column})


RGB = "--set model.name=tests.networks:tiny_rgb"
PARQUET = f"plan job.yaml {RGB} --set 'dataset={{kind: parquet, path: x.parquet}}'"
FOLDER = f"plan job.yaml {RGB} --set 'dataset={{kind: image_folder, path: images}}'"
WEIGHTS = "plan job.yaml --set model.checkpoint=w.pt"
EXPORTED = "plan job.yaml --set model.name=exported --set model.checkpoint=w.pt2"
TORCHVISION = "plan job.yaml --set model.name=squeezenet1_1 --set model.weights"
TRAIN = "train job.yaml --set 'training={dataset: {kind: mnist, path: mnist}}' --set model.checkpoint"
SWEEP = f"sweep {TRAIN.removeprefix('train ')}=w.pt --sigma 0.1"
VOTES = f"run/{layout.counts(1)}"
IMAGES = "mnist/MNIST/raw/t10k-images-idx3-ubyte"
AGAIN = "delete it and run `stn certify` again"
CHECK = "check the AWS credentials and the bucket's policy"

SPECS = [
    Bad("no spec", "certify nowhere.yaml", "cannot read spec nowhere.yaml: No such file or directory"),
    Bad("a spec that is a folder", "plan run", "cannot read spec run: Is a directory"),
    Bad("a binary spec", "plan job.yaml", "spec job.yaml: not a text file", has("job.yaml", bytes(range(256)))),
    Bad("an empty spec", "plan job.yaml", "job.yaml must hold sections (dataset, model,", has("job.yaml")),
    Bad(
        "a spec nobody may read",
        "train job.yaml",
        "cannot read spec job.yaml: Permission denied",
        during=permissions("job.yaml", 0o000),
    ),
    Bad(
        "a spec that is no YAML",
        "plan job.yaml",
        "job.yaml is not valid YAML: line 2, column 6: expected ',' or '}'",
        has("job.yaml", "noise: {sigma: 1\nmodel: x"),
    ),
    Bad(
        "a spec that would run code",
        "certify job.yaml",
        "line 1, column 8: could not determine a constructor for the tag",
        has("job.yaml", "model: !!python/object/apply:os.system ['touch exploded']"),
    ),
    Bad(
        "a key twice",
        "plan job.yaml",
        "job.yaml is not valid YAML: line 3, column 1: key 'noise' is given twice",
        has("job.yaml", "noise: {sigma: 1}\nradii: [0]\nnoise: {sigma: 2}"),
    ),
    Bad(
        "an unknown key",
        "plan job.yaml --set noise.sgima=1",
        "unknown key noise.sgima, did you mean 'sigma'?; valid here: kind, sigma, sampler",
    ),
    Bad(
        "a word for a number",
        "plan job.yaml --set sampling.draws=many",
        "sampling.draws: got 'many'; input should be a valid integer",
    ),
    Bad(
        "a word for a section",
        "certify job.yaml --set store=run",
        "store: got 'run'; must be a section with keys: run, endpoint_url, checksums, single_writer",
    ),
    Bad(
        "a negative sigma",
        "certify job.yaml --set noise.sigma=-1",
        "noise.sigma: got -1; input should be greater than 0",
    ),
    Bad("no draws", "plan job.yaml --set sampling.draws=0", "sampling.draws: got 0; input should be greater than 0"),
    Bad("alpha of 2", "plan job.yaml --set confidence.alpha=2", "confidence.alpha: got 2; input should be less than 1"),
    Bad("decreasing radii", "plan job.yaml --set radii=[0.5,0.1]", "radii: must increase, each once"),
    Bad("radii without end", "plan job.yaml --set 'radii={stop: 1, step: 0}'", "radii: needs step > 0 and stop"),
    Bad(
        "a split of no selection votes",
        "certify job.yaml --set confidence.protocol=split --set sampling.selection_draws=0",
        "protocol 'split' needs selection votes: set sampling.selection_draws, or use 'paper'",
    ),
    Bad(
        "a certificate for other noise",
        "plan job.yaml --set certificates=[splitting]",
        "certificate 'splitting' holds for splitting noise, the votes' is gaussian; for that: renyi, neyman_pearson",
    ),
    Bad(
        "not all draws of noise that is enumerated",
        "plan job.yaml --set 'noise={kind: splitting, scale: 0.4}' --set confidence.protocol=exact",
        "has 204 draws in all and needs no others: set sampling.draws to 204 and sampling.selection_draws to 0",
    ),
    Bad(
        "more GPUs than there are",
        "plan job.yaml --set resources.gpus_per_actor=2",
        "resources.gpus_per_actor asks for 2 GPUs and this machine has 0: set it to 0 or auto",
    ),
    Bad("an override of nothing", "plan job.yaml --set noise", "--set noise: expected section.key=value, such as"),
    Bad("an override that is no YAML", "plan job.yaml --set radii=[1", "--set radii=[1: '[1' is not valid YAML: line"),
    Bad("no images", "plan job.yaml --limit 0", "'--limit': 0 is not in the range x>=1"),
    Bad("no name for the run", "certify job.yaml --run=", "--run is empty: name the folder where the run is kept"),
]

STARTS = [
    Bad("a spec that is there already", "init job.yaml", "job.yaml is there already: name another file, or remove it"),
    Bad("a folder for a spec", "init run", "run is there already: name another file, or remove it"),
    Bad("a spec for images nowhere", "init my.yaml --data folder", "--path is missing: folder of the images"),
    Bad(
        "a spec in what is a file",
        "init job.yaml/my.yaml",
        "cannot write job.yaml/my.yaml: File exists",
    ),
    Bad(
        "a spec on a full disk",
        "init my.yaml",
        "cannot write my.yaml: File too large",
        during=disk_full_at(100),
    ),
    Bad(
        "completion for a shell that is not known",
        "completion tcsh",
        "'tcsh' is not one of 'bash', 'zsh', 'fish'",
    ),
]

NETWORKS = [
    Bad(
        "an unknown network",
        f"{WEIGHTS} --set model.name=resnet5O",
        "no network 'resnet5O', did you mean 'resnet50'?; valid: mnist, cifar10, mnist_small,",
        saved("w.pt", lambda: tiny().state_dict()),
    ),
    Bad(
        "a network that cannot be imported",
        "certify job.yaml --set model.name=nowhere:make",
        # Whose code it is, may want to know the exception.
        "cannot import 'nowhere:make': ModuleNotFoundError: No module named 'nowhere'",
    ),
    Bad(
        "a network of other classes",
        "certify job.yaml --set model.num_classes=5",
        "gives outputs of shape (10,) per image, the data set has 5 classes: set model.num_classes, or use another",
    ),
    Bad(
        "a network for other images",
        "certify job.yaml --set model.name=tests.networks:tiny_rgb",
        "model.name 'tests.networks:tiny_rgb' (with model.normalization) cannot take images of shape (1, 28, 28): ",
    ),
    Bad(
        "a network of random weights",
        "certify job.yaml --set model.name=mnist",
        "model.checkpoint is missing: the weights of 'mnist' would be random",
    ),
    Bad(
        "a mode that is none",
        "plan job.yaml --set 'dataset={kind: parquet, path: x.parquet, mode: grey}'",
        "dataset.mode: got 'grey', did you mean 'gray'?; valid: 'rgb' or 'gray'",
    ),
    Bad(
        "gray images for a network of colours",
        f"{PARQUET[:-2]}, mode: gray}}'",
        "cannot take images of shape (1, 28, 28)",
        images([0, 1]),
    ),
    Bad(
        "a mode of images that are not encoded",
        "plan job.yaml --set dataset.mode=gray",
        "unknown key dataset.mode; valid here: ",
    ),
    Bad("no checkpoint", WEIGHTS, "no checkpoint at model.checkpoint w.pt: name another file"),
    Bad(
        "a checkpoint that would run code",
        WEIGHTS,
        "w.pt is no readable checkpoint of plain tensors (it holds posix.system, and nothing in a checkpoint is ever "
        "run: save network.state_dict())",
        saved("w.pt", Bomb),
    ),
    Bad(
        "a pickle that would run code",
        WEIGHTS,
        "w.pt is no readable checkpoint of plain tensors (it holds something else, and nothing in a checkpoint is ever "
        "run: save network.state_dict())",
        has("w.pt", pickle.dumps(Bomb())),
    ),
    Bad(
        "half a checkpoint",
        WEIGHTS,
        "w.pt is no readable checkpoint of plain tensors",
        both(saved("w.pt", lambda: tiny().state_dict()), truncated("w.pt")),
    ),
    Bad("an empty checkpoint", WEIGHTS, "w.pt is no readable checkpoint of plain tensors (it is empty)", has("w.pt")),
    Bad(
        "a checkpoint of another network",
        WEIGHTS,
        "w.pt holds the weights of another network: its '0.weight' is (8, 3, 5, 5), the network's (8, 1, 5, 5)",
        saved("w.pt", lambda: tiny_rgb().state_dict()),
    ),
    Bad(
        "a checkpoint of no network",
        WEIGHTS,
        "w.pt holds no state dict: save network.state_dict(), or a dict with it under 'state_dict'",
        saved("w.pt", lambda: [1, 2, 3]),
    ),
    Bad(
        "safetensors that are none",
        "plan job.yaml --set model.checkpoint=w.safetensors",
        "w.safetensors is no readable checkpoint of plain tensors",
        has("w.safetensors", "no tensors, however safe"),
    ),
    Bad(
        "a checkpoint behind a closed door",
        "plan job.yaml --set model.checkpoint=closed/w.pt",
        "cannot read closed/w.pt: Permission denied",
        saved("closed/w.pt", lambda: tiny().state_dict()),
        permissions("closed", 0o000),
    ),
    Bad(
        "a checkpoint of another arch",
        f"{WEIGHTS} --set model.name=cifar_resnet20",
        "w.pt holds a network of arch 'cifar_resnet110', and model.name is 'cifar_resnet20'",
        saved("w.pt", lambda: {"arch": "cifar_resnet110", "state_dict": {}}),
    ),
    Bad(
        "a network behind a layer that nobody describes",
        WEIGHTS,
        "w.pt holds a network that was saved behind a layer without weights: set model.normalization to what that",
        saved("w.pt", lambda: {f"1.module.{name}": value for name, value in tiny().state_dict().items()}),
    ),
    Bad(
        "a network that classifies no images",
        f"{WEIGHTS} --set model.name=fasterrcnn_resnet50_fpn",
        "network 'fasterrcnn_resnet50_fpn' of torchvision.models is no classifier of images",
        saved("w.pt", dict),
    ),
    Bad(
        "weights from two places",
        f"{TORCHVISION}=DEFAULT --set model.checkpoint=w.pt",
        "model: weights are torchvision's and checkpoint is a file of them: remove one",
    ),
    Bad(
        "weights that torchvision has not",
        f"{TORCHVISION}=IMAGENET1K_V2",
        "'squeezenet1_1' has no 'IMAGENET1K_V2', did you mean 'IMAGENET1K_V1'?; valid: IMAGENET1K_V1, DEFAULT",
    ),
    Bad(
        "torchvision's weights of a network that is not torchvision's",
        "plan job.yaml --set model.weights=DEFAULT",
        "model.weights are those of a torchvision.models classifier, and 'tests.networks:tiny' is none",
    ),
    Bad(
        "torchvision's weights without the internet",
        f"{TORCHVISION}=DEFAULT",
        "model.weights: no file torch/hub/checkpoints/squeezenet1_1-b8a52dc0.pth, and it cannot be had from https://",
        environment(TORCH_HOME="torch", https_proxy="http://127.0.0.1:9"),
        leaves=frozenset({"torch", "torch/hub", "torch/hub/checkpoints"}),
    ),
    Bad(
        "some of ImageNet's classes",
        f"{WEIGHTS} --set model.name=squeezenet1_1 --set model.num_classes=1000 "
        "--set 'dataset={kind: image_folder, path: images}'",
        "the data set has 2 of ImageNet's 1000 classes and counts them its own way: label 0 is n01514668 there, "
        "n01440764 to the model; set dataset.class_index: imagenet",
        both(
            saved("w.pt", lambda: build_network("squeezenet1_1", 1000).state_dict()),
            both(
                has("images/n01514668/1.png", encoded(noise_image(1, size=32))),
                has("images/n01514859/1.png", encoded(noise_image(2, size=32))),
            ),
        ),
    ),
    Bad(
        "a program that is nowhere",
        "plan job.yaml --set model.name=exported",
        "model.name exported needs model.checkpoint, a file of torch.export.save",
    ),
    Bad("a program that is none", EXPORTED, "w.pt2 is no readable file of torch.export.save (", has("w.pt2", "x")),
    Bad(
        "a program for two images at a time",
        EXPORTED,
        "w.pt2 takes batches of exactly 2 images: export it for any number, dynamic_shapes=({0: torch.export.Dim(",
        program("w.pt2", tiny, (2, 1, 28, 28), any_number=False),
    ),
    Bad(
        "a program for other images",
        EXPORTED,
        "cannot take images of shape (1, 28, 28): the program was exported for images of 3 x 28 x 28",
        program("w.pt2", tiny_rgb, (2, 3, 28, 28)),
    ),
    Bad(
        "a program as another network's weights",
        "plan job.yaml --set model.checkpoint=w.pt2",
        "w.pt2 is a program of torch.export by its name: set model.name to exported",
        program("w.pt2", tiny, (2, 1, 28, 28)),
    ),
    Bad("nothing to train by", "train job.yaml", "job.yaml: training is missing, and `stn train` needs it; see "),
    Bad("training without an end", f"{TRAIN}=null", "model.checkpoint is missing, and `stn train` needs it"),
    Bad(
        "training into what is no checkpoint",
        f"{TRAIN}=job.yaml",
        "model.checkpoint job.yaml exists and is no checkpoint of `stn train`",
    ),
    Bad("training into safetensors", f"{TRAIN}=w.safetensors", "`stn train` writes PyTorch's format, name it .pt"),
    Bad(
        "training into a folder that may not be written",
        f"{TRAIN}=closed/w.pt",
        "cannot write under closed: Permission denied",
        has_folder("closed"),
        permissions("closed", 0o555),
    ),
    Bad(
        "a weight of nothing",
        f"{TRAIN}=w.pt --set training.method=gaussian --set training.gamma=2",
        "training: gamma belongs to methods alp, consistency, stn and trades, and method gaussian has none: remove it",
    ),
    Bad(
        "noise that nobody trains by",
        f"{TRAIN}=w.pt --set training.method=clean --set training.sigma=2",
        "sigma belongs to methods consistency, gaussian, smoothadv and stn, and method clean has none: remove it",
    ),
    Bad(
        "adversarial training without an adversary",
        f"{TRAIN}=w.pt --set training.method=trades",
        "training: method trades needs an attack, such as attack: {norm: linf, epsilon: 0.03}",
    ),
    Bad(
        "a dual bound of no radius",
        f"{TRAIN}=w.pt --set training.method=dual",
        "training: method dual needs a radius to certify, such as radius: 1.58",
    ),
    Bad(
        "a dual bound by several processes",
        f"{TRAIN}=w.pt --set training.method=dual --set training.radius=1 --set training.workers=2",
        "training: method dual trains in one process: set workers to 1, not 2",
    ),
    Bad(
        "a dual bound of layers it does not know",
        f"{TRAIN}=w.pt --set training.method=dual --set training.radius=1 --set model.name=mnist",
        "the network has a layer Dropout(p=0.25, inplace=False): the dual bound knows a Sequential of Linear,",
    ),
    Bad(
        "a dual bound behind a normalisation",
        f"{TRAIN}=w.pt --set training.method=dual --set training.radius=1 --set model.name=mnist_shallow "
        "--set 'model.normalization={mean: [0.1], std: [0.3]}'",
        "training: method dual bounds networks of pixels as they are: remove model.normalization",
    ),
    Bad(
        "a radius where nothing is certified by it",
        f"{TRAIN}=w.pt --set training.radius=1",
        "training: radius belongs to method dual, and method stn has none: remove it",
    ),
    Bad(
        "images for fewer workers",
        f"{TRAIN}=w.pt --set training.workers=30",
        "training.dataset has 25 images for training.workers 30: set fewer",
    ),
    Bad(
        "training workers as a word",
        f"{TRAIN}=w.pt --set training.workers=auto",
        "training.workers: got 'auto'; must be a number from 1, or bounds such as {min: 1, max: 4}",
    ),
    Bad(
        "attacks under noise that is not added",
        f"{TRAIN}=w.pt --set training.method=smoothadv --set 'training.attack={{norm: l2, epsilon: 1}}' "
        "--set 'noise={kind: splitting, scale: 0.5}' --set sampling.draws=255 --set sampling.selection_draws=0 "
        "--set certificates=[splitting] --set confidence.protocol=exact",
        "method smoothadv needs noise that is added to images, and splitting noise is not",
    ),
    Bad(
        "copies of an image to compare, but one",
        f"{TRAIN}=w.pt --set training.method=consistency --set training.draws=1",
        "training: method consistency compares noisy copies of an image: set draws to 2 or more",
    ),
    Bad(
        "random crops of a crop",
        f"{TRAIN}=w.pt --set 'training.dataset={{kind: image_folder, path: x, crop: 9}}' --set training.random_crop=9",
        "training: random_crop is of the whole image: remove dataset.resize and dataset.crop",
    ),
    Bad(
        "random crops of what is no image file",
        f"{TRAIN}=w.pt --set training.random_crop=20",
        "training: random_crop needs dataset.kind image_folder, imagenet or webdataset: other images are held decoded",
    ),
    Bad(
        "a label outside the classes",
        f"{TRAIN}=w.pt --set model.num_classes=5",
        "training.dataset has label 8, the model 5 classes: set model.num_classes",
    ),
    Bad(
        "held-out images of nothing",
        f"{TRAIN}=w.pt --set 'training.validation={{kind: mnist, path: nowhere}}'",
        "training.validation: no MNIST at dataset.path nowhere: it must hold MNIST/raw/*-ubyte",
    ),
    Bad(
        "training by nothing",
        f"{TRAIN}=w.pt --set training.dataset.path=nowhere",
        "training: no MNIST at dataset.path nowhere: it must hold MNIST/raw/*-ubyte",
    ),
]

DATA = [
    Bad(
        "no data set",
        "certify job.yaml --set dataset.path=nowhere",
        "no MNIST at dataset.path nowhere: it must hold MNIST/raw/*-ubyte",
    ),
    Bad(
        "half of MNIST",
        "certify job.yaml --set dataset.path=mnist",
        "MNIST at dataset.path mnist is damaged",
        truncated(IMAGES),
    ),
    Bad(
        "fewer labels than images",
        "plan job.yaml --set dataset.path=mnist",
        "MNIST at dataset.path mnist is damaged: 25 images, 2 labels",
        has("mnist/MNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x02\1\2"),
    ),
    Bad(
        "a CIFAR-10 that would run code",
        f"plan job.yaml {RGB} --set 'dataset={{kind: cifar10, path: cifar}}'",
        "CIFAR-10 at dataset.path cifar is damaged, or another: cifar-10-batches-py/batches.meta is not the file that",
        has("cifar/cifar-10-batches-py/batches.meta", pickle.dumps(Bomb())),
    ),
    Bad(
        "no CIFAR-10",
        f"plan job.yaml {RGB} --set 'dataset={{kind: cifar10, path: mnist}}'",
        "no CIFAR-10 at dataset.path mnist: it must hold cifar-10-batches-py/batches.meta",
    ),
    Bad(
        "an empty folder of images",
        FOLDER,
        "dataset.path images holds no images: expected images/CLASS/FILE",
        has_folder("images"),
    ),
    Bad(
        "images that are none",
        FOLDER,
        "no images to certify in dataset: its first images cannot be used: image 0: cat/1.png cannot be decoded",
        has("images/cat/1.png", "no image"),
    ),
    Bad(
        "a class nobody may see",
        FOLDER,
        "dataset.path cannot be read: [Errno 13] Permission denied: 'images/dog'",
        both(has("images/cat/1.png", encoded(noise_image(1))), has("images/dog/1.png", encoded(noise_image(2)))),
        permissions("images/dog", 0o000),
    ),
    Bad("no Parquet", PARQUET, "no file at dataset.path x.parquet"),
    Bad(
        "half a Parquet file",
        PARQUET,
        "dataset.path x.parquet is no Parquet file that can be read",
        both(images([0, 1]), truncated("x.parquet")),
    ),
    Bad(
        "Parquet without labels",
        PARQUET,
        "x.parquet has no column 'label': set dataset.label_column",
        images([0, 1], "lable"),
    ),
    Bad(
        "labels in words",
        PARQUET,
        "x.parquet: dataset.label_column 'label' must hold integers, no nulls",
        images(["cat", "dog"]),
    ),
    Bad(
        "Parquet without images",
        PARQUET,
        "x.parquet must have one struct column with a field 'bytes', and has none: set dataset.image_column",
        parquet("x.parquet", label=pa.array([0, 1])),
    ),
    Bad("Parquet without rows", PARQUET, "dataset.path x.parquet holds no images", images([])),
]

RUNS = [
    *(
        Bad(f"{command} of no run", f"{command} nowhere", "no run at nowhere: it has no plan.json")
        for command in ("status", "reduce", "report", "verify", "gc", "schema --run", "compare run")
    ),
    *(
        Bad(f"{command} of a folder that is no run", f"{command} mnist", "no run at mnist: it has no plan.json")
        for command in ("status", "reduce", "report", "verify", "gc", "schema --run", "compare run")
    ),
    *(
        Bad(
            f"{command} of an empty folder",
            f"{command} empty",
            "no run at empty: it has no plan.json",
            has_folder("empty"),
        )
        for command in ("status", "reduce", "report", "verify", "gc", "schema --run", "compare run")
    ),
    *(
        Bad(f"{command} of a file", f"{command} job.yaml", "no run at job.yaml: it is a file, and a run is a folder")
        for command in ("status", "reduce", "report", "verify", "gc", "schema --run", "compare run")
    ),
    *(
        Bad(
            f"{command} of a plan without votes or tables",
            f"{command} new",
            "new has no certificates yet: run `stn reduce` first",
            planned("new"),
            leaves=frozenset(),
        )
        for command in ("report", "compare run")
    ),
    *(
        Bad(
            f"{command} of a newer plan",
            command if "run" in command else f"{command} run",
            "run/plan.json was written by a newer version (schema 2): update this installation",
            plan_says(schema_version=2),
        )
        for command in ("status", "reduce", "report", "gc", "compare run nowhere")
    ),
    Bad(
        "a schema of newer certificates",
        "schema --run run",
        "1 certificates object in run is of a newer version (schema 3): update this installation",
        table_says("run/certificates.parquet", schema_version=3),
        told="table",
    ),
    Bad(
        "a schema of newer votes",
        "schema --run run",
        "1 counts object in run is of a newer version (schema 3): update this installation",
        table_says(VOTES, schema_version=3),
        told="table",
    ),
    Bad(
        "a schema of no table",
        "schema certificate",
        "unknown table 'certificate', did you mean 'certificates'?; valid: counts",
    ),
    Bad("two schemas at once", "schema counts --run run", "TABLE, --run and --markdown exclude each other"),
    Bad(
        "a schema of half a table",
        "schema --run run",
        "run/curves.parquet is damaged: ",
        truncated("run/curves.parquet"),
    ),
    Bad(
        "a status of newer votes",
        "status run",
        f"{VOTES}: written by a newer version (schema 3, this one reads up to 2); update this installation",
        table_says(VOTES, schema_version=3),
    ),
    Bad(
        "a report of newer curves",
        "report run",
        "run/curves.parquet was written by a newer version (schema 3): update this installation",
        table_says("run/curves.parquet", schema_version=3),
    ),
    Bad(
        "a comparison with newer curves",
        "compare run run2",
        "run/curves.parquet was written by a newer version (schema 3): update this installation",
        both(copied("run", "run2"), table_says("run/curves.parquet", schema_version=3)),
    ),
    Bad("a retry of what was never tried", "certify job.yaml --run new --retry-failed", "leave out --retry-failed"),
    Bad("a run elsewhere", "certify job.yaml --run ftp://host/run", "ftp:// is not supported; use s3:// or a folder"),
    Bad(
        "a run of another spec",
        "certify job.yaml --set noise.sigma=0.3 --set sampling.seed=7",
        "run holds another run (noise.sigma: the run has 0.2, asked 0.3; sampling.seed: the run has 1, asked 7): "
        "use another --run, or make the spec agree",
    ),
    Bad(
        "a run of other data",
        "certify job.yaml",
        "run holds another run (dataset.fingerprint: the run has '000",
        plan_says(dataset_sha256="0" * 64),
    ),
    Bad(
        "a run of other weights",
        "certify job.yaml",
        "run holds another run (model.weights: the run has '000",
        plan_says(model_sha256="0" * 64),
    ),
    Bad("no plan", "report run", "no run at run: it has no plan.json", lacks("run/plan.json")),
    Bad("half a plan", "certify job.yaml", "run/plan.json is damaged: not a plan", truncated("run/plan.json")),
    Bad("a plan that is none", "gc run --yes", "run/plan.json is damaged: not a plan", has("run/plan.json", "[]")),
    Bad(
        "a plan from a newer version",
        "certify job.yaml",
        "run/plan.json was written by a newer version (schema 2): update this installation",
        plan_says(schema_version=2),
    ),
    Bad(
        "a plan of a bad spec",
        "status run",
        "run/plan.json is damaged: its spec: noise.sigma: got 'much'; input should be a valid number",
        plan_says(spec__noise__sigma="much"),
    ),
    Bad(
        "a plan of no shards",
        "status run",
        "run/plan.json is damaged: shard_size: Input should be greater than 0",
        plan_says(shard_size=0),
    ),
    Bad(
        "a plan of no size",
        "reduce run",
        "run/plan.json is damaged: dataset_size: Input should be a valid integer",
        plan_says(dataset_size=None),
    ),
    Bad(
        "a plan nobody may read",
        "status run",
        "cannot read run/plan.json: Permission denied",
        during=permissions("run/plan.json", 0o000),
    ),
    Bad("half of a shard's votes", "status run", f"{VOTES}: damaged Parquet", truncated(VOTES)),
    Bad(
        "votes from a newer version",
        "reduce run",
        f"{VOTES}: written by a newer version (schema 3, this one reads up to 2); update this installation",
        table_says(VOTES, schema_version=3),
    ),
    Bad(
        "votes of another run",
        "reduce run",
        f"{VOTES}: its votes are of another run; {AGAIN}",
        table_says(VOTES, identity={}),
    ),
    Bad(
        "votes of another shard",
        "reduce run",
        f"{VOTES}: its images are not the plan's; {AGAIN}",
        votes_of(0, lie_as=1),
    ),
    Bad(
        "votes that do not add up",
        "certify job.yaml --set confidence.alpha=0.01",
        f"{VOTES}: its votes do not add up to its draws; {AGAIN}",
        votes_say(1, draws=65),
    ),
    Bad(
        "votes that are no table of votes",
        "reduce run",
        f"{VOTES}: not a table of votes; {AGAIN}",
        parquet(VOTES, votes=pa.array([1, 2])),
    ),
    Bad(
        "votes nobody may read",
        "reduce run --alpha 0.01",
        f"cannot read {VOTES}: Permission denied",
        during=permissions(VOTES, 0o000),
    ),
    Bad(
        "votes nobody may list",
        "reduce run",
        "cannot list run/counts: Permission denied",
        during=permissions("run/counts", 0o000),
    ),
    Bad(
        "half a record of a failure",
        "status run",
        "run/failed/shard-000001.json is damaged: delete it",
        has("run/failed/shard-000001.json", '{"shard": 1'),
    ),
    Bad(
        "half of the curves",
        "report run",
        "curves.parquet is damaged: run `stn reduce`",
        truncated("run/curves.parquet"),
    ),
    Bad(
        "curves from a newer version",
        "certify job.yaml",
        "run/curves.parquet was written by a newer version (schema 3): update this installation",
        table_says("run/curves.parquet", schema_version=3),
    ),
    Bad(
        "curves and certificates of two reduces",
        "report run",
        "run/certificates.parquet and curves.parquet are of two reduces: run `stn reduce` again",
        table_says("run/curves.parquet", code_sha256="another"),
    ),
    Bad(
        "no certificates",
        "report run",
        "run/certificates.parquet is missing or damaged: run `stn reduce` again",
        lacks("run/certificates.parquet"),
    ),
    Bad("no run to compare with", "compare run nowhere", "no run at nowhere: it has no plan.json"),
    Bad("a run beside nothing", "compare run run", "one run is no comparison: name at least two different ones"),
    Bad("a run beside one without curves", "compare run half", "half has no certificates yet: run `stn reduce` first"),
    Bad(
        "certificates of two reduces to compare",
        "compare run run2",
        "run2/certificates.parquet and curves.parquet are of two reduces: run `stn reduce` again",
        both(copied("run", "run2"), table_says("run2/curves.parquet", code_sha256="another")),
    ),
    Bad(
        "a comparison in two forms",
        "compare run half --csv --json",
        "--markdown, --latex, --csv and --json exclude each other: choose one",
    ),
    Bad(
        "a comparison into a file",
        "compare run run2 --out job.yaml",
        "cannot write under job.yaml: Not a directory",
        copied("run", "run2"),
    ),
    Bad("a report of no curves", "report run half --out out", "half has no certificates yet: run `stn reduce` first"),
]

#: A log of three images, the last of which contradicts itself.
LOG = "idx\tlabel\tpredict\tradius\tcorrect\n0\t3\t3\t0.377\t1\n20\t7\t-1\t0.0\t0\n40\t4\t4\t0.06\t0\n"

LOGS = [
    Bad("no log", "import-cohen no.tsv --out theirs", "cannot read no.tsv: No such file or directory"),
    Bad(
        "a log that is none",
        "import-cohen job.yaml --out theirs",
        "job.yaml line 1: expected a header that begins with idx, label, predict, radius, correct, separated by tabs",
    ),
    Bad(
        "a log that contradicts itself",
        "import-cohen log.tsv --out theirs",
        "log.tsv line 4: correct is 0, but label is 4 and predict 4",
        has("log.tsv", LOG),
    ),
    Bad(
        "a declaration that the log contradicts",
        "import-cohen log.tsv --out theirs --sigma 0.1 --draws 100 --alpha 0.05",
        "allow no radius above 0.1888, and the log has 0.377",
        has("log.tsv", LOG.replace("0.06\t0", "0.06\t1")),
    ),
    Bad(
        "an import into a run",
        "import-cohen log.tsv --out run",
        "run is a run: choose another --out",
        has("log.tsv", LOG.replace("0.06\t0", "0.06\t1")),
    ),
    Bad("a sigma that is none", "import-cohen log.tsv --out theirs --sigma nan", "must lie inside (0, inf), got nan"),
    Bad("an import that is damaged", "report theirs", "is damaged: delete it", has("theirs/imported.parquet", "PAR1")),
    Bad(
        "a run beside an import",
        "certify job.yaml --run theirs",
        "theirs is an imported table of certificates: it has no votes",
        has("theirs/imported.parquet", "PAR1"),
    ),
    Bad(
        "a name of two lines",
        "import-cohen job.yaml --out theirs --name 'a\nb'",
        "--name: must be a line of text",
    ),
]

VIEWS = [
    Bad("alpha of nothing", "reduce run --alpha 0", "alpha must lie inside (0, 1), got 0.0"),
    Bad("beta of 7", "reduce run --beta 7", "beta must lie inside (0, 1), got 7.0"),
    Bad(
        "an unknown certificate",
        "reduce run --certificate renyii",
        "certificate 'renyii', did you mean 'renyi'?; valid:",
    ),
    Bad(
        "an unknown protocol",
        "reduce run --protocol papre",
        "unknown protocol 'papre', did you mean 'paper'?; valid: paper, paper_two, split, label, ",
    ),
    Bad("a protocol for other noise", "reduce run --protocol exact", "protocol 'exact' needs splitting noise"),
    Bad(
        "an unknown interval",
        "reduce run --interval wilson",
        "'--interval': 'wilson' is not one of 'clopper_pearson', 'randomised'",
    ),
    Bad(
        "radii out of order",
        "reduce run --radii 0.5,0.1",
        "'--radii': radii must be finite, not negative, and increase",
    ),
    Bad("nothing counted again", "verify run --recount 0", "'--recount': 0 is not in the range x>=1"),
    Bad("less than that", "verify run --recount=-1", "'--recount': -1 is not in the range x>=1"),
    Bad("a seed for nothing", "verify run --seed 1", "--seed goes with --recount"),
    Bad("garbage of the future", "gc run --older-than=-1", "'--older-than': -1.0 is not in the range"),
    Bad(
        "garbage of no age",
        "gc run --older-than nan --yes",
        "'--older-than': nan is not in the range x>=0",
        has(f"run/.tmp/{'0' * 32}", "somebody is at work on it"),
    ),
    Bad(
        "a sweep without data to certify, found before anything is trained",
        f"{SWEEP} --set dataset.path=nowhere --run new",
        "no MNIST at dataset.path nowhere: it must hold MNIST/raw/*-ubyte",
    ),
    Bad(
        "a sweep into a folder that may not be written, found before anything is trained",
        f"{SWEEP} --run closed/sweep",
        "cannot write under closed/sweep: Permission denied",
        has_folder("closed"),
        permissions("closed", 0o555),
    ),
    Bad(
        "a sweep without data to train by",
        f"{SWEEP} --set training.dataset.path=nowhere --run new",
        "training: no MNIST at dataset.path nowhere: it must hold MNIST/raw/*-ubyte",
    ),
    Bad("a sweep over words", "sweep job.yaml --sigma small", "'--sigma': expected numbers separated by commas, got"),
    Bad("a sweep over nothing", "sweep job.yaml", "Missing option '--sigma'"),
    Bad("a sweep of the same", "sweep job.yaml --run new --sigma 0.1,0.1", "over sigma needs each once, and has 0.1"),
    Bad(
        "a sweep over an unknown method",
        "sweep job.yaml --sigma 0.1 --method trade",
        "unknown method 'trade', did you mean 'trades'?; valid: stn, gaussian, clean, madry, trades, alp, consis",
    ),
    Bad("a sweep into a run", "sweep job.yaml --sigma 0.1", "run holds a run, and this keeps several below its folder"),
    Bad("a sweep of no training", "sweep job.yaml --run new --sigma 0.1 --method stn", "needs the spec's training"),
    Bad(
        "the paper's table of another network",
        "paper table1 job.yaml --run new",
        "Table 1 is about the paper's networks, mnist and cifar10, not 'tests.networks:tiny'",
    ),
    Bad("an unknown table", "paper table2 job.yaml", "No such command 'table2'"),
    Bad("a figure of no training", "paper figure1 job.yaml --run new --sigma 0.1", "needs the spec's training section"),
    Bad("attacks on no training", "paper figure3 job.yaml --run new", "training is missing: Figure 3 trains"),
    Bad("noise of no training", "paper figure4 job.yaml --run new --sigma 0.1", "training is missing: Figure 4 tr"),
    Bad("an attack that is not described", "attack job.yaml", "attack is missing: say which attacks, as examples/att"),
    Bad(
        "an unknown attack",
        "attack job.yaml --set 'attack={attacks: {a: {kind: fgsm, sizes: [1]}}}'",
        "attack.attacks.a.kind: got 'fgsm'; valid: pgd, cw, square",
    ),
    Bad(
        "attacks that shrink",
        "attack job.yaml --set 'attack={attacks: {a: {kind: cw, sizes: [2, 1]}}}'",
        "sizes must increase, each once, got [2.0, 1.0]",
    ),
    Bad(
        "an attack through a source that is not there",
        "attack job.yaml --set 'attack.attacks={a: {kind: cw, sizes: [1], source: {name: mnist, checkpoint: x}}}'",
        "attack.attacks.a.source: no checkpoint at",
    ),
    Bad("no noise, and draws", "certify job.yaml --run new --set 'noise={kind: none}'", "set sampling.draws to 1"),
    Bad("an examination of half a spec", "doctor --run run", "--run and --set go with a SPEC"),
]

PLACES = [
    Bad(
        "a run below a file", "certify job.yaml --run job.yaml/run", "cannot write under job.yaml/run: Not a directory"
    ),
    Bad(
        "a new run where nobody may write",
        "certify job.yaml --run run/new",
        "cannot write under run/new: Permission denied",
        during=permissions("run", 0o555),
    ),
    Bad(
        "a run that may not be changed",
        "reduce run --alpha 0.01",
        "cannot delete run/curves.parquet: Permission denied",
        during=permissions("run", 0o555),
    ),
    Bad(
        "a report where nobody may write",
        "report run",
        "cannot write run/curves.png: Permission denied",
        during=permissions("run", 0o555),
    ),
    Bad(
        "garbage that may not be removed",
        "gc run --yes --older-than 0",
        f"cannot delete run/.tmp/{'0' * 32}: Permission denied",
        has(f"run/.tmp/{'0' * 32}", "half written"),
        permissions("run/.tmp", 0o555),
    ),
    Bad(
        "garbage nobody may list",
        "gc run",
        "cannot list run/.tmp: Permission denied",
        has(f"run/.tmp/{'0' * 32}", "half written"),
        permissions("run/.tmp", 0o000),
    ),
    Bad("a report into a file", "report run --out job.yaml", "cannot write under job.yaml: Not a directory"),
    Bad(
        "a full disk for the plan",
        "certify job.yaml --run new",
        "cannot write under new: File too large",
        during=disk_full_at(1000),
        leaves=frozenset({"new", "new/.tmp"}),
    ),
    Bad(
        "a full disk for certificates",
        "reduce run --alpha 0.01",
        "which TMPDIR chooses: ",
        during=disk_full_at(1000),
    ),
    Bad(
        "a full disk for the report", "report run", "cannot write under run: File too large", during=disk_full_at(1000)
    ),
    Bad(
        "no cluster at the address",
        "certify job.yaml --run new --address 127.0.0.1:1",
        "no Ray cluster at 127.0.0.1:1 (--address or $RAY_ADDRESS): Connection refused",
        told="no work",
        leaves=frozenset({"new", "new/.tmp", "new/plan.json", "new/drivers"}),
    ),
    Bad(
        "an address that is none",
        "certify job.yaml --run new",
        "no Ray cluster at nonsense (--address or $RAY_ADDRESS): Invalid address format: nonsense",
        environment(RAY_ADDRESS="nonsense"),
        told="no work",
        leaves=frozenset({"new", "new/.tmp", "new/plan.json", "new/drivers"}),
    ),
]

HTML = "<html><body>It works!</body></html>"

HEAD = "--address http://127.0.0.1:1 --run s3://bucket/run"
JOBS = [
    Bad("submit nowhere", "submit job.yaml --run s3://b/run", "--address is missing: name the head's dashboard"),
    Bad("submit what is no spec", f"submit job.yaml {HEAD} --set noise.sigma=0", "job.yaml: noise.sigma: got 0"),
    Bad("submit what is only here", "submit job.yaml --address http://127.0.0.1:1", "store.run run is relative to"),
    Bad(
        "submit to the port for drivers",
        f"submit job.yaml {HEAD} --address ray://127.0.0.1:10001",
        "--address ray://127.0.0.1:10001: jobs are submitted to the head's dashboard, http://HEAD:8265",
    ),
    Bad(
        "a port that is none, to submit to",
        f"submit job.yaml {HEAD} --address http://head:99999",
        "--address http://head:99999: jobs are submitted to the head's dashboard, http://HEAD:8265",
    ),
    Bad(
        "submit with a password",
        f"submit job.yaml {HEAD} --address http://me:{PASSWORD}@head:8265",
        "--address holds a",
    ),
    Bad(
        "submit to nobody",
        f"submit job.yaml {HEAD}",
        "no Ray cluster at http://127.0.0.1:1 (--address): Connection refused",
        told="no work",
    ),
    Bad("submit training that is none", f"submit job.yaml {HEAD} --command train", "`stn train` has no --run"),
]

CLOUD = [
    Bad("no bucket in the name", "certify job.yaml --run s3://", "s3:// names no bucket: expected s3://bucket/prefix"),
    Bad(
        "a bucket that is not there",
        "status s3://no-such-bucket/run",
        "s3://no-such-bucket/run: there is no bucket 'no-such-bucket': create it, or name another",
        in_object_storage,
    ),
    Bad(
        "a new run in a bucket that is not there",
        "certify job.yaml --run s3://bucket/run",
        "s3://bucket/run: there is no bucket 'bucket': create it, or name another",
        during=refused("NoSuchBucket", 404),
    ),
    Bad(
        "a bucket that cannot be",
        "gc 's3://No Bucket/run'",
        "s3://No Bucket/run: 'No Bucket' is no bucket's name",
        leads_to("http://127.0.0.1:1"),
    ),
    Bad("no run in the bucket", "reduce {remote}/nowhere", "no run at {remote}/nowhere: it has no plan.json"),
    Bad(
        "a wrong secret key",
        "reduce {remote}",
        f"no permission to read under {{remote}} (SignatureDoesNotMatch): {CHECK}",
        both(in_object_storage, environment(AWS_SECRET_ACCESS_KEY=KEY)),
    ),
    Bad(
        "a wrong secret key, to write with",
        "certify job.yaml --run {remote}",
        f"no permission to write under {{remote}} (SignatureDoesNotMatch): {CHECK}",
        both(in_object_storage, environment(AWS_SECRET_ACCESS_KEY=KEY)),
    ),
    Bad(
        "an unknown access key",
        "report {remote}",
        f"no permission to read under {{remote}} (InvalidAccessKeyId): {CHECK}",
        both(in_object_storage, environment(AWS_ACCESS_KEY_ID=KEY)),
    ),
    Bad(
        "no permission",
        "certify job.yaml --run s3://bucket/run",
        f"no permission to write under s3://bucket/run (AccessDenied): {CHECK}",
        during=refused("AccessDenied", 403),
    ),
    Bad(
        "no permission for the weights",
        "plan job.yaml --set model.checkpoint=s3://bucket/w.pt",
        f"no permission to read under s3://bucket (403): {CHECK}",
        during=refused("AccessDenied", 403),
    ),
    Bad(
        "no credentials",
        "status s3://bucket/run",
        "s3://bucket/run: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        leads_to("http://127.0.0.1:1", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""),
    ),
    Bad(
        "a profile that is not there",
        "verify s3://bucket/run",
        "s3://bucket/run: The config profile (nobody) could not be found",
        leads_to("http://127.0.0.1:1", AWS_PROFILE="nobody"),
    ),
    Bad(
        "an endpoint where nobody listens",
        "certify job.yaml --run s3://bucket/run",
        'cannot write under s3://bucket/run: Could not connect to the endpoint URL: "http://127.0.0.1:1/bucket/run/',
        leads_to("http://127.0.0.1:1"),
    ),
    Bad(
        "an endpoint that is no S3",
        "status s3://bucket/run",
        "and not as S3 does: check the endpoint",
        during=server_answers(404, HTML, "text/html"),
    ),
    Bad(
        "an endpoint that takes everything",
        "certify job.yaml --run s3://bucket/run",
        "this server ignores If-None-Match: two drivers could overwrite each other's votes; set store.single_writer",
        during=server_answers(200, HTML, "text/html"),
    ),
    Bad(
        "an endpoint with a password",
        "gc s3://bucket/run",
        "s3://bucket/run: the endpoint must be http://host or https://host, maybe with port and path, no user, ",
        leads_to(f"http://somebody:{PASSWORD}@127.0.0.1:1"),
    ),
    Bad(
        "an endpoint with a password in the spec",
        f"certify job.yaml --set store.endpoint_url=http://somebody:{PASSWORD}@host",
        "store.endpoint_url: the endpoint must be http://host or https://host, maybe with port and path, no user",
    ),
    Bad(
        "data that is not in the bucket",
        "certify job.yaml --set dataset.path=s3://stn-tests/nowhere",
        "no MNIST at dataset.path s3://stn-tests/nowhere: it must hold MNIST/raw/*-ubyte",
        in_object_storage,
    ),
    Bad(
        "weights that are not in the bucket",
        "certify job.yaml --set model.checkpoint=s3://stn-tests/nowhere.pt",
        "no checkpoint at model.checkpoint s3://stn-tests/nowhere.pt: name another file",
        in_object_storage,
    ),
    Bad(
        "half of a shard's votes in object storage",
        "reduce {remote}",
        f"{{remote}}/{layout.counts(1)}: damaged Parquet",
        lambda world: world.remote.replace(layout.counts(1), world.made.encoded(1)[:500]),
    ),
]

FINDINGS = [
    Bad("verify half a plan", "verify run", "run/plan.json is damaged: not a plan", truncated("run/plan.json")),
    Bad("verify half of a shard's votes", "verify run", f"{layout.counts(1)}: damaged Parquet", truncated(VOTES)),
    Bad(
        "verify votes from a newer version",
        "verify run",
        f"{layout.counts(1)}: written by a newer version (schema 3",
        table_says(VOTES, schema_version=3),
    ),
    Bad(
        "verify votes of another run",
        "verify run",
        f"{layout.counts(1)}: its votes are of another run",
        table_says(VOTES, identity={}),
    ),
    Bad(
        "verify votes of another shard",
        "verify run",
        f"{layout.counts(1)}: its votes are those of shard 0",
        votes_of(0, lie_as=1),
    ),
    Bad(
        "verify votes that do not add up",
        "verify run",
        f"{layout.counts(1)}: estimation votes do not add up to the draws: images 8, 9, 10",
        votes_say(1, draws=65),
    ),
    Bad(
        "verify images of the same noise",
        "verify run",
        "images 8 and 9 have the same key, and so the same noise",
        votes_say(1, key=8),
    ),
    Bad(
        "verify certificates that the votes do not bear out",
        "verify run",
        "certificates.parquet, image 2, renyi under paper: radius 0.75 is too large for p1_lower ",
        rows_say("run/certificates.parquet", radius=0.75),
    ),
    Bad(
        "verify curves of another reduce",
        "verify run",
        "curves.parquet: is of another reduce than certificates.parquet",
        table_says("run/curves.parquet", code_sha256="another"),
    ),
    Bad(
        "verify curves without certificates",
        "verify run",
        "certificates.parquet: is missing, and curves of it are published",
        lacks("run/certificates.parquet"),
    ),
    Bad(
        "count again what has moved away",
        "verify run --recount 2",
        "plan.json: what it names cannot be opened: no MNIST at dataset.path moved",
        plan_says(spec__dataset__path="moved"),
    ),
    Bad(
        "count again what was changed",
        "verify run --recount 2",
        "plan.json: what the votes were counted from has changed: dataset.fingerprint was ",
        both(
            plan_says(spec__dataset__path="mnist"),
            has("mnist/MNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x19" + bytes(25)),
        ),
    ),
]

FIXES = [
    Bad("look for no spec", "doctor nowhere.yaml", "FIX spec: cannot read spec nowhere.yaml: No such file"),
    Bad("look at a bad spec", "doctor job.yaml --set noise.sigma=-1", "FIX spec: job.yaml: noise.sigma: got -1; input"),
    Bad(
        "look at no data",
        "doctor job.yaml --set dataset.path=nowhere",
        "FIX data set: no MNIST at dataset.path nowhere",
    ),
    Bad(
        "look at weights behind a closed door",
        "doctor job.yaml --set model.checkpoint=closed/w.pt",
        "FIX weights: cannot read closed/w.pt: Permission denied",
        saved("closed/w.pt", lambda: tiny().state_dict()),
        permissions("closed", 0o000),
    ),
    Bad(
        "look at too many GPUs",
        "doctor job.yaml --set resources.gpus_per_actor=2",
        "asks for 2 GPUs and this machine has",
    ),
    Bad(
        "look at another run",
        "doctor job.yaml --set noise.sigma=0.3",
        "FIX run: run holds another run (noise.sigma: the run has 0.2, asked 0.3): use another --run, or make the spec",
    ),
    Bad(
        "look at a run nobody may see",
        "doctor job.yaml",
        "FIX run: cannot read run/plan.json: Permission denied",
        during=permissions("run", 0o000),
    ),
    Bad("look below a file", "doctor job.yaml --run job.yaml/run", "FIX store: cannot write under job.yaml/run: Not a"),
    Bad(
        "look for a cluster", "doctor job.yaml --address 127.0.0.1:1", "Connection refused: start Ray there, or correct"
    ),
    Bad(
        "look with a wrong secret key",
        "doctor job.yaml --run {remote}",
        f"FIX store: no permission to write under {{remote}} (SignatureDoesNotMatch): {CHECK}",
        both(in_object_storage, environment(AWS_SECRET_ACCESS_KEY=KEY)),
    ),
]

TABLE = [
    *SPECS,
    *STARTS,
    *NETWORKS,
    *DATA,
    *RUNS,
    *LOGS,
    *VIEWS,
    *PLACES,
    *JOBS,
    *CLOUD,
    *(dataclasses.replace(bad, told="finding") for bad in FINDINGS),
    *(dataclasses.replace(bad, told="fix") for bad in FIXES),
]


@pytest.fixture(scope="module")
def well(few_digits: Path, made: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """What every world begins with, besides its spec."""
    root = tmp_path_factory.mktemp("well")
    shutil.copytree(few_digits, root / "mnist")
    made.write(root / "half", [0, 2])
    made.write(root / "run")
    # The report is for what the libraries keep of their own, once: it is not to be tried on a full disk.
    for line in (f"reduce {root}/run", f"report {root}/run --out {root}/unused"):
        assert stn(line).exit_code == 0
    shutil.rmtree(root / "unused")
    return root


@pytest.fixture
def world(
    well: Path,
    few_digits: Path,  # noqa: F811
    made: MadeRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    """A world where all is well, no GPU, no settings of the person's who runs the tests; a dead server is given up
    at once, and what commands do to their process is undone."""
    shutil.copytree(well, tmp_path, dirs_exist_ok=True)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(mnist_spec(few_digits, store={"run": "run"})))
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("workers.s3._ATTEMPTS", 1)
    monkeypatch.setattr("workers.s3._READ_ATTEMPTS", 1)
    monkeypatch.setattr("orchestrator.planning.estimate._PROBE_S", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "as it was, afterwards")
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "STN_TRACEBACK",
        *(name for name in os.environ if name.startswith("AWS_")),
    ):
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield World(tmp_path, made, monkeypatch.setenv, lambda: request.getfixturevalue("object_store"))
    signal.signal(signal.SIGTERM, handler)


def stn(line: str) -> Result:
    return CliRunner().invoke(main, shlex.split(line))


def everything(world: World) -> dict[str, bytes | None]:
    """All that could be lost, here and in object storage."""
    found = contents(world.here)
    if "remote" in vars(world):
        found |= {f"remote/{stored.key}": world.remote.read(stored.key) for stored in world.remote.list("")}
    return found


#: What `stn` tells of its progress, and of a run that is not complete.
PROGRESS = re.compile(
    r"(training|counting|reducing|reading votes|re-deriving|counting again): \d+.*|incomplete: .*|\d+ of \d+: .*"
)

#: What only somebody with the source before them can make sense of.
INTERNAL = re.compile(r"Traceback|internal error|\b\w+(Error|Exception)\b|Arrow\w+|botocore|pyarrow")


def told(bad: Bad, printed: list[str], said: list[str]) -> list[str]:
    """The lines that tell what is wrong, of those on standard output and standard error, which must have its form."""
    match bad.told:
        case "error" | "no work":
            *progress, last = said
            assert printed == []
            assert last.startswith("error: ")
            assert all(PROGRESS.fullmatch(line) for line in progress)
            return [last]
        case "table":
            assert printed[0] == "run: tables"
            (last,) = said
            assert last.startswith("error: ")
            return [last]
        case "finding":
            assert printed[0] == "run: something is wrong"
            assert all(PROGRESS.fullmatch(line) for line in said)
            return [line for line in printed if line.startswith("  ")]
        case "fix":
            assert said == []
            assert all(re.match("ok  |FIX .*: ", line) for line in printed)
            return [line for line in printed if line.startswith("FIX ")]


@pytest.mark.parametrize("bad", TABLE, ids=[bad.name for bad in TABLE])
def test_bad_input_is_told_in_one_clear_line_and_nothing_is_lost(bad: Bad, world: World) -> None:
    bad.trouble(world)
    remote = world.remote.uri if "{remote}" in bad.line else ""
    before = everything(world)
    with bad.during(world):
        result = stn(bad.line.replace("{remote}", remote))
    after = everything(world)

    assert result.exit_code == CODES[bad.told], result.output
    printed, said = (text.replace(f"{world.here}/", "").splitlines() for text in (result.stdout, result.stderr))
    says, lines = bad.says.replace("{remote}", remote), told(bad, printed, said)
    assert any(says in line for line in lines), result.output
    assert not [line for line in lines if INTERNAL.search(line.replace(says, ""))]
    assert not any(secret in result.output for secret in (SECRET_KEY, KEY, PASSWORD))
    changed = {name for name in before.keys() | after.keys() if before.get(name, b"-") != after.get(name, b"-")}
    assert changed == bad.leaves


#: Lines of the table, without what is bad in them.
GOOD = (
    "init my.yaml",
    "completion bash",
    "plan job.yaml",
    "plan job.yaml --set dataset.path=mnist --limit 5",
    "certify job.yaml",
    "certify job.yaml --retry-failed",
    "certify job.yaml --run {remote}",
    "status run",
    "status {remote}",
    "reduce run --radii 0,0.1",
    "report run --out out",
    "compare run {remote} --out out",
    "gc run --yes --older-than 0",
    "doctor job.yaml",
    "doctor job.yaml --set dataset.path=mnist --run {remote}",
    "verify run --recount 2",
    "schema",
    "schema --run run",
    "schema --run {remote} --json",
)


def test_where_all_is_well_the_same_commands_succeed(world: World) -> None:
    for line in GOOD:
        assert stn(line.replace("{remote}", world.remote.uri)).exit_code == 0, line


def test_the_table_is_long_and_knows_every_command() -> None:
    assert len(TABLE) >= 60
    assert len({bad.name for bad in TABLE}) == len(TABLE)
    assert {bad.line.split()[0] for bad in TABLE} == set(main.commands)
