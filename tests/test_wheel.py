"""The wheel, built and installed beside this environment's libraries: what users get, and not what lies here."""

from __future__ import annotations

import re
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests import wheel
from tests.orchestrator.conftest import few_digits, made  # noqa: F401 - fixtures
from tests.orchestrator.runs import MadeRun
from tests.wheel import PACKAGES, PROJECT, ROOT, VERSION, Environment


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return wheel.beside(tmp_path_factory.mktemp("environment"), built)


def test_it_holds_every_file_of_the_packages_and_nothing_else(built: Path) -> None:
    names = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == files
    assert {f"{package}/py.typed" for package in PACKAGES} < names


def test_it_says_what_it_is(built: Path) -> None:
    archive, about = zipfile.ZipFile(built), f"stn-{VERSION}.dist-info"
    said = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("stn", VERSION, "MIT")
    assert said["Requires-Python"] == PROJECT["requires-python"]
    assert said.get_payload() == (ROOT / "README.md").read_text()
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert set(said.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert archive.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_its_version_is_written_in_one_place() -> None:
    """An image's tag has to be written out: it is held to be the same."""
    copies = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if re.search(rf"[\"']{re.escape(VERSION)}[\"']|__version__ *=", path.read_text())
    }
    assert copies == set()
    for file in ("Dockerfile", "rayjob.yaml"):
        tags = re.findall(r"/stn:(\S+)", (ROOT / "deploy" / file).read_text())
        assert tags
        assert set(tags) == {VERSION}, file


def test_installed_it_is_whole_and_none_of_the_source_tree(environment: Environment) -> None:
    environment.check()


def test_installed_it_reads_votes_writes_specs_and_makes_pages(environment: Environment, made: MadeRun) -> None:  # noqa: F811
    made.write(environment.here / "run")
    lines = ("init my.yaml --data mnist", "reduce run", "report run --no-images")
    environment.run("python", "-c", wheel.SEVERAL, *lines)
    page = (environment.here / "run/report.html").read_text()
    for part in ("page.css", "page.js"):
        assert (ROOT / "orchestrator/reporting/page" / part).read_text().strip().splitlines()[-1] in page
    assert (environment.here / "my.yaml").read_text().startswith("# What to certify")
