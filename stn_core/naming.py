"""Words for people: the nearest valid name, and an error on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def pick(register: Mapping[str, T], name: str, what: str) -> T:
    """The entry called ``name``. Raises ValueError naming ``what``, the nearest name and all valid ones."""
    if name in register:
        return register[name]
    raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, register)}; valid: {', '.join(register)}")


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """', did you mean X?' for the nearest valid name, or '' where none is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """What a foreign exception says, on one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(values: Iterable[object], most: int = 10) -> str:
    """'1, 5, 7'; of many the first ones, and how many more."""
    every = list(values)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(str(value) for value in every[:most]) + more
