from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from orchestrator.planning.resolve import resolve
from orchestrator.progress import Meter
from orchestrator.reducing.runs import CountRows
from orchestrator.spec import validate
from orchestrator.upkeep.recount import differences, recount
from tests.orchestrator.runs import NOISES, MadeRun, mnist_spec
from tests.workers.samples import write_mnist
from workers import counts_table, layout


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runs of these tests were counted: on a GPU near-ties could come out otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("noise", NOISES)
def test_images_counted_again_have_the_same_votes(by_noise: dict[str, MadeRun], tmp_path: Path, noise: str) -> None:
    made = by_noise[noise]
    found = recount(made.write(tmp_path), made.plan, 6, seed=1)
    assert (found.seed, found.findings) == (1, ())
    assert len(set(found.images)) == 6
    assert set(found.images) <= set(made.plan.indices)


def test_the_seed_chooses_and_no_image_is_left_out(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    assert recount(store, made.plan, 5, seed=1).images == recount(store, made.plan, 5, seed=1).images
    assert recount(store, made.plan, 5, seed=1).images != recount(store, made.plan, 5, seed=2).images
    assert set(recount(store, made.plan, 100, seed=3).images) == set(range(20))


def test_images_without_votes_are_not_chosen(made: MadeRun, with_failures: MadeRun, tmp_path: Path) -> None:
    store = with_failures.write(tmp_path / "failures")
    assert set(recount(store, with_failures.plan, 100, seed=0).images) == {0, 2, 3, 4, 5, 7}
    store = made.write(tmp_path / "part", [0])
    store.create(layout.counts(1), b"junk")
    found = recount(store, made.plan, 100, seed=0)
    assert (set(found.images), found.findings) == (set(range(8)), ())


def test_as_many_threads_as_before(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    resources = made.plan.spec.resources.model_copy(update={"threads_per_actor": 3})
    plan = dataclasses.replace(made.plan, spec=made.plan.spec.model_copy(update={"resources": resources}))
    recount(made.write(tmp_path), plan, 1, seed=0)
    assert threads == [3, torch.get_num_threads()]


def test_it_tells_how_far_it_is(made: MadeRun, tmp_path: Path) -> None:
    stages: list[Any] = []

    class Noting:
        def advance(self, amount: int) -> None:
            stages.append(amount)

        def note(self, text: str) -> None:
            raise AssertionError(text)

    @contextmanager
    def observe(description: str, total: int, unit: str) -> Iterator[Meter]:
        stages.append((description, total, unit))
        yield Noting()

    recount(made.write(tmp_path), made.plan, 3, seed=0, observe=observe)
    assert stages == [("counting again", 3, "images"), 1, 1, 1]


# --- What is found -------------------------------------------------------------------------------------------------


def altered(table: pa.Table, **columns: list[Any]) -> pa.Table:
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.names.index(name), field, pa.array(values, field.type))
    return table


def test_a_vote_that_went_to_another_class(made: MadeRun, tmp_path: Path) -> None:
    votes = counts_table.dense(made.tables[2]["estimation"], 10)
    votes[1] = np.roll(votes[1], 1)
    moved = int(np.abs(votes - counts_table.dense(made.tables[2]["estimation"], 10)).sum()) // 2
    store = made.write(tmp_path, [0, 1])
    store.create(layout.counts(2), made.encoded(2, altered(made.tables[2], estimation=counts_table.sparse(votes))))
    (found,) = recount(store, made.plan, 20, seed=0).findings
    assert (found.kind, found.where) == ("recount", "image 17")
    version = made.plan.versions["torch"]
    assert found.text == (
        f"{moved} of 64 estimation draws came out otherwise; counted on cpu with torch {version}, again on cpu with "
        f"torch {version}: another device or version may flip near-ties, the same may not"
    )


def test_what_differs_between_two_counts(made: MadeRun) -> None:
    row = made.rows.slice(0, 1)
    label, (vote, *_) = row["label"][0].as_py(), row["selection"][0].as_py()

    def found(**columns: list[Any]) -> list[str]:
        return list(differences(CountRows(row, 10), CountRows(altered(row, **columns), 10)))

    assert found() == []
    assert found(label=[label + 1]) == [f"label was {label}, is {label + 1}"]
    assert found(key=[77]) == ["key was 0, is 77"]
    # Of 16 draws one fewer for a class: it is lost to NaN now, or went where it was not counted at all.
    fewer = [[{**vote, "votes": vote["votes"] - 1}, *row["selection"][0].as_py()[1:]]]
    assert found(selection=fewer, selection_invalid=[1]) == ["1 of 16 selection draws came out otherwise"]
    assert found(selection=fewer) == ["1 of 16 selection draws came out otherwise"]
    assert found(error=["broken"]) == ["cannot be counted any more: broken"]


def test_a_data_set_that_has_changed(few_digits: Path, made: MadeRun, tmp_path: Path) -> None:
    pixels = np.zeros((25, 28, 28), dtype=np.uint8)
    elsewhere = write_mnist(tmp_path / "other", (pixels, [0] * 25), (pixels, [0] * 25))
    spec = validate(mnist_spec(elsewhere), "spec")
    found = recount(made.write(tmp_path / "run"), dataclasses.replace(made.plan, spec=spec), 3, seed=0)
    ((finding,), images) = found.findings, found.images
    assert (finding.kind, finding.where, images) == ("recount", layout.PLAN, ())
    old, new = made.plan.dataset_sha256, resolve(spec).plan.dataset_sha256
    assert finding.text == (
        f"what the votes were counted from has changed: dataset.fingerprint was {old!r}, is {new!r}"
    )


def test_a_checkpoint_that_has_changed(made: MadeRun, tmp_path: Path) -> None:
    plan = dataclasses.replace(made.plan, model_sha256="of another one", shard_size=5)
    (finding,) = recount(made.write(tmp_path), plan, 3, seed=0).findings
    assert "has changed: model.weights was 'of another one', is " in finding.text


def test_a_data_set_that_is_not_here(made: MadeRun, tmp_path: Path) -> None:
    plan = dataclasses.replace(made.plan, spec=validate(mnist_spec(tmp_path / "nowhere"), "spec"))
    (finding,) = recount(made.write(tmp_path / "run"), plan, 3, seed=0).findings
    assert finding.text.startswith(f"what it names cannot be opened: no MNIST at dataset.path {tmp_path}/nowhere")


def test_an_image_that_cannot_be_read_for_now(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> pa.Table:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("orchestrator.upkeep.recount.count_images", fail)
    found = recount(made.write(tmp_path), made.plan, 2, seed=0)
    assert [finding.text.partition(";")[0] for finding in found.findings] == [
        "cannot be read: [Errno 5] Input/output error"
    ] * 2
