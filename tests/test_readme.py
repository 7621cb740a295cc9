"""The README says what the program does today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.spec import Spec
from stn_core import CERTIFICATES, PROTOCOLS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STATISTICS = (ROOT / "docs" / "statistics.md").read_text()


def test_every_command_is_described() -> None:
    assert set(re.findall(r"^\| `stn ([\w-]+)", README, re.MULTILINE)) == set(main.commands)


def test_every_section_of_a_spec_is_named() -> None:
    """Its keys are in docs/spec.md, which is made from the schema."""
    assert [name for name in Spec.model_fields if f"| `{name}` |" not in README] == []
    assert "docs/spec.md" in README


def test_every_certificate_and_protocol_is_documented() -> None:
    assert [name for name in PROTOCOLS if f"`{name}`" not in README] == []
    assert [name for name in [*CERTIFICATES, *PROTOCOLS] if f"`{name}`" not in STATISTICS] == []


def test_the_statistics_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", STATISTICS, re.DOTALL) if "stn_core" in block]
    exec(compile(block, "statistics.md", "exec"), {})
    assert capsys.readouterr().out.count("[") == 6
