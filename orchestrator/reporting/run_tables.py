"""What reports say of a run in tables and lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.numerals import percent, percent_up, radius_text
from orchestrator.reducing.tables import Summary, View
from orchestrator.reporting.envelope import Envelope
from orchestrator.reporting.reported import ReportedRun
from orchestrator.reporting.steps import line_name
from stn_core.certificates import CERTIFICATES
from stn_core.confidence import PROTOCOLS


def shown_radii(runs: Sequence[ReportedRun]) -> list[float]:
    """All radii that some run's table has."""
    return sorted({radius for run in runs for radius in run.reduced.view.radii})


def radius_table(run: ReportedRun) -> dict[str, Any]:
    """Certified accuracy by radius: ``columns`` (names) and ``rows`` (radius, then one cell per column), the guaranteed
    one in brackets; the last row says how many images abstain."""
    lines = run.lines
    cells = [
        [_cell(*pair) for pair in zip(*(curve[name].to_pylist() for name in _ACCURACIES), strict=True)]
        for curve in lines.values()
    ]
    rows = [[radius_text(radius), *(column[i] for column in cells)] for i, radius in enumerate(run.reduced.view.radii)]
    rows.append(["abstain", *(str(curve["abstained"][0].as_py()) for curve in lines.values())])
    return {"columns": [line_name(run, line) for line in lines], "rows": rows}


_ACCURACIES = ("certified_accuracy", "guaranteed_accuracy")


def population_table(run: ReportedRun) -> dict[str, Any] | None:
    """Certified accuracy on the whole data set, where the run covers part of it; as ``radius_table``."""
    lines = run.lines
    if run.plan.images >= run.plan.dataset_size or run.reduced.summary.missing:
        return None
    names = ("population_lower", "population_upper", "population_guaranteed")
    cells = [
        [
            f"{percent(lower)} to {percent_up(upper)}" + ("" if least is None else f" ({percent(least)})")
            for lower, upper, least in zip(*(curve[name].to_pylist() for name in names), strict=True)
        ]
        for curve in lines.values()
    ]
    rows = [[radius_text(radius), *(column[i] for column in cells)] for i, radius in enumerate(run.reduced.view.radii)]
    columns = [line_name(run, line) for line in lines]
    return {
        "columns": columns,
        "rows": rows,
        "images": run.plan.images,
        "whole": run.plan.dataset_size,
        "beta": run.reduced.view.beta,
    }


def best_table(best: Envelope) -> dict[str, Any]:
    """The best run at each radius; as ``radius_table``, with a ``title``."""
    rows = [
        [radius_text(point.radius), _cell(point.certified_accuracy, point.guaranteed_accuracy), point.run]
        for point in best.points
    ]
    return {
        "title": f"{best.line.certificate.replace('_', ' ')}, {best.line.protocol}",
        "columns": ["best", "of run"],
        "rows": rows,
        "runs": len(best.runs),
        "beta": best.beta,
    }


def _cell(accuracy: float, guaranteed: float | None) -> str:
    return percent(accuracy) if guaranteed is None else f"{percent(accuracy)} ({percent(guaranteed)})"


def facts(run: ReportedRun) -> list[tuple[str, str]]:
    """What exactly was certified, as (name, value)."""
    plan, spec, summary, view = run.plan, run.plan.spec, run.reduced.summary, run.reduced.view
    noise = ", ".join(
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in spec.noise.model_dump(exclude={"kind"}).items()
    )
    every = f", 1 image in {spec.dataset.every}" if spec.dataset.every > 1 else ""
    return [
        ("images", f"{summary.images}: {summary.counted} counted, {summary.failed} failed, {summary.missing} missing"),
        ("accuracy of the majority of votes", percent(summary.majority_correct / summary.images)),
        ("draws without a vote (NaN), with a tie", f"{summary.invalid_votes}, {ties(summary)}"),
        ("data set", f"{spec.dataset.kind}{every}, sha-256 {plan.dataset_sha256[:16]}…"),
        ("model", f"{spec.model.name}, weights sha-256 {plan.model_sha256[:16]}…"),
        ("noise", f"{spec.noise.kind}, {noise}, seed {spec.sampling.seed}"),
        ("draws", f"{draws_of(run)} for estimation, n0 = {spec.sampling.selection_draws} for selection"),
        (
            "confidence",
            f"alpha = {view.alpha:g} per image; {'; '.join(f'{p}: {PROTOCOLS[p].claim}' for p in view.protocols)}",
        ),
        ("intervals", view.interval.replace("_", "-")),
        ("in brackets", guarantee(view)),
        ("certificates", "; ".join(f"{name}: {CERTIFICATES[name].source}" for name in view.certificates)),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(plan.versions.items()))),
    ]


def guarantee(view: View) -> str:
    """What the figures in brackets are."""
    guaranteed = [line for line in view.lines if line.guaranteed]
    if not guaranteed:
        return "nothing: no protocol here guarantees anything"
    if not any(line.alpha(view.alpha) for line in guaranteed):
        return "the same, for certain: all noise was enumerated"
    return (
        f"truly certified, at least, with probability 1 - {view.beta:g} over all noise, the whole table at once "
        "(settings chosen before looking)"
    )


def draws_of(run: ReportedRun) -> str:
    """How many estimation draws the images have."""
    sampling, summary, goal = run.plan.spec.sampling, run.reduced.summary, run.reduced.goal
    draws = goal.get("draws", sampling.draws)
    if goal.get("mode", "fixed") == "fixed":
        return f"n = {draws}"
    if summary.passes is None or not summary.counted:
        return f"n at most {draws}, by the votes"
    mean = summary.passes / summary.counted - sampling.selection_draws
    return f"n by the votes, at most {draws}, {mean:.1f} on average"


def ties(summary: Summary) -> str:
    """Draws with a tie, for people."""
    return "unknown (counted by an older version)" if summary.ties is None else str(summary.ties)
