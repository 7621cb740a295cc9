"""Ray: the embedded or given cluster, its counting actors, its training runs. The only module here that imports ray."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Ray reads these once, when it is imported.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not any(name in os.environ for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
    # The embedded cluster gets a token of its own. Left alone, Ray writes one under the home folder, which every later
    # cluster of this user then insists on.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray
import ray.cloudpickle
import ray.exceptions
import ray.train
import ray.util.queue
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.address import silent
from orchestrator.crew import Crew, Device, Task
from orchestrator.dispatch import Counted, Died, Event, Failed, Room, Started
from orchestrator.errors import SpecError, TrainingError, TrainingInterrupted, WorkersError
from orchestrator.metrics import Metrics
from orchestrator.spec import Resources
from workers.counting import CountJob
from workers.filesystem import object_filesystem
from workers.ray_entry import CountingActor, Receipt, train_loop
from workers.training import STATE, Epoch, TrainJob

#: An allocator that keeps its memory: activations are not mapped afresh for every batch.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**29)}

#: Seconds after which to look again whether Ray itself lives, and how large the cluster is.
_NODE_CHECK_S = 5.0

#: Seconds without a single worker after which to say what they wait for.
_START_WARNING_S = 30.0

#: Seconds that commits under way have to land after an interrupt: less than what follows a SIGTERM in most places.
_SETTLE_S = 20.0

#: Failures in training, since it began or there was a checkpoint, after which it has failed for good.
_MAX_FAILURES = 3

#: Training workers that become more begin anew at their last checkpoint. So there is a look for more room only after so
#: many checkpoints: growing costs the half one.
_RESIZE_CHECKPOINTS = 3.5
_RESIZE_S = 10.0

#: What Ray imports to see whether ``ray[default]`` is installed.
_EXTRA = "ray.dashboard.optional_deps"

#: Workers exchange shard numbers and receipts only.
_OBJECT_STORE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Capacity:
    """What the cluster has.

    Attributes:
        nodes: logical CPUs and GPUs of each node.
        may_grow: whether more may come, as on an autoscaled cluster.
    """

    nodes: tuple[tuple[int, int], ...]
    may_grow: bool = False

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    def room(self, cpus: int, gpus: float) -> int:
        """Workers with that many CPUs and GPUs each that there is room for."""
        return sum(min(own[0] // cpus, int(own[1] / gpus) if gpus else own[0]) for own in self.nodes)


@contextmanager
def cluster(cpus: int) -> Iterator[Capacity]:
    """A Ray cluster for the time of the block: the one at $RAY_ADDRESS, else one embedded in this process.

    An embedded one offers at least ``cpus`` CPUs to schedule on, however many the machine has.

    Raises:
        WorkersError: no cluster at that address, or none can be started.
    """
    address = os.environ.get("RAY_ADDRESS")
    embedded: dict[str, Any] = {
        "num_cpus": max(os.cpu_count() or 1, cpus),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    if address and (silence := silent(address)):
        raise WorkersError(f"no Ray cluster at {address} (--address or $RAY_ADDRESS): {silence}")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # "local" says it: a stale address file must not turn an embedded cluster into a connection.
        with contextlib.nullcontext() if address else _light():
            ray.init(
                address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else embedded)
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        place = f"at {address} (--address or $RAY_ADDRESS)" if address else "can be started on this machine"
        raise WorkersError(f"no Ray cluster {place}: {_last_line(str(error))}") from error
    try:
        if threading.current_thread() is threading.main_thread():
            # Ray takes SIGTERM for itself, and would end this process without a word on how to go on.
            signal.signal(signal.SIGTERM, on_sigterm)
        yield Capacity(_sizes(ray.nodes()), may_grow=address is not None)
    finally:
        ray.shutdown()


def _sizes(nodes: list[dict[str, Any]]) -> tuple[tuple[int, int], ...]:
    """CPUs and GPUs of each of Ray's nodes that is alive."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return tuple((int(own.get("CPU", 0)), int(own.get("GPU", 0))) for own in resources)


