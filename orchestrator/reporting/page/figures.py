"""The page's figures, as the plain data that Plotly draws: numbers as they are in the tables, nothing computed anew.

A trace's ``meta`` says what it belongs to; the page's own script shows and hides traces by it, and makes the legend.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from orchestrator.attacking.robustness import Attacked
from orchestrator.attacking.sandwich import Sandwich
from orchestrator.importing.imported import Imported
from orchestrator.numerals import NORMS, percent, radius_text
from orchestrator.reducing.tables import Line
from orchestrator.reporting.literature import Literature
from orchestrator.reporting.reported import ReportedRun
from orchestrator.reporting.steps import Steps, line_name, steps_of, thinned
from stn_core.certificates import CERTIFICATES

Data = dict[str, Any]

#: Okabe and Ito's, which most colour-blind people tell apart; no red, which is for what is wrong.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#6a3d9a", "#8c6d31", "#17808e")
_AGAIN = ("solid", "longdash", "longdashdot", "dashdot")
_GREY, RED = "#555555", "#b00020"

#: Of all curves of a page together: it stays small, and no screen has that many pixels.
_MOST_POINTS = 20_000

_CERTIFIED = "images certified"

_MARKERS = ("circle-open", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open")


class Curves:
    """Figures of certified accuracy by radius, one for each norm, filled curve by curve.

    Args:
        curves: how many exact ones are to come, so that together they stay within what a page may hold.
    """

    def __init__(self, curves: int) -> None:
        self._most = max(50, _MOST_POINTS // max(1, curves))
        self._traces: dict[str, list[Data]] = {}
        self._reach: dict[str, float] = {}
        self._styles = 0
        self._references: set[str] = set()

    def add_run(self, number: int, run: ReportedRun, steps: Mapping[Line, Steps]) -> None:
        """A run's curves, what of them is guaranteed, and the accuracy of the majority of its votes."""
        title, summary = run.title, run.reduced.summary
        for line, curve in steps.items():
            norm, rows = CERTIFICATES[line.certificate].norm, run.lines[line].to_pylist()
            meta = {"run": number, "group": title, "protocol": line.protocol, "incomplete": not run.complete}
            name, (colour, dash) = line_name(run, line), self._style()
            drawn = thinned(curve, self._most)
            self._add(
                norm,
                _step(drawn, colour, dash),
                meta | {"legend": f"{name} ({rows[0]['abstained']} of {summary.images} abstain)"},
                (title, name),
                f"{_CERTIFIED} at radius",
                drawn,
                summary.images,
            )
            least = [(row["radius"], row["guaranteed_accuracy"]) for row in rows]
            if all(value is not None for _, value in least):
                marks = _points([radius for radius, _ in least], [value for _, value in least], colour, "line-ew-open")
                text = [
                    f"truly certified, at least: {percent(value)} at radius {radius_text(radius)}"
                    for radius, value in least
                ]
                joined = {"legend": f"{name}: truly certified, at least", "joined": True}
                self._add_marks(norm, marks, meta | joined, (title, name), text)
        natural = summary.majority_correct / summary.images
        for norm in dict.fromkeys(CERTIFICATES[line.certificate].norm for line in steps):
            level = _points([0.0, 0.0], [natural, natural], _GREY, None) | {
                "mode": "lines+text",
                "line": {"color": _GREY, "dash": "dot", "width": 1.5},
                "texttemplate": ["", f"natural, {_escaped(_short(run.name))}"],
                "textposition": "bottom left",
            }
            text = [f"accuracy of the majority of votes, without perturbation: {percent(natural)}"] * 2
            legend = f"natural accuracy, majority of votes: {percent(natural)}"
            meta = {"run": number, "group": title, "legend": legend, "incomplete": not run.complete, "level": True}
            self._add_marks(norm, level, meta, (title,), text)

    def add_attacks(self, number: int, run: ReportedRun, attacked: Attacked, sandwiches: Sequence[Sandwich]) -> None:
        """What attacks left of a run: the fraction that none was seen to break, and each attack's robust accuracy."""
        name = run.title + ("" if attacked.complete else " (attacks INCOMPLETE)")
        meta = {"run": number, "group": run.title, "incomplete": not (run.complete and attacked.complete)}
        for norm in dict.fromkeys(CERTIFICATES[one.line.certificate].norm for one in sandwiches):
            # What attacks broke is the same for all lines of a norm; only where it is evaluated differs.
            own = [one for one in sandwiches if CERTIFICATES[one.line.certificate].norm == norm]
            longest = max(own, key=lambda one: float(one.radius[-1]))
            colour = "black" if all(one.holds for one in own) else RED
            legend = "not seen to break under attack"
            if colour == RED:
                legend = f"CONTRADICTED: {legend}, and yet certified"
            radius = np.append(longest.radius, longest.radius[-1])
            curve = thinned(Steps(radius, np.append(longest.attacked, longest.attacked[-1])), self._most)
            self._add(
                norm,
                _step(curve, colour, "dashdot"),
                meta | {"legend": legend},
                (name, "under attack"),
                "images not seen to break within",
                curve,
                run.plan.images,
            )
        for place, attack in enumerate(dict.fromkeys(attacked.curves["attack"].to_pylist())):
            rows = attacked.curves.filter(pc.equal(attacked.curves["attack"], attack)).to_pylist()
            if rows[0]["norm"] in self._traces:
                marks = _points(
                    [row["size"] for row in rows],
                    [row["robust_accuracy"] for row in rows],
                    "black",
                    _MARKERS[place % len(_MARKERS)],
                )
                text = [f"robust: {percent(row['robust_accuracy'])} at size {radius_text(row['size'])}" for row in rows]
                legend = f"robust under {attack}"
                self._see(rows[0]["norm"], [row["size"] for row in rows])
                self._add_marks(rows[0]["norm"], marks, meta | {"legend": legend}, (name, attack), text)

    def add_imported(self, number: int, one: Imported) -> None:
        """A result from elsewhere, dashed."""
        curve = thinned(steps_of(one.correct_radii, one.images), self._most)
        legend = f"{one.name} (imported; {one.abstained} of {one.images} abstain)"
        self._add(
            one.norm,
            _step(curve, self._style()[0], "dash"),
            {"run": number, "group": one.title, "legend": legend},
            (one.title,),
            f"{_CERTIFIED} at radius",
            curve,
            one.images,
        )

    def add_literature(self, number: int, published: Sequence[Literature]) -> None:
        """Published figures beside runs with certificates in L2, each once."""
        for one in published:
            if one.name not in self._references and "l2" in self._traces:
                self._references.add(one.name)
                self._see("l2", one.radius)
                marks = _points(list(one.radius), list(one.accuracy), self._style()[0], "star-diamond-open")
                marks |= {
                    "mode": "lines+markers",
                    "line": {"color": marks["marker"]["color"], "dash": "dot", "width": 1},
                }
                text = [
                    f"{percent(value)} at radius {radius_text(round(radius, 4))}"
                    for radius, value in zip(one.radius, one.accuracy, strict=True)
                ]
                meta = {
                    "run": number,
                    "group": "published, for comparison: other networks and images",
                    "legend": one.name,
                }
                self._add_marks("l2", marks, meta, (one.name,), text)

    def figures(self) -> list[Data]:
        """Each norm's figure: ``title``, ``data`` and ``layout``."""
        for norm, traces in self._traces.items():
            for trace in traces:
                if trace["meta"].get("level"):
                    trace["x"] = [0.0, self._reach.get(norm) or 1.0]
        return [
            {
                "title": f"certified accuracy by radius, {NORMS[norm]}",
                "data": traces,
                "layout": layout_of(
                    f"radius ({NORMS[norm]}, pixels in [0, 1])",
                    "fraction of all images",
                    yaxis={"range": [0, 1.02], "tickformat": ".0%"},
                    xaxis={"range": [0, 1.03 * (self._reach.get(norm) or 1.0)]},
                ),
            }
            for norm, traces in self._traces.items()
        ]

    def _see(self, norm: str, radii: Sequence[float]) -> None:
        """The norm's figure is to reach as far."""
        self._reach[norm] = max([self._reach.get(norm, 0.0), *radii])

    def _style(self) -> tuple[str, str]:
        """Colour and dash of the next curve: others only when all colours are used."""
        again, place = divmod(self._styles, len(COLOURS))
        self._styles += 1
        return COLOURS[place], _AGAIN[again % len(_AGAIN)]

    def _add(
        self, norm: str, trace: Data, meta: Data, title: tuple[str, ...], counted: str, curve: Steps, images: int
    ) -> None:
        """A step curve. The page's script makes the text at each point, from its number of images."""
        # Where something is left: attacks in other norms go far beyond what is certified in this one.
        if counted.startswith(_CERTIFIED):
            self._see(norm, [float(curve.radius[-1])])
        meta = meta | {"title": title, "counted": f"of {images} {counted}", "images": images}
        count = np.rint(curve.accuracy * images).astype(int).tolist()
        self._traces.setdefault(norm, []).append(trace | named(meta) | {"customdata": count})

    def _add_marks(self, norm: str, trace: Data, meta: Data, title: tuple[str, ...], text: list[str]) -> None:
        above = "<br>".join(map(_escaped, title))
        shown = [f"{above}<br>{line}" for line in text]
        self._traces.setdefault(norm, []).append(trace | named(meta) | {"text": shown, "hoverinfo": "text"})


