"""The tables a reduce publishes: their columns, what they are of, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan, decisive
from orchestrator.spec import Spec
from stn_core.confidence import PROTOCOLS, Interval
from workers import layout
from workers.columns import column
from workers.store import ObjectMissing, Store

#: Version of the two tables below.
SCHEMA_VERSION = 2

CERTIFICATES_SCHEMA = pa.schema(
    [
        column("index", pa.int64(), "the image's number in the data set"),
        column("key", pa.int64(), "the image's identity, as in counts"),
        column("label", pa.int64(), "its true class"),
        column("prediction", pa.int64(), "the class that is certified", null="where the image abstains, or failed"),
        column("correct", pa.bool_(), "whether the prediction is the label"),
        column("certificate", pa.string(), "the bound that the radius is by"),
        column("protocol", pa.string(), "how votes bound probabilities"),
        column("alpha", pa.float64(), "chance that the certificate is false, asked for"),
        column("norm", pa.string(), "of the radius: l1, l2 or linf"),
        column(
            "radius",
            pa.float64(),
            "no perturbation of at most this size changes the prediction; [0, 1] pixel units, rounded down; 0 without "
            "prediction",
        ),
        column("p1_lower", pa.float64(), "lower bound on the probability of the prediction under noise"),
        column("p2_upper", pa.float64(), "upper bound on that of any other class"),
        column("draws", pa.int64(), "estimation draws of all rounds; 0 where the image failed, could not be counted"),
        column("uniform", pa.float64(), "the image's variate in [0, 1)", null="unless intervals are randomised"),
    ]
)

CURVES_SCHEMA = pa.schema(
    [
        column("certificate", pa.string(), "the bound that radii are by"),
        column("protocol", pa.string(), "how votes bound probabilities"),
        column("alpha", pa.float64(), "chance that an image's certificate is false, asked for"),
        column("norm", pa.string(), "of the radius: l1, l2 or linf"),
        column("radius", pa.float64(), "at which the row is, [0, 1] pixel units"),
        column("certified_accuracy", pa.float64(), "certified / images"),
        column(
            "paper_accuracy",
            pa.float64(),
            "certified_accuracy x (1 - alpha), the paper's section 4",
            null="unless the protocol is paper, the paper's own",
        ),
        column(
            "guaranteed_accuracy",
            pa.float64(),
            "at least this fraction is truly certified: all of a table's together with probability 1 - beta",
            null="where the protocol guarantees nothing",
        ),
        column(
            "population_lower",
            pa.float64(),
            "certified accuracy on the whole data set, of which the run's images are as if drawn at random, is at "
            "least this, and at most population_upper, with probability 1 - beta, each radius by itself",
            null="where the run covers the whole data set, or is incomplete",
        ),
        column("population_upper", pa.float64(), "see population_lower", null="likewise"),
        column(
            "population_guaranteed",
            pa.float64(),
            "as guaranteed_accuracy, of the whole data set",
            null="likewise, or where the protocol guarantees nothing",
        ),
        column("beta", pa.float64(), "chance that a statement about the whole table is false"),
        column("certified", pa.int64(), "images certified for their label with at least this radius"),
        column("images", pa.int64(), "all images of the run, the denominator: counted, failed and missing"),
        column("abstained", pa.int64(), "images whose votes decide nothing"),
        column("failed", pa.int64(), "images that could not be counted"),
        column("missing", pa.int64(), "images not counted yet: more than 0 in a partial table"),
    ]
)

METADATA_KEY = b"stn"


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
        undecided: counted images that need more draws to decide what the run's votes are to decide.
        passes: forward passes done, one per noisy image; None where the tables are from before they were kept.
    """

    images: int
    counted: int
    failed: int
    missing: int
    majority_correct: int
    invalid_votes: int
    ties: int | None
    undecided: int = 0
    passes: int | None = None

    @property
    def complete(self) -> bool:
        """Every image has votes enough."""
        return self.counted == self.images and not self.undecided

    @property
    def lacking(self) -> str:
        """What an incomplete run lacks, in one line."""
        undecided = f", {self.undecided} of those counted undecided" if self.undecided else ""
        return (
            f"incomplete: of {self.images} images {self.counted} counted, {self.failed} failed, "
            f"{self.missing} missing{undecided}; failed and missing ones count as not certified"
        )


@dataclass(frozen=True)
class Reduced:
    """A reduced run.

    Attributes:
        view: what was computed.
        summary: what became of the images.
        curves: by CURVES_SCHEMA.
        goal: what the votes were to decide, by ``goal_of``.
        objects: with votes in the store; None of runs whose draws all come in the first round.
    """

    view: View
    summary: Summary
    curves: pa.Table
    goal: dict[str, Any]
    objects: int | None


def goal_of(plan: Plan) -> dict[str, Any]:
    """What a run's votes are to decide, in JSON's own types; nothing where their number was fixed beforehand."""
    return decisive(plan.asked) if plan.sequential else {}


def settled(last: Reduced | None, plan: Plan, objects: int) -> bool:
    """Whether these votes were found to decide all that they are to decide, when the ``last`` tables were published.

    Then they still do: whoever has another version, which might ask for more, is not to undo a finished run.
    """
    return last is not None and last.summary.complete and (last.goal, last.objects) == (goal_of(plan), objects)


def published(store: Store, *, partial: bool = False) -> Reduced | None:
    """What the last reduce published, if it was of this version. Raises RunError if it is damaged or of a newer one."""
    key = (layout.PARTIAL if partial else "") + layout.CURVES
    try:
        content = store.read(key)
    except ObjectMissing:
        return None
    try:
        # Not by read_table: its threads may let go of the content when Python is ending, which aborts the process.
        curves = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        metadata = json.loads(curves.schema.metadata[METADATA_KEY])
        version = metadata["schema_version"]
        if not isinstance(version, int):
            raise ValueError(f"its schema_version is {version!r}")
        if version < SCHEMA_VERSION:
            return None
        if version == SCHEMA_VERSION:
            view, summary = View.from_json(metadata["view"]), Summary(**metadata["summary"])
            return Reduced(view, summary, curves, metadata.get("goal", {}), metadata.get("objects"))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{store.uri}/{key} is damaged: run `stn reduce` again") from error
    raise RunError(f"{store.uri}/{key} was written by a newer version (schema {version}): update this installation")


def read_certificates(
    store: Store, reduced: Reduced, columns: Sequence[str] | None = None, *, partial: bool = False
) -> pa.Table:
    """The table of certificates published with ``reduced``, or some of its columns; names as dictionaries.

    Raises RunError if it is missing, damaged, or of another reduce: two at once may have published in turns.
    """
    key = (layout.PARTIAL if partial else "") + layout.CERTIFICATES
    try:
        file = pq.ParquetFile(pa.BufferReader(store.read(key)), read_dictionary=["certificate", "protocol", "norm"])
        if file.metadata.metadata.get(METADATA_KEY) == reduced.curves.schema.metadata[METADATA_KEY]:
            return file.read(columns)
    except (ObjectMissing, pa.ArrowException, OSError) as error:
        raise RunError(f"{store.uri}/{key} is missing or damaged: run `stn reduce` again") from error
    raise RunError(f"{store.uri}/{key} and {layout.CURVES} are of two reduces: run `stn reduce` again")
