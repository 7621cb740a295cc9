"""Whether published certificates follow from the votes, and curves from the certificates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import RunError, SpecError
from orchestrator.planning.plans import Plan
from orchestrator.reducing.reduction import check_against
from orchestrator.reducing.tables import (
    CERTIFICATES_SCHEMA,
    CURVES_SCHEMA,
    METADATA_KEY,
    Line,
    Summary,
    View,
    goal_of,
    published,
)
from orchestrator.upkeep.findings import Findings
from orchestrator.upkeep.votes import Votes
from stn_core import audit
from stn_core.certificates import CERTIFICATES
from stn_core.dataset import population_interval, truly_certified
from stn_core.naming import listed, one_line
from stn_core.noise import interval_variates
from workers import layout
from workers.store import ObjectMissing, Store

#: Rows of certificates in memory at a time.
_ROWS = 2**14

#: A row of a table.
Row = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A published table of certificates, and its curves.

    Attributes:
        folder: where both lie in the run: "" where it was complete.
        file: the certificates.
        view, summary: as the certificates' metadata has them.
        outdated: the run's votes have been given something else to decide since.
        curves: their rows; None where they cannot be compared.
    """

    folder: str
    file: pq.ParquetFile
    view: View
    summary: Summary
    outdated: bool
    curves: list[Row] | None

    @property
    def certificates_key(self) -> str:
        return self.folder + layout.CERTIFICATES

    @property
    def curves_key(self) -> str:
        return self.folder + layout.CURVES

    def rows(self, found: Findings) -> Iterator[list[Row]]:
        """The certificates, up to where the file is damaged."""
        try:
            for batch in self.file.iter_batches(_ROWS):
                yield batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            found.add("certificate", self.certificates_key, f"is damaged: {one_line(error)}")


def open_published(store: Store, plan: Plan, folder: str, found: Findings) -> Published | None:
    """The tables in that folder of the run; None where none of this version are published, or they cannot be read."""
    certificates, curves = folder + layout.CERTIFICATES, folder + layout.CURVES
    try:
        reduced = published(store, partial=bool(folder))
    except RunError as error:
        found.add("curve", curves, one_line(error))
        reduced = None
    else:
        if reduced is None:
            return None  # a reduce that was interrupted leaves certificates without curves
    try:
        file = pq.ParquetFile(pa.BufferReader(store.read(certificates)))
        if not file.schema_arrow.equals(CERTIFICATES_SCHEMA):
            raise ValueError("its columns are not those of certificates")
        metadata = (file.metadata.metadata or {})[METADATA_KEY]
        facts = json.loads(metadata)
        view, summary = View.from_json(facts["view"]), Summary(**facts["summary"])
        if facts["identity"] != plan.identity():
            raise ValueError("its certificates are of another run")
        numbers = [*view.radii, summary.counted, summary.failed]
        if not (view.lines and all(isinstance(number, int | float) for number in numbers)):
            raise ValueError("what it says of itself makes no sense")
        # Tables from before the run was given a goal are held against what it was then.
        check_against(plan if facts.get("goal") else replace(plan, goal=None), view)
    except ObjectMissing:
        found.add("certificate", certificates, "is missing, and curves of it are published")
        return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, SpecError) as error:
        found.add("certificate", certificates, f"is damaged: {one_line(error)}")
        return None
    rows = None if reduced is None else _curves(reduced.curves, metadata, curves, certificates, found)
    return Published(folder, file, view, summary, facts.get("goal", {}) != goal_of(plan), rows)


def _curves(table: pa.Table, metadata: bytes, key: str, certificates: str, found: Findings) -> list[Row] | None:
    """The rows of curves; None if they are not those of certificates with that metadata."""
    if not table.schema.equals(CURVES_SCHEMA):
        found.add("curve", key, "is damaged: its columns are not those of curves")
    elif table.schema.metadata[METADATA_KEY] != metadata:
        found.add("curve", key, f"is of another reduce than {certificates}")
    else:
        try:
            return table.to_pylist()
        except UnicodeDecodeError as error:
            found.add("curve", key, f"is damaged: {one_line(error)}")
    return None


