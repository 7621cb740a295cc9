from __future__ import annotations

import dataclasses
import heapq
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import WorkersError
from orchestrator.planning.estimate import Cost, extrapolated, run_probes
from orchestrator.planning.plans import Plan
from orchestrator.spec import validate
from tests.orchestrator.runs import MadeRun
from workers.probe import Probe

COST = Cost(start_s=5, batch_s=0.25, image_s=0.125, shard_s=0.5, empty_bytes=1000, row_bytes=10)


def plan(images: int, shard_size: int, draws: int, selection_draws: int) -> Plan:
    spec = validate(
        {
            "dataset": {"kind": "digits"},
            "model": {"name": "mnist"},
            "noise": {"sigma": 0.5},
            "sampling": {"draws": draws, "selection_draws": selection_draws},
            "radii": [0.0],
            "store": {"run": "run"},
        },
        "test",
    )
    return Plan(spec, images, 10, (1, 28, 28), shard_size, "0" * 64, "0" * 64, "0" * 64, {})


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(0, 40), st.integers(1, 5), st.booleans())
def test_workers_that_take_the_next_shard_when_they_have_done_one_finish_then(
    images: int, shard_size: int, draws: int, selection_draws: int, actors: int, beside: bool
) -> None:
    """Against a simulation, shard by shard; its numbers are exact in binary."""
    planned = plan(images, shard_size, draws, selection_draws)
    found = extrapolated(planned, 16, actors, COST, beside=beside)
    free = [0.0] * actors
    for shard in range(planned.shards):
        rows = planned.shard_images(shard)
        votes = 0.25 * (-(-rows * draws // 16) + -(-rows * selection_draws // 16))
        reading = 0.125 * rows
        took = 0.5 + (max(votes, reading) if beside else votes + reading)
        heapq.heappush(free, heapq.heappop(free) + took)
    assert found.count_s == max(free)
    assert found.seconds == 5 + max(free) + 0.5 * planned.shards
    assert found.passes_per_s == 64
    assert found.bytes == 1000 * planned.shards + 10 * images


def probe(made: MadeRun, **changes: object) -> Probe:
    job = dataclasses.replace(made.plan.job("nowhere", device="cpu"), **changes)
    return Probe(job, np.zeros(made.plan.image_shape, np.uint8), draws=16, rows=16, seconds=0.01)


def test_several_processes_measure_at_once(made: MadeRun) -> None:
    start_s, batch_s = run_probes(probe(made), 2)
    assert start_s > batch_s > 0


def test_a_probe_that_cannot_count_says_why_in_a_line(made: MadeRun, tmp_path: Path) -> None:
    model = made.plan.spec.model.model_copy(update={"checkpoint": tmp_path / "gone.pt"})
    with pytest.raises(WorkersError, match=r"no checkpoint at .*gone\.pt") as refused:
        run_probes(probe(made, model=model), 1)
    assert len(str(refused.value).splitlines()) == 1
    assert os.listdir(tmp_path) == []
