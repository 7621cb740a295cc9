"""Training under Ray Train: killed and resumed, it ends with the weights of an undisturbed training."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.cluster.stn import descendants, end, run, start, wait_for, write_spec
from tests.networks import tiny
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from tests.workers.samples import encoded, noise_image, write_mnist
from workers.images import open_dataset
from workers.settings import Digits
from workers.store import LocalStore, S3Options, Store, open_store

pytestmark = pytest.mark.timeout(600)

#: Ray Train looks every two seconds for what its workers report, and they wait.
QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}

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
    done = run("train", spec_in(folder, str(digits_in(folder))), **QUICK)
    assert done.returncode == 0, done.stderr
    assert "epoch 4/4" in done.stderr
    return folder


def newest_checkpoint(store: Store) -> str | None:
    """The last one that Ray Train knows of: files are there a moment before."""
    for snapshot in (found.key for found in store.list("training/") if found.key.endswith("manager_snapshot.json")):
        try:
            return str(json.loads(store.read(snapshot))["checkpoint_results"][-1]["checkpoint_dir_name"])
        except (ValueError, IndexError):  # half written, or none
            return None
    return None


def wait_for_checkpoint(process: subprocess.Popen[str], store: Store, after: str | None = None) -> None:
    """Until there is another checkpoint than ``after``."""
    wait_for(lambda: newest_checkpoint(store) not in (None, after) or process.poll() is not None, "checkpoint", 120)
    assert process.poll() is None, process.communicate()[1]


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {**found, "state_dict": None} == {**expected, "state_dict": None}
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(found["state_dict"][name], expected["state_dict"][name]) for name in found["state_dict"])


def test_killed_training_resumes_and_ends_the_same(undisturbed: Path, tmp_path: Path) -> None:
    spec, store = spec_in(tmp_path, str(digits_in(tmp_path))), LocalStore(tmp_path)
    process = start("train", spec, **QUICK)
    wait_for_checkpoint(process, store)
    end(process)
    assert not store.exists("model.pt")

    resumed = run("train", spec, **QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/4" not in resumed.stderr
    assert "epoch 4/4" in resumed.stderr
    assert_equal(trained(store), trained(LocalStore(undisturbed)))

    again = run("train", spec, **QUICK)
    assert again.returncode == 0
    assert "already trained" in again.stdout
    other = run("train", spec, "--set", "training.epochs=5")
    assert other.returncode == 2
    assert "was trained with other settings" in other.stderr


@pytest.mark.cluster
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
        done = run(
            *("train", spec, *(part for key, value in changes.items() for part in ("--set", f"{key}={value}"))), **QUICK
        )
        assert done.returncode == 0, done.stderr
    one, two = (trained(LocalStore(tmp_path / str(workers)))["state_dict"] for workers in (1, 2))
    for name, untrained in tiny().state_dict().items():
        moved = (one[name] - untrained).abs().max()
        assert (one[name] - two[name]).abs().max() < 0.05 * moved


@pytest.mark.cluster
def test_two_workers_stream_from_object_storage_and_lose_a_worker_and_the_driver(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual recipe for ImageNet, in small, adversarial: data, checkpoints and result in object storage."""
    for name, value in object_store.environment.items():
        if name != "AWS_ENDPOINT_URL":  # the spec says it
            monkeypatch.setenv(name, value)
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    options = S3Options(endpoint_url=object_store.url)
    store = open_store(uri, options)
    for number in range(40):
        image = noise_image(number, 40 + number) // 4 + 190 * (number % 2)
        store.create(f"train/{'ab'[number % 2]}/{number:02d}.jpeg", encoded(image.astype(np.uint8), "jpeg"))
    training = {
        "method": "madry",
        "attack": {"epsilon": 0.02, "steps": 2},
        "dataset": {"kind": "image_folder", "path": f"{uri}/train"},
        "random_crop": 32,
        "augment": {"flip": True},
        "optimizer": "sgd",
        "epochs": 2,
        "batch_size": 10,
        "threads_per_worker": 1,
        "precision": "float32",
    }

    def spec(name: str, **settings: object) -> Path:
        model = {"name": "shufflenet_v2_x0_5", "checkpoint": f"{uri}/{name}/model.pt", "num_classes": 2}
        place = {"run": "unused", "endpoint_url": object_store.url}
        return write_spec(tmp_path, name, model=model, training={**training, **settings}, store=place)

    straight = run("train", spec("straight", workers=2, loaders=1), **QUICK)
    assert straight.returncode == 0, straight.stderr
    undisturbed = open_store(f"{uri}/straight", options)
    figures = pq.read_table(io.BytesIO(undisturbed.read("model.epochs.parquet"))).to_pylist()
    assert [row["epoch"] for row in figures] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in figures)
    assert trained(undisturbed)["state_dict"]["conv1.1.num_batches_tracked"] == 8

    # Elastic: on one machine that is two workers each time.
    often = spec("often", workers={"min": 1, "max": 2}, loaders=0, checkpoint_s=0)
    disturbed = open_store(f"{uri}/often", options)
    process = start("train", often, **QUICK)
    try:
        wait_for_checkpoint(process, disturbed)
        workers = descendants(process, "ray::RayTrainWorker")
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{workers[1]}").exists(), "end of the other worker")
        wait_for_checkpoint(process, disturbed, newest_checkpoint(disturbed))
    finally:
        end(process)
    assert not disturbed.exists("model.pt")
    resumed = run("train", often, **QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(trained(disturbed), trained(undisturbed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["often.yaml", "straight.yaml"]
    for said in (resumed.stdout, resumed.stderr, *(repr(store.read(found.key)) for found in store.list(""))):
        assert SECRET_KEY not in said
