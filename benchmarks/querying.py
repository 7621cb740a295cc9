"""What a filter reads of a table of certificates, as a share of the whole, and what that costs whoever reads all."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.measure import Row, single
from benchmarks.runs import make_run
from workers import layout
from workers.store import LocalStore

CERTIFICATES = ("renyi", "neyman_pearson_one_class", "neyman_pearson_two_class", "pixeldp")


def rows() -> Iterator[Row]:
    """ImageNet's shape, and a test set of ten classes."""
    yield from measured("50 000 images x 1 000 classes", images=50_000, classes=1000, draws=1000, shard=1000)
    yield from measured("10 000 images x 10 classes", images=10_000, classes=10, draws=100, shard=1000)


def measured(name: str, *, images: int, classes: int, draws: int, shard: int) -> Iterator[Row]:
    """Bytes that filters read of the table of a run that is made for the purpose, and its size and time to be read."""
    with tempfile.TemporaryDirectory(prefix="stn-bench-") as folder:
        make_run(LocalStore(Path(folder)), images, classes, draws, shard)
        options = [part for certificate in CERTIFICATES for part in ("--certificate", certificate)]
        command = [sys.executable, "-m", "orchestrator.cli", "reduce", folder, *options]
        subprocess.run(command, capture_output=True, check=True)
        table, before = Path(folder) / layout.CERTIFICATES, Path(folder) / "before"
        whole = pq.read_table(table).sort_by([("index", "ascending"), ("certificate", "ascending")])
        in_order_of_images(whole, before, min(2**14, 2**22 // classes))
        radii = whole["radius"].to_numpy()
        radius = float(sorted(radii[radii > 0])[int(0.9 * (radii > 0).sum())])
        line = ds.field("certificate") == CERTIFICATES[0]
        label, far = ds.field("label") == classes // 2, ds.field("radius") >= radius
        for what, asked in (
            ("one label", label),
            ("the largest tenth of radii", far),
            ("both", label & far),
            ("one label of one certificate", line & label),
            ("the largest tenth of radii of one certificate", line & far),
            ("both, of one certificate", line & label & far),
        ):
            share, groups, matching = read_by(table, asked)
            detail = f"{groups}; {matching:.1%} of rows match"
            yield single(f"{name}: bytes read by a filter on {what}", "the whole table", share, detail)
        new, old = table.stat().st_size, before.stat().st_size
        yield single(f"{name}: size", "row groups in order of images", new / old, f"{new / 2**20:.2f} MiB")
        own, theirs = (min(seconds_to_read(path) for _ in range(5)) for path in (table, before))
        yield single(f"{name}: CPU time to read all", "the same", own / theirs, f"{own:.3f} s")


def read_by(table: Path, asked: ds.Expression) -> tuple[float, str, float]:
    """Share of bytes in row groups that statistics do not rule out, how many these are, share of rows wanted."""
    source = ds.dataset(table)
    (file,) = source.get_fragments()
    left = [group.id for part in file.split_by_row_group(asked) for group in part.row_groups]
    metadata = pq.read_metadata(table)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    size = [sum(group.column(column).total_compressed_size for column in range(group.num_columns)) for group in groups]
    share = sum(size[number] for number in left) / sum(size)
    matching = source.count_rows(filter=asked) / metadata.num_rows
    return share, f"{len(left)} of {len(groups)} row groups", matching


def in_order_of_images(rows: pa.Table, path: Path, part: int) -> None:
    """The same rows as reduce wrote them once: so many images at a time, one row group of each certificate."""
    with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        for start in range(0, len(rows), part * len(CERTIFICATES)):
            own = rows.slice(start, part * len(CERTIFICATES))
            for certificate in CERTIFICATES:
                writer.write_table(own.filter(pc.equal(own["certificate"], certificate)))


def seconds_to_read(path: Path) -> float:
    start = process_time()
    pq.read_table(path)
    return process_time() - start
