"""What a shard's votes ask for next: a pure function of the votes that are committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stn_core.confidence import PROTOCOLS, candidates
from stn_core.looks import Ints, Looks, Round, looks_of
from stn_core.stopping import Rule
from workers import counts_table


@dataclass(frozen=True)
class Ask:
    """Draws to be counted.

    Attributes:
        indices: images by their number in the data set, int64 (images,), ascending.
        first_draw: number of each one's first estimation draw, int64 (images,).
        draws: how many, int64 (images,).
        selection_draws: of each image, as many; from the first.
    """

    indices: Ints
    first_draw: Ints
    draws: Ints
    selection_draws: int


def looks(table: pa.Table, later: Sequence[pa.Table], protocol: str, num_classes: int) -> Looks:
    """What images' votes came to after every round.

    Args:
        table: votes of the first round, in index order; one without draws is not looked at.
        later: of each later round, some of those images, in index order.
        protocol: a sequential one's name in ``PROTOCOLS``: which class is looked at.
        num_classes: classes the model votes among.
    """
    index = table["index"].to_numpy()
    # One at a time: as matrices they are large.
    rounds = (
        Round(
            image=np.searchsorted(index, rows["index"].to_numpy()),
            estimation=counts_table.dense(rows["estimation"], num_classes),
            draws=rows["draws"].to_numpy(),
        )
        for rows in (table, *later)
    )
    labels = table["label"].to_numpy()
    candidate = candidates(
        PROTOCOLS[protocol],
        selection=counts_table.dense(table["selection"], num_classes),
        # That of an image that could not be counted may be no class.
        labels=np.where((labels >= 0) & (labels < num_classes), labels, 0),
    )
    return looks_of(candidate, rounds, num_classes)


def undecided(
    table: pa.Table, later: Sequence[pa.Table], rule: Rule, protocol: str, num_classes: int
) -> tuple[Ints, Ints]:
    """Places in ``table`` of images whose votes leave something open, ascending, and draws that each needs next.

    Images that could not be counted are not among them. Arguments as ``looks`` takes them.
    """
    seen = looks(table, later, protocol, num_classes)
    more = np.where(table["draws"].to_numpy() > 0, rule.more(seen), 0)
    places = np.flatnonzero(more)
    return places, more[places]


def first_round(indices: Sequence[int], rule: Rule, selection_draws: int) -> Ask:
    """What every image is begun with."""
    images = len(indices)
    nothing = np.zeros(0, dtype=np.int64)
    draws = rule.more(Looks(np.zeros(images, dtype=np.int64), nothing, nothing, nothing, nothing))
    return Ask(np.array(indices, dtype=np.int64), np.zeros(images, dtype=np.int64), draws, selection_draws)


def next_round(table: pa.Table, later: Sequence[pa.Table], rule: Rule, protocol: str, num_classes: int) -> Ask | None:
    """What the votes ask for next; None where they decide all. Arguments as ``looks`` takes them."""
    places, more = undecided(table, later, rule, protocol, num_classes)
    if not len(places):
        return None
    return Ask(table["index"].to_numpy()[places], total_draws(table, later)[places], more, 0)


def continued(number: int, ask: Ask) -> dict[str, Any]:
    """What a later round's object says of its place: which it is, and the number of each row's first draw."""
    return {"round": number, "first_draw": ask.first_draw.tolist()}


def total_draws(table: pa.Table, later: Sequence[pa.Table]) -> Ints:
    """Estimation draws of each image over all rounds, int64 (images,)."""
    index, total = table["index"].to_numpy(), table["draws"].to_numpy().copy()
    for rows in later:
        total[np.searchsorted(index, rows["index"].to_numpy())] += rows["draws"].to_numpy()
    return total
