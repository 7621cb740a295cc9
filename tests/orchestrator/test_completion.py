"""Shell completion: what is offered, that a real bash takes it, and that neither it nor help waits for PyTorch."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from orchestrator.cli import main, words
from orchestrator.spec import Confidence
from stn_core import CERTIFICATES, PROTOCOLS
from stn_core.confidence import Interval
from workers import layout
from workers.settings import Method

ROOT = Path(__file__).parents[2]

#: `stn` of this source tree, whatever is installed.
STN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from orchestrator.cli import main; main(prog_name='stn')"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with specs, runs, an imported result, and what is none of these."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *("my.yaml", "notes.txt", "specs/a.yml", "specs/deep/b.yaml", ".hidden.yaml", "odd[1].yaml"),
        *(f"runs/demo/{layout.PLAN}", f"runs/sweep/sigma-0.5/{layout.PLAN}", f"runs/other/{layout.IMPORTED}"),
        "runs/nothing/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()


def offered(*line: str) -> list[str]:
    """What the last word of a line may become, or what kind of name the shell is to look for."""
    *before, last = line
    items = BashComplete(main, {}, "stn", "_STN_COMPLETE").get_completions(list(before), last)
    return [item.value if item.type == "plain" else item.type for item in items]


def test_commands_and_options_are_offered() -> None:
    assert offered("") == list(main.commands)
    assert offered("re") == ["reduce", "report"]
    assert offered("paper", "fig") == ["figure1", "figure3", "figure4"]
    assert "--retry-failed" in offered("certify", "my.yaml", "--")
    assert offered("submit", "my.yaml", "--command", "t") == ["train"]


def test_specs_are_offered_and_where_there_are_none_any_file() -> None:
    assert offered("certify", "") == ["my.yaml", "odd[1].yaml", "specs/a.yml"]
    assert offered("plan", "specs/") == ["specs/a.yml", "specs/deep/b.yaml"]
    assert offered("doctor", "sp") == ["specs/a.yml"]
    assert offered("train", "odd[") == ["odd[1].yaml"]
    assert offered("train", "./m") == ["./m" + "y.yaml"]
    assert offered("certify", "nowhere/x") == ["file"]
    assert offered("certify", "~/") == ["file"]
    assert offered("paper", "table1", "my.yaml", "--beyond", "m") == ["my.yaml"]


def test_runs_are_offered_and_where_there_are_none_any_folder(tmp_path: Path) -> None:
    assert offered("status", "") == ["runs/demo", "runs/other"]
    assert offered("report", "runs/demo", "runs/") == ["runs/demo", "runs/other", "runs/sweep/sigma-0.5"]
    assert offered("reduce", "runs/d") == ["runs/demo"]
    assert offered("verify", f"{tmp_path}/runs/d") == [f"{tmp_path}/runs/demo"]
    assert offered("compare", "s3://bucket/x") == ["dir"]
    assert offered("gc", "elsewhere/") == ["dir"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_folders_that_nobody_may_look_into_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "specs").chmod(0o000)
    try:
        assert offered("certify", "specs/") == ["file"]
    finally:
        (tmp_path / "specs").chmod(0o755)


def test_names_of_certificates_protocols_and_methods_are_offered() -> None:
    assert offered("reduce", "runs/demo", "--certificate", "pix") == ["pixeldp", "pixeldp_laplace", "pixeldp_linf"]
    assert offered("compare", "a", "b", "--protocol", "any") == ["anytime", "anytime_label"]
    assert offered("sweep", "my.yaml", "--method", "stn,sm") == ["stn,smoothadv"]
    assert offered("init", "--data", "im") == ["imagenet"]


def test_the_names_that_are_spelled_once_more_are_those_of_the_registers() -> None:
    assert tuple(CERTIFICATES) == words.CERTIFICATES
    assert tuple(PROTOCOLS) == words.PROTOCOLS == get_args(Confidence.model_fields["protocol"].annotation)
    assert get_args(Interval) == words.INTERVALS
    assert get_args(Method) == words.METHODS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_STN_COMPLETE={shell}_complete" in result.stdout


def test_another_shell_is_refused_in_one_line() -> None:
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Invalid value for '{bash|zsh|fish}': 'tcsh' is not one of")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes(tmp_path: Path) -> None:
    """As its readline would: it calls the function that the script registered, and takes what that leaves."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/stn"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(STN)} "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(stn completion bash)"
        complete -p stn
        tried() {
          COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
          _stn_completion stn
          echo "${COMPREPLY[*]}"
        }
        tried stn certify sp
        tried stn reduce runs/demo --protocol an
        tried stn st
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    registered, *tried = done.stdout.splitlines()
    assert "_stn_completion stn" in registered
    assert tried == ["specs/a.yml", "anytime anytime_label", "status"]


#: Of these, each takes longer to import than all of the command line.
SLOW = ("torch", "ray", "scipy", "numpy", "pyarrow", "pydantic", "matplotlib", "plotly", "boto3")


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("--help", {}),
        ("certify --help", {}),
        ("completion zsh", {}),
        ("", {"_STN_COMPLETE": "bash_complete", "COMP_WORDS": "stn certify sp", "COMP_CWORD": "2"}),
        ("", {"_STN_COMPLETE": "bash_complete", "COMP_WORDS": "stn compare x --certificate r", "COMP_CWORD": "4"}),
    ],
    ids=["help of all", "help of one", "script", "a spec", "a name"],
)
def test_help_and_completion_import_nothing_slow(line: str, settings: dict[str, str]) -> None:
    watched = f"import atexit, sys; atexit.register(lambda: print(*(set({SLOW}) & set(sys.modules)), file=sys.stderr))"
    done: Any = subprocess.run(
        [sys.executable, "-c", f"{watched}; {STN}", *line.split()],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr == "\n"
