"""Looking at everything a run needs, one line each: all is well, or what to do about it. Writes nothing but probes."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from orchestrator.address import silent
from orchestrator.errors import RunError, SpecError, WorkersError
from orchestrator.planning.plans import Plan, difference
from orchestrator.planning.resolve import resolve
from orchestrator.reducing.runs import check_no_import, counted_shards, read_plan
from orchestrator.spec import Spec
from orchestrator.upkeep import machine
from orchestrator.upkeep.machine import Machine, describe
from stn_core.models import EXPORTED
from stn_core.naming import one_line
from workers import layout
from workers.counting import load_model
from workers.files import absolute, exists, read_file
from workers.images import DatasetError, ImageSet, UnreadableImage, open_dataset
from workers.selection import selected
from workers.settings import Digits
from workers.store import LocalStore, Store, StoreError
from workers.versions import versions

#: What must be the same on every machine that works on a run.
_SAME = ("python", "stn", "ray", "torch")

#: Bytes of free memory below which a GPU is taken by somebody else.
_LEAST_FREE = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of an examination.

    Attributes:
        what: was looked at, and how it is.
        advice: what to do; empty where all is well.
    """

    what: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be done."""
        return not self.advice

    def __str__(self) -> str:
        return f"ok  {self.what}" if self.ok else f"FIX {self.what}: {self.advice}"


def this_machine() -> Machine:
    """The machine this process is on."""
    return Machine(**describe(("stn", *_packages())))


def _packages() -> list[str]:
    try:
        return [name for name in versions() if name not in ("python", "stn")]
    except PackageNotFoundError as error:
        return [error.name]


def examine_machines(here: Machine) -> Iterator[Finding]:
    """This machine and, where $RAY_ADDRESS names a cluster, each of its nodes."""
    lacking = [name for name, version in here.versions.items() if version is None]
    if lacking:
        yield Finding("versions", f"{', '.join(lacking)} is not installed here: install stn with its dependencies")
    else:
        yield Finding(f"versions: {', '.join(f'{name} {version}' for name, version in here.versions.items())}")
    yield from judge_hardware("this machine", here)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        yield from _examine_cluster(address, here)


def _examine_cluster(address: str, here: Machine) -> Iterator[Finding]:
    silence = silent(address)
    if silence:
        yield Finding(f"cluster at {address}", f"{silence}: start Ray there, or correct --address or $RAY_ADDRESS")
        return
    # Importing Ray takes seconds, and without a cluster there is nothing for it to do.
    from orchestrator.on_ray.cluster import ask_nodes, cluster

    packages = tuple(name for name in here.versions if name != "python")
    try:
        with cluster(1):
            answers = ask_nodes(functools.partial(describe, packages, every_gpu=True), machine)
    except WorkersError as error:
        yield Finding("cluster", str(error))
        return
    yield Finding(f"cluster at {address}: {len(answers)} node{'' if len(answers) == 1 else 's'}")
    for answer in answers:
        if answer.failure:
            yield Finding(f"node {answer.node}", f"does not answer: {answer.failure}")
        else:
            there = Machine(**answer.value)
            yield judge_versions(f"node {answer.node}", here, there)
            yield from judge_hardware(f"node {answer.node}", there)


def judge_versions(name: str, here: Machine, there: Machine) -> Finding:
    """Whether a node would count as this machine does."""
    differing = {
        package: (there.versions.get(package), version)
        for package, version in here.versions.items()
        if there.versions.get(package) != version
    }
    said = [f"{package} {own or 'missing'} there, {ours} here" for package, (own, ours) in differing.items()]
    if differing.keys() & set(_SAME):
        return Finding(name, f"{'; '.join(said)}: install the same versions on all machines")
    if there.code_sha256 != here.code_sha256:
        what = "cannot import stn" if there.code_sha256 is None else "has other source files of stn than this machine"
        return Finding(name, f"{what}: install the same stn on all machines")
    return Finding(f"{name}: {'; '.join(said) or 'the same versions as here'}")


def judge_hardware(name: str, found: Machine) -> Iterator[Finding]:
    """What a machine can count with."""
    yield Finding(f"{name}: {found.cpus} CPUs, {_size(found.memory)} of memory")
    if found.gpu_trouble:
        advice = f"{found.gpu_trouble}: mend the driver, or install a build of PyTorch that fits it"
        yield Finding(f"{name}: GPU", advice)
    elif not found.gpus:
        yield Finding(f"{name}: no GPU, CPUs do the work")
    for number, (model, memory, free) in enumerate(found.gpus):
        what = f"{name}: GPU {number}, {model}, {_size(memory)} of memory, {_size(free)} free"
        yield Finding(what, "end what holds its memory" if free < _LEAST_FREE else "")


def examine_job(spec: Spec, here: Machine) -> Iterator[Finding]:
    """All that a spec names: its data set, its weights, the place of its run, and the run there."""
    plan = yield from _examine_inputs(spec)
    asked = spec.resources.gpus_per_actor
    if asked != "auto" and asked > len(here.gpus) and not os.environ.get("RAY_ADDRESS"):
        yield Finding(
            "resources.gpus_per_actor",
            f"asks for {asked:g} GPUs and this machine has {len(here.gpus)}: set it to 0 or auto, or give --address",
        )
    try:
        store = spec.store.open()
    except StoreError as error:
        yield Finding("store", str(error))
        return
    yield from _examine_store(store, spec)
    if isinstance(store, LocalStore):
        yield judge_space(store.uri, shutil.disk_usage(_existing(Path(store.uri))).free, plan)
    yield from _examine_run(store, plan)


def _examine_inputs(spec: Spec) -> Generator[Finding, None, Plan | None]:
    """The data set, the weights and the model. Returns the plan, if all fit together."""
    try:
        resolved = resolve(spec)
    except (SpecError, StoreError) as error:
        found = [*_examine_dataset(spec), *_examine_weights(spec, str(error))]
        yield from found
        if all(str(error) != finding.advice for finding in found):
            yield Finding("model", str(error))
        return None
    plan = resolved.plan
    yield _judge_images(resolved.images, spec)
    own = spec.model.weights and f"torchvision's {plan.spec.model.weights}"
    source = spec.model.checkpoint or own or "the network's own"
    yield Finding(f"weights: {source}, sha-256 {plan.model_sha256[:16]}…")
    shape = " x ".join(map(str, plan.image_shape))
    yield Finding(f"model: {spec.model.name} takes images of {shape} and tells {plan.num_classes} classes apart")
    return plan


def _examine_dataset(spec: Spec) -> Iterator[Finding]:
    """The data set by itself."""
    section = spec.dataset
    try:
        place = None if isinstance(section, Digits) else absolute(section.path)
        images = open_dataset(section.model_copy(update={"path": place} if place else {}), spec.store.options)
    except DatasetError as error:
        yield Finding("data set", str(error))
    except RuntimeError as error:
        yield Finding("data set", f"dataset.path {getattr(section, 'path', '')}: {one_line(error)}")
    else:
        yield _judge_images(images, spec)


def _judge_images(images: ImageSet, spec: Spec) -> Finding:
    """Whether the first and the last image can be read."""
    indices = selected(spec.dataset, len(images))
    for index in dict.fromkeys((indices[0], indices[-1])):
        try:
            images.read(index)
        except UnreadableImage as error:
            return Finding("data set", f"image {index}: {error}: replace it, or it will count as not certified")
        except (OSError, StoreError) as error:
            return Finding("data set", f"image {index} cannot be read: {one_line(error)}")
    used = f"{len(indices)} of {len(images)} images, {images.num_classes} classes"
    return Finding(f"data set: {used}; the first and the last can be read")


def _examine_weights(spec: Spec, cause: str) -> Iterator[Finding]:
    """The checkpoint by itself. ``cause`` is why spec and data do not resolve: a missing checkpoint before all else."""
    model, options = spec.model, spec.store.options
    try:
        place = None if model.checkpoint is None else absolute(model.checkpoint)
        if model.weights is not None:
            load_model(model, model.num_classes or 0)
            yield Finding(f"weights: torchvision's {model.weights} of {model.name} can be read")
            return
        if place is None and ":" in model.name:
            return
        if place is None or not exists(place, options):
            yield Finding("weights", cause)
        elif model.num_classes is None and ":" not in model.name and model.name != EXPORTED:
            read_file(place, options)
            yield Finding(f"weights: {place} can be read")
        else:
            load_model(model.model_copy(update={"checkpoint": place}), model.num_classes or 0, options)
            yield Finding(f"weights: {place} fits {model.name}")
    except RuntimeError as error:
        yield Finding("weights", f"model.checkpoint {model.checkpoint}: {one_line(error)}")
    except (ValueError, StoreError, OSError) as error:
        yield Finding("weights", one_line(error, limit=1000))


def _examine_store(store: Store, spec: Spec) -> Iterator[Finding]:
    """Whether objects can be written, and by several drivers at once."""
    try:
        store.probe()
        yield Finding(f"store: a probe at {store.uri} was written, read and removed")
        store.check_exclusive()
        if spec.store.single_writer and not isinstance(store, LocalStore):
            yield Finding("store: single_writer is set, so nobody else may write to this run")
        else:
            yield Finding("store: of two who write the same object, only one is told that it did")
    except StoreError as error:
        yield Finding("store", str(error))


def judge_space(folder: str, free: int, plan: Plan | None) -> Finding:
    """Whether what a run will write fits."""
    what = f"space: {_size(free)} free at {folder}"
    if plan is None:
        return Finding(what)
    need = most_bytes(plan)
    advice = f"a run of this spec may need {_size(need)}: make room, or choose another place" if need > free else ""
    return Finding(f"{what}, the run needs less than {_size(need)}" if not advice else what, advice)


def most_bytes(plan: Plan) -> int:
    """More than a run's votes and certificates take, bytes."""
    sampling = plan.spec.sampling
    entries = min(plan.num_classes, sampling.draws) + min(plan.num_classes, sampling.selection_draws)
    row = 256 + 12 * entries + 256 * len(plan.spec.certificates)
    return plan.images * row + plan.shards * 32 * 2**10 + 2**20


