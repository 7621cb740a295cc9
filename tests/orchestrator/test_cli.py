from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch import nn

from orchestrator.cli import main
from stn_core import interval_variates
from tests.networks import tiny
from tests.orchestrator.runs import MadeRun, mnist_spec
from workers import layout

ROOT = Path(__file__).parents[2]

COMMANDS = (
    *("init", "train", "plan", "certify", "attack", "submit", "sweep", "paper", "status", "reduce", "report"),
    *("compare", "import-cohen", "schema", "gc", "doctor", "verify", "completion"),
)


@pytest.fixture(autouse=True)
def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own, and what the commands do to their process undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("STN_TRACEBACK", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


@pytest.fixture
def spec(few_digits: Path, tmp_path: Path) -> Path:
    """The spec of the run ``made``."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(mnist_spec(few_digits, store={"run": str(tmp_path / "whole")})))
    return path


@pytest.fixture
def whole(made: MadeRun, tmp_path: Path) -> Path:
    """A run whose votes are all counted."""
    return Path(made.write(tmp_path / "whole").uri)


@pytest.fixture
def half(made: MadeRun, tmp_path: Path) -> Path:
    """A run that misses its second shard."""
    return Path(made.write(tmp_path / "half", [0, 2]).uri)


# --- Help ----------------------------------------------------------------------------------------------------------


def test_every_command_is_known_here() -> None:
    assert set(main.commands) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = stn(command, "--help")
    assert result.exit_code == 0
    assert f"Example: stn {command} " in " ".join(result.stdout.split())
    assert stn(command, "-h").stdout == result.stdout


def test_the_help_of_all_lists_every_command_and_the_exit_codes() -> None:
    result = stn("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    codes = "Exit codes: 0 complete 2 bad usage or spec 3 finished incomplete: the same command goes on with what is "
    assert codes in " ".join(result.stdout.split())
    path = [result.stdout.index(f"  stn {command} ") for command in ("init", "train", "certify", "report", "compare")]
    assert path == sorted(path)


def test_the_version_is_told() -> None:
    result = stn("--version")
    assert result.exit_code == 0
    assert "stn" in result.stdout or "version" in result.stdout


# --- plan ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if processes had been started and had measured; a little is counted in this process all the same."""
    monkeypatch.setattr("orchestrator.planning.estimate.run_probes", lambda probe, processes: (2.0, 0.25))


def test_plan_says_what_would_be_done_and_writes_nothing(
    spec: Path, made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.planning.estimate._PROBE_S", 0.01)
    before = files(tmp_path)
    result = stn("plan", spec, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    values: dict[str, Any] = json.loads(result.stdout)
    expected = {
        "run": str(tmp_path / "whole"),
        "images": 20,
        "shards": 3,
        "shard_size": 8,
        "draws": 64,
        "selection_draws": 16,
        "forward_passes": 1600,
        "model_sha256": made.plan.model_sha256,
        "dataset_sha256": made.plan.dataset_sha256,
    }
    assert values == {**values, **expected}
    assert all(values[name] > 0 for name in ("actors", "forward_passes_per_s_per_actor", "estimated_bytes"))
    parts = [values[f"estimated_{part}_seconds"] for part in ("start", "counting", "reduce")]
    assert values["estimated_seconds"] == pytest.approx(sum(parts), abs=0.21)  # each is rounded to a tenth
    assert files(tmp_path) == before


@pytest.mark.usefixtures("_no_probes")
def test_plan_prints_the_same_for_people(spec: Path) -> None:
    result = stn("plan", spec, "--set", "sampling.draws=4")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = {line[:32].strip(): line[32:] for line in result.stdout.splitlines()}
    assert lines["images"] == "20"
    assert lines["forward passes"] == str(20 * 20)


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        (["noise.sampler=sound"], 20 * 80),
        (["noise={kind: laplace, scale: 0.2}"], 20 * 80),
        (["noise={kind: uniform, scale: 0.2}"], 20 * 80),
        (["noise={kind: splitting, scale: 0.1}", "sampling={draws: 51}", "confidence.protocol=exact"], 20 * 51),
    ],
    ids=["sound", "laplace", "uniform", "splitting"],
)
def test_plan_estimates_any_noise(spec: Path, changes: list[str], passes: int) -> None:
    options = [part for change in changes for part in ("--set", change)]
    result = stn("plan", spec, *options, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["forward_passes"] == passes


@pytest.mark.usefixtures("_no_probes")
def test_a_limit_is_a_run_of_its_own(spec: Path, tmp_path: Path) -> None:
    values = json.loads(stn("plan", spec, "--limit", 5, "--json").stdout)
    assert (values["images"], values["run"]) == (5, str(tmp_path / "whole-limit-5"))
    named = json.loads(stn("plan", spec, "--limit", 5, "--run", "elsewhere", "--json").stdout)
    assert (named["images"], named["run"]) == (5, "elsewhere")


def without_parameters() -> nn.Module:
    """A network that has nothing to learn: its logits are the first ten pixels."""

    class FirstPixels(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :10]

    return FirstPixels()


@pytest.mark.usefixtures("_no_probes")
def test_plan_takes_a_network_without_parameters(spec: Path) -> None:
    result = stn("plan", spec, "--set", "model.name=tests.orchestrator.test_cli:without_parameters", "--json")
    assert (result.exit_code, result.stderr) == (0, "")


# --- status --------------------------------------------------------------------------------------------------------


def test_status_tells_of_an_incomplete_run(half: Path) -> None:
    for shard, time in ((0, 1000), (2, 1010)):
        os.utime(half / layout.counts(shard), (time, time))
    result = stn("status", half)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{half}: incomplete" in result.stdout
    assert "12 of 20 counted, 0 failed, 8 missing" in result.stdout
    assert "2 of 3 committed, 0 given up" in result.stdout
    assert "0.4 images/s, 20 s left" in result.stdout


def test_status_tells_of_a_complete_run_and_of_shards_given_up(whole: Path, half: Path) -> None:
    assert f"{whole}: complete" in stn("status", whole).stdout
    (half / "failed").mkdir()
    (half / layout.failed(1)).write_text(json.dumps({"shard": 1, "attempts": 3, "reason": "out of memory"}))
    assert "given up shard 1: out of memory" in stn("status", half).stdout


def test_status_as_json_is_the_same_numbers(half: Path) -> None:
    result = stn("status", half, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    values = json.loads(result.stdout)
    assert (values["run"], values["complete"]) == (str(half), False)
    assert (values["images"], values["counted"], values["failed"]) == (20, 12, 0)
    assert (values["shards"], values["shards_committed"], values["shards_given_up"]) == (3, 2, {})


# --- reduce --------------------------------------------------------------------------------------------------------


def test_reduce_computes_the_specs_view_unless_told_otherwise(whole: Path) -> None:
    result = stn("reduce", whole, "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert (values["images"], values["counted"], values["missing"]) == (20, 20, 0)
    assert {row["certificate"] for row in values["curves"]} == {
        "renyi",
        "neyman_pearson_one_class",
        "neyman_pearson_two_class",
        "pixeldp",
    }
    assert {row["protocol"] for row in values["curves"]} == {"paper"}
    assert {row["alpha"] for row in values["curves"]} == {0.05}
    assert {row["beta"] for row in values["curves"]} == {0.01}
    assert pq.read_table(whole / "certificates.parquet")["uniform"].null_count == 80
    assert [row["radius"] for row in values["curves"][:5]] == [0.0, 0.05, 0.1, 0.2, 0.4]
    assert pq.read_table(whole / "curves.parquet").to_pylist() == values["curves"]


def test_reduce_takes_certificates_protocols_alpha_and_radii(whole: Path) -> None:
    options = [
        "--certificate",
        "renyi",
        "--protocol",
        "paper",
        "--protocol",
        "split",
        "--alpha",
        0.01,
        "--radii",
        "0,.1",
    ]
    curves = json.loads(stn("reduce", whole, *options, "--json").stdout)["curves"]
    found = [(row["certificate"], row["protocol"], row["alpha"], row["radius"]) for row in curves]
    assert found == [("renyi", protocol, 0.01, radius) for protocol in ("paper", "split") for radius in (0, 0.1)]


def test_reduce_takes_interval_and_beta(whole: Path, made: MadeRun) -> None:
    plain = json.loads(stn("reduce", whole, "--json").stdout)["curves"]
    result = stn("reduce", whole, "--interval", "randomised", "--beta", 0.05, "--json")
    assert result.exit_code == 0
    curves = json.loads(result.stdout)["curves"]
    assert {row["beta"] for row in curves} == {0.05}
    assert [row["radius"] for row in curves] == [row["radius"] for row in plain]
    assert all(new["certified"] >= old["certified"] for new, old in zip(curves, plain, strict=True))
    stored = pq.read_table(whole / "certificates.parquet").sort_by(
        [("certificate", "ascending"), ("index", "ascending")]
    )
    expected = interval_variates(1, made.rows["key"].to_numpy()).tolist()
    assert stored["uniform"].to_pylist() == expected * 4
    # What is not given is the spec's, not what was asked for last.
    assert json.loads(stn("reduce", whole, "--interval", "clopper_pearson", "--json").stdout)["curves"] == plain


def test_a_part_of_a_data_set_is_called_one(whole: Path, with_failures: MadeRun, tmp_path: Path) -> None:
    assert "20 of the data set's 25 images" in stn("reduce", whole).stdout
    assert "of the data set's" not in stn("reduce", with_failures.write(tmp_path / "all").uri).stdout


def test_reduce_says_what_interval_and_beta_mean(whole: Path) -> None:
    shown = stn("reduce", whole, "--interval", "randomised", "--beta", 0.05).stdout
    assert "alpha = 0.05, randomised intervals" in shown
    assert "truly certified, at least, with probability 1 - 0.05 over all noise" in " ".join(shown.split())
    assert "draws without a vote (NaN): 0, with a tie: 0" in shown
    assert "clopper-pearson intervals" in stn("reduce", whole).stdout


def test_reduce_shows_a_table_to_people(whole: Path) -> None:
    result = stn("reduce", whole, "--certificate", "renyi", "--certificate", "renyi")
    assert result.exit_code == 0
    assert "certified accuracy, whole" in result.stdout
    assert "renyi" in result.stdout
    assert "20 images, 0 failed, 0 missing; n = 64; protocol paper, alpha = 0.05" in result.stdout
    rows = [line for line in result.stdout.splitlines() if "│" in line]
    assert len([line for line in rows if re.search(r" \d+\.\d % \(\d+\.\d %\) ", line)]) == 5
    assert re.search(r"│ +abstain │ +\d+ │", rows[-1])


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "json"])
def test_reduce_of_an_incomplete_run_says_so_and_exits_with_3(half: Path, options: list[str]) -> None:
    result = stn("reduce", half, *options)
    assert result.exit_code == 3
    assert "of 20 images 12 counted, 0 failed, 8 missing" in result.stderr
    assert "error" not in result.stderr
    assert not (half / "curves.parquet").exists()


# --- report --------------------------------------------------------------------------------------------------------


def test_report_writes_into_the_run(whole: Path) -> None:
    stn("reduce", whole)
    result = stn("report", whole)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"wrote {whole}/report.html" in result.stdout
    assert "<h2>whole</h2>" in (whole / "report.html").read_text()
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_two_runs_goes_to_the_folder_asked_for(whole: Path, half: Path, tmp_path: Path) -> None:
    stn("reduce", whole)
    stn("reduce", half)
    result = stn("report", whole, half, "--out", "comparison")
    assert (result.exit_code, result.stderr) == (3, "")  # one of the two is incomplete
    html = (tmp_path / "comparison" / "report.html").read_text()
    assert "<h2>whole</h2>" in html
    assert "half (INCOMPLETE: 8 missing of 20 images)" in html
    assert (tmp_path / "comparison" / "curves.png").is_file()
    assert not (whole / "report.html").exists()


def test_report_of_two_runs_goes_here_by_default(whole: Path, tmp_path: Path) -> None:
    stn("reduce", whole)
    assert stn("report", whole, whole).exit_code == 0
    assert (tmp_path / "report.html").is_file()


def test_report_of_two_complete_runs_names_the_best_of_them(
    made: MadeRun, by_noise: dict[str, MadeRun], whole: Path, tmp_path: Path
) -> None:
    sound = Path(by_noise["sound"].write(tmp_path / "sound").uri)
    for run in (whole, sound):
        stn("reduce", run)
    assert stn("report", whole, sound, "--out", "both").exit_code == 0
    html = (tmp_path / "both" / "report.html").read_text()
    assert html.count("<h2>Best of 2 runs at each radius: ") == 4
    assert "(selection)" in html
    assert stn("report", whole, "--out", "one").exit_code == 0
    assert "Best of" not in (tmp_path / "one" / "report.html").read_text()


@pytest.mark.parametrize("name", ["laplace", "uniform", "splitting"])
def test_runs_under_any_noise_are_reduced_and_reported(by_noise: dict[str, MadeRun], tmp_path: Path, name: str) -> None:
    run = Path(by_noise[name].write(tmp_path / name).uri)
    result = stn("reduce", run)
    assert result.exit_code == 0
    assert "error" not in result.stderr
    assert stn("report", run).exit_code == 0
    html = (run / "report.html").read_text()
    assert f"{name}, scale = " in html
    assert "These 20 images are part of a data set of 25." in html


# --- verify --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runs of these tests were counted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("_cpu")
def test_verify_of_a_run_that_is_right(whole: Path) -> None:
    stn("reduce", whole)
    before = contents(whole)
    result = stn("verify", whole, "--recount", 3, "--seed", 5)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{whole}: all is right",
        "objects      ok: 3 objects are what was written",
        "belonging    ok: nothing of another run or shard",
        "gaps         ok: 20 of 20 images have votes",
        "doubles      ok: no image and no key twice",
        "sums         ok: votes and invalid draws add up to the planned draws",
        "certificates ok: 80 derived anew from the votes",
        "curves       ok: what the certificates give",
        "recount      ok: 3 images came out the same, chosen by seed 5",
    ]
    assert result.stderr.splitlines()[0] == "reading votes: 3 shards"
    assert contents(whole) == before


@pytest.mark.usefixtures("_cpu")
def test_verify_chooses_images_anew_each_time_and_says_by_which_seed(whole: Path) -> None:
    stn("reduce", whole)
    first, second = (json.loads(stn("verify", whole, "--recount", 3, "--json").stdout) for _ in range(2))
    assert first["right"]
    assert first["complete"]
    assert first["recount"]["seed"] != second["recount"]["seed"]
    same = json.loads(stn("verify", whole, "--recount", 3, "--seed", first["recount"]["seed"], "--json").stdout)
    assert same["recount"] == first["recount"]
    assert json.loads(stn("verify", whole, "--json").stdout) == {**first, "recount": None}


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "json"])
def test_verify_of_a_run_that_is_incomplete_exits_with_3(half: Path, options: list[str]) -> None:
    stn("reduce", half)
    result = stn("verify", half, *options)
    assert result.exit_code == 3
    assert "incomplete: 1 of 3 shards are not counted: 1" in result.stderr.splitlines()
    if options:
        values = json.loads(result.stdout)
        assert (values["right"], values["complete"], values["findings"]) == (True, False, [])
    else:
        assert result.stdout.startswith(f"{half}: incomplete, and right so far\n")


