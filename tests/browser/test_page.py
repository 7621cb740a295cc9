"""The report in a real browser: it draws, complains of nothing, fetches nothing, and its numbers are the tables'."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from orchestrator.importing.cohen_log import read_logs
from orchestrator.importing.imported import Declared, import_log
from orchestrator.numerals import percent, percent_up
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import View
from orchestrator.reporting.publishing import publish
from orchestrator.reporting.reported import load_run
from tests.orchestrator.conftest import few_digits as few_digits
from tests.orchestrator.conftest import made as made
from tests.orchestrator.runs import MadeRun, invented, plan_of
from workers.store import LocalStore

VIEW = View(
    ("renyi", "neyman_pearson_one_class", "renyi_linf"),
    ("paper", "split", "paper_two"),
    0.05,
    (0.0, 0.05, 0.1, 0.2, 0.3),
    "clopper_pearson",
    0.01,
)
#: The names of runs and files are anybody's.
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)<script>"
LOG = b"idx\tlabel\tpredict\tradius\tcorrect\n0\t3\t3\t0.2\t1\n1\t5\t5\t0.1\t1\n2\t1\t-1\t0.0\t0\n"


@dataclass
class Opened:
    """A page that is ready, and whatever went on meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def traces(self, figure: int) -> list[dict[str, Any]]:
        """What Plotly has of a figure."""
        script = f"JSON.parse(JSON.stringify(document.querySelector('[data-figure=\"{figure}\"]').data))"
        found: list[dict[str, Any]] = self.page.evaluate(script)
        return found

    def shown(self, figure: int) -> list[bool]:
        """Whether each trace is."""
        return [trace.get("visible", True) is True for trace in self.traces(figure)]

    def drawn(self, figure: int) -> int:
        """Lines that are on the screen."""
        return self.page.locator(f'[data-figure="{figure}"] .scatterlayer .trace path.js-line').count()

    def settled(self) -> None:
        self.page.wait_for_timeout(300)


def opened(chromium: Browser, report: Path, width: int = 1200) -> Opened:
    page = chromium.new_page(viewport={"width": width, "height": 844})
    found = Opened(page)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (found.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(report.as_uri())
    page.wait_for_selector("html.ready", timeout=60_000)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def report(made: MadeRun, folder: Path) -> Path:
    """Of a run whose images are here, of one that lacks a shard and whose images are not, and of a log."""
    real = made.write(folder / "real")
    plan = plan_of(sampling={"draws": 2000, "selection_draws": 30, "seed": 3})
    part = invented(plan, failed=[3], sure=0.2).write(folder / HOSTILE.replace("/", ""), [0, 1])
    for store, of in ((real, made.plan), (part, plan)):
        reduce_run(store, of, VIEW)
    theirs = import_log(read_logs([("log", LOG)]), f"theirs {HOSTILE}", Declared())
    publish([real, part], LocalStore(folder / "out"), [theirs])
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def window(chromium: Browser, report: Path) -> Iterator[Opened]:
    found = opened(chromium, report)
    yield found
    found.page.close()


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "real" / table).to_pylist()
    return found


def curves_of(window: Opened, figure: int, run: int) -> dict[str, dict[str, Any]]:
    """A run's certified curves, by their name in the legend, without what abstains."""
    return {
        trace["meta"]["legend"].split(" (")[0]: trace
        for trace in window.traces(figure)
        if trace["meta"].get("run") == run and trace["meta"].get("counted")
    }


def cells(page: Page, heading: str, run: str = "real") -> list[list[str]]:
    """The first table below a heading of a run's section."""
    script = """([run, heading]) => {
        let at = [...document.querySelectorAll('h2')].find((one) => one.textContent.trim() === run);
        while (at && !(at.tagName === 'H3' && at.textContent.trim() === heading)) at = at.nextElementSibling;
        while (at && at.tagName !== 'TABLE' && !at.querySelector('table')) at = at.nextElementSibling;
        const table = at.tagName === 'TABLE' ? at : at.querySelector('table');
        return [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
    }"""
    found: list[list[str]] = page.evaluate(script, [run, heading])
    return found


# --- It stands alone -----------------------------------------------------------------------------------------------


def test_nothing_is_said_and_nothing_fetched(window: Opened, report: Path) -> None:
    assert window.said == []
    assert window.requests == [report.as_uri()]


