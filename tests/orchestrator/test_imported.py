"""Logs of Cohen et al.'s lineage: what is read from them, what is refused, and what is said to be unknown."""

from __future__ import annotations

import dataclasses
import json
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from orchestrator.cli import main
from orchestrator.errors import LogError, RunError
from orchestrator.importing.cohen_log import Certificate, Log, read_logs
from orchestrator.importing.imported import Declared, Imported, certified, curve, import_log, keep, load, radii_beside
from orchestrator.importing.text import imported_facts, imported_table
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import CERTIFICATES_SCHEMA, View
from orchestrator.reporting.drawing import figure_png
from orchestrator.reporting.publishing import report_html
from tests.orchestrator.runs import MadeRun
from workers import layout
from workers.store import LocalStore

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"

#: As certify.py writes it: every twentieth image, three significant digits, one abstains, one is wrong.
LOG = (
    HEADER
    + "0\t3\t3\t0.377\t1\t0:00:14.172309\n"
    + "20\t7\t-1\t0.0\t0\t0:00:15.367110\n"
    + "40\t4\t4\t0.0688\t1\t0:00:15.485606\n"
    + "60\t7\t2\t0.922\t0\t0:00:15.301528\n"
    + "80\t8\t8\t0.5\t1\t0:00:15.334239\n"
)


def read(*texts: str) -> Log:
    return read_logs((f"log{number}", text.encode()) for number, text in enumerate(texts))


def imported(text: str = LOG, declared: Declared | None = None) -> Imported:
    return import_log(read(text), "theirs", declared or Declared())


def figures(log: Log) -> list[tuple[int, int, int | None, float]]:
    return [(row.index, row.label, row.prediction, row.radius) for row in log.certificates]


FIGURES = [(0, 3, 3, 0.377), (20, 7, None, 0.0), (40, 4, 4, 0.0688), (60, 7, 2, 0.922), (80, 8, 8, 0.5)]

# --- Reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LOG, id="as it was written"),
        pytest.param(LOG.replace("\n", "\r\n"), id="line ends of Windows"),
        pytest.param("\ufeff" + LOG, id="a byte order mark"),
        pytest.param(re.sub(r"\t(0:00:\S+|time)\n", "\n", LOG), id="no times"),
        pytest.param(re.sub(r"(0:00:\S+|time)\n", r"0.98\t\1\n", LOG), id="a column more"),
        pytest.param(LOG.removesuffix("\n"), id="no end of the last line"),
        pytest.param(LOG.removesuffix(":00:15.334239\n"), id="a last line cut short in what is not read"),
        pytest.param(LOG.replace("60\t", HEADER + "60\t"), id="a run appended to another"),
        pytest.param(LOG.replace("60\t", "\n\n60\t") + "\n", id="empty lines"),
        pytest.param(LOG.replace("\t1\t", "\tTrue\t").replace("\t0\t0:", "\tFalse\t0:"), id="booleans of Python"),
    ],
)
def test_a_log_is_read_however_it_was_kept(text: str) -> None:
    log = read(text)
    assert figures(log) == FIGURES
    assert [row.correct for row in log.certificates] == [True, False, True, False, True]
    assert log.notes == ()


@pytest.mark.parametrize("left", range(1, len("80\t8\t8\t0.5\t")))
def test_a_last_line_that_breaks_off_is_left_out_and_told(left: int) -> None:
    log = read(LOG[: LOG.index("80\t") + left])
    assert figures(log) == FIGURES[:-1]
    assert log.notes == ("log0: its last line breaks off and was left out",)


def test_files_are_parts_of_one_result_in_any_order() -> None:
    first, second = LOG[: LOG.index("40\t")], HEADER + LOG[LOG.index("40\t") :]
    assert figures(read(first, second)) == figures(read(second, first)) == FIGURES


def test_what_is_repeated_word_for_word_is_told() -> None:
    log = read(LOG, LOG)
    assert figures(log) == FIGURES
    assert log.notes == ("5 lines repeated another one word for word",)


