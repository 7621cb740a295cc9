"""A comparison in words and figures: its tables, however a format writes them, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.comparing.comparison import Beside, Compared, Comparison
from orchestrator.comparing.entrants import Entrant, line_text
from orchestrator.numerals import NORMS, UNKNOWN, p_text, percent, points, points_between, radius_text
from stn_core.naming import listed

Words = Callable[[str], str]

#: Settings by which certificates themselves are made, not what is certified.
_NOT_ALIKE = (
    *("confidence.alpha", "confidence.interval", "radii"),
    *("sampling.draws", "sampling.mode", "sampling.stages", "sampling.tolerance"),
)


@dataclass(frozen=True)
class Form:
    """How a format writes things.

    Attributes:
        text: any text, with what means something to the format written so that it does not.
        best: the best figure at a radius.
    """

    text: Words
    best: Words


TERMINAL = Form(str, lambda figure: f"{figure}*")


@dataclass(frozen=True)
class Table:
    """A table as a format writes it.

    Attributes:
        title: what it is of.
        columns: their headings.
        rows: of as many cells.
        right: how many columns, of the last ones, are numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: int


def line_table(comparison: Comparison, compared: Compared, form: Form) -> Table:
    """A row for each radius and run; the first run has no difference, nor p."""
    sure = f"{100 * (1 - comparison.level):.12g} %"
    columns = ("radius", "run", "certified, %", f"difference ({sure} interval)", "gained, lost", "p")
    return Table(
        form.text(f"certified accuracy by {NORMS[compared.norm]} radius, {line_text(compared.line)}"),
        tuple(map(form.text, columns)),
        tuple(_rows(comparison, compared, form)),
        right=4,
    )


def _rows(comparison: Comparison, compared: Compared, form: Form) -> Iterator[tuple[str, ...]]:
    for point in compared.points:
        for number, (standing, entrant) in enumerate(zip(point.standings, comparison.entrants, strict=True)):
            certified = form.text(_bare(percent(standing.certified / comparison.images)))
            if standing.best:
                certified = form.best(certified)
                certified += "" if point.guaranteed is None else form.text(f" ({_bare(percent(point.guaranteed))})")
            radius = "" if number else radius_text(point.radius)
            cells = map(form.text, _beside(standing.beside, comparison.images))
            yield form.text(radius), form.text(_named(entrant)), certified, *cells


def _named(entrant: Entrant) -> str:
    return entrant.name if entrant.run.complete else f"{entrant.name} (INCOMPLETE)"


def _bare(text: str) -> str:
    return text.removesuffix(" %")


def _beside(beside: Beside | None, images: int) -> tuple[str, str, str]:
    if beside is None:
        return ("",) * 3
    difference, counts = points(beside.gained - beside.lost, images), f"{beside.gained}, {beside.lost}"
    if beside.judged is None:
        return difference, counts, UNKNOWN
    interval = points_between(beside.judged.low, beside.judged.high)
    return f"{difference} ({interval})", counts, p_text(beside.judged.p_holm)


def settings_table(comparison: Comparison, form: Form) -> Table:
    """What differs between the runs, a row for each setting and run."""
    rows = [
        tuple(map(form.text, ("" if number else setting.name, _named(entrant), value)))
        for setting in comparison.settings
        for number, (entrant, value) in enumerate(zip(comparison.entrants, setting.values, strict=True))
    ]
    return Table(form.text("what differs"), ("setting", "run", "value"), tuple(rows), right=0)


def incomplete_text(comparison: Comparison) -> list[str]:
    """What incomplete runs lack, a sentence each."""
    return [
        f"{one.run.title}: missing and failed images count as not certified"
        for one in comparison.entrants
        if not one.run.complete
    ]


def verdicts(comparison: Comparison) -> list[str]:
    """What is shown of every run beside the first, by line, a sentence each."""
    first, *others = comparison.entrants
    pairs = [f"{_named(other)} beside {_named(first)}" for other in others]
    return [
        f"{f'{line_text(compared.line)}: ' if len(comparison.lines) > 1 else ''}{pair}: {_verdict(compared, number)}"
        for compared in comparison.lines
        for number, pair in enumerate(pairs, 1)
    ]


def _verdict(compared: Compared, run: int) -> str:
    more: list[str] = []
    fewer: list[str] = []
    alike = 0
    for point in compared.points:
        beside = point.standings[run].beside
        if beside is None or beside.judged is None:
            return "not judged, since votes are still to come; --common leaves out images that are missing"
        if not beside.judged.differs:
            alike += 1
        else:
            (more if beside.gained > beside.lost else fewer).append(radius_text(point.radius))
    shown = [
        f"certifies {what} images at radius {listed(radii, 20)}"
        for what, radii in (("more", more), ("fewer", fewer))
        if radii
    ]
    return "; ".join(shown + ([f"no difference is shown at {alike} of {len(compared.points)} radii"] if alike else []))


def notes(comparison: Comparison, best: str) -> list[str]:
    """What the figures are, a sentence each; ``best`` says how the best ones are marked."""
    names, first = comparison.names, comparison.names[0]
    covered = ", ".join(f"{name} {images}" for name, images in zip(names, comparison.covered, strict=True))
    unlike = [setting.name for setting in comparison.settings if setting.name in _NOT_ALIKE]
    noise = any(setting.name.startswith("noise.") for setting in comparison.settings)
    complete = sum(one.run.complete for one in comparison.entrants)
    return [
        f"{comparison.images} images, the same for all runs"
        + ("" if set(comparison.covered) == {comparison.images} else f": those that each has counted, of {covered}"),
        f"difference: from {first}, in percentage points. Its interval (Tango's score interval, each by itself) is "
        "about the choice of images: what all those would show of which these are a random sample. It says nothing of "
        "certificates that the votes' noise made false, nor of networks trained anew",
        f"gained, lost: images certified by this run and not by {first}, and the reverse. p: McNemar's exact test, "
        f"corrected (Holm) for all {comparison.tests} comparisons; a difference is shown where p is at most "
        f"{comparison.level:g}",
        f"{best}: best of the {complete} complete runs at that radius: selection, made after looking, and no single "
        f"run's curve{_guaranteed(comparison)}"
        if complete > 1
        else "no best is marked: fewer than two runs are complete",
        *(["noise differs: each run certifies a smoothed classifier of its own"] if noise else []),
        *([f"not like for like: certificates differ in {', '.join(unlike)}"] if unlike else []),
        *(
            [f"left out, since only some of the runs have it: {listed(map(line_text, comparison.left_out))}"]
            if comparison.left_out
            else []
        ),
    ]


def _guaranteed(comparison: Comparison) -> str:
    if comparison.beta is None:
        return ""
    return (
        f"; in brackets: truly certified by it, at least, with probability 1 - {comparison.beta:g} over the noise of "
        "all runs, whichever is picked (settings chosen before looking)"
    )
