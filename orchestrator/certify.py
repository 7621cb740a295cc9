"""The main job: plan, count what is missing, reduce."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from orchestrator.cluster import ActorPool, Capacity, cluster
from orchestrator.dispatch import Counted, Died, Event, Failed, Outcome, Policy, dispatch
from orchestrator.errors import RunError, SpecError
from orchestrator.plan import Plan, difference
from orchestrator.progress import Meter, meter
from orchestrator.reduce import check_against, reduce_run
from orchestrator.resolve import resolve
from orchestrator.runs import counted_shards, read_plan
from orchestrator.spec import Resources, Spec
from orchestrator.tables import Reduced, View, published
from workers import layout
from workers.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certification:
    """What a call of ``certify_run`` did.

    Attributes:
        run: where the run is.
        counted: shards counted by this call.
        given_up: shard to the reason it was given up in this call.
        reduced: certificates and curves.
        nothing_to_do: every shard was counted and this view reduced before.
    """

    run: str
    counted: int
    given_up: dict[int, str]
    reduced: Reduced
    nothing_to_do: bool

    @property
    def complete(self) -> bool:
        """Every image has votes."""
        return self.reduced.summary.complete


def certify_run(spec: Spec) -> Certification:
    """Bring the run a spec describes to completion, from wherever it stands.

    On the Ray cluster at $RAY_ADDRESS, or one embedded in this process.

    Args:
        spec: what to certify, and where the run is kept.

    Raises:
        SpecError: the spec cannot be carried out.
        RunError: another run is kept there, or it is damaged.
        WorkersError: workers do not start, or fail at everything. What was counted is kept.
    """
    store = spec.store.open()
    plan = resolve(spec).plan
    view = View.of(spec)
    check_against(plan, view)
    store.check_exclusive()
    stored = _settle(store, plan)

    done = set(counted_shards(store, plan))
    pending = [shard for shard in range(plan.shards) if shard not in done]
    last = published(store) if not pending and store.exists(layout.CERTIFICATES) else None
    if last is not None and last.view == view:
        return Certification(store.uri, 0, {}, last, nothing_to_do=True)

    outcome = Outcome()
    if pending:
        outcome = _count(store, plan, spec.resources, pending)
    with meter("reducing", len(done) + len(outcome.counted), "shards") as progress:
        # By the plan that the run was begun with: its versions are those of the votes, as far as one plan can say.
        reduced = reduce_run(store, stored, view, progress.advance)
    return Certification(store.uri, len(outcome.counted), outcome.given_up, reduced, nothing_to_do=False)


def workers_for(resources: Resources, capacity: Capacity) -> tuple[int, float]:
    """Actors to keep alive and GPUs for each.

    Raises:
        SpecError: more asked for one actor than a cluster that cannot grow has.
    """
    gpus = resources.gpus_per_actor if resources.gpus_per_actor != "auto" else float(capacity.gpus > 0)
    if not capacity.may_grow and gpus > capacity.gpus:
        raise SpecError(
            f"resources.gpus_per_actor asks for {gpus:g} GPUs and this machine has {capacity.gpus}: set it to 0 or auto"
        )
    if resources.actors != "auto":
        return resources.actors, gpus
    fitting = capacity.gpus / gpus if gpus > 0 else capacity.cpus / resources.threads_per_actor
    return max(1, int(fitting)), gpus


def _settle(store: Store, plan: Plan) -> Plan:
    """Write a new run's plan, or check that the run there would get the same votes. Returns the plan in the store."""
    if store.create(layout.PLAN, plan.to_json()):
        return plan
    stored = read_plan(store)
    changed = difference(stored, plan)
    if changed:
        raise RunError(
            f"{store.uri} holds another run; use another --run, or make the spec agree:\n  " + "\n  ".join(changed)
        )
    return stored


def _count(store: Store, plan: Plan, resources: Resources, pending: list[int]) -> Outcome:
    cpus = (1 if resources.actors == "auto" else resources.actors) * resources.threads_per_actor
    with cluster(cpus) as capacity:
        actors, gpus = workers_for(resources, capacity)
        digest = hashlib.sha256(store.read(layout.PLAN)).hexdigest()
        job = plan.job(store.uri, device="cuda" if gpus > 0 else "cpu", plan_sha256=digest)
        images = sum(plan.shard_images(shard) for shard in pending)
        policy = Policy(workers=actors, max_attempts=resources.max_attempts)
        with meter("counting", images, "images") as progress:
            pool = ActorPool(job, cpus=resources.threads_per_actor, gpus=gpus, warn=progress.note)
            try:
                outcome = dispatch(pending, pool, policy, lambda event: _tell(store, event, progress))
            finally:
                pool.close()
    for shard, reason in outcome.given_up.items():
        record = {"shard": shard, "attempts": resources.max_attempts, "reason": reason}
        store.replace(layout.failed(shard), json.dumps(record).encode())
    return outcome


def _tell(store: Store, event: Event, progress: Meter) -> None:
    match event:
        case Counted():
            store.delete(layout.failed(event.shard))
            progress.advance(event.images)
            if event.failed:
                progress.note(f"shard {event.shard}: {event.failed} of {event.images} images could not be counted")
            log.debug("%s", event)
        case Failed():
            progress.note(f"shard {event.shard} failed on worker {event.worker}: {event.reason}")
        case Died():
            progress.note(f"worker {event.worker} died and is replaced: {event.reason}")
        case _:
            log.debug("%s", event)
