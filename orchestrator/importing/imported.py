"""Results from elsewhere, kept as a table of certificates: no votes, no plan, and what nobody can say is said."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import LogError, RunError
from orchestrator.importing.cohen_log import Log, Source
from orchestrator.reducing.tables import METADATA_KEY
from stn_core.curves import certified_correct
from workers import layout
from workers.columns import column
from workers.store import ObjectMissing, Store

SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        column("index", pa.int64(), "the image's number in the log"),
        column("label", pa.int64(), "its true class"),
        column("prediction", pa.int64(), "the class that is certified", null="where the image abstains"),
        column("correct", pa.bool_(), "whether the prediction is the label"),
        column("radius", pa.float64(), "as it was printed, in [0, 1] pixel units: it may be rounded up"),
        column("radius_least", pa.float64(), "the least radius that is printed so"),
    ]
)

#: Radii of a curve that nobody asked others for, as Cohen et al. print them.
_STEP = 0.25


@dataclass(frozen=True)
class Declared:
    """What the user says of a log, and nothing in it proves. None: nothing is said.

    Attributes:
        sigma: standard deviation of Gaussian noise, in [0, 1] pixel units.
        draws: n.
        alpha: failure probability of one image's certificate.
        norm: of the radii; where nothing is said they are taken to be L2, as Cohen et al. have them.
    """

    sigma: float | None = None
    draws: int | None = None
    alpha: float | None = None
    norm: str | None = None

    @property
    def largest_radius(self) -> float | None:
        """The largest L2 radius that n votes can certify under Gaussian noise, all of them for one class."""
        if self.sigma is None or self.draws is None or self.alpha is None or self.norm not in (None, "l2"):
            return None
        # All votes for one class bound its probability by alpha^(1/n); its distance from 1 keeps every digit.
        return -self.sigma * NormalDist().inv_cdf(-math.expm1(math.log(self.alpha) / self.draws))


@dataclass(frozen=True)
class Imported:
    """A result from elsewhere.

    Attributes:
        name: for people.
        sources: the files it was in.
        declared: what the user says of it.
        notes: what was passed over in reading, in sentences.
        table: by SCHEMA, one row per image, in order of index.
    """

    name: str
    sources: tuple[Source, ...]
    declared: Declared
    notes: tuple[str, ...]
    table: pa.Table

    @property
    def title(self) -> str:
        """The name, and that it is imported."""
        return f"{self.name} (imported)"

    @property
    def norm(self) -> str:
        """Of the radii, declared or not."""
        return self.declared.norm or "l2"

    @property
    def images(self) -> int:
        """How many are listed; how many were meant is unknown."""
        return len(self.table)

    @property
    def abstained(self) -> int:
        """How many of them abstain."""
        return int(self.table["prediction"].null_count)

    @property
    def correct_radii(self) -> NDArray[np.float64]:
        """Radii of the images certified for their label, (correct images,)."""
        radii: NDArray[np.float64] = self.table.filter(self.table["correct"])["radius"].to_numpy()
        return radii

    @property
    def unknown(self) -> list[str]:
        """What a reader of certificates would ask, and no such log answers."""
        declared = self.declared
        given = (("n", declared.draws), ("alpha", declared.alpha), ("the noise", declared.sigma))
        return [
            "votes",
            "n0",
            *(name for name, value in given if value is None),
            *(["the norm"] if declared.norm is None else []),
            "the noise's seed",
            "the model and its weights",
            "the data set and its images",
            "the accuracy of the majority of votes",
            "which images failed",
            "whether all images are listed that were meant",
        ]


def import_log(log: Log, name: str, declared: Declared) -> Imported:
    """The table of a log. Raises LogError where what is declared cannot be true of it."""
    columns: dict[str, list[Any]] = {
        column: [getattr(certificate, column) for certificate in log.certificates] for column in SCHEMA.names
    }
    table = pa.table(columns, schema=SCHEMA)
    largest, most = max(columns["radius_least"]), declared.largest_radius
    if most is not None and largest > most:
        raise LogError(
            f"--sigma {declared.sigma:g} --draws {declared.draws} --alpha {declared.alpha:g} allow no radius above "
            f"{most:.4g}, and the log has {max(columns['radius']):g}: at least one of them is not this log's; correct "
            "it, or leave it out"
        )
    return Imported(name, log.sources, declared, log.notes, table)


def certified(imported: Imported, radii: Sequence[float]) -> list[tuple[int, int]]:
    """For each radius, how many images are certified for their label by their printed radius, and how many of those
    would not be if it was rounded up."""
    correct = imported.table["correct"].to_numpy()
    printed, surely = (
        certified_correct(imported.table[name].to_numpy(), correct, radii).tolist()
        for name in ("radius", "radius_least")
    )
    return [(count, count - sure) for count, sure in zip(printed, surely, strict=True)]


def radii_beside(imported: Imported, shown: Sequence[float]) -> list[float]:
    """Where to read the curve off: at the radii ``shown`` beside it, else at every quarter up to its largest."""
    if shown:
        return sorted(set(shown))
    most = max(imported.correct_radii, default=0.0)
    return [step * _STEP for step in range(int(most / _STEP) + 2)]


def curve(imported: Imported, radii: Sequence[float]) -> list[dict[str, Any]]:
    """The curve's points as plain data; what is unknown is None."""
    return [
        {
            "norm": imported.norm,
            "radius": radius,
            "certified_accuracy": count / imported.images,
            "guaranteed_accuracy": None,
            "certified": count,
            "rounded_up_at_most": doubtful,
            "images": imported.images,
            "abstained": imported.abstained,
            "failed": None,
            "missing": None,
        }
        for radius, (count, doubtful) in zip(radii, certified(imported, radii), strict=True)
    ]


