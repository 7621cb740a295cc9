"""The paper's own comparisons: which jobs they need, and what is read off their runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from pyarrow import csv

from orchestrator.errors import SpecError
from orchestrator.paper import linear_program
from orchestrator.reducing.runs import counted_shards, read_votes
from orchestrator.reducing.tables import Line
from orchestrator.reporting.drawing import dress, png
from orchestrator.reporting.envelope import envelopes
from orchestrator.reporting.literature import PAPER_DRAWS, PAPER_STN, PaperStn
from orchestrator.reporting.reported import ReportedRun, load_run
from orchestrator.reporting.steps import load_steps
from orchestrator.spec import Spec, validate
from orchestrator.sweeping import Point, points
from stn_core.certificates import CERTIFICATES
from stn_core.confidence import PROTOCOLS
from stn_core.curves import certified_correct
from stn_core.intervals import lower_bound
from stn_core.sison_glaz import sison_glaz
from workers.settings import Method
from workers.store import Store

#: The methods of Figure 1: the paper's, and its ablation.
METHODS: tuple[Method, ...] = ("stn", "gaussian")

_METHOD_NAMES = {"stn": "STN", "gaussian": "without stability training"}


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        name: the method's.
        source: "ours", or whose figures they are.
        certificate: and what is special about its interval.
        draws: n; None where it does not apply or is not stated.
        certified: certified accuracy at the table's radius, a fraction.
        guaranteed: at least that fraction is truly certified, see docs/statistics.md; None where nothing is guaranteed.
        natural: accuracy without perturbation, a fraction; of the majority of votes where there are votes.
    """

    name: str
    source: str
    certificate: str
    draws: int | None
    certified: float
    guaranteed: float | None
    natural: float


@dataclass(frozen=True)
class Printed:
    """What Table 1 is about for one data set.

    Attributes:
        radius: L2, in [0, 1] pixel units.
        rows: the figures that it prints.
    """

    radius: float
    rows: tuple[Row, ...]


_WONG = "Wong et al. 2018, as the paper quotes it"


def _printed(single: tuple[float, float], cascade: tuple[float, float], stn: PaperStn) -> Printed:
    return Printed(
        stn.radius,
        (
            Row("linear program, single", _WONG, "dual of a linear program", None, single[0], None, single[1]),
            Row("linear program, cascade", _WONG, "dual of a linear program", None, cascade[0], None, cascade[1]),
            Row("STN", "the paper", "renyi", PAPER_DRAWS, stn.certified, None, stn.natural),
        ),
    )


#: By the name of the paper's network.
TABLE_1 = {
    "mnist": _printed((0.435, 0.882), (0.746, 0.814), PAPER_STN["mnist"]),
    "cifar10": _printed((0.530, 0.612), (0.587, 0.688), PAPER_STN["cifar10"]),
}


def table1_jobs(spec: Spec) -> list[Point]:
    """The jobs of Table 1: each method at the paper's number of draws and at the spec's.

    Raises:
        SpecError: the table is not about that.
    """
    if spec.model.name not in TABLE_1:
        raise SpecError(f"Table 1 is about the paper's networks, {' and '.join(TABLE_1)}, not {spec.model.name!r}")
    if spec.noise.kind != "gaussian":
        raise SpecError(f"Table 1 is about gaussian noise, not {spec.noise.kind}")
    if spec.sampling.mode != "fixed" or PROTOCOLS[spec.confidence.protocol].sequential:
        raise SpecError(
            "Table 1 is about a fixed number of draws: set sampling.mode to fixed, and confidence.protocol to paper"
        )
    certificates = ("renyi", "neyman_pearson_two_class", "pixeldp")
    radii = (0.0, TABLE_1[spec.model.name].radius)
    asked = spec.model_copy(update={"certificates": certificates, "radii": radii})
    jobs = []
    for point in points(asked, [spec.noise.sigma], METHODS):
        for draws in dict.fromkeys((PAPER_DRAWS, spec.sampling.draws)):
            content = point.spec.model_dump()
            name = f"{point.name}-n-{draws}"
            content["sampling"]["draws"] = draws
            content["store"]["run"] = f"{spec.store.run.rstrip('/')}/{name}"
            jobs.append(Point(name, validate(content, f"Table 1, {name}")))
    return jobs


def beyond_jobs(spec: Spec, others: Mapping[str, Spec]) -> list[Point]:
    """Jobs of the table's images that are none of the paper's: other networks, training or noise.

    Args:
        spec: the table's.
        others: what to train and certify, by name; of each the data set, radii, alpha, beta and run are the table's.

    Raises:
        SpecError: one does not fit the table.
    """
    jobs = []
    for name, other in others.items():
        content = other.model_dump()
        if other.noise.kind != "gaussian":
            raise SpecError(f"Table 1 is about gaussian noise, not {other.noise.kind}")
        content["dataset"] = spec.dataset.model_dump()
        content["confidence"] |= {"alpha": spec.confidence.alpha, "beta": spec.confidence.beta}
        content["radii"] = (0.0, TABLE_1[spec.model.name].radius)
        content["store"] = {**spec.store.model_dump(), "run": f"{spec.store.run.rstrip('/')}/beyond-{name}"}
        jobs.append(Point(f"beyond-{name}", validate(content, f"Table 1, beyond-{name}")))
    return jobs


