"""Commands that read a run: status, reduce, report."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import get_args

import click

from orchestrator.cli.printing import incomplete, print_curves
from orchestrator.cli.shell import EXIT_INCOMPLETE, command, json_option, say
from orchestrator.progress import meter, time_text
from stn_core.certificates import CERTIFICATES
from stn_core.confidence import PROTOCOLS, Interval
from workers.store import LocalStore, open_store


@click.command()
@click.argument("run")
@json_option
@command
def status(run: str, as_json: bool) -> int:
    """Progress, rate, time left and failures of a run, read from its store alone.

    Example: stn status runs/demo --json
    """
    from orchestrator.status import status_of

    found = status_of(open_store(run))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
        return 0
    state = "complete" if found.complete else "incomplete"
    click.echo(f"{found.run}: {state}")
    click.echo(
        f"images   {found.counted} of {found.images} counted, {found.failed} failed, "
        f"{found.images - found.counted - found.failed} missing"
    )
    click.echo(f"shards   {found.shards_committed} of {found.shards} committed, {len(found.shards_given_up)} given up")
    click.echo(f"passes   {found.passes} of {found.passes_planned}")
    if found.last_commit is not None:
        click.echo(f"last     committed {time_text(max(0.0, time.time() - found.last_commit))} ago")
    if found.images_per_s is not None and not found.complete:
        left = "unknown" if found.seconds_left is None else time_text(found.seconds_left)
        click.echo(f"rate     {found.images_per_s:.1f} images/s, {left} left at that rate")
    for driver in found.drivers:
        click.echo(f"driver   {driver}")
    for index, reason in found.failures.items():
        click.echo(f"failed   image {index}: {reason}")
    for shard, reason in sorted(found.shards_given_up.items()):
        click.echo(f"given up shard {shard}: {reason}")
    return 0


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, got {value!r}") from None
    if not all(0 <= number < float("inf") for number in numbers) or list(numbers) != sorted(set(numbers)):
        raise click.BadParameter("radii must be finite, not negative, and increase")
    return numbers


@click.command()
@click.argument("run")
@click.option(
    "--certificate",
    "certificates",
    multiple=True,
    metavar="NAME",
    help=f"One of {', '.join(CERTIFICATES)}; repeatable.",
)
@click.option(
    "--protocol", "protocols", multiple=True, metavar="NAME", help=f"One of {', '.join(PROTOCOLS)}; repeatable."
)
@click.option("--alpha", type=float, help="Failure probability of one image's certificate.")
@click.option("--beta", type=float, help="Failure probability of statements about the whole data set.")
@click.option(
    "--interval",
    type=click.Choice(get_args(Interval)),
    help="How votes bound probabilities; randomised is tighter, by a recorded chance per image.",
)
@click.option("--radii", callback=_numbers, metavar="R,R,…", help="Radii at which to report certified accuracy.")
@json_option
@command
def reduce(
    run: str,
    certificates: tuple[str, ...],
    protocols: tuple[str, ...],
    alpha: float | None,
    beta: float | None,
    interval: Interval | None,
    radii: tuple[float, ...] | None,
    as_json: bool,
) -> int:
    """Certificates and curves from a run's stored votes: no model, no GPU, no Ray. What is not given is the spec's.

    Replaces the run's certificates.parquet and curves.parquet.

    Example: stn reduce runs/demo --certificate renyi --protocol paper --protocol split --alpha 0.01
    """
    from orchestrator.reduce import check_against, reduce_run
    from orchestrator.reported import load_run
    from orchestrator.runs import counted_shards, read_plan
    from orchestrator.tables import View

    store = open_store(run)
    planned = read_plan(store)
    asked = View.of(planned.spec)
    view = View(
        tuple(dict.fromkeys(certificates)) or asked.certificates,
        tuple(dict.fromkeys(protocols)) or asked.protocols,
        asked.alpha if alpha is None else alpha,
        radii or asked.radii,
        interval or asked.interval,
        asked.beta if beta is None else beta,
    )
    check_against(planned, view)
    with meter("reducing", len(counted_shards(store, planned)), "shards") as progress:
        reduced = reduce_run(store, planned, view, progress.advance)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(reduced.summary), "curves": reduced.curves.to_pylist()}))
    else:
        print_curves(load_run(store))
    if not reduced.summary.complete:
        summary = reduced.summary
        say(incomplete(summary))
        return EXIT_INCOMPLETE
    return 0


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN …]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to. Default: the run; with several, here."
)
@json_option
@command
def report(runs: tuple[str, ...], out: Path | None, as_json: bool) -> int:
    """Table, curves.png and a self-contained report.html; several runs on one figure.

    Example: stn report runs/demo runs/sigma-0.5 --out comparison
    """
    from orchestrator.report import publish
    from workers import layout

    stores = [open_store(run) for run in dict.fromkeys(runs)]
    target = LocalStore(out) if out is not None else stores[0] if len(runs) == 1 else LocalStore(Path())
    loaded = publish(stores, target)
    written = [f"{target.uri}/{name}" for name in (layout.FIGURE, layout.REPORT)]
    if as_json:
        click.echo(
            json.dumps({"written": written, "curves": {run.name: run.reduced.curves.to_pylist() for run in loaded}})
        )
    else:
        for run in loaded:
            print_curves(run)
        for path in written:
            click.echo(f"wrote {path}")
    return 0 if all(run.reduced.summary.complete for run in loaded) else EXIT_INCOMPLETE
