"""Commands that train and certify several jobs as one: sweep, paper table1, paper figure1. Run again, they resume."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.completion import complete_from, complete_specs
from orchestrator.cli.printing import print_best, print_table1
from orchestrator.cli.shell import EXIT_INCOMPLETE, Commands, command, job_options, load, say
from orchestrator.cli.words import METHODS
from workers import layout


def _sigmas(_: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, got {value!r}") from None


def _methods(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if not value:
        return ()
    from stn_core.naming import pick

    try:
        return tuple(pick({name: name for name in METHODS}, part, "method") for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


sigma_option = click.option(
    "--sigma", "sigmas", required=True, callback=_sigmas, metavar="S,S,…", help="Noise of each run."
)


@click.command()
@job_options
@sigma_option
@click.option(
    "--method",
    "methods",
    callback=_methods,
    metavar="M,M,…",
    shell_complete=complete_from(METHODS, separated=True),
    help="Of training. Default: the spec's.",
)
@command
def sweep(
    spec: Path,
    sigmas: tuple[float, ...],
    methods: tuple[Any, ...],
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> int:
    """Train and certify one network for each sigma and method; one figure with all curves, and the best at each radius.

    Runs are kept below the spec's, the figure and its report beside them. Run it again to resume.

    \b
    Example: stn sweep examples/demo.yaml --sigma 0.3,0.5,0.7 --method stn,gaussian --run runs/sweep
    """
    from orchestrator import api

    result = api.sweep(load(spec, overrides, run, limit), sigmas, methods, tell=say)
    if not as_json:
        print_best(result.runs)
    return finish(result.complete, result.written, {"curves": _curves(result.runs)}, as_json)


@click.group(cls=Commands)
def paper() -> None:
    """The paper's own comparisons, trained and certified from one spec each; run again to resume.

    \b
    Example: stn paper table1 examples/mnist.yaml --run runs/table1
    """


@paper.command()
@job_options
@click.option(
    "--beyond",
    multiple=True,
    type=click.Path(path_type=Path),
    shell_complete=complete_specs,
    metavar="SPEC",
    help="A job that is not the paper's, on the same images, trained where its weights are missing: rows of their own. "
    "--set is not for it. Repeatable.",
)
@click.option(
    "--linear-program",
    "networks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also train the rival by linear programming: a single network, and a cascade of at most N.",
)
@command
def table1(
    spec: Path,
    beyond: tuple[Path, ...],
    networks: int | None,
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> int:
    """Table 1: STN, its ablation and PixelDP beside the paper's figures, at its n = 100 and at the spec's.

    Runs are kept below the spec's, table1.csv beside them.

    \b
    Example: stn paper table1 examples/mnist.yaml --linear-program 4 --run runs/table1
    """
    from orchestrator.paper import certified as papers
    from orchestrator.paper import linear_program
    from orchestrator.spec import load_spec
    from orchestrator.sweeping import Point, check_ready, train_and_certify
    from orchestrator.training.train import train_spec

    loaded = load(spec, overrides, run, limit)
    jobs, target = papers.table1_jobs(loaded), loaded.store.open()
    others = papers.beyond_jobs(loaded, {path.stem: load_spec(path) for path in beyond})
    radius = papers.TABLE_1[loaded.model.name].radius
    first = [] if networks is None else [Point("linear program", linear_program.network_spec(loaded, 1, radius))]
    check_ready([*jobs, *others, *first], target)
    complete = train_and_certify([*jobs, *others], say)
    own, further = ([job.spec.store.open() for job in group] for group in (jobs, others))
    rows = papers.table1(own, further)
    target.replace(layout.TABLE_1, papers.rows_csv(rows))
    if networks is not None:
        program = linear_program.train_and_certify(loaded, networks, radius, train=train_spec, tell=say)
        target.replace(layout.LINEAR_PROGRAM, linear_program.encode(program))
        rows = papers.table1(own, further, program)
        target.replace(layout.TABLE_1, papers.rows_csv(rows))
    if not as_json:
        print_table1(rows, jobs[0].spec)
    written = (layout.TABLE_1, *((layout.LINEAR_PROGRAM,) if networks is not None else ()))
    places = [f"{target.uri}/{name}" for name in written]
    return finish(complete, places, {"rows": [dataclasses.asdict(row) for row in rows]}, as_json)


@paper.command()
@job_options
@sigma_option
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

    \b
    Example: stn paper figure1 examples/mnist.yaml --sigma 0.5,0.7,1.0 --run runs/figure1
    """
    from orchestrator.paper.certified import METHODS, figure1_png
    from orchestrator.reporting.publishing import publish
    from orchestrator.sweeping import check_ready, points, train_and_certify

    loaded = load(spec, (*overrides, "certificates=[renyi, pixeldp]"), run, limit)
    jobs, target = points(loaded, sigmas, METHODS), loaded.store.open()
    check_ready(jobs, target)
    complete = train_and_certify(jobs, say)
    stores = [job.spec.store.open() for job in jobs]
    target.replace(layout.FIGURE_1, figure1_png(stores))
    runs = publish(stores, target).runs
    written = [f"{target.uri}/{name}" for name in (layout.FIGURE_1, layout.REPORT)]
    return finish(complete, written, {"curves": _curves(runs)}, as_json)


def _curves(runs: Sequence[Any]) -> dict[str, Any]:
    return {run.name: run.reduced.curves.to_pylist() for run in runs}


def finish(complete: bool, written: Sequence[str], content: Mapping[str, Any], as_json: bool) -> int:
    """Say what was written; the command's exit code."""
    if as_json:
        click.echo(json.dumps({"complete": complete, "written": written, **content}))
    else:
        for path in written:
            click.echo(f"wrote {path}")
    return 0 if complete else EXIT_INCOMPLETE
