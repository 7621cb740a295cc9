"""Reading a run back from its store: its plan, which shards are counted, and their votes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from stn_core.looks import Looks
from stn_core.naming import one_line
from workers import counts_table, layout
from workers.committed import Committed, DamagedVotes, read_committed
from workers.datasets.base import DatasetError
from workers.datasets.index import Index
from workers.rounds import looks, total_draws, undecided
from workers.store import LocalStore, ObjectMissing, Store

Ints = NDArray[np.int64]

#: Most counts of votes held as a matrix at a time, for one phase, and most rows: 32 MiB of the first.
_DENSE_COUNTS = 2**22
_DENSE_ROWS = 2**14

#: Rows that small shards are joined to first.
_FEW_ROWS = 2**10


def read_plan(store: Store) -> Plan:
    """The run's plan. Raises RunError where there is no run."""
    try:
        plan = Plan.from_json(store.read(layout.PLAN), f"{store.uri}/{layout.PLAN}")
    except ObjectMissing:
        check_no_import(store)
        is_file = isinstance(store, LocalStore) and Path(store.uri).is_file()
        why = "it is a file, and a run is a folder" if is_file else f"it has no {layout.PLAN}"
        raise RunError(f"no run at {store.uri}: {why}") from None
    try:
        return plan.with_goal(store.read(layout.GOAL), f"{store.uri}/{layout.GOAL}")
    except ObjectMissing:
        return plan


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


def vote_objects(store: Store) -> int:
    """Objects with votes in the store: commits of shards, retries and later rounds."""
    known = (layout.shard_of, layout.later_round, layout.retry_of)
    return sum(any(of(stored.key) is not None for of in known) for stored in store.list(layout.COUNTS))


def counted_shards(store: Store, plan: Plan) -> list[int]:
    """The shards whose votes are committed, ascending."""
    shards = (layout.shard_of(stored.key) for stored in store.list(layout.COUNTS))
    return sorted(shard for shard in shards if shard is not None and shard < plan.shards)


@dataclass(frozen=True)
class CountRows:
    """Some rows of count tables, with votes as matrices.

    Attributes:
        table: of the first round, as stored, in index order.
        num_classes: classes the model votes among.
        later: of each later round, some of the same images, in index order.
    """

    table: pa.Table
    num_classes: int
    later: tuple[pa.Table, ...] = ()

    @cached_property
    def labels(self) -> Ints:
        """int64 (images,)."""
        return self.table["label"].to_numpy()

    @cached_property
    def estimation(self) -> Ints:
        """Of all rounds, int64 (images, classes)."""
        votes = counts_table.dense(self.table["estimation"], self.num_classes)
        for rows in self.later:
            votes[self._places(rows)] += counts_table.dense(rows["estimation"], self.num_classes)
        return votes

    @cached_property
    def selection(self) -> Ints:
        """int64 (images, classes)."""
        return counts_table.dense(self.table["selection"], self.num_classes)

    @cached_property
    def draws(self) -> Ints:
        """Estimation draws of all rounds, int64 (images,); 0 where the image could not be counted."""
        return total_draws(self.table, self.later)

    @cached_property
    def invalid(self) -> Ints:
        """Estimation draws of all rounds whose logits held a NaN, int64 (images,)."""
        lost = self.table["invalid"].to_numpy().copy()
        for rows in self.later:
            lost[self._places(rows)] += rows["invalid"].to_numpy()
        return lost

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Whether the image could be counted, (images,)."""
        return self.draws > 0

    def total(self, column: str) -> int | None:
        """Sum of a column of numbers over all rounds; None where some are unknown."""
        numbers = [rows[column] for rows in (self.table, *self.later)]
        return None if any(one.null_count for one in numbers) else sum(pc.sum(one).as_py() or 0 for one in numbers)

    def looks(self, protocol: str) -> Looks:
        """What the images' votes came to after every round."""
        return looks(self.table, self.later, protocol, self.num_classes)

    def undecided(self, plan: Plan) -> int:
        """Images that the plan's goal asks more draws of."""
        if not plan.sequential:
            return 0
        protocol = plan.asked.confidence.protocol
        return len(undecided(self.table, self.later, plan.rule, protocol, self.num_classes)[0])

    def part(self, first: int, size: int) -> CountRows:
        """So many of the rows, from the ``first`` on."""
        table = self.table.slice(first, size)
        index = table["index"]
        later = (rows.filter(pc.is_in(rows["index"], index.combine_chunks())) for rows in self.later)
        return CountRows(table, self.num_classes, tuple(later))

    def _places(self, rows: pa.Table) -> NDArray[np.intp]:
        return np.searchsorted(self.table["index"].to_numpy(), rows["index"].to_numpy())


