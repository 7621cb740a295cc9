"""The layering, read from the source: stn_core <- workers <- orchestrator, and one module each for Ray and for keys."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import layout

ROOT = Path(__file__).parents[1]
PACKAGES = ("stn_core", "workers", "orchestrator")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything imported anywhere in a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text())))


def importers(package: str, name: str) -> set[str]:
    """Files of a package that import ``name`` or something below it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in modules(package)
        if any(found == name or found.startswith(name + ".") for found in imports_of(path))
    }


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string constant that is not a docstring, the constant parts of f-strings included."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def names_a_key(text: str) -> bool:
    """Whether a string is one of the layout's keys, ends in one as a path does, or begins below one of its folders."""
    keys = [value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)]
    alternatives = "|".join(re.escape(key) + ("" if key.endswith("/") else "$") for key in keys)
    return re.search(rf"(^|/)({alternatives})|shard-|round=", text) is not None


def test_every_package_is_looked_at() -> None:
    assert all(len(modules(package)) > 3 for package in PACKAGES)


@pytest.mark.parametrize(
    "name",
    [
        "workers",
        "orchestrator",
        "ray",
        "boto3",
        "pyarrow",
        "pydantic",
        "click",
        "rich",
        "matplotlib",
        "time",
        "datetime",
    ],
)
def test_stn_core_is_mathematics_and_torch_alone(name: str) -> None:
    assert importers("stn_core", name) == set()


#: Run in a process of its own: what is no part of Python and not needed by the packages named cannot be imported.
ALONE = """
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def normal(name):
    return re.sub("[-_.]+", "-", name).lower()

here, waiting = {"stn"}, sys.argv[1].split(",")
while waiting:
    name = normal(waiting.pop())
    if name not in here:
        here.add(name)
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [re.match("[A-Za-z0-9._-]+", need)[0] for need in needs if "extra ==" not in need]

owners = packages_distributions()
blocked = {module for module in owners if not here & set(map(normal, owners[module]))}
assert {"pyarrow", "pydantic", "ray", "rich", "yaml"} <= blocked

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
import numpy as np
import stn_core
from stn_core.models import build_network, folded

images = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
network = folded(build_network(sys.argv[2], 10)) if sys.argv[2] == "mnist_small" else build_network(sys.argv[2], 10)
images = images if sys.argv[2] == "mnist_small" else np.repeat(images, 3, axis=1)
for noise in (stn_core.Gaussian(0.5), stn_core.DiscreteGaussian(0.5)):
    tally = stn_core.count_votes(network, images, noise=noise, draws=20, num_classes=10, seed=0, keys=[0, 1])
    assert (tally.votes.sum(axis=1) == 20).all()
result = stn_core.certify(
    tally.votes, noise=noise, certificate="renyi", protocol="paper", alpha=0.05, draws=np.full(2, 20)
)
assert not {"pyarrow", "pydantic", "ray", "workers", "orchestrator"} & set(sys.modules)
print("counted and certified", len(result.radius))
"""


@pytest.mark.parametrize(
    ("packages", "network"),
    [("numpy,scipy,torch", "mnist_small"), ("numpy,scipy,torch,torchvision", "resnet18")],
    ids=["without torchvision", "with its networks"],
)
def test_stn_core_counts_and_certifies_with_nothing_else_installed(packages: str, network: str) -> None:
    """numpy, scipy, torch and what these need themselves: so that the hot loop can be tried wherever they are."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, packages, network],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "counted and certified 2\n"


def test_stn_core_reads_no_environment() -> None:
    assert importers("stn_core", "os") == set()


def test_workers_do_not_know_the_orchestrator() -> None:
    assert importers("workers", "orchestrator") == set()


def test_two_modules_of_the_workers_and_one_folder_of_the_orchestrator_import_ray() -> None:
    assert importers("workers", "ray") == {"workers/ray_entry.py", "workers/ray_training.py"}
    assert {Path(path).parent.as_posix() for path in importers("orchestrator", "ray")} == {"orchestrator/on_ray"}


@pytest.mark.parametrize("package", ["workers", "orchestrator"])
def test_only_the_layout_spells_object_keys(package: str) -> None:
    spelled = {
        path.relative_to(ROOT).as_posix(): [text for text in strings(ast.parse(path.read_text())) if names_a_key(text)]
        for path in modules(package)
    }
    assert {path for path, texts in spelled.items() if texts} <= {"workers/layout.py"}, spelled


def test_the_search_for_keys_finds_them_where_they_are() -> None:
    found = [text for text in strings(ast.parse((ROOT / "workers/layout.py").read_text())) if names_a_key(text)]
    assert {layout.PLAN, layout.COUNTS, layout.CERTIFICATES} <= set(found)
    assert names_a_key("/runs/x/counts/y")
    assert names_a_key("runs/x/plan.json")
    assert not names_a_key("images counted, failed and partial")
    assert not names_a_key("report.html.j2")


def test_pyproject_lists_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        init.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert len(settings["packages"]) == len(set(settings["packages"]))
    assert set(settings["packages"]) == folders


def test_every_module_lies_in_a_package() -> None:
    homeless = [path for package in PACKAGES for path in modules(package) if not (path.parent / "__init__.py").exists()]
    assert homeless == []


def test_pyproject_ships_every_file_that_is_no_module() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        path for package, patterns in data.items() for pattern in patterns for path in (ROOT / package).glob(pattern)
    }
    others = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert others == shipped