@contextmanager
def _light() -> Iterator[None]:
    """Let Ray start without what ``ray[default]`` adds: a second more for each cluster, for a dashboard nobody sees.

    Ray looks whether that extra is installed by importing one module, and has no setting to the same effect.
    """
    before = sys.modules.get(_EXTRA)
    sys.modules[_EXTRA] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
    try:
        yield
    finally:
        del sys.modules[_EXTRA]
        if before is not None:
            sys.modules[_EXTRA] = before


class ActorPool:
    """``dispatch.Pool`` of counting actors.

    Args:
        job: what they are to do.
        task: what is done with each shard.
        cpus, gpus: for each actor.
        room: actors that the cluster has room for, to tell when there is room for more; None: nobody wants to know.
        warn: told, in a line, what there is to wait for.
    """

    def __init__(
        self, job: CountJob, task: Task, *, cpus: int, gpus: float, room: int | None, warn: Callable[[str], None]
    ) -> None:
        self._job = job
        self._task = task
        self._cpus, self._gpus, self._room = cpus, gpus, room
        self._warn = warn
        # A thread of its own for `stop`, which is not to wait for the shard at work. Two for shards: of the next
        # one the images are read while the first is counted.
        remote: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]  # known to Ray
        self._actor_class: Any = remote(CountingActor).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=2, runtime_env={"env_vars": _ALLOCATOR}
        )
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, tuple[int, int | None]] = {}
        self._started = 0
        self._node = ray.get_runtime_context().get_node_id()
        self._begun = self._checked = time.monotonic()
        self._warned = False

    def start(self) -> int:
        worker = self._started
        self._started += 1
        self._actors[worker] = self._actor_class.remote(self._job)
        self._waiting[self._actors[worker].ready.remote()] = (worker, None)
        return worker

    def submit(self, worker: int, shard: int) -> None:
        work = getattr(self._actors[worker], self._task)
        self._waiting[work.remote(shard)] = (worker, shard)

    def end(self, worker: int) -> None:
        ray.kill(self._actors.pop(worker))
        self._waiting = {ref: waiting for ref, waiting in self._waiting.items() if waiting[0] != worker}

    def events(self, timeout_s: float) -> list[Event]:
        refs = list(self._waiting)
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        events = self._look_around()
        if not done:
            self._check_starting()
            return events
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in done:
            if ref in self._waiting:  # unless its worker's death was among the news before
                events.append(self._event(ref, *self._waiting.pop(ref)))
        return events

    def settle(self, timeout_s: float) -> None:
        """Let commits that are under way land, and none begin; waits at most that long."""
        ready = {worker for worker, shard in self._waiting.values() if shard is not None}
        if ready:
            told = [self._actors[worker].stop.remote() for worker in ready]
            ray.wait(told, num_returns=len(told), timeout=timeout_s)

    def close(self) -> None:
        """End every actor at once. A commit is atomic, so nothing is left half done."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _look_around(self) -> list[Event]:
        """Whether there is room for more actors, now and then.

        Raises WorkersError once this process's own Ray node is dead: nothing it waits for would ever come.
        """
        if time.monotonic() - self._checked < _NODE_CHECK_S:
            return []
        self._checked = time.monotonic()
        nodes = ray.nodes()
        if self._node not in {node["NodeID"] for node in nodes if node["Alive"]}:
            raise WorkersError("Ray died on this machine; what was counted is kept, run the same command again")
        room = Capacity(_sizes(nodes)).room(self._cpus, self._gpus)
        if self._room is None or room <= self._room:
            return []
        self._room = room
        return [Room(room)]

    def _check_starting(self) -> None:
        """Say, once, what is being waited for where no worker has come up at all."""
        starting = all(shard is None for _, shard in self._waiting.values())
        if starting and not self._warned and time.monotonic() - self._begun > _START_WARNING_S:
            self._warned = True
            needs = f"{self._cpus} CPUs and {self._gpus:g} GPUs"
            self._warn(f"no worker has started yet: each waits for a node with {needs} free")

    def _event(self, ref: Any, worker: int, shard: int | None) -> Event:
        try:
            receipt: Receipt | None = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if shard is not None:
                return Failed(worker, shard, _last_line(str(error.cause or error)))
            return self._bury(worker, error)
        except ray.exceptions.RayError as error:
            return self._bury(worker, error)
        if receipt is None:
            return Started(worker)
        return Counted(worker, receipt.shard, receipt.images, receipt.failed, receipt.passes, receipt.first)

    def _bury(self, worker: int, error: Exception) -> Died:
        """Make sure that a worker once reported dead stays so: one out of reach may come back, and its late answers."""
        self.end(worker)
        return Died(worker, _death(str(error)), node_lost=_node_lost(error))


def _node_lost(error: Exception) -> bool:
    """Whether a worker went with its node, or is out of reach, and did not die by itself."""
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return True
    return isinstance(error, ray.exceptions.RayActorError) and (error.preempted or "its node has died" in str(error))


@contextmanager
def hire_actors(
    make_job: Callable[[Device], CountJob], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    """Counting actors for the time of the block, on the cluster at $RAY_ADDRESS or one embedded in this process.

    Where the block is interrupted, commits that are under way land before the actors end.

    Args:
        make_job: what the actors are to do, on the device they get.
        task: what is done with each shard.
        resources: how many actors, and what each needs.
        warn: told, in a line, what there is to wait for.

    Raises:
        SpecError: the cluster has less than one actor needs.
        WorkersError: there is no cluster.
    """
    cpus = (1 if resources.actors == "auto" else resources.actors) * resources.threads_per_actor
    with cluster(cpus) as capacity:
        workers, gpus = workers_for(resources, capacity)
        if resources.gpus_per_actor == "auto" and not gpus and capacity.may_grow:
            warn("the cluster has no GPU now: counting on CPUs; set resources.gpus_per_actor=1 to wait for GPUs")
        job = make_job("cuda" if gpus > 0 else "cpu")
        room = workers if resources.actors == "auto" and capacity.may_grow else None
        pool = ActorPool(job, task, cpus=resources.threads_per_actor, gpus=gpus, room=room, warn=warn)
        try:
            yield Crew(pool, workers, Metrics(job.store.run).see)
        except KeyboardInterrupt:
            warn("stopping; commits under way land first, a second interrupt stops at once")
            pool.settle(_SETTLE_S)
            raise
        finally:
            pool.close()


def workers_for(resources: Resources, capacity: Capacity) -> tuple[int, float]:
    """Actors to keep alive, or to wait for, and GPUs for each.

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
    return max(1, capacity.room(resources.threads_per_actor, gpus)), gpus


