"""The main job on a real cluster: the same votes however the work is cut, and nothing to do when it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster.stn import counts, run, shards, write_spec


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run: one actor, shards of 64 images."""
    folder = tmp_path_factory.mktemp("reference")
    spec = write_spec(folder, "one", resources={"actors": 1, "shard_size": 64})
    done = run("certify", spec)
    assert done.returncode == 0, done.stderr
    return folder / "one"


def test_votes_do_not_depend_on_actors_and_shards(reference: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "three", resources={"actors": 3, "shard_size": 7})
    done = run("certify", spec, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards_counted"] == 14
    assert len(shards(reference)) == 2
    assert counts(tmp_path / "three").equals(counts(reference))


def test_pandas_reads_every_table_without_our_code(reference: Path) -> None:
    votes = pd.read_parquet(reference / "counts")
    assert list(votes["index"]) == list(range(96))
    assert votes["estimation"].map(lambda row: sum(entry["votes"] for entry in row)).eq(60).all()
    assert votes["selection"].map(lambda row: sum(entry["votes"] for entry in row)).eq(20).all()
    certificates = pd.read_parquet(reference / "certificates.parquet")
    curves = pd.read_parquet(reference / "curves.parquet")
    for (name, radius), accuracy in curves.set_index(["certificate", "radius"])["certified_accuracy"].items():
        rows = certificates[certificates["certificate"] == name]
        assert accuracy == (rows["correct"] & (rows["radius"] >= radius)).sum() / 96


def test_complete_run_is_left_alone_and_says_so(reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    done = run("certify", reference.parent / "one.yaml")
    assert done.returncode == 0
    assert "already complete, nothing to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


def test_different_spec_on_an_existing_run_is_refused_with_a_diff(reference: Path) -> None:
    done = run("certify", reference.parent / "one.yaml", "--set", "noise.sigma=0.6", "--set", "sampling.draws=61")
    assert done.returncode == 2
    assert "noise.sigma: the run has 0.5, asked 0.6" in done.stderr
    assert "sampling.draws: the run has 60, asked 61" in done.stderr


def test_broken_images_are_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (28, 28), (60 * i, 10, 200)).save(tmp_path / "images" / label / f"{i}.png")
    (tmp_path / "images" / "a" / "2.png").write_bytes(b"not an image")
    spec = write_spec(
        tmp_path,
        "broken",
        dataset={"kind": "image_folder", "path": str(tmp_path / "images")},
        model={"name": "tests.networks:tiny_rgb", "num_classes": 10},
    )
    done = run("certify", spec)
    assert done.returncode == 3
    assert "of 8 images 7 counted, 1 failed, 0 missing" in done.stderr
    assert "Traceback" not in done.stderr
    votes = pd.read_parquet(tmp_path / "broken" / "counts")
    assert votes[votes["error"].notna()]["index"].tolist() == [2]
    curves = pd.read_parquet(tmp_path / "broken" / "curves.parquet")
    assert curves["images"].eq(8).all()
    assert curves["failed"].eq(1).all()


def test_workers_with_other_weights_than_planned_count_nothing(tmp_path: Path) -> None:
    done = run("certify", write_spec(tmp_path, "random", model={"name": "tests.networks:unseeded"}))
    assert done.returncode == 3
    assert "model's weights that this worker sees is not the one planned" in done.stderr
    assert shards(tmp_path / "random") == []


def test_workers_that_cannot_start_fail_loudly(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "deaf", model={"name": "tests.networks:only_in_the_driver"})
    done = run("certify", spec)
    assert done.returncode == 3
    assert "workers in a row died while starting" in done.stderr
    assert "refuses to live in a worker" in done.stderr
    assert "Traceback" not in done.stderr
