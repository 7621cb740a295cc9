"""What attacks came to, in words and tables: for the terminal and for reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.attacking.masking import Comparison, fewest_images
from orchestrator.attacking.robustness import Attacked
from orchestrator.attacking.sandwich import Sandwich
from orchestrator.numerals import NORMS, percent, percent_up, radius_text

#: Contradictions that are named one by one.
_SHOWN = 5


def title(attacked: Attacked) -> str:
    """What the tables are of, and INCOMPLETE where they are."""
    if attacked.complete:
        return "robust accuracy under attack"
    if attacked.outdated:
        return "robust accuracy under attack (INCOMPLETE: there are other attempts by now, run `stn attack` again)"
    lacking = [f"{name}: {text}" for name in attacked.descriptions if (text := _lacking(attacked.curves, name))]
    return f"robust accuracy under attack (INCOMPLETE: {'; '.join(lacking)})"


def _lacking(curves: pa.Table, name: str) -> str:
    row = curves.filter(pc.equal(curves["attack"], name)).slice(0, 1).to_pylist()[0]
    counts = [f"{row[what]} {what}" for what in ("missing", "failed") if row[what]]
    return f"{', '.join(counts)} of {row['images']} images" if counts else ""


def attack_tables(attacked: Attacked) -> list[dict[str, Any]]:
    """Robust accuracy by size, a table for each norm: ``norm``, ``columns`` (attacks), ``rows`` (size, then a cell for
    each attack: robust, and in brackets what was broken for sure)."""
    tables = []
    for norm in dict.fromkeys(attacked.curves["norm"].to_pylist()):
        rows = attacked.curves.filter(pc.equal(attacked.curves["norm"], norm)).to_pylist()
        columns = list(dict.fromkeys(row["attack"] for row in rows))
        cells = {(row["attack"], row["size"]): _cell(row) for row in rows}
        sizes = sorted({row["size"] for row in rows})
        tables.append(
            {
                "norm": NORMS[norm],
                "columns": columns,
                "rows": [[radius_text(size), *(cells.get((name, size), "") for name in columns)] for size in sizes],
            }
        )
    return tables


def _cell(row: dict[str, Any]) -> str:
    return f"{percent(row['robust_accuracy'])} ({percent_up(row['broken'] / row['images'])})"


def explained(attacked: Attacked) -> str:
    """What the figures of ``attack_tables`` are."""
    return (
        "robust: the label is answered at all sizes up to this one, those that could not be attacked are not; in "
        f"brackets: another class is, at one of them; else the classifier abstains. Each answer at alpha = "
        f"{attacked.alpha:g}"
    )


def sandwich_text(found: Sandwich) -> list[str]:
    """What attacks made of a line of certificates, a sentence a line; the first says whether it holds."""
    name = f"{found.line.certificate.replace('_', ' ')}, {found.line.protocol}"
    mute = f"{found.mute} attacked images within radii have too few votes to contradict (it takes {found.needed})"
    if found.holds and not found.tries:
        why = mute if found.mute else "no attacked image lies within a certified radius"
        return [f"{name}: {why}: nothing is tested"]
    tried = f"{found.tries} attacked images within the certified radii of {found.images} images"
    undecided = f"{found.undecided} of them undecided by their votes"
    if found.unsure:
        undecided += f", {found.unsure} answered otherwise, which may be chance among all attempts"
    if found.mute:
        undecided += f"; {mute}"
    if found.holds:
        return [f"{name}: {tried}, none surely answered otherwise than certified ({undecided})"]
    lines = [f"{name}: CONTRADICTED, {tried} ({undecided})"]
    broken = len({one.index for one in found.contradictions})
    if broken:
        lines.append(
            f"{broken} certificates contradicted with probability 1 - {found.beta:g}; by chance of their own, at most "
            f"{found.allowed} would be false with that probability"
        )
    for one in found.contradictions[:_SHOWN]:
        lines.append(
            f"image {one.index}, attack {one.attack}: class {one.answered} at distance {one.distance:.4g}, certified "
            f"{one.certified} within {one.radius:.4g} (p = {one.p_value:.2g})"
        )
    for crossing in found.crossings[:1]:
        lines.append(
            f"the attacked curve falls under the certified one at {crossing.size:.4g}: "
            f"{percent(crossing.attacked)} withstand the attacks, {percent_up(crossing.certified)} are certified"
        )
    return lines


def masking_table(check: Sequence[Comparison]) -> dict[str, Any]:
    """The check that gradients are not masked: ``columns`` and ``rows``."""
    columns = ["white-box", "other", "which is", "size", "robust", "robust, other", "only other", "only white-box", "p"]
    rows = [
        [
            one.white_box,
            one.other,
            one.relation,
            f"{radius_text(one.size)} {NORMS[one.norm]}",
            f"{one.robust} of {one.images}",
            f"{one.other_robust} of {one.images}",
            str(one.only_other),
            str(one.only_white_box),
            f"{one.p_value:.2g}",
        ]
        for one in check
    ]
    return {"columns": columns, "rows": rows}


def masking_text(check: Sequence[Comparison]) -> str:
    """What the check came to, in a sentence."""
    if not check:
        return "gradient masking: not checked; it takes a white-box attack and others in its norm, at sizes in common"
    stronger = [f"{one.other} ({one.relation}) at {radius_text(one.size)}" for one in check if one.beats]
    if stronger:
        whom = ", ".join(dict.fromkeys(one.white_box for one in check if one.beats))
        return f"GRADIENTS MAY BE MASKED, or {whom} be too weak; stronger: {'; '.join(stronger)}"
    fewest = fewest_images(len(check))
    blind = sum(one.images < fewest for one in check)
    silent = f"; {blind} of them on fewer than {fewest} images, too few to find any" if blind else ""
    return f"gradient masking: no sign; none of {len(check)} comparisons beats its white-box attack{silent}"
