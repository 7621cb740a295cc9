from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.errors import SpecError, TrainingError, TrainingInterrupted
from orchestrator.on_ray.cluster import Capacity
from orchestrator.spec import Spec, validate
from orchestrator.training import epochs
from orchestrator.training import train as training
from orchestrator.training.train import Trained, on_gpus, prepare, train_model
from tests.fault_proxy import Proxy, fault_proxy
from tests.networks import tiny
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.runs import NOISES, mnist_spec
from workers.images import open_dataset
from workers.settings import GaussianNoise, Mnist
from workers.store import LocalStore, S3Options, Store, StoreError, open_store
from workers.training import Epoch, TrainJob

#: What every training here comes to.
EPOCHS = (Epoch(1, 0.5, 0.75, None, None, 0.01, 2.5), Epoch(2, 0.25, 0.875, None, None, 0.001, 2.25))


@pytest.fixture
def places() -> list[Path | str]:
    """Where Ray Train is told to keep its own checkpoints."""
    return []


@pytest.fixture
def jobs(places: list[Path | str], monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Every job handed to Ray Train from here on; nothing is trained."""
    kept: list[TrainJob] = []

    def fit(job: TrainJob, *, storage: Path | str, observe: Callable[[tuple[Epoch, ...]], None], **_: Any) -> bytes:
        kept.append(job)
        places.append(storage)
        for number in range(len(EPOCHS)):
            observe(EPOCHS[: number + 1])
        observe(EPOCHS)  # as where a worker was lost before there was a checkpoint
        state = io.BytesIO()
        torch.save({"network": tiny().state_dict(), "epochs": [dataclasses.asdict(epoch) for epoch in EPOCHS]}, state)
        return state.getvalue()

    @contextlib.contextmanager
    def cluster(_: int) -> Iterator[Capacity]:
        yield Capacity(((2, 0),))

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "cluster", cluster)
    return kept


def spec(few_digits: Path | str, checkpoint: Path | str, noise: str = "plain", **training: Any) -> Spec:
    section = {"dataset": {"kind": "mnist", "path": str(few_digits), "split": "train"}, **training}
    model = {"name": "tests.networks:tiny", "checkpoint": str(checkpoint)}
    return validate(mnist_spec(Path("unused"), **NOISES[noise], model=model, training=section), "spec")


def run(asked: Spec) -> Trained:
    return train_model(prepare(asked), observe=lambda epoch: None, warn=lambda line: None)


@pytest.mark.parametrize("noise", NOISES)
def test_a_model_is_trained_under_the_noise_it_is_certified_under(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], noise: str
) -> None:
    asked = spec(few_digits, tmp_path / "model.pt", noise)
    assert run(asked).epoch == EPOCHS[-1]
    assert [job.noise for job in jobs] == [asked.noise]
    assert run(asked) == Trained(tmp_path / "model.pt", None)
    assert len(jobs) == 1


@pytest.mark.parametrize("noise", NOISES)
def test_a_training_sigma_is_gaussian_noise_whatever_is_certified(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], noise: str
) -> None:
    run(spec(few_digits, tmp_path / "model.pt", noise, sigma=0.3))
    assert jobs[0].noise == GaussianNoise(sigma=0.3)


@pytest.mark.parametrize("noise", ["plain", "sound"])
def test_checkpoints_of_gaussian_noise_are_known_as_they_ever_were(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], noise: str
) -> None:
    asked = spec(few_digits, tmp_path / "model.pt", noise, gamma=2)
    assert asked.training is not None
    run(asked)
    # As the version before noise had kinds made it.
    settings = {
        "model": {"name": "tests.networks:tiny", "normalization": None, "num_classes": None},
        "training": {
            "method": "stn",
            "dataset": {"every": 1, "limit": None, "kind": "mnist", "split": "train"},
            "sigma": None,
            "gamma": 2.0,
            "epochs": 10,
            "batch_size": 128,
            "learning_rate": 0.001,
            "weight_decay": 0.0,
            "seed": 0,
            "precision": "auto",
        },
        "sigma": 0.2,
        "gamma": 2.0,
        "dataset_sha256": open_dataset(Mnist(kind="mnist", path=few_digits, split="train")).fingerprint,
    }
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["training"] == settings
    assert content["training_sha256"] == hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def test_a_checkpoint_of_other_noise_is_not_taken_for_this_one(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob]
) -> None:
    for trained in NOISES:
        path = tmp_path / f"{trained}.pt"
        run(spec(few_digits, path, trained))
        for asked in NOISES:
            if asked == trained or {asked, trained} == {"plain", "sound"}:  # trained alike
                assert run(spec(few_digits, path, asked)).epoch is None
            else:
                with pytest.raises(SpecError, match="trained with other settings"):
                    run(spec(few_digits, path, asked))
    assert len(jobs) == len(NOISES)


def test_ray_trains_beside_the_checkpoint(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], places: list[Path | str]
) -> None:
    run(spec(few_digits, tmp_path / "model.pt"))
    assert places == [tmp_path / "training"]


def test_the_figures_of_epochs_are_beside_the_checkpoint(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Epoch, int]] = []

    def observe(epoch: Epoch) -> None:  # each is there before it is told of
        seen.append((epoch, pq.read_metadata(tmp_path / "model.epochs.parquet").num_rows))

    asked = spec(few_digits, tmp_path / "model.pt")
    train_model(prepare(asked), observe=observe, warn=lambda line: None)
    assert seen == [(EPOCHS[0], 1), (EPOCHS[1], 2)]
    assert pq.read_table(tmp_path / "model.epochs.parquet").to_pylist() == [
        dataclasses.asdict(epoch) for epoch in EPOCHS
    ]
    content = epochs.of_checkpoint(tmp_path / "model.pt", S3Options())
    assert content is not None
    digest = torch.load(tmp_path / "model.pt", weights_only=True)["training_sha256"]
    assert epochs.decode(content) == (EPOCHS, digest)


@pytest.mark.parametrize("trouble", ["no table", "another training's", "junk", "another kind of checkpoint"])
def test_figures_of_another_training_are_not_taken_for_a_checkpoints(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], trouble: str
) -> None:
    run(spec(few_digits, tmp_path / "model.pt"))
    table = tmp_path / "model.epochs.parquet"
    match trouble:
        case "no table":
            table.unlink()
        case "another training's":
            table.write_bytes(epochs.encode(EPOCHS, "0" * 64))
        case "junk":
            table.write_bytes(b"junk")
        case "another kind of checkpoint":
            torch.save([1, 2], tmp_path / "model.pt")
    assert epochs.of_checkpoint(tmp_path / "model.pt", S3Options()) is None


@pytest.mark.parametrize("content", [b"", b"accuracy: 0.93", None], ids=["empty", "text", "folder"])
def test_what_is_no_checkpoint_of_ours_is_left_alone(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], content: bytes | None
) -> None:
    path = tmp_path / "model.pt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SpecError, match="exists and is no checkpoint of `stn train`"):
        run(spec(few_digits, path))
    assert jobs == []


def test_a_checkpoint_that_would_be_read_as_another_format_is_refused(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob]
) -> None:
    with pytest.raises(SpecError, match=r"model\.safetensors: .* name it \.pt"):
        run(spec(few_digits, tmp_path / "model.safetensors"))
    assert jobs == []


# --- Object storage ------------------------------------------------------------------------------------------------


@pytest.fixture
def uri(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(object_store: ObjectStore, uri: str) -> Iterator[Proxy]:
    with fault_proxy(object_store.url) as running:
        yield running


def in_bucket(spec: Spec, endpoint: str) -> Spec:
    return spec.model_copy(update={"store": spec.store.model_copy(update={"endpoint_url": endpoint})})


def test_data_and_checkpoint_may_be_in_object_storage(
    few_digits: Path,
    tmp_path: Path,
    object_store: ObjectStore,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    jobs: list[TrainJob],
    places: list[Path | str],
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store: Store = open_store(uri, S3Options(endpoint_url=object_store.url))
    for found in LocalStore(few_digits).list(""):
        store.create(f"data/{found.key}", LocalStore(few_digits).read(found.key))
    asked = in_bucket(spec(f"{uri}/data", f"{uri}/models/model.pt"), object_store.url)
    assert run(asked) == Trained(f"{uri}/models/model.pt", EPOCHS[-1])
    assert places == [f"{uri}/models/training"]
    assert jobs[0].storage == S3Options(endpoint_url=object_store.url)
    run(spec(few_digits, tmp_path / "model.pt"))
    # Where things are kept is no setting: a checkpoint may be moved between folder and bucket.
    assert store.read("models/model.pt") == (tmp_path / "model.pt").read_bytes()

    assert run(asked) == Trained(f"{uri}/models/model.pt", None)
    with pytest.raises(SpecError, match=r"model\.checkpoint s3://.* was trained with other settings"):
        run(in_bucket(spec(few_digits, f"{uri}/models/model.pt", seed=1), object_store.url))
    assert len(jobs) == 2


def test_a_checkpoint_that_lands_meanwhile_is_not_overwritten(
    few_digits: Path, uri: str, jobs: list[TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = spec(few_digits, f"{uri}/theirs.pt", seed=1)
    run(theirs)
    content = open_store(uri).read("theirs.pt")
    fit = training.fit

    def overtaken(*arguments: Any, **named: Any) -> bytes:
        open_store(uri).create("model.pt", content)
        return fit(*arguments, **named)

    monkeypatch.setattr(training, "fit", overtaken)
    with pytest.raises(SpecError, match="was trained with other settings"):
        run(spec(few_digits, f"{uri}/model.pt"))
    assert open_store(uri).read("model.pt") == content


def test_a_server_that_ignores_conditions_is_refused_before_anything_is_trained(
    few_digits: Path, uri: str, proxy: Proxy, jobs: list[TrainJob]
) -> None:
    proxy.decide = lambda request: "ignored condition" if request.conditional else None
    with pytest.raises(StoreError, match=r"ignores If-None-Match.*single_writer"):
        run(in_bucket(spec(few_digits, f"{uri}/model.pt"), proxy.url))
    assert jobs == []


def test_a_training_that_came_on_before_it_failed_goes_on_and_says_why(
    jobs: list[TrainJob], few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = training.fit
    failures = iter([TrainingInterrupted("training failed: a"), TrainingInterrupted("training failed: b")])

    def fit(job: TrainJob, **others: Any) -> bytes:
        content = fitted(job, **others)
        if (failure := next(failures, None)) is not None:
            raise failure
        return content

    monkeypatch.setattr(training, "fit", fit)
    seen: list[int] = []
    told: list[str] = []
    asked = prepare(spec(few_digits, tmp_path / "w.pt"))
    assert train_model(asked, observe=lambda epoch: seen.append(epoch.epoch), warn=told.append).epoch == EPOCHS[-1]
    assert len(jobs) == 3
    assert seen == [1, 2]
    assert told == [f"training failed: {why}; going on after its newest checkpoint" for why in "ab"]

    failures = iter([TrainingError("training failed: c")])
    with pytest.raises(TrainingError, match="training failed: c"):
        run(spec(few_digits, tmp_path / "other.pt"))
    assert len(jobs) == 4


def given(gpus: int, may_grow: bool = False) -> Capacity:
    """A head without GPUs, and a node with some."""
    return Capacity(((4, 0), (8, gpus)), may_grow)


@pytest.mark.parametrize(
    ("asked", "capacity", "expected"),
    [
        ({}, given(0), False),
        ({}, given(2), True),
        ({"workers": 2}, given(3), True),
        ({"workers": 4, "gpus_per_worker": 0}, given(3), False),
        ({"workers": {"min": 2, "max": 4}}, given(3), True),
        ({"workers": 4}, given(3, may_grow=True), True),
        ({"workers": 4}, given(0, may_grow=True), False),
        ({"workers": 4, "gpus_per_worker": 1}, given(0, may_grow=True), True),
        ({"workers": 4}, given(3), r"training\.workers is 4, and this machine has GPUs for 3: set it to that, or less"),
        ({"workers": {"min": 4, "max": 8}}, given(3), r"training\.workers is 4, .* GPUs for 3"),
        ({"gpus_per_worker": 1}, given(0), r"training\.gpus_per_worker asks for a GPU and this machine has none"),
    ],
)
def test_workers_have_a_gpu_each_or_none_has(
    few_digits: Path, asked: dict[str, Any], capacity: Capacity, expected: bool | str
) -> None:
    training = spec(few_digits, "w.pt", **asked).training
    assert training is not None
    if isinstance(expected, str):
        with pytest.raises(SpecError, match=expected):
            on_gpus(training, capacity)
    else:
        assert on_gpus(training, capacity) == expected


@pytest.mark.parametrize(
    ("asked", "capacity", "expected"),
    [
        ({"workers": {"min": 1, "max": 4}}, given(3), []),
        ({"workers": 2}, given(2, may_grow=True), []),
        (
            {"workers": {"min": 1, "max": 9}},
            given(0, may_grow=True),
            ["the cluster has no GPU now: training on CPUs; set training.gpus_per_worker=1 to wait for GPUs"],
        ),
        ({"workers": {"min": 1, "max": 9}, "gpus_per_worker": 0}, given(0, may_grow=True), []),
        (
            {"workers": 4},
            given(3, may_grow=True),
            ["the cluster has room for 3 workers with 2 CPUs and a GPU each: waiting until it has for 4"],
        ),
        (
            {"workers": 7, "gpus_per_worker": 0},
            given(3, may_grow=True),
            ["the cluster has room for 6 workers with 2 CPUs each: waiting until it has for 7"],
        ),
    ],
)
def test_nothing_is_waited_for_or_left_unused_in_silence(
    jobs: list[TrainJob],
    few_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    capacity: Capacity,
    expected: list[str],
) -> None:
    ready = prepare(spec(few_digits, tmp_path / "w.pt", **asked))
    told: list[str] = []
    monkeypatch.setattr(training, "cluster", lambda _: contextlib.nullcontext(capacity))
    train_model(ready, observe=lambda epoch: None, warn=told.append)
    assert told == expected


def test_fewer_gpus_than_workers_are_not_left_idle_in_silence(
    jobs: list[TrainJob], few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "cluster", lambda _: contextlib.nullcontext(given(3)))
    with pytest.raises(SpecError, match=r"training\.workers is 4, and this machine has GPUs for 3"):
        run(spec(few_digits, tmp_path / "w.pt", workers=4))
    assert jobs == []
