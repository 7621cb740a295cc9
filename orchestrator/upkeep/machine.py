"""What a machine has. This module is sent whole to a cluster's nodes, which may lack the project or have another."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        name: of the host.
        versions: of Python and of packages; None where one is not installed.
        code_sha256: digest of this project's source files there; None where it cannot be imported.
        cpus: logical CPUs.
        memory: bytes.
        gpus: name, memory and free memory (bytes) of each that PyTorch can use.
        gpu_trouble: why there are fewer than there could be, empty where there are not.
    """

    name: str
    versions: Mapping[str, str | None]
    code_sha256: str | None
    cpus: int
    memory: int
    gpus: Sequence[tuple[str, int, int]]
    gpu_trouble: str


def describe(packages: Sequence[str], *, every_gpu: bool = False) -> dict[str, Any]:
    """This machine, as arguments of ``Machine``: in types that every Python has.

    Args:
        packages: whose versions to tell.
        every_gpu: also those that the environment hides, as Ray does from tasks that asked for none.
    """
    if every_gpu:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    gpus, trouble = _gpus()
    return {
        "name": platform.node(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "code_sha256": _code(),
        "cpus": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": gpus,
        "gpu_trouble": trouble,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code() -> str | None:
    try:
        from orchestrator.planning.resolve import code_sha256

        return code_sha256()
    except Exception:  # whatever lies there under that name
        return None


def _gpus() -> tuple[list[tuple[str, int, int]], str]:
    """GPUs that PyTorch can use, and what hinders it from using more."""
    try:
        import torch

        count = torch.cuda.device_count()
        found = []
        for number in range(count):
            free, total = torch.cuda.mem_get_info(number)
            found.append((torch.cuda.get_device_name(number), total, free))
    except Exception as error:  # drivers fail in many ways
        return [], " ".join(f"{type(error).__name__}: {error}".split())[:200]
    listed = _listed_by_driver()
    if listed and not found:
        return [], f"the driver lists {listed} and PyTorch sees none of them"
    return found, ""


def _listed_by_driver() -> int:
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
