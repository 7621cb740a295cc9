"""The cluster: the one given, or one embedded in this process; what it has, and what its nodes say."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import ray
import ray.cloudpickle
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.address import silent
from orchestrator.errors import WorkersError

#: An allocator that keeps its memory: activations are not mapped afresh for every batch.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**29)}

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
    """A Ray cluster for the time of the block: the one that this process is connected to, such as a notebook's, which
    stays connected; else the one at $RAY_ADDRESS; else one embedded in this process.

    An embedded one offers at least ``cpus`` CPUs to schedule on, however many the machine has.

    Raises:
        WorkersError: no cluster at that address, or none can be started.
    """
    if ray.is_initialized():
        # Somebody else's to end, and whether it can grow nobody can say.
        yield Capacity(sizes_of(ray.nodes()), may_grow=True)
        return
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
        raise WorkersError(f"no Ray cluster {place}: {last_line(str(error))}") from error
    try:
        if threading.current_thread() is threading.main_thread():
            # Ray takes SIGTERM for itself, and would end this process without a word on how to go on.
            signal.signal(signal.SIGTERM, on_sigterm)
        yield Capacity(sizes_of(ray.nodes()), may_grow=address is not None)
    finally:
        ray.shutdown()


def sizes_of(nodes: list[dict[str, Any]]) -> tuple[tuple[int, int], ...]:
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


def last_line(text: str) -> str:
    """The cause, which Ray prints after its traceback, without advice; our own errors without their types' names."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^workers\.[\w.]+: ", "", plain(lines[-1])) if lines else "no reason given"


def plain(line: str) -> str:
    """A line of Ray's without its advice."""
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
        return Answer(node, None, last_line(str(error)))