def fit(
    job: TrainJob,
    *,
    name: str,
    storage: Path | str,
    gpu: bool,
    observe: Callable[[tuple[Epoch, ...]], None],
) -> bytes:
    """Train under Ray Train, going on after the newest checkpoint of the run of that name.

    Args:
        job: what to train.
        name: the run's name; the same name and storage continue the same run.
        storage: where checkpoints are kept: a folder, or s3://bucket/prefix.
        gpu: one GPU per worker.
        observe: told of all epochs so far as each ends.

    Returns:
        The content of the newest checkpoint's file.

    Raises:
        TrainingInterrupted: training failed, and has a newer checkpoint to go on from.
        TrainingError: training failed for good.
    """
    # Beside this process: other nodes come and go.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    epochs = ray.util.queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    heard = _Listener(epochs, observe)
    try:
        result = _trainer(job, epochs, name, storage, gpu).fit()
        failure = result.error
    except Exception as error:  # Ray Train wraps whatever a worker raised in types of its own
        failure = error
    finally:
        checkpoints = heard.stop()
    if failure is not None or result.checkpoint is None:
        kind = TrainingInterrupted if checkpoints else TrainingError
        raise kind(f"training failed: {_last_line(str(failure))}") from failure
    with result.checkpoint.filesystem.open_input_stream(f"{result.checkpoint.path}/{STATE}") as file:
        content: bytes = file.read()
    return content


