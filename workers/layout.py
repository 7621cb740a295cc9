"""Where everything of a run lies. The only module that builds object keys.

RUN/plan.json                               what the run is
RUN/counts/round=0/shard-000042.parquet     votes, one object per shard: its own commit
RUN/failed/shard-000042.json                why a shard was given up in the last attempt
RUN/certificates.parquet, curves.parquet    views of a complete run's votes
RUN/partial/...                             the same views while the run is incomplete
RUN/report.html, curves.png                 for people
"""

from __future__ import annotations

import re

PLAN = "plan.json"
COUNTS = "counts/"
FAILED = "failed/"
PARTIAL = "partial/"
CERTIFICATES = "certificates.parquet"
CURVES = "curves.parquet"
REPORT = "report.html"
FIGURE = "curves.png"

_SHARD = re.compile(r"counts/round=0/shard-(\d{6,})\.parquet")


def counts(shard: int) -> str:
    """Key of a shard's votes."""
    return f"{COUNTS}round=0/shard-{shard:06d}.parquet"


def shard_of(key: str) -> int | None:
    """The shard whose votes lie under ``key``; None for any other key."""
    match = _SHARD.fullmatch(key)
    # One key per shard: 0000042 is not another name of 000042.
    return int(match[1]) if match and counts(int(match[1])) == key else None


def failed(shard: int) -> str:
    """Key of the record of a shard given up."""
    return f"{FAILED}shard-{shard:06d}.json"