def test_the_browser_would_refuse_to_fetch_or_run_anything_else(window: Opened) -> None:
    assert not window.page.evaluate("fetch('https://example.org/').then(() => true, () => false)")
    window.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert window.page.evaluate("window.ran") is None
    assert all("Content Security Policy" in text for text in window.said)
    assert window.said
    window.said.clear()
    window.requests[1:] = []


def test_the_page_begins_by_saying_that_something_is_incomplete(window: Opened) -> None:
    first = window.page.inner_text("body").splitlines()[0]
    assert first == "INCOMPLETE: Certified accuracy"
    assert window.page.title() == first
    legend = window.page.locator(".key legend").all_inner_texts()
    assert legend[0].strip() == "real"
    assert "(INCOMPLETE: 20 missing, 1 failed of 120 images)" in legend[1]
    names = [trace["name"] for trace in window.traces(0) if trace["meta"]["run"] == 1]
    assert names
    assert all(name.startswith("INCOMPLETE") for name in names)


def test_names_are_shown_as_they_are(window: Opened) -> None:
    shown = HOSTILE.replace("/", "")
    assert window.page.locator("h2", has_text=shown).count() >= 1
    assert window.page.locator("img[src=x]").count() == 0
    assert "\\u003cimg" in window.page.content()


# --- Its numbers ---------------------------------------------------------------------------------------------------


def test_every_curve_is_drawn_and_is_what_the_certificates_say(window: Opened, folder: Path) -> None:
    certificates = rows(folder, "certificates.parquet")
    drawn = curves_of(window, 0, 0)
    assert len(drawn) == 6
    for name, trace in drawn.items():
        certificate, protocol = re.fullmatch(r"(.*) \[L2\], (\w+)", name).groups()  # type: ignore[union-attr]
        radii = [
            row["radius"]
            for row in certificates
            if row["certificate"].replace("_", " ") == certificate and row["protocol"] == protocol and row["correct"]
        ]
        assert radii
        assert trace["line"]["shape"] == "vh"
        assert trace["x"][:-1] == sorted({0.0, *radii})
        assert trace["y"] == [*(sum(one >= x for one in radii) / 20 for x in trace["x"][:-1]), 0.0]
        assert trace["customdata"] == [*(sum(one >= x for one in radii) for x in trace["x"][:-1]), 0]
    assert window.drawn(0) > 12


def test_the_strokes_are_what_is_guaranteed_and_the_level_is_natural_accuracy(window: Opened, folder: Path) -> None:
    curves = rows(folder, "curves.parquet")
    marks = [trace for trace in window.traces(0) if trace["meta"].get("joined") and trace["meta"]["run"] == 0]
    assert len(marks) == 4  # nothing of paper_two is guaranteed
    expected = {
        tuple(
            row["guaranteed_accuracy"]
            for row in curves
            if (row["certificate"], row["protocol"]) == (certificate, protocol)
        )
        for certificate in ("renyi", "neyman_pearson_one_class")
        for protocol in ("paper", "split")
    }
    assert {tuple(trace["y"]) for trace in marks} == expected
    assert all(trace["x"] == list(VIEW.radii) for trace in marks)
    summary = load_run(LocalStore(folder / "real")).reduced.summary
    (level,) = [one for one in window.traces(0) if one["meta"]["run"] == 0 and "natural" in one["meta"]["legend"]]
    assert level["y"] == [summary.majority_correct / 20] * 2


def test_the_tables_are_the_parquet_files(window: Opened, folder: Path) -> None:
    header, *body = cells(window.page, "Certified accuracy by radius")
    for column, name in enumerate(header[1:], 1):
        found = re.fullmatch(r"(.*) \[[^]]*\], (\w+)(?: \(not a guarantee\))?", name)
        assert found is not None
        certificate, protocol = found.groups()
        own = [
            row
            for row in rows(folder, "curves.parquet")
            if (row["certificate"].replace("_", " "), row["protocol"]) == (certificate, protocol)
        ]
        for cell, row in zip(body, own, strict=False):
            assert float(cell[0]) == row["radius"]
            least = row["guaranteed_accuracy"]
            expected = percent(row["certified_accuracy"]) + ("" if least is None else f" ({percent(least)})")
            assert cell[column] == expected
        assert body[-1][column] == str(own[0]["abstained"])


