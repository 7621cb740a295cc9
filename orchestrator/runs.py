"""Reading a run back from its store: its plan, which shards are counted, and their votes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.plan import Plan
from stn_core.naming import one_line
from workers import counts_table, layout
from workers.store import ObjectMissing, Store


def read_plan(store: Store) -> Plan:
    """The run's plan. Raises RunError where there is no run."""
    try:
        return Plan.from_json(store.read(layout.PLAN), f"{store.uri}/{layout.PLAN}")
    except ObjectMissing:
        raise RunError(f"no run at {store.uri}: it has no {layout.PLAN}") from None


def counted_shards(store: Store, plan: Plan) -> list[int]:
    """The shards whose votes are committed, ascending."""
    shards = (layout.shard_of(stored.key) for stored in store.list(layout.COUNTS))
    return sorted(shard for shard in shards if shard is not None and shard < plan.shards)


@dataclass(frozen=True)
class ShardVotes:
    """A shard's table, dense.

    Attributes:
        table: as stored.
        labels: int64 (images,).
        selection, estimation: int64 (images, classes).
        draws: estimation draws, int64 (images,); 0 where the image could not be counted.
        invalid: estimation draws lost to NaN logits, over all images.
    """

    table: pa.Table
    labels: NDArray[np.int64]
    selection: NDArray[np.int64]
    estimation: NDArray[np.int64]
    draws: NDArray[np.int64]
    invalid: int


def read_shard(store: Store, plan: Plan, shard: int) -> ShardVotes:
    """A shard's votes. Raises RunError if they are damaged."""
    key = layout.counts(shard)
    try:
        table, provenance = counts_table.decode(store.read(key))
        if provenance.get("identity") != plan.identity():
            raise ValueError("its votes are of another run")
        indices = plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size]
        if table["index"].to_pylist() != list(indices):
            raise ValueError("its images are not the plan's")
        selection = counts_table.dense(table["selection"], plan.num_classes)
        estimation = counts_table.dense(table["estimation"], plan.num_classes)
        for phase, draws, invalid in (
            (selection, "selection_draws", "selection_invalid"),
            (estimation, "draws", "invalid"),
        ):
            lost = table[invalid].to_numpy()
            adds_up = phase.sum(axis=1) + lost == table[draws].to_numpy()
            if not adds_up.all() or lost.min(initial=0) < 0 or phase.min(initial=0) < 0:
                raise ValueError("its votes do not add up to its draws")
    except (ValueError, IndexError) as error:
        raise RunError(f"{store.uri}/{key}: {one_line(error)}; delete it and run `stn certify` again") from error
    return ShardVotes(
        table,
        table["label"].to_numpy(),
        selection,
        estimation,
        table["draws"].to_numpy(),
        int(table["invalid"].to_numpy().sum()),
    )
