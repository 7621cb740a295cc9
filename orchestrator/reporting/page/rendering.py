"""The page as one file: template, style, script, figures and the library that draws them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from orchestrator.reporting.page.figures import Data

#: A curve's line in the legend, by Plotly's name: lengths of strokes and gaps, pixels.
_DASHES = {
    "solid": "",
    "dash": "6 3",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "10 4",
    "longdashdot": "10 3 2 3",
}


def render(content: Mapping[str, Any], figures: Sequence[Data]) -> str:
    """The page. Nothing outside it is needed to read it, and a browser is told to fetch nothing.

    Args:
        content: what the template names.
        figures: what Plotly draws, ``title``, ``data`` and ``layout`` each; where there are none, no script is in the
            page.
    """
    folder = files("orchestrator.reporting.page")
    scripts = [_plotly(), folder.joinpath("page.js").read_text()] if figures else []
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        folder.joinpath("page.html.j2").read_text()
    )
    return template.render(
        **content,
        style=Markup(folder.joinpath("page.css").read_text()),
        figures=[
            {**figure, "number": number, "legend": legend(figure), "lines": _lines(figure)}
            for number, figure in enumerate(figures)
        ],
        # In a script element, only these end it or change how it is read.
        data=Markup(json.dumps(list(figures), allow_nan=False).replace("<", "\\u003c")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def legend(figure: Data) -> list[dict[str, Any]]:
    """A figure's legend: the groups of its traces, each with ``title``, ``run``, ``incomplete`` and ``curves``
    (``places`` among the traces, ``text``, ``colour``, and ``dash`` of a line or None)."""
    groups: dict[tuple[Any, str], dict[str, Any]] = {}
    for place, trace in enumerate(figure["data"]):
        meta = trace.get("meta", {})
        if "group" in meta:
            key = (meta["run"], meta["group"])
            group = groups.setdefault(
                key,
                {"title": meta["group"], "run": meta["run"], "incomplete": meta.get("incomplete", False), "curves": []},
            )
            if meta.get("joined"):
                group["curves"][-1]["places"].append(place)
                continue
            line, marker = trace.get("line", {}), trace.get("marker", {})
            group["curves"].append(
                {
                    "places": [place],
                    "text": meta["legend"],
                    "colour": line.get("color") or marker["color"],
                    "dash": _DASHES[line["dash"]] if "lines" in trace["mode"] else None,
                }
            )
    return list(groups.values())


def _lines(figure: Data) -> list[str]:
    """The lines of certificates that a figure shows one at a time."""
    metas = (trace.get("meta", {}) for trace in figure["data"])
    return list(dict.fromkeys(meta["line"] for meta in metas if "line" in meta))


def _plotly() -> str:
    """Plotly's library, some 5 MB: the only one of the page."""
    from plotly.offline import get_plotlyjs

    # A browser reads it so, and takes its digest.
    return str(get_plotlyjs()).replace("\r\n", "\n")


def _policy(scripts: Sequence[str]) -> str:
    """What a browser may do with the page: run these scripts and no other, and fetch nothing."""
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    allowed = " ".join(digests) or "'none'"
    # A form is no fetch, and has a rule of its own.
    return (
        f"default-src 'none'; form-action 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )
