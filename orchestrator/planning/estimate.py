"""What a plan will cost, from a short measured probe."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch

from orchestrator.errors import WorkersError
from orchestrator.on_ray.actors import workers_for
from orchestrator.on_ray.cluster import ALLOCATOR, Capacity
from orchestrator.planning.plans import Plan
from orchestrator.planning.resolve import Resolved, resolve
from orchestrator.spec import Spec
from stn_core.votes import default_batch_size
from workers import counts_table
from workers.counting import count_images, read_images
from workers.probe import Probe
from workers.rounds import first_round

#: Images, and draws of each, that what a shard costs beside its votes is extrapolated from.
_SAMPLE_IMAGES, _SAMPLE_DRAWS = 8, 16

#: Seconds that the probes count, after a batch to warm up.
_PROBE_S = 3.0

#: Seconds of a run around its workers' work and start, as two cores took: the command's own start, Ray's start and end.
_AROUND_S = 8.0

#: How a probe is started: from this process's folders, and not from the one that happens to be the current.
_PROBE = (sys.executable, "-P", "-c", "from workers.probe import main; main()")


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Attributes:
        start_s: of the command and its workers, s.
        batch_s: seconds that a worker's forward pass takes, noise and votes included, while the others are at work.
        image_s: seconds of a worker's processor to read an image.
        shard_s: seconds to encode a shard's votes; to decode them again takes the reduce about as long.
        empty_bytes, row_bytes: size of a shard's object without rows, and what an image adds.
    """

    start_s: float
    batch_s: float
    image_s: float
    shard_s: float
    empty_bytes: float
    row_bytes: float


