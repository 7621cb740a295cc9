from __future__ import annotations

import pytest

from orchestrator.errors import SpecError
from orchestrator.on_ray.actors import _death, workers_for
from orchestrator.on_ray.cluster import Capacity, last_line
from orchestrator.spec import Resources

# As Ray 2.60 says it, shortened.
NODE_LOST = """The actor died unexpectedly before finishing this task.
\tclass_name: CountingActor
\tpid: 7960
The actor died because its node has died. Node Id: c876026170078c10
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats

    [2026-11-23 08:26:57,259 I 7803 7812] (raylet) object_store.cc:37: Object store current usage 8e-09 / 0.104858 GB.
"""

PROCESS_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: CountingActor
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called.
"""

OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 192.0.2.2, ID: 1178e1) was 22.93GB used / 23.54GB limit (0.974089)
OOM kill reason: Memory usage 998662144B exceeded threshold of 25276520B (0.1% of 25276518400B limit)
Refer to the documentation on how to address the out of memory issue: To disable worker killing, set the environment \
variable `RAY_memory_monitor_refresh_ms` to zero.
"""

RAISED = """The actor died because of an error raised in its creation task, ray::CountingActor.__init__()
  File "ray_entry.py", line 60, in __init__
workers.ray_entry.WrongInputs: the data set that this worker sees is not the one planned
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            NODE_LOST,
            "the actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats",
        ),
        (
            PROCESS_DIED,
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "Worker unexpectedly exits with a connection error code 2. End of file.",
        ),
        (
            OUT_OF_MEMORY,
            "Ray killed it, since its machine ran low on memory (22.93GB used / 23.54GB): "
            "fewer resources.actors, or a smaller resources.batch_size, need less",
        ),
        (RAISED, "the data set that this worker sees is not the one planned"),
        ("", "no reason given"),
    ],
)
def test_a_death_is_told_in_one_line_that_says_why(text: str, expected: str) -> None:
    assert _death(text) == expected


@pytest.mark.parametrize(
    ("resources", "capacity", "expected"),
    [
        ({}, Capacity(((8, 0),)), (8, 0.0)),
        ({"threads_per_actor": 3}, Capacity(((8, 0),)), (2, 0.0)),
        ({"threads_per_actor": 16}, Capacity(((8, 0),)), (1, 0.0)),
        ({}, Capacity(((8, 2),)), (2, 1.0)),
        ({"gpus_per_actor": 0.5}, Capacity(((8, 2),)), (4, 0.5)),
        ({"gpus_per_actor": 0}, Capacity(((8, 2),)), (8, 0)),
        ({"actors": 5}, Capacity(((8, 2),)), (5, 1.0)),
        ({"gpus_per_actor": 4}, Capacity(((8, 0),), may_grow=True), (1, 4)),
        # An autoscaled cluster before its first worker: the spec's maximum is asked for, or one to begin with.
        ({}, Capacity(((0, 0),), may_grow=True), (1, 0.0)),
        ({"actors": 16, "gpus_per_actor": 1}, Capacity(((4, 0),), may_grow=True), (16, 1.0)),
        # Each actor is on one node.
        ({"threads_per_actor": 3}, Capacity(((4, 0), (4, 0), (8, 0))), (4, 0.0)),
        ({"threads_per_actor": 2}, Capacity(((32, 0), (8, 8), (16, 2))), (6, 1.0)),
        ({"gpus_per_actor": 0.3}, Capacity(((8, 1), (8, 1))), (6, 0.3)),
    ],
)
def test_how_many_actors(resources: dict[str, object], capacity: Capacity, expected: tuple[int, float]) -> None:
    assert workers_for(Resources.model_validate(resources), capacity) == expected


def test_more_gpus_than_there_can_be() -> None:
    with pytest.raises(SpecError, match=r"resources\.gpus_per_actor asks for 2 GPUs and this machine has 1"):
        workers_for(Resources(gpus_per_actor=2), Capacity(((8, 1),)))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "Traceback\n  x\nworkers.images.DatasetError: training.dataset: image 9: b\n\n",
            "training.dataset: image 9: b",
        ),
        ("Traceback\n  x\nValueError: workers.y: z", "ValueError: workers.y: z"),
        (
            "RayActorError: x\nIts worker process has died. Some common causes include: y.",
            "Its worker process has died.",
        ),
        ("\n", "no reason given"),
    ],
)
def test_the_cause_of_a_failed_training_is_told_as_it_is_told_elsewhere(text: str, cause: str) -> None:
    assert last_line(text) == cause
