"""A run with its published curves, as reports and comparisons read it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from orchestrator.reducing.runs import read_plan
from orchestrator.reducing.tables import Line, Reduced, goal_of, published
from orchestrator.training import epochs
from workers import layout
from workers.sealed import NewerVersion
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
    def complete(self) -> bool:
        """Every image has votes enough for what they are to decide, and the tables are of that."""
        return self.reduced.summary.complete and not self.outdated

    @property
    def outdated(self) -> bool:
        """The votes have been given something else to decide since the tables were published."""
        return self.reduced.goal != goal_of(self.plan)

    @property
    def lacking(self) -> str:
        """What the run lacks, beginning with INCOMPLETE; nothing where it is complete."""
        summary = self.reduced.summary
        if self.complete:
            return ""
        if self.outdated:
            return "INCOMPLETE: tables of an earlier goal, run `stn certify` again"
        without = [(summary.missing, "missing"), (summary.failed, "failed"), (summary.undecided, "undecided")]
        lacking = ", ".join(f"{count} {what}" for count, what in without if count)
        return f"INCOMPLETE: {lacking} of {summary.images} images"

    @property
    def title(self) -> str:
        """The name, and INCOMPLETE where it is."""
        return f"{self.name} ({self.lacking})" if self.lacking else self.name

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
    run = find_run(store)
    if run is None:
        raise no_certificates(store)
    return run


def find_run(store: Store) -> ReportedRun | None:
    """As ``load_run``; None where the run has no certificates yet."""
    plan = read_plan(store)
    reduced = published(store) or published(store, partial=True)
    return None if reduced is None else ReportedRun(name_of(store), plan, reduced, _epochs(store))


def no_certificates(store: Store) -> RunError:
    """What there is to say of a run without any."""
    return RunError(f"{store.uri} has no certificates yet: run `stn reduce` first")


def name_of(store: Store) -> str:
    """What the run in ``store`` is called: its last path component."""
    return store.uri.rstrip("/").rsplit("/", 1)[-1]


def _epochs(store: Store) -> tuple[Epoch, ...]:
    try:
        return epochs.decode(store.read(layout.TRAINING))[0]
    except ObjectMissing:
        return ()
    except NewerVersion as error:
        raise RunError(f"{store.uri}/{layout.TRAINING} was {error}: update this installation") from error
    except ValueError as error:
        raise RunError(f"{store.uri}/{layout.TRAINING}: {error}; delete it") from error
