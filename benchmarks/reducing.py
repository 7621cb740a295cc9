"""Certificates per second against a per-row scipy loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import stats

from benchmarks.measure import Row, compare
from stn_core import certify

ROWS = 1_000_000
LOOP_ROWS = 2_000


def scipy_loop(counts: np.ndarray, alpha: float) -> list[float]:
    """Top count, Clopper-Pearson by scipy.stats.beta, one-class radius: row by row, as scripts do."""
    radii = []
    for row in counts:
        top, n = row.max(), row.sum()
        lower = stats.beta.ppf(alpha / len(row), top, n - top + 1) if top else 0.0
        radii.append(float(stats.norm.ppf(lower)) if lower > 0.5 else 0.0)
    return radii


def rows() -> Iterator[Row]:
    """One row per certificate, over a million count vectors of ten classes at n = 100."""
    rng = np.random.default_rng(0)
    counts = np.stack([rng.multinomial(100, rng.dirichlet(np.full(10, 0.2))) for _ in range(1000)])
    counts = counts[rng.integers(0, 1000, ROWS)].astype(np.int64)
    few = counts[:LOOP_ROWS]
    for name in ("neyman_pearson_one_class", "neyman_pearson_two_class", "renyi"):

        def ours(name: str = name) -> None:
            certify(counts, certificate=name, protocol="paper", sigma=0.7, alpha=0.05)

        what = f"reduce: {name}, {ROWS} rows"
        row = compare(what, ours, "per-row scipy loop", lambda: scipy_loop(few, 0.05), rounds=3)
        scale = ROWS / LOOP_ROWS
        yield Row(row.name, row.against, row.ratio * scale, row.lowest * scale, row.highest * scale, row.detail)
