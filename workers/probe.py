"""How fast a worker would count on this machine: a process set up as a worker is, which counts a little and forgets it.

Several begin to count at once, on a word: workers share caches and memory's bandwidth.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from workers.counting import CountJob, Shard, count_images, load_model, prepared
from workers.images import Pixels
from workers.imports import importable
from workers.rounds import Ask

#: What it prints when it is about to count, after which it waits for a line on its standard input.
READY = "ready"


@dataclass(frozen=True)
class Probe:
    """What is to be measured.

    Attributes:
        job: of which a little is counted.
        pixels: an image, uint8 (channels, height, width).
        draws: of each image, a batch at most.
        rows: of a forward pass.
        seconds: to count for, at least.
    """

    job: CountJob
    pixels: Pixels
    draws: int
    rows: int
    seconds: float


def measured(probe: Probe) -> float:
    """Seconds that a forward pass's batch takes, noise and votes included. Waits for the word."""
    job = probe.job
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    network = load_model(job.model, job.num_classes, job.store.options)
    model = prepared(network, job.model, compile=job.compile, device=device)
    # As many copies of the image as fill a batch, with as many draws each as they will have.
    images = -(-probe.rows // probe.draws)
    batches = -(-images * probe.draws // probe.rows)
    little = dataclasses.replace(job, batch_size=probe.rows)
    numbers = np.arange(images)
    shard = Shard(range(images), numbers, np.zeros(images, np.int64), [None] * images, [probe.pixels] * images)
    ask = Ask(numbers, np.zeros_like(numbers), np.full_like(numbers, probe.draws), 0)
    count_images(little, shard, ask, model, device)
    print(READY, flush=True)
    sys.stdin.readline()
    begun, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < probe.seconds or not done:
        count_images(little, shard, ask, model, device)
        done += batches
    return seconds / done


def main() -> None:
    """A probe from standard input; two lines to standard output, whatever a user's network prints."""
    probe: Probe = pickle.load(sys.stdin.buffer)
    told = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(told, "w") as sys.stdout:
        importable(probe.job.import_paths)
        print(measured(probe), flush=True)
