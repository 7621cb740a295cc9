"""A comparison, drawn: certified accuracy of all runs by radius, and below it how they differ from the first."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.comparing.comparison import Compared, Comparison
from orchestrator.comparing.entrants import line_text
from orchestrator.comparing.formats import as_csv
from orchestrator.numerals import NORMS
from stn_core.curves import certified_correct
from workers import layout
from workers.store import Store

#: More points than that are no finer a curve to the eye.
_MOST_STEPS = 4000

#: A longer name would squeeze the axes.
_LEGEND_CHARACTERS = 60


def figure_png(comparison: Comparison) -> bytes:
    """Two panels for each line: curves exact at every radius, and differences at those asked for, with intervals."""
    lines = comparison.lines
    figure = Figure(figsize=(8, 7.5 * len(lines)), dpi=150, layout="constrained")
    rows = figure.subplots(2 * len(lines), squeeze=False, height_ratios=[3, 2] * len(lines))[:, 0]
    for compared, curves, differences in zip(lines, rows[::2], rows[1::2], strict=True):
        _draw_curves(curves, comparison, compared)
        _draw_differences(differences, comparison, compared)
        reach = _reach(compared)
        for axes in (curves, differences):
            axes.set_xlim(-0.02 * reach, 1.02 * reach)
            axes.grid(alpha=0.3)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def _reach(compared: Compared) -> float:
    """The largest radius to draw."""
    return max(float(compared.radii.max()), compared.points[-1].radius) or 1.0


def _draw_curves(axes: Axes, comparison: Comparison, compared: Compared) -> None:
    for entrant, radii in zip(comparison.entrants, compared.radii, strict=True):
        steps = np.unique(np.append(radii[radii >= 0], 0.0))
        # More than can be seen: of each stretch the lowest value, at its right end, is drawn.
        steps = np.unique(np.append(steps[:: -(-len(steps) // _MOST_STEPS)], steps[-1]))
        accuracy = certified_correct(radii, radii >= 0, steps) / comparison.images
        # The last step falls to nothing.
        label = drawable(entrant.run.title)
        axes.step(np.append(steps, steps[-1]), np.append(accuracy, 0.0), where="pre", label=label)
    axes.set_title(f"{line_text(compared.line)}, {comparison.images} images")
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small")


def _draw_differences(axes: Axes, comparison: Comparison, compared: Compared) -> None:
    radius = np.array([point.radius for point in compared.points])
    apart = 0.006 * _reach(compared)
    axes.axhline(0.0, color="C0")
    for number in range(1, len(comparison.entrants)):
        colour = f"C{number % 10}"
        beside = [one for point in compared.points if (one := point.standings[number].beside) is not None]
        middle = np.array([one.gained - one.lost for one in beside]) / comparison.images
        # Beside each other, and not joined: between two radii a difference may be anything.
        place = radius + apart * (number - len(comparison.entrants) / 2)
        axes.plot(place, middle, color=colour, marker="o", markersize=4, linestyle="")
        ends = [(one.judged.low, one.judged.high) for one in beside if one.judged is not None]
        if ends:
            low, high = np.array(ends).T
            axes.vlines(place, low, high, color=colour, linewidth=1.5)
    axes.set_xlabel(f"radius ({NORMS[compared.norm]}, pixels in [0, 1])")
    axes.set_ylabel(f"difference from {drawable(comparison.names[0])}"[:40], fontsize="small")


def drawable(title: str) -> str:
    """A run's title as a legend takes it: no mathematics in dollars, no leading underscore, not too long."""
    text = title if len(title) <= _LEGEND_CHARACTERS else title[: _LEGEND_CHARACTERS - 1] + "…"
    text = text.replace("$", r"\$")
    return f"run {text}" if text.startswith("_") else text


def write_comparison(target: Store, comparison: Comparison) -> tuple[str, ...]:
    """Write the figure and the table of a comparison; where they are. Raises StoreError."""
    target.replace(layout.COMPARISON, figure_png(comparison))
    target.replace(layout.COMPARISON_TABLE, as_csv(comparison))
    return tuple(f"{target.uri}/{name}" for name in (layout.COMPARISON, layout.COMPARISON_TABLE))
