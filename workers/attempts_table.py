"""The table of attempts at changing answers: a row per image and size of an attack, with the attacked image's votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from workers import sealed
from workers.columns import column
from workers.counts_table import VOTES

#: Version of the columns below. A reader refuses a newer one.
SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        column("index", pa.int64(), "the image's number in the data set"),
        column("key", pa.int64(), "the image's identity"),
        column("label", pa.int64(), "its true class"),
        column(
            "size", pa.float64(), "that the attack may have, in its norm, [0, 1] pixel units; 0 is the image itself"
        ),
        column("l1", pa.float64(), "how far the attacked image is from the image in L1, [0, 1] pixel units"),
        column("l2", pa.float64(), "likewise in L2"),
        column("linf", pa.float64(), "likewise in L∞"),
        column("votes", VOTES, "votes on the attacked image: the classes that have some, ascending, and how many"),
        column("draws", pa.int64(), "noisy copies that voted, invalid ones included; 0 where there is an error"),
        column("invalid", pa.int64(), "draws whose logits held a NaN: they vote for no class"),
        column("ties", pa.int64(), "draws whose largest logit several classes shared"),
        column(
            "pixels",
            pa.binary(),
            "the attacked image, (channels, height, width) as little-endian float32",
            null="where it was not to be kept",
        ),
        column("error", pa.string(), "why the image could not be attacked", null="where it could"),
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
