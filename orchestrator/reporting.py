"""Reports for people: a figure, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from orchestrator.attack_figures import attacks_figure
from orchestrator.envelope import Envelope, envelopes
from orchestrator.imported import Imported, radii_beside
from orchestrator.imported_text import imported_facts, imported_table
from orchestrator.numerals import NORMS, percent, percent_up, radius_text
from orchestrator.reported import ReportedRun, find_run, no_certificates
from orchestrator.tables import Line, Summary, View, published, read_certificates
from orchestrator.under_attack import UnderAttack, load_attacks, section
from stn_core.certificates import CERTIFICATES
from stn_core.confidence import PROTOCOLS
from stn_core.curves import certified_correct
from workers import layout
from workers.store import Store
from workers.training import Epoch

#: More points than that are no finer a curve to the eye.
_MOST_STEPS = 4000

#: A longer title would squeeze the axes.
_LEGEND_CHARACTERS = 60

#: Of attacked images on a page, all runs together, as 8-bit pixels: the page stays below 10 MB.
_GALLERY_BYTES = 6_000_000


@dataclass(frozen=True)
class Steps:
    """Certified accuracy at every radius, not only at those asked for: a function that falls in steps.

    Attributes:
        radius: increasing, from 0, in [0, 1] pixel units; float64 (points,).
        accuracy: certified accuracy from just above the radius before up to this one, (points,).
    """

    radius: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def load_steps(store: Store, run: ReportedRun) -> dict[Line, Steps]:
    """The exact curve of each line of ``run``, which is in ``store``. Raises RunError."""
    columns = ["radius", "correct", "certificate", "protocol"]
    partial = published(store) is None
    certificates = read_certificates(store, run.reduced, columns, partial=partial)
    correct = certificates.filter(certificates["correct"])
    found = {}
    for line in run.reduced.view.lines:
        own = pc.and_(pc.equal(correct["certificate"], line.certificate), pc.equal(correct["protocol"], line.protocol))
        found[line] = _steps(correct.filter(own)["radius"].to_numpy(), run.plan.images)
    return found


def _steps(radius: NDArray[np.float64], images: int) -> Steps:
    """The curve of the given radii, over ``images`` images."""
    steps = np.unique(np.concatenate([[0.0], radius]))
    # More than can be seen: of each stretch the lowest value, at its right end, is drawn.
    steps = np.unique(np.append(steps[:: -(-len(steps) // _MOST_STEPS)], steps[-1]))
    accuracy = certified_correct(radius, np.ones(len(radius), dtype=bool), steps) / images
    # The last step falls to nothing.
    return Steps(np.append(steps, steps[-1]), np.append(accuracy, 0.0))


def line_name(run: ReportedRun, line: Line) -> str:
    """A line's name for people; the protocol only where the run has several, the norm likewise."""
    view = run.reduced.view
    name = line.certificate.replace("_", " ")
    if len({CERTIFICATES[certificate].norm for certificate in view.certificates}) > 1:
        name = f"{name} [{NORMS[CERTIFICATES[line.certificate].norm]}]"
    name = name if len(view.protocols) == 1 else f"{name}, {line.protocol}"
    return name if line.guaranteed else f"{name} (not a guarantee)"


def figure_png(runs: Sequence[tuple[ReportedRun, Mapping[Line, Steps]]], imported: Sequence[Imported] = ()) -> bytes:
    """Certified accuracy by radius, all lines of all runs and, dashed, what was imported; one panel for each norm, as
    PNG."""
    drawn = [CERTIFICATES[line.certificate].norm for _, steps in runs for line in steps]
    norms = list(dict.fromkeys([*drawn, *(one.norm for one in imported)]))
    figure = Figure(figsize=(8, 5 * len(norms)), dpi=150, layout="constrained")
    for norm, axes in zip(norms, figure.subplots(len(norms), squeeze=False)[:, 0], strict=True):
        for run, steps in runs:
            for line, curve in steps.items():
                if CERTIFICATES[line.certificate].norm == norm:
                    label = line_name(run, line)
                    if len(runs) > 1 or not run.complete:
                        label = f"{_drawable(run.title)}: {label}"
                    axes.step(curve.radius, curve.accuracy, where="pre", label=label)
        for one in imported:
            if one.norm == norm:
                curve = _steps(one.correct_radii, one.images)
                axes.step(
                    curve.radius, curve.accuracy, where="pre", linestyle="--", label=f"{_drawable(one.name)} (imported)"
                )
        dress(axes, norm)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure's file."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def dress(axes: Axes, norm: str) -> None:
    """What all figures of certified accuracy by radius have in common."""
    axes.set_xlabel(f"radius ({NORMS[norm]}, pixels in [0, 1])")
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()