class Audit:
    """Published certificates, held against the votes row by row, and then as a whole.

    Attributes:
        rederived: rows held against their votes.
        skipped: rows whose votes cannot be read.
    """

    def __init__(self, tables: Published, plan: Plan, votes: Votes, found: Findings) -> None:
        self._tables, self._plan, self._votes, self._found = tables, plan, votes, found
        self.rederived = self.skipped = self._outdated = 0
        view, images = tables.view, plan.images
        self._sums = {line: _Sums(np.zeros(images, dtype=bool), np.zeros(len(view.radii), int)) for line in view.lines}
        self._radii = np.array(view.radii)
        self._uniform: NDArray[np.float64] | None = None
        if view.interval == "randomised":
            self._uniform = interval_variates(plan.spec.sampling.seed, votes.key)
        self._terms = {
            line: audit.Terms(
                certificate=line.certificate,
                protocol=line.protocol,
                scale=plan.spec.noise.build().scale,
                alpha=view.alpha,
                classes=plan.num_classes,
                dimension=math.prod(plan.image_shape),
                interval=view.interval,
                stages=plan.spec.sampling.stages or (),
            )
            for line in view.lines
        }
        for line in view.lines:
            if not audit.has_rule(line.certificate, line.protocol):
                text = f"{line.certificate} under {line.protocol} is not re-derived: there is no rule for it"
                found.add("certificate", tables.certificates_key, text)

    def add(self, row: Row) -> None:
        """One row."""
        line = Line(row["certificate"], row["protocol"])
        for text in self._wrong_with(line, row) if line in self._sums else ["was not asked for"]:
            where = f"image {row['index']}, {line.certificate} under {line.protocol}"
            self._found.add("certificate", f"{self._tables.certificates_key}, {where}", text)

    def _wrong_with(self, line: Line, row: Row) -> list[str]:
        sums, votes = self._sums[line], self._votes
        sums.add(row, self._radii)
        if row["index"] not in self._plan.indices:
            return ["is no image of the plan"]
        position = self._plan.indices.index(row["index"])
        if sums.seen[position]:
            return ["is there twice"]
        sums.seen[position] = True
        if not votes.present[position]:
            return ["has no votes"]
        if not (votes.counted[position] or votes.failed[position]):
            self.skipped += 1
            return []
        draws = int(votes.draws[position])
        if (votes.retried[position] and row["draws"] == 0) or (self._plan.sequential and 0 < row["draws"] < draws):
            self._outdated += 1
            return []
        uniform = None if self._uniform is None else float(self._uniform[position])
        expected: Row = {
            "key": int(votes.key[position]),
            "label": int(votes.label[position]),
            "draws": draws,
            "alpha": self._tables.view.alpha,
            "norm": CERTIFICATES[line.certificate].norm,
            "uniform": uniform,
            "correct": row["prediction"] is not None and row["prediction"] == row["label"],
        }
        wrong = [f"{name} is {row[name]!r}, not {value!r}" for name, value in expected.items() if row[name] != value]
        if not audit.has_rule(line.certificate, line.protocol):
            return wrong
        self.rederived += 1
        claim = audit.Claim(row["prediction"], row["p1_lower"], row["p2_upper"], row["radius"])
        standing = audit.Standing(int(votes.candidates[line.protocol][position]), votes.looks[line.protocol][position])
        return wrong + audit.audit_standing(self._terms[line], claim, standing, uniform)

    def finish(self) -> list[str]:
        """Look at the tables as a whole. What they lack because more has been counted since."""
        key, summary, votes = self._tables.certificates_key, self._tables.summary, self._votes
        there = int(votes.present.sum())
        rows = next(iter(self._sums.values())).rows
        alike = len({sums.seen.tobytes() for sums in self._sums.values()}) == 1
        lacking = []
        stale = alike and bool(self._tables.folder) and rows == summary.counted + summary.failed < there
        if stale:
            lacking.append(f"{key} is of {rows} images of the {there} looked at so far: run `stn reduce`")
        else:
            for line, sums in self._sums.items():
                if len(absent := np.flatnonzero(votes.present & ~sums.seen)):
                    images = listed(self._plan.indices[place] for place in absent.tolist())
                    text = f"has no {line.certificate} under {line.protocol} of images {images}"
                    self._found.add("certificate", key, text)
        if self._tables.outdated:
            lacking.append(f"{key} is from before the run was given another goal: run `stn certify`")
        if self._outdated:
            again = self._outdated // len(self._sums)
            what = "given more draws, or tried again" if self._plan.sequential else "tried again"
            lacking.append(f"{key} is from before {again} images were {what}: run `stn reduce`")
        self._check_summary()
        if self._tables.curves is not None:
            self._check_curves(self._tables.curves)
        return lacking

    def _check_summary(self) -> None:
        """What the tables say of themselves; sums over votes where the tables are of all that there are."""
        said, votes, images = self._tables.summary, self._votes, self._plan.images
        sums = next(iter(self._sums.values()))
        expected: Row = {
            "images": images,
            "counted": sums.rows - sums.failed,
            "failed": sums.failed,
            "missing": images - sums.rows,
        }
        if not self._outdated and np.array_equal(sums.seen, votes.counted | votes.failed):
            expected |= {
                "majority_correct": votes.majority_correct,
                "invalid_votes": votes.invalid,
                "ties": votes.ties,
                "undecided": votes.undecided,
                "passes": votes.passes if said.passes is not None else None,
            }
        for name, value in expected.items():
            if (found := getattr(said, name)) != value:
                text = f"its summary says {name} is {found!r}, not {value!r}"
                self._found.add("certificate", self._tables.certificates_key, text)

    def _check_curves(self, curves: list[Row]) -> None:
        """Curves are what counting the rows of certificates gives."""
        expected = {
            (line.certificate, line.protocol, row["radius"]): row
            for line, sums in self._sums.items()
            for row in expected_curve(line, sums, self._tables.view, self._plan)
        }
        for row in curves:
            place = row["certificate"], row["protocol"], row["radius"]
            values = expected.pop(place, None)
            for text in ["is there twice, or was not asked for"] if values is None else differences(row, values):
                self._found.add("curve", self._where(place), text)
        for place in expected:
            self._found.add("curve", self._where(place), "is missing")

    def _where(self, place: tuple[str, str, float]) -> str:
        certificate, protocol, radius = place
        return f"{self._tables.curves_key}, {certificate} under {protocol} at {radius!r}"