def test_verify_of_votes_without_certificates_says_that_there_are_none(whole: Path) -> None:
    result = stn("verify", whole)
    assert result.exit_code == 3
    assert "certificates ok: none to derive anew" in result.stdout
    assert "run `stn reduce`" in result.stderr


def test_verify_of_older_votes_says_how_many_have_no_checksum(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path / "older", [0, 1])
    store.create(layout.counts(2), made.encoded_as_version_1(2))
    result = stn("verify", store.uri)
    assert "3 objects are what was written, 1 of them from before there were checksums" in result.stdout


def test_verify_tells_all_that_is_wrong_and_exits_with_4(whole: Path) -> None:
    stn("reduce", whole)
    (whole / layout.counts(0)).write_bytes(b"junk")
    (whole / layout.counts(2)).unlink()
    for number in range(25):
        (whole / layout.COUNTS / f"{number:02}.txt").write_text("")
    result = stn("verify", whole)
    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"{whole}: something is wrong", "objects      1 wrong"]
    assert lines[2].startswith(f"  {layout.counts(0)}: damaged Parquet: ")
    assert lines[3:5] == ["belonging    25 wrong", "  counts/00.txt: is no object of a run"]
    assert lines[23:26] == [
        "  counts/19.txt: is no object of a run",
        "  and more: --json lists them",
        "gaps         ok: 8 of 20 images have votes",
    ]
    assert "certificates 16 wrong" in lines
    assert "  certificates.parquet, image 16, renyi under paper: has no votes" in lines
    assert "incomplete: 1 of 3 shards are not counted: 2" in result.stderr
    values = json.loads(stn("verify", whole, "--json").stdout)
    assert (values["right"], values["certificates_skipped"], len(values["findings"])) == (False, 32, 42)
    assert values["findings"][1] == {"kind": "foreign", "where": "counts/00.txt", "text": "is no object of a run"}


