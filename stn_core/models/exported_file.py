"""Files of ``torch.export.save``, read as data.

``torch.export.load`` unpickles parts of such a file, evaluates expressions that it holds as text and compiles what it
makes of its names: whoever wrote the file decides what runs. Here nothing of that happens: the graph is JSON, the
weights are raw bytes, and pickled parts are refused or left unread.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import torch

from stn_core.models.exported import DTYPES, STRIDED, Exported, Unfit
from stn_core.naming import one_line

#: Of the format's major versions, the one that is read here.
_SCHEMA = 8


def read_program(content: bytes, source: str) -> Exported:
    """The network in a file of ``torch.export.save``.

    Args:
        content: the file's.
        source: where it came from.

    Raises:
        ValueError: the file is no such program, holds what would have to be unpickled, or does not map a batch of any
            number of images to logits.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read(_Archive(archive))
    except Unfit as error:
        raise ValueError(f"the program in {source} {error}") from error
    except Exception as error:  # of a damaged file, anything may be missing
        reason = "it is empty" if not content else one_line(error)
        raise ValueError(f"{source} is no readable file of torch.export.save ({reason})") from error


class _Archive:
    """The files of an archive, whose one folder may have any name."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = {name.partition("/")[2]: name for name in archive.namelist()}

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise Unfit(f"has no {name}: export it again with a newer PyTorch")
        return self._archive.read(self.names[name])

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))


def _read(archive: _Archive) -> Exported:
    models = [name for name in archive.names if name.startswith("models/") and name.endswith(".json")]
    if len(models) != 1:
        raise ValueError(f"it holds {len(models)} programs instead of one")
    model = archive.json(models[0])
    if model["schema_version"]["major"] != _SCHEMA:
        raise Unfit(f"has version {model['schema_version']['major']} of the format, and {_SCHEMA} is read here")
    if archive.read("byteorder").strip() != b"little":
        raise Unfit("was saved with the most significant byte first")
    name = models[0].removeprefix("models/").removesuffix(".json")
    return Exported(
        model["graph_module"],
        {
            **_tensors(archive, "data/constants/", f"{name}_constants_config.json"),
            **_tensors(archive, "data/weights/", f"{name}_weights_config.json"),
        },
        model["range_constraints"],
    )


def _tensors(archive: _Archive, folder: str, config: str) -> dict[str, torch.Tensor]:
    """The tensors of a folder, by the program's names. Those that share memory in the file do so here."""
    found, read = {}, {}
    for name, payload in archive.json(folder + config)["config"].items():
        file, meta = payload["path_name"], payload["tensor_meta"]
        if payload["use_pickle"] or meta is None:
            raise Unfit(f"keeps {name!r} pickled, and nothing in a checkpoint is ever run")
        if meta["layout"] != STRIDED or meta["dtype"] not in DTYPES:
            raise Unfit(f"keeps {name!r} in a form that is not read here")
        dtype = DTYPES[meta["dtype"]]
        if file not in read:
            raw = bytearray(archive.read(folder + file))
            read[file] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
        found[name] = torch.as_strided(read[file].view(dtype), sizes, strides, meta["storage_offset"]["as_int"])
    return found
