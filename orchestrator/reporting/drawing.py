"""Figures for people, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.importing.imported import Imported
from orchestrator.numerals import NORMS, percent
from orchestrator.reducing.tables import Line
from orchestrator.reporting.reported import ReportedRun
from orchestrator.reporting.steps import Steps, line_name, steps_of
from stn_core.certificates import CERTIFICATES
from workers.training import Epoch

#: A longer title would squeeze the axes.
_LEGEND_CHARACTERS = 40


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
                        standing = "" if run.complete else " (INCOMPLETE)"
                        label = f"{_drawable(run.name)}{standing}: {label}"
                    axes.step(curve.radius, curve.accuracy, where="pre", label=label)
        for one in imported:
            if one.norm == norm:
                curve = steps_of(one.correct_radii, one.images)
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


def _drawable(name: str) -> str:
    """A run's name as a legend takes it: no mathematics in dollars, no leading underscore, not too long."""
    text = name if len(name) <= _LEGEND_CHARACTERS else name[: _LEGEND_CHARACTERS - 1] + "…"
    return "run " + text.replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")
