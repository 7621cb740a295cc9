"""The command that tells what tables hold: schema."""

from __future__ import annotations

import dataclasses
import json

import click

from orchestrator.cli.shell import command, json_option
from orchestrator.errors import RunError
from workers.store import open_store


@click.command()
@click.argument("table", required=False)
@click.option("--run", metavar="URI", help="Tell which tables a run holds, of what version, instead.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print all as Markdown.")
@json_option
@command
def schema(table: str | None, run: str | None, as_markdown: bool, as_json: bool) -> None:
    """The columns of every table a run holds, or of one TABLE: types, units, where they are null, and versions.

    \b
    Example: stn schema certificates
    """
    from orchestrator import schemas

    if (table is not None) + (run is not None) + as_markdown > 1 or (as_markdown and as_json):
        raise click.UsageError("TABLE, --run and --markdown exclude each other, and --markdown --json")
    if run is not None:
        _of_run(run, as_json)
        return
    if as_markdown:
        click.echo(schemas.markdown(), nl=False)
        return
    shown = schemas.TABLES if table is None else (schemas.named(table),)
    if as_json:
        told = [
            {
                "table": one.name,
                "where": one.where,
                "row": one.row,
                "schema_version": one.version,
                "columns": [
                    {"name": column.name, "type": column.type, "meaning": column.meaning, "null": column.null or None}
                    for column in schemas.columns(one)
                ],
            }
            for one in shown
        ]
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    for number, one in enumerate(shown):
        click.echo(f"{chr(10) if number else ''}{one.name}, schema version {one.version}: {one.where}")
        click.echo(f"a row is {one.row}")
        found = schemas.columns(one)
        name, kind = (max(len(getattr(column, part)) for column in found) for part in ("name", "type"))
        for column in found:
            null = f"; null {column.null}" if column.null else ""
            click.echo(f"  {column.name:{name}}  {column.type:{min(kind, 7)}}  {column.meaning}{null}")


def _of_run(run: str, as_json: bool) -> None:
    from orchestrator import schemas

    store = open_store(run)
    found = schemas.tables_of(store)
    if as_json:
        click.echo(json.dumps({"run": store.uri, "tables": [dataclasses.asdict(one) for one in found]}))
    else:
        click.echo(f"{store.uri}: {'tables' if found else 'no tables yet'}")
        for one in found:
            version = "no version said" if one.version is None else f"version {one.version}"
            objects = f"{one.objects} object{'' if one.objects == 1 else 's'}"
            name = f"{one.folder}{one.table}"
            click.echo(f"  {name:21}  {objects:>12}  {one.rows:>10} rows  {version}{'' if one.reads else ', newer'}")
    newer = [one for one in found if not one.reads]
    if newer:
        one = newer[0]
        what = "object" if one.objects == 1 else "objects"
        verb = "is" if one.objects == 1 else "are"
        raise RunError(
            f"{one.objects} {one.folder}{one.table} {what} in {store.uri} {verb} of a newer version "
            f"(schema {one.version}): update this installation"
        )
