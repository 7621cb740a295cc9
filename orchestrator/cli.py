"""`stn`: the command line. Each command is a thin shell over one function."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.errors import SpecError, StnError, TrainingError, WorkersError
from orchestrator.progress import meter, time_text
from orchestrator.spec import Spec, load_spec
from stn_core.certificates import CERTIFICATES
from stn_core.confidence import PROTOCOLS, Interval
from workers.store import LocalStore, StoreError, open_store

EXIT_BUG, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stn")
@click.option("-v", "--verbose", is_flag=True, help="Log every event to standard error.")
def main(verbose: bool) -> None:
    """Certify a network's robustness from its votes under noise: train, count, reduce, report.

    Exit codes: 0 complete; 2 bad usage or spec; 3 finished incomplete; 130 interrupted. After 3 and 130 the same
    command goes on with what is missing.
    """
    # The user's own modules (model.name: package.module:callable) are looked for where the command is run.
    sys.path.append(os.getcwd())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)


def _command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Expected errors become one line and an exit code; nothing becomes a traceback unless asked for."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = function(**arguments) or 0
        except (WorkersError, TrainingError) as error:
            _say(f"error: {error}")
            code = EXIT_INCOMPLETE
        except (StnError, StoreError) as error:
            _say(f"error: {error}")
            code = EXIT_USAGE
        except KeyboardInterrupt:
            _say("interrupted; what was committed is kept, and the same command continues from there")
            code = EXIT_INTERRUPTED
        except click.ClickException:
            raise
        except Exception as error:
            if os.environ.get("STN_TRACEBACK"):
                raise
            _say(f"internal error: {type(error).__name__}: {error} (STN_TRACEBACK=1 shows where)")
            code = EXIT_BUG
        sys.exit(code)

    return run


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    click.echo(text, err=True)


_spec_argument = click.argument("spec", type=click.Path(path_type=Path))
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of the spec; repeatable."
)
_run_option = click.option(
    "--run",
    metavar="URI",
    help="Where the run is kept, a folder or s3://bucket/prefix, instead of the spec's store.run.",
)
_limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N images, as a run of its own: '-limit-N' is added to the spec's store.run.",
)


def _use_cluster(_: click.Context, parameter: click.Parameter, value: str | None) -> None:
    # Through the environment, since Ray decides about authentication when it is imported.
    if value is not None:
        os.environ["RAY_ADDRESS"] = value


_address_option = click.option(
    "--address",
    metavar="ADDRESS",
    expose_value=False,
    callback=_use_cluster,
    help="Ray cluster. Default: $RAY_ADDRESS, or one embedded in this process.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _load(spec: Path, overrides: Sequence[str], run: str | None = None, limit: int | None = None) -> Spec:
    changes = list(overrides)
    if limit is not None:
        changes.append(f"dataset.limit={limit}")
        if run is None:
            run = f"{load_spec(spec, overrides).store.run.rstrip('/')}-limit-{limit}"
    if run is not None and not run:
        raise SpecError("--run is empty: name the folder where the run is kept")
    loaded = load_spec(spec, changes)
    return loaded if run is None else loaded.model_copy(update={"store": loaded.store.model_copy(update={"run": run})})


@main.command()
@_spec_argument
@_set_option
@_address_option
@_json_option
@_command
def train(spec: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the spec's model and write its checkpoint; run it again to resume.

    Example: stn train examples/demo.yaml
    """
    from orchestrator.train import train_model

    loaded = _load(spec, overrides)
    if loaded.training is None or loaded.model.checkpoint is None:
        missing = "training" if loaded.training is None else "model.checkpoint"
        raise SpecError(f"{spec}: {missing} is missing, and `stn train` needs it; see examples/demo.yaml")
    epochs = loaded.training.epochs
    start = time.monotonic()
    with meter("training", epochs, "epochs") as progress:

        def observe(epoch: Any) -> None:
            progress.note(f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f} ({time.monotonic() - start:.0f} s)")
            progress.advance(1)

        trained = train_model(loaded, observe=observe)
    if as_json:
        epoch = None if trained.epoch is None else dataclasses.asdict(trained.epoch)
        click.echo(json.dumps({"checkpoint": str(trained.checkpoint), "epoch": epoch}))
    elif trained.epoch is None:
        click.echo(f"already trained: {trained.checkpoint}")
    else:
        click.echo(f"trained {trained.epoch.epoch} epochs, loss {trained.epoch.loss:.4f}: {trained.checkpoint}")


@main.command()
@_spec_argument
@_run_option
@_set_option
@_limit_option
@_json_option
@_command
def plan(spec: Path, run: str | None, overrides: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """Show what `stn certify` would do, and how long it would take here. Writes nothing.

    Example: stn plan examples/demo.yaml --set sampling.draws=1000
    """
    from orchestrator.estimate import estimate
    from orchestrator.resolve import resolve

    loaded = _load(spec, overrides, run, limit)
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
        "forward_passes_per_s_per_actor": round(cost.passes_per_s, 1),
        "estimated_seconds": round(cost.seconds, 1),
        "estimated_bytes": cost.bytes,
        "model_sha256": planned.model_sha256,
        "dataset_sha256": planned.dataset_sha256,
    }
    if as_json:
        click.echo(json.dumps(values))
        return
    for name, value in values.items():
        click.echo(f"{name.replace('_', ' '):32}{value}")
    click.echo(f"{'time, workers started':32}{time_text(cost.seconds)} (from a probe of about 2 s on this machine)")


