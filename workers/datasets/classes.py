"""Which label a class has: by the order of folders, or by a class-index file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stn_core.models.classes import imagenet_wnids
from stn_core.naming import listed, one_line
from workers.datasets.base import DatasetError
from workers.files import read_file
from workers.store import S3Options, StoreError

_EXPECTED = (
    'expected JSON such as {"0": ["n01440764", "tench"]}, {"n01440764": 0} or ["n01440764", …], or a class on each line'
)


def class_names(place: Path | str | None, options: S3Options | None) -> tuple[str, ...] | None:
    """The classes that a spec's ``class_index`` names, by label: folder names, as a data set has them.

    Args:
        place: a file, "imagenet" for the 1 000 classes of ILSVRC 2012, or None for no such order.
        options: how to reach object storage.

    Raises:
        DatasetError: there is no such file, or it names no classes.
    """
    if place is None:
        return None
    if place == "imagenet":
        return imagenet_wnids()
    try:
        text = read_file(place, options).decode("utf-8-sig")
        names = _parsed(text)
    except (OSError, StoreError) as error:
        raise DatasetError(f"dataset.class_index {place} cannot be read: {one_line(error)}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DatasetError(f"dataset.class_index {place} is no class index: {_EXPECTED}") from error
    if doubles := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
        raise DatasetError(f"dataset.class_index {place} names classes twice: {listed(doubles)}")
    return names


def labels_of(found: list[str], names: tuple[str, ...] | None) -> dict[str, int]:
    """The label of each class found, sorted, in a data set. Raises DatasetError if the index lacks one."""
    if names is None:
        return {name: label for label, name in enumerate(found)}
    number = {name: label for label, name in enumerate(names)}
    if unknown := [name for name in found if name not in number]:
        raise DatasetError(f"dataset.class_index has no class {listed(unknown)}, and the data set has")
    return {name: number[name] for name in found}


def _parsed(text: str) -> tuple[str, ...]:
    if text.lstrip()[:1] in ("{", "["):
        return _from_json(json.loads(text))
    # The first word of a line: "n01440764 tench, Tinca tinca" as well.
    names = tuple(line.split()[0] for line in text.splitlines() if line.strip())
    if not names:
        raise ValueError("empty")
    return names


def _from_json(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict) and all(isinstance(label, int) for label in value.values()):
        value = {str(label): name for name, label in value.items()}
    if isinstance(value, dict):
        value = [value[str(label)] for label in range(len(value))]
    names = tuple(entry if isinstance(entry, str) else entry[0] for entry in value)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError("no names")
    return names
