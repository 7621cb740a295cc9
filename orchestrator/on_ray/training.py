"""Training runs, by Ray Train."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.util.queue
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import TrainingError, TrainingInterrupted
from orchestrator.on_ray.cluster import ALLOCATOR, last_line
from workers.filesystem import object_filesystem
from workers.ray_training import train_loop
from workers.training import STATE, Epoch, TrainJob

#: Failures in training, since it began or there was a checkpoint, after which it has failed for good.
_MAX_FAILURES = 3

#: Training workers that become more begin anew at their last checkpoint. So there is a look for more room only after so
#: many checkpoints: growing costs the half one.
_RESIZE_CHECKPOINTS = 3.5
_RESIZE_S = 10.0


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
        raise kind(f"training failed: {last_line(str(failure))}") from failure
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
            worker_runtime_env={"env_vars": ALLOCATOR},
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
