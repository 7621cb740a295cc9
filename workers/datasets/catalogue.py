"""Where a data set of encoded images lies, and its index: the one that is kept, or a new one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from stn_core.naming import one_line
from workers.datasets import folders, tables, tars
from workers.datasets.base import DatasetError
from workers.datasets.classes import class_names, labels_of
from workers.datasets.index import Index, build, check_digest
from workers.files import File, Files, open_files, parent_and_name, read_file
from workers.settings import EncodedDataset, ImageFolder, ImageNet, ParquetImages, WebDataset
from workers.store import S3Options, StoreError, open_store

_SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}


def find_index(dataset: EncodedDataset, options: S3Options | None, known: Index | None) -> Index:
    """The data set's index: the one that is kept for it, the one known, or a new one.

    Args:
        dataset: the section of the spec.
        options: for object storage.
        known: serves while the files that hold the images are the same.

    Raises:
        DatasetError: there is no such data set, or the index kept is of another.
    """
    place = base(dataset, options)
    files = open_files(place, options)
    names = None if isinstance(dataset, ParquetImages) else class_names(dataset.classes_from, options)
    containers: Sequence[File] = ()
    sizes: dict[str, int] = {}
    label: dict[str, int] = {}
    if isinstance(dataset, ParquetImages | WebDataset):
        containers = _containers(dataset, place, files)
        sizes = {file.name: file.size for file in containers}
        source = _source(dataset, names, [f"{name} {size}" for name, size in sizes.items()])
    else:
        found = folders.class_folders(files, place)
        label = labels_of(found, names)
        names = names or tuple(found)
        source = _source(dataset, names, [])
    kept = _kept(dataset, options)
    if kept is not None and kept.source != source:
        raise DatasetError(
            f"dataset.index {dataset.index} is of other data than dataset.path {place}: "
            "remove it, and it is made anew, or name another"
        )
    if kept is not None:
        return kept
    if containers and known is not None and known.source == source:
        return known
    if isinstance(dataset, ParquetImages):
        classes, entries = tables.table_entries(dataset, place, files, containers)
        index = build(entries, classes, source, sizes)
    elif isinstance(dataset, WebDataset):
        index = build(tars.tar_entries(dataset, place, files, containers, names), names, source, sizes)
    else:
        index = build(folders.folder_entries(files, place, label), names, source)
    _keep(dataset, options, index)
    return index


def _source(dataset: EncodedDataset, names: tuple[str, ...] | None, containers: Sequence[str]) -> str:
    """What an index follows from, as far as one may know without reading: two that agree are of the same data."""
    own = {"kind", "split", "image_column", "label_column", "label_extension", "label_field"}
    settings = dataset.model_dump(mode="json", include=own)
    return hashlib.sha256(json.dumps([settings, names, containers], sort_keys=True).encode()).hexdigest()


def _kept(dataset: EncodedDataset, options: S3Options | None) -> Index | None:
    if dataset.index is None:
        return None
    try:
        index = Index(read_file(dataset.index, options))
        check_digest(index)  # it may be of anybody's making
        return index
    except FileNotFoundError:
        return None
    except (DatasetError, StoreError, OSError) as error:
        raise DatasetError(f"dataset.index {dataset.index} {one_line(error)}") from error


def _keep(dataset: EncodedDataset, options: S3Options | None, index: Index) -> None:
    if dataset.index is not None:
        parent, name = parent_and_name(dataset.index)
        try:
            open_store(str(parent), options).create(name, index.content.to_pybytes())
        except StoreError as error:
            raise DatasetError(f"dataset.index: {error}") from error


def base(dataset: EncodedDataset, options: S3Options | None) -> Path | str:
    """The folder that a data set's files are relative to: its path may be that of a single file."""
    path = dataset.path
    if isinstance(dataset, ImageNet):
        return path / dataset.split if isinstance(path, Path) else f"{path.rstrip('/')}/{dataset.split}"
    if isinstance(dataset, ImageFolder):
        return path
    suffix = _SUFFIX[dataset.kind]
    if isinstance(path, Path):
        return path.parent if path.is_file() else path
    return parent_and_name(path)[0] if path.endswith(suffix) and _is_object(path, options) else path


def _is_object(path: str, options: S3Options | None) -> bool:
    parent, name = parent_and_name(path)
    try:
        open_files(parent, options).file(name)
    except FileNotFoundError:
        return False
    return True


def _containers(dataset: ParquetImages | WebDataset, place: Path | str, files: Files) -> Sequence[File]:
    """The files that hold a data set's images: those of a folder, or the one that its path is."""
    try:
        if place != dataset.path:
            return [files.file(parent_and_name(dataset.path)[1])]
        found = [file for file in files.list() if file.name.endswith(_SUFFIX[dataset.kind])]
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"no file at dataset.path {dataset.path}") from None
    if not found:
        raise DatasetError(f"dataset.path {dataset.path} holds no images: no {_SUFFIX[dataset.kind]} files")
    return found
