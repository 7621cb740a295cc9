"""Reading a run back from its store: its plan, which shards are counted, and their votes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.plan import Plan
from stn_core.naming import one_line
from workers import counts_table, layout
from workers.committed import Committed, DamagedVotes, read_committed
from workers.datasets.base import DatasetError
from workers.datasets.index import Index
from workers.store import ObjectMissing, Store

Ints = NDArray[np.int64]

#: Most counts of votes held as a matrix at a time, for one phase, and most rows: 32 MiB of the first.
_DENSE_COUNTS = 2**22
_DENSE_ROWS = 2**14

#: Rows that small shards are joined to first.
_FEW_ROWS = 2**10


def read_plan(store: Store) -> Plan:
    """The run's plan. Raises RunError where there is no run."""
    try:
        return Plan.from_json(store.read(layout.PLAN), f"{store.uri}/{layout.PLAN}")
    except ObjectMissing:
        check_no_import(store)
        raise RunError(f"no run at {store.uri}: it has no {layout.PLAN}") from None


def read_index(store: Store) -> Index | None:
    """The data set's index, as the run keeps it; None where it does not. Raises RunError if it is damaged."""
    try:
        return Index(store.read(layout.INDEX))
    except ObjectMissing:
        return None
    except DatasetError as error:
        raise RunError(f"{store.uri}/{layout.INDEX} {error}") from error


def check_no_import(store: Store) -> None:
    """Raise RunError where a table of certificates from elsewhere is kept: no run is to begin beside it."""
    if store.exists(layout.IMPORTED):
        raise RunError(f"{store.uri} is an imported table of certificates: it has no votes, only `stn report` reads it")


def counted_shards(store: Store, plan: Plan) -> list[int]:
    """The shards whose votes are committed, ascending."""
    shards = (layout.shard_of(stored.key) for stored in store.list(layout.COUNTS))
    return sorted(shard for shard in shards if shard is not None and shard < plan.shards)


@dataclass(frozen=True)
class CountRows:
    """Some rows of count tables, with votes as matrices.

    Attributes:
        table: as stored.
        num_classes: classes the model votes among.
    """

    table: pa.Table
    num_classes: int

    @cached_property
    def labels(self) -> Ints:
        """int64 (images,)."""
        return self.table["label"].to_numpy()

    @cached_property
    def estimation(self) -> Ints:
        """int64 (images, classes)."""
        return counts_table.dense(self.table["estimation"], self.num_classes)

    @cached_property
    def selection(self) -> Ints:
        """int64 (images, classes)."""
        return counts_table.dense(self.table["selection"], self.num_classes)

    @cached_property
    def draws(self) -> Ints:
        """Estimation draws, int64 (images,); 0 where the image could not be counted."""
        return self.table["draws"].to_numpy()

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Whether the image could be counted, (images,)."""
        return self.draws > 0

    def total(self, column: str) -> int | None:
        """Sum of a column of numbers; None where some are unknown."""
        numbers = self.table[column]
        return None if numbers.null_count else pc.sum(numbers).as_py() or 0


def read_shard(store: Store, plan: Plan, shard: int) -> CountRows:
    """A shard's votes, retries included. Raises RunError if they are damaged."""
    try:
        committed = read_committed(store, shard)
        _check(committed, plan, shard)
    except DamagedVotes as error:
        raise RunError(f"{store.uri}/{error.key}: {one_line(error)}; {error.remedy}") from error
    return CountRows(committed.table, plan.num_classes)


def failed_images(store: Store, plan: Plan, shards: Iterable[int]) -> dict[int, int]:
    """Shards in which images could not be counted, and how many. Raises RunError if votes are damaged."""
    failed = {shard: int((~read_shard(store, plan, shard).usable).sum()) for shard in shards}
    return {shard: images for shard, images in failed.items() if images}


def given_up_shards(store: Store, plan: Plan) -> dict[int, str]:
    """Shards given up by the last call that tried them, and why. Raises RunError if a record is damaged."""
    found: dict[int, str] = {}
    for stored in store.list(layout.FAILED):
        try:
            record = json.loads(store.read(stored.key))
            shard, reason = int(record["shard"]), str(record["reason"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{store.uri}/{stored.key} is damaged: delete it") from error
        if 0 <= shard < plan.shards:
            found[shard] = reason
    return found


def _check(committed: Committed, plan: Plan, shard: int) -> None:
    """Raise DamagedVotes unless these are the plan's images, and their votes add up."""
    for key, provenance in committed.provenance.items():
        if provenance.get("identity") != plan.identity():
            raise DamagedVotes(key, "its votes are of another run")
    key, table = layout.counts(shard), committed.table
    indices = plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size]
    if not np.array_equal(table["index"].to_numpy(), np.array(indices, dtype=np.int64)):
        raise DamagedVotes(key, "its images are not the plan's")
    for phase, draws, invalid in (
        ("selection", "selection_draws", "selection_invalid"),
        ("estimation", "draws", "invalid"),
    ):
        lost = table[invalid].to_numpy()
        try:
            votes = counts_table.totals(table[phase], plan.num_classes)
        except (ValueError, IndexError) as error:
            raise DamagedVotes(key, str(error)) from error
        if np.any(votes + lost != table[draws].to_numpy()) or lost.min(initial=0) < 0:
            raise DamagedVotes(key, "its votes do not add up to its draws")


def read_votes(
    store: Store, plan: Plan, shards: Iterable[int], observe: Callable[[int], None] = lambda shards: None
) -> Iterator[CountRows]:
    """The shards' rows in order, in parts that are worth a vectorised call and fit in memory, whatever a shard's size.

    Raises RunError if votes are damaged. ``observe`` is called with 1 after each shard.
    """
    most = max(1, min(_DENSE_ROWS, _DENSE_COUNTS // plan.num_classes))
    tables = (read_shard(store, plan, shard).table for shard in shards)
    for whole in _joined(_joined(_observed(tables, observe), _FEW_ROWS), most):
        for start in range(0, len(whole), most):
            yield CountRows(whole.slice(start, most), plan.num_classes)


def _observed(tables: Iterable[pa.Table], observe: Callable[[int], None]) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        observe(1)


def _joined(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The tables one after another, as few that have at least so many rows. A table of a row takes kilobytes."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += len(table)
        if held >= rows:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, held = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
