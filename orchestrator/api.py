"""What the command line does, as functions: one for each command, under its name and with its words.

A SPEC of the command line is a ``SpecSource`` here: a ``Spec``, the path of a YAML file, or its sections as plain data.
A RUN is a folder's path or ``s3://bucket/prefix``. Every function may be called again, and goes on where the last call
stopped. Progress is told on standard error, by a bar where that is a terminal and by lines elsewhere.

What cannot be done raises an error of ``orchestrator.errors``, or ``StoreError`` of storage: one line that says what to
change. An interrupt (Ctrl-C) passes through as KeyboardInterrupt; what was committed is kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import SpecError
from orchestrator.spec import SpecSource, load_spec
from stn_core.confidence import Interval
from workers import layout
from workers.settings import Method
from workers.store import LocalStore, Store, open_store

# Imported where they are needed: Ray, figures and networks take seconds, and not every function takes them.
if TYPE_CHECKING:
    from orchestrator.attacking.attack import AttackedRun
    from orchestrator.attacking.under_attack import UnderAttack
    from orchestrator.comparing.comparison import Comparison
    from orchestrator.counting.certification import Certification
    from orchestrator.importing.imported import Imported
    from orchestrator.on_ray.jobs import Command, Submitted
    from orchestrator.planning.estimate import Forecast
    from orchestrator.reducing.reading import Results
    from orchestrator.reducing.standing import Status
    from orchestrator.reporting.reported import ReportedRun
    from orchestrator.training.train import Trained
    from orchestrator.upkeep.findings import Finding
    from orchestrator.upkeep.recount import Recount
    from orchestrator.upkeep.verify import Verification


def train(spec: SpecSource) -> Trained:
    """Train the spec's model and write its checkpoint, and the figures of its epochs beside it.

    On the Ray cluster at $RAY_ADDRESS, the one that this process is connected to, or one embedded in it for this call.

    Args:
        spec: has sections ``training`` and ``model.checkpoint``.

    Raises:
        SpecError: something in the spec is missing or wrong, or the checkpoint there is of another training.
        TrainingError: training failed; the next call goes on after its newest checkpoint.
        WorkersError: there is no cluster.
        StoreError: the checkpoint cannot be written.
    """
    from orchestrator.training.train import train_spec

    return train_spec(load_spec(spec))


def plan(spec: SpecSource) -> Forecast:
    """What ``certify`` would do with a spec, and how long it would take here; writes nothing but an index that
    ``dataset.index`` asks for. Takes some seconds: processes count, as many as there would be workers.

    Raises:
        SpecError: the spec is wrong, or names what is not there or does not fit.
        WorkersError: the processes that count do not start.
    """
    from orchestrator.planning.estimate import forecast

    return forecast(load_spec(spec))


def certify(spec: SpecSource, *, retry_failed: bool = False) -> Certification:
    """Plan, count what is missing, and reduce: bring the run at the spec's ``store.run`` to completion.

    On the Ray cluster at $RAY_ADDRESS, the one that this process is connected to, or one embedded in it for this call.
    A finished run is left as it is.

    Args:
        spec: what to certify.
        retry_failed: count again what could not be counted before, and nothing else.

    Returns:
        ``complete``, ``curves``, ``certificates``, and what this call did. Images that fail leave it incomplete.

    Raises:
        SpecError: the spec is wrong, or names what is not there or does not fit.
        RunError: another run is kept there, or it is damaged.
        WorkersError: there is no cluster, or workers fail at everything. What was counted is kept.
        StoreError: the run cannot be written.
    """
    from orchestrator.counting.certification import certify_run

    return certify_run(load_spec(spec), retry_failed=retry_failed)


def attack(spec: SpecSource, *, retry_failed: bool = False) -> AttackedRun:
    """Attack the spec's classifier on the run's images, and hold the outcome against the run's certificates.

    Args:
        spec: has a section ``attack``.
        retry_failed: attack those shards again in which images could not be attacked before.

    Returns:
        ``complete``, ``curves`` (robust accuracy), and ``holds``: whether every certificate stood.

    Raises:
        SpecError, RunError, WorkersError, StoreError: as ``certify``; RunError, too, where an attack of that name was
            begun otherwise.
    """
    from orchestrator.attacking.attack import attack_run

    return attack_run(load_spec(spec), retry_failed=retry_failed)


def status(run: str | Path) -> Status:
    """Progress, rate (images/s), time left (s) and failures of a run, read from its store alone.

    Raises:
        RunError: there is no run, or it is damaged.
        StoreError: storage cannot be reached.
    """
    from orchestrator.reducing.standing import status_of

    return status_of(open_store(str(run)))


def results(run: str | Path) -> Results:
    """A run's certificates and curves as they were last published: nothing is computed or written.

    Raises:
        RunError: there is no run, or it has no certificates yet.
        StoreError: storage cannot be reached.
    """
    from orchestrator.reducing.reading import read_results

    return read_results(open_store(str(run)))


def reduce(
    run: str | Path,
    *,
    certificates: Sequence[str] = (),
    protocols: Sequence[str] = (),
    alpha: float | None = None,
    beta: float | None = None,
    interval: Interval | None = None,
    radii: Sequence[float] | None = None,
) -> Results:
    """Certificates and curves from a run's stored votes: no model, no GPU, no Ray. What is not given is the spec's.

    Replaces the run's certificates.parquet and curves.parquet, never its votes.

    Args:
        run: a folder, or s3://bucket/prefix.
        certificates: names in ``stn_core.CERTIFICATES``.
        protocols: names in ``stn_core.PROTOCOLS``; every certificate is computed under each.
        alpha: failure probability of one image's certificate.
        beta: failure probability of statements about the whole data set.
        interval: how votes bound probabilities.
        radii: at which certified accuracy is reported, in [0, 1] pixel units, increasing.

    Raises:
        SpecError: the view does not fit the run's votes.
        RunError: there is no run, or its votes are damaged.
        StoreError: storage cannot be reached or written.
    """
    from orchestrator.progress import meter
    from orchestrator.reducing.reading import Results
    from orchestrator.reducing.reduction import check_against, reduce_run
    from orchestrator.reducing.runs import counted_shards, read_plan
    from orchestrator.reducing.tables import View

    store = open_store(str(run))
    planned = read_plan(store)
    asked = View.of(planned.asked)
    view = View(
        tuple(dict.fromkeys(certificates)) or asked.certificates,
        tuple(dict.fromkeys(protocols)) or asked.protocols,
        asked.alpha if alpha is None else alpha,
        asked.radii if radii is None else _increasing(radii),
        interval or asked.interval,
        asked.beta if beta is None else beta,
    )
    check_against(planned, view)
    with meter("reducing", len(counted_shards(store, planned)), "shards") as progress:
        return Results(store, reduce_run(store, planned, view, progress.advance))


def _increasing(radii: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(radius) for radius in radii)
    if not numbers or not all(0 <= one < float("inf") for one in numbers) or list(numbers) != sorted(set(numbers)):
        raise SpecError(f"radii must be finite, not negative, and increase, got {list(numbers)}")
    return numbers


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        written: where its parts are: curves.png, where anything is certified, and report.html.
        runs: that have certificates.
        attacks: on these runs, and on others that have no certificates.
        imported: results from elsewhere.
    """

    written: tuple[str, ...]
    runs: tuple[ReportedRun, ...] = field(repr=False)
    attacks: tuple[UnderAttack, ...] = field(repr=False)
    imported: tuple[Imported, ...] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Nothing shown is missing or failed."""
        return all(run.complete for run in self.runs) and all(one.attacked.complete for one in self.attacks)

    @property
    def holds(self) -> bool:
        """No attack shown succeeds within a certified radius, but as chance allows for."""
        return all(found.holds for under in self.attacks for found in under.sandwiches or ())


def report(*runs: str | Path, out: str | Path | None = None, images: bool = True) -> Report:
    """Write curves.png and a self-contained report.html of runs, and of imported results, on one figure.

    Args:
        runs: at least one.
        out: the folder to write to. Default: the run; of several, the current folder.
        images: whether to show images of the runs' data sets; without, these are not even looked for.

    Raises:
        SpecError: no run is named.
        RunError: one of them is none, is damaged, or has neither certificates nor attacks.
        StoreError: storage cannot be reached or written.
    """
    from orchestrator.importing.imported import load
    from orchestrator.reporting.publishing import SPECIMEN_BYTES, publish

    if not runs:
        raise SpecError("a report needs a run: name at least one")
    stores = [open_store(run) for run in dict.fromkeys(map(str, runs))]
    target: Store = LocalStore(Path(out)) if out is not None else stores[0] if len(runs) == 1 else LocalStore(Path())
    found = [(store, load(store)) for store in stores]
    imported = [one for _, one in found if one is not None]
    own = [store for store, one in found if one is None]
    shown = publish(own, target, imported, most_bytes=SPECIMEN_BYTES if images else 0)
    written = tuple(f"{target.uri}/{name}" for name in shown.written)
    return Report(written, tuple(shown.runs), tuple(shown.attacks), tuple(imported))


def compare(
    *runs: str | Path,
    certificates: Sequence[str] = (),
    protocols: Sequence[str] = (),
    radii: Sequence[float] = (),
    level: float = 0.05,
    common: bool = False,
    out: str | Path | None = None,
) -> Comparison:
    """Hold runs against the first one, on the same images: paired differences with intervals, and McNemar's test.

    Args:
        runs: at least two; the same one named twice counts once.
        certificates, protocols: only these; none means all that the runs have in common.
        radii: where to compare, in [0, 1] pixel units, increasing; none means wherever some run's table does.
        level: chance of a wrong interval, and of any wrong call that runs differ.
        common: compare on the images that all runs have counted, leaving out others.
        out: a folder to write compare.png and compare.csv to.

    Returns:
        ``table`` has a row for each certificate, protocol, radius and run.

    Raises:
        SpecError: fewer than two runs, or a name or number that is none.
        RunError: they are of different images, or have no certificates in common.
        StoreError: storage cannot be reached or written.
    """
    from orchestrator.comparing.comparison import Question
    from orchestrator.comparing.comparison import compare as held_against
    from orchestrator.comparing.entrants import load_entrants
    from orchestrator.comparing.figure import write_comparison

    if not 0 < level < 1:
        raise SpecError(f"level must lie inside (0, 1), got {level:g}")
    stores = {store.uri: store for store in (open_store(str(run)) for run in runs)}
    asked = Question(tuple(certificates), tuple(protocols), _increasing(radii) if radii else (), level, common)
    comparison = held_against(load_entrants(list(stores.values())), asked)
    if out is not None:
        write_comparison(LocalStore(Path(out)), comparison)
    return comparison


@dataclass(frozen=True)
class Verified:
    """What looking at all that a run's store holds has found.

    Attributes:
        stored: of its objects, votes, certificates and curves.
        recounted: of images that were counted again; None where none were asked for, or the plan itself is damaged.
    """

    stored: Verification
    recounted: Recount | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong."""
        return (*self.stored.findings, *(() if self.recounted is None else self.recounted.findings))

    @property
    def right(self) -> bool:
        """Nothing is wrong with what is there."""
        return not self.findings

    @property
    def complete(self) -> bool:
        """Nothing is lacking."""
        return not self.stored.lacking


