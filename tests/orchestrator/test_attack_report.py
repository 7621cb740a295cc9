from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from markupsafe import escape
from matplotlib.colors import to_hex
from PIL import Image

from orchestrator.attacking.attack import attack_run
from orchestrator.attacking.figures import attacks_figure
from orchestrator.attacking.gallery import Exhibit, difference_png, image_png
from orchestrator.attacking.robustness import reduce_attacks
from orchestrator.attacking.sandwich import sandwich
from orchestrator.attacking.text import sandwich_text
from orchestrator.attacking.under_attack import UnderAttack, load_attacks
from orchestrator.cli import main
from orchestrator.errors import RunError
from orchestrator.numerals import percent, percent_up
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.runs import read_plan
from orchestrator.reducing.tables import View, read_certificates
from orchestrator.reporting.page.figures import Curves
from orchestrator.reporting.publishing import Published, publish, report_html
from orchestrator.reporting.reported import load_run
from orchestrator.reporting.steps import Steps
from orchestrator.spec import validate
from tests.orchestrator.inline import hire_inline
from tests.orchestrator.runs import MadeRun, mnist_spec
from workers import attempts_table, layout
from workers.store import LocalStore

VIEW = View(("renyi", "neyman_pearson_one_class"), ("paper", "split"), 0.05, (0.0, 0.05, 0.1), "clopper_pearson", 0.01)
ATTACKS: dict[str, Any] = {
    "pgd-l2": {"kind": "pgd", "norm": "l2", "sizes": [0.25, 0.5, 1.5], "steps": 3, "draws": 2},
    "pgd-linf": {"kind": "pgd", "norm": "linf", "sizes": [0.02, 0.2], "steps": 3, "draws": 2},
    "square": {"kind": "square", "norm": "linf", "sizes": [0.02, 0.2], "queries": 3, "draws": 2},
}
HOSTILE = '<script>alert("1")</script>'
MOST_BYTES = 6_000_000
RED = "#b00020"


def attacked_run(made: MadeRun | None, digits: Path, root: Path, **sections: Any) -> LocalStore:
    """A run with attacks, and with certificates if there are votes for them."""
    store = LocalStore(root)
    if made is not None:
        made.write(root)
        reduce_run(store, made.plan, VIEW)
    attack = {"draws": 100, "alpha": 0.05, "keep": 10, "attacks": ATTACKS}
    spec = validate(mnist_spec(digits, attack=attack, store={"run": str(root)}, **sections), "spec")
    attack_run(spec, hire=hire_inline)
    return store


