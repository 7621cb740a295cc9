"""Training under Ray Train: killed and resumed, it ends with the weights of an undisturbed training."""

from __future__ import annotations

import io
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.cluster.stn import end, run, start, wait_for, write_spec
from tests.networks import tiny
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from tests.workers.samples import encoded, noise_image, write_mnist
from workers.images import open_dataset
from workers.settings import Digits
from workers.store import LocalStore, S3Options, Store, open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAINING = {
    "method": "stn",
    "gamma": 1.0,
    "epochs": 4,
    "batch_size": 50,
    "threads_per_worker": 1,
    "precision": "float32",
}


def spec_in(folder: Path, place: str, **sections: object) -> Path:
    """A spec to train on the digits at ``place``, its checkpoint beside them."""
    model = {"name": "mnist", "checkpoint": f"{place}/model.pt"}
    dataset = {"kind": "mnist", "path": place, "split": "train"}
    return write_spec(folder, "run", **{"model": model, "training": {"dataset": dataset, **TRAINING}, **sections})


def digits_in(folder: Path) -> Path:
    """300 digits as MNIST's raw files."""
    digits = open_dataset(Digits(kind="digits", split="train"))
    split = np.stack([digits.read(index)[0] for index in range(300)]), digits.labels[:300].tolist()
    return write_mnist(folder, split, split)


def trained(store: Store) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(store.read("model.pt")), weights_only=True)
    return content


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training has come to its end by one call."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run("train", spec_in(folder, str(digits_in(folder))))
    assert done.returncode == 0, done.stderr
    assert "epoch 4/4" in done.stderr
    return folder


def killed_and_resumed(spec: Path, store: Store) -> subprocess.CompletedProcess[str]:
    """The call that brings a training to its end, after one that was killed once it had a checkpoint."""
    process = start("train", spec)

    def has_checkpoint() -> bool:
        """Ray Train knows of one: files are there a moment before."""
        snapshots = [found.key for found in store.list("training/") if found.key.endswith("manager_snapshot.json")]
        try:
            return any(json.loads(store.read(key))["checkpoint_results"] for key in snapshots)
        except ValueError:  # half written
            return False

    wait_for(lambda: has_checkpoint() or process.poll() is not None, "checkpoint", 120)
    assert process.poll() is None, process.communicate()[1]
    end(process)
    assert not store.exists("model.pt")

    resumed = run("train", spec)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/4" not in resumed.stderr
    assert "epoch 4/4" in resumed.stderr
    return resumed


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {**found, "state_dict": None} == {**expected, "state_dict": None}
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(found["state_dict"][name], expected["state_dict"][name]) for name in found["state_dict"])


def test_killed_training_resumes_and_ends_the_same(undisturbed: Path, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, str(digits_in(tmp_path)))
    killed_and_resumed(spec, LocalStore(tmp_path))
    assert_equal(trained(LocalStore(tmp_path)), trained(LocalStore(undisturbed)))

    again = run("train", spec)
    assert again.returncode == 0
    assert "already trained" in again.stdout
    other = run("train", spec, "--set", "training.epochs=5")
    assert other.returncode == 2
    assert "was trained with other settings" in other.stderr


def test_data_checkpoints_and_result_may_be_in_object_storage(
    undisturbed: Path, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        if name != "AWS_ENDPOINT_URL":  # the spec says it
            monkeypatch.setenv(name, value)
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    store = open_store(uri, S3Options(endpoint_url=object_store.url))
    for found in LocalStore(undisturbed).list("MNIST/"):
        store.create(found.key, LocalStore(undisturbed).read(found.key))
    spec = spec_in(tmp_path, uri, store={"run": "unused", "endpoint_url": object_store.url})
    resumed = killed_and_resumed(spec, store)
    assert_equal(trained(store), trained(LocalStore(undisturbed)))
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    for said in (resumed.stdout, resumed.stderr, *(repr(store.read(found.key)) for found in store.list(""))):
        assert SECRET_KEY not in said


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    """By a method that asks the network for slopes several times before each step, whose gradients are averaged."""
    place = str(digits_in(tmp_path))
    dataset = {"kind": "mnist", "path": place, "split": "train"}
    attack = {"norm": "l2", "epsilon": 1.0, "steps": 2}
    training = {**TRAINING, "method": "trades", "gamma": 6.0, "attack": attack, "dataset": dataset}
    spec = spec_in(tmp_path, place, model={"name": "tests.networks:tiny"}, training=training)
    for workers in (1, 2):
        checkpoint = tmp_path / str(workers) / "model.pt"
        changes = {"model.checkpoint": checkpoint, "training.workers": workers, "training.epochs": 1}
        done = run("train", spec, *(part for key, value in changes.items() for part in ("--set", f"{key}={value}")))
        assert done.returncode == 0, done.stderr
    one, two = (trained(LocalStore(tmp_path / str(workers)))["state_dict"] for workers in (1, 2))
    for name, untrained in tiny().state_dict().items():
        moved = (one[name] - untrained).abs().max()
        assert (one[name] - two[name]).abs().max() < 0.05 * moved


def test_two_workers_stream_a_folder_in_object_storage_into_adversarial_training(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's network, the usual recipe for ImageNet, in small."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    store = open_store(uri)
    for number in range(20):
        image = noise_image(number, 40 + number) // 4 + 190 * (number % 2)
        store.create(f"train/{'ab'[number % 2]}/{number:02d}.jpeg", encoded(image.astype(np.uint8), "jpeg"))
    training = {
        "method": "madry",
        "attack": {"epsilon": 0.02, "steps": 2},
        "dataset": {"kind": "image_folder", "path": f"{uri}/train"},
        "random_crop": 32,
        "loaders": 1,
        "augment": {"flip": True},
        "optimizer": "sgd",
        "epochs": 2,
        "batch_size": 10,
        "threads_per_worker": 1,
        "precision": "float32",
        "workers": 2,
    }
    model = {"name": "resnet18", "checkpoint": f"{uri}/model.pt", "num_classes": 2}
    done = run("train", write_spec(tmp_path, "run", model=model, training=training))
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stderr
    figures = pq.read_table(io.BytesIO(store.read("model.epochs.parquet"))).to_pylist()
    assert [row["epoch"] for row in figures] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in figures)
    weights = torch.load(io.BytesIO(store.read("model.pt")), weights_only=True)["state_dict"]
    assert weights["bn1.num_batches_tracked"] == 4
