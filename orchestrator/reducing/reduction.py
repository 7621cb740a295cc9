"""From stored votes to certificates and curves. No model, no GPU, no cluster: only the store."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import RunError, SpecError
from orchestrator.planning.plans import ANYTIME, Plan
from orchestrator.reducing.row_groups import Blocks, writing
from orchestrator.reducing.runs import CountRows, counted_shards, read_votes, vote_objects
from orchestrator.reducing.tables import (
    CERTIFICATES_SCHEMA,
    CURVES_SCHEMA,
    METADATA_KEY,
    SCHEMA_VERSION,
    Line,
    Reduced,
    Summary,
    View,
    goal_of,
    published,
    settled,
)
from orchestrator.spec import check_view
from stn_core.certificates import CERTIFICATES
from stn_core.certify import Certified, as_votes, certify_outcomes
from stn_core.confidence import PROTOCOLS, outcomes_of, outcomes_of_looks
from stn_core.curves import certified_correct
from stn_core.dataset import population_interval, truly_certified
from stn_core.looks import Looks
from stn_core.naming import one_line
from stn_core.noise import interval_variates
from workers import layout
from workers.store import Store


def reduce_run(store: Store, plan: Plan, view: View, observe: Callable[[int], None] = lambda shards: None) -> Reduced:
    """Compute and publish a run's certificates and curves.

    A complete run's go to ``certificates.parquet`` and ``curves.parquet``, an incomplete one's below ``partial/``, with
    missing images counted as not certified.

    Args:
        store: the run.
        plan: its plan.
        view: what to compute.
        observe: called with 1 after each shard.

    Raises:
        SpecError: the view does not fit the run's votes.
        RunError: votes are damaged.
    """
    check_against(plan, view)
    present = counted_shards(store, plan)
    objects = vote_objects(store) if plan.sequential else None
    sums = _Sums(view, plan, decided=objects is not None and settled(_published(store), plan, objects))
    with _scratch_folder() as scratch:
        # On disk, since the table of a large run does not fit in memory.
        table = scratch / layout.CERTIFICATES
        blocks = Blocks(len(view.lines))
        with pq.ParquetWriter(table, CERTIFICATES_SCHEMA, **writing(CERTIFICATES_SCHEMA)) as writer:
            for votes in read_votes(store, plan, present, observe):
                for line, rows in sums.add(votes):
                    for group in blocks.add(line, rows):
                        writer.write_table(group)
            for group in blocks.rest():
                writer.write_table(group)
            summary = sums.summary()
            goal = goal_of(plan)
            run = {"summary": asdict(summary), "goal": goal, "objects": objects}
            facts = {"view": asdict(view), **run, **plan.provenance()}
            metadata = json.dumps({"schema_version": SCHEMA_VERSION, **facts}, sort_keys=True)
            writer.add_key_value_metadata({METADATA_KEY: metadata.encode()})
        whole = len(present) == plan.shards and not summary.undecided
        folder = "" if whole else layout.PARTIAL
        curves = sums.curves().replace_schema_metadata({METADATA_KEY: metadata.encode()})
        # Curves carry the view and are published last: while they exist, both tables are of that view. An incomplete
        # run has no complete tables, or no longer.
        for stale in (layout.CURVES, layout.PARTIAL + layout.CURVES):
            store.delete(stale)
        store.replace_file(folder + layout.CERTIFICATES, table)
    store.replace(folder + layout.CURVES, _parquet(curves))
    store.delete(layout.CERTIFICATES if folder else layout.PARTIAL + layout.CERTIFICATES)
    return Reduced(view, summary, curves, goal, objects)


def _published(store: Store) -> Reduced | None:
    try:
        return published(store)
    except RunError:  # damaged tables are about to be replaced
        return None


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="stn-reduce-") as folder:
            yield Path(folder)
    except OSError as error:  # the store has errors of its own
        raise RunError(
            f"cannot write below {tempfile.gettempdir()}, which TMPDIR chooses: {error.strerror or one_line(error)}"
        ) from error


class _Sums:
    """Sums over all rows, part by part."""

    def __init__(self, view: View, plan: Plan, *, decided: bool) -> None:
        self._view, self._plan, self._decided = view, plan, decided
        self._certified = {line: np.zeros(len(view.radii), dtype=np.int64) for line in view.lines}
        self._abstained = dict.fromkeys(view.lines, 0)
        self._counted = self._failed = self._majority_correct = self._invalid = self._undecided = self._passes = 0
        self._ties: int | None = 0

    def add(self, rows: CountRows) -> Iterator[tuple[Line, pa.Table]]:
        """Take rows in; their certificates, one table per line."""
        usable, labels = rows.usable, rows.labels
        self._counted += int(usable.sum())
        self._failed += int((~usable).sum())
        self._invalid += rows.total("invalid") or 0
        self._undecided += 0 if self._decided else rows.undecided(self._plan)
        self._passes += (rows.total("draws") or 0) + (rows.total("selection_draws") or 0)
        ties = rows.total("ties")
        self._ties = None if ties is None or self._ties is None else self._ties + ties
        voted = rows.draws > rows.invalid
        self._majority_correct += int((voted & (rows.estimation.argmax(axis=1) == labels)).sum())
        uniform = None
        if self._view.interval == "randomised":
            uniform = interval_variates(self._plan.spec.sampling.seed, rows.table["key"].to_numpy())
        for line, result in _certify(rows, self._plan, self._view, uniform):
            correct = ~result.abstain & (result.prediction == labels)
            self._certified[line] += certified_correct(result.radius, correct, self._view.radii)
            self._abstained[line] += int((result.abstain & usable).sum())
            yield line, _rows(rows, line, result, correct, self._view.alpha, uniform)

    def summary(self) -> Summary:
        missing = self._plan.images - self._counted - self._failed
        return Summary(
            self._plan.images,
            self._counted,
            self._failed,
            missing,
            self._majority_correct,
            self._invalid,
            self._ties,
            self._undecided,
            self._passes,
        )

    def curves(self) -> pa.Table:
        summary = self.summary()
        parts = [
            _curve(self._view, self._plan, summary, line, counts, self._abstained[line])
            for line, counts in self._certified.items()
        ]
        return pa.concat_tables(parts)


def check_against(plan: Plan, view: View) -> None:
    """Raise SpecError unless ``view`` can be computed from this run's votes."""
    if not view.certificates:
        raise SpecError(f"nothing can be certified with noise of kind {plan.spec.noise.kind}: `stn attack` takes it")
    try:
        check_view(view.certificates, view.protocols, plan.spec.noise, plan.spec.sampling)
    except ValueError as error:
        raise SpecError(str(error)) from error
    for name in view.protocols:
        if plan.sequential and not PROTOCOLS[name].sequential:
            raise SpecError(
                f"protocol {name!r} holds for a number of draws fixed beforehand, and this run's votes chose theirs: "
                f"use {' or '.join(ANYTIME)}"
            )
        if PROTOCOLS[name].sequential and view.interval == "randomised":
            raise SpecError(f"randomised intervals are not for protocol {name!r}: use clopper_pearson")
    for name, value in (("alpha", view.alpha), ("beta", view.beta)):
        if not 0 < value < 1:
            raise SpecError(f"{name} must lie inside (0, 1), got {value}")