@pytest.fixture(scope="module")
def store(made: MadeRun, few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """20 digits certified, and attacked in three ways, ten of them kept."""
    return attacked_run(made, few_digits, tmp_path_factory.mktemp("attacked") / "whole")


@pytest.fixture(scope="module")
def published(store: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish([store], LocalStore(tmp_path_factory.mktemp("report")))


@pytest.fixture
def found(published: Published) -> UnderAttack:
    return published.attacks[0]


def page(one: UnderAttack) -> str:
    return report_html([] if one.run is None else [one.run], b"a figure", attacks=[one])


def cells(page: str) -> list[list[str]]:
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]


def contradicted(one: UnderAttack, factor: float) -> UnderAttack:
    """The same, had the first line's radii been that many times as large."""
    assert one.run is not None
    assert one.sandwiches is not None
    run, line = one.run, one.sandwiches[0].line
    radius = np.full(run.plan.images, factor)
    table = pa.table(
        {
            "index": np.array(run.plan.indices),
            "prediction": np.array([own["label"] for own in labels(one)]),
            "correct": np.ones(run.plan.images, dtype=bool),
            "radius": radius,
        }
    )
    doctored = sandwich(
        line,
        table,
        one.attacked,
        images=run.plan.images,
        alpha=0.05,
        beta=0.01,
    )
    return dataclasses.replace(one, sandwiches=[doctored, *one.sandwiches[1:]])


def labels(one: UnderAttack) -> list[dict[str, Any]]:
    own = one.attacked.attempts.filter(pc.equal(one.attacked.attempts["attack"], "pgd-l2"))
    rows: list[dict[str, Any]] = own.filter(pc.equal(own["size"], 0.0)).sort_by("index").to_pylist()
    return rows


# --- The page ------------------------------------------------------------------------------------------------------


def test_the_figures_on_the_page_are_those_in_the_table(store: LocalStore, found: UnderAttack) -> None:
    rows = pq.read_table(Path(store.uri) / "robustness.parquet").to_pylist()
    assert len({row["robust_accuracy"] for row in rows}) > 2
    shown = cells(page(found))
    for row in rows:
        (number, header) = next(
            (number, header)
            for number, header in enumerate(shown)
            if header[0].startswith("size, ") and row["attack"] in header
        )
        (line,) = [line for line in shown[number + 1 : number + 5] if line[0] == f"{row['size']:g}"]
        expected = f"{percent(row['robust_accuracy'])} ({percent_up(row['broken'] / row['images'])})"
        assert line[header.index(row["attack"])] == expected


def test_what_attacks_made_of_each_guaranteed_line_is_on_the_page(found: UnderAttack) -> None:
    assert found.sandwiches is not None
    assert {one.line.protocol for one in found.sandwiches} == {"paper", "split"}
    assert all(one.holds for one in found.sandwiches)
    assert sum(one.tries for one in found.sandwiches) > 10
    html = page(found)
    for one in found.sandwiches:
        for sentence in sandwich_text(one):
            assert f"<p>{escape(sentence)}</p>" in html
    assert "CONTRADICTED" not in html
    assert 'class="contradicted"' not in html
    assert "INCOMPLETE" not in html


def test_the_masking_check_is_on_the_page_and_red_where_something_beats(found: UnderAttack) -> None:
    assert found.check
    assert not any(one.beats for one in found.check)
    first = found.check[0]
    assert [first.white_box, first.other] in [row[:2] for row in cells(page(found))]
    assert "<p>gradient masking: no sign; " in page(found)
    beaten = dataclasses.replace(found, check=[dataclasses.replace(first, beats=True)])
    assert '<p class="contradicted">GRADIENTS MAY BE MASKED' in page(beaten)


def test_a_contradiction_is_red_on_the_page(found: UnderAttack) -> None:
    one = contradicted(found, 1.4)
    assert one.sandwiches is not None
    assert not one.sandwiches[0].holds
    html = page(one)
    for sentence in sandwich_text(one.sandwiches[0]):
        assert f'<p class="contradicted">{escape(sentence)}</p>' in html
    assert html.count('<p class="contradicted">') == len(sandwich_text(one.sandwiches[0]))
    assert re.search(rf"\.contradicted {{ color: {RED}", html)


def test_a_page_without_attacks_is_what_it_was_and_attacks_only_add_to_it(found: UnderAttack) -> None:
    assert found.run is not None
    without, whole = report_html([found.run], b"a figure"), page(found)
    assert not re.search("attack|gallery|contradicted", without)
    start, end = whole.index("<h3>Under attack"), whole.index("</body>")
    bare = whole[:start] + whole[end:]
    style = re.search(r"  \.contradicted.*?\n  \.gallery.*?\n", bare)
    assert style is not None
    assert bare.replace(style[0], "").split() == without.split()


def test_names_are_text_and_no_markup(found: UnderAttack) -> None:
    (source, *others), attacked = found.attacked.descriptions, found.attacked
    renamed = dataclasses.replace(
        attacked,
        descriptions={HOSTILE if name == source else name: one for name, one in attacked.descriptions.items()},
        curves=attacked.curves.set_column(
            0,
            attacked.curves.schema.field("attack"),
            pa.array([HOSTILE if name == source else name for name in attacked.curves["attack"].to_pylist()]),
        ),
    )
    shown = [dataclasses.replace(one, attack=HOSTILE) for one in found.exhibits]
    check = [dataclasses.replace(one, other=HOSTILE, relation=HOSTILE, beats=True) for one in found.check]
    place = renamed.curves.schema.get_field_index("missing")
    missing = pa.array([3] * len(renamed.curves), pa.int64())
    lacking = renamed.curves.set_column(place, renamed.curves.schema.field("missing"), missing)
    renamed = dataclasses.replace(renamed, curves=lacking)
    html = page(dataclasses.replace(found, attacked=renamed, exhibits=shown, check=check))
    alone = page(dataclasses.replace(found, name=HOSTILE, run=None, sandwiches=None))
    assert others
    assert "<script" not in html + alone
    assert html.count("&lt;script&gt;") > 5
    assert "<h2>&lt;script&gt;" in alone


def test_a_page_with_attacks_needs_nothing_outside_itself(found: UnderAttack) -> None:
    assert not re.search(r"https?:|@import|url\(|<link|<script", page(found))
    assert all(one.startswith("data:image/png;base64,") for one in re.findall(r'src="([^"]*)"', page(found)))


# --- The figure ----------------------------------------------------------------------------------------------------


def test_the_figure_has_the_curves_of_the_sandwich_and_the_points_of_the_attacks(found: UnderAttack) -> None:
    assert found.sandwiches is not None
    l2, linf = attacks_figure(found.attacked, found.sandwiches).axes
    assert [panel.get_xlabel() for panel in (l2, linf)] == [
        f"size ({norm}, pixels in [0, 1])" for norm in ("L2", "L-infinity")
    ]
    drawn = {str(line.get_label()): line for line in l2.get_lines()}
    for one in found.sandwiches:
        line = drawn[f"certified: {one.line.certificate.replace('_', ' ')}, {one.line.protocol}"]
        assert line.get_drawstyle() == "steps-pre"
        assert line.get_xdata().tolist() == [*one.radius, one.radius[-1]]
        assert line.get_ydata().tolist() == [*one.certified, 0.0]
        assert to_hex(line.get_color()) != RED
    assert drawn["not seen to break"].get_drawstyle() == "steps-pre"
    assert l2.get_title() == ""
    certified = max(one.radius[one.certified > 0].max() for one in found.sandwiches)
    assert max(certified, 1.5) < l2.get_xlim()[1] <= 1.1 * max(certified, 1.5)
    for panel, names in ((l2, ["pgd-l2"]), (linf, ["pgd-linf", "square"])):
        points = {str(line.get_label()): line for line in panel.get_lines()}
        for name in names:
            own = found.attacked.curves.filter(pc.equal(found.attacked.curves["attack"], name))
            assert points[f"robust: {name}"].get_xdata().tolist() == own["size"].to_pylist()
            assert points[f"robust: {name}"].get_ydata().tolist() == own["robust_accuracy"].to_pylist()


def test_what_is_drawn_is_what_certificates_and_attempts_say_at_each_size(
    store: LocalStore, found: UnderAttack
) -> None:
    assert found.run is not None
    assert found.sandwiches is not None
    one = found.sandwiches[0]
    rows = read_certificates(store, found.run.reduced).to_pylist()
    own = [row for row in rows if (row["certificate"], row["protocol"]) == (one.line.certificate, one.line.protocol)]
    attempts = found.attacked.attempts.to_pylist()
    panel = attacks_figure(found.attacked, [one]).axes[0]
    certified, attacked = panel.get_lines()[:2]
    for size in ((one.radius[1:] + one.radius[:-1]) / 2).tolist():
        at = int(np.searchsorted(one.radius, size))
        broken = {
            row["index"]
            for row in attempts
            if row["l2"] <= size and row["p_value"] <= one.beta / len(attempts) and not row["correct"]
        }
        assert certified.get_ydata()[at] == sum(row["correct"] and row["radius"] >= size for row in own) / 20
        assert attacked.get_ydata()[at] == (20 - len(broken)) / 20


def traces(one: UnderAttack) -> dict[str, list[dict[str, Any]]]:
    """Of the page's own figures, what attacks put there, by name in the legend."""
    assert one.run is not None
    curves = Curves(10)
    curves.add_run(0, one.run, {found.line: Steps(found.radius, found.certified) for found in one.sandwiches or ()})
    before = {id(trace) for figure in curves.figures() for trace in figure["data"]}
    curves.add_attacks(0, one.run, one.attacked, one.sandwiches or ())
    shown: dict[str, list[dict[str, Any]]] = {}
    for figure in curves.figures():
        for trace in figure["data"]:
            if id(trace) not in before:
                shown.setdefault(trace["meta"]["legend"], []).append(trace)
    return shown


def test_the_interactive_figure_has_the_attacked_curve_and_the_attacks_points(found: UnderAttack) -> None:
    assert found.sandwiches is not None
    shown = traces(found)
    # Attacks in a norm that nothing is certified in have no figure there to be in.
    assert set(shown) == {"not seen to break under attack", "robust under pgd-l2"}
    (curve,) = shown["not seen to break under attack"]
    one = max(found.sandwiches, key=lambda one: float(one.radius[-1]))
    assert curve["x"] == [*one.radius, one.radius[-1]]
    assert curve["y"] == [*one.attacked, one.attacked[-1]]
    assert curve["line"]["shape"] == "vh"
    assert curve["line"]["color"] != RED
    (points,) = shown["robust under pgd-l2"]
    own = found.attacked.curves.filter(pc.equal(found.attacked.curves["attack"], "pgd-l2"))
    assert (points["x"], points["y"]) == (own["size"].to_pylist(), own["robust_accuracy"].to_pylist())


def test_a_contradiction_is_red_in_the_interactive_figure(found: UnderAttack) -> None:
    (name,) = [name for name in traces(contradicted(found, 1.4)) if "not seen to break" in name]
    assert name.startswith("CONTRADICTED")
    (curve,) = traces(contradicted(found, 1.4))[name]
    assert curve["line"]["color"] == RED


def test_a_contradiction_is_red_in_the_figure(found: UnderAttack) -> None:
    one = contradicted(found, 1.4)
    assert one.sandwiches is not None
    panel = attacks_figure(one.attacked, one.sandwiches).axes[0]
    assert "CONTRADICTED" in panel.get_title()
    assert to_hex(panel.title.get_color()) == RED
    red = [line for line in panel.get_lines() if to_hex(line.get_color()) == RED]
    assert [str(line.get_label()).split(":")[0] for line in red] == ["CONTRADICTED"]


def test_the_figure_is_inside_the_page(found: UnderAttack) -> None:
    sources = re.findall(r'by size" src="data:image/png;base64,([^"]*)"', page(found))
    assert len(sources) == 1
    assert min(Image.open(io.BytesIO(base64.b64decode(sources[0]))).size) > 300


# --- The gallery ---------------------------------------------------------------------------------------------------


def stored_pixels(store: LocalStore, name: str) -> dict[tuple[int, float], np.ndarray[Any, Any]]:
    found = {}
    for path in sorted((Path(store.uri) / "attacks" / name).glob("shard-*.parquet")):
        for row in attempts_table.decode(path.read_bytes())[0].to_pylist():
            if row["pixels"] is not None:
                found[row["index"], row["size"]] = np.frombuffer(row["pixels"], "<f4").reshape(1, 28, 28)
    return found


def decoded(source: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))


