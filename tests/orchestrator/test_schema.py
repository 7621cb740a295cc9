"""What `stn schema` tells: of every table, from the schemas that write them; and of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from orchestrator import schemas
from orchestrator.cli import main
from orchestrator.errors import RunError
from orchestrator.paper import linear_program
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import View
from orchestrator.reporting.reported import load_run
from orchestrator.training import epochs
from tests.orchestrator.runs import MadeRun
from workers import layout
from workers.columns import meaning
from workers.datasets.index import SCHEMA, Entry, build
from workers.store import LocalStore
from workers.training import Epoch

PAGE = Path(__file__).parents[2] / "docs/schema.md"


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["schema", *map(str, arguments)])


@pytest.fixture
def run(made: MadeRun, tmp_path: Path) -> LocalStore:
    store = made.write(tmp_path / "run")
    reduce_run(store, made.plan, View.of(made.plan.spec))
    return store


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == stn("--markdown").stdout


@pytest.mark.parametrize("table", schemas.TABLES, ids=[table.name for table in schemas.TABLES])
def test_every_column_says_what_it_holds_and_where_it_is_null(table: schemas.Table) -> None:
    for field in table.schema:
        what, null = meaning(field)
        assert what, field.name
        assert bool(null) == field.nullable, field.name


def test_every_key_of_a_table_is_known() -> None:
    keys = {value for name, value in vars(layout).items() if name.isupper() and str(value).endswith(".parquet")}
    assert keys <= {table.where for table in schemas.TABLES}


def test_one_table_or_all_are_printed() -> None:
    shown = stn("curves").stdout
    assert shown.startswith("curves, schema version 2: curves.parquet\na row is a radius under")
    assert "\n  certified_accuracy     double  certified / images\n" in shown
    assert shown in stn().stdout
    (told,) = json.loads(stn("curves", "--json").stdout)
    assert told["schema_version"] == 2
    assert [column["name"] for column in told["columns"]] == schemas.named("curves").schema.names
    assert [one["table"] for one in json.loads(stn("--json").stdout)] == [table.name for table in schemas.TABLES]


def test_a_runs_tables_are_counted(run: LocalStore, made: MadeRun) -> None:
    found = [(one.table, one.version, one.objects, one.rows, one.reads) for one in schemas.tables_of(run)]
    assert found == [("counts", 2, 3, 20, True), ("certificates", 2, 1, 80, True), ("curves", 2, 1, 20, True)]
    run.delete(layout.counts(0))
    run.create(layout.counts(0), made.encoded_as_version_1(0))
    versions = [(one.version, one.objects) for one in schemas.tables_of(run) if one.table == "counts"]
    assert versions == [(1, 1), (2, 2)]
    lines = stn("--run", run.uri).stdout.splitlines()
    assert lines[0] == f"{run.uri}: tables"
    assert " ".join(lines[1].split()) == "counts 1 object 8 rows version 1"


def test_partial_tables_are_told_apart(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0])
    reduce_run(store, made.plan, View.of(made.plan.spec))
    found = [(one.folder, one.table) for one in schemas.tables_of(store)]
    assert found == [("", "counts"), (layout.PARTIAL, "certificates"), (layout.PARTIAL, "curves")]


def test_a_planned_run_has_no_tables_yet(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [])
    assert stn("--run", store.uri).stdout == f"{store.uri}: no tables yet\n"
    assert json.loads(stn("--run", store.uri, "--json").stdout) == {"run": store.uri, "tables": []}


def test_every_file_says_its_version_where_all_do(run: LocalStore) -> None:
    epoch = epochs.encode([Epoch(1, 0.5, 0.9, None, None, 0.1, 2.0)], "0" * 64)
    margins = linear_program.encode(linear_program.SCHEMA.empty_table())
    index = build([Entry("cat/1.png", 0, "", 0, 10)], classes=["cat"], source="images").content.to_pybytes()
    files = [run.read(layout.counts(0)), run.read(layout.CERTIFICATES), run.read(layout.CURVES), epoch, margins, index]
    for content, version in zip(files, (2, 2, 2, 1, 1, 1), strict=True):
        metadata = pq.read_metadata(io.BytesIO(content)).metadata
        assert json.loads(metadata[b"stn"])["schema_version"] == version


def test_certificates_say_themselves_what_columns_hold_and_votes_stay_small(run: LocalStore) -> None:
    schema = pq.read_schema(io.BytesIO(run.read(layout.CERTIFICATES)))
    assert [meaning(field) for field in schema] == [meaning(field) for field in schemas.named("certificates").schema]
    votes = pq.read_schema(io.BytesIO(run.read(layout.counts(0))))
    assert {meaning(field) for field in votes} == {("", "")}


def test_epochs_of_a_newer_version_are_refused_and_older_ones_read(run: LocalStore) -> None:
    table = pa.Table.from_pylist(
        [{"epoch": 1, "loss": 0.5, "accuracy": 0.9, "learning_rate": 0.1, "wall_s": 2.0}], epochs.SCHEMA
    )
    for version, says in (({}, None), ({"schema_version": 2}, "was written by a newer version: update")):
        metadata = json.dumps({"training_sha256": "0" * 64, **version})
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"stn": metadata}), sink)
        run.replace(layout.TRAINING, sink.getvalue())
        if says is None:
            assert len(load_run(run).epochs) == 1
        else:
            with pytest.raises(RunError, match=says):
                load_run(run)


def test_the_index_keeps_its_columns() -> None:
    assert SCHEMA.names == ["name", "label", "file", "offset", "size"]
