"""docs/spec.md and docs/cli.md are what `make docs` writes today, and every help has an example that parses."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from orchestrator.cli import main
from orchestrator.spec import Spec
from workers.settings import Section

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = runpy.run_path(str(DOCS / "reference.py"))


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, groups too, and how it is called below `stn`."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))


def sections(section: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    """Every kind of section of a spec that has keys of its own or inherits some."""
    for below in section.__subclasses__():
        yield below
        yield from sections(below)


@pytest.mark.parametrize(("page", "write"), [("spec.md", "spec_page"), ("cli.md", "cli_page")])
def test_the_page_is_what_make_docs_writes(page: str, write: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == REFERENCE[write](), "stale: run `make docs`"


def test_every_key_of_a_spec_is_described() -> None:
    """But `kind`, which the section's own docstring describes."""
    found = [section for section in sections() if section.__module__.startswith(("workers.", "orchestrator."))]
    assert Spec in found
    assert len(found) > 25
    silent = [
        f"{section.__name__}.{key}"
        for section in found
        for key, field in section.model_fields.items()
        if key != "kind" and not field.description
    ]
    assert silent == []
    assert [section.__name__ for section in found if not section.__doc__] == []


def test_every_key_is_on_the_page() -> None:
    page = (DOCS / "spec.md").read_text(encoding="utf-8")
    for section in sections():
        for key in section.model_fields:
            assert re.search(rf"^(\| `{key}` \||##+ `(\w+\.)*{key}`)", page, re.MULTILINE), f"{section.__name__}.{key}"


def test_the_pages_links_lead_somewhere() -> None:
    page = (DOCS / "spec.md").read_text(encoding="utf-8")
    headings = {re.sub(r"[^a-z0-9_]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    linked = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(linked) > 5
    assert linked <= headings


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=" ".join(("stn", *one[0]))) for one in commands()])
def test_every_help_has_an_example_whose_command_line_parses(
    path: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "as it was, afterwards")  # --address sets it
    shown = CliRunner().invoke(main, [*path, "--help"]).stdout
    (example,) = re.findall(r"^ *Example: (.*)$", shown, re.MULTILINE)
    program, *rest = shlex.split(example)
    assert program == "stn"
    called: Any = main
    for name in path:
        assert rest[0] == name
        called, rest = called.commands[rest[0]], rest[1:]
    assert called is command
    while isinstance(called, click.Group):  # a group's example is of one of its commands
        called, rest = called.commands[rest[0]], rest[1:]
    called.make_context(called.name, rest)  # refuses what it does not know


def test_an_example_that_does_not_parse_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        main.commands["train"].make_context("train", ["examples/demo.yaml", "--epochs", "3"])
