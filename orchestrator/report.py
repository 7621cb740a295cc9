"""Reports for people: a figure, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment
from matplotlib.figure import Figure

from orchestrator.errors import RunError
from orchestrator.plan import Plan
from orchestrator.reduce import Reduced, published, read_plan
from stn_core.confidence import PROTOCOLS
from workers.store import Store


@dataclass(frozen=True)
class ReportedRun:
    """A run as reports show it.

    Attributes:
        name: the run's last path component.
        plan: what it is.
        reduced: its certificates and curves.
    """

    name: str
    plan: Plan
    reduced: Reduced

    @property
    def title(self) -> str:
        """The name, and INCOMPLETE where it is."""
        summary = self.reduced.summary
        if summary.complete:
            return self.name
        return f"{self.name} (INCOMPLETE: {summary.missing} of {summary.images} images missing)"


def load_run(store: Store) -> ReportedRun:
    """The run in ``store``, its partial view if it is incomplete. Raises RunError."""
    plan = read_plan(store)
    reduced = published(store) or published(store, partial=True)
    if reduced is None:
        raise RunError(f"{store.uri} has no certificates yet: run `stn reduce` first")
    return ReportedRun(store.uri.rstrip("/").rsplit("/", 1)[-1], plan, reduced)


def curves_by_line(curves: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """The curve of each (certificate, protocol), in table order."""
    pairs = dict.fromkeys(zip(curves["certificate"].to_pylist(), curves["protocol"].to_pylist(), strict=True))
    return {
        (certificate, protocol): curves.filter(
            pc.and_(pc.equal(curves["certificate"], certificate), pc.equal(curves["protocol"], protocol))
        )
        for certificate, protocol in pairs
    }


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal, never rounded up: 0.69999 is 69.9 %."""
    # The nudge undoes the error of a decimal such as 0.29 * 1000 = 289.99999999999994.
    return f"{math.floor(fraction * 1000 + 1e-9) / 10:.1f} %"


def figure_png(runs: Sequence[ReportedRun]) -> bytes:
    """Certified accuracy by radius, all lines of all runs, as PNG."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        for (certificate, protocol), curve in curves_by_line(run.reduced.curves).items():
            label = f"{certificate.replace('_', ' ')}, {protocol}"
            if len(runs) > 1 or not run.reduced.summary.complete:
                label = f"{run.title}: {label}"
            if not PROTOCOLS[protocol].rigorous:
                label += " (not a guarantee)"
            axes.plot(curve["radius"].to_numpy(), curve["certified_accuracy"].to_numpy(), marker=".", label=label)
    norms = {norm for run in runs for norm in run.reduced.curves["norm"].to_pylist()}
    axes.set_xlabel(f"radius ({' and '.join(sorted(norms)).upper()}, pixels in [0, 1])")
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def report_html(runs: Sequence[ReportedRun], figure: bytes) -> str:
    """One page with figure, tables and what was certified; nothing outside it is needed to read it."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("orchestrator").joinpath("report.html.j2").read_text()
    )
    return template.render(
        figure=base64.b64encode(figure).decode(),
        runs=[
            {"title": run.title, "complete": run.reduced.summary.complete, "facts": facts(run), **radius_table(run)}
            for run in runs
        ],
    )


def radius_table(run: ReportedRun) -> dict[str, Any]:
    """Certified accuracy by radius: ``columns`` (names) and ``rows`` (radius, then one cell per column)."""
    lines = curves_by_line(run.reduced.curves)
    columns = [f"{certificate}, {protocol}" for certificate, protocol in lines]
    accuracies = [curve["certified_accuracy"].to_pylist() for curve in lines.values()]
    rows = [
        [f"{radius:g}", *(percent(accuracy[i]) for accuracy in accuracies)]
        for i, radius in enumerate(run.reduced.view.radii)
    ]
    return {"columns": columns, "rows": rows}


def facts(run: ReportedRun) -> list[tuple[str, str]]:
    """What exactly was certified, as (name, value)."""
    plan, spec, summary, view = run.plan, run.plan.spec, run.reduced.summary, run.reduced.view
    abstained = ", ".join(
        f"{certificate} ({protocol}) {curve['abstained'][0].as_py()}"
        for (certificate, protocol), curve in curves_by_line(run.reduced.curves).items()
    )
    return [
        ("images", f"{summary.images}: {summary.counted} counted, {summary.failed} failed, {summary.missing} missing"),
        ("abstained", abstained),
        ("natural accuracy, by majority of the votes", percent(summary.majority_correct / summary.images)),
        ("invalid votes (NaN)", str(summary.invalid_votes)),
        ("data set", f"{spec.dataset.kind}, every {spec.dataset.every}, sha-256 {plan.dataset_sha256[:16]}…"),
        ("model", f"{spec.model.name}, weights sha-256 {plan.model_sha256[:16]}…"),
        ("noise", f"{spec.noise.kind}, sigma = {spec.noise.sigma:g}, seed {spec.sampling.seed}"),
        ("draws", f"n = {spec.sampling.draws} for estimation, n0 = {spec.sampling.selection_draws} for selection"),
        (
            "confidence",
            f"alpha = {view.alpha:g} per image; {'; '.join(f'{p}: {PROTOCOLS[p].claim}' for p in view.protocols)}",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(plan.versions.items()))),
    ]
