"""Versions of what votes pass through, and whether they are those that a submitted job asks for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping

_PACKAGES = ("ray", "torch", "torchvision", "numpy", "scipy", "pyarrow", "pillow")

#: The environment variable that holds what ``pinned`` says.
PINNED = "STN_PINNED_VERSIONS"


class OtherVersions(ValueError):
    """This machine has other versions than the job was submitted with."""


def versions() -> dict[str, str]:
    """Versions of Python, this project and the libraries votes pass through."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "stn": importlib.metadata.version("stn"), **found}


def pinned() -> str:
    """What ``check_pinned`` is to find elsewhere: this process's versions."""
    return json.dumps(_comparable(versions()))


def check_pinned() -> None:
    """Raise OtherVersions unless this process has the versions that ``$STN_PINNED_VERSIONS`` names, if it is set."""
    asked = os.environ.get(PINNED)
    if asked:
        own = _comparable(versions())
        differing = [
            f"{name} {own.get(name)} and not {version}"
            for name, version in json.loads(asked).items()
            if own.get(name) != version
        ]
        if differing:
            raise OtherVersions(
                f"{platform.node()} has {', '.join(differing)}, with which the job was submitted: "
                "install the same there, or submit with --any-versions"
            )


def _comparable(found: Mapping[str, str]) -> dict[str, str]:
    """A release's number without its build: the same PyTorch comes for CPUs and for GPUs. Of Python, 3.x."""
    plain = {name: version.partition("+")[0] for name, version in found.items()}
    return {**plain, "python": plain["python"].rpartition(".")[0]}
