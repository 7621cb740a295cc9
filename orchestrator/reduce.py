"""From stored votes to certificates and curves. No model, no GPU, no cluster: only the store."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import RunError, SpecError
from orchestrator.plan import Plan
from orchestrator.runs import ShardVotes, counted_shards, read_shard
from orchestrator.spec import Spec, check_view
from stn_core.certificates import CERTIFICATES
from stn_core.certify import Certified, certify
from stn_core.curves import certified_correct
from workers import layout
from workers.store import ObjectMissing, Store

#: Version of the two tables below.
SCHEMA_VERSION = 1

CERTIFICATES_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("prediction", pa.int64()),  # null where the image abstains or could not be counted
        pa.field("correct", pa.bool_(), nullable=False),  # certified, and for the label
        pa.field("certificate", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("alpha", pa.float64(), nullable=False),
        pa.field("norm", pa.string(), nullable=False),
        pa.field("radius", pa.float64(), nullable=False),  # in [0, 1] pixel units, rounded down; 0 without prediction
        pa.field("p1_lower", pa.float64(), nullable=False),
        pa.field("p2_upper", pa.float64(), nullable=False),
        pa.field("draws", pa.int64(), nullable=False),  # estimation draws; 0 where the image could not be counted
    ]
)

CURVES_SCHEMA = pa.schema(
    [
        pa.field("certificate", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("alpha", pa.float64(), nullable=False),
        pa.field("norm", pa.string(), nullable=False),
        pa.field("radius", pa.float64(), nullable=False),
        pa.field("certified_accuracy", pa.float64(), nullable=False),  # certified / images
        pa.field("paper_accuracy", pa.float64()),  # x (1 - alpha), the paper's section 4; its own protocol only
        pa.field("certified", pa.int64(), nullable=False),  # correct, with at least this radius
        pa.field("images", pa.int64(), nullable=False),  # all images of the plan: the denominator
        pa.field("abstained", pa.int64(), nullable=False),  # counted, and the votes decide nothing
        pa.field("failed", pa.int64(), nullable=False),  # could not be counted
        pa.field("missing", pa.int64(), nullable=False),  # not counted yet
    ]
)

_METADATA_KEY = b"stn"

#: Rows of certificates gathered before they are written: a row group per shard would cost more than its rows.
_ROW_GROUP = 100_000


@dataclass(frozen=True)
class View:
    """Which certificates to compute from the votes.

    Attributes:
        certificates: names in ``CERTIFICATES``.
        protocols: names in ``PROTOCOLS``; every certificate is computed under each.
        alpha: failure probability of one image's certificate.
        radii: where curves are read off, in [0, 1] pixel units, increasing.
    """

    certificates: tuple[str, ...]
    protocols: tuple[str, ...]
    alpha: float
    radii: tuple[float, ...]

    @classmethod
    def of(cls, spec: Spec) -> View:
        """The view a spec asks for."""
        return cls(spec.certificates, (spec.confidence.protocol,), spec.confidence.alpha, spec.radii)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> View:
        """The inverse of ``dataclasses.asdict``, which JSON has made lists of tuples in."""
        return cls(tuple(values["certificates"]), tuple(values["protocols"]), values["alpha"], tuple(values["radii"]))


@dataclass(frozen=True)
class Summary:
    """What became of a run's images: ``images`` = ``counted`` + ``failed`` + ``missing``.

    Attributes:
        images: in the plan.
        counted: with votes.
        failed: that could not be counted.
        missing: not counted yet.
        majority_correct: counted images whose most voted class is the label: natural accuracy under noise.
        invalid_votes: estimation draws whose logits held a NaN.
    """

    images: int
    counted: int
    failed: int
    missing: int
    majority_correct: int
    invalid_votes: int

    @property
    def complete(self) -> bool:
        """Every image has votes."""
        return self.counted == self.images


@dataclass(frozen=True)
class Reduced:
    """A reduced run.

    Attributes:
        view: what was computed.
        summary: what became of the images.
        curves: by CURVES_SCHEMA.
    """

    view: View
    summary: Summary
    curves: pa.Table


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
    folder = "" if len(present) == plan.shards else layout.PARTIAL
    combinations = list(itertools.product(view.certificates, view.protocols))
    certified = {combination: np.zeros(len(view.radii), dtype=np.int64) for combination in combinations}
    abstained = dict.fromkeys(combinations, 0)
    counted = failed = majority_correct = invalid = 0
    rows: list[pa.Table] = []

    sink = io.BytesIO()
    with pq.ParquetWriter(sink, CERTIFICATES_SCHEMA, compression="zstd") as writer:
        for shard in present:
            votes = read_shard(store, plan, shard)
            usable = votes.draws > 0
            counted += int(usable.sum())
            failed += int((~usable).sum())
            invalid += votes.invalid
            voted = votes.estimation.any(axis=1)
            majority_correct += int((voted & (votes.estimation.argmax(axis=1) == votes.labels)).sum())
            for name, protocol in combinations:
                result = _certify(votes, usable, plan, name, protocol, view.alpha)
                correct = ~result.abstain & (result.prediction == votes.labels)
                certified[name, protocol] += certified_correct(result.radius, correct, view.radii)
                abstained[name, protocol] += int((result.abstain & usable).sum())
                rows.append(_rows(votes, result, correct, name, protocol, view.alpha))
            if sum(part.num_rows for part in rows) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(rows))
                rows.clear()
            observe(1)
        if rows:
            writer.write_table(pa.concat_tables(rows))
        summary = Summary(plan.images, counted, failed, plan.images - counted - failed, majority_correct, invalid)
        facts = {"view": asdict(view), "summary": asdict(summary), **plan.provenance()}
        metadata = json.dumps({"schema_version": SCHEMA_VERSION, **facts}, sort_keys=True)
        writer.add_key_value_metadata({_METADATA_KEY: metadata.encode()})

    curves = _curves(view, summary, certified, abstained).replace_schema_metadata({_METADATA_KEY: metadata.encode()})
    # Curves carry the view and are published last: while they exist, both tables are of that view. An incomplete run
    # has no complete tables, or no longer.
    for stale in (layout.CURVES, layout.PARTIAL + layout.CURVES):
        store.delete(stale)
    store.replace(folder + layout.CERTIFICATES, sink.getvalue())
    store.replace(folder + layout.CURVES, _parquet(curves))
    store.delete(layout.CERTIFICATES if folder else layout.PARTIAL + layout.CERTIFICATES)
    return Reduced(view, summary, curves)


def published(store: Store, *, partial: bool = False) -> Reduced | None:
    """What the last reduce published, or None. Raises RunError if it is damaged or of a newer version."""
    folder = layout.PARTIAL if partial else ""
    try:
        content = store.read(folder + layout.CURVES)
    except ObjectMissing:
        return None
    try:
        curves = pq.read_table(io.BytesIO(content))
        metadata = json.loads(curves.schema.metadata[_METADATA_KEY])
        version = metadata["schema_version"]
        if version <= SCHEMA_VERSION:
            return Reduced(View.from_json(metadata["view"]), Summary(**metadata["summary"]), curves)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{store.uri}/{folder}{layout.CURVES} is damaged: run `stn reduce` again") from error
    raise RunError(f"{store.uri}/{folder}{layout.CURVES} was written by a newer version: update this installation")


def read_certificates(store: Store, reduced: Reduced, *, partial: bool = False) -> pa.Table:
    """The table of certificates published with ``reduced``.

    Raises RunError if it is missing, damaged, or of another reduce: two at once may have published in turns.
    """
    key = (layout.PARTIAL if partial else "") + layout.CERTIFICATES
    try:
        file = pq.ParquetFile(io.BytesIO(store.read(key)))
        if file.metadata.metadata.get(_METADATA_KEY) == reduced.curves.schema.metadata[_METADATA_KEY]:
            return file.read()
    except (ObjectMissing, pa.ArrowException, OSError) as error:
        raise RunError(f"{store.uri}/{key} is missing or damaged: run `stn reduce` again") from error
    raise RunError(f"{store.uri}/{key} and {layout.CURVES} are of two reduces: run `stn reduce` again")


def check_against(plan: Plan, view: View) -> None:
    """Raise SpecError unless ``view`` can be computed from this run's votes."""
    try:
        check_view(view.certificates, view.protocols, plan.spec.noise, plan.spec.sampling)
    except ValueError as error:
        raise SpecError(str(error)) from error
    if not 0 < view.alpha < 1:
        raise SpecError(f"alpha must lie inside (0, 1), got {view.alpha}")


