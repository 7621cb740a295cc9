"""Where a worker finds the user's own modules."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def importable(paths: Iterable[str]) -> None:
    """Have modules in these folders found by this process, after all others."""
    sys.path.extend(path for path in paths if path not in sys.path)