def _step(curve: Steps, colour: str, dash: str) -> Data:
    # A value holds from above the radius before up to its own: first down, then to the right.
    return {
        "type": "scatter",
        "mode": "lines",
        "x": curve.radius.tolist(),
        "y": curve.accuracy.tolist(),
        "line": {"shape": "vh", "color": colour, "dash": dash, "width": 2},
    }


def _points(x: list[float], y: list[float], colour: str, symbol: str | None) -> Data:
    trace: Data = {"type": "scatter", "mode": "markers" if symbol else "lines", "x": x, "y": y}
    return trace | ({"marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2}}} if symbol else {})


def named(meta: Data) -> Data:
    """A trace's part that says what it belongs to, ``meta``, and its name, from ``legend`` there."""
    standing = "INCOMPLETE: " if meta.get("incomplete") else ""
    return {"meta": meta, "name": _escaped(standing + str(meta["legend"]))}


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _escaped(text: str) -> str:
    """Plotly takes some markup in text, and names are anybody's."""
    return html.escape(text, quote=False)


def layout_of(x: str, y: str, **more: Data | str) -> Data:
    """A figure's layout: the axes' titles, and what differs from all others' or is added to them."""
    axis = {"gridcolor": "#e5e5e5", "zerolinecolor": "#999999", "linecolor": "#999999", "fixedrange": False}
    layout: Data = {
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}, "rangemode": "tozero"},
        "showlegend": False,
        "hovermode": "closest",
        "height": 420,
        "margin": {"l": 60, "r": 15, "t": 30, "b": 50},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
    }
    for name, value in more.items():
        layout[name] = {**layout[name], **value} if isinstance(value, dict) else value
    return layout
