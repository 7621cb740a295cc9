"""Commands that do the work: train, plan, certify."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.printing import incomplete, print_curves
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
from orchestrator.progress import meter, time_text


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
    loaded = load(spec, overrides)
    if loaded.training is None or loaded.model.checkpoint is None:
        missing = "training" if loaded.training is None else "model.checkpoint"
        raise SpecError(f"{spec}: {missing} is missing, and `stn train` needs it; see examples/demo.yaml")
    trained = train_spec(loaded)
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


def train_spec(spec: Any, only: Any = None) -> Any:
    """Train a spec's model, on some of its images, under a progress bar."""
    from orchestrator.training import Trained, prepare, train_model

    ready = prepare(spec, only)
    if ready.done:
        return Trained(ready.checkpoint, None)
    epochs = spec.training.epochs
    start = time.monotonic()
    with meter("training", epochs, "epochs") as progress:

        def observe(epoch: Any) -> None:
            measured = (
                ""
                if epoch.validation_clean is None
                else f", held out {epoch.validation_clean:.1%} clean and {epoch.validation_noisy:.1%} noisy"
            )
            progress.note(
                f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.1%}{measured} "
                f"({time.monotonic() - start:.0f} s)"
            )
            progress.advance(1)

        return train_model(ready, observe=observe, warn=progress.note)


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
    from orchestrator.estimate import estimate
    from orchestrator.resolve import resolve

    loaded = load(spec, overrides, run, limit)
    resolved = resolve(loaded)
    cost, planned = estimate(resolved), resolved.plan
    values = {
        "run": loaded.store.run,
        "images": planned.images,
        "shards": planned.shards,
        "shard_size": planned.shard_size,
        "selection_draws": loaded.sampling.selection_draws,
        "draws": loaded.sampling.draws,
        "forward_passes": planned.passes,
        "actors": cost.actors,
        "forward_passes_per_s_per_actor": float(f"{cost.passes_per_s:.4g}"),
        "estimated_seconds": round(cost.seconds, 1),
        "estimated_start_seconds": round(cost.start_s, 1),
        "estimated_counting_seconds": round(cost.count_s, 1),
        "estimated_reduce_seconds": round(cost.reduce_s, 1),
        "estimated_bytes": cost.bytes,
        "model_sha256": planned.model_sha256,
        "dataset_sha256": planned.dataset_sha256,
    }
    if as_json:
        click.echo(json.dumps(values))
        return
    for name, value in values.items():
        click.echo(f"{name.replace('_', ' '):32}{value}")
    parts = (("workers' start", cost.start_s), ("counting", cost.count_s), ("reduce", cost.reduce_s))
    click.echo(f"{'time':32}{time_text(cost.seconds)}: {', '.join(f'{what} {time_text(s)}' for what, s in parts)}")
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
    from orchestrator.certification import certify_run
    from orchestrator.reported import load_run

    if single_writer:
        overrides = (*overrides, "store.single_writer=true")
    loaded = load(spec, overrides, run, limit)
    result = certify_run(loaded, retry_failed=retry_failed)
    summary = result.reduced.summary
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": result.run,
                    "complete": result.complete,
                    "nothing_to_do": result.nothing_to_do,
                    "shards_counted": result.counted,
                    "shards_given_up": result.given_up,
                    **dataclasses.asdict(summary),
                }
            )
        )
    elif result.nothing_to_do:
        click.echo(f"{'already complete, ' if result.complete else ''}nothing to do: {result.run}")
    else:
        print_curves(load_run(loaded.store.model_copy(update={"run": result.run}).open()))
        click.echo(f"run: {result.run}")
    if result.complete:
        return 0
    for shard, reason in result.given_up.items():
        say(f"shard {shard} was given up: {reason}")
    say(incomplete(summary))
    return EXIT_INCOMPLETE
