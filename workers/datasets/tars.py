"""WebDataset: tar files whose members belong together by name, ``KEY.jpg`` and its label ``KEY.cls``.

The headers are gone through once, for the index; an image is then read by its place alone.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stn_core.naming import one_line
from workers.ahead import ahead
from workers.datasets.base import DatasetError
from workers.datasets.folders import SUFFIXES
from workers.datasets.index import Entry
from workers.files import File, Files
from workers.settings import WebDataset

#: Bytes fetched at once while headers are looked for. A request to object storage costs more time than the image after
#: the header it was for; on a disk, what lies between is not read.
_REMOTE, _LOCAL = 1 << 20, 1 << 12


def tar_entries(
    dataset: WebDataset, place: Path | str, files: Files, tars: Sequence[File], names: tuple[str, ...] | None
) -> Iterator[Entry]:
    """The samples of all tar files, in the order of their names and places.

    Raises:
        DatasetError: a file is no tar file, or a sample has no image or no label.
    """
    number = None if names is None else {name: label for label, name in enumerate(names)}
    found = False
    for entries in ahead(functools.partial(_samples, dataset, place, files, number), tars):
        found = found or bool(entries)
        yield from entries
    if not found:
        raise DatasetError(f"dataset.path {place} holds no images: its tar files have none")


def _samples(
    dataset: WebDataset, place: Path | str, files: Files, number: dict[str, int] | None, tar: File
) -> list[Entry]:
    path = f"{str(place).rstrip('/')}/{tar.name}"
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with (
            files.open(tar) as source,
            io.BufferedReader(source, _LOCAL if isinstance(place, Path) else _REMOTE) as buffered,
            tarfile.open(fileobj=buffered, mode="r:") as archive,
        ):
            for member in archive:
                key, extension = _split(member.name)
                used = extension == dataset.label_extension or f".{extension.rpartition('.')[2]}" in SUFFIXES
                if not used or member.isdir() or not key.rpartition("/")[2]:
                    continue
                if not member.isfile() or member.issparse():
                    raise DatasetError(
                        f"{path}: {member.name} is a link, or stored sparse: pack plain files "
                        "(tar --dereference --hard-dereference, without --sparse)"
                    )
                if extension == dataset.label_extension:
                    content = archive.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(), dataset, number, f"{path}: {member.name}")
                else:
                    if key in images:
                        raise DatasetError(f"{path} has two images of the name {key}")
                    images[key] = (member.name, member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
            # To tarfile, a damaged header, or the end of a file cut short, is the end of the archive.
            if not _ends(buffered, archive.offset, tar.size):
                raise DatasetError(f"{path} is damaged or cut short at byte {archive.offset}: pack it anew")
    except FileNotFoundError:
        raise DatasetError(f"no file at dataset.path {path}") from None
    except tarfile.TarError as error:
        raise DatasetError(f"dataset.path {path} is no tar file that can be read: {one_line(error)}") from error
    if unlabelled := next((key for key in images if key not in labels), None):
        raise DatasetError(
            f"{path}: image {unlabelled} has no label {unlabelled}.{dataset.label_extension}: "
            "set dataset.label_extension"
        )
    return [Entry(f"{tar.name}/{name}", labels[key], tar.name, at, size) for key, (name, at, size) in images.items()]


def _ends(file: io.BufferedReader, offset: int, size: int) -> bool:
    """Whether from there on the file holds zeros alone, and a block of them at least."""
    file.seek(offset)
    while chunk := file.read(_REMOTE):
        if chunk.strip(b"\0"):
            return False
    return offset + tarfile.BLOCKSIZE <= size


def _split(name: str) -> tuple[str, str]:
    """A member's sample and extension: from the first dot of its last part on, lower case."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _label(content: bytes, dataset: WebDataset, number: dict[str, int] | None, where: str) -> int:
    """A label, or the name of a class in the class index."""
    try:
        value: Any = content.decode().strip()
        if dataset.label_extension.endswith("json"):
            value = json.loads(value)[dataset.label_field]
        if number is not None and value in number:
            return number[value]
        if isinstance(value, float):
            raise ValueError("no whole number")
        return int(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        known = "" if number is None else ", or a class of dataset.class_index"
        field = f" in its field {dataset.label_field!r}" if dataset.label_extension.endswith("json") else ""
        raise DatasetError(f"{where} must hold a label{field}: a whole number{known}") from None