def test_the_images_on_the_page_are_those_stored(store: LocalStore, found: UnderAttack) -> None:
    assert [one.attack for one in found.exhibits] == [name for name in ATTACKS for _ in range(6)]
    html = page(found)
    sources = {
        what: [decoded(one) for one in re.findall(rf'alt="{what}" src="data:image/png;base64,([^"]*)"', html)]
        for what in ("clean", "attacked", "difference")
    }
    assert {len(images) for images in sources.values()} == {len(found.exhibits)}
    for number, one in enumerate(found.exhibits):
        pixels = stored_pixels(store, one.attack)
        clean, attacked = pixels[one.index, 0.0], pixels[one.index, one.size]
        for what, image in (("clean", clean), ("attacked", attacked)):
            shown = sources[what][number]
            assert shown.shape == (28, 28)
            assert np.abs(shown / 255 - image[0]).max() <= 0.5 / 255 + 1e-6
        # The first is one of 8 bits, and so nothing is lost.
        assert (sources["clean"][number] == clean[0] * 255).all()
        change = attacked[0].astype(np.float64) - clean[0]
        grey = (sources["difference"][number] / 255 - 0.5) * 2 * one.scale
        assert np.abs(grey - change).max() <= one.scale / 255 + 1e-6
        assert np.linalg.norm(change.ravel(), 2 if one.norm == "l2" else np.inf) == pytest.approx(one.distance)
    assert "image-rendering: pixelated" in html
    assert "rounded to 8 bits" in html