@main.command()
@_spec_argument
@_run_option
@_set_option
@_limit_option
@click.option(
    "--single-writer",
    is_flag=True,
    help="Promise that nobody else writes to this run: for object stores without conditional writes.",
)
@_address_option
@_json_option
@_command
def certify(
    spec: Path, run: str | None, overrides: tuple[str, ...], limit: int | None, single_writer: bool, as_json: bool
) -> int:
    """Plan, count and reduce. Run it again to resume; when complete it does nothing and says so.

    Example: stn certify examples/demo.yaml --set noise.sigma=0.5 --run runs/sigma-0.5
    """
    from orchestrator.certify import certify_run
    from orchestrator.reported import load_run

    if single_writer:
        overrides = (*overrides, "store.single_writer=true")
    loaded = _load(spec, overrides, run, limit)
    result = certify_run(loaded)
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
        _print_curves(load_run(loaded.store.model_copy(update={"run": result.run}).open()))
        click.echo(f"run: {result.run}")
    if result.complete:
        return 0
    for shard, reason in result.given_up.items():
        _say(f"shard {shard} was given up: {reason}")
    _say(_incomplete(summary))
    return EXIT_INCOMPLETE


def _incomplete(summary: Any) -> str:
    return (
        f"incomplete: of {summary.images} images {summary.counted} counted, {summary.failed} failed, "
        f"{summary.missing} missing; failed and missing ones count as not certified"
    )


@main.command()
@click.argument("run")
@_json_option
@_command
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


@main.command()
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
@_json_option
@_command
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
        _print_curves(load_run(store))
    if not reduced.summary.complete:
        summary = reduced.summary
        _say(_incomplete(summary))
        return EXIT_INCOMPLETE
    return 0


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN …]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to. Default: the run; with several, here."
)
@_json_option
@_command
def report(runs: tuple[str, ...], out: Path | None, as_json: bool) -> int:
    """Table, curves.png and a self-contained report.html; several runs on one figure.

    Example: stn report runs/demo runs/sigma-0.5 --out comparison
    """
    from orchestrator.report import figure_png, load_steps, report_html
    from orchestrator.reported import load_run
    from workers import layout

    stores = [open_store(run) for run in dict.fromkeys(runs)]
    loaded = [load_run(store) for store in stores]
    target = LocalStore(out) if out is not None else stores[0] if len(runs) == 1 else LocalStore(Path())
    figure = figure_png([(run, load_steps(store, run)) for store, run in zip(stores, loaded, strict=True)])
    target.replace(layout.FIGURE, figure)
    target.replace(layout.REPORT, report_html(loaded, figure).encode())
    written = [f"{target.uri}/{name}" for name in (layout.FIGURE, layout.REPORT)]
    if as_json:
        click.echo(
            json.dumps({"written": written, "curves": {run.name: run.reduced.curves.to_pylist() for run in loaded}})
        )
    else:
        for run in loaded:
            _print_curves(run)
        for path in written:
            click.echo(f"wrote {path}")
    return 0 if all(run.reduced.summary.complete for run in loaded) else EXIT_INCOMPLETE


def _of_how_many(run: Any) -> list[str]:
    images, whole = run.plan.images, run.plan.dataset_size
    if images == whole:
        return []
    return [f"{images} of the data set's {whole} images: if drawn at random, population columns speak of all of them"]


def _print_curves(run: Any) -> None:
    """Certified accuracy by radius, to standard output."""
    from orchestrator.report import guarantee, percent, radius_table, ties

    summary, view = run.reduced.summary, run.reduced.view
    content = radius_table(run)
    table = Table()
    table.add_column("radius", justify="right")
    for column in content["columns"]:
        table.add_column(column, justify="right")
    *at_radii, abstaining = content["rows"]
    for row in at_radii:
        table.add_row(*row)
    table.add_section()
    table.add_row(*abstaining)
    # Piped, a table is not cut to the width of a terminal that is not there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(Text(f"certified accuracy, {run.title}"))
    console.print(table)
    for sentence in (
        f"{summary.images} images, {summary.failed} failed, {summary.missing} missing; protocol "
        f"{' and '.join(view.protocols)}, alpha = {view.alpha:g}, {view.interval.replace('_', '-')} intervals",
        f"in brackets: {guarantee(view)}",
        *_of_how_many(run),
        f"draws without a vote (NaN): {summary.invalid_votes}, with a tie: {ties(summary)}",
        f"accuracy of the majority of votes, at no perturbation: {percent(summary.majority_correct / summary.images)}",
    ):
        console.print(sentence, highlight=False)


if __name__ == "__main__":
    main()