@dataclass(frozen=True)
class Estimate:
    """Cost of a run on this machine.

    Attributes:
        actors: workers at a time.
        passes_per_s: of one worker, while all are at work.
        start_s: start of the command, of Ray and of its workers, and their end.
        count_s: counting time of the whole run.
        reduce_s: until its certificates are published.
        bytes: size of the votes in the store.
    """

    actors: int
    passes_per_s: float
    start_s: float
    count_s: float
    reduce_s: float
    bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole command."""
        return self.start_s + self.count_s + self.reduce_s


@dataclass(frozen=True)
class Forecast:
    """What certifying a spec would do, and what it would take here.

    Attributes:
        run: where the run would be kept.
        images, shards, shard_size: of the run; images, shards, and images in a shard.
        selection_draws, draws: of each image; under adaptive sampling, at most.
        forward_passes: of the whole run, one for each noisy image.
        actors: workers at a time.
        forward_passes_per_s_per_actor: as measured, while all are at work.
        estimated_seconds: of the whole command: the sum of the next three.
        estimated_start_seconds, estimated_counting_seconds, estimated_reduce_seconds: of its parts.
        estimated_bytes: size of the votes in the store.
        model_sha256, dataset_sha256: digests of what would be counted.
    """

    run: str
    images: int
    shards: int
    shard_size: int
    selection_draws: int
    draws: int
    forward_passes: int
    actors: int
    forward_passes_per_s_per_actor: float
    estimated_seconds: float
    estimated_start_seconds: float
    estimated_counting_seconds: float
    estimated_reduce_seconds: float
    estimated_bytes: int
    model_sha256: str
    dataset_sha256: str


def forecast(spec: Spec) -> Forecast:
    """Resolve a spec and ``estimate`` it. Raises as ``resolve`` and ``estimate`` do."""
    resolved = resolve(spec)
    cost, planned = estimate(resolved), resolved.plan
    return Forecast(
        run=spec.store.run,
        images=planned.images,
        shards=planned.shards,
        shard_size=planned.shard_size,
        selection_draws=spec.sampling.selection_draws,
        draws=spec.sampling.draws,
        forward_passes=planned.passes,
        actors=cost.actors,
        forward_passes_per_s_per_actor=float(f"{cost.passes_per_s:.4g}"),
        estimated_seconds=round(cost.seconds, 1),
        estimated_start_seconds=round(cost.start_s, 1),
        estimated_counting_seconds=round(cost.count_s, 1),
        estimated_reduce_seconds=round(cost.reduce_s, 1),
        estimated_bytes=cost.bytes,
        model_sha256=planned.model_sha256,
        dataset_sha256=planned.dataset_sha256,
    )


def estimate(resolved: Resolved) -> Estimate:
    """Let as many processes as there would be workers here count for some seconds, and extrapolate. Writes nothing.

    Raises:
        SpecError: more asked for one worker than this machine has.
        WorkersError: workers do not start.
    """
    plan, resources = resolved.plan, resolved.plan.spec.resources
    capacity = Capacity(((os.cpu_count() or 1, torch.cuda.device_count()),))
    actors, gpus = workers_for(resources, capacity)
    actors = min(actors, plan.shards)
    here = min(actors, max(1, capacity.room(resources.threads_per_actor, gpus)))
    # A cluster has a place for each; one embedded in the command has this machine alone.
    at_a_time = actors if os.environ.get("RAY_ADDRESS") else here
    device = torch.device("cuda" if gpus > 0 else "cpu")
    rows = resources.batch_size
    if rows == "auto":
        rows = default_batch_size(int(np.prod(plan.image_shape)), device)
    cost = _measured(resolved, rows, here, device)
    return extrapolated(plan, rows, at_a_time, cost, beside=device.type == "cuda")


def extrapolated(plan: Plan, rows: int, actors: int, cost: Cost, *, beside: bool) -> Estimate:
    """The whole run's cost.

    Args:
        plan: of the run.
        rows: of a forward pass.
        actors: workers at a time.
        cost: of its parts.
        beside: images are read while others are counted, as a GPU does it, and take no time away from it.
    """
    sampling = plan.asked.sampling

    def shard_s(images: int) -> float:
        votes = sum(-(-images * draws // rows) for draws in (sampling.selection_draws, sampling.draws)) * cost.batch_s
        reading = images * cost.image_s
        return (max(votes, reading) if beside else votes + reading) + cost.shard_s

    # Each takes the next shard when it has done one; all shards but the last are alike.
    last = plan.shards - 1
    before, whole = last // actors, shard_s(plan.shard_images(0))
    count_s = max(before * whole + shard_s(plan.shard_images(last)), -(-last // actors) * whole)
    size = round(plan.shards * cost.empty_bytes + plan.images * cost.row_bytes)
    return Estimate(actors, rows / cost.batch_s, cost.start_s, count_s, plan.shards * cost.shard_s, size)


def _measured(resolved: Resolved, rows: int, processes: int, device: torch.device) -> Cost:
    """What there is to know of the parts."""
    plan = resolved.plan
    job = plan.job(plan.spec.store.run, device="cuda" if device.type == "cuda" else "cpu")
    pixels = np.asarray(resolved.images.read(resolved.sample))
    probe = Probe(job, pixels, min(plan.asked.sampling.draws, rows), rows, _PROBE_S)
    # Before the probes, which take all processors.
    indices = plan.indices[:_SAMPLE_IMAGES]
    begun = first_round(indices, plan.rule, min(job.selection_draws, _SAMPLE_DRAWS))
    few = dataclasses.replace(begun, draws=np.minimum(begun.draws, _SAMPLE_DRAWS))
    # Reading is done by several threads: what counts is the time that they take from those who count.
    before = time.process_time()
    shard = read_images(job, indices, resolved.images)
    image_s = (time.process_time() - before) / len(indices)
    table = count_images(job, shard, few, resolved.model, resolved.model.mean.device)
    empty = len(counts_table.encode(table.slice(0, 0), job.provenance))
    start = time.perf_counter()
    encoded = len(counts_table.encode(table, job.provenance))
    shard_s = time.perf_counter() - start
    start_s, batch_s = run_probes(probe, processes)
    return Cost(start_s + _AROUND_S, batch_s, image_s, shard_s, empty, (encoded - empty) / table.num_rows)


def run_probes(probe: Probe, processes: int) -> tuple[float, float]:
    """Several processes count at once, set up as workers are.

    Returns:
        Seconds until all had counted a batch, and mean seconds of a batch from there on.

    Raises:
        WorkersError: a process did not get as far.
    """
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(_started(probe)) for _ in range(processes)]
        for process, errors in started:
            _line(process, errors)
        start_s = time.perf_counter() - begun
        for process, _ in started:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        return start_s, float(np.mean([float(_line(process, errors)) for process, errors in started]))


@contextlib.contextmanager
def _started(probe: Probe) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process that measures, and what it says of its troubles. It ends with the block."""
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _PROBE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # why it has ended, `_line` will say
                pickle.dump(probe, process.stdin)
                process.stdin.flush()
            yield process, errors
        finally:
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """The next line that a probe says. Raises WorkersError where it has ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        process.wait()
        errors.seek(0)
        told = errors.read().decode(errors="replace").strip().splitlines()
        why = told[-1] if told else f"exit code {process.returncode}"
        raise WorkersError(f"a process that was to count for the estimate has ended: {why}")
    return line
