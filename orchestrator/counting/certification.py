"""The main job: plan, count what is missing, reduce."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from orchestrator import logs
from orchestrator.counting.crew import Device, Hire, Task
from orchestrator.counting.dispatch import Counted, News, Outcome, dispatch
from orchestrator.counting.policy import Facts, Policy
from orchestrator.counting.presence import announced
from orchestrator.counting.telling import tell
from orchestrator.errors import RunError, SpecError
from orchestrator.on_ray.actors import hire_actors
from orchestrator.planning.opening import keep_index, known_index
from orchestrator.planning.plans import Plan, difference
from orchestrator.planning.resolve import Resolved, resolve
from orchestrator.progress import Meter, meter
from orchestrator.reducing.reading import Results
from orchestrator.reducing.reduction import check_against, reduce_run
from orchestrator.reducing.runs import (
    check_no_import,
    counted_shards,
    failed_images,
    given_up_shards,
    read_plan,
    read_shard,
    undecided_shards,
    vote_objects,
)
from orchestrator.reducing.tables import Reduced, View, goal_of, published, settled
from orchestrator.spec import Resources, Spec
from orchestrator.training import epochs
from stn_core.confidence import PROTOCOLS
from workers import layout
from workers.counting import CountJob
from workers.store import Store, StoreError


@dataclass(frozen=True, repr=False)
class Certification(Results):
    """What a call of ``certify_run`` did, and what the run's votes certify.

    Attributes:
        counted: shards counted by this call.
        given_up: shard to the reason it was given up in this call.
        nothing_to_do: every shard was counted and this view reduced before.
    """

    counted: int
    given_up: dict[int, str]
    nothing_to_do: bool


def certify_run(spec: Spec, *, retry_failed: bool = False, hire: Hire = hire_actors) -> Certification:
    """Bring the run a spec describes to completion, from wherever it stands.

    Args:
        spec: what to certify, and where the run is kept.
        retry_failed: count again what could not be counted before, single images and whole shards, and nothing else.
        hire: who counts; Ray's actors, on the cluster at $RAY_ADDRESS or one embedded in this process.

    Raises:
        SpecError: the spec cannot be carried out.
        RunError: another run is kept there, or it is damaged.
        WorkersError: workers do not start, or fail at everything. What was counted is kept.
    """
    if not spec.certificates:
        raise SpecError(f"noise.kind: nothing can be certified with {spec.noise.kind!r}; `stn attack` takes it")
    store = spec.store.open()
    logs.concerns(store.uri)
    if retry_failed and not store.exists(layout.PLAN):
        raise RunError(f"no run at {store.uri}: nothing has failed there yet, leave out --retry-failed")
    resolved = resolve(spec, known_index(store, spec))
    view = View.of(spec)
    check_against(resolved.plan, view)
    store.check_exclusive()
    stored = _settle(store, resolved.plan, view)
    plan = resolved.plan.begun_as(stored)
    resolved = dataclasses.replace(resolved, plan=plan)
    keep_index(store, resolved.images)
    _keep_training(store, plan.spec)

    done = counted_shards(store, plan)
    last = published(store) if len(done) == plan.shards and store.exists(layout.CERTIFICATES) else None
    # Who has published all that was asked for need not read the votes to know that they decide it.
    decided = not plan.sequential or settled(last, plan, vote_objects(store))
    undecided = {} if decided else undecided_shards(store, plan, done)
    current = last is not None and last.view == view and last.goal == goal_of(plan) and not _outdated(store, last)
    work = _failed(store, stored, done, undecided) if retry_failed else _missing(plan, done, undecided)
    if current and decided and last is not None and not work.images:
        return Certification(store, last, 0, {}, nothing_to_do=True)

    outcome = _count(store, resolved, spec.resources, work, hire) if work.images else Outcome(set(), {})
    if read_plan(store).goal_or_none() != plan.goal_or_none():
        raise RunError(
            f"{store.uri} was given another goal while this call counted; its votes are kept, its tables left as they "
            "are: run the same command again, once the other is done"
        )
    with meter("reducing", len(outcome.counted.union(done)), "shards") as progress:
        # By the plan that the run was begun with: its versions are those of the votes, as far as one plan can say.
        reduced = reduce_run(store, dataclasses.replace(stored, goal=plan.goal), view, progress.advance)
    return Certification(store, reduced, len(outcome.counted), outcome.given_up, nothing_to_do=False)


@dataclass(frozen=True)
class _Work:
    """What a call is to do.

    Attributes:
        task: with each shard.
        images: of each shard to be counted, in the order of shards.
    """

    task: Task
    images: dict[int, int]


def _missing(plan: Plan, done: list[int], undecided: dict[int, int]) -> _Work:
    missing = sorted(set(range(plan.shards)).difference(done))
    # Those that are begun come first: so fewer are half done if this call is interrupted.
    return _Work("count", undecided | {shard: plan.shard_images(shard) for shard in missing})


def _failed(store: Store, plan: Plan, done: list[int], undecided: dict[int, int]) -> _Work:
    finished = set(done).difference(undecided)
    given_up = {shard: plan.shard_images(shard) for shard in set(given_up_shards(store, plan)).difference(finished)}
    return _Work("retry", dict(sorted({**failed_images(store, plan, done), **given_up}.items())))


def _outdated(store: Store, last: Reduced) -> bool:
    """Whether images that had failed when the tables were published may have been counted since."""
    return last.summary.failed > 0 and any(layout.retry_of(stored.key) for stored in store.list(layout.COUNTS))


def _settle(store: Store, plan: Plan, view: View) -> Plan:
    """Write a new run's plan, or check that the run there would get the same votes. Returns the plan in the store, and
    leaves there what the votes are to decide from now on."""
    check_no_import(store)
    if store.create(layout.PLAN, plan.to_json()):
        return plan
    stored = _without_idle_goal(store, read_plan(store), view)
    check_against(stored, view)
    changed = difference(stored, plan)
    if changed:
        begun = next(iter(store.list(layout.COUNTS)), None) is not None
        hint = "" if begun else "; it has no votes yet: remove it to begin anew"
        if begun and all(line.startswith("sampling.draws:") for line in changed):
            hint = (
                "; more draws may be added where protocol anytime or anytime_label is asked for, see "
                "docs/statistics.md: bounds of the others hold for a number fixed beforehand"
            )
        raise RunError(
            f"{store.uri} holds another run ({'; '.join(changed)}): use another --run, or make the spec agree{hint}"
        )
    asked = plan.begun_as(stored)
    if asked.goal_or_none() != stored.goal_or_none():
        store.replace(layout.GOAL, asked.goal_json())
    return stored


def _without_idle_goal(store: Store, stored: Plan, view: View) -> Plan:
    """The stored plan, rid of a goal that is asked for no more and that no draw has followed yet."""
    begun = dataclasses.replace(stored, goal=None)
    if stored.goal is None or begun.sequential or any(PROTOCOLS[name].sequential for name in view.protocols):
        return stored
    if any(layout.later_round(found.key) for found in store.list(layout.COUNTS)):
        return stored
    try:
        for shard in counted_shards(store, begun):
            read_shard(store, begun, shard)
    except RunError:  # draws are others than those it was begun with
        return stored
    store.delete(layout.GOAL)
    return begun


def _keep_training(store: Store, spec: Spec) -> None:
    """Copy the figures of the network's training into the run, which may outlive the checkpoint."""
    if spec.model.checkpoint is not None and not store.exists(layout.TRAINING):
        try:
            content = epochs.of_checkpoint(spec.model.checkpoint, spec.store.options)
        except StoreError:  # who may read a checkpoint need not be able to see what is beside it
            return
        if content is not None:
            store.create(layout.TRAINING, content)