BAD_LOGS = {
    "it is empty": ("", "log0: expected a header that begins with idx, label, predict, radius, correct"),
    "no header": ("0\t3\t3\t0.377\t1\n", "log0 line 1: expected a header"),
    "predict.py's": ("idx\tlabel\tpredict\tcorrect\ttime\n", "log0 line 1: expected a header"),
    "commas": (LOG.replace("\t", ","), "log0 line 1: expected a header"),
    "a header alone": (HEADER, "log0: it has a header and no image"),
    "a line too short": (LOG.replace("\t0:00:15.485606", ""), "log0 line 4: expected 6 values separated by tabs"),
    "two lines in one": (LOG.replace("15.485606\n", ""), "log0 line 4: expected 6 values separated by tabs"),
    "an index that is none": (LOG.replace("40\t4", "x\t4"), "log0 line 4: idx must be a whole number from 0, got 'x'"),
    "a negative index": (LOG.replace("40\t4", "-40\t4"), "log0 line 4: idx must be a whole number"),
    "a label of -1": (LOG.replace("20\t7\t", "20\t-1\t"), "log0 line 3: label must be a whole number from 0, got '-1'"),
    "a class of -2": (LOG.replace("\t-1\t", "\t-2\t"), "log0 line 3: predict must be a class from 0, or -1"),
    "a class of 1.0": (LOG.replace("\t-1\t", "\t1.0\t"), "log0 line 3: predict must be a class from 0, or -1"),
    "a negative radius": (LOG.replace("0.377", "-0.377"), "log0 line 2: radius must be a finite number"),
    "NaN": (LOG.replace("0.377", "nan"), "log0 line 2: radius must be a finite number that is not negative, got 'nan'"),
    "infinity": (LOG.replace("0.377", "inf"), "log0 line 2: radius must be a finite number"),
    "correct of 2": (LOG.replace("377\t1", "377\t2"), "log0 line 2: correct must be 0 or 1, got '2'"),
    "correct that is not": (LOG.replace("922\t0", "922\t1"), "log0 line 5: correct is 1, but label is 7 and predict 2"),
    "a radius of nothing": (LOG.replace("-1\t0.0", "-1\t0.1"), "log0 line 3: the image abstains (predict -1)"),
    "an image twice": (
        LOG.replace("60\t7\t2\t0.922", "40\t7\t2\t0.922"),
        "index 40 is there twice with different content, log0 line 4 and log0 line 5: FILEs are parts of one result",
    ),
}


@pytest.mark.parametrize(("text", "says"), BAD_LOGS.values(), ids=BAD_LOGS)
def test_what_is_no_log_is_refused_by_its_line(text: str, says: str) -> None:
    with pytest.raises(LogError) as refused:
        read(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(LogError, match=r"log: expected a header .*not text"):
        read_logs([("log", b"PAR1\xff\xfe")])


def test_the_results_of_two_networks_are_not_one() -> None:
    with pytest.raises(LogError, match=r"index 0 .* log0 line 2 and log1 line 2: .*import each result by itself"):
        read(LOG, LOG.replace("0.377", "0.378"))


def test_a_file_is_not_read_twice() -> None:
    with pytest.raises(LogError, match="log is given twice"):
        read_logs([("log", LOG.encode())] * 2)


# --- Rounding ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.decimals("0.00001", 40, allow_nan=False, places=9), min_size=5, max_size=20),
    st.sampled_from([".3", ".4f", ".6f", "r"]),
)
def test_the_least_radius_is_never_above_what_was_certified(true: list[Decimal], form: str) -> None:
    printed = [repr(float(radius)) if form == "r" else format(float(radius), form) for radius in true]
    # An image that abstains is in every real log, and shows the format.
    abstains = "0.0" if form in (".3", "r") else format(0.0, form)
    text = HEADER + f"0\t1\t-1\t{abstains}\t0\tt\n"
    text += "".join(f"{index}\t1\t1\t{radius}\t1\tt\n" for index, radius in enumerate(printed, 1))
    for row, radius in zip(read(text).certificates[1:], true, strict=True):
        assert row.radius_least <= float(radius)
        # And it is no further away than a unit of the last digit.
        if form == ".3":
            assert row.radius_least >= float(radius) * 0.989
        elif form != "r":
            assert row.radius_least >= max(0.0, float(radius) - 1.01 * 10 ** -int(form[1]))


@pytest.mark.parametrize(
    ("printed", "least"), [("1.26", 1.255), ("0.25", 0.2495), ("0.0688", 0.06875), ("12.3", 12.25)]
)
def test_a_radius_of_three_digits_may_have_been_rounded_up(printed: str, least: float) -> None:
    row = read(LOG.replace("0.377", printed)).certificates[0]
    assert row.radius == float(printed)
    assert least * (1 - 1e-9) < row.radius_least <= least


# --- The curve -----------------------------------------------------------------------------------------------------


def test_the_curve_is_that_of_the_listed_images() -> None:
    radii = [0.0, 0.05, 0.0688, 0.069, 0.377, 0.5, 0.501, 0.922]
    assert certified(imported(), radii) == [(3, 0), (3, 0), (3, 1), (2, 0), (2, 1), (1, 1), (0, 0), (0, 0)]
    first = curve(imported(), radii)[0]
    assert (first["certified_accuracy"], first["certified"], first["images"], first["abstained"]) == (0.6, 3, 5, 1)
    assert [first[name] for name in ("guaranteed_accuracy", "failed", "missing")] == [None, None, None]


_ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(-1, 9), st.floats(0.0001, 4, allow_nan=False)), min_size=1, max_size=40
)