def _certify(
    rows: CountRows, plan: Plan, view: View, uniform: NDArray[np.float64] | None
) -> Iterator[tuple[Line, Certified]]:
    """Certificates of all rows, line by line; images without votes abstain with the bounds that hold of anything."""
    usable = rows.usable
    whole = bool(usable.all())
    own = slice(None) if whole else usable
    dimension = int(np.prod(plan.image_shape))
    for protocol in view.protocols if usable.any() else ():
        if PROTOCOLS[protocol].sequential:
            outcomes = outcomes_of_looks(_of_usable(rows.looks(protocol), usable), plan.num_classes)
        else:
            votes = as_votes(rows.estimation[own], rows.selection[own], rows.labels[own], rows.draws[own])
            outcomes = outcomes_of(votes, PROTOCOLS[protocol])
        for certificate in view.certificates:
            result = certify_outcomes(
                outcomes,
                certificate=CERTIFICATES[certificate],
                protocol=PROTOCOLS[protocol],
                scale=plan.spec.noise.build().scale,
                alpha=view.alpha,
                dimension=dimension,
                uniform=None if uniform is None else uniform[own],
                stages=plan.spec.sampling.stages,
            )
            yield Line(certificate, protocol), result if whole else _spread(result, usable)
    if not usable.any():
        for line in view.lines:
            yield line, _nothing(len(usable))