def _trainer(job: TrainJob, epochs: ray.util.queue.Queue, name: str, storage: Path | str, gpu: bool) -> TorchTrainer:
    bounds = job.training.workers
    # The V2 classes are not the typed ones.
    scaling: Any = ray.train.ScalingConfig
    run: Any = ray.train.RunConfig
    return TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "epochs": epochs},
        scaling_config=scaling(
            num_workers=(bounds.min, bounds.max) if bounds.min < bounds.max else bounds.max,
            use_gpu=gpu,
            resources_per_worker={"CPU": job.cpus, **({"GPU": 1} if gpu else {})},
            elastic_resize_monitor_interval_s=max(_RESIZE_S, _RESIZE_CHECKPOINTS * job.training.checkpoint_s),
        ),
        run_config=run(
            name=name,
            storage_path=str(storage) if isinstance(storage, Path) else ".",
            storage_filesystem=None if isinstance(storage, Path) else object_filesystem(storage, job.storage),
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": _ALLOCATOR},
        ),
    )


class _Listener:
    """Passes epochs on as they end, and counts checkpoints, of which some are within an epoch."""

    def __init__(self, epochs: ray.util.queue.Queue, observe: Callable[[tuple[Epoch, ...]], None]) -> None:
        self._epochs, self._observe = epochs, observe
        self._checkpoints = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Pass on what is left. Returns how many checkpoints there were."""
        self._stop.set()
        self._thread.join()
        return self._checkpoints

    def _listen(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                heard = self._epochs.get_nowait_batch(self._epochs.qsize())
            except ray.exceptions.RayError:  # the queue is gone: the workers notice, and training fails
                return
            for epochs in heard:
                self._checkpoints += 1
                if epochs:
                    self._observe(epochs)
            if stopping:
                return
            self._stop.wait(0.5)


def _death(text: str) -> str:
    """Of what Ray tells of an actor's death, what it died of: without advice, and without the log of a lost node."""
    lines = text.splitlines()
    out_of_memory = re.search(r"node running low on memory\. .* was (\S+ used / \S+) limit", text)
    if out_of_memory:
        return (
            f"Ray killed it, since its machine ran low on memory ({out_of_memory[1]}): "
            "fewer resources.actors, or a smaller resources.batch_size, need less"
        )
    told = [line.strip() for line in lines if "node was terminated" in line or "process has died" in line]
    return _plain(told[0]) if told else _last_line(text)


def _last_line(text: str) -> str:
    """The cause, which Ray prints after its traceback, without advice; our own errors without their types' names."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^workers\.[\w.]+: ", "", _plain(lines[-1])) if lines else "no reason given"


def _plain(line: str) -> str:
    return line.partition(" Some common causes")[0]


@dataclass(frozen=True)
class Answer:
    """What a node said to a question.

    Attributes:
        node: its host and address.
        value: the answer.
        failure: why there is none, in a line; empty where there is one.
    """

    node: str
    value: Any
    failure: str = ""


def ask_nodes(question: Callable[[], Any], module: ModuleType, timeout_s: float = 60.0) -> list[Answer]:
    """The answer of each of the cluster's nodes, inside a block of ``cluster``.

    Args:
        question: asked on every node, in a process of its own.
        module: sent along whole, since a node may lack it or have another.
        timeout_s: after which a node has no answer.
    """
    ask: Any = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(lambda: question())
    asked: dict[Any, str] = {}
    ray.cloudpickle.register_pickle_by_value(module)
    try:
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                asked[ask.options(scheduling_strategy=there).remote()] = name
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    return [_answer(name, ref if ref in done else None, timeout_s) for ref, name in asked.items()]


def _answer(node: str, ref: Any, timeout_s: float) -> Answer:
    if ref is None:
        return Answer(node, None, f"nothing heard within {timeout_s:g} s")
    try:
        return Answer(node, ray.get(ref))
    except ray.exceptions.RayError as error:
        return Answer(node, None, _last_line(str(error)))
