"""An imported result, for people: its table, and plainly what it does not say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from orchestrator.importing.imported import Imported, certified
from orchestrator.numerals import NORMS, UNKNOWN, percent, radius_text


def imported_table(imported: Imported, radii: Sequence[float]) -> dict[str, Any]:
    """As ``report.radius_table`` of a run; what would be guaranteed, in brackets, is unknown."""
    rows = [
        [radius_text(radius), f"{percent(count / imported.images)} ({UNKNOWN})"]
        for radius, (count, _) in zip(radii, certified(imported, radii), strict=True)
    ]
    rows.append(["abstain", str(imported.abstained)])
    return {"columns": [f"imported [{NORMS[imported.norm]}]"], "rows": rows}


def imported_facts(imported: Imported, radii: Sequence[float]) -> list[tuple[str, str]]:
    """As ``report.facts`` of a run, as (name, value)."""
    declared = imported.declared
    norm = "taken to be L2; the log names none" if declared.norm is None else _declared(NORMS[declared.norm])
    return [
        ("imported from", "; ".join(f"{source.name}, sha-256 {source.sha256[:16]}…" for source in imported.sources)),
        ("images", listed(imported)),
        ("accuracy of the majority of votes", UNKNOWN),
        ("draws without a vote (NaN), with a tie", f"{UNKNOWN}, {UNKNOWN}"),
        ("data set", UNKNOWN),
        ("model", UNKNOWN),
        ("noise", f"sigma = {_declared(declared.sigma)}, seed {UNKNOWN}"),
        ("draws", f"n = {_declared(declared.draws)} for estimation, n0 = {UNKNOWN} for selection"),
        ("confidence", f"alpha = {_declared(declared.alpha)} per image"),
        ("in brackets", f"{UNKNOWN}, since nothing can be guaranteed without the votes"),
        ("norm", norm),
        ("radii", rounding(imported, radii)),
        ("passed over in reading", "; ".join(imported.notes) or "nothing"),
        ("versions", UNKNOWN),
    ]


def listed(imported: Imported) -> str:
    """How many images, and which."""
    index = imported.table["index"].to_pylist()
    steps = {after - before for before, after in itertools.pairwise(index)}
    spacing = f", each {steps.pop()} after the one before" if len(steps) == 1 else ""
    which = f"index {index[0]}" if len(index) == 1 else f"index {index[0]} to {index[-1]}{spacing}"
    return f"{imported.images} listed ({which}), {imported.abstained} abstain; failed and missing ones: {UNKNOWN}"


def rounding(imported: Imported, radii: Sequence[float]) -> str:
    """What it means for the curve at these radii that radii were rounded when they were printed."""
    text = "rounded to nearest when they were printed, so maybe up"
    doubtful = [
        f"{doubtful} image{'' if doubtful == 1 else 's'} at {radius_text(radius)}"
        for radius, (_, doubtful) in zip(radii, certified(imported, radii), strict=True)
        if doubtful
    ]
    if not doubtful:
        return f"{text}; at no radius of the table does that matter"
    return f"{text}: {', '.join(doubtful)} may count in the table for that alone"


def _declared(value: float | int | str | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:g} (declared, not verified)" if isinstance(value, float) else f"{value} (declared, not verified)"
