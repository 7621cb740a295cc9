"""Whether the objects below counts/ are the run's votes, each once, and add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from orchestrator.reducing.runs import CountRows, read_shard
from orchestrator.upkeep.findings import Finding, Findings, Kind
from stn_core import audit
from stn_core.confidence import PROTOCOLS
from stn_core.naming import listed, one_line
from workers import counts_table, layout, sealed
from workers.store import Store, StoreError

#: Counts of votes held as a matrix at a time, for one phase: 32 MiB.
_DENSE_COUNTS = 2**22


def shard_objects(keys: Iterable[str], plan: Plan) -> tuple[dict[int, list[str]], list[Finding]]:
    """The objects of each shard that is there, its commit first, then its retries, then later rounds; and the others.

    Args:
        keys: of all objects below counts/.
        plan: the run's.
    """
    objects: dict[int, list[str]] = {}
    retries: list[tuple[int, str]] = []
    later: list[tuple[int, int, str]] = []
    others: list[Finding] = []
    for key in keys:
        shard, retry, round = layout.shard_of(key), layout.retry_of(key), layout.later_round(key)
        number = next((found for found in (shard, retry and retry[0], round and round[0]) if found is not None), None)
        if number is None:
            others.append(Finding("foreign", key, "is no object of a run"))
        elif number >= plan.shards:
            others.append(Finding("foreign", key, f"is of a shard that is not planned: there are {plan.shards}"))
        elif retry is not None:
            retries.append((number, key))
        elif round is not None:
            later.append((*round, key))
        else:
            objects[number] = [key]
    for number, key in sorted(retries):
        if number in objects:
            objects[number].append(key)
        else:
            others.append(Finding("foreign", key, "is a retry of a shard that is not there"))
    reached = dict.fromkeys(objects, 0)
    for number, own, key in sorted(later):
        if not plan.sequential:
            others.append(Finding("foreign", key, "is a later round of a run whose draws all come in the first"))
        elif reached.get(number) != own - 1:
            others.append(Finding("gap", key, "is a round after one that is not there"))
        else:
            reached[number] = own
            objects[number].append(key)
    return dict(sorted(objects.items())), others


def wrong_with(
    table: pa.Table, provenance: dict[str, Any], plan: Plan, shard: int, *, whole: bool, later: bool = False
) -> Iterator[tuple[Kind, str]]:
    """What is wrong with an object's rows: of a ``whole`` shard, of some of its images that were tried again, or that
    a ``later`` round gave more draws."""
    if provenance.get("identity") != plan.identity():
        yield "foreign", "its votes are of another run"
        return
    if provenance.get("shard", shard) != shard:
        yield "foreign", f"its votes are those of shard {provenance['shard']}"
        return
    own = plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size]
    index = table["index"].to_numpy()
    values, times = np.unique(index, return_counts=True)
    if others := [value for value in values.tolist() if value not in own]:
        yield "foreign", f"it has images that are not the shard's: {listed(others)}"
    if (times > 1).any():
        yield "double", f"it has images more than once: {listed(values[times > 1].tolist())}"
    if whole and (missing := sorted(set(own) - set(values.tolist()))):
        yield "gap", f"it lacks images {listed(missing)}"
    if not np.all(np.diff(index) >= 0):
        yield "damaged", "its images are out of order"
    counted = pc.is_null(table["error"]).to_numpy()
    label = table["label"].to_numpy()
    strange = counted & ((label < 0) | (label >= plan.num_classes))
    if strange.any():
        yield "sum", f"labels are none of the {plan.num_classes} classes: images {listed(index[strange].tolist())}"
    sampling = plan.spec.sampling
    selection = 0 if later else sampling.selection_draws
    yield from _wrong_votes(table, "selection", "selection_", counted * selection, plan.num_classes)
    # How many the votes ask for is a matter of what they are to decide, which may have changed since.
    draws = table["draws"].to_numpy() * counted if plan.sequential else counted * sampling.draws
    yield from _wrong_votes(table, "estimation", "", draws, plan.num_classes)
    if plan.sequential and (none := counted & (table["draws"].to_numpy() < 1)).any():
        yield "sum", f"images were counted without draws: {listed(index[none].tolist())}"


def _wrong_votes(
    table: pa.Table, phase: str, prefix: str, planned: NDArray[np.int64], num_classes: int
) -> Iterator[tuple[Kind, str]]:
    """What is wrong with the votes of one phase, whose columns begin with ``prefix``."""
    draws, lost = table[f"{prefix}draws"].to_numpy(), table[f"{prefix}invalid"].to_numpy()
    ties = pc.fill_null(table[f"{prefix}ties"], 0).to_numpy()
    try:
        votes = counts_table.totals(table[phase], num_classes)
    except ValueError as error:
        yield "sum", f"{phase}: {error}"
        return
    for wrong, text in (
        (draws != planned, "draws are not the planned ones"),
        ((votes + lost != draws) | (lost < 0), "votes do not add up to the draws"),
        ((ties < 0) | (ties > votes), "ties are more than the votes"),
    ):
        if wrong.any():
            yield "sum", f"{phase} {text}: images {listed(table['index'].to_numpy()[wrong].tolist())}"


class Votes:
    """What each image's votes come to, by its place in the plan: some hundred bytes each.

    Attributes:
        objects, without_checksum: objects that could be read, and those of them from before there were checksums.
        present: the image's shard is there, whether or not it can be read, (images,).
        counted, failed: the image has votes, or could not be counted, (images,).
        retried: it has votes from a retry, (images,).
        key, label, draws: as in the tables of votes, int64 (images,).
        candidates: by protocol, as ``audit.standings`` has them, int64 (images,).
        looks: by protocol, the candidate's votes, the runner-up's and the draws at each look at each image, (images,).
        majority_correct, invalid, ties, undecided, passes: sums over the images, as ``Summary`` has them.
    """

    def __init__(self, plan: Plan, protocols: Iterable[str]) -> None:
        images = plan.images
        self._plan = plan
        self.objects = self.without_checksum = 0
        self.present, self.counted, self.failed, self.retried = (np.zeros(images, dtype=bool) for _ in range(4))
        self.key, self.label, self.draws, self._times = (np.zeros(images, dtype=np.int64) for _ in range(4))
        self.candidates = {name: np.full(images, -1) for name in protocols}
        self.looks: dict[str, list[tuple[audit.Look, ...]]] = {name: [()] * images for name in self.candidates}
        self.majority_correct = self.invalid = self.undecided = self.passes = 0
        self.ties: int | None = 0

    def read(self, store: Store, shard: int, keys: list[str], found: Findings) -> None:
        """Look at each object of a shard by itself, then take in what they amount to."""
        first = shard * self._plan.shard_size
        self.present[first : first + self._plan.shard_images(shard)] = True
        # Fetched once, though read_shard asks for them again.
        once = cast(Store, _Once(store))
        looked_at = [self._object(once, shard, key, key == keys[0], found) for key in keys]
        tables = [table for table in looked_at if table is not None]
        if len(tables) < len(keys):
            return
        try:
            rows = read_shard(once, self._plan, shard)
        except (RunError, StoreError) as error:
            found.add("damaged", keys[0], one_line(error))
            return
        if not all(rows.table[name].equals(tables[0][name]) for name in ("key", "label")):
            found.add("foreign", keys[-1], "its images have other keys or labels than in their shard")
            return
        for key, table in zip(keys, tables, strict=True):
            if layout.later_round(key) is not None:
                if not _same_images(tables[0], table):
                    found.add("foreign", key, "its images have other keys or labels than in their shard")
                continue
            indices = table.filter(pc.is_null(table["error"]))["index"].to_pylist()
            self._times[[self._plan.indices.index(index) for index in indices]] += 1
        size = max(1, _DENSE_COUNTS // self._plan.num_classes)
        for start in range(0, len(rows.table), size):
            self._add(first + start, rows.part(start, size))
        own = slice(first, first + len(rows.table))
        self.retried[own] = self.counted[own] & pc.is_valid(tables[0]["error"]).to_numpy()

    def _object(self, store: Store, shard: int, key: str, whole: bool, found: Findings) -> pa.Table | None:
        """An object's rows; None if they are not fit for use."""
        try:
            content = store.read(key)
            table, provenance = counts_table.decode(content)
        except (StoreError, ValueError) as error:
            found.add("damaged", key, one_line(error))
            return None
        self.objects += 1
        self.without_checksum += not sealed.has_checksum(content)
        later = layout.later_round(key) is not None
        wrong = list(wrong_with(table, provenance, self._plan, shard, whole=whole, later=later))
        for kind, text in wrong:
            found.add(kind, key, text)
        return None if wrong else table

    def _add(self, first: int, rows: CountRows) -> None:
        """Rows as they stand, of the images from the ``first`` of the plan on."""
        own = slice(first, first + len(rows.draws))
        self.counted[own], self.failed[own] = rows.usable, ~rows.usable
        self.key[own], self.label[own], self.draws[own] = rows.table["key"].to_numpy(), rows.labels, rows.draws
        for protocol in self.candidates:
            self._look(protocol, first, rows)
        voted = rows.estimation.sum(axis=1) > 0
        self.majority_correct += int((voted & (rows.estimation.argmax(axis=1) == rows.labels)).sum())
        self.invalid += rows.total("invalid") or 0
        self.undecided += rows.undecided(self._plan)
        self.passes += (rows.total("draws") or 0) + (rows.total("selection_draws") or 0)
        ties = rows.total("ties")
        self.ties = None if ties is None or self.ties is None else self.ties + ties

    def _look(self, protocol: str, first: int, rows: CountRows) -> None:
        """What the votes of those images come to: after each round, where the protocol looks that often."""
        images = len(rows.draws)
        looks = self.looks[protocol]
        tables = (rows.table, *rows.later)
        sequential = PROTOCOLS[protocol].sequential
        for last in range(1, len(tables) + 1) if sequential else [len(tables)]:
            so_far = CountRows(rows.table, rows.num_classes, tables[1:last])
            candidate, top, runner_up = audit.standings(protocol, so_far.estimation, rows.selection, rows.labels)
            index = tables[last - 1]["index"].to_numpy() if sequential else rows.table["index"].to_numpy()
            for place in np.searchsorted(rows.table["index"].to_numpy(), index).tolist():
                if so_far.draws[place]:
                    look = int(top[place]), int(runner_up[place]), int(so_far.draws[place])
                    looks[first + place] = (*looks[first + place], look) if sequential else (look,)
        self.candidates[protocol][first : first + images] = candidate

    def doubles(self) -> Iterator[str]:
        """What is there twice, over all objects."""
        indices = self._plan.indices
        for position in np.flatnonzero(self._times > 1).tolist():
            yield f"image {indices[position]} has votes in several objects"
        known = np.flatnonzero(self.counted | self.failed)
        order = known[np.argsort(self.key[known], kind="stable")]
        for place in np.flatnonzero(np.diff(self.key[order]) == 0).tolist():
            one, other = indices[int(order[place])], indices[int(order[place + 1])]
            yield f"images {one} and {other} have the same key, and so the same noise"


def _same_images(shard: pa.Table, rows: pa.Table) -> bool:
    """Whether the rows have the keys and labels that their images have in the shard."""
    places = np.searchsorted(shard["index"].to_numpy(), rows["index"].to_numpy())
    return all(np.array_equal(shard[name].to_numpy()[places], rows[name].to_numpy()) for name in ("key", "label"))


class _Once:
    """A store that fetches each object once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str) -> bytes:
        if key not in self._held:
            self._held[key] = self._store.read(key)
        return self._held[key]
