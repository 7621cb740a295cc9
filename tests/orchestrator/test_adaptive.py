"""Runs whose draws come in rounds: resumed, grown, read back and looked after, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.counting.certification import Certification, certify_run
from orchestrator.errors import RunError, SpecError
from orchestrator.reducing.reading import read_results
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.runs import read_plan
from orchestrator.reducing.standing import status_of
from orchestrator.reducing.tables import View
from orchestrator.reporting.reported import load_run
from orchestrator.spec import validate
from orchestrator.upkeep.recount import recount
from orchestrator.upkeep.verify import verify_run
from tests.orchestrator.inline import hire_failing, hire_inline
from tests.orchestrator.runs import digits_spec
from tests.workers.samples import encoded, noise_image
from workers import counts_table, layout
from workers.ray_entry import CountingActor
from workers.store import LocalStore

ADAPTIVE = {"mode": "adaptive", "draws": 2000, "selection_draws": 16, "seed": 1}
ANYTIME = {"protocol": "anytime", "alpha": 0.05}


def adaptive(run: Path, **sections: Any) -> dict[str, Any]:
    return digits_spec(
        **{"sampling": ADAPTIVE, "confidence": ANYTIME, "radii": [0.05, 0.1], "store": {"run": str(run)}, **sections}
    )


def certify(spec: dict[str, Any], **options: Any) -> Certification:
    return certify_run(validate(spec, "spec"), **{"hire": hire_inline, **options})


def votes_of(run: Path) -> dict[str, bytes]:
    store = LocalStore(run)
    return {stored.key: store.read(stored.key) for stored in store.list(layout.COUNTS)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("adaptive") / "run"
    assert certify(adaptive(run)).complete
    return run


def test_images_stop_after_different_numbers_of_draws_and_none_after_too_many(undisturbed: Path) -> None:
    rounds = pd.read_parquet(undisturbed / "counts")
    assert set(rounds["round"].astype(int)) == set(range(rounds["round"].astype(int).max() + 1))
    assert rounds["round"].astype(int).max() >= 2, "the test is of later rounds"
    draws = rounds.groupby("index")["draws"].sum()
    assert len(draws) == 20
    assert draws.nunique() > 3
    assert draws.max() <= ADAPTIVE["draws"]
    assert draws.mean() < ADAPTIVE["draws"] / 2
    certificates = pd.read_parquet(undisturbed / layout.CERTIFICATES)
    assert certificates.set_index("index")["draws"].to_dict() == draws.to_dict()
    assert certificates["certificate"].unique().tolist() == ["neyman_pearson_one_class"]
    # Selection votes are of the first round alone.
    assert (rounds.groupby("index")["selection_draws"].sum() == 16).all()


def test_rounds_are_of_survivors_alone_and_ever_fewer(undisturbed: Path) -> None:
    plan = read_plan(LocalStore(undisturbed))
    for shard in range(plan.shards):
        survivors = set(plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size])
        for number in range(100):
            path = undisturbed / layout.counts(shard, number)
            if not path.exists():
                break
            own = set(pq.read_table(path)["index"].to_pylist())
            assert own <= survivors
            survivors = own


@pytest.mark.parametrize("commits", range(7))
def test_a_run_that_is_killed_between_rounds_ends_as_if_it_had_not_been(
    undisturbed: Path, tmp_path: Path, commits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = CountingActor._commit, iter(range(commits))

    def commit(self: CountingActor, key: str, shard: int, table: pa.Table, *where: Any) -> bool:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(self, key, shard, table, *where)

    with monkeypatch.context() as patch:
        patch.setattr(CountingActor, "_commit", commit)
        with pytest.raises(KeyboardInterrupt):
            certify(adaptive(tmp_path / "run"))
    assert len(votes_of(tmp_path / "run")) == commits
    assert certify(adaptive(tmp_path / "run")).complete
    assert votes_of(tmp_path / "run") == votes_of(undisturbed)
    again = certify(adaptive(tmp_path / "run"))
    assert (again.nothing_to_do, again.complete) == (True, True)


def test_of_two_workers_at_one_shard_the_first_commit_of_a_round_counts_and_both_go_on_from_it(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CountingActor._commit
    store = LocalStore(undisturbed)

    def late(self: CountingActor, key: str, shard: int, table: pa.Table, *where: Any) -> bool:
        """Another worker was here just before."""
        if key == layout.counts(1, 1):
            self._store.create(key, store.read(key))
        return real(self, key, shard, table, *where)

    monkeypatch.setattr(CountingActor, "_commit", late)
    assert certify(adaptive(tmp_path / "run")).complete
    assert votes_of(tmp_path / "run") == votes_of(undisturbed)


def test_what_an_interrupted_run_has_is_published_as_partial(undisturbed: Path, tmp_path: Path) -> None:
    run = LocalStore(tmp_path / "run")
    for key in (layout.PLAN, *(layout.counts(shard) for shard in range(3))):
        run.create(key, LocalStore(undisturbed).read(key))
    plan = read_plan(run)
    summary = reduce_run(run, plan, View.of(plan.asked)).summary
    assert (summary.counted, summary.missing, summary.complete) == (20, 0, False)
    assert summary.undecided > 0
    assert not run.exists(layout.CERTIFICATES)
    assert f"INCOMPLETE: {summary.undecided} undecided" in load_run(run).title
    found = status_of(run)
    assert (found.complete, found.undecided, found.adaptive) == (False, summary.undecided, True)
    result = CliRunner().invoke(main, ["reduce", str(tmp_path / "run")])
    assert result.exit_code == 3
    assert f"{summary.undecided} of those counted undecided" in result.stderr
    result = CliRunner().invoke(main, ["status", str(tmp_path / "run")])
    assert f"{summary.undecided} undecided" in result.stdout
    assert f"of at most {20 * 2016}" in result.stdout


def test_the_same_votes_in_fewer_or_more_shards(undisturbed: Path, tmp_path: Path) -> None:
    assert certify(adaptive(tmp_path / "run", resources={"shard_size": 20})).complete
    tables = [pd.read_parquet(run / layout.CERTIFICATES) for run in (undisturbed, tmp_path / "run")]
    pd.testing.assert_frame_equal(*tables)


def test_more_draws_are_added_to_what_is_there(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = adaptive(run, sampling={**ADAPTIVE, "draws": 200})
    certify(few)
    before = votes_of(run)
    assert certify(adaptive(run)).complete
    after = votes_of(run)
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)
    assert read_plan(LocalStore(run)).asked.sampling.draws == 2000
    assert certify(adaptive(run)).nothing_to_do
    # Fewer again: nothing is thrown away.
    assert certify(few).complete
    assert votes_of(run) == after
    assert verify_run(LocalStore(run)).findings == ()


def test_another_level_of_confidence_may_ask_for_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    certify(adaptive(run))
    before = votes_of(run)
    strict = adaptive(run, confidence={**ANYTIME, "alpha": 0.0001})
    done = certify(strict)
    assert (done.complete, done.nothing_to_do) == (True, False)
    assert len(votes_of(run)) > len(before)
    assert done.reduced.goal["alpha"] == 0.0001


@pytest.mark.parametrize("protocol", ["anytime", "anytime_label"])
def test_a_fixed_number_may_grow_under_a_protocol_that_bears_it(tmp_path: Path, protocol: str) -> None:
    def fixed(run: str, draws: int) -> dict[str, Any]:
        return adaptive(
            tmp_path / run,
            sampling={"draws": draws, "selection_draws": 16, "seed": 1},
            confidence={"protocol": protocol, "alpha": 0.05},
        )

    certify(fixed("grown", 64))
    before = votes_of(tmp_path / "grown")
    assert certify(fixed("grown", 160)).complete
    assert certify(fixed("whole", 160)).complete
    votes = [total_votes(tmp_path / run) for run in ("grown", "whole")]
    assert votes[0] == votes[1]
    assert {key: votes_of(tmp_path / "grown")[key] for key in before} == before
    with pytest.raises(SpecError, match="this run's votes chose theirs: use anytime or anytime_label"):
        certify({**fixed("grown", 160), "confidence": {"protocol": "paper"}})


def total_votes(run: Path) -> dict[int, dict[int, int]]:
    total: dict[int, dict[int, int]] = {}
    for row in pq.read_table(run / "counts").to_pylist():
        own = total.setdefault(row["index"], {})
        for entry in row["estimation"]:
            own[entry["class"]] = own.get(entry["class"], 0) + entry["votes"]
    return total


def test_a_fixed_number_does_not_grow_under_other_protocols(tmp_path: Path) -> None:
    spec = digits_spec(store={"run": str(tmp_path / "run")})
    certify(spec)
    more = {**spec, "sampling": {"draws": 128, "selection_draws": 16, "seed": 1}}
    with pytest.raises(RunError, match=r"sampling\.draws: the run has 64, asked 128.*anytime") as caught:
        certify(more)
    assert "\n" not in str(caught.value)


def test_stages_are_declared_beforehand(tmp_path: Path) -> None:
    sampling = {**ADAPTIVE, "draws": 800, "stages": [50, 200, 800]}
    spec = adaptive(tmp_path / "run", sampling=sampling, confidence={"protocol": "stages", "alpha": 0.05})
    assert certify(spec).complete
    draws = pd.read_parquet(tmp_path / "run" / "counts").groupby("index")["draws"].sum()
    assert set(draws) <= {50, 200, 800}
    assert verify_run(LocalStore(tmp_path / "run")).lacking == ()
    other = adaptive(
        tmp_path / "run",
        sampling={**sampling, "stages": [50, 400, 800]},
        confidence={"protocol": "stages", "alpha": 0.05},
    )
    with pytest.raises(RunError, match="stages"):
        certify(other)


def test_failed_images_join_in_when_they_are_counted_again(tmp_path: Path) -> None:
    def folder(name: str, broken: tuple[int, ...]) -> dict[str, Any]:
        for number in range(8):
            content = encoded(noise_image(number))
            path = tmp_path / name / str(number // 4) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image".ljust(len(content)) if number in broken else content)
        return adaptive(
            tmp_path / f"run-{name}",
            dataset={"kind": "image_folder", "path": str(tmp_path / name)},
            model={"name": "tests.networks:tiny_rgb", "num_classes": 10},
            resources={"shard_size": 3, "max_attempts": 1},
        )

    spec = folder("broken", (2, 7))
    assert not certify(spec).complete
    folder("broken", ())
    assert certify(spec, retry_failed=True).complete
    assert certify(folder("sound", ())).complete
    one, other = (pd.read_parquet(tmp_path / f"run-{name}" / layout.CERTIFICATES) for name in ("broken", "sound"))
    pd.testing.assert_frame_equal(one, other)
    assert verify_run(LocalStore(tmp_path / "run-broken")).findings == ()


def test_a_shard_given_up_is_taken_up_again(undisturbed: Path, tmp_path: Path) -> None:
    spec = adaptive(tmp_path / "run", resources={"shard_size": 8, "max_attempts": 1})
    assert certify(spec, hire=hire_failing).given_up == {1: "a disk on fire"}
    assert certify(spec, retry_failed=True).complete
    assert votes_of(tmp_path / "run") == votes_of(undisturbed)


def test_verify_and_recount_find_nothing_wrong(undisturbed: Path) -> None:
    store = LocalStore(undisturbed)
    found = verify_run(store)
    assert (found.findings, found.lacking) == ((), ())
    assert found.objects == len(votes_of(undisturbed))
    assert found.certificates == 20
    again = recount(store, read_plan(store), images=20, seed=0)
    assert (len(again.images), again.findings) == (20, ())


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> LocalStore:
    store, source = LocalStore(tmp_path / "copy"), LocalStore(undisturbed)
    for stored in source.list(""):
        store.replace(stored.key, source.read(stored.key))
    return store


def changed(store: LocalStore, key: str, change: Callable[[pa.Table], pa.Table]) -> None:
    table, provenance = counts_table.decode(store.read(key))
    del provenance["schema_version"]
    store.replace(key, counts_table.encode(change(table), provenance))


def test_verify_misses_a_round(copied: LocalStore) -> None:
    copied.delete(layout.counts(0, 1))
    found = [(one.kind, one.where) for one in verify_run(copied).findings]
    assert ("gap", layout.counts(0, 2)) in found


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (
            lambda table: table.set_column(1, table.schema.field("key"), pa.array(table["key"].to_numpy() + 1)),
            "foreign",
            "its images have other keys",
        ),
        (
            lambda table: table.set_column(6, table.schema.field("draws"), pa.array(table["draws"].to_numpy() + 1)),
            "sum",
            "estimation votes do not add up",
        ),
        (
            lambda table: table.set_column(
                5, table.schema.field("selection_draws"), pa.array(np.ones(len(table), dtype=np.int64))
            ),
            "sum",
            "selection draws are not the planned ones",
        ),
        (lambda table: pa.concat_tables([table, table]), "double", "it has images more than once"),
    ],
)
def test_verify_sees_what_is_wrong_with_a_later_round(
    copied: LocalStore, change: Callable[[pa.Table], pa.Table], kind: str, text: str
) -> None:
    changed(copied, layout.counts(0, 1), change)
    found = verify_run(copied).findings
    assert any(one.kind == kind and one.where == layout.counts(0, 1) and text in one.text for one in found), found


def test_a_later_round_with_images_of_another_shard_is_refused(copied: LocalStore) -> None:
    copied.replace(layout.counts(0, 1), copied.read(layout.counts(1, 1)))
    plan = read_plan(copied)
    with pytest.raises(RunError, match="its images are not those that an earlier round has votes of"):
        reduce_run(copied, plan, View.of(plan.asked))


def test_a_damaged_goal_is_named(copied: LocalStore) -> None:
    copied.replace(layout.GOAL, json.dumps({"spec": {"noise": 1}}).encode())
    with pytest.raises(RunError, match=r"goal\.json is damaged"):
        read_plan(copied)


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"confidence": {"protocol": "paper"}}, "fixed beforehand, and sampling.mode is adaptive"),
        ({"confidence": {**ANYTIME, "interval": "randomised"}}, "set confidence.interval to clopper_pearson"),
        ({"sampling": {**ADAPTIVE, "selection_draws": 0}}, "needs selection votes"),
        ({"sampling": {**ADAPTIVE, "stages": [10, 2000]}}, "sampling.stages belongs to protocol 'stages'"),
        ({"sampling": {**ADAPTIVE, "stages": [10, 20]}}, "stages must increase and end with draws, 2000"),
        ({"sampling": {**ADAPTIVE, "tolerance": 0}}, "sampling.tolerance: got 0"),
        ({"sampling": {"draws": 10, "tolerance": 0.1}}, "tolerance belongs to mode adaptive"),
        ({"confidence": {"protocol": "stages"}}, "set sampling.stages"),
        ({"radii": {"stop": 2, "step": 0.01}}, "set sampling.tolerance for a whole curve"),
        (
            {"noise": {"kind": "splitting", "scale": 0.4}},
            "splitting noise is enumerated, which takes all of its draws: set it to fixed",
        ),
        ({"sampling": {**ADAPTIVE, "stages": [True, 2000]}}, "sampling.stages"),
        ({"sampling": {**ADAPTIVE, "selection_draws": 10**30}}, "sampling.selection_draws"),
    ],
)
def test_settings_that_do_not_fit_are_named(sections: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(adaptive(Path("unused"), **sections), "spec")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tolerance_stops_where_the_radius_is_known_well_enough(tmp_path: Path) -> None:
    draws = []
    for tolerance in (0.2, 0.02):
        run = tmp_path / str(tolerance)
        assert certify(adaptive(run, sampling={**ADAPTIVE, "tolerance": tolerance})).complete
        draws.append(pd.read_parquet(run / "counts")["draws"].sum())
    assert draws[0] < draws[1]


# --- A place in the order of rounds, and goals that change ----------------------------------------------------------


def test_a_round_that_is_there_twice_is_refused(copied: LocalStore) -> None:
    last = max(number for number in range(20) if copied.exists(layout.counts(0, number)))
    copied.create(layout.counts(0, last + 1), copied.read(layout.counts(0, last)))
    plan = read_plan(copied)
    with pytest.raises(RunError, match="its draws do not go on where those before it end"):
        reduce_run(copied, plan, View.of(plan.asked))
    assert any("do not go on" in one.text for one in verify_run(copied).findings)
    result = CliRunner().invoke(main, ["status", copied.uri])
    assert (result.exit_code, "do not go on" in result.stderr) == (2, True)


def test_rounds_that_changed_places_are_refused(copied: LocalStore) -> None:
    first, second = (copied.read(layout.counts(0, number)) for number in (1, 2))
    copied.replace(layout.counts(0, 1), second)
    copied.replace(layout.counts(0, 2), first)
    assert any("do not go on" in one.text for one in verify_run(copied).findings)


def stop_after(monkeypatch: pytest.MonkeyPatch, commits: int) -> None:
    real, left = CountingActor._commit, iter(range(commits))

    def commit(self: CountingActor, *arguments: Any) -> bool:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(CountingActor, "_commit", commit)


def test_tables_from_before_a_growth_do_not_look_like_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    paper = digits_spec(store={"run": str(run)})
    certify(paper)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            certify(adaptive(run))
    loaded = load_run(LocalStore(run))
    assert not loaded.complete
    assert "INCOMPLETE: tables of an earlier goal" in loaded.title
    found_by_api = read_results(LocalStore(run))
    assert (found_by_api.outdated, found_by_api.complete) == (True, False)
    assert "complete=False" in repr(found_by_api)
    result = CliRunner().invoke(main, ["report", str(run)])
    assert result.exit_code == 3
    assert "n = 64;" in result.stdout
    found = verify_run(LocalStore(run))
    assert found.findings == ()
    assert any("from before the run was given another goal" in text for text in found.lacking)
    assert certify(adaptive(run)).complete
    assert load_run(LocalStore(run)).complete
    assert read_results(LocalStore(run)).complete


def test_a_goal_that_no_draw_has_followed_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = digits_spec(store={"run": str(tmp_path / "run")})
    certify(paper)
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            certify(adaptive(tmp_path / "run"))
    assert certify(paper).complete
    assert not LocalStore(tmp_path / "run").exists(layout.GOAL)


def test_who_began_before_another_goal_was_set_publishes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    paper = digits_spec(store={"run": str(run)})

    def overtaken(*arguments: Any, **named: Any) -> Any:
        certify(adaptive(run))
        return hire_inline(*arguments, **named)

    with pytest.raises(RunError, match="was given another goal while this call counted"):
        certify(paper, hire=overtaken)
    assert load_run(LocalStore(run)).complete
    assert certify(adaptive(run)).nothing_to_do


def test_a_finished_run_stays_finished_whatever_a_later_version_would_ask(
    copied: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy:
        def more(self, looks: Any) -> np.ndarray:
            return np.full(len(looks.candidate), 5)

    monkeypatch.setattr("orchestrator.planning.plans.Together", lambda rules: Greedy())
    plan = read_plan(copied)
    assert status_of(copied).complete
    assert reduce_run(copied, plan, View.of(plan.asked)).summary.complete
    # Where the votes are others by now, it is asked again.
    copied.delete(layout.counts(0, max(number for number in range(20) if copied.exists(layout.counts(0, number)))))
    assert not status_of(copied).complete


def test_votes_that_another_goal_added_are_looked_at_again(copied: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            certify(adaptive(Path(copied.uri), confidence={**ANYTIME, "alpha": 1e-6}))
    again = certify(adaptive(Path(copied.uri)))
    assert not again.nothing_to_do
    assert again.complete
    assert status_of(copied).complete
