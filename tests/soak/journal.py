"""Logs of a soak, on one clock."""

from __future__ import annotations

import time
from pathlib import Path

_START = time.monotonic()


def elapsed_s() -> float:
    """Seconds since the soak began."""
    return time.monotonic() - _START


class Journal:
    """Lines with their time, in a file.

    Args:
        file: is written anew.
        shown: on standard output too.
    """

    def __init__(self, file: Path, shown: bool = False) -> None:
        self._file = file.open("w")
        self._shown = shown

    def tell(self, text: str) -> None:
        """A line, with its time."""
        self.write(f"{elapsed_s():8.1f} s  {text}")

    def write(self, text: str) -> None:
        """Text as it is."""
        print(text, file=self._file, flush=True)
        if self._shown:
            print(text, flush=True)

    def close(self) -> None:
        self._file.close()
