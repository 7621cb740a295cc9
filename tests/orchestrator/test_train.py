from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import train
from orchestrator.cluster import Capacity
from orchestrator.errors import SpecError
from orchestrator.spec import Spec, validate
from orchestrator.train import Trained, train_model
from tests.networks import tiny
from tests.orchestrator.runs import NOISES, mnist_spec
from workers.images import open_dataset
from workers.settings import GaussianNoise, Mnist
from workers.training import STATE, Epoch, TrainJob


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Every job handed to Ray Train from here on; nothing is trained."""
    kept: list[TrainJob] = []

    def fit(job: TrainJob, **_: Any) -> tuple[Path, Epoch]:
        kept.append(job)
        torch.save({"network": tiny().state_dict()}, tmp_path / STATE)
        return tmp_path / STATE, Epoch(1, 0.5)

    @contextlib.contextmanager
    def cluster(_: int) -> Iterator[Capacity]:
        yield Capacity(2, 0)

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "cluster", cluster)
    return kept


def spec(few_digits: Path, checkpoint: Path, noise: str = "plain", **training: Any) -> Spec:
    section = {"dataset": {"kind": "mnist", "path": str(few_digits), "split": "train"}, **training}
    model = {"name": "tests.networks:tiny", "checkpoint": str(checkpoint)}
    return validate(mnist_spec(few_digits, **NOISES[noise], model=model, training=section), "spec")


def run(asked: Spec) -> Trained:
    return train_model(asked, observe=lambda epoch: None)


@pytest.mark.parametrize("noise", NOISES)
def test_a_model_is_trained_under_the_noise_it_is_certified_under(
    few_digits: Path, tmp_path: Path, jobs: list[TrainJob], noise: str
) -> None:
    asked = spec(few_digits, tmp_path / "model.pt", noise)
    assert run(asked).epoch == Epoch(1, 0.5)
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
