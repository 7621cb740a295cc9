"""How far a run is, read from its store alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pyarrow.compute as pc

from orchestrator.attacking.robustness import attempted
from orchestrator.counting.presence import Driver, drivers_at_work
from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from orchestrator.reducing.runs import given_up_shards, read_plan, read_shard, vote_objects
from orchestrator.reducing.tables import Reduced, published, settled
from workers import layout
from workers.store import Store, StoredObject

#: Commits that the present rate is read off.
_RECENT = 50

#: Failed images that are listed one by one.
_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class Status:
    """A run's standing.

    Attributes:
        run: where it is.
        adaptive: images stop as soon as their votes decide.
        complete: every shard is committed and every image has votes enough.
        images: in the plan.
        counted: images with votes.
        failed: images that could not be counted.
        failures: data set index to the reason, of the first failed images.
        shards: in the plan.
        shards_committed: with votes in the store.
        shards_given_up: shard to the reason it was given up in its last attempt.
        passes: forward passes committed.
        undecided: images with votes that need more draws to decide what they are to decide.
        passes_planned: forward passes of the whole run; of adaptive sampling, at most.
        images_per_s: over the last commits; None before there are two.
        seconds_left: at that rate; None where unknown or nothing is left.
        last_commit: seconds since the epoch, None before the first.
        drivers: at work on it, as far as their records tell.
        attacks: on its classifier, name to shards attacked.
    """

    run: str
    adaptive: bool
    complete: bool
    images: int
    counted: int
    failed: int
    failures: dict[int, str]
    shards: int
    shards_committed: int
    shards_given_up: dict[int, str]
    undecided: int
    passes: int
    passes_planned: int
    images_per_s: float | None
    seconds_left: float | None
    last_commit: float | None
    drivers: tuple[Driver, ...]
    attacks: dict[str, int] = field(default_factory=dict)


def status_of(store: Store) -> Status:
    """The standing of the run in ``store``. Raises RunError where there is none, or it is damaged."""
    plan = read_plan(store)
    committed: list[StoredObject] = []
    counted = failed = undecided = passes = 0
    failures: dict[int, str] = {}
    decided = plan.sequential and settled(_published(store), plan, vote_objects(store))
    last: float | None = None
    for stored in store.list(layout.COUNTS):
        shard = layout.shard_of(stored.key)
        if shard is not None or layout.later_round(stored.key) is not None:
            last = max(stored.modified, last or 0.0)
        if shard is None or shard >= plan.shards:
            continue
        committed.append(stored)
        rows = read_shard(store, plan, shard)
        table = rows.table
        for row in table.filter(pc.is_valid(table["error"])).select(["index", "error"]).to_pylist():
            if len(failures) < _FAILURES_SHOWN:
                failures[row["index"]] = row["error"]
        usable = int(rows.usable.sum())
        counted, failed = counted + usable, failed + len(table) - usable
        undecided += 0 if decided else rows.undecided(plan)
        passes += int(rows.draws.sum()) + int(table["selection_draws"].to_numpy().sum())
    missing = plan.images - counted - failed
    # Of images that have votes and are to get more, none can say how many.
    rate = images_per_second(committed, plan) if missing or not undecided else None
    return Status(
        run=store.uri,
        adaptive=plan.asked.sampling.mode == "adaptive",
        complete=missing == 0 and failed == 0 and undecided == 0,
        images=plan.images,
        counted=counted,
        failed=failed,
        failures=failures,
        shards=plan.shards,
        shards_committed=len(committed),
        shards_given_up=given_up_shards(store, plan),
        undecided=undecided,
        passes=passes,
        passes_planned=plan.passes,
        images_per_s=rate,
        seconds_left=missing / rate if rate and missing else None,
        last_commit=last,
        drivers=tuple(drivers_at_work(store, time.time())),
        attacks={name: len(shards) for name, shards in attempted(store, plan).items()},
    )


def _published(store: Store) -> Reduced | None:
    try:
        return published(store)
    except RunError:  # what is wrong with tables is not for a status of votes to say
        return None


def images_per_second(committed: list[StoredObject], plan: Plan) -> float | None:
    """Rate over the last commits, the first of them marking the start only; None before there are two."""
    recent = sorted(committed, key=lambda stored: stored.modified)[-_RECENT:]
    if len(recent) < 2 or recent[-1].modified <= recent[0].modified:
        return None
    images = sum(plan.shard_images(layout.shard_of(stored.key) or 0) for stored in recent[1:])
    return images / (recent[-1].modified - recent[0].modified)
