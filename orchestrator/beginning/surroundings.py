"""What lies in a folder of images, at a glance: a few files are looked at, however many there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from workers.datasets.folders import SUFFIXES

#: Class folders that are looked into, and images of each.
_FOLDERS, _IMAGES = 20, 5

#: What folders of images to train on and of held-out ones are called, the likeliest first.
_TRAIN, _HELD_OUT = "train", ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Seen:
    """What was found in a folder.

    Attributes:
        classes: folders in it; 0: none.
        images: how many were looked at, which may be far fewer than there are.
        smallest, largest: of these, by area: width and height, pixels; (0, 0) where none was.
    """

    classes: int
    images: int
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)


def here(place: str) -> Path | None:
    """The folder of this machine that is meant; None: it is elsewhere, or the home of nobody."""
    try:
        return None if "://" in place else Path(place).expanduser()
    except RuntimeError:
        return None


def split_folders(path: Path) -> tuple[Path, Path] | None:
    """Folders of training and of held-out images, where ``path`` holds such; None elsewhere."""
    held_out = next((path / name for name in _HELD_OUT if is_folder(path / name)), None)
    return (path / _TRAIN, held_out) if held_out is not None and is_folder(path / _TRAIN) else None


def look(path: Path) -> Seen | None:
    """What a folder of CLASS/FILE holds; None: it is not there, or nobody may look."""
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return None
    every = max(1, len(folders) // _FOLDERS)
    sizes = [size for folder in folders[::every] for size in itertools.islice(_sizes(folder), _IMAGES)]
    if not sizes:
        return Seen(len(folders), 0)
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return Seen(len(folders), len(sizes), by_area[0], by_area[-1])


def _sizes(folder: Path) -> Iterator[tuple[int, int]]:
    """Widths and heights of images directly in a folder, pixels, in no order; what is no image is passed over."""
    try:
        for path in folder.iterdir():
            if path.suffix.lower() in SUFFIXES:
                try:
                    with Image.open(path) as image:
                        yield image.size
                except Exception:  # the decoders let any exception of a damaged file through
                    continue
    except OSError:
        return


def is_folder(path: Path) -> bool:
    """Whether there is one, and one may know."""
    try:
        return path.is_dir()
    except OSError:
        return False