def keep(store: Store, imported: Imported) -> bool:
    """Write the table; False where the same is there already. Raises RunError where anything else is."""
    if store.exists(layout.PLAN):
        raise RunError(f"{store.uri} is a run: choose another --out")
    if store.create(layout.IMPORTED, _encode(imported)):
        return True
    stored = load(store)
    if stored is None:  # deleted meanwhile
        return keep(store, imported)
    if stored == imported:
        return False
    files = ", ".join(source.name for source in stored.sources)
    raise RunError(f"{store.uri} holds another import, {stored.name!r} of {files}: choose another --out, or delete it")


def load(store: Store) -> Imported | None:
    """What ``keep`` wrote; None where it wrote nothing. Raises RunError if it is damaged or newer."""
    place = f"{store.uri}/{layout.IMPORTED}"
    try:
        imported = _decode(store.read(layout.IMPORTED))
    except ObjectMissing:
        return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{place} is damaged: delete it, and import again") from error
    if imported is None:
        raise RunError(f"{place} was written by a newer version: update this installation")
    return imported


def _encode(imported: Imported) -> bytes:
    values = {
        "schema_version": SCHEMA_VERSION,
        "name": imported.name,
        "sources": [dataclasses.asdict(source) for source in imported.sources],
        "declared": dataclasses.asdict(imported.declared),
        "unknown": imported.unknown,
        "notes": imported.notes,
    }
    file = io.BytesIO()
    pq.write_table(imported.table.replace_schema_metadata({METADATA_KEY: json.dumps(values)}), file)
    return file.getvalue()


def _decode(content: bytes) -> Imported | None:
    """The inverse; None where it is of a newer version."""
    table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    values = json.loads((table.schema.metadata or {})[METADATA_KEY])
    if values["schema_version"] > SCHEMA_VERSION:
        return None
    return Imported(
        str(values["name"]),
        tuple(Source(**source) for source in values["sources"]),
        Declared(**values["declared"]),
        tuple(values["notes"]),
        table.replace_schema_metadata(None).cast(SCHEMA),
    )
