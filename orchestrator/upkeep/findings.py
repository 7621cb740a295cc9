"""What is wrong with a run, as `stn verify` tells it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from orchestrator.progress import Meter

#: Kinds of wrong: objects that cannot be read or are not what was written; objects and images that are none of the
#: run's; images that a shard lacks; what is there twice; votes that do not add up; certificates that the votes do not
#: bear out; curves that the certificates do not; attempts that are not what their attack may do, or their tables not
#: what they say; votes that came out otherwise when counted again.
Kind = Literal["damaged", "foreign", "gap", "double", "sum", "certificate", "curve", "attempt", "recount"]

KINDS: tuple[Kind, ...] = get_args(Kind)

#: Findings of a kind that are told one by one.
_TOLD = 1000


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        kind: what kind of wrong.
        where: an object's key, and maybe what in it.
        text: what is wrong with it.
    """

    kind: Kind
    where: str
    text: str


class Findings:
    """What was found so far: the first thousand of each kind, and how many more."""

    def __init__(self) -> None:
        self._found: dict[Kind, list[Finding]] = {kind: [] for kind in KINDS}
        self._more = dict.fromkeys(KINDS, 0)

    def add(self, kind: Kind, where: str, text: str) -> None:
        """Something more is wrong."""
        if len(self._found[kind]) < _TOLD:
            self._found[kind].append(Finding(kind, where, text))
        else:
            self._more[kind] += 1

    def told(self) -> tuple[Finding, ...]:
        """All of it, by kind."""
        found = []
        for kind in KINDS:
            found += self._found[kind]
            if self._more[kind]:
                found.append(Finding(kind, "", f"and {self._more[kind]} more"))
        return tuple(found)


class Observe(Protocol):
    """Opens a meter for a stage of the work, as ``orchestrator.progress.meter`` does."""

    def __call__(self, description: str, total: int, unit: str) -> AbstractContextManager[Meter]:
        """A meter for ``total`` units."""


def unobserved(description: str, total: int, unit: str) -> AbstractContextManager[Meter]:
    """A meter that nobody reads."""
    return nullcontext(_Silent())


class _Silent:
    def advance(self, amount: int) -> None:
        pass

    def note(self, text: str, **fields: object) -> None:
        pass