def test_the_population_is_between_what_the_table_says(window: Opened, folder: Path) -> None:
    body = window.page.locator("table").nth(1).inner_text()
    row = rows(folder, "curves.parquet")[0]
    assert f"{percent(row['population_lower'])} to {percent_up(row['population_upper'])}" in body


def test_classes_add_up_to_the_run(window: Opened, folder: Path) -> None:
    header, *body = cells(window.page, "By class")
    own = [
        row
        for row in rows(folder, "certificates.parquet")
        if (row["certificate"], row["protocol"]) == ("renyi", "paper")
    ]
    assert sum(int(row[1]) for row in body) == 20
    assert sum(int(row[-1]) for row in body) == sum(row["prediction"] is None for row in own)
    column = header.index("certified at 0.05")
    for row in body:
        label, images = int(row[0]), int(row[1])
        assert images == sum(one["label"] == label for one in own)
        certified = sum(one["label"] == label and one["correct"] and one["radius"] >= 0.05 for one in own)
        assert row[column] == percent(certified / images)
    right = sum(round(float(row[2].removesuffix(" %")) * int(row[1]) / 100) for row in body)
    assert right == load_run(LocalStore(folder / "real")).reduced.summary.majority_correct


def test_the_histogram_holds_every_certified_image_once(window: Opened, folder: Path) -> None:
    own = [
        row
        for row in rows(folder, "certificates.parquet")
        if (row["certificate"], row["protocol"]) == ("renyi", "paper")
    ]
    right, wrong = window.traces(2)[:2]
    assert sum(right["y"]) == sum(row["correct"] for row in own) > 0
    assert sum(wrong["y"]) == sum(row["prediction"] is not None and not row["correct"] for row in own)
    for middle, width, count in zip(right["x"], right["width"], right["y"], strict=True):
        low, high = middle - width / 2, middle + width / 2
        inside = sum(row["correct"] and low + 1e-12 < row["radius"] < high - 1e-12 for row in own)
        assert inside <= count
    assert sum(window.shown(2)) == 2