@pytest.mark.usefixtures("_cpu")
def test_verify_finds_votes_that_cannot_be_counted_again(whole: Path, tmp_path: Path) -> None:
    plan = json.loads((whole / layout.PLAN).read_text())
    plan["spec"]["dataset"]["path"] = str(tmp_path / "nowhere")
    (whole / layout.PLAN).write_text(json.dumps(plan))
    stn("reduce", whole)
    result = stn("verify", whole, "--recount", 2)
    assert result.exit_code == 4
    assert result.stdout.splitlines()[-2] == "recount      1 wrong"
    assert result.stdout.splitlines()[-1].startswith("  plan.json: what it names cannot be opened: no MNIST at")
    assert stn("verify", whole).exit_code == 0


def test_verify_of_a_run_whose_plan_is_damaged(whole: Path) -> None:
    (whole / layout.PLAN).write_bytes(b"junk")
    result = stn("verify", whole, "--recount", 2)
    assert result.exit_code == 4
    assert result.stdout.splitlines() == [
        f"{whole}: something is wrong",
        "objects      1 wrong",
        f"  plan.json: {whole}/plan.json is damaged: not a plan",
    ]


# --- certify, as far as it goes without workers --------------------------------------------------------------------


def test_certify_of_a_counted_run_reduces_it_and_then_has_nothing_to_do(spec: Path, whole: Path) -> None:
    first = stn("certify", spec, "--json")
    assert first.exit_code == 0
    values = json.loads(first.stdout)
    assert (values["complete"], values["nothing_to_do"], values["shards_counted"]) == (True, False, 0)
    assert (values["run"], values["images"], values["shards_given_up"]) == (str(whole), 20, {})
    again = stn("certify", spec)
    assert (again.exit_code, again.stdout) == (0, f"already complete, nothing to do: {whole}\n")


