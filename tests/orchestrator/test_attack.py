"""Attacks as jobs on a run: begun, interrupted, resumed, extended, refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import orchestrator.attacking.attack as attack_module
from orchestrator.attacking.attack import attack_run
from orchestrator.attacking.robustness import published_attacks
from orchestrator.attacking.text import title
from orchestrator.cli import main
from orchestrator.counting.certification import certify_run
from orchestrator.counting.crew import Crew, Device, Job, Task
from orchestrator.errors import RunError, SpecError
from orchestrator.on_ray.jobs import job_of
from orchestrator.spec import Resources, Spec, validate
from tests.orchestrator.inline import InlinePool, actor_of, hire_failing, hire_inline
from tests.orchestrator.runs import digits_spec
from tests.workers.samples import encoded, noise_image
from workers import attempts_table, layout
from workers.store import LocalStore

#: Of a network that knows digits, so that there is something to attack.
WEIGHTS = Path(__file__).parents[2] / "examples" / "mnist_smoothadv.pt"

PGD = {"kind": "pgd", "norm": "l2", "sizes": [0.2, 0.5, 5.0], "steps": 4, "draws": 4}
LINF = {"kind": "pgd", "norm": "linf", "sizes": [0.1], "steps": 2, "draws": 2}


def spec_of(root: Path, attacks: dict[str, Any] | None = None, **sections: Any) -> Spec:
    own = {
        "dataset": {"kind": "digits", "limit": 12},
        "model": {"name": "mnist_small", "checkpoint": str(WEIGHTS)},
        "noise": {"sigma": 0.5},
        "resources": {"shard_size": 4},
        "store": {"run": str(root / "run")},
        "attack": {"draws": 40, "alpha": 0.01, "keep": 1, "attacks": attacks or {"pgd": PGD}},
    }
    return validate(digits_spec(**{**own, **sections}), "spec")


def files_of(root: Path) -> dict[str, bytes]:
    folder = root / "run"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts and path.suffix == ".parquet"
    }


class Lost(Exception):
    """The driver dies."""


def hire_until(commits: int) -> Any:
    @contextmanager
    def hire(
        make_job: Callable[[Device], Job], task: Task, resources: Resources, warn: Callable[[str], None]
    ) -> Iterator[Crew]:
        class Mortal(InlinePool):
            left = commits

            def events(self, timeout_s: float) -> Any:
                if self._ready and not Mortal.left:
                    raise Lost
                Mortal.left -= self._ready
                return super().events(timeout_s)

        yield Crew(Mortal(actor_of(make_job("cpu")), task), 1)

    return hire


def test_an_attack_leaves_a_row_for_each_image_attack_and_size(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"pgd": PGD, "linf": LINF})
    result = attack_run(spec, hire=hire_inline)
    assert result.complete
    assert result.done == 2 * 3
    table = result.attacked.attempts
    rows = list(zip(*(table[name].to_pylist() for name in ("attack", "index", "size")), strict=True))
    expected = {("linf", i, s) for i in range(12) for s in (0.0, 0.1)}
    assert len(rows) == len(set(rows))
    assert set(rows) == expected | {("pgd", i, s) for i in range(12) for s in (0.0, 0.2, 0.5, 5.0)}
    published = published_attacks(LocalStore(tmp_path / "run"))
    assert published is not None
    assert published.attempts.equals(table)
    assert published.curves.equals(result.attacked.curves)
    assert published.descriptions == result.attacked.descriptions


def test_curves_are_what_the_rows_say(tmp_path: Path) -> None:
    found = attack_run(spec_of(tmp_path), hire=hire_inline).attacked
    for row in found.curves.to_pylist():
        robust = broken = 0
        for image in range(12):
            own = [one for one in found.attempts.to_pylist() if one["index"] == image and one["size"] <= row["size"]]
            assert own
            robust += all(one["prediction"] == one["label"] for one in own)
            broken += any(one["prediction"] not in (None, one["label"]) for one in own)
        assert (row["robust"], row["broken"]) == (robust, broken)
        assert row["abstained"] == 12 - robust - broken
        assert row["robust_accuracy"] == robust / 12
    robust = found.curves["robust"].to_pylist()
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[-1], "an attack that finds nothing tests nothing"


@pytest.mark.parametrize("commits", [0, 1, 3, 5])
def test_an_interrupted_attack_goes_on_to_the_same_bytes(tmp_path: Path, commits: int) -> None:
    attacks = {"pgd": PGD, "linf": LINF}
    attack_run(spec_of(tmp_path / "whole", attacks), hire=hire_inline)
    with pytest.raises(Lost):
        attack_run(spec_of(tmp_path / "part", attacks), hire=hire_until(commits))
    result = attack_run(spec_of(tmp_path / "part", attacks), hire=hire_inline)
    assert result.done == 6 - commits
    assert files_of(tmp_path / "part") == files_of(tmp_path / "whole")


def test_a_finished_attack_is_not_made_again_and_another_may_join(tmp_path: Path) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    before = files_of(tmp_path)
    again = attack_run(spec_of(tmp_path), hire=hire_until(0))
    assert (again.done, files_of(tmp_path)) == (0, before)
    more = attack_run(spec_of(tmp_path, {"linf": LINF}), hire=hire_inline)
    assert more.done == 3
    assert set(more.attacked.descriptions) == {"pgd", "linf"}
    assert all(files_of(tmp_path)[key] == before[key] for key in before if key.startswith(layout.ATTACKS))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({**PGD, "steps": 5}, "steps"),
        ({**PGD, "sizes": [0.2]}, "sizes"),
        ({**PGD, "noise": {"sigma": 0.1}}, "noise"),
        ({**PGD, "norm": "linf", "sizes": [0.2]}, "norm"),
        ({"kind": "cw", "sizes": PGD["sizes"], "steps": 4, "draws": 4}, "kind"),
    ],
)
def test_an_attack_that_was_begun_otherwise_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    before = files_of(tmp_path)
    with pytest.raises(RunError, match=rf"begun otherwise \(.*{named}: .* another name"):
        attack_run(spec_of(tmp_path, {"pgd": change}), hire=hire_inline)
    assert files_of(tmp_path) == before


def test_attacks_and_certificates_share_a_run_in_either_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    attack_run(spec_of(first), hire=hire_inline)
    certify_run(spec_of(first), hire=hire_inline)
    certify_run(spec_of(second), hire=hire_inline)
    # However the run's own votes were sampled: an attack has votes of its own.
    attack_run(spec_of(second, sampling={"draws": 7, "seed": 5}, resources={"shard_size": 5}), hire=hire_inline)
    assert files_of(first) == files_of(second)


def test_an_attack_on_another_classifier_is_refused(tmp_path: Path) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    with pytest.raises(RunError, match=r"holds another run \(noise\.sigma"):
        attack_run(spec_of(tmp_path, noise={"sigma": 0.4}), hire=hire_inline)


def test_shards_that_fail_are_given_up_and_named_and_tables_are_partial(tmp_path: Path) -> None:
    result = attack_run(spec_of(tmp_path), hire=hire_failing)
    assert not result.complete
    assert result.given_up == {"attack pgd, shard 1": "a disk on fire"}
    assert set(result.attacked.curves["missing"].to_pylist()) == {4}
    store = LocalStore(tmp_path / "run")
    assert store.exists(layout.PARTIAL + layout.ROBUSTNESS)
    assert not store.exists(layout.ROBUSTNESS)
    assert attack_run(spec_of(tmp_path), hire=hire_inline).complete
    assert store.exists(layout.ROBUSTNESS)
    assert not store.exists(layout.PARTIAL + layout.ROBUSTNESS)


def test_a_damaged_object_is_named(tmp_path: Path) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    key = layout.attempts("pgd", 1)
    path = tmp_path / "run" / key
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(RunError, match=f"{key} is damaged.*delete it"):
        attack_run(spec_of(tmp_path), hire=hire_inline)
    path.write_bytes((tmp_path / "run" / layout.attempts("pgd", 0)).read_bytes())
    with pytest.raises(RunError, match=f"{key} holds attempts of another"):
        attack_run(spec_of(tmp_path), hire=hire_inline)


@pytest.mark.parametrize("content", [b"junk", b"[]", b"null", b"{}", b'{"schema_version": "a"}', b"\xff\xfe"])
def test_a_damaged_description_says_how_to_mend_it_and_no_attempt_is_lost(tmp_path: Path, content: bytes) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    before = files_of(tmp_path / "run")
    path = tmp_path / "run" / layout.attack("pgd")
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"attack\.json is damaged \(.*delete it and run `stn attack` as before"):
        attack_run(spec_of(tmp_path), hire=hire_inline)
    path.unlink()
    assert attack_run(spec_of(tmp_path), hire=hire_failing).complete  # nothing is made again
    assert files_of(tmp_path / "run") == before


def test_images_that_failed_are_attacked_again_when_asked_and_end_as_if_nothing_had(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number in range(4):
        path = folder / str(number // 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise_image(number)))
    broken, whole = folder / "0" / "1.png", encoded(noise_image(1))
    dataset = {"kind": "image_folder", "path": str(folder), "limit": None}
    parts: dict[str, Any] = {
        "dataset": dataset,
        "model": {"name": "tests.networks:tiny_rgb", "num_classes": 10, "checkpoint": None},
        "resources": {"shard_size": 2},
    }
    assert attack_run(spec_of(tmp_path / "sound", **parts), hire=hire_inline).complete

    broken.write_bytes(b"not an image".ljust(len(whole)))
    spec = spec_of(tmp_path, **parts)
    first = attack_run(spec, hire=hire_inline)
    assert (first.complete, first.done) == (False, 2)
    assert set(first.attacked.curves["failed"].to_pylist()) == {1}
    assert attack_run(spec, hire=hire_inline).done == 0, "failed images are final until they are asked for"
    assert attack_run(spec, retry_failed=True, hire=hire_inline).done == 1, "they may fail again"

    broken.write_bytes(whole)
    again = attack_run(spec, retry_failed=True, hire=hire_inline)
    assert (again.complete, again.done) == (True, 1)
    assert attack_run(spec, retry_failed=True, hire=hire_inline).done == 0
    assert files_of(tmp_path) == files_of(tmp_path / "sound")


def test_certificates_of_a_run_with_a_failed_image_are_held_against_attacks(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number in range(4):
        path = folder / str(number // 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise_image(number)) if number else b"not an image")
    spec = spec_of(
        tmp_path,
        dataset={"kind": "image_folder", "path": str(folder), "limit": None},
        model={"name": "tests.networks:tiny_rgb", "num_classes": 10, "checkpoint": None},
    )
    assert certify_run(spec, hire=hire_inline).summary.failed == 1
    found = attack_run(spec, hire=hire_inline)
    assert not found.complete
    assert found.sandwiches


def test_a_source_has_its_weights_checked(tmp_path: Path) -> None:
    transfer = {**PGD, "source": {"name": "tests.networks:tiny"}}
    result = attack_run(spec_of(tmp_path, {"transfer": transfer}), hire=hire_inline)
    assert result.attacked.descriptions["transfer"].source_sha256 is not None
    with pytest.raises(SpecError, match=r"attack\.attacks\.transfer\.source: .*random"):
        attack_run(spec_of(tmp_path, {"transfer": {**PGD, "source": {"name": "mnist"}}}), hire=hire_inline)
    lost = {**PGD, "source": {"name": "mnist", "checkpoint": str(tmp_path / "lost.pt")}}
    with pytest.raises(SpecError, match=r"source: .*no checkpoint"):
        attack_run(spec_of(tmp_path, {"other": lost}), hire=hire_inline)


def test_a_classifier_without_noise_can_be_attacked_and_not_certified(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, noise={"kind": "none"}, sampling={"draws": 1})
    found = attack_run(spec, hire=hire_inline).attacked
    assert set(found.attempts["draws"].to_pylist()) == {1}
    assert found.attempts["prediction"].null_count == 0
    with pytest.raises(SpecError, match="nothing can be certified"):
        certify_run(spec, hire=hire_inline)


def test_kept_images_are_the_runs_first(tmp_path: Path) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    store = LocalStore(tmp_path / "run")
    table, provenance = attempts_table.decode(store.read(layout.attempts("pgd", 0)))
    assert set(table.filter(pc.is_valid(table["pixels"]))["index"].to_pylist()) == {0}
    assert provenance["description"]["keep"] == 1


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(attack_module, "attack_run", functools.partial(attack_run, hire=hire_inline))
    return CliRunner().invoke(main, list(arguments))


def written(tmp_path: Path, **sections: Any) -> Path:
    spec = spec_of(tmp_path, **sections).model_dump(mode="json", exclude_none=True)
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(spec))
    return path


def test_the_command_shows_curves_sandwich_and_masking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {**PGD, "steps": 8, "draws": 8}
    square = {"kind": "square", "norm": "l2", "sizes": [0.5], "queries": 2, "draws": 2}
    path = written(tmp_path, attacks={"pgd": PGD, "more": more, "square": square})
    done = invoke(monkeypatch, "attack", str(path))
    assert done.exit_code == 0, done.output
    assert "robust accuracy under attack" in done.output
    assert "certificates: none yet" in done.output
    certify_run(spec_of(tmp_path), hire=hire_inline)
    done = invoke(monkeypatch, "attack", str(path))
    assert done.exit_code == 0, done.output
    assert "none surely answered otherwise than certified" in done.output
    assert "gradient-free" in done.output
    assert "draws 4 → 8" in done.output
    assert "nothing to do" in done.output
    as_json = json.loads(invoke(monkeypatch, "attack", str(path), "--json").output)
    assert as_json["complete"]
    assert all(one["holds"] for one in as_json["sandwich"])
    assert {one["relation"] for one in as_json["masking"]} == {"draws 4 → 8, steps 4 → 8", "gradient-free"}


def test_the_command_exits_with_4_where_an_attack_contradicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orchestrator.attacking.sandwich as sandwich_module

    strong = {"pgd": {**PGD, "sizes": [3.0, 6.0], "steps": 10, "draws": 8}}
    path = written(tmp_path, attacks=strong)
    certify_run(spec_of(tmp_path), hire=hire_inline)
    genuine = sandwich_module.sandwich

    def boastful(line: Any, certificates: Any, attacked: Any, **rest: Any) -> Any:
        """As if radii were forty times as large."""
        at = certificates.schema.get_field_index("radius")
        return genuine(
            line, certificates.set_column(at, "radius", pc.multiply(certificates["radius"], 40.0)), attacked, **rest
        )

    monkeypatch.setattr(sandwich_module, "sandwich", boastful)
    done = invoke(monkeypatch, "attack", str(path))
    assert done.exit_code == 4, done.output
    assert "CONTRADICTED" in done.output
    assert "attacks contradict the certificates" in done.output
    assert "the attacked curve falls under the certified one" in done.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("attack.attacks.pgd.sizes=[0.5, 0.2]", "sizes must increase"),
        ("attack.attacks.pgd.sizes=[0]", "attack.attacks.pgd.sizes"),
        ("attack.attacks.pgd.sizes={stop: 1}", "needs stop and step"),
        ("attack.attacks.pgd.kind=fgsm", "attack.attacks.pgd.kind: got 'fgsm'; valid: pgd, cw, square"),
        ("attack.attacks.pgd.norm=l1", "attack.attacks.pgd.norm: got 'l1'"),
        ("attack.attacks.pgd.stepz=3", "unknown key attack.attacks.pgd.stepz, did you mean 'steps'?"),
        ("attack.attacks.pgd.noise={kind: splitting, scale: 0.4}", "splitting noise is not"),
        ("attack.attacks.Pgd={kind: cw, sizes: [1]}", "Pgd"),
        ("attack.attacks={}", "attacks"),
        ("attack.alpha=1", "alpha"),
        ("attack.draws=0", "draws"),
        ("noise={kind: none}", "holds for gaussian noise"),
        ("attack=null", "attack is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, told: str
) -> None:
    done = invoke(monkeypatch, "attack", str(written(tmp_path)), "--set", change)
    assert done.exit_code == 2, done.output
    assert len(done.output.strip().splitlines()) == 1
    assert told in done.output


def test_rows_do_not_depend_on_how_shards_are_cut(tmp_path: Path) -> None:
    one = attack_run(spec_of(tmp_path / "a", resources={"shard_size": 4}), hire=hire_inline).attacked.attempts
    two = attack_run(spec_of(tmp_path / "b", resources={"shard_size": 4, "batch_size": 128}), hire=hire_inline)
    assert one.equals(two.attacked.attempts)
    three = attack_run(spec_of(tmp_path / "c", resources={"shard_size": 12}), hire=hire_inline).attacked.attempts
    # Other numbers of rows in a pass may round otherwise: steps then end elsewhere by little.
    assert np.allclose(one["l2"].to_numpy(), three["l2"].to_numpy(), rtol=1e-3)


def test_status_verify_and_gc_know_of_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tmp_path, {"pgd": PGD, "linf": LINF})
    certify_run(spec, hire=hire_inline)
    attack_run(spec, hire=hire_inline)
    run = str(tmp_path / "run")
    status = CliRunner().invoke(main, ["status", run])
    assert "attack   pgd: 3 of 3 shards" in status.output
    assert json.loads(CliRunner().invoke(main, ["status", run, "--json"]).output)["attacks"] == {"linf": 3, "pgd": 3}
    assert CliRunner().invoke(main, ["verify", run]).exit_code == 0
    before = files_of(tmp_path)
    swept = CliRunner().invoke(main, ["gc", run, "--yes"])
    assert swept.exit_code == 0, swept.output
    assert files_of(tmp_path) == before
    (tmp_path / "run" / layout.attempts("pgd", 2)).unlink()
    lacking = CliRunner().invoke(main, ["verify", run])
    assert lacking.exit_code == 3, lacking.output
    assert "attack pgd lacks 1 of 3 shards" in lacking.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: farther(table), "farther from the clean one than its size allows"),
        (lambda table: with_column(table, "draws", pc.add(table["draws"], 1)), "do not add up"),
        (lambda table: with_column(table, "size", pc.multiply(table["size"], 2.0)), "of another attack, run or shard"),
        (lambda table: table.slice(4), "of another attack, run or shard"),
    ],
    ids=["distance", "draws", "sizes", "rows"],
)
def test_verify_finds_attempts_that_cannot_be(tmp_path: Path, change: Any, told: str) -> None:
    spec = spec_of(tmp_path)
    certify_run(spec, hire=hire_inline)
    attack_run(spec, hire=hire_inline)
    path = tmp_path / "run" / layout.attempts("pgd", 0)
    table, provenance = attempts_table.decode(path.read_bytes())
    del provenance["schema_version"]
    path.write_bytes(attempts_table.encode(change(table), provenance))
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "run")])
    assert done.exit_code == 4, done.output
    assert told in done.output


def test_verify_finds_tables_that_the_attempts_do_not_bear_out(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    certify_run(spec, hire=hire_inline)
    attack_run(spec, hire=hire_inline)
    path = tmp_path / "run" / layout.ROBUSTNESS
    table = pq.read_table(path)
    pq.write_table(with_column(table, "robust", pc.add(table["robust"], 1)), path)
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "run")])
    assert done.exit_code == 4, done.output
    assert "not what the attempts say" in done.output


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), values)


def farther(table: pa.Table) -> pa.Table:
    return with_column(table, "l2", pc.add(table["l2"], 0.01))


def test_an_attack_can_be_submitted(tmp_path: Path) -> None:
    whole = {"store": {"run": "s3://bucket/run"}}
    source = {"name": "mnist", "checkpoint": "here/model.pt"}
    spec = spec_of(tmp_path, {"pgd": {**PGD, "source": source}}, **whole)
    with pytest.raises(SpecError, match=r"attack\.attacks\.pgd\.source\.checkpoint here/model\.pt is relative"):
        job_of(spec, "attack", tmp_path / "spec.yaml", [])
    job = job_of(spec_of(tmp_path, **whole), "attack", tmp_path / "spec.yaml", [])
    assert (job.command, job.makes) == ("attack", "s3://bucket/run")
    without = validate(digits_spec(**whole), "spec")
    with pytest.raises(SpecError, match="attack is missing"):
        job_of(without, "attack", tmp_path / "spec.yaml", [])


@pytest.mark.parametrize("field", ["draws", "seed", "keep"])
def test_nothing_that_decides_attempts_is_changed_unnoticed(tmp_path: Path, field: str) -> None:
    spec = spec_of(tmp_path)
    attack_run(spec, hire=hire_inline)
    assert spec.attack is not None
    changed = spec.attack.model_copy(update={field: getattr(spec.attack, field) + 3})
    with pytest.raises(RunError, match=rf"\({field}: it has \d+, asked \d+\)"):
        attack_run(spec.model_copy(update={"attack": changed}), hire=hire_inline)


def test_an_attack_that_was_begun_since_makes_the_tables_outdated(tmp_path: Path) -> None:
    attack_run(spec_of(tmp_path), hire=hire_inline)
    with pytest.raises(Lost):
        attack_run(spec_of(tmp_path, {"linf": LINF}), hire=hire_until(0))
    found = published_attacks(LocalStore(tmp_path / "run"))
    assert found is not None
    assert found.outdated
    assert not found.complete
    assert "INCOMPLETE" in title(found)
    # Who asks for what is complete is told so, whatever else was begun.
    again = attack_run(spec_of(tmp_path), hire=hire_inline)
    assert again.complete
    assert not again.attacked.complete


def test_damaged_certificates_are_no_reason_to_look_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    certify_run(spec_of(tmp_path), hire=hire_inline)
    table = tmp_path / "run" / layout.CERTIFICATES
    table.write_bytes(table.read_bytes()[:-9])
    done = invoke(monkeypatch, "attack", str(path))
    assert done.exit_code == 2, done.output
    assert "certificates.parquet is missing or damaged" in done.output


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ({"attacks": {"a": {**LINF, "sizes": [8]}}}, "8/255 = 0.0314, got 8"),
        ({"attacks": {"a": LINF}, "draws": 5}, "set draws to 11 or more"),
        ({"attacks": {"a": {**PGD, "sizes": [1e300]}}}, "less than or equal to 10000"),
        (
            {"attacks": {"a": {**PGD, "source": {"name": "mnist", "checkpoint": "~nosuchuser/x.pt"}}}},
            "home directory",
        ),
    ],
    ids=["sizes of 0 to 255", "too few votes", "no size", "no home"],
)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, attack: dict[str, Any], told: str) -> None:
    content = digits_spec(store={"run": str(tmp_path / "run")}, attack=attack)
    with pytest.raises(SpecError) as error:
        attack_run(validate(content, "spec"), hire=hire_inline)
    assert told in str(error.value)