def table1(stores: Sequence[Store], beyond: Sequence[Store] = (), program: pa.Table | None = None) -> list[Row]:
    """The rows of Table 1, the literature's first.

    Args:
        stores: the runs of ``table1_jobs``.
        beyond: those of ``beyond_jobs``, whose rows come last.
        program: what ``linear_program.train_and_certify`` found.

    Raises:
        RunError: of one of the runs.
    """
    runs = [load_run(store) for store in stores]
    known = TABLE_1[runs[0].plan.spec.model.name]
    rows = [*known.rows, *([] if program is None else _program_rows(program))]
    for store, run in zip(stores, runs, strict=True):
        rows += [_row(run, line) for line in run.lines]
        if run.plan.asked.sampling.draws == PAPER_DRAWS and not run.plan.sequential:
            rows.append(_authors_row(store, run, known.radius))
    for run in map(load_run, beyond):
        training, sigma = run.plan.spec.training, _sigma(run)
        name = f"{run.plan.spec.model.name} by {'?' if training is None else training.method}, sigma = {sigma:g}"
        rows += [
            replace(_row(run, line), name=_whole(run, name), source="ours, beyond the paper") for line in run.lines
        ]
    return rows


def _program_rows(table: pa.Table) -> list[Row]:
    networks = int(max(table["network"].to_numpy()))
    rows = []
    for name, number in [("single", 1), *([(f"cascade of {networks}", networks)] if networks > 1 else [])]:
        found = linear_program.counted(table, number)
        # A single network's is a proof. A cascade's is how Wong et al. count: which of its networks answers may change
        # within the radius.
        guaranteed = found.certified if number == 1 else None
        dual = "dual of a linear program" + ("" if number == 1 else ", no guarantee of the cascade")
        rows.append(Row(f"linear program, {name}", "ours", dual, None, found.certified, guaranteed, found.natural))
    return rows


def _row(run: ReportedRun, line: Line) -> Row:
    last = run.lines[line].to_pylist()[-1]
    draws, summary = run.plan.asked.sampling.draws, run.reduced.summary
    natural = summary.majority_correct / summary.images
    accuracy, guaranteed = last["certified_accuracy"], last["guaranteed_accuracy"]
    return Row(_method(run), "ours", f"{line.certificate}, {line.protocol}", draws, accuracy, guaranteed, natural)


def _authors_row(store: Store, run: ReportedRun, radius: float) -> Row:
    """The paper's certificate by the interval of the authors' script: to explain its figures, and unsound."""
    spec, plan = run.plan.spec, run.plan
    assert spec.noise.kind == "gaussian"
    certified = 0
    for rows in read_votes(store, plan, counted_shards(store, plan)):
        votes, labels = rows.estimation[rows.usable], rows.labels[rows.usable]
        voted = votes.any(axis=1)
        lower, upper = sison_glaz(votes[voted], run.reduced.view.alpha)
        order = np.argsort(-votes[voted], axis=1, kind="stable")[:, :2]
        p1 = np.take_along_axis(lower, order[:, :1], axis=1)[:, 0]
        p2 = np.minimum(np.take_along_axis(upper, order[:, 1:], axis=1)[:, 0], 1 - p1)
        found = np.zeros(len(p1))
        decided = p1 > p2
        found[decided] = CERTIFICATES["renyi"].radius(p1[decided], p2[decided], spec.noise.sigma)
        correct = decided & (order[:, 0] == labels[voted])
        certified += int(certified_correct(found, correct, [radius])[0])
    summary = run.reduced.summary
    return Row(
        _method(run),
        "ours",
        "renyi by the authors' Sison-Glaz interval: UNSOUND",
        PAPER_DRAWS,
        certified / summary.images,
        None,
        summary.majority_correct / summary.images,
    )


def _method(run: ReportedRun) -> str:
    training = run.plan.spec.training
    return _whole(run, "?" if training is None else _METHOD_NAMES.get(training.method, training.method))


def _whole(run: ReportedRun, name: str) -> str:
    return name if run.complete else f"{name} (INCOMPLETE)"


def largest_radius(votes: int, alpha: float) -> float:
    """The Renyi radius at sigma 1 that a class with all of so many votes gets, by one Clopper-Pearson bound."""
    p1_lower = lower_bound(votes, votes, alpha)
    return float(CERTIFICATES["renyi"].unit_radius(np.atleast_1d(p1_lower), np.atleast_1d(1 - p1_lower))[0])


def rows_csv(rows: Sequence[Any]) -> bytes:
    """A table for other programs: of dataclasses, all of one kind."""
    sink = io.BytesIO()
    csv.write_csv(pa.Table.from_pylist([asdict(row) for row in rows]), sink)
    return sink.getvalue()


def figure1_png(stores: Sequence[Store]) -> bytes:
    """Figure 1 from the runs of a sweep over sigma by both methods: STN in full lines, its ablation dashed, PixelDP at
    the best of all, and at each radius the best sigma, which is selection. Raises RunError."""
    runs = [load_run(store) for store in stores]
    figure = Figure(figsize=(8, 5.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    sigmas = sorted({_sigma(run) for run in runs})
    for store, run in zip(stores, runs, strict=True):
        sigma, stn = _sigma(run), run.plan.spec.training is not None and run.plan.spec.training.method == "stn"
        curve = load_steps(store, run)[Line("renyi", run.reduced.view.protocols[0])]
        axes.step(
            curve.radius,
            curve.accuracy,
            where="pre",
            color=f"C{sigmas.index(sigma)}",
            linestyle="-" if stn else "--",
            label=f"{_method(run)}, sigma = {sigma:g}",
        )
    for best in envelopes(runs):
        style = {"pixeldp": ("tab:green", "PixelDP at its best"), "renyi": ("black", "best of all")}
        if best.line.certificate in style:
            color, name = style[best.line.certificate]
            axes.plot(
                [point.radius for point in best.points],
                [point.certified_accuracy for point in best.points],
                color=color,
                linestyle=":",
                label=f"{name} (selection)",
            )
    dress(axes, "l2")
    return png(figure)


def _sigma(run: ReportedRun) -> float:
    noise = run.plan.spec.noise
    assert noise.kind == "gaussian"
    return noise.sigma
