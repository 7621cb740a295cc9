"""A run with its published curves, as reports and comparisons read it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import epochs
from orchestrator.errors import RunError
from orchestrator.plan import Plan
from orchestrator.runs import read_plan
from orchestrator.tables import Line, Reduced, published
from workers import layout
from workers.store import ObjectMissing, Store
from workers.training import Epoch


@dataclass(frozen=True)
class ReportedRun:
    """A run as reports show it.

    Attributes:
        name: the run's last path component.
        plan: what it is.
        reduced: its view, summary and curves.
        epochs: of its network's training; empty where nothing is known of them.
    """

    name: str
    plan: Plan
    reduced: Reduced
    epochs: tuple[Epoch, ...] = ()

    @property
    def title(self) -> str:
        """The name, and INCOMPLETE where it is."""
        summary = self.reduced.summary
        if summary.complete:
            return self.name
        without = [(summary.missing, "missing"), (summary.failed, "failed"), (summary.undecided, "undecided")]
        lacking = ", ".join(f"{count} {what}" for count, what in without if count)
        return f"{self.name} (INCOMPLETE: {lacking} of {summary.images} images)"

    @property
    def lines(self) -> dict[Line, pa.Table]:
        """Each line's curve, in table order."""
        curves = self.reduced.curves
        return {
            line: curves.filter(
                pc.and_(pc.equal(curves["certificate"], line.certificate), pc.equal(curves["protocol"], line.protocol))
            )
            for line in self.reduced.view.lines
        }


def load_run(store: Store) -> ReportedRun:
    """The run in ``store``, its partial view if it is incomplete. Raises RunError."""
    plan = read_plan(store)
    reduced = published(store) or published(store, partial=True)
    if reduced is None:
        raise RunError(f"{store.uri} has no certificates yet: run `stn reduce` first")
    return ReportedRun(store.uri.rstrip("/").rsplit("/", 1)[-1], plan, reduced, _epochs(store))


def _epochs(store: Store) -> tuple[Epoch, ...]:
    try:
        return epochs.decode(store.read(layout.TRAINING))[0]
    except ObjectMissing:
        return ()
    except ValueError as error:
        raise RunError(f"{store.uri}/{layout.TRAINING}: {error}; delete it") from error
