"""Commands that do the work: train, plan, certify."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import click

from orchestrator.cli.printing import print_curves
from orchestrator.cli.shell import (
    EXIT_INCOMPLETE,
    address_option,
    command,
    job_options,
    json_option,
    limit_option,
    load,
    run_option,
    say,
    set_option,
    spec_argument,
)
from orchestrator.errors import SpecError
from orchestrator.progress import time_text


@click.command()
@spec_argument
@set_option
@address_option
@json_option
@command
def train(spec: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the spec's model and write its checkpoint; run it again to resume.

    \b
    Example: stn train examples/demo.yaml
    """
    from orchestrator import api

    loaded = load(spec, overrides)
    if loaded.training is None or loaded.model.checkpoint is None:
        missing = "training" if loaded.training is None else "model.checkpoint"
        raise SpecError(f"{spec}: {missing} is missing, and `stn train` needs it; see examples/demo.yaml")
    trained = api.train(loaded)
    if as_json:
        epoch = None if trained.epoch is None else dataclasses.asdict(trained.epoch)
        click.echo(json.dumps({"checkpoint": str(trained.checkpoint), "epoch": epoch}))
    elif trained.epoch is None:
        click.echo(f"already trained: {trained.checkpoint}")
    else:
        click.echo(
            f"trained {trained.epoch.epoch} epochs, loss {trained.epoch.loss:.4f}, "
            f"accuracy {trained.epoch.accuracy:.1%}: {trained.checkpoint}"
        )


@click.command()
@spec_argument
@run_option
@set_option
@limit_option
@json_option
@command
def plan(spec: Path, run: str | None, overrides: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """Show what `stn certify` would do, and how long it would take here. Writes nothing, but an
    index that dataset.index asks for.

    \b
    Example: stn plan examples/demo.yaml --set sampling.draws=1000
    """
    from orchestrator import api

    found = api.plan(load(spec, overrides, run, limit))
    values = dataclasses.asdict(found)
    if as_json:
        click.echo(json.dumps(values))
        return
    for name, value in values.items():
        click.echo(f"{name.replace('_', ' '):32}{value}")
    parts = (
        ("workers' start", found.estimated_start_seconds),
        ("counting", found.estimated_counting_seconds),
        ("reduce", found.estimated_reduce_seconds),
    )
    click.echo(
        f"{'time':32}{time_text(found.estimated_seconds)}: {', '.join(f'{what} {time_text(s)}' for what, s in parts)}"
    )
    click.echo(f"{'':32}from processes that counted here for some seconds, as many at once as there would be workers")


@click.command()
@job_options
@click.option(
    "--single-writer",
    is_flag=True,
    help="Promise that nobody else writes to this run: for object stores without conditional writes.",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Count only what could not be counted before: failed images, and shards that were given up.",
)
@command
def certify(
    spec: Path,
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    single_writer: bool,
    retry_failed: bool,
    as_json: bool,
) -> int:
    """Plan, count and reduce. Run it again to resume; when complete it does nothing and says so.

    \b
    Example: stn certify examples/demo.yaml --set noise.sigma=0.5 --run runs/sigma-0.5
    """
    from orchestrator import api
    from orchestrator.reporting.reported import load_run

    if single_writer:
        overrides = (*overrides, "store.single_writer=true")
    loaded = load(spec, overrides, run, limit)
    result = api.certify(loaded, retry_failed=retry_failed)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": result.run,
                    "complete": result.complete,
                    "nothing_to_do": result.nothing_to_do,
                    "shards_counted": result.counted,
                    "shards_given_up": result.given_up,
                    **dataclasses.asdict(result.summary),
                }
            )
        )
    elif result.nothing_to_do:
        click.echo(f"{'already complete, ' if result.complete else ''}nothing to do: {result.run}")
    else:
        print_curves(load_run(result.store))
        click.echo(f"run: {result.run}")
    if result.complete:
        return 0
    for shard, reason in result.given_up.items():
        say(f"shard {shard} was given up: {reason}")
    say(result.summary.lacking)
    if result.summary.failed:
        say(f"why images failed: stn status {shlex.quote(result.run)}")
    return EXIT_INCOMPLETE
