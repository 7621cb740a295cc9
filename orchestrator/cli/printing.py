"""What several commands print."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def incomplete(summary: Any) -> str:
    """What an incomplete run lacks, in one line."""
    return (
        f"incomplete: of {summary.images} images {summary.counted} counted, {summary.failed} failed, "
        f"{summary.missing} missing; failed and missing ones count as not certified"
    )


def _of_how_many(run: Any) -> list[str]:
    images, whole = run.plan.images, run.plan.dataset_size
    if images == whole:
        return []
    return [f"{images} of the data set's {whole} images: if drawn at random, population columns speak of all of them"]


def print_curves(run: Any) -> None:
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
