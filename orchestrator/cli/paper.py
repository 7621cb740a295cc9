"""Commands that repeat the paper's own comparisons: paper table1, paper figure1."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from orchestrator.cli.job import carry_out, sigma_option
from orchestrator.cli.printing import print_table1
from orchestrator.cli.shell import (
    EXIT_INCOMPLETE,
    Commands,
    address_option,
    command,
    json_option,
    limit_option,
    load,
    run_option,
    set_option,
    spec_argument,
)
from workers import layout


@click.group(cls=Commands)
def paper() -> None:
    """The paper's own comparisons, trained and certified from one spec each; run again to resume.

    Example: stn paper table1 examples/mnist.yaml
    """


@paper.command()
@spec_argument
@run_option
@set_option
@limit_option
@address_option
@json_option
@command
def table1(spec: Path, run: str | None, overrides: tuple[str, ...], limit: int | None, as_json: bool) -> int:
    """Table 1: STN, its ablation and PixelDP beside the paper's figures, at its n = 100 and at the spec's.

    Runs are kept below the spec's, table1.csv beside them.

    Example: stn paper table1 examples/mnist.yaml --run runs/table1
    """
    from orchestrator.paper import rows_csv, table1, table1_jobs

    loaded = load(spec, overrides, run, limit)
    jobs, target = table1_jobs(loaded), loaded.store.open()
    complete = carry_out(jobs, target)
    rows = table1([job.spec.store.open() for job in jobs])
    target.replace(layout.TABLE_1, rows_csv(rows))
    if as_json:
        click.echo(json.dumps({"complete": complete, "rows": [dataclasses.asdict(row) for row in rows]}))
    else:
        print_table1(rows, jobs[0].spec)
        click.echo(f"wrote {target.uri}/{layout.TABLE_1}")
    return 0 if complete else EXIT_INCOMPLETE


@paper.command()
@spec_argument
@sigma_option
@run_option
@set_option
@limit_option
@address_option
@json_option
@command
def figure1(
    spec: Path,
    sigmas: tuple[float, ...],
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> int:
    """Figure 1: certified accuracy of STN for several sigma, without stability training, and of PixelDP at its best.

    Runs are kept below the spec's, figure1.png and their report beside them.

    Example: stn paper figure1 examples/mnist.yaml --sigma 0.5,0.7,1.0 --run runs/figure1
    """
    from orchestrator.paper import METHODS, figure1_png
    from orchestrator.report import publish
    from orchestrator.sweep import points

    loaded = load(spec, (*overrides, "certificates=[renyi, pixeldp]"), run, limit)
    jobs, target = points(loaded, sigmas, METHODS), loaded.store.open()
    complete = carry_out(jobs, target)
    stores = [job.spec.store.open() for job in jobs]
    target.replace(layout.FIGURE_1, figure1_png(stores))
    runs = publish(stores, target)
    written = [f"{target.uri}/{name}" for name in (layout.FIGURE_1, layout.REPORT)]
    if as_json:
        curves = {run.name: run.reduced.curves.to_pylist() for run in runs}
        click.echo(json.dumps({"complete": complete, "written": written, "curves": curves}))
    else:
        for path in written:
            click.echo(f"wrote {path}")
    return 0 if complete else EXIT_INCOMPLETE