def verify(run: str | Path, *, recount: int | None = None, seed: int | None = None) -> Verified:
    """Check all that a run's store holds: checksums, gaps, doubles, sums; and derive its certificates anew from votes.

    Args:
        run: a folder, or s3://bucket/prefix.
        recount: also count that many random images again, by the stored spec, and compare their votes.
        seed: chooses these images; another one each time without.

    Raises:
        RunError: there is no run.
        SpecError: ``recount`` or ``seed`` is no such number.
        StoreError: storage cannot be reached.
    """
    from orchestrator.progress import meter
    from orchestrator.reducing.runs import read_plan
    from orchestrator.upkeep.recount import recount as count_again
    from orchestrator.upkeep.verify import verify_run

    if recount is not None and recount < 1:
        raise SpecError(f"recount must be a number of images, at least 1, got {recount}")
    if seed is not None and (recount is None or seed < 0):
        raise SpecError(f"seed chooses the images to recount, and is not negative: got seed {seed}, recount {recount}")
    store = open_store(str(run))
    found, again = verify_run(store, meter), None
    if recount is not None and found.shards:  # otherwise the plan itself is damaged
        again = count_again(store, read_plan(store), recount, secrets.randbits(32) if seed is None else seed, meter)
    return Verified(found, again)


@dataclass(frozen=True)
class Swept:
    """The runs of a sweep.

    Attributes:
        written: where its figure and report are.
        runs: in the order of the sweep.
        complete: every run is.
    """

    written: tuple[str, ...]
    runs: tuple[ReportedRun, ...] = field(repr=False)
    complete: bool


