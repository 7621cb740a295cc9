"""Reading the logs that Cohen et al. (2019) began: idx, label, predict, radius, correct and more, tab-separated.

Pure: text in, certificates out. The lineage (SmoothAdv, MACER, Consistency and others) shares the first five columns.
Facts of the format: predict is -1 where the image abstains, and its radius 0 then; correct is 1 where predict is the
label. Radii are rounded to nearest as they are printed, by Cohen et al. to three significant digits, by others to a
number of decimals, and so may be larger than what was certified.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.errors import LogError

COLUMNS = ("idx", "label", "predict", "radius", "correct")

_WHOLE = re.compile(r"[0-9]{1,18}")
_RADIUS = re.compile(r"[0-9]{1,18}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
_CORRECT = {"1": True, "0": False, "True": True, "False": False}

#: Significant digits that a radius has at least, unless its log prints decimals: what Python's format ".3" keeps.
_DIGITS = 3


@dataclass(frozen=True)
class Source:
    """A file that was read.

    Attributes:
        name: its name, without folders.
        sha256: of its content.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Certificate:
    """What a line says of an image.

    Attributes:
        index: image's number in the data set.
        label: true class.
        prediction: certified class; None where the image abstains.
        radius: as it was printed, in the unit of the log.
        radius_least: the least radius that would have been printed so.
    """

    index: int
    label: int
    prediction: int | None
    radius: float
    radius_least: float

    @property
    def correct(self) -> bool:
        """Certified, and for the label."""
        return self.prediction == self.label


@dataclass(frozen=True)
class Log:
    """The certificates of one result.

    Attributes:
        sources: the files that it was in, by name.
        certificates: in order of index, each index once.
        notes: what was passed over in reading, in sentences.
    """

    sources: tuple[Source, ...]
    certificates: tuple[Certificate, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    """A line that was understood, with the place to name where another contradicts it."""

    place: str
    index: int
    label: int
    prediction: int | None
    radius: Decimal

    def says_the_same(self, other: _Line) -> bool:
        return (self.label, self.prediction, self.radius) == (other.label, other.prediction, other.radius)


def read_logs(files: Iterable[tuple[str, bytes]]) -> Log:
    """One result from the files, (name, content), that are its parts, in any order.

    Raises:
        LogError: a file is no such log, or contradicts itself or another; names file and line.
    """
    found: dict[int, tuple[_Line, int]] = {}
    sources, notes = [], []
    repeated = 0
    for name, content in sorted(files):
        source = Source(name, hashlib.sha256(content).hexdigest())
        if source in sources:
            raise LogError(f"{name} is given twice")
        sources.append(source)
        lines, cut = _lines(name, content)
        if cut:
            notes.append(f"{name}: its last line breaks off and was left out")
        for line, place in zip(lines, _last_places([line.radius for line in lines]), strict=True):
            known, _ = found.setdefault(line.index, (line, place))
            if known is line:
                continue
            if not known.says_the_same(line):
                raise LogError(
                    f"index {line.index} is there twice with different content, {known.place} and {line.place}: "
                    "FILEs are parts of one result; import each result by itself"
                )
            repeated += 1
    if repeated:
        notes.append(f"{repeated} line{'' if repeated == 1 else 's'} repeated another one word for word")
    ordered = sorted(found.values(), key=lambda entry: entry[0].index)
    certificates = tuple(
        Certificate(line.index, line.label, line.prediction, float(line.radius), _least(line.radius, place))
        for line, place in ordered
    )
    return Log(tuple(sources), certificates, tuple(notes))


def _lines(name: str, content: bytes) -> tuple[list[_Line], bool]:
    """What the file's lines say, and whether its last one broke off."""
    try:
        rows = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise LogError(f"{name}: {_NO_LOG}; it is not text (byte {error.start})") from None
    # Behind the last line's end is nothing, or what a killed script could still write of a line.
    *whole, rest = [row.removesuffix("\r") for row in rows]
    found, columns = [], 0
    for number, row in _numbered(whole):
        place, values = f"{name} line {number}", row.split("\t")
        if tuple(values[: len(COLUMNS)]) == COLUMNS:
            columns = len(values)  # again where runs were appended to each other
        elif not columns:
            raise LogError(f"{place}: {_NO_LOG}")
        elif len(values) != columns:
            raise LogError(f"{place}: expected {columns} values separated by tabs, as in the header, got {len(values)}")
        else:
            found.append(_line(place, values))
    cut = bool(rest)
    if columns and _reaches_its_end(rest):
        found.append(_line(f"{name} line {len(rows)}", rest.split("\t")))
        cut = False
    if not columns:
        raise LogError(f"{name}: {_NO_LOG}{'' if content.strip() else '; it is empty'}")
    if not found:
        raise LogError(f"{name}: it has a header and no image: nothing was certified")
    return found, cut


_NO_LOG = f"expected a header that begins with {', '.join(COLUMNS)}, separated by tabs"


def _numbered(rows: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, row) for number, row in enumerate(rows, 1) if row.strip())


def _reaches_its_end(row: str) -> bool:
    """Whether a line without an end has all that is read of it: no number can be cut short before a tab."""
    values = row.split("\t")
    return len(values) >= len(COLUMNS) and values[len(COLUMNS) - 1] in _CORRECT


def _line(place: str, values: list[str]) -> _Line:
    """What a line says. Raises LogError naming the place."""
    index, label, predict, radius, correct = values[: len(COLUMNS)]
    for column, value in (("idx", index), ("label", label)):
        if not _WHOLE.fullmatch(value):
            raise LogError(f"{place}: {column} must be a whole number from 0, got {value!r}")
    if predict != "-1" and not _WHOLE.fullmatch(predict):
        raise LogError(f"{place}: predict must be a class from 0, or -1 where the image abstains, got {predict!r}")
    if not _RADIUS.fullmatch(radius):
        raise LogError(f"{place}: radius must be a finite number that is not negative, got {radius!r}")
    if correct not in _CORRECT:
        raise LogError(f"{place}: correct must be 0 or 1, got {correct!r}")
    found = _Line(place, int(index), int(label), None if predict == "-1" else int(predict), Decimal(radius))
    if _CORRECT[correct] != (found.prediction == found.label):
        raise LogError(f"{place}: correct is {correct}, but label is {label} and predict {predict}")
    if found.prediction is None and found.radius:
        raise LogError(f"{place}: the image abstains (predict -1), but radius is {radius}")
    return found


def _last_places(radii: Sequence[Decimal]) -> list[int]:
    """Of each radius of a file, the power of ten that it was rounded at."""
    decimals = {int(radius.as_tuple().exponent) for radius in radii}
    # Significant digits come without trailing zeros, and no radius as "0.0": of these, not all have as many decimals.
    if len(decimals) == 1 and decimals != {-1}:
        return [*decimals] * len(radii)
    digits = max([_DIGITS, *(len(radius.as_tuple().digits) for radius in radii)])
    return [radius.adjusted() - digits + 1 for radius in radii]


def _least(radius: Decimal, place: int) -> float:
    """The least radius that is printed so, if it is rounded to nearest at that power of ten."""
    least = float(radius - Decimal(5).scaleb(place - 1))
    return max(0.0, math.nextafter(least, 0.0))
