"""A shard's votes as they stand: its commit, what retries have added since, and later rounds of draws.

A commit never changes. An image that could not be counted has a row with ``error`` in it; a retry that could count it
is an object of its own, and the first retry in order that holds the image stands for it. A later round is an object
too, with a row for each image whose votes until then left something open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workers import counts_table, layout, sealed
from workers.store import ObjectMissing, Store


class DamagedVotes(Exception):
    """An object holds no votes that can be read.

    Attributes:
        key: which object.
        remedy: what to do about it.
    """

    def __init__(self, key: str, reason: str, remedy: str = "delete it and run `stn certify` again") -> None:
        super().__init__(reason)
        self.key = key
        self.remedy = remedy


@dataclass(frozen=True)
class Committed:
    """A shard's rows.

    Attributes:
        table: of the first round, by ``counts_table.SCHEMA``, one row per image of the shard, in index order.
        provenance: of every object, by key.
        later: of each later round, in order, some of the images.
    """

    table: pa.Table
    provenance: dict[str, dict[str, Any]]
    later: tuple[pa.Table, ...] = ()

    @property
    def failed(self) -> list[int]:
        """The data set's indices of images that could not be counted yet."""
        return self.table.filter(pc.is_valid(self.table["error"]))["index"].to_pylist()


def read_committed(store: Store, shard: int, *, later: bool = False) -> Committed:
    """A shard's rows as they stand. Retries are looked for only where an image had failed.

    Args:
        store: the run.
        shard: which.
        later: whether to look for later rounds.

    Raises:
        ObjectMissing: the shard is not committed.
        DamagedVotes: what is there is damaged, or no table of votes.
    """
    key = layout.counts(shard)
    table, provenance = _decode(store, key)
    found = Committed(table, {key: provenance})
    for stored in store.list(layout.retries(shard)) if found.failed else ():
        if layout.retry_of(stored.key) is not None and found.failed:
            table, provenance = _decode(store, stored.key)
            found = Committed(_with(found, table), {**found.provenance, stored.key: provenance})
    while later:
        key = layout.counts(shard, len(found.later) + 1)
        try:
            table, provenance = _decode(store, key)
        except ObjectMissing:
            break
        found = Committed(found.table, {**found.provenance, key: provenance}, (*found.later, table))
    return found


def _decode(store: Store, key: str) -> tuple[pa.Table, dict[str, Any]]:
    try:
        return counts_table.decode(store.read(key))
    except sealed.NewerVersion as error:
        raise DamagedVotes(key, str(error), "update this installation") from error
    except ValueError as error:
        raise DamagedVotes(key, str(error)) from error


def _with(found: Committed, retried: pa.Table) -> pa.Table:
    """The rows, those of failed images replaced by what a retry has of them."""
    own = pa.array(found.failed, pa.int64())
    usable = retried.filter(pc.and_(pc.is_in(retried["index"], own), pc.is_null(retried["error"])))
    kept = found.table.filter(pc.invert(pc.is_in(found.table["index"], usable["index"].combine_chunks())))
    whole = pa.concat_tables([kept, usable])
    return whole.take(np.argsort(whole["index"].to_numpy(), kind="stable"))
