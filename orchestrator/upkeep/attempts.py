"""Whether a run's attempts are what they claim to be, and the tables of them what they say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from orchestrator.attacking.robustness import (
    Attacked,
    Description,
    attempted,
    computed,
    descriptions,
    published_attacks,
    read_attempts,
)
from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from orchestrator.upkeep.findings import Findings, Observe
from workers import counts_table, layout
from workers.store import Store

#: By how much the distance of an attacked image may exceed its size: images are float32.
_ROUNDING = 1e-4


def check_attempts(store: Store, plan: Plan, found: Findings, observe: Observe) -> tuple[int, list[str]]:
    """Note what is wrong with a run's attacks; returns how many objects they have, and what they lack, in words."""
    try:
        attacks, shards = descriptions(store), attempted(store, plan)
    except RunError as error:
        found.add("damaged", layout.ATTACKS, str(error))
        return 0, []
    for name in sorted(shards.keys() - attacks.keys()):
        found.add("foreign", f"{layout.ATTACKS}{name}/", "attempts of an attack that nothing describes")
    objects = [(name, shard) for name in attacks for shard in shards.get(name, [])]
    if not attacks:
        return 0, []
    damaged = False
    with observe("reading attempts", len(objects), "shards") as progress:
        for name, shard in objects:
            try:
                table = read_attempts(store, plan, attacks[name], shard)
            except RunError as error:
                found.add("damaged", layout.attempts(name, shard), str(error))
                damaged = True
            else:
                _check(table, attacks[name], plan, shard, found)
            progress.advance(1)
    lacking = [
        f"attack {name} lacks {plan.shards - len(shards.get(name, []))} of {plan.shards} shards"
        for name in attacks
        if len(shards.get(name, [])) < plan.shards
    ]
    try:
        published = published_attacks(store)
        if published is not None and not damaged:
            _compare(published, computed(store, plan, published.alpha), found, lacking)
    except RunError as error:
        found.add("damaged", layout.ROBUSTNESS, str(error))
    return len(objects), lacking


def _check(table: pa.Table, description: Description, plan: Plan, shard: int, found: Findings) -> None:
    key = layout.attempts(description.name, shard)
    size, distance = table["size"].to_numpy(), table[description.attack.norm].to_numpy()
    draws = table["draws"].to_numpy()
    if not (distance <= size * (1 + _ROUNDING) + 1e-6).all():
        found.add("attempt", key, "an attacked image is farther from the clean one than its size allows")
    try:
        cast = counts_table.totals(table["votes"], plan.num_classes) + table["invalid"].to_numpy()
    except ValueError as error:
        found.add("attempt", key, str(error))
        return
    if not np.array_equal(cast, draws):
        found.add("sum", key, "its votes and its invalid draws do not add up to its draws")


def _compare(published: Attacked, own: Attacked, found: Findings, lacking: list[str]) -> None:
    """Tables against the objects; those of fewer attempts than there are by now are merely old."""
    if published.descriptions != own.descriptions or len(published.attempts) != len(own.attempts):
        lacking.append(f"{layout.ROBUSTNESS} is older than the attempts: run `stn attack` again")
        return
    for key, one, other in (
        (layout.ATTEMPTS, published.attempts, own.attempts),
        (layout.ROBUSTNESS, published.curves, own.curves),
    ):
        if not one.equals(other):
            found.add("attempt", key, "it is not what the attempts say")