def joined(parts: Sequence[CountRows]) -> CountRows:
    """Rows of several shards, in their order."""
    rounds = max(len(part.later) for part in parts)
    later = tuple(_one([part.later[number] for part in parts if number < len(part.later)]) for number in range(rounds))
    return CountRows(_one([part.table for part in parts]), parts[0].num_classes, later)


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


def read_shard(store: Store, plan: Plan, shard: int) -> CountRows:
    """A shard's votes, retries and later rounds included. Raises RunError if they are damaged."""
    try:
        committed = read_committed(store, shard, later=plan.sequential)
        _check(committed, plan, shard)
    except DamagedVotes as error:
        raise RunError(f"{store.uri}/{error.key}: {one_line(error)}; {error.remedy}") from error
    return CountRows(committed.table, plan.num_classes, committed.later)


def undecided_shards(store: Store, plan: Plan, shards: Iterable[int]) -> dict[int, int]:
    """Shards in which the plan's goal asks more draws of some images, and of how many. Raises RunError if votes are
    damaged."""
    if not plan.sequential:
        return {}
    found = {shard: read_shard(store, plan, shard).undecided(plan) for shard in shards}
    return {shard: images for shard, images in found.items() if images}


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
    key, indices = layout.counts(shard), committed.table["index"].to_numpy()
    planned = plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size]
    if not np.array_equal(indices, np.array(planned, dtype=np.int64)):
        raise DamagedVotes(key, "its images are not the plan's")
    _check_votes(key, committed.table, plan)
    draws = committed.table["draws"].to_numpy()
    if not plan.sequential and np.any(draws[draws > 0] != plan.spec.sampling.draws):
        raise DamagedVotes(key, "its draws are not the planned ones")
    usable = indices[draws > 0]
    for number, table in enumerate(committed.later, 1):
        key, own = layout.counts(shard, number), table["index"].to_numpy()
        if not (np.all(np.diff(own) > 0) and np.isin(own, usable).all()):
            raise DamagedVotes(key, "its images are not those that an earlier round has votes of")
        _check_votes(key, table, plan)
        more = table["draws"].to_numpy()
        if np.any(more < 1) or table["error"].null_count < len(table) or np.any(table["selection_draws"].to_numpy()):
            raise DamagedVotes(key, "it is no later round: images of it have no estimation draws, or others")
        before = total_draws(committed.table, committed.later[: number - 1])[np.searchsorted(indices, own)]
        where = committed.provenance[key]
        if (where.get("round"), where.get("first_draw")) != (number, before.tolist()):
            raise DamagedVotes(key, "its draws do not go on where those before it end")


def _check_votes(key: str, table: pa.Table, plan: Plan) -> None:
    """Raise DamagedVotes unless an object's votes add up."""
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
    parts = (read_shard(store, plan, shard) for shard in shards)
    for whole in _joined(_joined(_observed(parts, observe), _FEW_ROWS), most):
        for start in range(0, len(whole.table), most):
            yield whole.part(start, most)


def _observed(parts: Iterable[CountRows], observe: Callable[[int], None]) -> Iterator[CountRows]:
    for part in parts:
        yield part
        observe(1)


def _joined(parts: Iterable[CountRows], rows: int) -> Iterator[CountRows]:
    """The parts one after another, as few that have at least so many rows. A table of a row takes kilobytes."""
    waiting: list[CountRows] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += len(part.table)
        if held >= rows:
            yield joined(waiting)
            waiting, held = [], 0
    if waiting:
        yield joined(waiting)
