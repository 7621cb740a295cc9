"""Certificates per second against the loop over rows that scripts write."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from benchmarks.measure import Row, compare
from stn_core import CERTIFICATES, Gaussian, Laplace, Uniform, certify
from stn_core.noise import Noise

ROWS = 1_000_000
LOOP_ROWS = 500

NOISE: dict[str, Noise] = {"gaussian": Gaussian(0.7), "laplace": Laplace(0.7), "uniform": Uniform(0.7)}

#: One of each noise: what is around the certificate costs the same.
WHOLE = ("renyi", "renyi_laplace", "neyman_pearson_uniform_two_class")
#: Those whose formulas differ most.
ALONE = ("renyi", "pixeldp", "neyman_pearson_two_class", "neyman_pearson_one_class", "splitting")

#: The paper's supremum over alpha, as a script takes it: the best of a grid.
ALPHAS = 1 + np.logspace(-2, 2, 100)


def renyi_loop(counts: np.ndarray, error: float) -> list[float]:
    """Top two counts, Clopper-Pearson by scipy.stats, the paper's bound for 100 alphas: row by row."""
    radii = []
    for row in counts:
        second, top = np.sort(row)[-2:]
        n = row.sum()
        p1 = stats.beta.ppf(error / (2 * len(row)), top, n - top + 1) if top else 0.0
        p2 = stats.beta.isf(error / (2 * len(row)), second + 1, n - second) if second < n else 1.0
        best = 0.0
        if p1 > p2:
            for alpha in ALPHAS:
                mean = (0.5 * (p1 ** (1 - alpha) + p2 ** (1 - alpha))) ** (1 / (1 - alpha))
                best = max(best, -2 / alpha * np.log(1 - p1 - p2 + 2 * mean))
        radii.append(0.7 * float(np.sqrt(best)))
    return radii


def count_vectors(rows: int) -> np.ndarray:
    """Votes of ten classes at n = 100, many alike, as images give them."""
    rng = np.random.default_rng(0)
    counts = np.stack([rng.multinomial(100, rng.dirichlet(np.full(10, 0.2))) for _ in range(1000)])
    return counts[rng.integers(0, 1000, rows)].astype(np.int64)


def rows() -> Iterator[Row]:
    """A million count vectors under some certificates; then a million distinct pairs (p1, p2), radii alone."""
    counts = count_vectors(ROWS)
    few = counts[:LOOP_ROWS]
    scale = ROWS / LOOP_ROWS
    for name in WHOLE:
        certificate = CERTIFICATES[name]

        def ours(name: str = name, noise: Noise = NOISE[certificate.noise]) -> None:
            certify(counts, certificate=name, protocol="paper", noise=noise, alpha=0.05)

        row = compare(f"reduce: {name}, {ROWS} count vectors", ours, "row loop, Renyi, 100 alphas", loop(few), rounds=3)
        yield Row(row.name, row.against, row.ratio * scale, row.lowest * scale, row.highest * scale, row.detail)

    rng = np.random.default_rng(1)
    p1 = rng.uniform(0.3, 1, ROWS)
    p2 = rng.uniform(0, 1, ROWS) * np.minimum(p1, 1 - p1)
    for name in ALONE:

        def radii(function: Callable[..., object] = CERTIFICATES[name].unit_radius) -> None:
            function(p1, p2)

        row = compare(f"radii: {name}, {ROWS} distinct", radii, "row loop, Renyi, 100 alphas", loop(few), rounds=3)
        yield Row(row.name, row.against, row.ratio * scale, row.lowest * scale, row.highest * scale, row.detail)


def loop(counts: np.ndarray) -> Callable[[], object]:
    return lambda: renyi_loop(counts, 0.05)
