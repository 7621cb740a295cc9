"""torch.hub's folder of downloaded weights, in $TORCH_HOME: filled once per machine, however many processes ask."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch

from stn_core.naming import one_line


def fetched(url: str) -> Path:
    """Where the file at ``url`` lies, downloaded unless it was before. Raises ValueError: it cannot be had."""
    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(url).path).name)
    try:
        if not path.exists():
            _download(url, path)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model.weights: no file {path}, and it cannot be had from {url} ({one_line(error)}): "
            "put it there, or name one as model.checkpoint"
        ) from error
    return path


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            digest = torch.hub.HASH_REGEX.search(path.name)
            torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
    finally:
        os.close(folder)
