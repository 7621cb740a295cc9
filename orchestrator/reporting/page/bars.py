"""Bars: how many images have which radius, and how many draws."""

from __future__ import annotations

import numpy as np

from orchestrator.reporting.page.breakdown import Breakdown
from orchestrator.reporting.page.figures import COLOURS, RED, Data, layout_of, named
from orchestrator.reporting.reported import ReportedRun
from orchestrator.reporting.steps import line_name


def radius_figure(run: ReportedRun, found: Breakdown) -> Data:
    """Histograms of certified radii, one line of certificates at a time."""
    traces = []
    for one in found.lines:
        name = line_name(run, one.line)
        middle, width = (one.edges[1:] + one.edges[:-1]) / 2, np.diff(one.edges)
        for what, counts, colour in (("for the label", one.right, COLOURS[0]), ("for another class", one.wrong, RED)):
            text = [
                f"{count} images certified {what},<br>radius {low:.4f} to {high:.4f}"
                for count, low, high in zip(
                    counts.tolist(), one.edges[:-1].tolist(), one.edges[1:].tolist(), strict=True
                )
            ]
            traces.append(
                {
                    "type": "bar",
                    "x": middle.tolist(),
                    "y": counts.tolist(),
                    "width": width.tolist(),
                    "marker": {"color": colour},
                    "text": text,
                    "textposition": "none",
                    "hoverinfo": "text",
                    **named({"line": name, "legend": f"certified {what}"}),
                }
            )
    title = f"certified radii, {run.title}"
    return {"title": title, "data": traces, "layout": layout_of("radius (pixels in [0, 1])", "images", barmode="stack")}


def draws_figure(run: ReportedRun, found: Breakdown) -> Data | None:
    """How many images have how many draws; None where all have the same."""
    if len(found.draws) < 2:
        return None
    # Numbers that votes choose grow in stages, each some times the one before: places, not lengths.
    names = [str(number) for number in found.draws.tolist()]
    counts = found.with_draws.tolist()
    text = [f"{count} images with {name} draws" for count, name in zip(counts, names, strict=True)]
    bars = {"type": "bar", "x": names, "y": counts, "marker": {"color": COLOURS[2]}, "text": text, "hoverinfo": "text"}
    layout = layout_of("estimation draws of an image", "images", xaxis={"type": "category"})
    return {"title": f"draws used, {run.title}", "data": [bars | {"textposition": "none"}], "layout": layout}
