"""Attack a run's classifier: plan, attack what is missing, reduce. The images and their shards are the run's."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from orchestrator import logs
from orchestrator.attacking.masking import Comparison, masking_check
from orchestrator.attacking.robustness import (
    Attacked,
    Description,
    attempted,
    classifier,
    descriptions,
    difference,
    read_attempts,
    reduce_attacks,
)
from orchestrator.attacking.sandwich import Sandwich, sandwiches
from orchestrator.counting.crew import Device, Hire
from orchestrator.counting.dispatch import News, Outcome, dispatch
from orchestrator.counting.policy import Facts, Policy
from orchestrator.counting.presence import announced
from orchestrator.counting.telling import tell
from orchestrator.errors import RunError, SpecError
from orchestrator.on_ray.actors import hire_actors
from orchestrator.planning.opening import keep_index, known_index
from orchestrator.planning.plans import Plan
from orchestrator.planning.resolve import Resolved, resolve
from orchestrator.progress import meter
from orchestrator.reducing.runs import check_no_import, read_plan
from orchestrator.reporting.reported import find_run
from orchestrator.spec import Resources, Spec
from stn_core.models import weights_sha256
from stn_core.naming import one_line
from workers import layout
from workers.attack_settings import Attacks
from workers.attacking import AttackJob
from workers.counting import load_model
from workers.files import absolute
from workers.settings import Model
from workers.store import Store


@dataclass(frozen=True)
class AttackedRun:
    """What a call of ``attack_run`` did.

    Attributes:
        run: where the run is.
        done: (attack, shard) pairs done by this call.
        given_up: of those that were not, what they are called, to the reason.
        attacked: all attacks on the run as they stand.
        asked: names of those that this call was to make.
        sandwiches: what the attacks make of the run's certificates; None where it has none yet.
        masking: whether gradients are masked, by comparing attacks.
    """

    run: str
    done: int
    given_up: dict[str, str]
    attacked: Attacked = field(repr=False)
    asked: tuple[str, ...]
    sandwiches: tuple[Sandwich, ...] | None = field(repr=False)
    masking: tuple[Comparison, ...] = field(repr=False)

    @property
    def curves(self) -> pa.Table:
        """Robust accuracy by attack and size: ``robustness.CURVES_SCHEMA``."""
        return self.attacked.curves

    @property
    def holds(self) -> bool:
        """No attack succeeds within a certified radius, but as chance allows for."""
        return all(found.holds for found in self.sandwiches or ())

    @property
    def complete(self) -> bool:
        """Every image of the run was attacked in every way that was asked for."""
        return self.attacked.whole(self.asked)


def attack_run(spec: Spec, *, retry_failed: bool = False, hire: Hire = hire_actors) -> AttackedRun:
    """Attack the classifier that a spec describes, from wherever that stands.

    Args:
        spec: what to attack, how, and where the run is kept. A run that certifies the same classifier may be there, or
            come later; its votes stay as they are.
        retry_failed: attack those shards again in which images could not be attacked before.
        hire: who attacks; Ray's actors, on the cluster at $RAY_ADDRESS or one embedded in this process.

    Raises:
        SpecError: the spec cannot be carried out.
        RunError: another run or attack is kept there, or it is damaged.
        WorkersError: workers do not start, or fail at everything. What was done is kept.
    """
    if spec.attack is None:
        raise SpecError("attack is missing: say which attacks, as examples/attack.yaml does")
    store = spec.store.open()
    logs.concerns(store.uri)
    attacks = _with_absolute_sources(spec.attack)
    resolved = resolve(spec, known_index(store, spec))
    asked = {name: _described(name, attacks, resolved, spec) for name in attacks.attacks}
    store.check_exclusive()
    plan = _settle(store, resolved.plan)
    resolved = dataclasses.replace(resolved, plan=plan)
    begun = descriptions(store)
    for name, description in asked.items():
        _begin(store, description, begun.get(name))
    if retry_failed:
        _forget_failed(store, plan, asked)
    keep_index(store, resolved.images)

    job = _job(store, plan, resolved, attacks, asked, "cpu")
    done = attempted(store, plan)
    missing = {
        job.number(name, shard): plan.shard_images(shard)
        for name in job.names
        for shard in sorted(set(range(plan.shards)).difference(done.get(name, ())))
    }
    outcome = _carry_out(store, resolved, attacks, asked, spec.resources, missing, hire)
    given_up = {_called(job, number): reason for number, reason in outcome.given_up.items()}
    attacked = reduce_attacks(store, plan, attacks.alpha)
    run = find_run(store)
    return AttackedRun(
        run=store.uri,
        done=len(outcome.counted),
        given_up=given_up,
        attacked=attacked,
        asked=job.names,
        sandwiches=None if run is None else tuple(sandwiches(store, run, attacked)),
        masking=tuple(masking_check(attacked)),
    )


def _carry_out(
    store: Store,
    resolved: Resolved,
    attacks: Attacks,
    asked: dict[str, Description],
    resources: Resources,
    missing: dict[int, int],
    hire: Hire,
) -> Outcome:
    if not missing:
        return Outcome(set(), {})

    def make_job(device: Device) -> AttackJob:
        return _job(store, resolved.plan, resolved, attacks, asked, device)

    called = make_job("cpu")
    with (
        meter("attacking", sum(missing.values()), "images") as progress,
        announced(store, progress.note),
        hire(make_job, "attack", resources, progress.note) as crew,
    ):
        policy = Policy(
            workers=crew.workers,
            max_attempts=resources.max_attempts,
            stall_s=None if resources.stall_s == "auto" else resources.stall_s,
        )

        def observe(news: News, facts: Facts) -> None:
            crew.observe(news, facts)
            tell(news, facts, missing, progress, lambda number: _called(called, number))

        return dispatch(missing, crew.pool, policy, observe)


def _called(job: AttackJob, number: int) -> str:
    name, shard = job.work(number)
    return f"attack {name}, shard {shard}"


def _settle(store: Store, plan: Plan) -> Plan:
    """Write a new run's plan, or check that the run there is of the same classifier and images. Returns the plan by
    which it is attacked."""
    check_no_import(store)
    if store.create(layout.PLAN, plan.to_json()):
        return plan
    stored = read_plan(store)
    plan = dataclasses.replace(plan, shard_size=stored.shard_size)
    old, new = classifier(stored), classifier(plan)
    changed = [
        f"{key}: the run has {old.get(key)!r}, asked {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise RunError(
            f"{store.uri} holds another run ({'; '.join(changed)}): use another --run, or make the spec agree"
        )
    # As the run is known: its own votes are none of an attack's business.
    return dataclasses.replace(stored, spec=_placed(stored.spec, plan.spec))


def _placed(stored: Spec, asked: Spec) -> Spec:
    """The stored spec with data and weights where the asked one has them, and worked on as that says."""
    own = {name: getattr(asked, name) for name in ("dataset", "model", "resources", "store")}
    return stored.model_copy(update=own)


def _begin(store: Store, asked: Description, begun: Description | None) -> None:
    """Leave in the run what an attack is, or check that it is what was begun. Raises RunError."""
    if begun is None:
        content = asked.to_json()
        if store.create(layout.attack(asked.name), content):
            return
        begun = descriptions(store)[asked.name]
    if changed := difference(begun, asked):
        raise RunError(
            f"attack {asked.name} of {store.uri} was begun otherwise ({'; '.join(changed)}): give it another name, or "
            "make the spec agree"
        )


def _forget_failed(store: Store, plan: Plan, asked: dict[str, Description]) -> None:
    """Delete what was committed of shards with images that could not be attacked: attacked again, the others come out
    as they were."""
    done = attempted(store, plan)
    for name, description in asked.items():
        for shard in done.get(name, ()):
            table = read_attempts(store, plan, description, shard)
            if table["error"].null_count < len(table):
                store.delete(layout.attempts(name, shard))


def _described(name: str, attacks: Attacks, resolved: Resolved, spec: Spec) -> Description:
    attack = attacks.attacks[name]
    digest = None if attack.source is None else _source_sha256(name, attack.source, resolved, spec)
    return Description(name, attack, attacks.draws, attacks.seed, attacks.keep, digest)


def _source_sha256(name: str, source: Model, resolved: Resolved, spec: Spec) -> str:
    """Digest of the network that an attack's images are made on. Raises SpecError unless it can be attacked."""
    plan, where = resolved.plan, f"attack.attacks.{name}.source"
    try:
        if source.checkpoint is None and source.weights is None and ":" not in source.name:
            raise ValueError(f"checkpoint is missing: the weights of {source.name!r} would be random")
        network = load_model(source, plan.num_classes, spec.store.options)
        with torch.inference_mode():
            logits = network.eval()(torch.zeros((2, *plan.image_shape)))
        if tuple(logits.shape) != (2, plan.num_classes):
            raise ValueError(
                f"it gives outputs of shape {tuple(logits.shape)[1:]}, the run has {plan.num_classes} classes"
            )
    except Exception as error:  # the user's network may raise anything
        raise SpecError(f"{where}: {one_line(error)}") from error
    return weights_sha256(network.network)