def learning_png(epochs: Sequence[Epoch]) -> bytes:
    """Loss and accuracy by epoch, as PNG."""
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [epoch.epoch for epoch in epochs]
    left.plot(numbers, [epoch.loss for epoch in epochs], marker=".", label="training loss")
    right.plot(numbers, [epoch.accuracy for epoch in epochs], marker=".", label="training")
    for name, label in (("validation_clean", "held out, clean"), ("validation_noisy", "held out, noisy")):
        measured = [getattr(epoch, name) for epoch in epochs]
        if None not in measured:
            right.plot(numbers, measured, marker=".", label=label)
    left.set_ylabel("loss")
    right.set_ylabel("accuracy")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return png(figure)


def training_text(epochs: Sequence[Epoch]) -> str:
    """What training came to, in a line."""
    last = epochs[-1]
    seconds = sum(epoch.wall_s for epoch in epochs)
    text = f"Trained for {last.epoch} epochs, {seconds:.0f} s: loss {last.loss:.4f}, "
    text += f"accuracy {percent(last.accuracy)} on the training images as the method shows them"
    if last.validation_clean is not None and last.validation_noisy is not None:
        text += f"; on held-out ones {percent(last.validation_clean)}, {percent(last.validation_noisy)} under noise"
    return text + "."


def _drawable(title: str) -> str:
    """A run's title as a legend takes it: no mathematics in dollars, no leading underscore, not too long."""
    text = title if len(title) <= _LEGEND_CHARACTERS else title[: _LEGEND_CHARACTERS - 1] + "…"
    return "run " + text.replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


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
) -> str:
    """One page with figure, tables and what was certified and attacked; nothing outside it is needed to read it.

    Args:
        runs: that have certificates.
        figure: of certified accuracy, as PNG; None where nothing is certified.
        imported: shown beside them.
        attacks: on these runs, and on others that have no certificates.
    """
    shown = shown_radii(runs)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("orchestrator").joinpath("report.html.j2").read_text()
    )
    return template.render(
        figure=figure and base64.b64encode(figure).decode(),
        incomplete=not all([*(run.complete for run in runs), *(one.attacked.complete for one in attacks)]),
        heading="Certified accuracy" if runs or imported else "Robust accuracy under attack",
        attacked=bool(attacks),
        uncertified=[_attacks(one) for one in attacks if one.run is None],
        best=[best_table(best) for best in envelopes(runs)],
        runs=[
            {
                "title": run.title,
                "complete": run.complete,
                "facts": facts(run),
                "population": population_table(run),
                "learning": _learning(run.epochs) if run.epochs else None,
                "attacks": [_attacks(one) for one in attacks if one.run is run],
                **radius_table(run),
            }
            for run in runs
        ],
        imported=[
            {
                "title": one.title,
                "unknown": ", ".join(one.unknown),
                "facts": imported_facts(one, radii_beside(one, shown)),
                **imported_table(one, radii_beside(one, shown)),
            }
            for one in imported
        ],
    )


def shown_radii(runs: Sequence[ReportedRun]) -> list[float]:
    """All radii that some run's table has."""
    return sorted({radius for run in runs for radius in run.reduced.view.radii})


def _learning(epochs: Sequence[Epoch]) -> dict[str, str]:
    return {"text": training_text(epochs), "figure": base64.b64encode(learning_png(epochs)).decode()}


def _attacks(one: UnderAttack) -> dict[str, Any]:
    figure = png(attacks_figure(one.attacked, one.sandwiches or ()))
    return {**section(one), "figure": base64.b64encode(figure).decode()}


def publish(stores: Sequence[Store], target: Store, imported: Sequence[Imported] = ()) -> Published:
    """Write the figure and the page of some runs, and of what is shown beside them, to ``target``. Raises RunError, as
    for a run that has neither certificates nor attacks."""
    drawn, attacks = [], []
    for store in stores:
        run = find_run(store)
        found = load_attacks(store, run, _GALLERY_BYTES // len(stores))
        if found is not None:
            attacks.append(found)
        elif run is None:
            raise no_certificates(store)
        if run is not None:
            drawn.append((run, load_steps(store, run)))
    runs = [run for run, _ in drawn]
    figure = figure_png(drawn, imported) if drawn or imported else None
    if figure is not None:
        target.replace(layout.FIGURE, figure)
    target.replace(layout.REPORT, report_html(runs, figure, imported, attacks).encode())
    return Published(runs, attacks, (layout.REPORT,) if figure is None else (layout.FIGURE, layout.REPORT))


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
    return [
        ("images", f"{summary.images}: {summary.counted} counted, {summary.failed} failed, {summary.missing} missing"),
        ("accuracy of the majority of votes", percent(summary.majority_correct / summary.images)),
        ("draws without a vote (NaN), with a tie", f"{summary.invalid_votes}, {ties(summary)}"),
        ("data set", f"{spec.dataset.kind}, every {spec.dataset.every}, sha-256 {plan.dataset_sha256[:16]}…"),
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
