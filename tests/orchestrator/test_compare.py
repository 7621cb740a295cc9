from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from orchestrator.cli import main
from orchestrator.cli.printing import print_comparison
from orchestrator.comparing.comparison import Comparison, Question, compare
from orchestrator.comparing.entrants import distinct_names, load_entrants
from orchestrator.comparing.figure import drawable, figure_png
from orchestrator.comparing.formats import latex, markdown
from orchestrator.counting.certification import certify_run
from orchestrator.numerals import p_text, points, points_between
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import View
from orchestrator.reporting.envelope import envelopes
from orchestrator.spec import validate
from stn_core import difference_interval
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.inline import hire_inline
from tests.orchestrator.runs import MadeRun, digits_spec, invented, plan_of
from workers import layout
from workers.store import LocalStore, open_store

RADII = (0.0, 0.05, 0.1, 0.2, 0.4)
VIEW = View(("renyi", "neyman_pearson_one_class"), ("paper",), 0.05, RADII, "clopper_pearson", 0.01)


def invented_run(sigma: float, *, failed: Sequence[int] = (), **sections: Any) -> MadeRun:
    """120 images' votes under ``sigma``: the less noise, the more of them are right."""
    return invented(plan_of(noise={"sigma": sigma}, **sections), seed=1, sure=0.9 - sigma, failed=failed)


