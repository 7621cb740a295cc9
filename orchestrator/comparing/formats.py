"""A comparison as other programs take it: Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Sequence

from pyarrow import csv

from orchestrator.comparing.comparison import Comparison, records
from orchestrator.comparing.text import Form, Table, incomplete_text, line_table, notes, settings_table, verdicts
from orchestrator.numerals import MINUS, UNKNOWN


def markdown(comparison: Comparison) -> str:
    """Tables and sentences in GitHub's Markdown."""
    form = Form(_markdown, lambda figure: f"**{figure}**")
    parts = [f"**{_markdown(sentence)}**" for sentence in incomplete_text(comparison)]
    parts += [_markdown_table(line_table(comparison, compared, form)) for compared in comparison.lines]
    sentences = [*verdicts(comparison), *notes(comparison, "in bold")]
    parts.append("\n".join(f"- {_markdown(sentence)}" for sentence in sentences))
    if comparison.settings:
        parts.append(_markdown_table(settings_table(comparison, form)))
    return "\n\n".join(parts)


def _markdown_table(table: Table) -> str:
    rule = ["---"] * (len(table.columns) - table.right) + ["---:"] * table.right
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, rule, *table.rows)]
    return "\n".join([f"**{table.title}**", "", *lines])


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", text)


_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    MINUS: "$-$",
    "…": r"\ldots{}",
    UNKNOWN: "---",
}


def latex(comparison: Comparison) -> str:
    """Floating tables for the package booktabs; the caption of the first says what is in them."""
    form = Form(_tex, lambda figure: f"\\textbf{{{figure}}}")
    explained = (sentence[:1].upper() + sentence[1:] for sentence in notes(comparison, "in bold"))
    sentences = [*incomplete_text(comparison), *verdicts(comparison), *explained]
    shown = [line_table(comparison, compared, form) for compared in comparison.lines]
    if comparison.settings:
        shown.append(settings_table(comparison, form))
    parts = [_latex_table(table, "" if number else sentences) for number, table in enumerate(shown)]
    return "\n\n".join(["% \\usepackage[T1]{fontenc}\n% \\usepackage{booktabs}", *parts])


def _latex_table(table: Table, sentences: Sequence[str]) -> str:
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{'. '.join([table.title[:1].upper() + table.title[1:], *map(_tex, sentences)])}.}}",
            f"\\begin{{tabular}}{{{'l' * (len(table.columns) - table.right)}{'r' * table.right}}}",
            r"\toprule",
            _latex_row(table.columns),
            r"\midrule",
            *map(_latex_row, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def as_csv(comparison: Comparison) -> bytes:
    """``records`` as CSV; what the first run has no value of is empty."""
    sink = io.BytesIO()
    csv.write_csv(comparison.table, sink)
    return sink.getvalue()


def as_json(comparison: Comparison, written: Sequence[str]) -> str:
    """``records`` and all that the other forms say, as JSON."""
    return json.dumps(
        {
            "complete": comparison.complete,
            "incomplete": incomplete_text(comparison),
            "images": comparison.images,
            "level": comparison.level,
            "tests": comparison.tests,
            "beta": comparison.beta,
            "differs": {
                setting.name: dict(zip(comparison.names, setting.values, strict=True))
                for setting in comparison.settings
            },
            "left_out": [dataclasses.asdict(line) for line in comparison.left_out],
            "rows": records(comparison),
            "written": list(written),
        }
    )
