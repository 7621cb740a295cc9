"""What several commands print."""

from __future__ import annotations

import re
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def _of_how_many(run: Any) -> list[str]:
    images, whole = run.plan.images, run.plan.dataset_size
    if images == whole:
        return []
    return [f"{images} of the data set's {whole} images: if drawn at random, population columns speak of all of them"]


def print_curves(run: Any) -> None:
    """Certified accuracy by radius, to standard output."""
    from orchestrator.numerals import percent
    from orchestrator.reporting.run_tables import draws_of, guarantee, radius_table, ties

    summary, view = run.reduced.summary, run.reduced.view
    console = _console()
    console.print(Text(f"certified accuracy, {run.title}"))
    console.print(_by_radius(radius_table(run)))
    for sentence in (
        f"{summary.images} images, {summary.failed} failed, {summary.missing} missing; {draws_of(run)}; protocol "
        f"{' and '.join(view.protocols)}, alpha = {view.alpha:g}, {view.interval.replace('_', '-')} intervals",
        f"in brackets: {guarantee(view)}",
        *_of_how_many(run),
        f"draws without a vote (NaN): {summary.invalid_votes}, with a tie: {ties(summary)}",
        f"accuracy of the majority of votes, at no perturbation: {percent(summary.majority_correct / summary.images)}",
    ):
        console.print(sentence, highlight=False)


def print_imported(imported: Any, radii: Any) -> None:
    """Certified accuracy of an imported result at these radii, and what it does not say, to standard output."""
    from orchestrator.importing.text import imported_facts, imported_table

    console = _console()
    console.print(Text(f"certified accuracy, {imported.title}"))
    console.print(_by_radius(imported_table(imported, radii)))
    for name, value in imported_facts(imported, radii):
        if value.strip("—, "):
            console.print(Text(f"{name}: {value}"))
    console.print(Text(f"what no such log says, and stays unknown: {', '.join(imported.unknown)}"))


def _by_radius(content: dict[str, Any]) -> Table:
    """A table of ``radius_table`` or ``imported_table``."""
    table = Table()
    table.add_column("radius", justify="right")
    for column in content["columns"]:
        table.add_column(Text(column), justify="right")
    *at_radii, abstaining = content["rows"]
    for row in at_radii:
        table.add_row(*row)
    table.add_section()
    table.add_row(*abstaining)
    return table


def print_best(runs: Any) -> None:
    """Certified accuracy of several runs by radius, and the best, to standard output."""
    from orchestrator.reporting.envelope import envelopes
    from orchestrator.reporting.run_tables import best_table, radius_table

    console = _console()
    found = {best.line: best for best in envelopes(runs)}
    for line in dict.fromkeys(line for run in runs for line in run.lines):
        table = Table()
        table.add_column("radius", justify="right")
        having = [run for run in runs if line in run.lines]
        for run in having:
            table.add_column(run.title, justify="right")
        columns = [
            {row[0]: row[1 + list(run.lines).index(line)] for row in radius_table(run)["rows"]} for run in having
        ]
        best = found.get(line)
        if best is not None:
            table.add_column("best (selection)", justify="right")
            columns.append({radius: cell for radius, cell, _ in best_table(best)["rows"]})
        for radius in columns[0]:
            table.add_row(radius, *(column.get(radius, "") for column in columns))
        console.print(Text(f"certified accuracy, {line.certificate.replace('_', ' ')}, {line.protocol}"))
        console.print(table)


def print_comparison(comparison: Any, console: Console | None = None) -> None:
    """Runs beside the first of them, to standard output; readable in 80 columns."""
    from orchestrator.comparing import text

    console = console or _console()
    for sentence in text.incomplete_text(comparison):
        console.print(Text(sentence, style="red"))
    for compared in comparison.lines:
        _print_narrow(console, text.line_table(comparison, compared, text.TERMINAL))
    for sentence in text.verdicts(comparison):
        console.print(Text(sentence, style="bold"))
    for sentence in text.notes(comparison, "*"):
        console.print(Text(sentence))
    if comparison.settings:
        console.print()
        _print_narrow(console, text.settings_table(comparison, text.TERMINAL))


def _print_narrow(console: Console, content: Any) -> None:
    """A table in which, where there is no room, the last column of words is broken and no figure."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    words = len(content.columns) - content.right
    for number, column in enumerate(content.columns):
        figure = number >= words
        heading = re.sub(r" (?=\()|(?<=,) ", "\n", column) if figure else column
        justify: Any = "right" if figure else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=number != words - 1, overflow="fold")
    for row in content.rows:
        table.add_row(*map(Text, row))
    console.print(Text(content.title))
    console.print(table)
    console.print()


def print_attacks(attacked: Any, sandwiches: Any, check: Any) -> None:
    """Robust accuracy by size, what attacks made of the certificates, and the masking check, to standard output."""
    from orchestrator.attacking.text import attack_tables, explained, masking_table, masking_text, sandwich_text, title

    console = _console()
    console.print(Text(title(attacked), style="" if attacked.complete else "red"))
    for content in attack_tables(attacked):
        table = Table()
        table.add_column(f"size, {content['norm']}", justify="right")
        for column in content["columns"]:
            table.add_column(Text(column), justify="right")
        for row in content["rows"]:
            table.add_row(*row)
        console.print(table)
    console.print(Text(explained(attacked)))
    if sandwiches is None:
        console.print("certificates: none yet, so nothing to hold against; `stn certify` makes them", highlight=False)
    for found in sandwiches or ():
        for sentence in sandwich_text(found):
            console.print(Text(sentence, style="" if found.holds else "red"))
    if check:
        table = Table()
        content = masking_table(check)
        for column in content["columns"]:
            table.add_column(column)
        for row in content["rows"]:
            table.add_row(*row)
        console.print(table)
    console.print(Text(masking_text(check), style="red" if any(one.beats for one in check) else ""))


def print_robust(rows: Any, checks: Any) -> None:
    """A figure's robust accuracy by size of attack, and each network's masking check, to standard output."""
    from orchestrator.attacking.text import masking_text
    from orchestrator.numerals import NORMS, percent, percent_up, radius_text
    from orchestrator.paper.attacked import curves_of

    console = _console()
    for norm in (norm for norm in NORMS if any(row.norm == norm for row in rows)):
        own = [row for row in rows if row.norm == norm]
        curves = curves_of(own)
        table = Table()
        table.add_column(f"size, {NORMS[norm]}", justify="right")
        for label in curves:
            table.add_column(Text(label), justify="right")
        cells = [
            {row.size: f"{percent(row.robust_accuracy)} ({percent_up(row.broken / row.images)})" for row in curve}
            for curve in curves.values()
        ]
        for size in sorted({row.size for row in own}):
            table.add_row(radius_text(size), *(column.get(size, "") for column in cells))
        console.print(table)
    console.print(
        "robust: the label is answered at all sizes up to this one; in brackets: another class is, at one of them",
        highlight=False,
    )
    for label, check in checks.items():
        style = "red" if any(one.beats for one in check) else ""
        console.print(Text(f"{label}: {masking_text(check)}", style=style))


def print_table1(rows: Any, spec: Any) -> None:
    """Table 1 to standard output."""
    from orchestrator.numerals import percent
    from orchestrator.paper.certified import largest_radius
    from orchestrator.reporting.literature import PAPER_DRAWS

    table = Table()
    for name in ("method", "source", "certificate"):
        table.add_column(name)
    for name in ("n", "certified", "natural"):
        table.add_column(name, justify="right")
    for row in rows:
        certified = percent(row.certified)
        if row.guaranteed is not None:
            certified += f" ({percent(row.guaranteed)})"
        table.add_row(row.name, row.source, row.certificate, str(row.draws or ""), certified, percent(row.natural))
    console = _console()
    radius, sigma, alpha = spec.radii[-1], spec.noise.sigma, spec.confidence.alpha
    console.print(
        Text(f"certified accuracy at L2 radius {radius:g}; alpha = {alpha:g}, sigma = {sigma:g} where none is named")
    )
    console.print(table)
    most = largest_radius(PAPER_DRAWS, alpha) * sigma
    for sentence in (
        "in brackets: at least that fraction is truly certified, see docs/statistics.md; percentages are rounded down",
        f"n = {PAPER_DRAWS} votes and a Clopper-Pearson interval allow no Renyi radius above {most:.3f}; the authors' "
        "interval does, and is wrong far more often than it says: see docs/reproduction.md",
    ):
        console.print(sentence, highlight=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which commands tell as of anything else they print; rich would exit with 1, a bug."""
        raise


def _console() -> Console:
    # Piped, a table is not cut to the width of a terminal that is not there.
    return _Console() if sys.stdout.isatty() else _Console(width=160)
