"""Run benchmarks, all or those named, print one table, keep it as JSON, write it into docs/speed.md.

Each module beside this one that has ``rows`` is a part. A part's rows stand with when, where and of what they were
measured, until that part is measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.measure import Row
from workers.versions import versions

RESULTS = Path(__file__).parent / "results/latest.json"
PAGE = Path(__file__).parents[1] / "docs/speed.md"
BEGIN, END = "<!-- of benchmarks/results/latest.json, by `make bench` -->", "<!-- end of it -->"


def known_parts() -> list[str]:
    """Names of the parts there are."""
    return sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - {"__main__", "measure"})


def main() -> None:
    names = known_parts()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="*", choices=[[], *names], help="what to run: all, unless some are named")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page's table")
    options = parser.parse_args()
    for name in () if options.page else options.part or names:
        found, seconds = measured(name)
        if found:  # a part that needs what this machine has not leaves its rows as they are
            keep(name, found, seconds)
            Console(width=160).print(printed(name, found))
    PAGE.write_text(with_table(PAGE.read_text(), markdown(json.loads(RESULTS.read_text()))))


def measured(name: str) -> tuple[list[Row], float]:
    """A part's rows, and how long they took, s."""
    start = time.perf_counter()
    found = list(importlib.import_module(f"benchmarks.{name}").rows())
    return found, time.perf_counter() - start


def keep(name: str, found: list[Row], seconds: float) -> None:
    """Put a part's rows among the results, at once: a later part may fail."""
    parts = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts[name] = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "rows": [dataclasses.asdict(row) for row in found],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(dict(sorted(parts.items())), indent=2, ensure_ascii=False) + "\n")


def commit() -> str:
    """Of the source, with a plus where it has been changed since."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=PAGE.parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """What the figures depend on most."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "processor": models[0] if models else platform.processor(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def printed(name: str, found: list[Row]) -> Table:
    """A part's rows for a terminal."""
    table = Table("what", "ratio", "goal", "lowest - highest", "against", "figures", title=name)
    for row in found:
        span = f"{row.lowest:.3g} - {row.highest:.3g}"
        table.add_row(row.name, f"{row.ratio:.3g}{mark(row)}", row.goal, span, row.against, row.detail)
    return table


def mark(row: Row) -> str:
    """What follows the ratio where there is a goal."""
    return {None: "", True: " ✓", False: " ✗"}[row.met]


def markdown(parts: dict[str, Any]) -> str:
    """All parts' rows as one table, and where they are from."""
    lines = ["| what | against | ratio | goal | figures |", "| --- | --- | --- | --- | --- |"]
    sources: dict[str, list[str]] = {}
    for name, part in parts.items():
        found = [Row(**row) for row in part["rows"]]
        lines += [
            f"| {row.name} | {row.against} | {row.ratio:.3g}{mark(row)} | {row.goal} | {row.detail} |" for row in found
        ]
        where = f"{part['machine']['cpus']} CPUs ({part['machine']['processor']}), torch {part['versions']['torch']}"
        sources.setdefault(f"{part['measured'][:10]}, commit {part['commit']}, {where}", []).append(name)
    told = [f"{', '.join(names)}: {source}" for source, names in sources.items()]
    return "\n".join([*lines, "", f"Measured: {'; '.join(told)}."])


def with_table(text: str, table: str) -> str:
    """A text with the table between its two marks. Raises ValueError where it lacks them."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n\n{table}\n\n{text[end:]}"


if __name__ == "__main__":
    main()
