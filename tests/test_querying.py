"""Every snippet of docs/querying.md runs, in a folder and on S3, and prints what the page shows.

``python -m tests.test_querying`` writes what they print into the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest

from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.runs import read_votes
from orchestrator.reducing.tables import View
from tests.object_store import ObjectStore
from tests.orchestrator.runs import MadeRun, invented, plan_of
from workers import counts_table, layout
from workers.s3 import S3Store
from workers.store import LocalStore, Store

PAGE = Path(__file__).parents[1] / "docs/querying.md"

#: A snippet, and what follows it if it prints.
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)

RUN = "runs/demo"


def demo() -> MadeRun:
    """The run that the page is about: two images could not be counted."""
    plan = plan_of(sampling={"draws": 200, "seed": 1}, radii=[0.0, 0.1, 0.2, 0.4])
    return invented(plan, failed=(3, 77), sure=0.3)


def write(store: Store) -> None:
    """That run, one of the two images counted by a retry, and its tables."""
    made, plan = demo(), demo().plan
    provenance = {**plan.job("", device="cpu").provenance, "device": "cpu"}
    store.create(layout.PLAN, plan.to_json())
    for shard in range(plan.shards):
        store.create(layout.counts(shard), made.encoded(shard))
    again = invented(plan, failed=(3,), sure=0.3).tables[1]
    counted = again.filter(pa.compute.equal(again["index"], 77))
    store.create(layout.retry(1, 1), counts_table.encode(counted, {**provenance, "shard": 1, "retry": 1}))
    reduce_run(store, plan, View.of(plan.spec))


def snippets() -> list[tuple[str, str]]:
    """The page's snippets but for the first two, which name the run; and what it shows of their output."""
    found = SNIPPET.findall(PAGE.read_text())
    assert [code for code, _ in found[:2]] == [f'run = "{run}"\n' for run in (RUN, f"s3://my-bucket/{RUN}")]
    return found[2:]


def outputs(run: str) -> Iterator[tuple[str, str, str]]:
    """Each snippet, what the page shows, and what it prints; without those that name the folder, on S3."""
    names: dict[str, Any] = {"run": run}
    for code, shown in snippets():
        if run == RUN or RUN not in code:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(code, str(PAGE), "exec"), names)
            yield code, shown, said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("querying")
    write(LocalStore(root / RUN))
    return root


def test_every_snippet_prints_what_the_page_shows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = list(outputs(RUN))
    assert len(found) >= 11
    for code, shown, printed in found:
        assert printed == shown, code


def test_every_snippet_prints_the_same_of_a_run_on_s3(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="my-bucket")
    write(S3Store(f"s3://my-bucket/{RUN}"))
    for code, shown, printed in outputs(f"s3://my-bucket/{RUN}"):
        assert printed == shown, code


def test_each_reader_has_a_snippet() -> None:
    text = "".join(code for code, _ in snippets())
    for library in ("pandas", "pyarrow.dataset", "duckdb", "polars"):
        assert f"import {library}" in text


def sum_of_draws(folder: Path) -> dict[int, int]:
    """Draws by image, as the page's snippet has them."""
    (code,) = [code for code, _ in snippets() if 'groupby("index")["draws"].sum()' in code]
    names: dict[str, Any] = {"run": str(folder)}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(f"import pandas as pd\n{code}", names)
    found: dict[int, int] = names["votes"].groupby("index")["draws"].sum().to_dict()
    return found


def test_sums_over_rounds_and_retries_are_those_of_reduce(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(
        sampling={"mode": "adaptive", "draws": 5000, "selection_draws": 16, "seed": 1},
        confidence={"protocol": "anytime", "alpha": 0.05},
    )
    first = invented(replace(plan, spec=plan_of(sampling={"draws": 100, "selection_draws": 16}).spec), sure=0.3)
    store = MadeRun(plan, first.tables).write(tmp_path)
    more = first.tables[1].slice(5, 7)
    before = more["draws"].to_pylist()
    nothing = counts_table.sparse(np.zeros((len(more), 10), dtype=np.int64))
    none = pa.array([0] * len(more))
    for name, column in (("selection", nothing), ("selection_draws", none), ("selection_invalid", none)):
        more = more.set_column(more.schema.get_field_index(name), more.schema.field(name), column)
    provenance = {**plan.job("", device="cpu").provenance, "shard": 1, "round": 1, "first_draw": before}
    store.create(layout.counts(1, 1), counts_table.encode(more, provenance))

    retried = LocalStore(folder / RUN)
    for own, made, root in ((store, plan, tmp_path), (retried, demo().plan, folder / RUN)):
        parts = list(read_votes(own, made, range(made.shards)))
        rows = {
            index: draws
            for part in parts
            for index, draws in zip(part.table["index"].to_pylist(), part.draws.tolist(), strict=True)
            if draws
        }
        assert sum_of_draws(root) == rows
    assert len(rows) == 119


def main() -> None:
    """Write what the snippets print into the page."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        write(LocalStore(Path(name) / RUN))
        os.chdir(name)
        printed = {code: said for code, _, said in outputs(RUN)}
        os.chdir(here)

    def with_output(match: re.Match[str]) -> str:
        said = printed.get(match[1], "")
        return f"```python\n{match[1]}```\n" + (f"\n```text\n{said}```\n" if said else "")

    PAGE.write_text(SNIPPET.sub(with_output, PAGE.read_text()))


if __name__ == "__main__":
    main()