def _of_usable(looks: Looks, usable: NDArray[np.bool_]) -> Looks:
    """Without the images that could not be counted, which nobody looked at."""
    place = np.cumsum(usable) - 1
    return replace(looks, candidate=looks.candidate[usable], image=place[looks.image])


def _nothing(images: int) -> Certified:
    return Certified(
        prediction=np.full(images, -1),
        abstain=np.ones(images, dtype=bool),
        radius=np.zeros(images),
        p1_lower=np.zeros(images),
        p2_upper=np.ones(images),
    )


def _spread(counted: Certified, usable: NDArray[np.bool_]) -> Certified:
    result = _nothing(len(usable))
    for name, values in vars(counted).items():
        getattr(result, name)[usable] = values
    return result


def _rows(
    rows: CountRows,
    line: Line,
    result: Certified,
    correct: NDArray[np.bool_],
    alpha: float,
    uniform: NDArray[np.float64] | None,
) -> pa.Table:
    images = len(correct)
    columns: dict[str, Any] = {
        "index": rows.table["index"],
        "key": rows.table["key"],
        "label": rows.table["label"],
        "prediction": pa.array(result.prediction, mask=result.abstain),
        "correct": correct,
        "certificate": pa.repeat(line.certificate, images),
        "protocol": pa.repeat(line.protocol, images),
        "alpha": pa.repeat(alpha, images),
        "norm": pa.repeat(CERTIFICATES[line.certificate].norm, images),
        "radius": result.radius,
        "p1_lower": result.p1_lower,
        "p2_upper": result.p2_upper,
        "draws": rows.draws,
        "uniform": pa.nulls(images, pa.float64()) if uniform is None else uniform,
    }
    return pa.table(columns, schema=CERTIFICATES_SCHEMA)


def _curve(
    view: View, plan: Plan, summary: Summary, line: Line, certified: NDArray[np.int64], abstained: int
) -> pa.Table:
    points, images = len(view.radii), summary.images
    accuracy = certified / images
    nothing = pa.nulls(points, pa.float64())
    guaranteed: Any = nothing
    lower: Any = nothing
    upper: Any = nothing
    population_guaranteed: Any = nothing
    alpha = line.alpha(view.alpha)
    # Whatever line and radius is picked from the table, its guarantee has been paid for.
    share = view.beta / (points * sum(other.guaranteed for other in view.lines) or 1)
    if line.guaranteed:
        # Of all images, not only of those counted: so it holds at every look at a run that is still going on.
        guaranteed = truly_certified(certified, images, alpha=alpha, beta=share) / images
    if images < plan.dataset_size and not summary.missing:
        whole = plan.dataset_size
        lower, upper = (count / whole for count in population_interval(certified, images, whole, beta=view.beta))
        if line.guaranteed:
            # One half for the sample, the other for the noise of all images, counted or not.
            least, _ = population_interval(certified, images, whole, beta=share)
            population_guaranteed = truly_certified(least, whole, alpha=alpha, beta=share / 2) / whole
    columns: dict[str, Any] = {
        "certificate": pa.repeat(line.certificate, points),
        "protocol": pa.repeat(line.protocol, points),
        "alpha": pa.repeat(view.alpha, points),
        "norm": pa.repeat(CERTIFICATES[line.certificate].norm, points),
        "radius": np.array(view.radii, dtype=np.float64),
        "certified_accuracy": accuracy,
        "paper_accuracy": (1 - view.alpha) * accuracy if line.protocol == "paper" else nothing,
        "guaranteed_accuracy": guaranteed,
        "population_lower": lower,
        "population_upper": upper,
        "population_guaranteed": population_guaranteed,
        "beta": pa.repeat(view.beta, points),
        "certified": certified,
        "images": pa.repeat(images, points),
        "abstained": pa.repeat(abstained, points),
        "failed": pa.repeat(summary.failed, points),
        "missing": pa.repeat(summary.missing, points),
    }
    return pa.table(columns, schema=CURVES_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