def test_no_button_sends_a_figure_away(window: Opened) -> None:
    titles = window.page.eval_on_selector_all(
        ".modebar-btn", "buttons => buttons.map(one => one.getAttribute('data-title'))"
    )
    assert set(titles) == {"Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}
    assert "form-action 'none'" in window.page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")


# --- What can be done with it --------------------------------------------------------------------------------------


def test_pointing_at_a_curve_shows_its_numbers(window: Opened) -> None:
    page = window.page
    trace = window.traces(0)[0]
    place = len(trace["x"]) // 2
    div = page.locator('[data-figure="0"]')
    div.scroll_into_view_if_needed()
    script = """([x, y]) => {
        const div = document.querySelector('[data-figure="0"]'), box = div.getBoundingClientRect();
        const {xaxis, yaxis} = div._fullLayout;
        return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)];
    }"""
    x, y = page.evaluate(script, [trace["x"][place], trace["y"][place]])
    page.mouse.move(x - 30, y - 30)
    page.mouse.move(x, y, steps=4)
    count = trace["customdata"][place]
    # On the way there other points are shown first, and Plotly takes its time.
    label = div.locator(".hoverlayer .hovertext", has_text=f"{percent(count / 20)}: {count} of 20 images certified at")
    label.first.wait_for()
    at = float(re.search(r"at radius ([\d.]+)", label.first.text_content() or "")[1])  # type: ignore[index]
    assert trace["x"][place] - 1e-6 <= at <= trace["x"][place]
    page.mouse.move(0, 0)


def test_a_run_and_a_curve_can_be_hidden(window: Opened) -> None:
    page = window.page
    before, lines = window.shown(0), window.drawn(0)
    assert all(before)
    page.uncheck('input[data-run="0:0"]')
    window.settled()
    of_run = [trace["meta"]["run"] == 0 for trace in window.traces(0)]
    assert window.shown(0) == [not own for own in of_run]
    assert window.drawn(0) < lines
    page.check('input[data-run="0:0"]')
    page.locator("input[data-trace]").first.uncheck()
    window.settled()
    # The curve, and what of it is guaranteed.
    assert window.shown(0) == [place > 1 for place in range(len(before))]
    page.locator("input[data-trace]").first.check()
    window.settled()
    assert (window.shown(0), window.drawn(0)) == (before, lines)


def test_the_protocol_can_be_switched(window: Opened) -> None:
    page = window.page
    for protocol in ("split", "paper", ""):
        page.select_option('[data-choose="protocol"]', protocol)
        window.settled()
        for figure in (0, 1):
            for trace, shown in zip(window.traces(figure), window.shown(figure), strict=True):
                own = trace["meta"].get("protocol")
                assert shown == (own is None or not protocol or own == protocol)


def test_the_histogram_shows_the_line_that_is_chosen(window: Opened) -> None:
    page = window.page
    names = page.locator('select[data-line="2"] option').all_inner_texts()
    assert len(names) == 9
    page.select_option('select[data-line="2"]', names[4])
    window.settled()
    assert [trace["meta"]["line"] == names[4] for trace in window.traces(2)] == window.shown(2)
    page.select_option('select[data-line="2"]', names[0])
    window.settled()


# --- Its images ----------------------------------------------------------------------------------------------------


def test_images_are_the_data_sets_and_their_noise_is_the_runs(window: Opened, folder: Path, made: MadeRun) -> None:
    import torch

    from stn_core.noise import Draws, Gaussian
    from workers.images import open_dataset

    cards = window.page.locator(".cards figure").filter(has=window.page.locator("img"))
    assert cards.count() >= 4
    images = open_dataset(made.plan.spec.dataset)
    votes = {row["index"]: row for row in made.rows.to_pylist()}
    for card in cards.all():
        text = card.locator("figcaption").inner_text()
        index = int(re.match(r"image (\d+):", text)[1])  # type: ignore[index]
        sources = [one.get_attribute("src") or "" for one in card.locator("img").all()]
        clean, noisy = (np.asarray(Image.open(io.BytesIO(base64.b64decode(one.split(",")[1])))) for one in sources)
        assert (clean == images.read(index)[0]).all()
        rows = torch.zeros((1, 1, 28, 28))
        Gaussian(0.2).fill(rows, [Draws(made.plan.spec.sampling.seed, images.key(index), "estimation", 0)])
        expected = np.clip(images.read(index)[0] / 255 + rows[0, 0].numpy(), 0, 1)
        assert np.abs(noisy / 255 - expected).max() <= 0.5 / 255 + 1e-6
        best = max(votes[index]["estimation"], key=lambda one: one["votes"])
        assert f"{best['class']}: {best['votes']}" in text
        assert f"votes of {votes[index]['draws']}:" in text


def test_the_first_has_the_largest_radius(window: Opened, folder: Path) -> None:
    own = [
        row["radius"]
        for row in rows(folder, "certificates.parquet")
        if (row["certificate"], row["protocol"], row["correct"]) == ("renyi", "paper", True)
    ]
    text = window.page.locator(".cards figcaption").first.inner_text()
    shown = float(re.search(r"radius ([\d.]+)", text)[1])  # type: ignore[index]
    assert math.isclose(shown, max(own), abs_tol=1e-4)
    assert shown <= max(own)


def test_where_the_images_are_not_here_votes_are(window: Opened) -> None:
    assert window.page.get_by_text("The run's data set is not here").count() == 1
    cards = window.page.locator(".cards figure")
    assert cards.count() > window.page.locator(".cards figure:has(img)").count()


# --- On a phone, and on paper --------------------------------------------------------------------------------------


def test_a_phone_scrolls_the_page_in_one_direction_alone(chromium: Browser, report: Path) -> None:
    found = opened(chromium, report, width=390)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 390
    for div in found.page.locator(".plot .main-svg").all():
        box = div.bounding_box()
        assert box is None or box["x"] + box["width"] <= 390
    assert found.said == []
    found.page.close()


def test_it_prints_with_all_its_tables_unfolded(chromium: Browser, report: Path) -> None:
    found = opened(chromium, report)
    content = found.page.pdf(format="A4")
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 3
    found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert found.page.locator("details:not([open])").count() == 0
    found.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert found.page.locator("details:not([open])").count() > 0
    assert found.said == []
    found.page.close()


def test_without_scripts_there_is_the_figure_for_papers(chromium: Browser, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    still = page.locator("img.still")
    assert still.count() == 1
    assert still.is_visible()
    assert not page.locator(".plot").first.is_visible()
    context.close()
