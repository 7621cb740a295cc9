"""Certificates lie so that the statistics of row groups let a filter on line, label or radius skip most of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.reducing import row_groups
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.row_groups import Blocks
from orchestrator.reducing.tables import CERTIFICATES_SCHEMA, View
from tests.orchestrator.runs import MadeRun
from workers import layout


def rows(labels: list[int] | np.ndarray, radii: list[float] | np.ndarray, first: int = 0) -> pa.Table:
    """A line's certificates, of those columns that decide where a row lies."""
    index = np.arange(first, first + len(labels))
    return pa.table({"index": index, "label": np.asarray(labels, dtype=np.int64), "radius": np.asarray(radii, float)})


def of_images(images: int, classes: int) -> pa.Table:
    """Labels evenly, radii of every kind, a fifth of them 0."""
    random = np.random.default_rng(images)
    return rows(random.integers(0, classes, images), np.maximum(0, random.normal(0.5, 0.6, images)))


def span(group: pa.Table, column: str) -> tuple[float, float]:
    values = group[column].to_numpy()
    return values.min(), values.max()


@given(
    st.lists(st.tuples(st.integers(-3, 12), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])), max_size=60),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_every_row_is_in_one_group_in_order_of_label_and_index(
    images: list[tuple[int, float]], fewest: int, most: int
) -> None:
    table = rows([label for label, _ in images], [radius for _, radius in images])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "_FEWEST_ROWS", fewest)
        patch.setattr(row_groups, "_MOST_GROUPS", most)
        groups = list(row_groups.row_groups(table))
    for group in groups:
        assert len(group)
        assert group.equals(group.sort_by([("label", "ascending"), ("index", "ascending")]))
    found = pa.concat_tables([table.slice(0, 0), *groups])
    assert found.sort_by("index").equals(table.combine_chunks())
    # The promise that pruning rests on: what is equal in both is in one group alone.
    places = [
        {(row["label"], row["radius"]) for row in group.select(["label", "radius"]).to_pylist()} for group in groups
    ]
    assert sum(map(len, places)) == len(set(images))


@pytest.mark.parametrize(
    ("images", "classes", "label_share", "radius_share"),
    [(50_000, 1000, 0.13, 0.13), (10_000, 10, 0.21, 0.34), (10_000, 2, 0.51, 0.12), (500, 10, 1.0, 1.0)],
)
def test_a_filter_reads_little_of_a_line(images: int, classes: int, label_share: float, radius_share: float) -> None:
    table = of_images(images, classes)
    groups = list(row_groups.row_groups(table))
    labels, radii = [span(group, "label") for group in groups], [span(group, "radius") for group in groups]

    def share(wanted: list[bool]) -> float:
        return sum(len(group) for group, asked in zip(groups, wanted, strict=True) if asked) / images

    of_each = [share([low <= label <= high for low, high in labels]) for label in range(classes)]
    assert np.mean(of_each) <= label_share
    # Beyond the rows that are asked for, it reads at most a band.
    radius = float(np.quantile(table["radius"].to_numpy(), 0.9))
    assert share([high >= radius for _, high in radii]) <= 0.1 + radius_share
    both = share([low <= 1 <= high and top >= radius for (low, high), (_, top) in zip(labels, radii, strict=True)])
    assert both <= max(label_share * (0.1 + radius_share) * 1.3, 0.02) or images < 1000


def test_blocks_do_not_depend_on_the_parts_that_rows_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "_BLOCK", 2 * 700)
    monkeypatch.setattr(row_groups, "_FEWEST_ROWS", 40)
    whole = of_images(3000, 7)

    def laid(sizes: list[int]) -> list[pa.Table]:
        blocks, groups, start = Blocks(2), [], 0
        for size in sizes:
            groups += list(blocks.add("line", whole.slice(start, size)))
            start += size
        return [group.combine_chunks() for group in (*groups, *blocks.rest())]

    once = laid([3000])
    assert once == laid([1] * 100 + [650, 50, 1400, 800]) == laid([700] * 4 + [200])
    # Each block by itself: no group has rows of two.
    assert all(len({index // 700 for index in group["index"].to_pylist()}) == 1 for group in once)
    assert len(once) > 4 * 5


def test_a_table_of_certificates_tells_its_order_and_prunes(
    of_a_part: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "_FEWEST_ROWS", 8)
    store = of_a_part.write(tmp_path)
    view = View(("renyi", "pixeldp"), ("paper", "label"), 0.05, (0.0, 0.1), "clopper_pearson", 0.01)
    reduce_run(store, of_a_part.plan, view)
    file = pq.ParquetFile(tmp_path / layout.CERTIFICATES)
    names = [column.name for column in CERTIFICATES_SCHEMA]
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    assert len(groups) >= 4 * 8
    order = [(names[column.column_index], column.descending) for column in groups[0].sorting_columns]
    assert order == [("label", False), ("index", False)]
    for number, group in enumerate(groups):
        assert group.sorting_columns == groups[0].sorting_columns
        own = file.read_row_group(number)
        assert own.equals(own.sort_by([("label", "ascending"), ("index", "ascending")]))
        statistics = {name: group.column(names.index(name)).statistics for name in ("certificate", "label", "radius")}
        assert statistics["certificate"].min == statistics["certificate"].max
        for name, found in statistics.items():
            assert {found.min, found.max} <= set(own[name].to_pylist())
    lines = {tuple(row.values()) for row in file.read(["certificate", "protocol"]).to_pylist()}
    assert len(lines) == 4
