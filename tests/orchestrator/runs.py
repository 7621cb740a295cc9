"""Runs made without Ray: planned, counted and committed by the functions that workers call."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from orchestrator.planning.plans import Plan
from orchestrator.planning.resolve import resolve
from orchestrator.spec import validate
from workers import counts_table, layout
from workers.counting import count_images, read_images
from workers.rounds import first_round
from workers.store import LocalStore


def digits_spec(**sections: Any) -> dict[str, Any]:
    """A spec of 20 digits, as plain data; each argument replaces a section."""
    return {
        "dataset": {"kind": "digits", "limit": 20},
        "model": {"name": "tests.networks:tiny"},
        "noise": {"sigma": 0.2},
        "sampling": {"draws": 64, "selection_draws": 16, "seed": 1},
        "confidence": {"protocol": "paper", "alpha": 0.05},
        "radii": [0.0, 0.05, 0.1, 0.2, 0.4],
        "store": {"run": "runs/unused"},
        "resources": {"shard_size": 8},
        **sections,
    }


def mnist_spec(root: Path, **sections: Any) -> dict[str, Any]:
    """A spec of the first 20 images in MNIST's raw files."""
    return digits_spec(**{"dataset": {"kind": "mnist", "path": str(root), "limit": 20}, **sections})


def parquet_spec(path: Path, **sections: Any) -> dict[str, Any]:
    """A spec of the RGB images in a Parquet file of labels up to 9."""
    return digits_spec(
        **{
            "dataset": {"kind": "parquet", "path": str(path)},
            "model": {"name": "tests.networks:tiny_rgb"},
            "resources": {"shard_size": 3},
            **sections,
        }
    )


#: A spec's sections for each kind of noise; certificates are left to follow from it.
NOISES: dict[str, dict[str, Any]] = {
    "plain": {"noise": {"sigma": 0.2}},
    "sound": {"noise": {"kind": "gaussian", "sigma": 0.2, "sampler": "sound"}},
    "laplace": {"noise": {"kind": "laplace", "scale": 0.15}},
    "uniform": {"noise": {"kind": "uniform", "scale": 0.4}},
    "splitting": {
        "noise": {"kind": "splitting", "scale": 0.4},
        "sampling": {"draws": 204, "seed": 1},
        "confidence": {"protocol": "exact"},
    },
}


@dataclass(frozen=True)
class MadeRun:
    """A counted run, not yet in any store.

    Attributes:
        plan: its plan.
        tables: the rows of each shard.
    """

    plan: Plan
    tables: list[pa.Table]

    def write(self, root: Path, shards: Iterable[int] | None = None) -> LocalStore:
        """The run in a folder, with these shards committed; None means all."""
        store = LocalStore(root)
        store.create(layout.PLAN, self.plan.to_json())
        for shard in range(len(self.tables)) if shards is None else shards:
            self.commit(store, shard)
        return store

    def commit(self, store: LocalStore, shard: int) -> None:
        assert store.create(layout.counts(shard), self.encoded(shard))

    def encoded(self, shard: int, table: pa.Table | None = None) -> bytes:
        """A shard's object, as a worker writes it; with other rows if ``table`` is given."""
        provenance = {**self.plan.job("", device="cpu").provenance, "shard": shard, "device": "cpu"}
        return counts_table.encode(self.tables[shard] if table is None else table, provenance)

    def encoded_as_version_1(self, shard: int) -> bytes:
        """A shard's object, as it was before ties were counted."""
        rows = self.tables[shard].drop_columns(["selection_ties", "ties"])
        metadata = {"schema_version": 1, "identity": self.plan.identity(), "shard": shard}
        sink = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata({b"stn": json.dumps(metadata).encode()}), sink)
        return sink.getvalue()

    @property
    def rows(self) -> pa.Table:
        """All rows, in plan order."""
        return pa.concat_tables(self.tables)


def count(spec: Mapping[str, Any]) -> MadeRun:
    """Plan a spec and count all of its shards."""
    resolved = resolve(validate(spec, "spec"))
    job = resolved.plan.job("unused", device="cpu")
    tables = []
    for shard in range(resolved.plan.shards):
        indices = job.shard_indices(shard)
        ask = first_round(indices, job.rule, job.selection_draws)
        images = read_images(job, indices, resolved.images)
        tables.append(count_images(job, images, ask, resolved.model, torch.device("cpu")))
    return MadeRun(resolved.plan, tables)


def invented(plan: Plan, *, seed: int = 0, failed: Iterable[int] = (), sure: float = 0.0) -> MadeRun:
    """A run that no network counted: votes of every kind, most for the label, some lost to NaN, some tied.

    Args:
        plan: what the run is to be.
        seed: of the votes.
        failed: data set indices of images that could not be counted.
        sure: fraction of images with all votes for the label.
    """
    random = np.random.default_rng(seed)
    sampling, classes, images = plan.spec.sampling, plan.num_classes, plan.images
    labels = random.integers(0, classes, images)
    certainty = np.where(random.random(images) < sure, 1.0, random.beta(3, 1, images))
    chances = (1 - certainty)[:, None] * random.dirichlet(np.full(classes, 0.3), images)
    chances[np.arange(images), labels] += certainty
    chances /= chances.sum(axis=1, keepdims=True)
    indices = np.array(plan.indices, dtype=np.int64)
    counted = ~np.isin(indices, list(failed))
    columns: dict[str, Any] = {"index": indices, "key": indices * 7 + 1, "label": labels}
    for phase, prefix, draws in (
        ("selection", "selection_", sampling.selection_draws),
        ("estimation", "", sampling.draws),
    ):
        lost = random.binomial(draws, 0.02, images) * counted
        votes = random.multinomial(draws - lost, chances) * counted[:, None]
        columns[phase] = counts_table.sparse(votes)
        columns[f"{prefix}draws"] = counted * np.int64(draws)
        columns[f"{prefix}invalid"] = lost
        columns[f"{prefix}ties"] = random.binomial(draws, 0.01, images) * counted
    columns["error"] = pa.array([None if good else "undecodable" for good in counted], pa.string())
    whole = pa.table(columns, schema=counts_table.SCHEMA)
    return MadeRun(plan, [whole.slice(shard * plan.shard_size, plan.shard_size) for shard in range(plan.shards)])


def sharded(plan: Plan, size: int) -> Plan:
    """The same plan in shards of another size."""
    return dataclasses.replace(plan, shard_size=size)


def plan_of(**sections: Any) -> Plan:
    """A plan of 120 of 500 digits, 10 classes, in shards of 50; each argument replaces a section of the spec."""
    spec = validate(digits_spec(**{"dataset": {"kind": "digits", "limit": 120}, **sections}), "spec")
    return Plan(
        spec=spec,
        dataset_size=500,
        num_classes=10,
        image_shape=(1, 28, 28),
        shard_size=50,
        model_sha256="m" * 64,
        dataset_sha256="d" * 64,
        code_sha256="c" * 64,
        versions={"python": "3.11", "torch": "2"},
    )