def test_certify_publishes_a_lost_table_again(spec: Path, whole: Path) -> None:
    stn("certify", spec)
    table = (whole / "certificates.parquet").read_bytes()
    (whole / "certificates.parquet").unlink()
    assert stn("certify", spec).exit_code == 0
    assert (whole / "certificates.parquet").read_bytes() == table


def test_certify_with_another_view_reduces_again(spec: Path, whole: Path) -> None:
    stn("certify", spec)
    result = stn("certify", spec, "--set", "confidence.alpha=0.01", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["nothing_to_do"] is False
    assert set(pq.read_table(whole / "curves.parquet")["alpha"].to_pylist()) == {0.01}


def test_certify_after_an_update_reduces_again(spec: Path, whole: Path, places: dict[str, Path]) -> None:
    (whole / "certificates.parquet").write_bytes(b"")
    (whole / "curves.parquet").write_bytes((places["old"] / "curves.parquet").read_bytes())
    result = stn("certify", spec)
    assert result.exit_code == 0
    assert "certified accuracy, whole" in result.stdout
    assert stn("certify", spec).stdout.startswith("already complete")


def test_certify_goes_on_with_a_plain_run_and_not_with_a_sound_one(spec: Path, whole: Path) -> None:
    assert stn("certify", spec, "--set", "noise.sampler=plain").exit_code == 0
    result = stn("certify", spec, "--set", "noise.sampler=sound")
    assert result.exit_code == 2
    assert "noise.sampler: the run has None, asked 'sound'" in result.stderr


def test_certify_does_not_mix_two_runs(spec: Path, whole: Path) -> None:
    before = {name: (whole / name).read_bytes() for name in files(whole) if (whole / name).is_file()}
    result = stn("certify", spec, "--set", "noise.sigma=0.3", "--set", "sampling.seed=7")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: {whole} holds another run (noise.sigma: the run has 0.2, asked 0.3; sampling.seed: the run has 1, "
        "asked 7): use another --run, or make the spec agree"
    ]
    assert {name: (whole / name).read_bytes() for name in before} == before


def test_a_run_of_failed_images_is_never_called_complete(with_failures: MadeRun, tmp_path: Path) -> None:
    root = with_failures.write(tmp_path / "failures").uri
    (tmp_path / "failures.yaml").write_text(
        with_failures.plan.spec.model_copy(
            update={"store": with_failures.plan.spec.store.model_copy(update={"run": root})}
        ).model_dump_json()  # JSON is YAML
    )
    for _ in range(2):
        result = stn("certify", "failures.yaml")
        assert result.exit_code == 3
        assert "6 counted, 2 failed, 0 missing" in result.stderr
        assert f"why images failed: stn status {shlex.quote(root)}" in result.stderr
        assert "already complete" not in result.stdout


@pytest.mark.parametrize("arguments", [("schema",), ("status", "{run}"), ("reduce", "{run}")])
def test_output_that_nobody_reads_is_no_bug(whole: Path, arguments: tuple[str, ...]) -> None:
    """As before `| head`: quietly, and with the exit code of a process that SIGPIPE ended."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *(each.format(run=whole) for each in arguments)],
        stdout=writer, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 141
    assert all(line.startswith("reducing: ") for line in done.stderr.splitlines()), done.stderr


# --- Bad input -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(
    made: MadeRun,
    one_phase: MadeRun,
    by_noise: dict[str, MadeRun],
    few_digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Files and runs that the bad inputs below name; nothing is ever written to them."""
    root = tmp_path_factory.mktemp("places")
    made.write(root / "whole")
    made.write(root / "half", [0, 2])
    one_phase.write(root / "one_phase")
    made.write(root / "damaged", [0]).create(layout.counts(1), b"junk")
    by_noise["splitting"].write(root / "splitting")
    votes = [[{"class": 1, "votes": 32}, {"class": 1, "votes": 32}]] * 8
    number = made.tables[0].schema.get_field_index("estimation")
    field = made.tables[0].schema.field(number)
    doubled = made.tables[1].set_column(number, field, pa.array(votes, field.type))
    made.write(root / "twice", [0, 2]).create(layout.counts(1), made.encoded(1, doubled))
    old = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"stn": b'{"schema_version": 1}'}), old)
    made.write(root / "old").create(layout.CURVES, old.getvalue())
    for name, content in (("no_plan", b"junk"), ("newer", b'{"schema_version": 99}')):
        (root / name).mkdir()
        (root / name / layout.PLAN).write_bytes(content)
    (root / "file").write_text("a file")
    (root / "empty").write_text("")
    (root / "binary").write_bytes(bytes(range(256)))
    torch.save(tiny().state_dict(), root / "foreign")
    job = mnist_spec(few_digits, store={"run": str(root / "whole")})
    (root / "job").write_text(yaml.safe_dump(job))
    model = {**job["model"], "checkpoint": str(root / "model.pt")}
    training = {"dataset": {"kind": "mnist", "path": str(few_digits)}}
    (root / "training").write_text(yaml.safe_dump({**job, "model": model, "training": training}))
    return {path.name: path for path in root.iterdir()}


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in files(root) if (root / name).is_file()}


