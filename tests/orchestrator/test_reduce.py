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
from orchestrator.planning.plans import Plan
from orchestrator.reducing.reduction import check_against, reduce_run
from orchestrator.reducing.runs import counted_shards, read_plan, read_shard, read_votes
from orchestrator.reducing.tables import (
    CERTIFICATES_SCHEMA,
    CURVES_SCHEMA,
    SCHEMA_VERSION,
    Line,
    View,
    published,
    read_certificates,
)
from orchestrator.reporting.reported import load_run
from stn_core import CERTIFICATES, certify, interval_variates, population_interval, truly_certified
from tests.orchestrator.runs import NOISES, MadeRun, invented, plan_of, sharded
from workers import counts_table, layout
from workers.store import LocalStore

EVERYTHING = View(
    certificates=("renyi", "neyman_pearson_one_class", "neyman_pearson_two_class", "renyi_linf"),
    protocols=("paper", "paper_two", "split", "label"),
    alpha=0.01,
    radii=(0.0, 0.005, 0.05, 0.1, 0.2, 0.4),
    interval="clopper_pearson",
    beta=0.01,
)
RENYI = View(("renyi",), ("paper",), 0.05, (0.0, 0.1), "clopper_pearson", 0.01)


def randomised(view: View) -> View:
    return dataclasses.replace(view, interval="randomised")


def certificates(store: LocalStore, folder: str = "") -> pd.DataFrame:
    """In order of images, which is not the file's."""
    rows = pd.read_parquet(Path(store.uri) / folder / "certificates.parquet")
    return rows.sort_values("index", kind="stable", ignore_index=True)


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
        noise=made.plan.spec.noise.build(),
        alpha=0.01,
        dimension=784,
    )
    found = pq.read_table(tmp_path / "certificates.parquet").sort_by("index")
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
    for name, value in (
        ("certificate", certificate),
        ("protocol", protocol),
        ("alpha", 0.01),
        ("norm", "linf" if certificate.endswith("_linf") else "l2"),
        ("uniform", None),
    ):
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
    assert len(sizes) == len(EVERYTHING.lines) == 16
    assert set(sizes) == {20}
    assert reduced.curves.num_rows == 16 * 6


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
    assert dataclasses.astuple(summary) == (20, 20, 0, 0, majority, 0, 0, 0, 20 * (64 + 16))
    assert summary.complete


def test_progress_is_told_of_each_shard(made: MadeRun, tmp_path: Path) -> None:
    told: list[int] = []
    reduce_run(made.write(tmp_path, [0, 2]), made.plan, RENYI, told.append)
    assert told == [1, 1]


# --- What holds of all certificates together -----------------------------------------------------------------------


def guaranteed_by_hand(view: View, line: Line, certified: list[int], counted: int, images: int) -> list[float]:
    """The least fraction truly certified at each radius, point by point: beta is shared by all that is guaranteed."""
    rigorous = [other for other in view.lines if other.protocol != "paper_two"]
    share = view.beta / (len(rigorous) * len(view.radii))
    alpha = 0.0 if line.protocol == "exact" else view.alpha
    truly = [int(truly_certified(count, counted, alpha=alpha, beta=share)) for count in certified]
    return [max(truly[i:]) / images for i in range(len(truly))]


def population_by_hand(view: View, line: Line, certified: list[int], images: int, whole: int) -> list[float]:
    rigorous = [other for other in view.lines if other.protocol != "paper_two"]
    share = view.beta / (len(rigorous) * len(view.radii))
    alpha = 0.0 if line.protocol == "exact" else view.alpha
    least = [int(population_interval(count, images, whole, beta=share)[0]) for count in certified]
    truly = [int(truly_certified(count, whole, alpha=alpha, beta=share / 2)) for count in least]
    return [max(truly[i:]) / whole for i in range(len(truly))]


def by_line(curves: pa.Table) -> dict[Line, list[dict[str, Any]]]:
    found: dict[Line, list[dict[str, Any]]] = {}
    for row in curves.to_pylist():
        found.setdefault(Line(row["certificate"], row["protocol"]), []).append(row)
    return found


