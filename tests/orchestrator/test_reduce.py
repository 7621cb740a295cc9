from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import RunError, SpecError
from orchestrator.reduce import CERTIFICATES_SCHEMA, CURVES_SCHEMA, View, check_against, published, reduce_run
from orchestrator.report import load_run
from orchestrator.runs import counted_shards, read_plan, read_shard
from stn_core import certify
from tests.orchestrator.runs import MadeRun
from workers import counts_table, layout
from workers.store import LocalStore

EVERYTHING = View(
    certificates=("renyi", "neyman_pearson_one_class", "neyman_pearson_two_class"),
    protocols=("paper", "paper_two", "split", "label"),
    alpha=0.01,
    radii=(0.0, 0.05, 0.1, 0.2, 0.4),
)
RENYI = View(("renyi",), ("paper",), 0.05, (0.0, 0.1))


def certificates(store: LocalStore, folder: str = "") -> pd.DataFrame:
    return pd.read_parquet(Path(store.uri) / folder / "certificates.parquet")


def outputs(store: LocalStore) -> set[str]:
    root = Path(store.uri)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*.parquet")}
    return {name for name in files if not name.startswith(layout.COUNTS)}


# --- Certificates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", EVERYTHING.protocols)
@pytest.mark.parametrize("certificate", EVERYTHING.certificates)
def test_every_row_is_what_certify_says_of_the_votes(
    made: MadeRun, tmp_path: Path, certificate: str, protocol: str
) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, dataclasses.replace(EVERYTHING, certificates=(certificate,), protocols=(protocol,)))
    rows = made.rows
    labels = rows["label"].to_numpy()
    expected = certify(
        counts_table.dense(rows["estimation"], 10),
        counts_table.dense(rows["selection"], 10),
        labels,
        certificate=certificate,
        protocol=protocol,
        sigma=0.2,
        alpha=0.01,
    )
    found = pq.read_table(tmp_path / "certificates.parquet")
    assert found.schema.remove_metadata().equals(CERTIFICATES_SCHEMA)
    assert found["index"].to_pylist() == list(range(20))
    assert found["key"].equals(rows["key"])
    assert found["label"].to_pylist() == labels.tolist()
    assert np.array_equal(found["radius"].to_numpy(), expected.radius)
    assert np.array_equal(found["p1_lower"].to_numpy(), expected.p1_lower)
    assert np.array_equal(found["p2_upper"].to_numpy(), expected.p2_upper)
    predictions = [
        None if abstain else int(c) for c, abstain in zip(expected.prediction, expected.abstain, strict=True)
    ]
    assert found["prediction"].to_pylist() == predictions
    correct = [prediction == label for prediction, label in zip(predictions, labels, strict=True)]
    assert found["correct"].to_pylist() == correct
    assert set(found["draws"].to_pylist()) == {64}
    for name, value in (("certificate", certificate), ("protocol", protocol), ("alpha", 0.01), ("norm", "l2")):
        assert set(found[name].to_pylist()) == {value}


def test_an_image_that_abstains_predicts_nothing_and_has_no_radius(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, RENYI)
    rows = certificates(store)
    abstaining = rows["prediction"].isna()
    assert 0 < abstaining.sum() < 20
    assert set(rows[abstaining]["radius"]) == {0.0}
    assert not rows[abstaining]["correct"].any()
    assert (rows[~abstaining]["radius"] > 0).all()
    assert (rows[~abstaining]["p1_lower"] > rows[~abstaining]["p2_upper"]).all()