#: Arguments, with {names} of ``places``, and what the message must say.
ERRORS: list[tuple[str, str]] = [
    ("plan nowhere.yaml", "cannot read spec nowhere.yaml: No such file"),
    ("plan {whole}", "cannot read spec"),
    ("plan {empty}", "must hold sections"),
    ("plan {binary}", "not a text file"),
    ("plan {file}", "must hold sections"),
    ("plan {job} --set noise.sigma=-1", "noise.sigma: got -1"),
    ("plan {job} --set noise.sigma", "expected section.key=value"),
    ("plan {job} --set nois.sigma=1", "did you mean 'noise'"),
    ("plan {job} --set noise.sigma=2001-99-99", "--set noise.sigma=2001-99-99"),
    ("plan {job} --set model.name=mnist", "model.checkpoint is missing"),
    ("plan {job} --set model.name=tests.networks:tyni", "tests.networks:tyni"),
    ("plan {job} --set model.name=tests.networks:tiny_rgb", "(1, 28, 28)"),
    ("plan {job} --set model.checkpoint={file}", "no readable checkpoint"),
    ("plan {job} --set dataset.path=nowhere", "nowhere"),
    ("certify nowhere.yaml", "cannot read spec"),
    ("certify {job} --set confidence.protocol=split --set sampling.selection_draws=0", "sampling.selection_draws"),
    ("certify {job} --run s3://bucket/run", "s3://"),
    ("certify {job} --run=", "run"),
    ("certify {job} --run {file}", "cannot write under"),
    ("certify {job} --run {no_plan}", "damaged"),
    ("certify {job} --run {newer}", "newer version"),
    ("train {job}", "training is missing"),
    ("train nowhere.yaml", "cannot read spec"),
    ("train {training} --set model.checkpoint=null", "model.checkpoint is missing"),
    ("train {training} --set model.checkpoint={file}", "no checkpoint of `stn train`"),
    ("train {training} --set model.checkpoint={foreign}", "trained with other settings"),
    ("train {training} --set training.dataset.path=nowhere", "nowhere"),
    ("train {training} --set model.num_classes=5", "training.dataset has label"),
    ("train {training} --set model.name=tests.networks:tyni", "tests.networks:tyni"),
    ("status nowhere", "no run at"),
    ("status {file}", "no run at"),
    ("status s3://bucket/run", "s3://bucket/run"),
    ("status {no_plan}", "damaged"),
    ("status {newer}", "newer version"),
    ("status {damaged}", "shard-000001.parquet"),
    ("status ~nobody-has-this-name/run", "~nobody-has-this-name"),
    ("reduce nowhere", "no run at"),
    ("reduce {damaged}", "shard-000001.parquet"),
    ("reduce {whole} --certificate renyii", "did you mean 'renyi'"),
    ("reduce {whole} --protocol papre", "did you mean 'paper'"),
    ("reduce {whole} --alpha 0", "alpha must lie inside"),
    ("reduce {whole} --alpha nan", "alpha must lie inside"),
    ("reduce {whole} --beta 0", "beta must lie inside (0, 1), got 0.0"),
    ("reduce {whole} --beta 1", "beta must lie inside (0, 1), got 1.0"),
    ("reduce {whole} --beta=-0.5", "beta must lie inside (0, 1), got -0.5"),
    ("reduce {whole} --beta nan", "beta must lie inside"),
    ("reduce {whole} --certificate splitting", "for that: renyi, neyman_pearson_two_class"),
    ("reduce {whole} --protocol exact", "protocol 'exact' needs splitting noise"),
    ("reduce {splitting} --protocol paper", "votes under splitting noise are exact: use protocol 'exact'"),
    ("reduce {twice} --certificate renyi", "its votes name a class twice"),
    ("report {old}", "no certificates yet: run `stn reduce` first"),
    ("plan {job} --set noise.sampler=sond", "did you mean 'sound'"),
    ("plan {job} --set noise=0.5", "must be a section with keys: kind, sigma"),
    ("plan {job} --set noise.kind=laplace", "unknown key noise.sigma; valid here: kind, scale"),
    ("plan {job} --set noise.kind=cauchy", "valid: gaussian, laplace, uniform, splitting"),
    ("reduce {one_phase} --protocol split", "'split' needs selection votes"),
    ("report nowhere", "no run at"),
    ("report {half}", "run `stn reduce` first"),
    ("report ftp://host/run", "ftp://"),
    ("compare nowhere {whole}", "no run at"),
    ("compare {half} {whole}", "run `stn reduce` first"),
    ("compare {newer} {whole}", "newer version"),
    ("compare {no_plan} {whole}", "damaged"),
    ("compare {old} {whole}", "no certificates yet: run `stn reduce` first"),
    ("compare {whole} ftp://host/run", "ftp://"),
    ("verify nowhere", "no run at"),
    ("verify {file}", "no run at"),
    ("verify ftp://host/run", "ftp://"),
]