@given(_ROWS, st.integers(1, 100), st.lists(st.floats(0, 4), min_size=1, max_size=5))
def test_a_written_log_has_the_curve_that_was_written(
    rows: list[tuple[int, int, float]], skip: int, radii: list[float]
) -> None:
    printed = [float(f"{0.0 if predict == -1 else radius:.3}") for _, predict, radius in rows]
    text = HEADER + "".join(
        f"{number * skip}\t{label}\t{predict}\t{radius:.3}\t{int(label == predict)}\t0:00:01\n"
        for number, ((label, predict, _), radius) in enumerate(zip(rows, printed, strict=True))
    )
    radii = [*radii, *printed]
    result = imported(text)
    expected = [
        sum(label == predict and radius >= asked for (label, predict, _), radius in zip(rows, printed, strict=True))
        for asked in radii
    ]
    assert [count for count, _ in certified(result, radii)] == expected
    assert [point["certified_accuracy"] for point in curve(result, radii)] == [count / len(rows) for count in expected]


def test_radii_are_those_shown_beside_or_every_quarter() -> None:
    assert radii_beside(imported(), ()) == [0, 0.25, 0.5, 0.75]
    assert radii_beside(imported(), (0.3, 0.1)) == [0.1, 0.3]
    nothing = imported(HEADER + "0\t1\t-1\t0.0\t0\tt\n")
    assert radii_beside(nothing, ()) == [0, 0.25]
    assert certified(nothing, [0.0]) == [(0, 0)]


# --- What is declared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "most"),
    [
        # Published: at n = 100 000 and alpha = 0.001 no radius exceeds 3.81 sigma.
        (Declared(0.25, 100_000, 0.001), 0.25 * norm.ppf(0.001 ** (1 / 100_000))),
        (Declared(1.0, 100, 0.05, "l2"), norm.ppf(0.05 ** (1 / 100))),
    ],
)
def test_votes_bound_the_radius(declared: Declared, most: float) -> None:
    assert declared.largest_radius == pytest.approx(most, rel=1e-9)


def test_a_declaration_that_the_log_contradicts_is_refused() -> None:
    says = "--sigma 0.2 --draws 100000 --alpha 0.001 allow no radius above 0.7623, and the log has 0.922"
    with pytest.raises(LogError, match=re.escape(says)):
        imported(declared=Declared(0.2, 100_000, 0.001))
    whole = Declared(0.25, 100_000, 0.001)
    for part in ({"sigma": None}, {"draws": None}, {"alpha": None}, {"norm": "linf"}, {}):
        imported(declared=dataclasses.replace(whole, **part))


def test_a_radius_rounded_up_past_the_largest_is_no_contradiction() -> None:
    exact = Declared(0.25, 100_000, 0.001).largest_radius
    assert exact is not None
    assert exact < 0.953
    assert imported(LOG.replace("0.922", "0.953"), Declared(0.25, 100_000, 0.001)).images == 5
    with pytest.raises(LogError):
        imported(LOG.replace("0.922", "0.955"), Declared(0.25, 100_000, 0.001))


def test_what_is_declared_is_no_longer_unknown_and_marked() -> None:
    nothing, something = imported(), imported(declared=Declared(0.5, 1000, 0.05, "l2"))
    assert {"n", "alpha", "the noise", "the norm", "votes"} <= set(nothing.unknown)
    assert not {"n", "alpha", "the noise", "the norm"} & set(something.unknown)
    assert set(something.unknown) < set(nothing.unknown)
    for fact in ("noise", "draws", "confidence"):
        assert "—" in dict(imported_facts(nothing, []))[fact]
        assert "(declared, not verified)" not in dict(imported_facts(nothing, []))[fact]
        assert "(declared, not verified)" in dict(imported_facts(something, []))[fact]


# --- Keeping -------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    result = imported(LOG + "100", Declared(sigma=0.25))
    assert keep(LocalStore(tmp_path), result)
    assert load(LocalStore(tmp_path)) == result
    assert result.notes


def test_the_columns_are_those_of_certificates(tmp_path: Path) -> None:
    keep(LocalStore(tmp_path), imported())
    table = pq.read_table(tmp_path / "imported.parquet")
    for field in table.schema:
        if field.name != "radius_least":
            assert field.equals(CERTIFICATES_SCHEMA.field(field.name))
    assert table["prediction"].to_pylist() == [3, None, 4, 2, 8]
    metadata = json.loads(table.schema.metadata[b"stn"])
    assert metadata["sources"][0]["name"] == "log0"
    assert "votes" in metadata["unknown"]


