"""From stored votes to certificates and curves. No model, no GPU, no cluster: only the store."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import RunError, SpecError
from orchestrator.plan import Plan
from orchestrator.runs import CountRows, counted_shards, read_votes
from orchestrator.spec import Spec, check_view
from stn_core.certificates import CERTIFICATES
from stn_core.certify import Certified, as_votes, certify_outcomes
from stn_core.confidence import PROTOCOLS, Interval, outcomes_of
from stn_core.curves import certified_correct
from stn_core.dataset import population_interval, truly_certified
from stn_core.naming import one_line
from stn_core.noise import interval_variates
from workers import layout
from workers.store import ObjectMissing, Store

#: Version of the two tables below.
SCHEMA_VERSION = 2

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
        pa.field("uniform", pa.float64()),  # the image's variate where intervals are randomised
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
        # At least this fraction is truly certified: all of a table's together with probability 1 - beta. Null where the
        # protocol guarantees nothing.
        pa.field("guaranteed_accuracy", pa.float64()),
        # Where the run covers part of a data set, as if drawn at random: certified accuracy on the whole set lies
        # between these with probability 1 - beta, each radius by itself.
        pa.field("population_lower", pa.float64()),
        pa.field("population_upper", pa.float64()),
        pa.field("population_guaranteed", pa.float64()),  # as guaranteed_accuracy, of the whole data set
        pa.field("beta", pa.float64(), nullable=False),
        pa.field("certified", pa.int64(), nullable=False),  # correct, with at least this radius
        pa.field("images", pa.int64(), nullable=False),  # all images of the plan: the denominator
        pa.field("abstained", pa.int64(), nullable=False),  # counted, and the votes decide nothing
        pa.field("failed", pa.int64(), nullable=False),  # could not be counted
        pa.field("missing", pa.int64(), nullable=False),  # not counted yet
    ]
)

_METADATA_KEY = b"stn"

#: Rows of certificates that a reader may skip as one.
_ROW_GROUP = 100_000


@dataclass(frozen=True)
class Line:
    """A certificate under a protocol: one line of a figure.

    Attributes:
        certificate: a name in ``CERTIFICATES``.
        protocol: a name in ``PROTOCOLS``.
    """

    certificate: str
    protocol: str

    @property
    def guaranteed(self) -> bool:
        """Whether certificates of this line are true with probability 1 - alpha."""
        return PROTOCOLS[self.protocol].rigorous

    def alpha(self, alpha: float) -> float:
        """The failure probability of one certificate, where ``alpha`` is asked for: 0 where it is certain."""
        return 0.0 if PROTOCOLS[self.protocol].shares is None else alpha


@dataclass(frozen=True)
class View:
    """Which certificates to compute from the votes.

    Attributes:
        certificates: names in ``CERTIFICATES``.
        protocols: names in ``PROTOCOLS``; every certificate is computed under each.
        alpha: failure probability of one image's certificate.
        radii: where curves are read off, in [0, 1] pixel units, increasing.
        interval: how counts bound probabilities.
        beta: failure probability of statements about the whole data set.
    """

    certificates: tuple[str, ...]
    protocols: tuple[str, ...]
    alpha: float
    radii: tuple[float, ...]
    interval: Interval
    beta: float

    @classmethod
    def of(cls, spec: Spec) -> View:
        """The view a spec asks for."""
        confidence = spec.confidence
        return cls(
            spec.certificates,
            (confidence.protocol,),
            confidence.alpha,
            spec.radii,
            confidence.interval,
            confidence.beta,
        )

    @property
    def lines(self) -> list[Line]:
        """Every certificate under every protocol."""
        return [Line(certificate, protocol) for certificate in self.certificates for protocol in self.protocols]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> View:
        """The inverse of ``dataclasses.asdict``, which JSON has made lists of tuples in."""
        lists = {name: tuple(values[name]) for name in ("certificates", "protocols", "radii")}
        return cls(**{**values, **lists})


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
        ties: estimation draws whose largest logit several classes shared; None where some votes are from before they
            were counted.
    """

    images: int
    counted: int
    failed: int
    missing: int
    majority_correct: int
    invalid_votes: int
    ties: int | None

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
    tally = _Tally(view, plan)
    with _scratch_folder() as scratch:
        # On disk, since the table of a large run does not fit in memory.
        table = scratch / layout.CERTIFICATES
        with pq.ParquetWriter(table, CERTIFICATES_SCHEMA, compression="zstd") as writer:
            for votes in read_votes(store, plan, present, observe):
                for rows in tally.add(votes):
                    writer.write_table(rows, row_group_size=_ROW_GROUP)
            summary = tally.summary()
            facts = {"view": asdict(view), "summary": asdict(summary), **plan.provenance()}
            metadata = json.dumps({"schema_version": SCHEMA_VERSION, **facts}, sort_keys=True)
            writer.add_key_value_metadata({_METADATA_KEY: metadata.encode()})
        curves = tally.curves().replace_schema_metadata({_METADATA_KEY: metadata.encode()})
        # Curves carry the view and are published last: while they exist, both tables are of that view. An incomplete
        # run has no complete tables, or no longer.
        for stale in (layout.CURVES, layout.PARTIAL + layout.CURVES):
            store.delete(stale)
        store.replace_file(folder + layout.CERTIFICATES, table)
    store.replace(folder + layout.CURVES, _parquet(curves))
    store.delete(layout.CERTIFICATES if folder else layout.PARTIAL + layout.CERTIFICATES)
    return Reduced(view, summary, curves)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="stn-reduce-") as folder:
            yield Path(folder)
    except OSError as error:  # the store has errors of its own
        raise RunError(
            f"cannot write below {tempfile.gettempdir()}, which TMPDIR chooses: {error.strerror or one_line(error)}"
        ) from error