def write(made: MadeRun, root: Path, view: View = VIEW, shards: Sequence[int] | None = None) -> Path:
    reduce_run(made.write(root, shards), made.plan, view)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on the same images, by name: three that differ in sigma, one that is partial, and one with a failed image;
    and two that are not to be compared with them."""
    root = tmp_path_factory.mktemp("runs")
    made = {f"sigma-{sigma}": write(invented_run(sigma), root / f"sigma-{sigma}") for sigma in (0.1, 0.2, 0.5)}
    made["part"] = write(invented_run(0.2), root / "part", shards=[0, 2])
    made["failed"] = write(invented_run(0.2, failed=[5]), root / "failed")
    other = invented_run(0.2)
    other = dataclasses.replace(other, plan=dataclasses.replace(other.plan, dataset_sha256="e" * 64))
    made["others"] = write(other, root / "others")
    split = dataclasses.replace(VIEW, protocols=("split",), certificates=("renyi",))
    made["split"] = write(invented_run(0.2), root / "split", split)
    made["first"] = write(first_of(invented_run(0.2), 50), root / "first")
    return made


def first_of(made: MadeRun, images: int) -> MadeRun:
    """The same votes of the first images alone, in a run of their own, of one shard."""
    spec = made.plan.spec
    dataset = spec.dataset.model_copy(update={"limit": images})
    plan = dataclasses.replace(made.plan, spec=spec.model_copy(update={"dataset": dataset}), shard_size=images)
    return MadeRun(plan, [made.rows.slice(0, images)])


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def of(runs: dict[str, Path], *names: str, **question: Any) -> Comparison:
    return compare(load_entrants([open_store(str(runs[name])) for name in names]), Question(**question))


# --- The figures ---------------------------------------------------------------------------------------------------


def by_pandas(one: Path, other: Path, certificate: str, radius: float) -> tuple[int, int, int, int]:
    """How many images each certifies, and each alone, from the tables that anyone may read."""
    held = []
    for run in (one, other):
        rows = pd.read_parquet(run / layout.CERTIFICATES).set_index("index")
        rows = rows[rows["certificate"] == certificate]
        held.append(rows["correct"] & (rows["radius"] >= radius))
    first, second = held
    return int(first.sum()), int(second.sum()), int((second & ~first).sum()), int((first & ~second).sum())


def test_the_csv_is_what_pandas_finds_in_the_tables(runs: dict[str, Path]) -> None:
    result = stn(runs["sigma-0.1"], runs["sigma-0.2"], runs["sigma-0.5"], "--csv")
    assert result.exit_code == 0
    table = pd.read_csv(io.StringIO(result.stdout), dtype={"best": bool})
    assert len(table) == 2 * len(RADII) * 3
    beside = table[table["run"] != "sigma-0.1"]
    for row in beside.itertuples():
        first, second, gained, lost = by_pandas(runs["sigma-0.1"], runs[str(row.run)], row.certificate, row.radius)
        assert (row.certified, row.gained, row.lost) == (second, gained, lost)
        assert row.certified_accuracy == second / 120
        assert row.difference == (second - first) / 120
        assert (row.low, row.high) == tuple(map(float, difference_interval(gained, lost, 120, level=0.05)))
        assert row.p_value == pytest.approx(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue, rel=1e-9)
    # One family: every line, radius and run.
    assert beside["p_holm"].to_list() == pytest.approx(multipletests(beside["p_value"], method="holm")[1])
    assert (beside["differs"].astype(bool) == (beside["p_holm"] <= 0.05)).all()
    assert 0 < beside["differs"].astype(bool).sum() < len(beside)
    own = table[table["run"] == "sigma-0.1"]
    assert own[["difference", "gained", "lost", "low", "high", "p_value", "p_holm", "differs"]].isna().all(axis=None)
    most = table.groupby(["certificate", "radius"])["certified"].transform("max")
    assert (table["best"] == ((table["certified"] == most) & (most > 0))).all()


def test_the_best_has_the_envelopes_guarantee(runs: dict[str, Path]) -> None:
    comparison = of(runs, "sigma-0.1", "sigma-0.2", "sigma-0.5")
    found = {best.line: best for best in envelopes([one.run for one in comparison.entrants])}
    assert [compared.line for compared in comparison.lines] == list(found)
    for compared in comparison.lines:
        guaranteed = [point.guaranteed_accuracy for point in found[compared.line].points]
        assert [point.guaranteed for point in compared.points] == guaranteed
        for point, best in zip(compared.points, found[compared.line].points, strict=True):
            marked = [standing.run for standing in point.standings if standing.best]
            assert marked[:1] == ([best.run] if best.certified_accuracy else [])


def test_alpha_of_each_run_counts_for_its_guarantee(runs: dict[str, Path], tmp_path: Path) -> None:
    strict = write(invented_run(0.2), tmp_path / "strict", dataclasses.replace(VIEW, alpha=0.001))
    places = {**runs, "strict": strict}
    loose, tight = (of(places, "sigma-0.2", name) for name in ("failed", "strict"))
    assert [setting.name for setting in tight.settings] == ["confidence.alpha"]
    assert loose.lines[0].points[0].guaranteed is None  # one run alone is complete
    rows = json.loads(stn(runs["sigma-0.2"], strict, "--json").stdout)["rows"]
    assert {(row["run"], row["alpha"]) for row in rows} == {("sigma-0.2", 0.05), ("strict", 0.001)}
    assert "not like for like: certificates differ in confidence.alpha" in stn(runs["sigma-0.2"], strict).stdout


def test_radii_of_all_tables_are_compared_unless_some_are_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    wide = write(invented_run(0.2), tmp_path / "wide", dataclasses.replace(VIEW, radii=(0.1, 0.15, 0.3)))
    both = of({**runs, "wide": wide}, "sigma-0.2", "wide")
    assert [point.radius for point in both.lines[0].points] == [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4]
    # The same votes under another view: no image differs, at radii of the other's table either.
    assert {(one.beside.gained, one.beside.lost) for one in _second(both)} == {(0, 0)}
    asked = of(runs, "sigma-0.1", "sigma-0.5", radii=(0.07, 0.11), certificates=("renyi",))
    assert [point.radius for point in asked.lines[0].points] == [0.07, 0.11]
    assert asked.tests == 2
    for point in asked.lines[0].points:
        first, second, *_ = by_pandas(runs["sigma-0.1"], runs["sigma-0.5"], "renyi", point.radius)
        assert [standing.certified for standing in point.standings] == [first, second]


def test_a_radius_that_an_image_just_reaches_is_reached(runs: dict[str, Path]) -> None:
    rows = pd.read_parquet(runs["sigma-0.5"] / layout.CERTIFICATES)
    rows = rows[rows["correct"] & (rows["certificate"] == "renyi")]
    radius = float(rows["radius"].mode()[0])
    assert (rows["radius"] == radius).sum() > 1
    (point,) = of(runs, "sigma-0.1", "sigma-0.5", radii=(radius,), certificates=("renyi",)).lines[0].points
    assert point.standings[1].certified == (rows["radius"] >= radius).sum()


def _second(comparison: Comparison) -> list[Any]:
    return [point.standings[1] for compared in comparison.lines for point in compared.points]


def test_the_level_decides_intervals_and_verdicts(runs: dict[str, Path]) -> None:
    strict, loose = (of(runs, "sigma-0.1", "sigma-0.5", level=level) for level in (1e-9, 0.3))
    for narrow, wide in zip(_second(loose), _second(strict), strict=True):
        assert wide.beside.judged.low < narrow.beside.judged.low
        assert narrow.beside.judged.high < wide.beside.judged.high
        assert narrow.beside.judged.differs >= wide.beside.judged.differs
    shown = [sum(one.beside.judged.differs for one in _second(comparison)) for comparison in (strict, loose)]
    assert shown[0] < shown[1]


def test_only_lines_that_all_runs_have_are_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    view = dataclasses.replace(VIEW, protocols=("paper", "split"), certificates=("renyi",))
    several = write(invented_run(0.2), tmp_path / "several", view)
    result = stn(several, runs["sigma-0.1"])
    assert "certified accuracy by L2 radius, renyi (paper)" in result.stdout
    left = "left out, since only some of the runs have it: renyi (split), neyman pearson one class (paper)"
    assert left in " ".join(result.stdout.split())
    assert "paper" not in stn(several, runs["split"], "--csv").stdout


def test_an_adaptive_run_is_compared_with_a_fixed_one_and_called_unlike(tmp_path: Path) -> None:
    anytime = {"confidence": {"protocol": "anytime", "alpha": 0.05}, "radii": [0.05, 0.1]}
    samplings = {
        "adaptive": {"mode": "adaptive", "draws": 2000, "selection_draws": 16, "seed": 1},
        "fixed": {"draws": 200, "selection_draws": 16, "seed": 1},
    }
    for name, sampling in samplings.items():
        spec = digits_spec(**anytime, sampling=sampling, store={"run": str(tmp_path / name)})
        assert certify_run(validate(spec, "spec"), hire=hire_inline).complete
    result = stn(tmp_path / "adaptive", tmp_path / "fixed", "--certificate", "neyman_pearson_one_class")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "sampling.mode adaptive adaptive fixed fixed" in text
    assert "sampling.draws adaptive 2000 fixed 200" in text
    assert "radii adaptive 0.05, 0.1 fixed —" in text
    unlike = "not like for like: certificates differ in sampling.mode, sampling.draws, "
    assert unlike in text


# --- Which images --------------------------------------------------------------------------------------------------


def test_common_compares_a_run_with_one_of_fewer_images(runs: dict[str, Path]) -> None:
    result = stn(runs["sigma-0.1"], runs["first"], "--certificate", "renyi")
    assert result.exit_code == 2
    assert result.stdout == ""
    says = "error: sigma-0.1 and first are of different images: only sigma-0.1 has 50, 51, 52, 53, 54 and 65 more; "
    assert result.stderr == f"{says}--common compares the 50 that all runs have\n"
    result = stn(runs["sigma-0.1"], runs["first"], "--certificate", "renyi", "--common")
    assert result.exit_code == 0
    assert "50 images, the same for all runs: those that each has counted, of sigma-0.1 120, first 50" in result.stdout
    assert re.search(r"dataset.limit +sigma-0.1 +120", result.stdout)
    common = of(runs, "sigma-0.1", "first", common=True, certificates=("renyi",))
    whole = of(runs, "sigma-0.1", "sigma-0.2", certificates=("renyi",))
    assert common.images == 50
    for compared, reference in zip(common.lines[0].radii, whole.lines[0].radii, strict=True):
        assert np.array_equal(compared, reference[:50])


def test_a_partial_run_says_so_everywhere_and_is_not_judged(runs: dict[str, Path], tmp_path: Path) -> None:
    title = "part (INCOMPLETE: 50 missing of 120 images)"
    for form in ([], ["--markdown"], ["--latex"], ["--csv"], ["--json"]):
        result = stn(runs["sigma-0.1"], runs["part"], *form)
        assert result.exit_code == 3
        assert f"{title}: missing and failed images count as not certified" in result.stderr
        if form != ["--csv"]:
            assert title in result.stdout
    result = stn(runs["sigma-0.1"], runs["part"], "--out", tmp_path, "--csv")
    table = pd.read_csv(tmp_path / layout.COMPARISON_TABLE)
    part = table[table["run"] == "part"]
    assert not part["complete"].any()
    assert not table["best"].any()
    assert part[["low", "high", "p_value", "p_holm", "differs"]].isna().all(axis=None)
    assert (part["certified"] < 70).any()
    assert (part["images"] == 120).all()
    comparison = of(runs, "sigma-0.1", "part")
    assert "part (INCOMPLETE) beside sigma-0.1: not judged, since votes are still to come" in markdown(
        comparison
    ).replace("\\", "")
    assert comparison.tests == 0


def test_common_judges_a_partial_run_by_what_is_counted(runs: dict[str, Path]) -> None:
    result = stn(runs["sigma-0.1"], runs["part"], "--common", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["complete"], found["images"], found["tests"]) == (False, 70, 2 * len(RADII))
    counted = pd.read_parquet(runs["part"] / layout.PARTIAL / layout.CERTIFICATES)["index"].unique()
    rows = pd.read_parquet(runs["sigma-0.1"] / layout.CERTIFICATES)
    rows = rows[rows["index"].isin(counted) & (rows["certificate"] == "renyi")]
    first = next(row for row in found["rows"] if row["certificate"] == "renyi" and row["radius"] == 0.1)
    assert first["certified"] == int((rows["correct"] & (rows["radius"] >= 0.1)).sum())


def test_failed_images_count_as_not_certified_and_are_judged(runs: dict[str, Path]) -> None:
    result = stn(runs["sigma-0.2"], runs["failed"], "--json")
    assert result.exit_code == 3
    assert "failed (INCOMPLETE: 1 failed of 120 images)" in result.stderr
    rows = [row for row in json.loads(result.stdout)["rows"] if row["run"] == "failed"]
    assert {row["images"] for row in rows} == {120}
    assert all(row["p_value"] is not None for row in rows)


# --- What is said --------------------------------------------------------------------------------------------------


def test_people_see_it_in_80_columns(runs: dict[str, Path], tmp_path: Path) -> None:
    name = "a-name-of-a-run-that-is-much-too-long-for-any-column-of-a-table"
    places = {**runs, "long": write(invented_run(0.3), tmp_path / name)}
    sink = io.StringIO()
    comparison = of(places, "sigma-0.1", "long", "part", certificates=("renyi",))
    print_comparison(comparison, Console(file=sink, width=80))
    lines = sink.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for point in comparison.lines[0].points:
        for standing in point.standings:
            if standing.beside is not None and standing.beside.judged is not None:
                judged = standing.beside.judged
                assert points_between(judged.low, judged.high) in sink.getvalue()
                assert any(line.rstrip().endswith(p_text(judged.p_holm)) for line in lines)
    assert "…" not in sink.getvalue()


def test_the_words_say_what_the_figures_do(runs: dict[str, Path]) -> None:
    text = " ".join(stn(runs["sigma-0.1"], runs["sigma-0.5"], "--certificate", "renyi").stdout.split())
    comparison = of(runs, "sigma-0.1", "sigma-0.5", certificates=("renyi",))
    more, fewer = ([], [])  # type: tuple[list[str], list[str]]
    for point in comparison.lines[0].points:
        beside = point.standings[1].beside
        assert beside is not None
        assert beside.judged is not None
        if beside.judged.differs:
            (more if beside.gained > beside.lost else fewer).append(f"{point.radius:g}")
    assert more
    assert fewer
    assert f"sigma-0.5 beside sigma-0.1: certifies more images at radius {', '.join(more)}; " in text
    assert f"certifies fewer images at radius {', '.join(fewer)}" in text
    assert f"no difference is shown at {len(RADII) - len(more) - len(fewer)} of 5 radii" in text
    for sentence in (
        "120 images, the same for all runs",
        "is about the choice of images",
        "It says nothing of certificates that the votes' noise made false",
        "corrected (Holm) for all 5 comparisons; a difference is shown where p is at most 0.05",
        "*: best of the 2 complete runs at that radius: selection",
        "with probability 1 - 0.01 over the noise of all runs",
        "noise differs: each run certifies a smoothed classifier of its own",
        "noise.sigma sigma-0.1 0.1 sigma-0.5 0.5",
    ):
        assert sentence in text


def test_runs_that_do_not_differ_have_no_table_of_what_differs(runs: dict[str, Path], tmp_path: Path) -> None:
    twin = write(invented_run(0.2), tmp_path / "twin")
    assert "what differs" not in stn(runs["sigma-0.2"], twin).stdout


def test_runs_of_the_same_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    twin = write(invented_run(0.5), tmp_path / "twin" / "sigma-0.1")
    result = stn(runs["sigma-0.1"], twin, "--csv")
    names = set(pd.read_csv(io.StringIO(result.stdout))["run"])
    assert names == {f"{runs['sigma-0.1'].parent.name}/sigma-0.1", "twin/sigma-0.1"}
    assert distinct_names(["s3://b/x/run/", "s3://b/y/run"]) == ["x/run", "y/run"]
    assert distinct_names(["/a/one", "/a/two"]) == ["one", "two"]


@pytest.mark.parametrize(
    ("hostile", "escaped"),
    [
        ("a|b*c_d`e[f](g)<h>", r"a\textbar{}b*c\_d\textasciigrave{}e[f](g)\textless{}h\textgreater{}"),
        (r"50% & #1 {x}\y~z^$_", r"50\% \& \#1 \{x\}\textbackslash{}y\textasciitilde{}z\textasciicircum{}\$\_"),
    ],
)
def test_a_name_means_nothing_to_markdown_or_latex(
    runs: dict[str, Path], tmp_path: Path, hostile: str, escaped: str
) -> None:
    write(invented_run(0.5), tmp_path / hostile)
    comparison = of({**runs, "hostile": tmp_path / hostile}, "sigma-0.1", "hostile", certificates=("renyi",))
    text = markdown(comparison)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows, cell = [], False
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        cell = cell or token.type in ("td_open", "th_open")
        if cell and token.type == "inline":
            rows[-1].append("".join(child.content for child in token.children or []))
            cell = False
    table = rows[1 : 1 + 2 * len(RADII)]
    assert [row[1] for row in table] == ["sigma-0.1", hostile] * len(RADII)
    for row, standing in zip(table[1::2], _second(comparison), strict=True):
        assert row[2].split(" ")[0] == f"{standing.certified * 1000 // 120 / 10:.1f}"
        judged = standing.beside.judged
        assert row[3].endswith(f"({points_between(judged.low, judged.high)})")
        assert row[4:] == [f"{standing.beside.gained}, {standing.beside.lost}", p_text(judged.p_holm)]

    tex = latex(comparison)
    for environment in ("table", "tabular"):
        assert tex.count(rf"\begin{{{environment}}}") == tex.count(rf"\end{{{environment}}}") == 2
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 2 * len(RADII)
    # Cells end at ampersands that are not escaped, and braces are in pairs.
    cells = [re.split(r" (?<!\\)& ", row.removesuffix(r" \\")) for row in body]
    assert {len(row) for row in cells} == {6}
    assert [row[1] for row in cells] == ["sigma-0.1", escaped] * len(RADII)
    bare = re.sub(r"\\[&%$#_{}]", "", tex)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[#^~]|(?<!\n)%", bare.removeprefix("%"))
    bold = [row for row in body if r"\textbf{" in row]
    assert len(bold) == sum(one.best for point in comparison.lines[0].points for one in point.standings)


def test_the_figure_shows_every_run_and_says_which_is_partial(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    from matplotlib.figure import Figure

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **b: (drawn.append(figure), save(figure, *a, **b)))
    comparison = of(runs, "sigma-0.1", "sigma-0.5", "part", radii=(0.0, 0.1), certificates=("renyi",))
    assert Image.open(io.BytesIO(figure_png(comparison))).width == 1200
    curves, differences = drawn[0].axes
    legend = [text.get_text() for text in curves.get_legend().get_texts()]
    assert legend == ["sigma-0.1", "sigma-0.5", "part (INCOMPLETE: 50 missing of 120 images)"]
    for line, radii in zip(curves.lines, comparison.lines[0].radii, strict=True):
        steps, accuracy = line.get_data()
        for radius, share in zip(steps[:-1], accuracy[:-1], strict=True):
            assert share == np.mean(radii >= radius)
        assert (steps[-1], accuracy[-1]) == (max(radii.max(), 0), 0)
    _, points_of_run, _ = differences.lines
    shares = [(one.certified - two.certified) / 120 for two, one in _pairs(comparison)]
    assert points_of_run.get_ydata().tolist() == pytest.approx(shares)
    (ends,) = differences.collections  # the partial run has no interval
    for segment, (_, one) in zip(ends.get_segments(), _pairs(comparison), strict=True):
        assert segment[:, 1].tolist() == pytest.approx([one.beside.judged.low, one.beside.judged.high])
    assert drawable("_a$b") == r"run _a\$b"


def _pairs(comparison: Comparison) -> list[Any]:
    return [point.standings[:2] for point in comparison.lines[0].points]


@pytest.mark.parametrize(
    ("count", "images", "text"),
    [(1, 3, "+33.3"), (-2, 3, "−66.6"), (0, 5, "0.0"), (-1, 5000, "−0.0"), (7, 7, "+100.0")],
)
def test_differences_are_never_rounded_away_from_nothing(count: int, images: int, text: str) -> None:
    assert points(count, images) == text


def test_intervals_are_rounded_outwards_and_p_values_up() -> None:
    assert points_between(-0.12301, 0.00001) == "−12.4 to +0.1"
    assert points_between(0.0119, 0.0121) == "+1.1 to +1.3"
    assert [p_text(p) for p in (1.0, 0.05, 0.03121, 1e-4, 9.9e-5)] == [
        "1.0000",
        "0.0500",
        "0.0313",
        "0.0001",
        "<0.0001",
    ]


# --- Where runs and results are ------------------------------------------------------------------------------------


def test_it_writes_nothing_unless_asked_and_then_figure_and_table(runs: dict[str, Path], tmp_path: Path) -> None:
    before = {name: sorted(place.rglob("*")) for name, place in runs.items()}
    plain = stn(runs["sigma-0.1"], runs["sigma-0.5"], "--csv")
    assert plain.stderr == ""
    out = tmp_path / "out"
    result = stn(runs["sigma-0.1"], runs["sigma-0.5"], "--out", out)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [f"wrote {out}/compare.png", f"wrote {out}/compare.csv"]
    assert (out / "compare.csv").read_text() == plain.stdout
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert {name: sorted(place.rglob("*")) for name, place in runs.items()} == before
    named = json.loads(stn(runs["sigma-0.1"], runs["sigma-0.5"], "--json", "--out", out).stdout)["written"]
    assert named == [f"{out}/compare.png", f"{out}/compare.csv"]


def test_runs_in_object_storage_are_compared_with_runs_in_folders(
    runs: dict[str, Path], object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    remote = open_store(f"s3://{BUCKET}/compare/sigma-0.5")
    local = LocalStore(runs["sigma-0.5"])
    for stored in local.list(""):
        remote.replace(stored.key, local.read(stored.key))
    here, there = (stn(runs["sigma-0.1"], place, "--csv") for place in (runs["sigma-0.5"], remote.uri))
    assert there.exit_code == 0
    assert there.stdout.replace(remote.uri, str(runs["sigma-0.5"])) == here.stdout


# --- Bad input -----------------------------------------------------------------------------------------------------


def newer(made: MadeRun, root: Path) -> Path:
    place = write(made, root)
    plan = json.loads((place / layout.PLAN).read_text())
    (place / layout.PLAN).write_text(json.dumps({**plan, "schema_version": 99}))
    return place


def relabelled(made: MadeRun, root: Path) -> Path:
    rows = made.rows
    column = rows.schema.get_field_index("label")
    labels = (rows["label"].to_numpy() + 1) % 10
    table = rows.set_column(column, rows.schema.field(column), [labels])
    size = made.plan.shard_size
    return write(MadeRun(made.plan, [table.slice(i * size, size) for i in range(made.plan.shards)]), root)


Make = Callable[[Path], Path]

BAD: list[tuple[str, Make, list[str], str]] = [
    ("no run", lambda root: root, [], "no run at {run}: it has no plan.json"),
    (
        "not reduced",
        lambda root: invented_run(0.2).write(root) and root,
        [],
        "has no certificates yet: run `stn reduce`",
    ),
    (
        "empty",
        lambda root: write(invented_run(0.2), root, shards=[]),
        [],
        "{run} is empty: of 120 images 0 failed, 120 are missing, and none is counted",
    ),
    (
        "all failed",
        lambda root: write(invented_run(0.2, failed=range(120)), root),
        [],
        "{run} is empty: of 120 images 120 failed, 0 are missing",
    ),
    (
        "newer",
        lambda root: newer(invented_run(0.2), root),
        [],
        "was written by a newer version (schema 99): update this",
    ),
    (
        "other images",
        lambda root: write(first_of(invented_run(0.2), 119), root),
        [],
        "sigma-0.1 and run are of different images: only sigma-0.1 has 119; --common compares the 119 that all runs",
    ),
    (
        "no image in common",
        lambda root: write(invented_run(0.2, dataset={"kind": "digits", "indices": [200, 300]}), root),
        ["--common"],
        "there is no image that all runs have counted",
    ),
    (
        "other images altogether",
        lambda root: write(invented_run(0.2, dataset={"kind": "digits", "indices": [200, 300]}), root),
        [],
        "and 115 more; only run has 200, 300; all share none",
    ),
    (
        "other labels",
        lambda root: relabelled(invented_run(0.2), root),
        [],
        "sigma-0.1 and run know other classes of the same images: 120 labels differ, the first that of image 0",
    ),
    (
        "no line in common",
        lambda root: write(invented_run(0.2), root, dataclasses.replace(VIEW, protocols=("split",))),
        [],
        "no certificate is in the tables of all runs under the same protocol: sigma-0.1 has renyi (paper), neyman "
        "pearson one class (paper); run has renyi (split), neyman pearson one class (split); `stn reduce RUN",
    ),
    (
        "a line nobody has",
        lambda root: write(invented_run(0.2), root),
        ["--certificate", "pixeldp"],
        "no certificate that was asked for is in the tables of all runs",
    ),
    (
        "no certificate",
        lambda root: write(invented_run(0.2), root),
        ["--certificate", "renyii"],
        "did you mean 'renyi'?",
    ),
    ("no protocol", lambda root: write(invented_run(0.2), root), ["--protocol", "papre"], "did you mean 'paper'?"),
]


@pytest.mark.parametrize(("make", "options", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_line(
    runs: dict[str, Path], tmp_path: Path, make: Make, options: list[str], says: str
) -> None:
    made = make(tmp_path / "run")
    result = stn(runs["sigma-0.1"], made, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says.format(run=made) in result.stderr


def test_other_data_sets_are_named(runs: dict[str, Path]) -> None:
    result = stn(runs["sigma-0.1"], runs["others"], "--common")
    assert result.exit_code == 2
    one, other = (f"digits, 500 images, sha-256 {letter * 16}…, split test" for letter in "de")
    says = f"sigma-0.1 and others are of different data sets: sigma-0.1 has {one}; others has {other}"
    assert result.stderr == f"error: {says}\n"


def test_one_run_is_no_comparison(runs: dict[str, Path]) -> None:
    for arguments in ([runs["sigma-0.1"]], [runs["sigma-0.1"], f"{runs['sigma-0.1']}/"]):
        result = stn(*arguments)
        assert result.exit_code == 2
        assert result.stderr == "error: one run is no comparison: name at least two different ones\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--markdown", "--csv"], "--markdown, --latex, --csv and --json exclude each other: choose one"),
        (["--json", "--latex"], "exclude each other"),
        (["--level", "0"], "must lie inside (0, 1), got 0"),
        (["--level", "nan"], "must lie inside (0, 1), got nan"),
        (["--radii", "0.2,0.1"], "increase"),
    ],
)
def test_bad_usage_is_one_line(runs: dict[str, Path], options: list[str], says: str) -> None:
    result = stn(runs["sigma-0.1"], runs["sigma-0.5"], *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