def test_an_image_is_shown_at_the_smallest_size_at_which_it_is_not_robust(found: UnderAttack) -> None:
    attempts = found.attacked.attempts.to_pylist()
    for one in found.exhibits:
        own = sorted(
            (row for row in attempts if (row["attack"], row["index"]) == (one.attack, one.index)),
            key=lambda row: float(row["size"]),
        )
        shown = next((row for row in own if not row["correct"]), own[-1])
        assert (one.size, one.answered, one.label) == (shown["size"], shown["prediction"], shown["label"])
        assert one.robust == all(row["correct"] for row in own)
        answer = "abstains" if one.answered is None else str(one.answered)
        assert [one.attack, str(one.index), f"{one.label} → {answer}"] in [
            [row[0], row[1], row[6]] for row in cells(page(found)) if len(row) == 10
        ]
    assert {one.robust for one in found.exhibits} == {True, False}


def test_colours_keep_their_channels_and_no_difference_is_grey() -> None:
    image = np.zeros((3, 2, 4), dtype=np.float32)
    image[1, 0, 3], image[2, 1, 0] = 1.0, 0.4
    shown = np.asarray(Image.open(io.BytesIO(image_png(image))))
    assert shown.shape == (2, 4, 3)
    assert (shown[0, 3].tolist(), shown[1, 0].tolist(), shown.sum()) == ([0, 255, 0], [0, 0, 102], 255 + 102)
    same = Exhibit("a", "l2", 0, 1, 0.0, 0.0, False, 2, image, image)
    assert set(np.asarray(Image.open(io.BytesIO(difference_png(same)))).ravel().tolist()) <= {127, 128}


