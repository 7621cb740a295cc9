"""Reports for people: a figure, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment
from matplotlib.figure import Figure
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.plan import Plan
from orchestrator.reduce import Reduced, published, read_certificates
from orchestrator.runs import read_plan
from stn_core.confidence import PROTOCOLS
from stn_core.curves import certified_correct
from workers.store import Store

#: A longer title would squeeze the axes.
_LEGEND_CHARACTERS = 60


@dataclass(frozen=True)
class Steps:
    """Certified accuracy at every radius, not only at those asked for: a function that falls in steps.

    Attributes:
        radius: increasing, from 0, in [0, 1] pixel units; float64 (points,).
        accuracy: certified accuracy from just above the radius before up to this one, (points,).
    """

    radius: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class ReportedRun:
    """A run as reports show it.

    Attributes:
        name: the run's last path component.
        plan: what it is.
        reduced: its view, summary and curves.
        steps: the exact curve of each (certificate, protocol).
    """

    name: str
    plan: Plan
    reduced: Reduced
    steps: Mapping[tuple[str, str], Steps]

    @property
    def title(self) -> str:
        """The name, and INCOMPLETE where it is."""
        summary = self.reduced.summary
        if summary.complete:
            return self.name
        without = [(summary.missing, "missing"), (summary.failed, "failed")]
        lacking = ", ".join(f"{count} {what}" for count, what in without if count)
        return f"{self.name} (INCOMPLETE: {lacking} of {summary.images} images)"


def load_run(store: Store) -> ReportedRun:
    """The run in ``store``, its partial view if it is incomplete. Raises RunError."""
    plan = read_plan(store)
    whole = published(store)
    partial = whole is None
    reduced = whole or published(store, partial=True)
    if reduced is None:
        raise RunError(f"{store.uri} has no certificates yet: run `stn reduce` first")
    name = store.uri.rstrip("/").rsplit("/", 1)[-1]
    return ReportedRun(name, plan, reduced, _steps(read_certificates(store, reduced, partial=partial), plan.images))


def _steps(certificates: pa.Table, images: int) -> dict[tuple[str, str], Steps]:
    """The exact curve of each (certificate, protocol), over ``images`` images."""
    correct = certificates.filter(certificates["correct"])
    lines = certificates.select(["certificate", "protocol"]).group_by(["certificate", "protocol"]).aggregate([])
    found = {}
    for line in lines.to_pylist():
        own = pc.and_(
            pc.equal(correct["certificate"], line["certificate"]), pc.equal(correct["protocol"], line["protocol"])
        )
        radius = correct.filter(own)["radius"].to_numpy()
        steps = np.unique(np.concatenate([[0.0], radius]))
        accuracy = certified_correct(radius, np.ones(len(radius), dtype=bool), steps) / images
        # The last step falls to nothing.
        found[line["certificate"], line["protocol"]] = Steps(np.append(steps, steps[-1]), np.append(accuracy, 0.0))
    return found


def curves_by_line(curves: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """The curve of each (certificate, protocol), in table order."""
    pairs = dict.fromkeys(zip(curves["certificate"].to_pylist(), curves["protocol"].to_pylist(), strict=True))
    return {
        (certificate, protocol): curves.filter(
            pc.and_(pc.equal(curves["certificate"], certificate), pc.equal(curves["protocol"], protocol))
        )
        for certificate, protocol in pairs
    }


def line_name(run: ReportedRun, certificate: str, protocol: str) -> str:
    """A line's name for people; the protocol only where the run has several."""
    name = certificate.replace("_", " ")
    name = name if len(run.reduced.view.protocols) == 1 else f"{name}, {protocol}"
    return name if PROTOCOLS[protocol].rigorous else f"{name} (not a guarantee)"


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal, never rounded up: 0.69999 is 69.9 %."""
    return f"{math.floor(fraction * 1000) / 10:.1f} %"


def figure_png(runs: Sequence[ReportedRun]) -> bytes:
    """Certified accuracy by radius, all lines of all runs, as PNG."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        for (certificate, protocol), steps in run.steps.items():
            label = line_name(run, certificate, protocol)
            if len(runs) > 1 or not run.reduced.summary.complete:
                label = f"{_drawable(run.title)}: {label}"
            axes.step(steps.radius, steps.accuracy, where="pre", label=label)
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


def _drawable(title: str) -> str:
    """A run's title as a legend takes it: no mathematics in dollars, no leading underscore, not too long."""
    text = title if len(title) <= _LEGEND_CHARACTERS else title[: _LEGEND_CHARACTERS - 1] + "…"
    return "run " + text.replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


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
    columns = [line_name(run, *line) for line in lines]
    accuracies = [curve["certified_accuracy"].to_pylist() for curve in lines.values()]
    rows = [
        # As it was asked for, every digit: rounded, a radius could be shown that is larger than the one certified.
        [np.format_float_positional(radius, trim="-"), *(percent(accuracy[i]) for accuracy in accuracies)]
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
        ("accuracy of the majority of votes", percent(summary.majority_correct / summary.images)),
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