def sweep(
    spec: SpecSource,
    sigmas: Sequence[float],
    methods: Sequence[Method] = (),
    *,
    tell: Callable[[str], object] = lambda text: None,
) -> Swept:
    """Train and certify one network for each sigma and method; one figure with all curves, and the best at each radius.

    Runs are kept below the spec's, curves.png and report.html beside them.

    Args:
        spec: what they have in common.
        sigmas: of the noise, standard deviation in [0, 1] pixel units.
        methods: of training; none: the spec's.
        tell: told, in a line, which run is begun, and what one lacks in the end.

    Raises:
        SpecError, RunError, TrainingError, WorkersError, StoreError: as ``train`` and ``certify``.
    """
    from orchestrator.reporting.publishing import publish
    from orchestrator.sweeping import check_ready, points, train_and_certify

    loaded = load_spec(spec)
    jobs, target = points(loaded, sigmas, methods), loaded.store.open()
    check_ready(jobs, target)
    complete = train_and_certify(jobs, tell)
    runs = publish([job.spec.store.open() for job in jobs], target).runs
    written = tuple(f"{target.uri}/{name}" for name in (layout.FIGURE, layout.REPORT))
    return Swept(written, tuple(runs), complete)


def submit(
    spec: SpecSource,
    address: str,
    *,
    command: Command = "certify",
    retry_failed: bool = False,
    any_versions: bool = False,
) -> Submitted:
    """Let the head of a Ray cluster run ``stn certify``, ``train`` or ``attack`` on this checkout's own source.

    Args:
        spec: names nothing that only this machine has.
        address: of the head's dashboard, http://HEAD:8265.
        command: what the head is to run.
        retry_failed: as of ``certify`` and ``attack``.
        any_versions: run with whatever versions of libraries the cluster has.

    Returns:
        The job's id, and whether it was at work already. ``status`` tells how far the run is.

    Raises:
        SpecError: the spec or the address is wrong, or Ray's client for jobs is not installed.
        WorkersError: there is no such cluster, or it lets nobody in.
    """
    from orchestrator.on_ray.jobs import Jobs, job_of

    if command == "train" and retry_failed:
        raise SpecError("`stn train` has no --retry-failed: leave it out")
    path = Path(Path(spec).name) if isinstance(spec, str | Path) else Path(layout.SPEC)
    options = ["--retry-failed"] if retry_failed else []
    job = job_of(load_spec(spec), command, path, options)
    return Jobs(address).submit(job, pin=not any_versions)
