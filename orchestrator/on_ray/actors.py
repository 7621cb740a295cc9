"""Counting and attacking actors: ``dispatch``'s pool of workers on Ray."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from orchestrator.counting.crew import Crew, Device, Job, Task
from orchestrator.counting.dispatch import Counted, Died, Event, Failed, Room, Started
from orchestrator.errors import SpecError, WorkersError
from orchestrator.on_ray.cluster import ALLOCATOR, Capacity, cluster, last_line, plain, sizes_of
from orchestrator.on_ray.metrics import Metrics
from orchestrator.spec import Resources
from workers.attacking import AttackJob
from workers.ray_attacking import AttackingActor
from workers.ray_entry import CountingActor, Receipt

#: Seconds after which to look again whether Ray itself lives, and how large the cluster is.
_NODE_CHECK_S = 5.0

#: Seconds without a single worker after which to say what they wait for.
_START_WARNING_S = 30.0

#: Seconds that commits under way have to land after an interrupt: less than what follows a SIGTERM in most places.
_SETTLE_S = 20.0


class ActorPool:
    """``dispatch.Pool`` of counting or attacking actors.

    Args:
        job: what they are to do.
        task: what is done with each shard.
        cpus, gpus: for each actor.
        room: actors that the cluster has room for, to tell when there is room for more; None: nobody wants to know.
        warn: told, in a line, what there is to wait for.
    """

    def __init__(
        self,
        job: Job,
        task: Task,
        *,
        cpus: int,
        gpus: float,
        room: int | None,
        warn: Callable[[str], None],
    ) -> None:
        self._job = job
        self._task = task
        self._cpus, self._gpus, self._room = cpus, gpus, room
        self._warn = warn
        # A thread of its own for `stop`, which is not to wait for the shard at work. Two for shards: of the next
        # one the images are read while the first is counted.
        remote: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]  # known to Ray
        actor = AttackingActor if isinstance(job, AttackJob) else CountingActor
        self._actor_class: Any = remote(actor).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=2, runtime_env={"env_vars": ALLOCATOR}
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
        room = Capacity(sizes_of(nodes)).room(self._cpus, self._gpus)
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
                return Failed(worker, shard, last_line(str(error.cause or error)))
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
    make_job: Callable[[Device], Job], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    """Actors that count or attack, on the cluster at $RAY_ADDRESS or one embedded in this process, for the time of the
    block.

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
        run = (job.count if isinstance(job, AttackJob) else job).store.run
        room = workers if resources.actors == "auto" and capacity.may_grow else None
        pool = ActorPool(job, task, cpus=resources.threads_per_actor, gpus=gpus, room=room, warn=warn)
        try:
            yield Crew(pool, workers, Metrics(run).see)
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
    return plain(told[0]) if told else last_line(text)
