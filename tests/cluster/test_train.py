"""Training under Ray Train: killed and resumed, it ends with the weights of an undisturbed training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cluster.stn import end, run, start, wait_for, write_spec

pytestmark = pytest.mark.cluster

TRAINING = {
    "method": "stn",
    "gamma": 1.0,
    "dataset": {"kind": "digits", "split": "train", "limit": 1000},
    "epochs": 4,
    "batch_size": 50,
    "threads_per_worker": 1,
    "precision": "float32",
}


def spec_in(folder: Path, **training: object) -> Path:
    folder.mkdir()
    model = {"name": "mnist", "checkpoint": str(folder / "model.pt")}
    return write_spec(folder, "run", model=model, training={**TRAINING, **training})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "model.pt", weights_only=True)
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state


def test_killed_training_resumes_and_ends_the_same(tmp_path: Path) -> None:
    undisturbed = run("train", spec_in(tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "epoch 4/4" in undisturbed.stderr

    process = start("train", spec_in(tmp_path / "killed"))
    progress = tmp_path / "killed" / "training"
    wait_for(lambda: any(progress.glob("*/checkpoint_*/state.pt")) or process.poll() is not None, "checkpoint", 120)
    assert process.poll() is None, process.communicate()[1]
    end(process)
    assert not (tmp_path / "killed" / "model.pt").exists()

    resumed = run("train", tmp_path / "killed" / "run.yaml")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/4" not in resumed.stderr
    assert "epoch 4/4" in resumed.stderr
    expected, found = weights(tmp_path / "undisturbed"), weights(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    again = run("train", tmp_path / "killed" / "run.yaml")
    assert again.returncode == 0
    assert "already trained" in again.stdout
    other = run("train", tmp_path / "killed" / "run.yaml", "--set", "training.epochs=5")
    assert other.returncode == 2
    assert "was trained with other settings" in other.stderr


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    for workers in (1, 2):
        done = run("train", spec_in(tmp_path / str(workers), workers=workers, epochs=1))
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    # Dropout masks differ between one worker and two; the data, its order and its noise do not.
    assert all((one[name] - two[name]).abs().max() < 0.05 for name in one)
