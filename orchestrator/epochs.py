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
from workers.files import parent_and_name, read_file
from workers.store import S3Options, StoreError
from workers.training import Epoch

SCHEMA = pa.schema(
    [
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("accuracy", pa.float64(), nullable=False),
        pa.field("validation_clean", pa.float64()),
        pa.field("validation_noisy", pa.float64()),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("wall_s", pa.float64(), nullable=False),
    ]
)
_METADATA_KEY = b"stn"


def beside(checkpoint: str) -> str:
    """Name of the table of a checkpoint's epochs: model.pt has model.epochs.parquet."""
    return f"{checkpoint.removesuffix('.pt')}.epochs.parquet"


def encode(epochs: Sequence[Epoch], training_sha256: str) -> bytes:
    """One row per epoch; the file's metadata say, under the key "stn", of which training."""
    table = pa.Table.from_pylist([dataclasses.asdict(epoch) for epoch in epochs], SCHEMA)
    metadata = {_METADATA_KEY: json.dumps({"training_sha256": training_sha256})}
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


def decode(content: bytes) -> tuple[tuple[Epoch, ...], str]:
    """Epochs and the digest of their training's settings. Raises ValueError: this is no such table."""
    try:
        table = pq.read_table(io.BytesIO(content))
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        epochs = tuple(Epoch(**row) for row in table.select(SCHEMA.names).to_pylist())
        return epochs, str(metadata["training_sha256"])
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