def test_each_combination_of_certificate_and_protocol_has_all_images(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduced = reduce_run(store, made.plan, EVERYTHING)
    sizes = certificates(store).groupby(["certificate", "protocol"]).size()
    assert len(sizes) == 12
    assert set(sizes) == {20}
    assert reduced.curves.num_rows == 12 * 5


# --- Curves --------------------------------------------------------------------------------------------------------


def naive_certified(rows: pd.DataFrame, radius: float) -> int:
    return sum(
        1
        for row in rows.itertuples()
        if not pd.isna(row.prediction) and row.prediction == row.label and row.radius >= radius
    )


@pytest.mark.parametrize("name", ["made", "with_failures"])
def test_curves_count_the_certificates_one_by_one(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run: MadeRun = request.getfixturevalue(name)
    store = run.write(tmp_path)
    reduce_run(store, run.plan, EVERYTHING)
    curves = pd.read_parquet(tmp_path / "curves.parquet")
    assert list(curves.columns) == CURVES_SCHEMA.names
    by_line = dict(iter(certificates(store).groupby(["certificate", "protocol"])))
    seen = set()
    for row in curves.itertuples():
        rows = by_line[row.certificate, row.protocol]
        assert row.certified == naive_certified(rows, row.radius)
        assert row.certified_accuracy == row.certified / run.plan.images
        assert row.abstained == (rows["prediction"].isna() & (rows["draws"] > 0)).sum()
        assert row.images == run.plan.images
        if row.protocol == "paper":
            assert row.paper_accuracy == pytest.approx(0.99 * row.certified_accuracy)
        else:
            assert np.isnan(row.paper_accuracy)
        seen.add(row.certified)
    assert len(seen) > 1


def test_the_summary_counts_images_majorities_and_invalid_votes(made: MadeRun, tmp_path: Path) -> None:
    summary = reduce_run(made.write(tmp_path), made.plan, RENYI).summary
    votes = counts_table.dense(made.rows["estimation"], 10)
    majority = int((votes.argmax(axis=1) == made.rows["label"].to_numpy()).sum())
    assert dataclasses.astuple(summary) == (20, 20, 0, 0, majority, 0)
    assert summary.complete


def test_progress_is_told_of_each_shard(made: MadeRun, tmp_path: Path) -> None:
    told: list[int] = []
    reduce_run(made.write(tmp_path, [0, 2]), made.plan, RENYI, told.append)
    assert told == [1, 1]


# --- Incomplete runs -----------------------------------------------------------------------------------------------


def test_an_incomplete_run_publishes_below_partial_only(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0, 2])
    reduced = reduce_run(store, made.plan, RENYI)
    assert outputs(store) == {"partial/certificates.parquet", "partial/curves.parquet"}
    assert not reduced.summary.complete
    assert (reduced.summary.counted, reduced.summary.missing) == (12, 8)


def test_missing_images_stay_in_the_denominator(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0, 2])
    curves = reduce_run(store, made.plan, RENYI).curves.to_pylist()
    rows = certificates(store, "partial")
    assert rows["index"].tolist() == [*range(8), *range(16, 20)]
    assert curves[0]["certified"] > 0
    for row in curves:
        assert (row["images"], row["missing"]) == (20, 8)
        assert row["certified"] == naive_certified(rows, row["radius"])
        assert row["certified_accuracy"] == row["certified"] / 20


def test_a_run_without_any_votes_certifies_nothing_of_everything(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [])
    reduced = reduce_run(store, made.plan, RENYI)
    assert reduced.summary.missing == 20
    assert [row["certified_accuracy"] for row in reduced.curves.to_pylist()] == [0, 0]
    assert len(certificates(store, "partial")) == 0


def test_partial_outputs_vanish_when_the_run_is_complete(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0, 2])
    reduce_run(store, made.plan, RENYI)
    made.commit(store, 1)
    assert reduce_run(store, made.plan, RENYI).summary.complete
    assert outputs(store) == {"certificates.parquet", "curves.parquet"}


def test_a_run_that_loses_a_shard_is_no_longer_shown_as_complete(made: MadeRun, tmp_path: Path) -> None:
    # As after the advice to delete a damaged shard.
    store = made.write(tmp_path)
    reduce_run(store, made.plan, RENYI)
    store.delete(layout.counts(1))
    reduced = reduce_run(store, made.plan, RENYI)
    assert not reduced.summary.complete
    assert load_run(store).reduced.summary == reduced.summary


