"""A run's attacks as reports show them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from orchestrator.attacking.gallery import Exhibit, difference_png, exhibits, image_png
from orchestrator.attacking.masking import Comparison, masking_check
from orchestrator.attacking.robustness import Attacked, published_attacks
from orchestrator.attacking.sandwich import Sandwich, sandwiches
from orchestrator.attacking.text import attack_tables, explained, masking_table, masking_text, sandwich_text, title
from orchestrator.numerals import NORMS, radius_text
from orchestrator.reducing.runs import read_plan
from orchestrator.reporting.reported import ReportedRun, name_of
from workers.store import Store


@dataclass(frozen=True)
class UnderAttack:
    """What a run's attacks came to.

    Attributes:
        name: of the run.
        run: its certificates; None where it has none yet.
        attacked: its attacks.
        sandwiches: of its certificates; None where it has none yet.
        check: for masked gradients.
        exhibits: attacked images to look at.
    """

    name: str
    run: ReportedRun | None
    attacked: Attacked
    sandwiches: list[Sandwich] | None
    check: list[Comparison]
    exhibits: list[Exhibit]


def load_attacks(store: Store, run: ReportedRun | None, most_bytes: int) -> UnderAttack | None:
    """The attacks on the run in ``store``; None where none is published. Raises RunError.

    Args:
        store: where the run is.
        run: the same, if it has certificates.
        most_bytes: of attacked images to look at.
    """
    attacked = published_attacks(store)
    if attacked is None:
        return None
    return UnderAttack(
        name=name_of(store),
        run=run,
        attacked=attacked,
        sandwiches=None if run is None else sandwiches(store, run, attacked),
        check=masking_check(attacked),
        exhibits=exhibits(store, read_plan(store), attacked, most_bytes),
    )


def section(one: UnderAttack) -> dict[str, Any]:
    """What the page says of a run's attacks, but for the figure."""
    return {
        "name": one.name,
        "complete": one.attacked.complete,
        "title": title(one.attacked),
        "tables": attack_tables(one.attacked),
        "explained": explained(one.attacked),
        "certificates": one.run is not None,
        "lines": [{"holds": found.holds, "sentences": sandwich_text(found)} for found in one.sandwiches or ()],
        "masking": {
            "found": any(comparison.beats for comparison in one.check),
            "text": masking_text(one.check),
            **masking_table(one.check),
        },
        "gallery": [_shown(exhibit) for exhibit in one.exhibits],
    }


def _shown(one: Exhibit) -> dict[str, Any]:
    answer = "abstains" if one.answered is None else str(one.answered)
    norm = NORMS[one.norm]
    return {
        "attack": one.attack,
        "index": one.index,
        "answer": f"{one.label} → {answer}",
        "robust": "yes, at all sizes" if one.robust else "no",
        "size": f"{radius_text(one.size)} {norm}",
        "distance": f"{one.distance:.4g} {norm}",
        "scale": f"± {one.scale:.3g}",
        "clean": _encoded(image_png(one.clean)),
        "attacked": _encoded(image_png(one.attacked)),
        "difference": _encoded(difference_png(one)),
    }


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
