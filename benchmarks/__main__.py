"""Run every benchmark, print one table, keep it as JSON with machine and versions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import counting, dispatching, loading, reducing, runs, scale
from workers.versions import versions

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    table = Table("what", "times as fast", "goal", "lowest - highest", "as", "takes")
    found = []
    kinds = (counting, reducing, loading, runs, dispatching, scale)
    for row in itertools.chain.from_iterable(kind.rows() for kind in kinds):
        found.append(row)
        span = f"{row.lowest:.3g} - {row.highest:.3g}"
        table.add_row(row.name, f"{row.ratio:.3g}", row.goal, span, row.against, row.detail)
    Console(width=160).print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    content = {"machine": machine, "versions": versions(), "rows": [dataclasses.asdict(row) for row in found]}
    (RESULTS / "latest.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
