"""Requests to object storage that this process had to repeat. Counted here, published by whoever knows Ray."""

from __future__ import annotations

import threading

#: The metric's name and meaning, for driver and workers.
METRIC = "stn_s3_retries"
MEANING = "Requests to object storage that were repeated."

_lock = threading.Lock()
_untold = 0


def repeated() -> None:
    """A request was repeated."""
    global _untold
    with _lock:
        _untold += 1


def take() -> int:
    """Repetitions since this was last asked."""
    global _untold
    with _lock:
        taken, _untold = _untold, 0
    return taken