def test_objects_that_are_no_shards_of_the_plan_are_passed_over(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    store.create(layout.counts(3), b"a shard that the plan has not")
    store.create(f"{layout.COUNTS}notes.txt", b"")
    assert counted_shards(store, made.plan) == [0, 1, 2]
    assert reduce_run(store, made.plan, RENYI).summary.complete


# --- Images that could not be counted ------------------------------------------------------------------------------


def test_an_image_with_an_error_is_not_certified_and_stays_in_the_denominator(
    with_failures: MadeRun, tmp_path: Path
) -> None:
    store = with_failures.write(tmp_path)
    reduced = reduce_run(store, with_failures.plan, EVERYTHING)
    summary = reduced.summary
    assert (summary.images, summary.counted, summary.failed, summary.missing) == (8, 6, 2, 0)
    rows = certificates(store)
    broken = rows[rows["index"].isin([1, 6])]
    assert len(broken) == 2 * 12
    assert broken["prediction"].isna().all()
    assert not broken["correct"].any()
    assert set(broken["radius"]) == set(broken["draws"]) == set(broken["p1_lower"]) == {0}
    assert set(broken["p2_upper"]) == {1}
    assert (rows[~rows["index"].isin([1, 6])]["draws"] == 64).all()
    for row in reduced.curves.to_pylist():
        assert (row["images"], row["failed"]) == (8, 2)
        assert row["certified"] <= 6


@pytest.mark.parametrize("label", [-1, 10, 10**6])
def test_a_label_outside_the_classes_is_not_certified_and_does_not_disturb_the_others(
    made: MadeRun, tmp_path: Path, label: int
) -> None:
    rows = made.tables[0].to_pylist()
    nothing = {"selection": [], "estimation": [], "selection_draws": 0, "draws": 0}
    rows[0].update(nothing, label=label, error=f"label {label} lies outside")
    tables = [pa.Table.from_pylist(rows, schema=made.tables[0].schema), *made.tables[1:]]
    whole = reduce_run(made.write(tmp_path / "whole"), made.plan, EVERYTHING)
    store = MadeRun(made.plan, tables).write(tmp_path / "broken")
    broken = reduce_run(store, made.plan, EVERYTHING)
    assert broken.summary.failed == 1
    assert not certificates(store).query("index == 0")["correct"].any()
    for before, after in zip(whole.curves.to_pylist(), broken.curves.to_pylist(), strict=True):
        assert before["certified"] - 1 <= after["certified"] <= before["certified"]
    pd.testing.assert_frame_equal(
        certificates(store).query("index != 0"), certificates(LocalStore(tmp_path / "whole")).query("index != 0")
    )


def test_votes_lost_to_nan_stay_in_the_trials(with_nan: MadeRun, tmp_path: Path) -> None:
    store = with_nan.write(tmp_path)
    lost = with_nan.rows["invalid"].to_numpy()
    assert reduce_run(store, with_nan.plan, RENYI).summary.invalid_votes == lost.sum() > 0
    found = certificates(store)
    votes = counts_table.dense(with_nan.rows["estimation"], 10)
    expected, optimistic = (
        certify(votes, certificate="renyi", protocol="paper", sigma=0.2, alpha=0.05, draws=draws)
        for draws in (64, None)
    )
    assert np.array_equal(found["p1_lower"], expected.p1_lower)
    assert (expected.p1_lower[lost > 0] < optimistic.p1_lower[lost > 0]).all()


# --- Damaged runs --------------------------------------------------------------------------------------------------


def rewritten(made: MadeRun, shard: int, **columns: Any) -> bytes:
    table = made.tables[shard]
    for name, values in columns.items():
        number = table.schema.get_field_index(name)
        table = table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type))
    return counts_table.encode(table, {})


def damages(made: MadeRun) -> dict[str, bytes]:
    good = counts_table.encode(made.tables[1], {})
    foreign = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), foreign)
    curves = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"stn": b'{"schema_version": 1}'}), curves)
    return {
        "cut short": good[:-20],
        "empty": b"",
        "junk": b"junk" * 100,
        "another table": foreign.getvalue(),
        "another table of ours": curves.getvalue(),
        "another shard's images": counts_table.encode(made.tables[0], {}),
        "too few images": counts_table.encode(made.tables[1].slice(1), {}),
        "a class the model has not": rewritten(made, 1, estimation=[[{"class": 10, "votes": 64}]] * 8),
        "more votes than draws": rewritten(made, 1, draws=[1] * 8),
        "negative votes": rewritten(made, 1, estimation=[[{"class": 1, "votes": -64}]] * 8),
    }


