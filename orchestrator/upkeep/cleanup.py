"""What a run can do without: things half written, records that events have overtaken. Never a vote."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from orchestrator.reducing.runs import read_plan
from orchestrator.reducing.tables import published
from workers import layout
from workers.store import Store, StoredObject, Unfinished

#: Seconds without a sign of life after which a driver is gone; one at work refreshes its record every few seconds.
DRIVER_GONE_S = 600.0

#: Seconds for which what is half written may be somebody's work.
YOUNG_S = 3600.0

#: What becomes of a leftover.
Verdict = Literal["delete", "too young", "not ours"]

_ATTACKED = (layout.ATTEMPTS, layout.ROBUSTNESS)
_WRITTEN_BY_US = {
    *(layout.CERTIFICATES, layout.CURVES, layout.TRAINING, layout.REPORT, layout.FIGURE),
    *(folder + key for folder in ("", layout.PARTIAL) for key in _ATTACKED),
    *(layout.FIGURE_3, layout.FIGURE_3_TABLE, layout.FIGURE_4, layout.FIGURE_4_TABLE),
}
_PARTIAL = {layout.PARTIAL + layout.CERTIFICATES, layout.PARTIAL + layout.CURVES}
#: What is written through ``replace_file``, and so in parts where the store is S3.
_UPLOADED = {layout.CERTIFICATES, layout.PARTIAL + layout.CERTIFICATES}


@dataclass(frozen=True)
class Leftover:
    """Something in a run's storage that no reader asks for.

    Attributes:
        key: relative to the run.
        bytes: its size.
        age_s: seconds since it was last written, by this machine's clock against the store's.
        reason: what it is.
        verdict: whether it may be deleted.
        unfinished: what the store is to discard, where it is no object yet.
    """

    key: str
    bytes: int
    age_s: float
    reason: str
    verdict: Verdict
    unfinished: Unfinished | None = None


def leftovers(
    listing: Iterable[StoredObject],
    unfinished: Iterable[Unfinished],
    plan: Plan,
    complete: bool,
    now: float,
    young_s: float = YOUNG_S,
) -> list[Leftover]:
    """What the run can do without, in key order, and what in it is nobody's.

    Neither the plan nor anything among the votes is ever in the result, whatever its name.

    Args:
        listing: every object of the run.
        unfinished: what its store knows to be half written.
        plan: the run's.
        complete: whether tables of all shards are published.
        now: seconds since the epoch.
        young_s: seconds for which something half written is left alone.
    """
    listing = sorted(listing, key=lambda stored: stored.key)
    counted = _last_votes(listing)
    found = []
    for stored in listing:
        if layout.may_hold_votes(stored.key):
            continue
        age = max(0.0, now - stored.modified)
        judged = _judge(stored, age, plan, complete, counted, young_s)
        if judged is not None:
            found.append(Leftover(stored.key, stored.size, age, *judged))
    for part in sorted(unfinished, key=lambda part: part.key):
        if layout.may_hold_votes(part.key):
            continue
        age = max(0.0, now - part.modified)
        ours = not part.upload or part.key in _UPLOADED
        verdict: Verdict = _by_age(age, young_s) if ours else "not ours"
        found.append(Leftover(part.key, part.size, age, "half written", verdict, part))
    return found


def _judge(
    stored: StoredObject, age: float, plan: Plan, complete: bool, counted: dict[int, float], young_s: float
) -> tuple[str, Verdict] | None:
    """What an object is that is not among the votes, and what becomes of it; None where somebody reads it."""
    shard = layout.failed_of(stored.key)
    if shard is not None and shard < plan.shards:
        # A record younger than the votes is of a retry of the shard's failed images.
        overtaken = counted.get(shard, 0.0) > stored.modified
        return (f"shard {shard} was counted after it was given up", "delete") if overtaken else None
    if layout.is_driver(stored.key):
        return ("record of a driver that is gone", "delete") if age > DRIVER_GONE_S else None
    if layout.is_probe(stored.key):
        return "probe of the store", _by_age(age, young_s)
    if stored.key in _PARTIAL:
        return ("partial table of a run that is complete", "delete") if complete else None
    return None if stored.key in _WRITTEN_BY_US else ("unknown", "not ours")


def _by_age(age: float, young_s: float) -> Verdict:
    return "too young" if age < young_s else "delete"


def _last_votes(listing: Iterable[StoredObject]) -> dict[int, float]:
    """When the last votes of each shard were committed."""
    last: dict[int, float] = {}
    for stored in listing:
        added = layout.retry_of(stored.key) or layout.later_round(stored.key)
        shard = layout.shard_of(stored.key) if added is None else added[0]
        if shard is not None:
            last[shard] = max(stored.modified, last.get(shard, stored.modified))
    return last


def find_leftovers(store: Store, young_s: float = YOUNG_S) -> list[Leftover]:
    """What the run in ``store`` can do without. Raises RunError where there is no run."""
    plan = read_plan(store)
    try:
        complete = published(store) is not None and store.exists(layout.CERTIFICATES)
    except RunError:  # damaged tables overtake nothing
        complete = False
    return leftovers(store.list(""), store.unfinished(), plan, complete, time.time(), young_s)


def delete_leftovers(store: Store, found: Iterable[Leftover]) -> None:
    """Delete what may be deleted of what was found."""
    for leftover in found:
        if layout.may_hold_votes(leftover.key):
            raise AssertionError(f"{leftover.key} is never deleted")
        if leftover.verdict != "delete":
            continue
        if leftover.unfinished is None:
            store.delete(leftover.key)
        else:
            store.discard(leftover.unfinished)