@pytest.mark.parametrize("beta", [0.01, 0.3])
@pytest.mark.parametrize("name", ["made", "with_failures", "of_a_part"])
def test_guaranteed_accuracy_is_what_is_truly_certified_everywhere_at_once(
    name: str, beta: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: MadeRun = request.getfixturevalue(name)
    view = dataclasses.replace(EVERYTHING, beta=beta)
    reduced = reduce_run(run.write(tmp_path), run.plan, view)
    below = 0
    for line, rows in by_line(reduced.curves).items():
        found = [row["guaranteed_accuracy"] for row in rows]
        assert {row["beta"] for row in rows} == {beta}
        if line.protocol == "paper_two":
            assert found == [None] * len(view.radii)
            continue
        certified = [row["certified"] for row in rows]
        assert found == guaranteed_by_hand(view, line, certified, reduced.summary.counted, run.plan.images)
        assert found == sorted(found, reverse=True)
        accuracies = [row["certified_accuracy"] for row in rows]
        assert all(least <= accuracy for least, accuracy in zip(found, accuracies, strict=True))
        below += found != accuracies
    assert below > 0


def test_what_is_guaranteed_at_a_radius_is_so_at_every_smaller_one(tmp_path: Path) -> None:
    run = invented(dataclasses.replace(plan_of(), dataset_size=120), sure=0.9)
    view = dataclasses.replace(RENYI, alpha=0.5, radii=tuple(i / 100 for i in range(60)))
    reduced = reduce_run(run.write(tmp_path), run.plan, view)
    certified = reduced.curves["certified"].to_pylist()
    found = reduced.curves["guaranteed_accuracy"].to_pylist()
    assert found == guaranteed_by_hand(view, Line("renyi", "paper"), certified, 120, 120)
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_only_guaranteed_lines_share_beta(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    alone = reduce_run(store, made.plan, EVERYTHING_BUT_TWO).curves
    with_two = by_line(reduce_run(store, made.plan, EVERYTHING).curves)
    for line, rows in by_line(alone).items():
        assert rows == with_two[line]


EVERYTHING_BUT_TWO = dataclasses.replace(EVERYTHING, protocols=("paper", "split", "label"))


def test_a_view_without_a_guarantee_guarantees_nothing(of_a_part: MadeRun, tmp_path: Path) -> None:
    view = dataclasses.replace(EVERYTHING, protocols=("paper_two",))
    curves = reduce_run(of_a_part.write(tmp_path), of_a_part.plan, view).curves
    assert curves["guaranteed_accuracy"].null_count == curves["population_guaranteed"].null_count == len(curves)
    assert curves["population_lower"].null_count == curves["population_upper"].null_count == 0
    assert not any(line.guaranteed for line in view.lines)


def test_missing_and_failed_images_are_not_guaranteed_and_count_as_possibly_false(
    of_a_part: MadeRun, tmp_path: Path
) -> None:
    run = invented(of_a_part.plan, sure=0.3, failed=[3, 60])
    reduced = reduce_run(run.write(tmp_path, [0, 1]), run.plan, RENYI)
    assert (reduced.summary.counted, reduced.summary.failed, reduced.summary.missing) == (98, 2, 20)
    certified = reduced.curves["certified"].to_pylist()
    expected = guaranteed_by_hand(RENYI, Line("renyi", "paper"), certified, 120, 120)
    assert reduced.curves["guaranteed_accuracy"].to_pylist() == expected
    assert max(expected) > 0


def test_without_any_votes_nothing_is_guaranteed(of_a_part: MadeRun, tmp_path: Path) -> None:
    curves = reduce_run(of_a_part.write(tmp_path, []), of_a_part.plan, RENYI).curves
    assert set(curves["guaranteed_accuracy"].to_pylist()) <= {None, 0.0}
    assert set(curves["population_guaranteed"].to_pylist()) <= {None, 0.0}
    for name in ("population_lower", "population_upper", "population_guaranteed"):
        assert set(curves[name].to_pylist()) == {None}, "what is missing is not known to be uncertified"


@pytest.mark.parametrize(("name", "whole"), [("made", 25), ("of_a_part", 500)])
def test_a_part_of_a_data_set_speaks_for_the_whole_as_a_sample_does(
    name: str, whole: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: MadeRun = request.getfixturevalue(name)
    assert run.plan.dataset_size == whole
    view = dataclasses.replace(EVERYTHING, beta=0.1)
    reduced = reduce_run(run.write(tmp_path), run.plan, view)
    for line, rows in by_line(reduced.curves).items():
        certified = [row["certified"] for row in rows]
        for row in rows:
            least, most = population_interval(row["certified"], run.plan.images, whole, beta=0.1)
            assert (row["population_lower"], row["population_upper"]) == (least / whole, most / whole)
            assert row["population_lower"] <= row["certified_accuracy"] <= row["population_upper"]
        found = [row["population_guaranteed"] for row in rows]
        if line.guaranteed:
            assert found == population_by_hand(view, line, certified, run.plan.images, whole)
            assert found == sorted(found, reverse=True)
        else:
            assert found == [None] * len(rows)


def test_of_a_whole_data_set_nothing_is_said_of_a_population(with_failures: MadeRun, tmp_path: Path) -> None:
    curves = reduce_run(with_failures.write(tmp_path), with_failures.plan, EVERYTHING).curves
    for name in ("population_lower", "population_upper", "population_guaranteed"):
        assert curves[name].null_count == len(curves)


@pytest.mark.parametrize("shards", [[], [0], [0, 2]], ids=str)
def test_missing_images_may_yet_be_certified_so_the_upper_end_allows_for_them(
    of_a_part: MadeRun, tmp_path: Path, shards: list[int]
) -> None:
    reduced = reduce_run(of_a_part.write(tmp_path, shards), of_a_part.plan, RENYI)
    for row in reduced.curves.to_pylist():
        _, most = population_interval(row["certified"] + row["missing"], 120, 500, beta=0.01)
        assert row["population_upper"] is None or row["population_upper"] >= most / 500


# --- Kinds of noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", ["clopper_pearson", "randomised"])
@pytest.mark.parametrize("name", NOISES)
def test_votes_under_any_noise_are_reduced_as_certify_says(
    by_noise: dict[str, MadeRun], tmp_path: Path, name: str, interval: Any
) -> None:
    run = by_noise[name]
    view = dataclasses.replace(View.of(run.plan.spec), interval=interval)
    reduced = reduce_run(run.write(tmp_path), run.plan, view)
    uniform = interval_variates(1, run.rows["key"].to_numpy()) if interval == "randomised" else None
    found = dict(iter(certificates(LocalStore(tmp_path)).groupby("certificate")))
    assert tuple(sorted(found)) == tuple(sorted(view.certificates))
    for certificate, rows in found.items():
        expected = certify(
            counts_table.dense(run.rows["estimation"], 10),
            certificate=str(certificate),
            protocol=view.protocols[0],
            noise=run.plan.spec.noise.build(),
            alpha=0.05,
            uniform=uniform,
        )
        assert rows["radius"].tolist() == expected.radius.tolist()
        assert rows["p1_lower"].tolist() == expected.p1_lower.tolist()
        assert set(rows["norm"]) == {"l2" if name in ("plain", "sound") else "l1"}
    assert reduced.summary.complete
    assert 0 < max(reduced.curves["certified"].to_pylist()) <= 20


def test_exact_certificates_are_guaranteed_as_they_are(by_noise: dict[str, MadeRun], tmp_path: Path) -> None:
    run = by_noise["splitting"]
    curves = reduce_run(run.write(tmp_path), run.plan, View.of(run.plan.spec)).curves
    assert curves["guaranteed_accuracy"].to_pylist() == curves["certified_accuracy"].to_pylist()
    certified = curves["certified"].to_pylist()
    assert certified[0] > certified[-1] == 0  # no radius can be as large as the scale
    for row in curves.to_pylist():
        assert row["population_guaranteed"] <= row["population_lower"] <= row["certified_accuracy"]
    assert curves["population_guaranteed"].to_pylist() == population_by_hand(
        View.of(run.plan.spec), Line("splitting", "exact"), certified, 20, 25
    )


def test_exact_certificates_do_not_depend_on_alpha_and_interval(by_noise: dict[str, MadeRun], tmp_path: Path) -> None:
    run = by_noise["splitting"]
    store, asked = run.write(tmp_path), View.of(run.plan.spec)
    columns = ["index", "prediction", "radius", "p1_lower", "p2_upper"]
    reduce_run(store, run.plan, asked)
    before = certificates(store)[columns]
    reduce_run(store, run.plan, randomised(dataclasses.replace(asked, alpha=1e-9)))
    pd.testing.assert_frame_equal(certificates(store)[columns], before)


def test_a_linf_radius_is_the_l2_radius_over_the_root_of_the_dimension(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    names = tuple(name for name in CERTIFICATES if CERTIFICATES[name].noise == "gaussian")
    reduce_run(store, made.plan, dataclasses.replace(RENYI, certificates=names))
    radius = {name: rows["radius"].to_numpy() for name, rows in certificates(store).groupby("certificate")}
    assert len(radius) == 8
    for name in ("renyi", "neyman_pearson_two_class", "neyman_pearson_one_class", "pixeldp"):
        flat = radius[f"{name}_linf"]
        assert (flat * 28 <= radius[name]).all()
        assert flat.max() > 0
        np.testing.assert_allclose(flat, radius[name] / 28, rtol=1e-12)


# --- Randomised intervals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["made", "with_nan", "with_failures", "of_a_part"])
def test_randomised_radii_follow_from_the_votes_and_the_recorded_variates(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: MadeRun = request.getfixturevalue(name)
    store = run.write(tmp_path)
    reduce_run(store, run.plan, randomised(EVERYTHING))
    rows = run.rows
    usable = rows["draws"].to_numpy() > 0
    for (certificate, protocol), found in certificates(store).groupby(["certificate", "protocol"]):
        uniform = found["uniform"].to_numpy()
        assert np.array_equal(uniform, interval_variates(1, rows["key"].to_numpy()))
        expected = certify(
            counts_table.dense(rows["estimation"], 10)[usable],
            counts_table.dense(rows["selection"], 10)[usable],
            rows["label"].to_numpy()[usable],
            certificate=certificate,
            protocol=protocol,
            noise=run.plan.spec.noise.build(),
            alpha=0.01,
            draws=rows["draws"].to_numpy()[usable],
            dimension=int(np.prod(run.plan.image_shape)),
            uniform=uniform[usable],
        )
        assert np.array_equal(found["radius"].to_numpy()[usable], expected.radius)
        assert np.array_equal(found["p1_lower"].to_numpy()[usable], expected.p1_lower)
        assert np.array_equal(found["p2_upper"].to_numpy()[usable], expected.p2_upper)
        assert np.array_equal(found["prediction"].isna().to_numpy()[usable], expected.abstain)
        assert not found["radius"].to_numpy()[~usable].any()


def test_randomised_intervals_are_never_worse(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    reduce_run(store, made.plan, EVERYTHING)
    plain = certificates(store)
    assert plain["uniform"].isna().all()
    reduce_run(store, made.plan, randomised(EVERYTHING))
    tighter = certificates(store)
    assert (tighter["p1_lower"] >= plain["p1_lower"]).all()
    assert (tighter["radius"] >= plain["radius"]).all()
    assert (tighter["radius"] > plain["radius"]).any()


# --- The same tables, however they are cut -------------------------------------------------------------------------


def tables(store: LocalStore) -> tuple[pa.Table, pa.Table]:
    """Both published tables without metadata, the certificates line by line."""
    rows, curves = (pq.read_table(Path(store.uri) / f"{name}.parquet") for name in ("certificates", "curves"))
    order = [("certificate", "ascending"), ("protocol", "ascending"), ("index", "ascending")]
    return rows.sort_by(order).replace_schema_metadata(None), curves.replace_schema_metadata(None)


@pytest.mark.parametrize(
    ("shard_size", "dense", "interval"),
    [
        (1, 2**23, "clopper_pearson"),
        (7, 2**23, "randomised"),
        (60, 2**23, "clopper_pearson"),
        (25, 1, "clopper_pearson"),
        (7, 40, "randomised"),
        (60, 333, "randomised"),
    ],
)
def test_neither_shard_size_nor_memory_changes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: int, dense: int, interval: Any
) -> None:
    names = ("neyman_pearson_two_class", "renyi_linf")
    view = dataclasses.replace(EVERYTHING, certificates=names, protocols=("paper", "split"), interval=interval)
    plan = plan_of(dataset={"kind": "digits", "limit": 60})
    whole = invented(sharded(plan, 25), sure=0.2, failed=[0, 7, 8, 59])
    other = invented(sharded(plan, shard_size), sure=0.2, failed=[0, 7, 8, 59])
    expected = reduce_run(whole.write(tmp_path / "whole"), whole.plan, view)
    monkeypatch.setattr("orchestrator.reducing.runs._DENSE_COUNTS", dense)
    found = reduce_run(other.write(tmp_path / "other"), other.plan, view)
    assert found.summary == expected.summary
    assert (found.summary.failed, found.summary.ties > 0, found.summary.invalid_votes > 0) == (4, True, True)
    for mine, theirs in zip(
        tables(LocalStore(tmp_path / "whole")), tables(LocalStore(tmp_path / "other")), strict=True
    ):
        assert mine.equals(theirs)


@pytest.mark.parametrize(("dense", "rows"), [(1, 100), (10, 1), (25, 100), (500, 100), (2**22, 7), (2**22, 1000)])
def test_votes_are_read_in_parts_that_fit_in_memory_and_in_order(
    of_a_part: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: int, rows: int
) -> None:
    monkeypatch.setattr("orchestrator.reducing.runs._DENSE_COUNTS", dense)
    monkeypatch.setattr("orchestrator.reducing.runs._DENSE_ROWS", rows)
    told: list[int] = []
    parts = list(read_votes(of_a_part.write(tmp_path), of_a_part.plan, [0, 1, 2], told.append))
    assert told == [1, 1, 1]
    assert all(0 < len(part.table) <= max(1, min(dense // 10, rows)) for part in parts)
    assert pa.concat_tables(part.table for part in parts).equals(of_a_part.rows)
    votes = counts_table.dense(of_a_part.rows["estimation"], 10)
    assert np.array_equal(np.concatenate([part.estimation for part in parts]), votes)
    selection = counts_table.dense(of_a_part.rows["selection"], 10)
    assert np.array_equal(np.concatenate([part.selection for part in parts]), selection)


def test_a_line_has_each_image_once(of_a_part: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.reducing.runs._DENSE_COUNTS", 300)
    store = of_a_part.write(tmp_path)
    reduce_run(store, of_a_part.plan, EVERYTHING)
    for _, rows in certificates(store).groupby(["certificate", "protocol"]):
        assert rows["index"].tolist() == list(range(120))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_outside_the_run(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    store = made.write(tmp_path / "run")
    if fails:
        store.replace(layout.counts(2), b"junk")
        with pytest.raises(RunError):
            reduce_run(store, made.plan, RENYI)
    else:
        reduce_run(store, made.plan, RENYI)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list((tmp_path / "run" / ".tmp").iterdir()) == []


# --- Ties, and votes of older versions -----------------------------------------------------------------------------


def test_the_summary_counts_ties_of_estimation_draws(of_a_part: MadeRun, tmp_path: Path) -> None:
    summary = reduce_run(of_a_part.write(tmp_path), of_a_part.plan, RENYI).summary
    assert summary.ties == of_a_part.rows["ties"].to_numpy().sum() > 0
    assert summary.invalid_votes == of_a_part.rows["invalid"].to_numpy().sum() > 0


@pytest.mark.parametrize("old", [[0, 1, 2], [1]], ids=["all", "one of three"])
def test_votes_from_before_ties_were_counted_are_reduced_like_any(
    of_a_part: MadeRun, tmp_path: Path, old: list[int]
) -> None:
    store = of_a_part.write(tmp_path / "old")
    for shard in old:
        store.replace(layout.counts(shard), of_a_part.encoded_as_version_1(shard))
    found = reduce_run(store, of_a_part.plan, EVERYTHING)
    expected = reduce_run(of_a_part.write(tmp_path / "new"), of_a_part.plan, EVERYTHING)
    assert found.summary == dataclasses.replace(expected.summary, ties=None)
    for mine, theirs in zip(tables(store), tables(LocalStore(tmp_path / "new")), strict=True):
        assert mine.equals(theirs)


@pytest.mark.parametrize("damage", ["a class twice", "negative votes that add up", "more votes than draws"])
def test_damaged_votes_of_version_1_are_refused_naming_the_file(made: MadeRun, tmp_path: Path, damage: str) -> None:
    content, says = damages(made)[damage]
    damaged, _ = counts_table.decode(content)
    run = MadeRun(made.plan, [made.tables[0], damaged, made.tables[2]])
    store = run.write(tmp_path, [0, 2])
    store.create(layout.counts(1), run.encoded_as_version_1(1))
    with pytest.raises(RunError, match=says) as caught:
        reduce_run(store, run.plan, RENYI)
    assert str(tmp_path / layout.counts(1)) in str(caught.value)


def test_a_run_begun_by_the_version_before_is_reduced_as_it_stands(made: MadeRun, tmp_path: Path) -> None:
    content = json.loads(made.plan.to_json())
    del content["spec"]["noise"]["sampler"], content["spec"]["confidence"]["interval"]
    del content["spec"]["confidence"]["beta"]
    content["spec"]["certificates"] = ["renyi", "neyman_pearson_one_class"]
    store = made.write(tmp_path, [])
    store.replace(layout.PLAN, json.dumps(content).encode())
    for shard in range(3):
        store.create(layout.counts(shard), made.encoded_as_version_1(shard))
    plan = read_plan(store)
    reduced = reduce_run(store, plan, View.of(plan.spec))
    assert reduced.summary.complete
    assert reduced.view.certificates == ("renyi", "neyman_pearson_one_class")
    assert reduced.view.interval == "clopper_pearson"


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
    assert len(broken) == 2 * 16
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
        certify(
            votes,
            certificate="renyi",
            protocol="paper",
            noise=with_nan.plan.spec.noise.build(),
            alpha=0.05,
            draws=draws,
        )
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
    return made.encoded(shard, table)


def votes(*pairs: tuple[int, int]) -> list[list[dict[str, int]]]:
    """The same votes for each of eight images."""
    return [[{"class": number, "votes": count} for number, count in pairs]] * 8


def damages(made: MadeRun) -> dict[str, tuple[bytes, str]]:
    """Objects that are not the votes of shard 1, and what is to be said of them."""
    foreign = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), foreign)
    curves = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"stn": b'{"schema_version": 1}'}), curves)
    newer = io.BytesIO()
    metadata = {b"stn": json.dumps({"schema_version": counts_table.SCHEMA_VERSION + 1}).encode()}
    pq.write_table(made.tables[1].replace_schema_metadata(metadata), newer)
    other = dataclasses.replace(made.plan, model_sha256="another")
    adds_up, nothing, exist = "do not add up to its draws", "negative, or for classes", "classes that do not exist"
    return {
        "cut short": (made.encoded(1)[:-20], "damaged Parquet"),
        "empty": (b"", "damaged Parquet"),
        "junk": (b"junk" * 100, "damaged Parquet"),
        "another table": (foreign.getvalue(), "not a table of votes"),
        "another table of ours": (curves.getvalue(), "columns are missing"),
        "a newer version": (newer.getvalue(), "newer version"),
        "another run": (MadeRun(other, made.tables).encoded(1), "of another run"),
        "of no run": (counts_table.encode(made.tables[1], {}), "of another run"),
        "another shard's images": (made.encoded(1, made.tables[0]), "images are not the plan's"),
        "too few images": (made.encoded(1, made.tables[1].slice(1)), "images are not the plan's"),
        "no images": (made.encoded(1, made.tables[1].slice(8)), "images are not the plan's"),
        "a class the model has not": (rewritten(made, 1, estimation=votes((10, 64))), exist),
        "a class below none": (rewritten(made, 1, estimation=votes((-1, 64))), exist),
        "more votes than draws": (rewritten(made, 1, draws=[1] * 8), adds_up),
        "fewer votes than draws": (rewritten(made, 1, draws=[65] * 8), adds_up),
        "no votes": (rewritten(made, 1, estimation=votes()), adds_up),
        "negative votes": (rewritten(made, 1, estimation=votes((1, -64))), nothing),
        "negative votes that add up": (rewritten(made, 1, estimation=votes((1, -64), (2, 128))), nothing),
        "negative selection votes": (rewritten(made, 1, selection=votes((1, -1), (2, 17))), nothing),
        "a class twice": (rewritten(made, 1, estimation=votes((1, 32), (1, 32))), "name a class twice"),
        "a class twice, apart": (rewritten(made, 1, estimation=votes((1, 20), (2, 22), (1, 22))), "name a class twice"),
        "a class of selection twice": (rewritten(made, 1, selection=votes((1, 8), (1, 8))), "name a class twice"),
        "negative invalid draws": (
            rewritten(made, 1, estimation=votes((1, 65)), invalid=[-1] * 8),
            adds_up,
        ),
        "invalid draws on top": (rewritten(made, 1, invalid=[1] * 8), adds_up),
        "invalid selection draws on top": (rewritten(made, 1, selection_invalid=[1] * 8), adds_up),
    }


DAMAGES = (
    "cut short",
    "empty",
    "junk",
    "another table",
    "another table of ours",
    "a newer version",
    "another run",
    "of no run",
    "another shard's images",
    "too few images",
    "no images",
    "a class the model has not",
    "a class below none",
    "more votes than draws",
    "fewer votes than draws",
    "no votes",
    "negative votes",
    "negative votes that add up",
    "negative selection votes",
    "a class twice",
    "a class twice, apart",
    "a class of selection twice",
    "negative invalid draws",
    "invalid draws on top",
    "invalid selection draws on top",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_a_run_error_naming_the_file(made: MadeRun, tmp_path: Path, damage: str) -> None:
    content, says = damages(made)[damage]
    store = made.write(tmp_path, [0, 2])
    store.create(layout.counts(1), content)
    with pytest.raises(RunError, match=says) as caught:
        reduce_run(store, made.plan, RENYI)
    assert str(tmp_path / layout.counts(1)) in str(caught.value)
    remedy = "update this installation" if damage == "a newer version" else "delete it and run `stn certify` again"
    assert str(caught.value).endswith(f"; {remedy}")
    assert len(str(caught.value).splitlines()) == 1


def test_every_damage_is_tried(made: MadeRun) -> None:
    assert set(damages(made)) == set(DAMAGES)


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
    rows = read_shard(made.write(tmp_path), made.plan, 2)
    assert np.array_equal(rows.estimation, counts_table.dense(made.tables[2]["estimation"], 10))
    assert np.array_equal(rows.selection, counts_table.dense(made.tables[2]["selection"], 10))
    assert rows.labels.tolist() == made.tables[2]["label"].to_pylist()
    assert rows.draws.tolist() == [64] * 4
    assert rows.usable.all()
    assert rows.table.equals(made.tables[2])


# --- Views ---------------------------------------------------------------------------------------------------------


def test_the_specs_view_is_what_it_asks_for(made: MadeRun) -> None:
    view = View.of(made.plan.spec)
    names = ("renyi", "neyman_pearson_two_class", "neyman_pearson_one_class", "pixeldp")
    assert view == View(names, ("paper",), 0.05, (0.0, 0.05, 0.1, 0.2, 0.4), "clopper_pearson", 0.01)
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
        ({"beta": 0.0}, "beta must lie inside"),
        ({"beta": 1.0}, "beta must lie inside"),
        ({"beta": -0.1}, "beta must lie inside"),
        ({"beta": float("nan")}, "beta must lie inside"),
        ({"certificates": ("renyi", "splitting")}, "'splitting' holds for splitting noise, the votes' is gaussian"),
        ({"certificates": ("renyi_laplace",)}, "'renyi_laplace' holds for laplace noise"),
        ({"protocols": ("paper", "exact")}, "'exact' needs splitting noise"),
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
    [
        (None, "damaged"),
        ({}, "damaged"),
        ([], "damaged"),
        ({"schema_version": SCHEMA_VERSION}, "damaged"),
        ({"schema_version": None}, "damaged"),
        ({"schema_version": "1"}, "damaged"),
        ({"schema_version": SCHEMA_VERSION + 1}, "newer version"),
    ],
    ids=json.dumps,
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


@pytest.mark.parametrize("folder", ["", "partial/"])
def test_tables_of_an_older_version_count_as_none(made: MadeRun, tmp_path: Path, folder: str) -> None:
    store = made.write(tmp_path, [0] if folder else None)
    reduced = reduce_run(store, made.plan, RENYI)
    facts = json.loads(reduced.curves.schema.metadata[b"stn"])
    # As version 1 wrote them.
    del facts["view"]["interval"], facts["view"]["beta"], facts["summary"]["ties"]
    old = reduced.curves.drop_columns(["guaranteed_accuracy", "beta"])
    sink = io.BytesIO()
    pq.write_table(old.replace_schema_metadata({b"stn": json.dumps({**facts, "schema_version": 1}).encode()}), sink)
    store.replace(f"{folder}{layout.CURVES}", sink.getvalue())
    assert published(store, partial=bool(folder)) is None
    with pytest.raises(RunError, match=r"no certificates yet: run `stn reduce` first"):
        load_run(store)
    assert reduce_run(store, made.plan, RENYI).curves.equals(reduced.curves)
    assert load_run(store).reduced.view == RENYI


@pytest.mark.parametrize("shards", [None, [0, 2]], ids=["complete", "partial"])
def test_certificates_are_read_back_whole_or_by_column(made: MadeRun, tmp_path: Path, shards: list[int] | None) -> None:
    store = made.write(tmp_path, shards)
    partial = shards is not None
    reduced = reduce_run(store, made.plan, randomised(EVERYTHING))
    stored = pq.read_table(tmp_path / ("partial" if partial else "") / "certificates.parquet")
    found = read_certificates(store, reduced, partial=partial)
    assert found.to_pylist() == stored.to_pylist()
    some = read_certificates(store, reduced, ["radius", "protocol"], partial=partial)
    assert some.to_pylist() == stored.select(["radius", "protocol"]).to_pylist()


def test_certificates_of_another_reduce_are_refused(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    first = reduce_run(store, made.plan, RENYI)
    reduce_run(store, made.plan, dataclasses.replace(RENYI, beta=0.5))
    with pytest.raises(RunError, match="of two reduces: run `stn reduce` again"):
        read_certificates(store, first)
    for damage in (lambda: store.replace(layout.CERTIFICATES, b"junk"), lambda: store.delete(layout.CERTIFICATES)):
        damage()
        with pytest.raises(RunError, match="missing or damaged: run `stn reduce` again"):
            read_certificates(store, first)


def test_both_tables_remember_view_summary_and_plan(of_a_part: MadeRun, tmp_path: Path) -> None:
    view = randomised(dataclasses.replace(EVERYTHING, beta=0.2))
    reduced = reduce_run(of_a_part.write(tmp_path), of_a_part.plan, view)
    plan: Plan = of_a_part.plan
    for name in ("certificates", "curves"):
        metadata = json.loads(pq.read_metadata(tmp_path / f"{name}.parquet").metadata[b"stn"])
        assert metadata["schema_version"] == SCHEMA_VERSION
        assert View.from_json(metadata["view"]) == view
        assert metadata["summary"] == dataclasses.asdict(reduced.summary)
        assert metadata["identity"] == plan.identity()
    assert pq.read_table(tmp_path / "curves.parquet").schema.remove_metadata().equals(CURVES_SCHEMA)