def _certify(
    votes: ShardVotes, usable: NDArray[np.bool_], plan: Plan, certificate: str, protocol: str, alpha: float
) -> Certified:
    """Certificates of all images; those without votes abstain with the bounds that hold of anything."""
    images = len(usable)
    result = Certified(
        prediction=np.full(images, -1),
        abstain=np.ones(images, dtype=bool),
        radius=np.zeros(images),
        p1_lower=np.zeros(images),
        p2_upper=np.ones(images),
    )
    if usable.any():
        counted = certify(
            votes.estimation[usable],
            votes.selection[usable],
            votes.labels[usable],
            certificate=certificate,
            protocol=protocol,
            sigma=plan.spec.noise.sigma,
            alpha=alpha,
            draws=votes.draws[usable],
        )
        for name, values in vars(counted).items():
            getattr(result, name)[usable] = values
    return result


def _rows(
    votes: ShardVotes, result: Certified, correct: NDArray[np.bool_], certificate: str, protocol: str, alpha: float
) -> pa.Table:
    images = len(correct)
    columns: dict[str, Any] = {
        "index": votes.table["index"],
        "key": votes.table["key"],
        "label": votes.table["label"],
        "prediction": pa.array(result.prediction, mask=result.abstain),
        "correct": correct,
        "certificate": [certificate] * images,
        "protocol": [protocol] * images,
        "alpha": np.full(images, alpha),
        "norm": [CERTIFICATES[certificate].norm] * images,
        "radius": result.radius,
        "p1_lower": result.p1_lower,
        "p2_upper": result.p2_upper,
        "draws": votes.draws,
    }
    return pa.table(columns, schema=CERTIFICATES_SCHEMA)


def _curves(
    view: View,
    summary: Summary,
    certified: dict[tuple[str, str], NDArray[np.int64]],
    abstained: dict[tuple[str, str], int],
) -> pa.Table:
    def rows() -> Iterator[dict[str, Any]]:
        for (name, protocol), counts in certified.items():
            for radius, count in zip(view.radii, counts.tolist(), strict=True):
                accuracy = count / summary.images
                yield {
                    "certificate": name,
                    "protocol": protocol,
                    "alpha": view.alpha,
                    "norm": CERTIFICATES[name].norm,
                    "radius": radius,
                    "certified_accuracy": accuracy,
                    "paper_accuracy": (1 - view.alpha) * accuracy if protocol == "paper" else None,
                    "certified": count,
                    "images": summary.images,
                    "abstained": abstained[name, protocol],
                    "failed": summary.failed,
                    "missing": summary.missing,
                }

    return pa.Table.from_pylist(list(rows()), schema=CURVES_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
