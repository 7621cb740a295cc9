"""Commands that read results: status, reduce, report, import-cohen."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import words
from orchestrator.cli.completion import complete_from, complete_runs
from orchestrator.cli.printing import print_attacks, print_curves, print_imported
from orchestrator.cli.shell import EXIT_DAMAGED, EXIT_INCOMPLETE, command, json_option, say
from orchestrator.errors import LogError
from orchestrator.progress import time_text
from workers.store import open_store

if TYPE_CHECKING:
    from stn_core.confidence import Interval


@click.command()
@click.argument("run", shell_complete=complete_runs)
@json_option
@command
def status(run: str, as_json: bool) -> int:
    """Progress, rate, time left and failures of a run, read from its store alone.

    \b
    Example: stn status runs/demo --json
    """
    from orchestrator import api

    found = api.status(run)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
        return 0
    state = "complete" if found.complete else "incomplete"
    click.echo(f"{found.run}: {state}")
    click.echo(
        f"images   {found.counted} of {found.images} counted, {found.failed} failed, "
        f"{found.images - found.counted - found.failed} missing"
        + (f", {found.undecided} undecided" if found.undecided else "")
    )
    click.echo(f"shards   {found.shards_committed} of {found.shards} committed, {len(found.shards_given_up)} given up")
    most = "at most " if found.adaptive else ""
    click.echo(f"passes   {found.passes} of {most}{found.passes_planned}")
    if found.last_commit is not None:
        click.echo(f"last     committed {time_text(max(0.0, time.time() - found.last_commit))} ago")
    if found.images_per_s is not None and not found.complete:
        left = "unknown" if found.seconds_left is None else time_text(found.seconds_left)
        click.echo(f"rate     {found.images_per_s:.1f} images/s, {left} left at that rate")
    for name, shards in found.attacks.items():
        click.echo(f"attack   {name}: {shards} of {found.shards} shards")
    for driver in found.drivers:
        click.echo(f"driver   {driver}")
    for index, reason in found.failures.items():
        click.echo(f"failed   image {index}: {reason}")
    for shard, reason in sorted(found.shards_given_up.items()):
        click.echo(f"given up shard {shard}: {reason}")
    return 0


def increasing(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A callback for radii."""
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
@click.argument("run", shell_complete=complete_runs)
@click.option(
    "--certificate",
    "certificates",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_from(words.CERTIFICATES),
    help=f"One of {', '.join(words.CERTIFICATES)}; repeatable.",
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_from(words.PROTOCOLS),
    help=f"One of {', '.join(words.PROTOCOLS)}; repeatable.",
)
@click.option("--alpha", type=float, help="Failure probability of one image's certificate.")
@click.option("--beta", type=float, help="Failure probability of statements about the whole data set.")
@click.option(
    "--interval",
    type=click.Choice(words.INTERVALS),
    help="How votes bound probabilities; randomised is tighter, by a recorded chance per image.",
)
@click.option("--radii", callback=increasing, metavar="R,R,…", help="Radii at which to report certified accuracy.")
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

    \b
    Example: stn reduce runs/demo --certificate renyi --protocol paper --protocol split --alpha 0.01
    """
    from orchestrator import api
    from orchestrator.reporting.reported import load_run

    result = api.reduce(
        run,
        certificates=certificates,
        protocols=protocols,
        alpha=alpha,
        beta=beta,
        interval=interval,
        radii=radii,
    )
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(result.summary), "curves": result.curves.to_pylist()}))
    else:
        print_curves(load_run(result.store))
    if not result.complete:
        say(result.summary.lacking)
        return EXIT_INCOMPLETE
    return 0


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN …]", shell_complete=complete_runs)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to. Default: the run; with several, here."
)
@click.option("--no-images", is_flag=True, help="Show no images of the data set; it is not even looked for.")
@json_option
@command
def report(runs: tuple[str, ...], out: Path | None, no_images: bool, as_json: bool) -> int:
    """Table, curves.png and a self-contained report.html; several runs, and imported results, on one figure.

    \b
    Example: stn report runs/demo runs/sigma-0.5 --out comparison
    """
    from orchestrator import api
    from orchestrator.importing.imported import curve, radii_beside
    from orchestrator.reporting.run_tables import shown_radii

    shown = api.report(*runs, out=out, images=not no_images)
    radii = shown_radii(shown.runs)
    if as_json:
        values = {
            "written": shown.written,
            "curves": {run.name: run.reduced.curves.to_pylist() for run in shown.runs},
            "imported": [
                {"name": one.name, "unknown": one.unknown, "curve": curve(one, radii_beside(one, radii))}
                for one in shown.imported
            ],
        }
        if shown.attacks:
            values["attacks"] = {one.name: one.attacked.curves.to_pylist() for one in shown.attacks}
        click.echo(json.dumps(values))
    else:
        for run in shown.runs:
            print_curves(run)
        for under in shown.attacks:
            click.echo(f"attacks on {under.name}:")
            print_attacks(under.attacked, under.sandwiches, under.check)
        for one in shown.imported:
            print_imported(one, radii_beside(one, radii))
        for path in shown.written:
            click.echo(f"wrote {path}")
    if not shown.holds:
        say("error: attacks contradict the certificates, see the report")
        return EXIT_DAMAGED
    return 0 if shown.complete else EXIT_INCOMPLETE


def inside(low: float, high: float) -> Callable[[click.Context, click.Parameter, float | None], float | None]:
    """A callback that refuses all but numbers between two, NaN too, which click's own ranges let pass."""

    def check(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
        if value is not None and not low < value < high:
            raise click.BadParameter(f"must lie inside ({low:g}, {high:g}), got {value:g}")
        return value

    return check


@click.command("import-cohen")
@click.argument("files", nargs=-1, required=True, metavar="FILE [FILE …]", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="URI", help="Folder of its own, or s3://bucket/prefix, to write to.")
@click.option("--name", help="What to call the result in reports. Default: the last part of --out.")
@click.option("--sigma", type=float, callback=inside(0, float("inf")), help="Declare the noise, if you know it.")
@click.option("--draws", type=click.IntRange(min=1), metavar="N", help="Declare n, if you know it.")
@click.option("--alpha", type=float, callback=inside(0, 1), help="Declare each image's failure probability.")
@click.option(
    "--norm", type=click.Choice(["l1", "l2", "linf"]), help="Declare the radii's norm; taken to be L2 without."
)
@json_option
@command
def import_cohen(
    files: tuple[Path, ...],
    out: str,
    name: str | None,
    sigma: float | None,
    draws: int | None,
    alpha: float | None,
    norm: str | None,
    as_json: bool,
) -> None:
    """Certificates from a log of Cohen et al.'s certify.py, or one of its kin, for `stn report` to show beside ours.

    FILEs have tab-separated columns idx, label, predict, radius, correct, and maybe more. Several are the parts of one
    result, no image in two of them; import each result by itself. Such a log holds no votes and says neither n nor
    alpha nor sigma: what you declare is shown as declared, not as verified.

    \b
    Example: stn import-cohen sigma_0.50 --out imports/cohen-0.5 --sigma 0.5 --name "Cohen et al., sigma 0.5"
    """
    from orchestrator.importing.cohen_log import read_logs
    from orchestrator.importing.imported import Declared, curve, import_log, keep, radii_beside
    from workers import layout

    store = open_store(out)
    name = out.rstrip("/").rsplit("/", 1)[-1] if name is None else name
    if not name.strip() or not name.isprintable():
        raise click.BadParameter(f"must be a line of text, got {name!r}", param_hint="--name")
    log = read_logs((file.name, _content(file)) for file in files)
    imported = import_log(log, name, Declared(sigma, draws, alpha, norm))
    new = keep(store, imported)
    radii, place = radii_beside(imported, ()), f"{store.uri}/{layout.IMPORTED}"
    if as_json:
        values = {"written": place, "new": new, "notes": imported.notes, "unknown": imported.unknown}
        click.echo(json.dumps({**values, "curve": curve(imported, radii)}))
    else:
        print_imported(imported, radii)
        click.echo(f"wrote {place}" if new else f"{place} has all of it already")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LogError(f"cannot read {file}: {error.strerror}") from error
