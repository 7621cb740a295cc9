"""Reports for people: a figure for papers, and one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.attacking.figures import attacks_figure
from orchestrator.attacking.under_attack import UnderAttack, load_attacks, section
from orchestrator.importing.imported import Imported, radii_beside
from orchestrator.importing.text import imported_facts, imported_table
from orchestrator.reporting.drawing import figure_png, learning_png, png, training_text
from orchestrator.reporting.envelope import envelopes
from orchestrator.reporting.page import details as page_details
from orchestrator.reporting.page.bars import draws_figure, radius_figure
from orchestrator.reporting.page.details import Details, load_details
from orchestrator.reporting.page.figures import Curves, Data
from orchestrator.reporting.page.rendering import render
from orchestrator.reporting.page.reproduce import recipe
from orchestrator.reporting.reported import ReportedRun, find_run, no_certificates
from orchestrator.reporting.run_tables import best_table, facts, population_table, radius_table, shown_radii
from workers import layout
from workers.store import Store
from workers.training import Epoch

#: Of attacked images on a page, all runs together, as 8-bit pixels, and of others: the page stays below 20 MB.
_GALLERY_BYTES = 6_000_000
SPECIMEN_BYTES = 4_000_000


@dataclass(frozen=True)
class Published:
    """What a report shows.

    Attributes:
        runs: that have certificates.
        attacks: of these and of others that have none yet.
        written: keys of the report's objects.
    """

    runs: list[ReportedRun]
    attacks: list[UnderAttack]
    written: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Nothing shown is missing or failed."""
        return all(run.complete for run in self.runs) and all(one.attacked.complete for one in self.attacks)


def report_html(
    runs: Sequence[ReportedRun],
    figure: bytes | None,
    imported: Sequence[Imported] = (),
    attacks: Sequence[UnderAttack] = (),
    details: Sequence[Details] = (),
) -> str:
    """One page with figures, tables and what was certified and attacked; nothing outside it is needed to read it.

    Args:
        runs: that have certificates.
        figure: of certified accuracy, as PNG, for readers without scripts; None where nothing is certified.
        imported: shown beside them.
        attacks: on these runs, and on others that have no certificates.
        details: of those runs that were looked into: without any, the page has no interactive figure.
    """
    shown = shown_radii(runs)
    figures, own = _figures(details, imported, attacks)
    looked = {id(one.run): (one, own[number]) for number, one in enumerate(details)}
    content = {
        "figure": figure and base64.b64encode(figure).decode(),
        "incomplete": not all([*(run.complete for run in runs), *(one.attacked.complete for one in attacks)]),
        "heading": "Certified accuracy" if runs or imported else "Robust accuracy under attack",
        "attacked": bool(attacks),
        "protocols": list(dict.fromkeys(line.protocol for one in details for line in one.steps)),
        "uncertified": [_attacks(one) for one in attacks if one.run is None],
        "best": [best_table(best) for best in envelopes(runs)],
        "runs": [
            {
                "title": run.title,
                "complete": run.complete,
                "facts": facts(run),
                "population": population_table(run),
                "recipe": recipe(run),
                "learning": _learning(run.epochs) if run.epochs else None,
                "attacks": [_attacks(one) for one in attacks if one.run is run],
                "details": _looked_into(*looked[id(run)]) if id(run) in looked else None,
                **radius_table(run),
            }
            for run in runs
        ],
        "imported": [
            {
                "title": one.title,
                "unknown": ", ".join(one.unknown),
                "facts": imported_facts(one, radii_beside(one, shown)),
                **imported_table(one, radii_beside(one, shown)),
            }
            for one in imported
        ],
    }
    return render(content, figures)


def _figures(
    details: Sequence[Details], imported: Sequence[Imported], attacks: Sequence[UnderAttack]
) -> tuple[list[Data], list[dict[str, int | None]]]:
    """All figures of the page, those of certified accuracy first, and where among them each run's own are."""
    if not details and not imported:
        return [], []
    curves = Curves(sum(len(one.steps) + 1 for one in details) + len(imported))
    for number, one in enumerate(details):
        curves.add_run(number, one.run, one.steps)
    for number, one in enumerate(details):
        for under in attacks:
            if under.run is one.run:
                curves.add_attacks(number, one.run, under.attacked, under.sandwiches or ())
    for number, result in enumerate(imported, len(details)):
        curves.add_imported(number, result)
    for one in details:
        curves.add_literature(len(details) + len(imported), one.published)
    figures = curves.figures()
    for figure in figures:
        figure["main"] = True
    own: list[dict[str, int | None]] = []
    for one in details:
        places: dict[str, int | None] = {}
        for name, found in (
            ("radii", radius_figure(one.run, one.breakdown)),
            ("draws", draws_figure(one.run, one.breakdown)),
        ):
            places[name] = None if found is None else len(figures)
            figures += [] if found is None else [found]
        own.append(places)
    return figures, own


def _looked_into(one: Details, places: dict[str, int | None]) -> dict[str, Any]:
    return {**page_details.section(one), "figures": places}


def _learning(epochs: Sequence[Epoch]) -> dict[str, str]:
    return {"text": training_text(epochs), "figure": base64.b64encode(learning_png(epochs)).decode()}


def _attacks(one: UnderAttack) -> dict[str, Any]:
    figure = png(attacks_figure(one.attacked, one.sandwiches or ()))
    return {**section(one), "figure": base64.b64encode(figure).decode()}


def publish(
    stores: Sequence[Store], target: Store, imported: Sequence[Imported] = (), *, most_bytes: int = SPECIMEN_BYTES
) -> Published:
    """Write the figure and the page of some runs, and of what is shown beside them, to ``target``. Raises RunError, as
    for a run that has neither certificates nor attacks.

    Args:
        stores: of the runs.
        target: what to write to.
        imported: shown beside them.
        most_bytes: of images of the runs' data sets, as 8-bit pixels, all runs together; 0: no data set is looked for.
    """
    details: list[Details] = []
    attacks = []
    for store in stores:
        run = find_run(store)
        found = load_attacks(store, run, _GALLERY_BYTES // len(stores))
        if found is not None:
            attacks.append(found)
        elif run is None:
            raise no_certificates(store)
        if run is not None:
            details.append(load_details(store, run, most_bytes // len(stores)))
    runs = [one.run for one in details]
    drawn = [(one.run, one.steps) for one in details]
    figure = figure_png(drawn, imported) if drawn or imported else None
    if figure is not None:
        target.replace(layout.FIGURE, figure)
    target.replace(layout.REPORT, report_html(runs, figure, imported, attacks, details).encode())
    return Published(runs, attacks, (layout.REPORT,) if figure is None else (layout.FIGURE, layout.REPORT))
