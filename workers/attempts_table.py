"""The table of attempts at changing answers: a row per image and size of an attack, with the attacked image's votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from workers import sealed
from workers.counts_table import VOTES

#: Version of the columns below. A reader refuses a newer one.
SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # image's number in the data set
        pa.field("key", pa.int64(), nullable=False),  # image's identity
        pa.field("label", pa.int64(), nullable=False),
        pa.field("size", pa.float64(), nullable=False),  # allowed, in the attack's norm; 0 is the image itself
        # How far the attacked image is from the image, in [0, 1] pixel units.
        pa.field("l1", pa.float64(), nullable=False),
        pa.field("l2", pa.float64(), nullable=False),
        pa.field("linf", pa.float64(), nullable=False),
        pa.field("votes", VOTES, nullable=False),  # on the attacked image
        pa.field("draws", pa.int64(), nullable=False),  # that voted, invalid ones included; 0 where there is an error
        pa.field("invalid", pa.int64(), nullable=False),  # draws whose logits held a NaN
        pa.field("ties", pa.int64(), nullable=False),  # draws whose largest logit several classes shared
        pa.field("pixels", pa.binary()),  # where kept: (channels, height, width) as little-endian float32
        pa.field("error", pa.string()),  # why the image could not be attacked
    ]
)


def encode(table: pa.Table, provenance: Mapping[str, Any]) -> bytes:
    """A Parquet file of attempts. The same table and provenance give the same bytes."""
    return sealed.seal(table, SCHEMA, SCHEMA_VERSION, provenance)


def decode(content: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and provenance of a file written by ``encode``, held against their checksum.

    Raises:
        NewerVersion: the file is of a newer version.
        ValueError: it is damaged, or no table of attempts.
    """
    return sealed.unseal(content, SCHEMA, SCHEMA_VERSION, "attempts", {})
