"""What goes wrong, and when: seeded choices, and the tally of what was chosen."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from tests.fault_proxy import Fault, Request

#: What a kill -9 hits: a counting actor, the driver, a raylet that actors live on, or the head's machine: Ray's control
#: process and raylet there, and the driver with them.
Kill = Literal["actor", "driver", "raylet", "head"]
KILLS: tuple[Kill, ...] = get_args(Kill)

_SHARES: Mapping[Kill, float] = {"actor": 0.4, "driver": 0.3, "raylet": 0.25, "head": 0.05}

#: What a call to object storage meets with.
FAULTS: tuple[Fault, ...] = ("503", "timeout", "late timeout", "reset", "late reset", "lost answer", "truncated")

#: Seconds a call is held open: most are dropped before the client loses its patience, a few outlast it.
_HOLD_S = (0.2, 2.0)
_OUTLASTING_S = 65.0


def kills_in_order(count: int, seed: int) -> list[Kill]:
    """``count`` kills in random order: of each kind its share, and at least one."""
    kills = [kind for kind in KILLS for _ in range(max(1, int(count * _SHARES[kind])))]
    rest: list[Kill] = ["actor"] * (count - len(kills))
    kills = [*kills, *rest][:count]
    random.Random(seed).shuffle(kills)
    return kills


class Faults:
    """Chooses the calls that fail, and how: kinds take turns.

    Args:
        share: of all calls.
        outlasting: share of the held calls that outlast the client's read timeout.
        seed: of the choice.
        tell: told of every call that fails.
    """

    def __init__(self, share: float, outlasting: float, seed: int, tell: Callable[[str], None]) -> None:
        self._share, self._outlasting, self._tell = share, outlasting, tell
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.calls = 0
        self.outlasted = 0
        self.injected: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))

    def decide(self, request: Request) -> Fault | None:
        """The fault for a call, if any: one that its kind of answer can have, of those the one seen least."""
        with self._lock:
            self.calls += 1
            if self._random.random() >= self._share:
                return None
            # Only what is read has a body to cut short.
            possible = [fault for fault in FAULTS if fault != "truncated" or request.method == "GET"]
            least = min(self.injected[fault] for fault in possible)
            chosen = self._random.choice([fault for fault in possible if self.injected[fault] == least])
            self.injected[chosen] += 1
            self._tell(f"{chosen:12}  {request.method:6}  {request.path}")
            return chosen

    def hold_s(self) -> float:
        """How long to hold the next call that is to time out, seconds."""
        with self._lock:
            if self._random.random() < self._outlasting:
                self.outlasted += 1
                return _OUTLASTING_S
            return self._random.uniform(*_HOLD_S)

    def __str__(self) -> str:
        with self._lock:
            total = self.injected.total()
            kinds = ", ".join(f"{number} {kind}" for kind, number in self.injected.items())
            return (
                f"{self.calls} calls, {total} failed ({total / max(1, self.calls):.1%}): {kinds}; "
                f"{self.outlasted} held for {_OUTLASTING_S:.0f} s"
            )


def unexpected(code: int, said: str, killed: bool) -> str | None:
    """What is wrong with how a driver ended, or None: it may be done, killed by us, or beaten by deaths or storage."""
    for word in ("Traceback", "internal error"):
        if word in said:
            return f"says {word!r}"
    last = said.strip().rpartition("\n")[2]
    beaten_by_storage = code == 2 and last.startswith("error: cannot ") and "s3://" in last
    expected = code in (0, 3) or beaten_by_storage or (killed and code == -signal.SIGKILL)
    return None if expected else f"exit code {code}: {last}"


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """What a run's objects have other than those of the undisturbed run, each in a line."""
    return [
        *(f"{key} is missing" for key in sorted(expected.keys() - found.keys())),
        *(f"{key} should not be there" for key in sorted(found.keys() - expected.keys())),
        *(f"{key} differs" for key in sorted(found.keys() & expected.keys()) if found[key] != expected[key]),
    ]