def _with_absolute_sources(attacks: Attacks) -> Attacks:
    """Paths as any node sees them."""
    values: dict[str, Any] = {}
    for name, attack in attacks.attacks.items():
        source = attack.source
        if source is not None and source.checkpoint is not None:
            try:
                source = source.model_copy(update={"checkpoint": absolute(source.checkpoint)})
            except RuntimeError as error:
                where = f"attack.attacks.{name}.source.checkpoint {source.checkpoint}"
                raise SpecError(f"{where}: {one_line(error)}") from error
        values[name] = attack.model_copy(update={"source": source})
    return attacks.model_copy(update={"attacks": values})


def _job(
    store: Store, plan: Plan, resolved: Resolved, attacks: Attacks, asked: dict[str, Description], device: Device
) -> AttackJob:
    digest = hashlib.sha256(store.read(layout.PLAN)).hexdigest()
    common = {
        "classifier": classifier(plan),
        "code_sha256": resolved.plan.code_sha256,
        "versions": dict(resolved.plan.versions),
    }
    return AttackJob(
        count=plan.job(store.uri, device=device, plan_sha256=digest, sample=resolved.sample),
        asked=attacks,
        names=tuple(asked),
        shards=plan.shards,
        sources_sha256={name: one.source_sha256 for name, one in asked.items() if one.source_sha256 is not None},
        kept=frozenset(plan.indices[: attacks.keep]),
        provenance={name: {**common, "attack": name, "description": one.values()} for name, one in asked.items()},
    )