@pytest.mark.parametrize(("line", "says"), ERRORS, ids=[line for line, _ in ERRORS])
def test_bad_input_is_one_line_that_says_what_is_wrong_and_exits_with_2(
    line: str, says: str, places: dict[str, Path], tmp_path: Path
) -> None:
    before = contents(places["whole"].parent)
    result = stn(*(part.format_map(places) for part in line.split()))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *progress, message = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert says in message
    assert all(re.fullmatch(r"(training|reducing): \d+ (epochs|shards)", line) for line in progress)
    assert contents(places["whole"].parent) == before
    assert files(tmp_path) == []


USAGE: list[tuple[str, str]] = [
    ("nothing", "No such command 'nothing'"),
    ("plan", "Missing argument 'SPEC'"),
    ("plan {job} --sett noise.sigma=1", "No such option"),
    ("plan {job} --limit 0", "0 is not in the range"),
    ("plan {job} --limit many", "'many' is not a valid integer"),
    ("certify {job} {job}", "unexpected extra argument"),
    ("certify {job} --set", "requires an argument"),
    ("status", "Missing argument 'RUN'"),
    ("status {whole} {half}", "unexpected extra argument"),
    ("reduce {whole} --alpha half", "'half' is not a valid float"),
    ("reduce {whole} --beta half", "'half' is not a valid float"),
    ("reduce {whole} --interval wilson", "'wilson' is not one of 'clopper_pearson', 'randomised'"),
    ("reduce {whole} --interval", "requires an argument"),
    ("reduce {whole} --radii a,b", "expected numbers separated by commas"),
    ("reduce {whole} --radii ,", "expected numbers separated by commas"),
    ("reduce {whole} --radii 1,0.5", "increase"),
    ("reduce {whole} --radii 1,1", "increase"),
    ("reduce {whole} --radii=-1,1", "not negative"),
    ("reduce {whole} --radii nan", "finite"),
    ("reduce {whole} --radii inf", "finite"),
    ("report", "Missing argument 'RUN"),
    ("compare", "Missing argument 'RUN"),
    ("compare {whole} {half} --level one", "'one' is not a valid float"),
    ("verify", "Missing argument 'RUN'"),
    ("verify {whole} --recount 0", "0 is not in the range"),
    ("verify {whole} --recount all", "'all' is not a valid integer"),
    ("verify {whole} --recount 1 --seed=-1", "-1 is not in the range"),
    ("verify {whole} --seed 1", "--seed goes with --recount"),
]


@pytest.mark.parametrize(("line", "says"), USAGE, ids=[line for line, _ in USAGE])
def test_bad_usage_is_told_in_one_line_and_exits_with_2(line: str, says: str, places: dict[str, Path]) -> None:
    result = stn(*(part.format_map(places) for part in line.split()))
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_a_report_that_cannot_be_written_is_an_error(whole: Path, tmp_path: Path) -> None:
    stn("reduce", whole)
    (tmp_path / "file").write_text("")
    result = stn("report", whole, "--out", "file")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot write under ")
    assert len(result.stderr.splitlines()) == 1