def _examine_run(store: Store, plan: Plan | None) -> Iterator[Finding]:
    """The run that is there already, and whether the spec would go on with it."""
    try:
        if not store.exists(layout.PLAN):
            check_no_import(store)
            yield Finding(f"run: none yet at {store.uri}")
            return
        stored = read_plan(store)
        counted = len(counted_shards(store, stored))
    except (RunError, StoreError) as error:
        yield Finding("run", str(error))
        return
    changed = difference(stored, plan) if plan else []
    if changed:
        yield Finding(
            "run", f"{store.uri} holds another run ({'; '.join(changed)}): use another --run, or make the spec agree"
        )
        return
    goes_on = ", and the spec goes on with it" if plan else ""
    yield Finding(f"run: {counted} of {stored.shards} shards counted{goes_on}")
    if plan:
        yield judge_age(stored, plan)


def judge_age(stored: Plan, plan: Plan) -> Finding:
    """Whether the run was begun as it would be now. Votes of other versions are valid, near-ties may fall otherwise."""
    changed = [
        f"{name} {stored.versions.get(name, 'missing')} then, {version} now"
        for name, version in plan.versions.items()
        if stored.versions.get(name) != version
    ]
    if stored.code_sha256 != plan.code_sha256:
        changed.append("other source files of stn")
    if not changed:
        return Finding("run: begun with the same versions as here")
    return Finding(f"run: {'; '.join(changed)}; its votes stay valid, only near-ties may fall otherwise")


def _existing(folder: Path) -> Path:
    """A folder, or the nearest above it that there is."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