class _Tally:
    """Sums over all rows, part by part."""

    def __init__(self, view: View, plan: Plan) -> None:
        self._view, self._plan = view, plan
        self._certified = {line: np.zeros(len(view.radii), dtype=np.int64) for line in view.lines}
        self._abstained = dict.fromkeys(view.lines, 0)
        self._counted = self._failed = self._majority_correct = self._invalid = 0
        self._ties: int | None = 0

    def add(self, rows: CountRows) -> Iterator[pa.Table]:
        """Take rows in; their certificates, one table per line."""
        usable, labels = rows.usable, rows.labels
        self._counted += int(usable.sum())
        self._failed += int((~usable).sum())
        self._invalid += rows.total("invalid") or 0
        ties = rows.total("ties")
        self._ties = None if ties is None or self._ties is None else self._ties + ties
        voted = rows.draws > rows.table["invalid"].to_numpy()
        self._majority_correct += int((voted & (rows.estimation.argmax(axis=1) == labels)).sum())
        uniform = None
        if self._view.interval == "randomised":
            uniform = interval_variates(self._plan.spec.sampling.seed, rows.table["key"].to_numpy())
        for line, result in _certify(rows, self._plan, self._view, uniform):
            correct = ~result.abstain & (result.prediction == labels)
            self._certified[line] += certified_correct(result.radius, correct, self._view.radii)
            self._abstained[line] += int((result.abstain & usable).sum())
            yield _rows(rows, line, result, correct, self._view.alpha, uniform)

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
        )

    def curves(self) -> pa.Table:
        summary = self.summary()
        parts = [
            _curve(self._view, self._plan, summary, line, counts, self._abstained[line])
            for line, counts in self._certified.items()
        ]
        return pa.concat_tables(parts)


def published(store: Store, *, partial: bool = False) -> Reduced | None:
    """What the last reduce published, if it was of this version. Raises RunError if it is damaged or of a newer one."""
    key = (layout.PARTIAL if partial else "") + layout.CURVES
    try:
        content = store.read(key)
    except ObjectMissing:
        return None
    try:
        curves = pq.read_table(io.BytesIO(content))
        metadata = json.loads(curves.schema.metadata[_METADATA_KEY])
        version = metadata["schema_version"]
        if not isinstance(version, int):
            raise ValueError(f"its schema_version is {version!r}")
        if version < SCHEMA_VERSION:
            return None
        if version == SCHEMA_VERSION:
            return Reduced(View.from_json(metadata["view"]), Summary(**metadata["summary"]), curves)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{store.uri}/{key} is damaged: run `stn reduce` again") from error
    raise RunError(f"{store.uri}/{key} was written by a newer version: update this installation")


def read_certificates(
    store: Store, reduced: Reduced, columns: Sequence[str] | None = None, *, partial: bool = False
) -> pa.Table:
    """The table of certificates published with ``reduced``, or some of its columns; names as dictionaries.

    Raises RunError if it is missing, damaged, or of another reduce: two at once may have published in turns.
    """
    key = (layout.PARTIAL if partial else "") + layout.CERTIFICATES
    try:
        file = pq.ParquetFile(io.BytesIO(store.read(key)), read_dictionary=["certificate", "protocol", "norm"])
        if file.metadata.metadata.get(_METADATA_KEY) == reduced.curves.schema.metadata[_METADATA_KEY]:
            return file.read(columns)
    except (ObjectMissing, pa.ArrowException, OSError) as error:
        raise RunError(f"{store.uri}/{key} is missing or damaged: run `stn reduce` again") from error
    raise RunError(f"{store.uri}/{key} and {layout.CURVES} are of two reduces: run `stn reduce` again")


def check_against(plan: Plan, view: View) -> None:
    """Raise SpecError unless ``view`` can be computed from this run's votes."""
    try:
        check_view(view.certificates, view.protocols, plan.spec.noise, plan.spec.sampling)
    except ValueError as error:
        raise SpecError(str(error)) from error
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
    votes = as_votes(rows.estimation[own], rows.selection[own], rows.labels[own], rows.draws[own])
    dimension = int(np.prod(plan.image_shape))
    for protocol in view.protocols if usable.any() else ():
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
            )
            yield Line(certificate, protocol), result if whole else _spread(result, usable)
    if not usable.any():
        for line in view.lines:
            yield line, _nothing(len(usable))


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
