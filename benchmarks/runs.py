"""`stn reduce` of large runs: seconds and memory of the whole command, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measure import Row
from orchestrator.planning.plans import Plan
from orchestrator.spec import validate
from workers import counts_table, layout
from workers.store import LocalStore, Store

#: The command, and its process's own peak at the end: what the kernel tells a parent includes the parent's.
_REDUCE = """
import atexit, pathlib, sys
atexit.register(lambda: sys.stderr.write(pathlib.Path("/proc/self/status").read_text()))
from orchestrator.cli import main
main()
"""


def rows() -> Iterator[Row]:
    """ImageNet's shape under four certificates, and ten million rows under one."""
    yield measured("50 000 images x 1 000 classes, 4 certificates", images=50_000, classes=1000, draws=1000, shard=64)
    yield measured(
        "10 000 000 rows", "neyman_pearson_one_class", images=10_000_000, classes=10, draws=100, shard=10_000
    )


def measured(name: str, *certificates: str, images: int, classes: int, draws: int, shard: int) -> Row:
    """Rows per second and peak memory of reducing a run that is made for the purpose."""
    with tempfile.TemporaryDirectory(prefix="stn-bench-") as folder:
        store = LocalStore(Path(folder))
        make_run(store, images, classes, draws, shard)
        options = [part for name in certificates for part in ("--certificate", name)]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _REDUCE, "reduce", folder, *options],
            capture_output=True,
            text=True,
            check=True,
            # As a user runs it: without the allocator's settings that counting has.
            env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        )
        seconds = time.perf_counter() - start
        peak = int(done.stderr.rsplit("VmHWM:", 1)[1].split()[0]) / 2**20
        table_mib = next(part.size for part in store.list(layout.CERTIFICATES)) / 2**20
    total = images * (len(certificates) or 4)
    detail = f"{seconds:.1f} s, peak {peak:.2f} GiB, table of {table_mib:.0f} MiB"
    rate = total / seconds / 1e6
    return Row(f"stn reduce: {name}", "a million rows a second", rate, rate, rate, detail)


def make_run(store: Store, images: int, classes: int, draws: int, shard_size: int) -> None:
    """A run whose votes are drawn from a thousand made-up images."""
    spec = validate(
        {
            "dataset": {"kind": "digits"},
            "model": {"name": "mnist"},
            "noise": {"sigma": 0.5},
            "sampling": {"draws": draws},
            "radii": {"stop": 2, "step": 0.05},
            "store": {"run": store.uri},
        },
        "benchmark",
    )
    plan = Plan(spec, images, classes, (1, 28, 28), shard_size, "0" * 64, "0" * 64, "0" * 64, {})
    store.create(layout.PLAN, plan.to_json())
    votes = population(classes, draws)
    for shard in range(plan.shards):
        indices = np.arange(shard * shard_size, min((shard + 1) * shard_size, images))
        table = votes_table(indices, indices % classes, votes, draws)
        store.create(layout.counts(shard), counts_table.encode(table, plan.provenance()))


def population(classes: int, draws: int) -> np.ndarray:
    """Votes of a thousand made-up images, (1000, classes). Most classes of an image get no vote at all."""
    rng = np.random.default_rng(0)
    votes = np.zeros((1000, classes), dtype=np.int64)
    for row in votes:
        some = rng.choice(classes, min(classes, 20), replace=False)
        row[some] = rng.multinomial(draws, rng.dirichlet(np.full(len(some), 0.2)))
    return votes


def votes_table(indices: np.ndarray, labels: np.ndarray, votes: np.ndarray, draws: int) -> pa.Table:
    """A count table of these images, each with the votes of one of the made-up ones."""
    own = votes[indices * 7919 % len(votes)]
    none, nothing = np.zeros(len(indices), dtype=np.int64), np.zeros_like(own)
    return pa.table(
        {
            "index": indices,
            "key": indices,
            "label": labels,
            "selection": counts_table.sparse(nothing),
            "estimation": counts_table.sparse(own),
            "selection_draws": none,
            "draws": np.full(len(indices), draws),
            **dict.fromkeys(("selection_invalid", "invalid", "selection_ties", "ties"), none),
            "error": pa.nulls(len(indices), pa.string()),
        },
        schema=counts_table.SCHEMA,
    )
