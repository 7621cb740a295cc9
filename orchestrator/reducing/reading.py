"""A run's tables, for whoever has a question of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from orchestrator.reducing.runs import read_plan
from orchestrator.reducing.tables import Reduced, Summary, goal_of, published, read_certificates
from orchestrator.reporting.reported import no_certificates
from workers.store import Store


@dataclass(frozen=True)
class Results:
    """What a run's votes certify, by the view that was last taken of them.

    Attributes:
        store: where the run is.
        reduced: the view, and what came of it.
        outdated: the votes have been given something else to decide since the tables were published.
    """

    store: Store = field(repr=False)
    reduced: Reduced = field(repr=False)
    outdated: bool = field(default=False, kw_only=True)

    @property
    def run(self) -> str:
        """Where the run is: an absolute path, or s3://bucket/prefix."""
        return self.store.uri

    @property
    def complete(self) -> bool:
        """Every image has votes enough for what they are to decide, and the tables are of that."""
        return self.reduced.summary.complete and not self.outdated

    @property
    def summary(self) -> Summary:
        """What became of the images."""
        return self.reduced.summary

    @property
    def curves(self) -> pa.Table:
        """Certified accuracy by radius, a row for each certificate, protocol and radius: ``tables.CURVES_SCHEMA``."""
        return self.reduced.curves

    @property
    def certificates(self) -> pa.Table:
        """A row for each image, certificate and protocol: ``tables.CERTIFICATES_SCHEMA``. Read from the store anew.

        Raises RunError where a later reduce has replaced them.
        """
        table = read_certificates(self.store, self.reduced, partial=published(self.store) is None)
        # To pandas, a dictionary would be a categorical, which groups otherwise than text.
        return table.cast(pa.schema([_as_text(field) for field in table.schema], table.schema.metadata))

    def __repr__(self) -> str:
        summary, view = self.summary, self.reduced.view
        return (
            f"{type(self).__name__}(run={self.run!r}, complete={self.complete}, images={summary.images}, "
            f"counted={summary.counted}, failed={summary.failed}, missing={summary.missing}, "
            f"certificates={view.certificates!r}, protocols={view.protocols!r}, alpha={view.alpha:g})"
        )


def _as_text(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def read_results(store: Store) -> Results:
    """What the last reduce of the run in ``store`` published. Raises RunError where there is no run, or no table."""
    plan = read_plan(store)
    reduced = published(store) or published(store, partial=True)
    if reduced is None:
        raise no_certificates(store)
    return Results(store, reduced, outdated=reduced.goal != goal_of(plan))