@pytest.mark.parametrize(
    "damage",
    [
        "cut short",
        "empty",
        "junk",
        "another table",
        "another table of ours",
        "another shard's images",
        "too few images",
        "a class the model has not",
        "more votes than draws",
        "negative votes",
    ],
)
def test_a_damaged_shard_is_a_run_error_naming_the_file(made: MadeRun, tmp_path: Path, damage: str) -> None:
    store = made.write(tmp_path, [0, 2])
    store.create(layout.counts(1), damages(made)[damage])
    with pytest.raises(RunError) as caught:
        reduce_run(store, made.plan, RENYI)
    assert str(tmp_path / layout.counts(1)) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_shard_leaves_what_was_published(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, RENYI)
    before = {name: (tmp_path / name).read_bytes() for name in outputs(store)}
    store.replace(layout.counts(1), b"junk")
    with pytest.raises(RunError):
        reduce_run(store, made.plan, EVERYTHING)
    assert {name: (tmp_path / name).read_bytes() for name in outputs(store)} == before


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at") as caught:
        read_plan(LocalStore(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_the_plan_is_read_back(made: MadeRun, tmp_path: Path) -> None:
    assert read_plan(made.write(tmp_path)) == made.plan


def test_a_shard_is_read_back_dense(made: MadeRun, tmp_path: Path) -> None:
    votes = read_shard(made.write(tmp_path), made.plan, 2)
    assert np.array_equal(votes.estimation, counts_table.dense(made.tables[2]["estimation"], 10))
    assert np.array_equal(votes.selection, counts_table.dense(made.tables[2]["selection"], 10))
    assert votes.labels.tolist() == made.tables[2]["label"].to_pylist()
    assert votes.draws.tolist() == [64] * 4


# --- Views ---------------------------------------------------------------------------------------------------------


def test_the_specs_view_is_what_it_asks_for(made: MadeRun) -> None:
    view = View.of(made.plan.spec)
    assert view == View(EVERYTHING.certificates, ("paper",), 0.05, (0.0, 0.05, 0.1, 0.2, 0.4))
    assert View.from_json(json.loads(json.dumps(dataclasses.asdict(view)))) == view


def test_another_alpha_gives_other_radii_from_the_same_votes(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, RENYI)
    loose = certificates(store)
    reduce_run(store, made.plan, dataclasses.replace(RENYI, alpha=0.001))
    strict = certificates(store)
    assert (strict["radius"] <= loose["radius"]).all()
    assert (strict["radius"] < loose["radius"]).any()
    assert set(strict["alpha"]) == {0.001}


def test_reducing_again_replaces_what_was_published(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, EVERYTHING)
    reduce_run(store, made.plan, RENYI)
    assert set(certificates(store)["certificate"]) == {"renyi"}
    assert len(certificates(store)) == 20
    found = published(store)
    assert found is not None
    assert found.view == RENYI


def test_reducing_twice_gives_the_same_tables(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, EVERYTHING)
    before = {name: pq.read_table(tmp_path / name) for name in outputs(store)}
    reduce_run(store, made.plan, EVERYTHING)
    assert all(pq.read_table(tmp_path / name).equals(table, check_metadata=True) for name, table in before.items())


def test_split_needs_a_run_with_selection_votes(one_phase: MadeRun, tmp_path: Path) -> None:
    store = one_phase.write(tmp_path)
    with pytest.raises(SpecError, match="'split' needs selection votes"):
        reduce_run(store, one_phase.plan, dataclasses.replace(RENYI, protocols=("paper", "split")))
    assert outputs(store) == set()
    assert reduce_run(store, one_phase.plan, RENYI).summary.complete


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"certificates": ("renyii",)}, "'renyii', did you mean 'renyi'"),
        ({"protocols": ("papre",)}, "'papre', did you mean 'paper'"),
        ({"alpha": 0.0}, "alpha must lie inside"),
        ({"alpha": 1.0}, "alpha must lie inside"),
        ({"alpha": -0.1}, "alpha must lie inside"),
        ({"alpha": float("nan")}, "alpha must lie inside"),
    ],
)
def test_a_view_that_cannot_be_computed_is_refused(made: MadeRun, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        check_against(made.plan, dataclasses.replace(RENYI, **changes))
    assert len(str(caught.value).splitlines()) == 1


# --- What was published --------------------------------------------------------------------------------------------


def test_published_is_what_was_reduced(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    assert published(store) is None
    reduced = reduce_run(store, made.plan, EVERYTHING)
    found = published(store)
    assert found is not None
    assert (found.view, found.summary) == (reduced.view, reduced.summary)
    assert found.curves.equals(reduced.curves)
    assert published(store, partial=True) is None


def test_a_partial_view_is_published_apart(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [1])
    reduced = reduce_run(store, made.plan, RENYI)
    assert published(store) is None
    found = published(store, partial=True)
    assert found is not None
    assert found.summary == reduced.summary


@pytest.mark.parametrize(
    ("metadata", "says"),
    [(None, "damaged"), ({}, "damaged"), ({"schema_version": 1}, "damaged"), ({"schema_version": 2}, "newer version")],
)
def test_published_curves_that_are_not_ours_are_refused(
    made: MadeRun, tmp_path: Path, metadata: Any, says: str
) -> None:
    store = made.write(tmp_path)
    reduced = reduce_run(store, made.plan, RENYI)
    sink = io.BytesIO()
    stored = None if metadata is None else {b"stn": json.dumps(metadata).encode()}
    pq.write_table(reduced.curves.replace_schema_metadata(stored), sink)
    store.replace(layout.CURVES, sink.getvalue())
    with pytest.raises(RunError, match=says) as caught:
        published(store)
    assert "curves.parquet" in str(caught.value)


def test_published_curves_that_are_no_parquet_are_refused(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    store.replace(layout.CURVES, b"junk")
    with pytest.raises(RunError, match=r"curves\.parquet is damaged"):
        published(store)
