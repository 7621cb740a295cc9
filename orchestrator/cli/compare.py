"""The command that holds runs against each other: compare."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import words
from orchestrator.cli.completion import complete_from, complete_runs
from orchestrator.cli.printing import print_comparison
from orchestrator.cli.results import increasing, inside
from orchestrator.cli.shell import EXIT_INCOMPLETE, command, json_option, say
from workers.store import LocalStore


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN [RUN …]", shell_complete=complete_runs)
@click.option(
    "--certificate",
    "certificates",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_from(words.CERTIFICATES),
    help="Only this one; repeatable.",
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_from(words.PROTOCOLS),
    help="Only this one; repeatable.",
)
@click.option(
    "--radii", callback=increasing, metavar="R,R,…", help="Where to compare. Default: wherever some run's table does."
)
@click.option(
    "--level",
    type=float,
    default=0.05,
    show_default=True,
    callback=inside(0, 1),
    help="Chance of a wrong interval, and of any wrong call that runs differ.",
)
@click.option("--common", is_flag=True, help="Compare on the images that all runs have counted, leaving out others.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--latex", is_flag=True, help="Print LaTeX, for the package booktabs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a row for each certificate, radius and run.")
@json_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write compare.png and compare.csv to.")
@command
def compare(
    runs: tuple[str, ...],
    certificates: tuple[str, ...],
    protocols: tuple[str, ...],
    radii: tuple[float, ...] | None,
    level: float,
    common: bool,
    out: Path | None,
    **forms: bool,
) -> int:
    """Hold runs against the first one, on the same images: paired differences with intervals, and McNemar's test.

    The best at each radius is marked, as selection. Every certificate that all runs have under the same protocol is
    compared; `stn reduce` makes others from the same votes.

    \b
    Example: stn compare runs/sweep/sigma-0.25 runs/sweep/sigma-0.5 --radii 0,0.25,0.5 --out comparison
    """
    chosen = [name for name, wanted in forms.items() if wanted]
    if len(chosen) > 1:
        raise click.UsageError("--markdown, --latex, --csv and --json exclude each other: choose one")

    from orchestrator.api import compare as held_against
    from orchestrator.comparing import formats
    from orchestrator.comparing.figure import write_comparison
    from orchestrator.comparing.text import incomplete_text

    comparison = held_against(
        *runs,
        certificates=certificates,
        protocols=protocols,
        radii=radii or (),
        level=level,
        common=common,
    )
    written = () if out is None else write_comparison(LocalStore(out), comparison)
    match chosen:
        case ["markdown"]:
            click.echo(formats.markdown(comparison))
        case ["latex"]:
            click.echo(formats.latex(comparison))
        case ["as_csv"]:
            click.echo(formats.as_csv(comparison), nl=False)
        case ["as_json"]:
            click.echo(formats.as_json(comparison, written))
        case _:
            print_comparison(comparison)
    for path in written:
        say(f"wrote {path}")
    if not comparison.complete:
        for sentence in incomplete_text(comparison):
            say(sentence)
        return EXIT_INCOMPLETE
    return 0
