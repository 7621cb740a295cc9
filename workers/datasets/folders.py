"""Images as files in a folder for each class, in a folder or in object storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from workers.ahead import ahead
from workers.datasets.base import DatasetError
from workers.datasets.index import Entry
from workers.files import Files

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff"}


def class_folders(files: Files, place: Path | str) -> list[str]:
    """The folders of ``place/CLASS/FILE``, sorted, but hidden ones, which programs leave. Raises DatasetError."""
    try:
        return sorted(folder for folder in files.folders() if not folder.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"dataset.path {place} is no folder") from None


def folder_entries(files: Files, place: Path | str, label: Mapping[str, int]) -> Iterator[Entry]:
    """The images, by class folder, then name, as torchvision's ImageFolder orders them.

    Args:
        files: all of the data set's.
        place: where they are.
        label: of each folder, in the folders' order.

    Raises:
        DatasetError: there are none.
    """
    found = False
    for folder, inside in zip(label, ahead(files.walk, label), strict=True):
        images = [file for file in inside if PurePosixPath(file.name).suffix.lower() in SUFFIXES]
        yield from (Entry(file.name, label[folder], file.name, 0, file.size) for file in images)
        found = found or bool(images)
    if not found:
        raise DatasetError(f"dataset.path {place} holds no images: expected {place}/CLASS/FILE")