def _count(store: Store, resolved: Resolved, resources: Resources, work: _Work, hire: Hire) -> Outcome:
    digest = hashlib.sha256(store.read(layout.PLAN)).hexdigest()

    def make_job(device: Device) -> CountJob:
        return resolved.plan.job(store.uri, device=device, plan_sha256=digest, sample=resolved.sample)

    # Looked up once: a request for each shard would be what the main job spends its time on.
    records = (layout.failed_of(stored.key) for stored in store.list(layout.FAILED))
    recorded = {shard for shard in records if shard is not None}
    with (
        meter("counting", sum(work.images.values()), "images") as progress,
        announced(store, progress.note),
        hire(make_job, work.task, resources, progress.note) as crew,
    ):
        policy = Policy(
            workers=crew.workers,
            max_attempts=resources.max_attempts,
            stall_s=None if resources.stall_s == "auto" else resources.stall_s,
        )

        def observe(news: News, facts: Facts) -> None:
            crew.observe(news, facts)
            _tell(store, news, facts, work, recorded, progress)

        outcome = dispatch(work.images, crew.pool, policy, observe)
    for shard, reason in outcome.given_up.items():
        record = {"shard": shard, "attempts": resources.max_attempts, "reason": reason}
        store.replace(layout.failed(shard), json.dumps(record).encode())
    return outcome


def _tell(store: Store, news: News, facts: Facts, work: _Work, recorded: set[int], progress: Meter) -> None:
    """What is told of the news; a record that a shard was given up, which it has overtaken, is removed."""
    if isinstance(news, Counted) and news.shard in recorded:
        store.delete(layout.failed(news.shard))
    tell(news, facts, work.images, progress)
