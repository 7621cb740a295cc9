"""Runs made without Ray: planned, counted and committed by the functions that workers call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from orchestrator.plan import Plan
from orchestrator.resolve import resolve
from orchestrator.spec import validate
from workers import counts_table, layout
from workers.counting import count_shard
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
        provenance = {**self.plan.job(store.uri, device="cpu").provenance, "shard": shard, "device": "cpu"}
        assert store.create(layout.counts(shard), counts_table.encode(self.tables[shard], provenance))

    @property
    def rows(self) -> pa.Table:
        """All rows, in plan order."""
        return pa.concat_tables(self.tables)


def count(spec: Mapping[str, Any]) -> MadeRun:
    """Plan a spec and count all of its shards."""
    resolved = resolve(validate(spec, "spec"))
    job = resolved.plan.job("unused", device="cpu")
    tables = [
        count_shard(job, shard, resolved.images, resolved.model, torch.device("cpu"))
        for shard in range(resolved.plan.shards)
    ]
    return MadeRun(resolved.plan, tables)