@pytest.mark.parametrize(("most", "shown"), [(3 * 784 * 6, 2), (3 * 784 * 2, 1), (0, 0)])
def test_the_images_of_a_page_have_a_budget(store: LocalStore, most: int, shown: int) -> None:
    found = load_attacks(store, load_run(store), most)
    assert found is not None
    assert len(found.exhibits) * 3 * 784 <= most
    names = [one.attack for one in found.exhibits]
    assert all(names.count(name) <= max(shown, 0) for name in ATTACKS)
    assert (not names) == (most == 0)


def test_what_was_not_kept_is_not_shown(made: MadeRun, few_digits: Path, tmp_path: Path) -> None:
    attack = {"draws": 20, "alpha": 0.05, "keep": 0, "attacks": {"pgd-l2": ATTACKS["pgd-l2"]}}
    made.write(tmp_path)
    spec = mnist_spec(few_digits, attack=attack, store={"run": str(tmp_path)})
    attack_run(validate(spec, "spec"), hire=hire_inline)
    found = load_attacks(LocalStore(tmp_path), None, MOST_BYTES)
    assert found is not None
    assert found.exhibits == []
    assert '<table class="gallery">' not in page(found)


# --- Runs without certificates, and parts --------------------------------------------------------------------------


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_run_without_certificates_is_reported_by_its_attacks(few_digits: Path, tmp_path: Path) -> None:
    attacked_run(None, few_digits, tmp_path / "alone", noise={"kind": "none"}, sampling={"draws": 1})
    result = stn("report", tmp_path / "alone")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "robust accuracy under attack" in result.stdout
    assert result.stdout.count("wrote ") == 1
    html = (tmp_path / "alone" / "report.html").read_text()
    assert "<h2>alone</h2>" in html
    assert html.count("No certificates") == 1
    assert "<title>Robust accuracy under attack</title>" in html
    assert "Certified accuracy at a radius" not in html
    assert not (tmp_path / "alone" / "curves.png").exists()


def test_it_is_shown_beside_one_that_has_some(store: LocalStore, few_digits: Path, tmp_path: Path) -> None:
    other = attacked_run(None, few_digits, tmp_path / "alone")
    result = stn("report", store.uri, other.uri, "--out", tmp_path / "both")
    assert result.exit_code == 0
    html = (tmp_path / "both" / "report.html").read_text()
    assert html.index("<h2>whole</h2>") < html.index("<h2>alone</h2>")
    assert html.count("Under attack</h3>") == 2


def test_a_run_with_neither_says_what_to_run(made: MadeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="stn reduce"):
        publish([made.write(tmp_path)], LocalStore(tmp_path))


@pytest.mark.parametrize("certified", [True, False])
def test_attacks_on_a_part_of_the_images_are_incomplete(
    made: MadeRun, few_digits: Path, tmp_path: Path, certified: bool
) -> None:
    store = attacked_run(made if certified else None, few_digits, tmp_path / "part")
    store.delete(layout.attempts("square", 1))
    reduce_attacks(store, read_plan(store), 0.05)
    assert stn("report", store.uri).exit_code == 3
    html = (tmp_path / "part" / "report.html").read_text()
    assert '<h3 class="incomplete">INCOMPLETE: Under attack</h3>' in html
    assert "square: 8 missing of 20 images" in html
    assert "<title>INCOMPLETE: " in html


def test_a_damaged_table_of_attempts_is_one_line(store: LocalStore, tmp_path: Path) -> None:
    copy = LocalStore(tmp_path / "copy")
    for stored in store.list(""):
        copy.create(stored.key, store.read(stored.key))
    copy.replace(layout.attempts("pgd-l2", 0), b"no Parquet")
    result = stn("report", copy.uri)
    assert result.exit_code == 2
    assert "is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_curves_of_attacks_are_in_json(store: LocalStore, tmp_path: Path) -> None:
    result = stn("report", store.uri, "--out", tmp_path, "--json")
    values = json.loads(result.stdout)
    assert values["attacks"]["whole"] == pq.read_table(Path(store.uri) / "robustness.parquet").to_pylist()


def test_a_report_runs_no_network_and_no_cluster(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a report only reads")

    monkeypatch.setattr("torch.nn.Module.__call__", never)
    monkeypatch.setattr("ray.init", never)
    assert publish([store], LocalStore(tmp_path)).complete
