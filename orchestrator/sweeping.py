"""Several jobs that differ in noise and training method, as one: what Figure 1 of the paper shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.counting import certification
from orchestrator.errors import SpecError
from orchestrator.planning.resolve import resolve
from orchestrator.spec import Spec, validate
from orchestrator.training.train import prepare, train_spec
from workers import layout
from workers.images import DatasetError, open_dataset
from workers.settings import NEEDS, Method
from workers.store import Store


@dataclass(frozen=True)
class Point:
    """One of a sweep's jobs.

    Attributes:
        name: of its run, below the sweep's.
        spec: to train, where it has a training section, and to certify.
    """

    name: str
    spec: Spec


def points(spec: Spec, sigmas: Sequence[float], methods: Sequence[Method] = ()) -> list[Point]:
    """The jobs of a sweep over all pairs of method and sigma.

    Args:
        spec: what they have in common; its run is the folder that holds theirs, and its checkpoint's name is extended.
        sigmas: of the noise, and so of training noise unless the spec sets ``training.sigma``.
        methods: of training; none: the spec's.

    Raises:
        SpecError: the spec cannot be varied so.
    """
    if spec.noise.kind != "gaussian":
        raise SpecError(f"a sweep over sigma needs gaussian noise, the spec's is {spec.noise.kind}")
    for what, values in (("sigma", sigmas), ("method", methods)):
        twice = next((value for value in values if list(values).count(value) > 1), None)
        if twice is not None:
            raise SpecError(f"a sweep over {what} needs each once, and has {twice} twice")
    if methods and spec.training is None:
        raise SpecError("a sweep over methods needs the spec's training section, and there is none")
    own = () if spec.training is None else (spec.training.method,)
    return [_point(spec, method, sigma) for method in methods or own or (None,) for sigma in sigmas]


def check_ready(jobs: Sequence[Point], store: Store) -> None:
    """Look, before hours are spent on the first of the jobs, at what all of them need.

    Args:
        jobs: of the sweep, the images to certify in common.
        store: where the sweep is kept.

    Raises:
        SpecError: a run is there already and not a sweep's, data or weights of a job cannot be used, or two jobs train
            different networks into one checkpoint.
        StoreError: nothing can be written there.
    """
    if store.exists(layout.PLAN):
        raise SpecError(f"{store.uri} holds a run, and this keeps several below its folder: name another one by --run")
    try:
        open_dataset(jobs[0].spec.dataset, jobs[0].spec.store.options)  # they have it in common
    except DatasetError as error:
        raise SpecError(str(error)) from error
    store.probe()
    store.check_exclusive()
    trained: dict[Path | str, str] = {}
    for job in jobs:
        try:
            if job.spec.training is None:
                resolve(job.spec)
                continue
            ready = prepare(job.spec)
        except SpecError as error:
            raise SpecError(f"{job.name}: {error}") from error
        if trained.setdefault(ready.checkpoint, ready.digest) != ready.digest:
            raise SpecError(
                f"two networks would be trained into {ready.checkpoint}: give each its own model.checkpoint"
            )


def train_and_certify(jobs: Sequence[Point], tell: Callable[[str], object]) -> bool:
    """Train the networks of those jobs that have a training section, and certify all, each from wherever it stands.

    Args:
        jobs: of the sweep.
        tell: told, in a line, what is begun and what a run lacks in the end.

    Returns:
        Whether every run is complete.

    Raises:
        SpecError, RunError, StoreError, TrainingError, WorkersError: as training and certifying one job.
    """
    complete = True
    for number, job in enumerate(jobs, 1):
        tell(f"{number} of {len(jobs)}: {job.name}")
        if job.spec.training is not None:
            train_spec(job.spec)
        result = certification.certify_run(job.spec)
        if not result.complete:
            for shard, reason in result.given_up.items():
                tell(f"shard {shard} was given up: {reason}")
            tell(result.summary.lacking)
        complete = complete and result.complete
    return complete


def _point(spec: Spec, method: Method | None, sigma: float) -> Point:
    content = spec.model_dump()
    name = f"sigma-{sigma}" if method is None else f"{method}-sigma-{sigma}"
    content["noise"]["sigma"] = sigma
    content["store"]["run"] = f"{spec.store.run.rstrip('/')}/{name}"
    if method is not None:
        content["training"] = of_method(content["training"], method)
        content["model"]["checkpoint"] = _checkpoint(spec, method, name)
    return Point(name, validate(content, f"sweep, {name}"))


def of_method(section: dict[str, Any], method: Method) -> dict[str, Any]:
    """A section for another method: what that has no use for is left out, and the weight of another's regulariser."""
    without = {key for key, methods in NEEDS.items() if method not in methods}
    if method != section["method"]:
        without |= {"gamma"}
    return {**{key: value for key, value in section.items() if key not in without}, "method": method}


def beside_checkpoint(checkpoint: Path | str, name: str) -> Path | str:
    """A checkpoint's place with a name at the end of its stem: model.pt gives model-NAME.pt."""
    stem, dot, suffix = str(checkpoint).rpartition(".")
    varied = f"{stem}-{name}{dot}{suffix}" if dot and "/" not in suffix else f"{checkpoint}-{name}"
    return varied if isinstance(checkpoint, str) else Path(varied)


def _checkpoint(spec: Spec, method: Method, name: str) -> Path | str:
    """A checkpoint of its own for each network; one where sigma plays no part in training."""
    checkpoint, training = spec.model.checkpoint, spec.training
    if checkpoint is None or training is None:
        raise SpecError("model.checkpoint is missing: a sweep writes the networks' weights beside it")
    return beside_checkpoint(checkpoint, name if method in NEEDS["sigma"] and training.sigma is None else method)
