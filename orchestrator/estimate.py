"""What a plan will cost, from a short measured probe."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.on_ray.actors import workers_for
from orchestrator.on_ray.cluster import Capacity
from orchestrator.resolve import Resolved
from stn_core.votes import count_votes, default_batch_size
from workers import counts_table
from workers.counting import count_images, prepared, read_images

#: Images, and draws of each, that the size of the votes is extrapolated from.
_BYTES_IMAGES, _BYTES_DRAWS = 8, 16

#: Seconds of counting that the probe measures, after one warm-up batch.
_PROBE_S = 2.0


@dataclass(frozen=True)
class Estimate:
    """Cost of a run on this machine.

    Attributes:
        actors: workers at a time.
        passes_per_s: of one worker, measured.
        seconds: counting time of the whole run, workers' start not included.
        bytes: size of the votes in the store, extrapolated from the probe's.
    """

    actors: int
    passes_per_s: float
    seconds: float
    bytes: int


def estimate(resolved: Resolved) -> Estimate:
    """Count a few draws of one image for about two seconds, and extrapolate. Writes nothing."""
    plan = resolved.plan
    resources = plan.spec.resources
    capacity = Capacity(((os.cpu_count() or 1, torch.cuda.device_count()),))
    actors, gpus = workers_for(resources, capacity)
    device = torch.device("cuda" if gpus > 0 else "cpu")
    batch = resources.batch_size
    rows = default_batch_size(int(np.prod(plan.image_shape)), device) if batch == "auto" else batch
    threads = torch.get_num_threads()
    torch.set_num_threads(resources.threads_per_actor)
    try:
        model = prepared(resolved.model, plan.spec.model, compile=resources.compile, device=device)
        images = resolved.images.read(resolved.sample)[None]

        def probe(first_draw: int) -> None:
            count_votes(
                model,
                images,
                noise=plan.spec.noise.build(),
                draws=rows,
                num_classes=plan.num_classes,
                seed=plan.spec.sampling.seed,
                keys=[0],
                first_draw=first_draw,
                batch_size=rows,
                device=device,
                precision=resources.precision,
            )

        probe(0)
        start, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < _PROBE_S:
            probe(done)
            done += rows
        passes_per_s = done / elapsed
    finally:
        torch.set_num_threads(threads)
    actors = min(actors, plan.shards)
    return Estimate(actors, passes_per_s, plan.passes / passes_per_s / actors, _bytes(resolved))


def _bytes(resolved: Resolved) -> int:
    """Size of all count files: what a file costs without rows, and what a row of a small sample costs."""
    plan = resolved.plan
    job = plan.job("", device="cpu")
    sampling = plan.spec.sampling
    few = {"draws": min(sampling.draws, _BYTES_DRAWS), "selection_draws": min(sampling.selection_draws, _BYTES_DRAWS)}
    sample = dataclasses.replace(job, sampling=sampling.model_copy(update=few), shard_size=_BYTES_IMAGES)
    device = resolved.model.mean.device
    table = count_images(sample, read_images(sample, sample.shard_indices(0), resolved.images), resolved.model, device)
    empty = len(counts_table.encode(table.slice(0, 0), job.provenance))
    row = (len(counts_table.encode(table, job.provenance)) - empty) / max(1, table.num_rows)
    return round(plan.shards * empty + plan.images * row)