@dataclass
class _Sums:
    """What counting a line's certificates gives.

    Attributes:
        seen: the image has a row, by its place in the plan.
        certified: rows that are correct with at least each radius.
        rows, failed, abstained: of all images, of those without votes, and of those whose votes decide nothing.
    """

    seen: NDArray[np.bool_]
    certified: NDArray[np.int64]
    rows: int = 0
    failed: int = 0
    abstained: int = 0

    def add(self, row: Row, radii: NDArray[np.float64]) -> None:
        self.rows += 1
        self.failed += row["draws"] == 0
        self.abstained += row["draws"] > 0 and row["prediction"] is None
        if row["correct"]:
            self.certified += row["radius"] >= radii


def expected_curve(line: Line, sums: _Sums, view: View, plan: Plan) -> Iterator[Row]:
    """The rows that a line's curve must have."""
    images, whole = plan.images, plan.dataset_size
    alpha = line.alpha(view.alpha)
    share = view.beta / (len(view.radii) * sum(other.guaranteed for other in view.lines) or 1)
    for radius, certified in zip(view.radii, sums.certified.tolist(), strict=True):
        row: Row = dict.fromkeys(CURVES_SCHEMA.names) | {
            "certificate": line.certificate,
            "protocol": line.protocol,
            "alpha": view.alpha,
            "norm": CERTIFICATES[line.certificate].norm,
            "radius": radius,
            "certified_accuracy": certified / images,
            "beta": view.beta,
            "certified": certified,
            "images": images,
            "abstained": sums.abstained,
            "failed": sums.failed,
            "missing": images - sums.rows,
        }
        if line.protocol == "paper":
            row["paper_accuracy"] = (1 - view.alpha) * (certified / images)
        if line.guaranteed:
            row["guaranteed_accuracy"] = int(truly_certified(certified, images, alpha=alpha, beta=share)) / images
        if images < whole and sums.rows == images:
            least, most = population_interval(certified, images, whole, beta=view.beta)
            row["population_lower"], row["population_upper"] = int(least) / whole, int(most) / whole
            if line.guaranteed:
                least, _ = population_interval(certified, images, whole, beta=share)
                truly = truly_certified(least, whole, alpha=alpha, beta=share / 2)
                row["population_guaranteed"] = int(truly) / whole
        yield row


def differences(row: Row, expected: Row) -> Iterator[str]:
    """In what a row of curves is another; fractions may differ in their last places."""
    for name, value in expected.items():
        found = row[name]
        fractions = isinstance(found, float) and isinstance(value, float)
        if not (math.isclose(found, value, rel_tol=1e-12) if fractions else found == value):
            yield f"{name} is {found!r}, and the certificates give {value!r}"
