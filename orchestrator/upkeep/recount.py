"""Count some of a run's images once more, and compare."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.errors import RunError, SpecError
from orchestrator.planning.plans import Plan
from orchestrator.planning.resolve import resolve
from orchestrator.reducing.runs import CountRows, counted_shards, read_shard
from orchestrator.upkeep.findings import Finding, Findings, Observe, unobserved
from stn_core.naming import one_line
from workers import layout
from workers.committed import read_committed
from workers.counting import count_images, prepared, read_images
from workers.rounds import Ask
from workers.store import Store, StoreError


@dataclass(frozen=True)
class Recount:
    """What became of it.

    Attributes:
        seed: by which images were chosen.
        images: their numbers in the data set.
        findings: what came out otherwise, or why nothing could be counted.
    """

    seed: int
    images: tuple[int, ...]
    findings: tuple[Finding, ...]


def recount(store: Store, plan: Plan, images: int, seed: int, observe: Observe = unobserved) -> Recount:
    """Count images once more by the stored spec: on this machine's GPU or CPU, otherwise as the run's workers do.

    Args:
        store: the run.
        plan: its plan.
        images: how many; where fewer have votes, all of those.
        seed: by which they are chosen.
        observe: opens a meter.
    """
    found = Findings()
    try:
        resolved = resolve(plan.spec)
    except (SpecError, StoreError) as error:
        found.add("recount", layout.PLAN, f"what it names cannot be opened: {one_line(error)}")
        return Recount(seed, (), found.told())
    if changed := changes(plan, resolved.plan):
        found.add("recount", layout.PLAN, f"what the votes were counted from has changed: {'; '.join(changed)}")
        return Recount(seed, (), found.told())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = plan.job(store.uri, device="cuda" if device.type == "cuda" else "cpu")
    model = prepared(resolved.model, job.model, compile=job.compile, device=device)
    counted = []
    with observe("counting again", images, "images") as progress, _as_workers_do(job.threads):
        for index, shard, stored in _chosen(store, plan, images, seed):
            try:
                ask = Ask(np.array([index]), np.zeros(1, dtype=np.int64), stored.draws, job.selection_draws)
                shard_of_one = read_images(job, [index], resolved.images)
                again = CountRows(count_images(job, shard_of_one, ask, model, device), plan.num_classes)
            except (OSError, StoreError) as error:
                wrong = [f"cannot be read: {one_line(error)}"]
            else:
                wrong = list(differences(stored, again))
            for text in wrong:
                how = _circumstances(store, plan, shard, resolved.plan, device)
                found.add("recount", f"image {index}", f"{text}; {how}")
            counted.append(index)
            progress.advance(1)
    return Recount(seed, tuple(counted), found.told())


def changes(plan: Plan, now: Plan) -> list[str]:
    """What decides the votes and is no longer as it was planned."""
    old, new = plan.identity(), dataclasses.replace(now, shard_size=plan.shard_size).identity()
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def differences(stored: CountRows, again: CountRows) -> Iterator[str]:
    """In what an image's row is another when it is counted again."""
    error = again.table["error"][0].as_py()
    if error is not None:
        yield f"cannot be counted any more: {error}"
        return
    for name in ("key", "label"):
        one, other = stored.table[name][0].as_py(), again.table[name][0].as_py()
        if one != other:
            yield f"{name} was {one}, is {other}"
    lost = {"selection": [rows.table["selection_invalid"].to_numpy() for rows in (stored, again)]}
    lost["estimation"] = [stored.invalid, again.invalid]
    for phase, invalid in lost.items():
        before, now = (np.append(getattr(rows, phase), own) for rows, own in zip((stored, again), invalid, strict=True))
        if moved := int(np.abs(before - now).sum() + 1) // 2:
            yield f"{moved} of {before.sum()} {phase} draws came out otherwise"


def _chosen(store: Store, plan: Plan, images: int, seed: int) -> Iterator[tuple[int, int, CountRows]]:
    """Random images with votes: number in the data set, shard, and stored row."""
    readable = set(counted_shards(store, plan))
    for position in np.random.default_rng(seed).permutation(plan.images).tolist():
        if images == 0:
            return
        shard, place = divmod(position, plan.shard_size)
        if shard not in readable:
            continue
        try:
            row = read_shard(store, plan, shard).part(place, 1)
        except (RunError, StoreError):
            readable.remove(shard)  # verify_run says why
            continue
        if row.usable.all():
            images -= 1
            yield plan.indices[position], shard, row


def _circumstances(store: Store, plan: Plan, shard: int, now: Plan, device: torch.device) -> str:
    """On what an image was counted, and on what again."""
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    committed = read_committed(store, shard, later=plan.sequential)
    there = sorted({str(facts.get("device")) for facts in committed.provenance.values()})
    return (
        f"counted on {' and '.join(there)} with torch {plan.versions.get('torch')}, again on {here} with torch "
        f"{now.versions.get('torch')}: another device or version may flip near-ties, the same may not"
    )


@contextlib.contextmanager
def _as_workers_do(threads: int) -> Iterator[None]:
    """So many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
