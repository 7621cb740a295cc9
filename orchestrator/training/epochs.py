"""The figures of a training's epochs as Parquet, beside its checkpoint and in the runs that certify it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stn_core.naming import one_line
from workers import sealed
from workers.columns import column
from workers.files import parent_and_name, read_file
from workers.store import S3Options, StoreError
from workers.training import Epoch

#: Version of the columns below. Files from before there was one are of the first.
SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        column("epoch", pa.int64(), "its number, from 1"),
        column("loss", pa.float64(), "mean training loss over the first worker's share of the images"),
        column("accuracy", pa.float64(), "share of them that the method fits to their labels and that got them"),
        column("validation_clean", pa.float64(), "accuracy on held-out images", null="without held-out images"),
        column("validation_noisy", pa.float64(), "the same, on one noisy copy of each", null="likewise"),
        column("learning_rate", pa.float64(), "of the last step"),
        column("wall_s", pa.float64(), "seconds that the epoch took"),
    ]
)
_METADATA_KEY = b"stn"


def beside(checkpoint: str) -> str:
    """Name of the table of a checkpoint's epochs: model.pt has model.epochs.parquet."""
    return f"{checkpoint.removesuffix('.pt')}.epochs.parquet"


def encode(epochs: Sequence[Epoch], training_sha256: str) -> bytes:
    """One row per epoch; the file's metadata say, under the key "stn", of which training."""
    table = pa.Table.from_pylist([dataclasses.asdict(epoch) for epoch in epochs], SCHEMA)
    metadata = {_METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION, "training_sha256": training_sha256})}
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


def decode(content: bytes) -> tuple[tuple[Epoch, ...], str]:
    """Epochs and the digest of their training's settings. Raises NewerVersion, or ValueError: this is no such table."""
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        if metadata.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
            raise sealed.NewerVersion("written by a newer version")
        epochs = tuple(Epoch(**row) for row in table.select(SCHEMA.names).to_pylist())
        return epochs, str(metadata["training_sha256"])
    except sealed.NewerVersion:
        raise
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"no table of epochs: {one_line(error)}") from error


def of_checkpoint(place: Path | str, options: S3Options) -> bytes | None:
    """The table beside a checkpoint of `stn train`; None where there is none, or only another training's.

    Raises:
        StoreError: storage cannot be read.
    """
    parent, name = parent_and_name(place)
    try:
        content = read_file(parent / beside(name) if isinstance(parent, Path) else f"{parent}/{beside(name)}", options)
        _, digest = decode(content)
        checkpoint = torch.load(io.BytesIO(read_file(place, options)), map_location="cpu", weights_only=True)
    except StoreError:
        raise
    except Exception:  # of a damaged file, or of another kind of checkpoint, anything
        return None
    return content if isinstance(checkpoint, dict) and checkpoint.get("training_sha256") == digest else None