def test_the_same_may_be_imported_again_and_nothing_else(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert keep(store, imported())
    assert not keep(store, imported())
    for other in (imported(LOG.replace("0.377", "0.376")), imported(declared=Declared(alpha=0.001))):
        with pytest.raises(RunError, match="holds another import, 'theirs' of log0: choose another --out"):
            keep(store, other)
    assert load(store) == imported()


def test_a_run_is_no_place_for_an_import(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    with pytest.raises(RunError, match="is a run: choose another --out"):
        keep(store, imported())
    assert not store.exists(layout.IMPORTED)


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create(layout.IMPORTED, b"no table")
    with pytest.raises(RunError, match="is damaged: delete it, and import again"):
        load(store)


# --- Showing -------------------------------------------------------------------------------------------------------


def test_the_table_guarantees_nothing() -> None:
    table = imported_table(imported(), [0.0, 0.5])
    assert table["rows"] == [["0", "60.0 % (—)"], ["0.5", "20.0 % (—)"], ["abstain", "1"]]
    facts = dict(imported_facts(imported(), [0.0, 0.5]))
    assert facts["images"] == (
        "5 listed (index 0 to 80, each 20 after the one before), 1 abstain; failed and missing ones: —"
    )
    assert facts["radii"].endswith("1 image at 0.5 may count in the table for that alone")
    assert facts["model"] == facts["data set"] == facts["versions"] == "—"


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def run(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reduced run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").write_text(LOG)
    store = made.write(tmp_path / "ours")
    reduce_run(store, made.plan, View.of(made.plan.spec))
    return tmp_path / "ours"


def test_a_log_is_imported_and_shown_beside_a_run(run: Path, made: MadeRun) -> None:
    done = stn("import-cohen", "log", "--out", "theirs", "--sigma", 0.25, "--name", "Cohen <i>et al.</i>")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "what no such log says, and stays unknown: votes, n0, n, alpha, " in done.stdout
    assert "noise: sigma = 0.25 (declared, not verified)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("wrote ")

    both = stn("report", run, "theirs", "--out", "both")
    assert (both.exit_code, both.stderr) == (0, "")
    assert "Cohen <i>et al.</i> (imported)" in both.stdout
    page = (run.parent / "both" / layout.REPORT).read_text()
    assert "<h2>ours</h2>" in page
    assert "<h2>Cohen &lt;i&gt;et al.&lt;/i&gt; (imported)</h2>" in page
    # At the run's radii, not at its own.
    shown = re.findall(r"<tr><td>(\S+)</td>", page.split("<h2>Cohen")[1])
    assert [float(radius) for radius in shown[:-1]] == list(made.plan.spec.radii)

    values = json.loads(stn("report", run, "theirs", "--out", "both", "--json").stdout)
    assert set(values["curves"]) == {"ours"}
    (theirs,) = values["imported"]
    assert theirs["curve"][0]["certified_accuracy"] == 0.6
    assert theirs["curve"][0]["guaranteed_accuracy"] is None

    alone = stn("report", "theirs")
    assert alone.exit_code == 0
    assert (run.parent / "theirs" / layout.FIGURE).is_file()


def test_importing_again_says_so(run: Path) -> None:
    first, again = (json.loads(stn("import-cohen", "log", "--out", "x", "--json").stdout) for _ in range(2))
    assert (first["new"], again["new"]) == (True, False)
    assert first["curve"] == again["curve"]


@pytest.mark.parametrize("command", ["status", "verify", "reduce", "gc"])
def test_a_command_that_needs_votes_says_that_there_are_none(command: str, run: Path) -> None:
    stn("import-cohen", "log", "--out", "theirs")
    told = stn(command, "theirs")
    assert told.exit_code == 2
    says = "theirs is an imported table of certificates: it has no votes, only `stn report` reads it"
    assert told.stderr == f"error: {run.parent}/{says}\n"


def test_it_is_drawn_in_the_panel_of_its_norm(run: Path) -> None:
    drawn = figure_png([], [imported()])
    assert drawn != figure_png([], [imported(LOG.replace("0.377", "0.9"))])
    other = imported(declared=Declared(norm="l1"))
    assert len(figure_png([], [imported(), other])) > len(drawn)
    assert "L1 (declared, not verified)" in report_html([], drawn, [other])


def test_certificates_and_a_log_go_together_in_pandas(run: Path) -> None:
    stn("import-cohen", "log", "--out", "theirs")
    ours, theirs = (pq.read_table(path) for path in (run / layout.CERTIFICATES, run.parent / "theirs/imported.parquet"))
    assert [name for name in theirs.schema.names if name in ours.schema.names] == [
        "index",
        "label",
        "prediction",
        "correct",
        "radius",
    ]
    assert np.mean(theirs["correct"].to_numpy()) == 0.6


def test_a_certificate_is_correct_where_it_is_the_label() -> None:
    assert Certificate(0, 3, 3, 0.1, 0.1).correct
    assert not Certificate(0, 3, None, 0.0, 0.0).correct
