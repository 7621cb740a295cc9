"""Where everything of a run lies. The only module that builds object keys.

RUN/plan.json                               what the run is
RUN/index.parquet                           which image is what and where, of a data set of encoded images
RUN/goal.json                               what the votes are to decide, where that has changed since plan.json
RUN/counts/round=0/shard-000042.parquet     votes, one object per shard: its own commit
RUN/counts/round=1/shard-000042.parquet     further votes of those of its images that needed more
RUN/counts/round=0/shard-000042.retry-000001.parquet   votes of images of that shard that had failed before
RUN/failed/shard-000042.json                why a shard was given up in the last attempt
RUN/certificates.parquet, curves.parquet    views of a complete run's votes
RUN/partial/...                             the same views while the run is incomplete
RUN/training.parquet                        the epochs of the network's training, where `stn train` trained it
RUN/report.html, curves.png                 for people; also beside a sweep's runs, as figure1.png and table1.csv
RUN/figure3.png, figure3.csv                beside the attacked runs of a figure, and likewise of figure4
RUN/compare.png, compare.csv                of several runs, in a folder of nobody's run
RUN/linear_program.parquet                  margins of a linear program's networks, beside a table1.csv
RUN/drivers/HOST-PID-….json                 drivers at work, each refreshing its own
RUN/imported.parquet                        certificates from elsewhere: no run of ours, and beside no plan
RUN/attacks/NAME/attack.json                what an attack on the run's classifier is
RUN/attacks/NAME/shard-000042.parquet       attempts on a shard's images, one object: its own commit
RUN/attempts.parquet, robustness.parquet    views of all attacks' attempts, where all are complete
RUN/.probe/...                              objects of no meaning, written to see what a store can do

What a user's own network and images are packed into, in a folder that is no run's:

FOLDER/network.pt2                          the network, a program of torch.export
FOLDER/images/part-000000.parquet           the images, losslessly encoded, and their labels
FOLDER/spec.yaml                            a spec that names both; written last
FOLDER/run/...                              the run, where the spec names no other place
"""

from __future__ import annotations

import re
import uuid

PLAN = "plan.json"
GOAL = "goal.json"
INDEX = "index.parquet"
COUNTS = "counts/"
FAILED = "failed/"
DRIVERS = "drivers/"
PROBES = ".probe/"
PARTIAL = "partial/"
CERTIFICATES = "certificates.parquet"
CURVES = "curves.parquet"
TRAINING = "training.parquet"
IMPORTED = "imported.parquet"
ATTACKS = "attacks/"
ATTEMPTS = "attempts.parquet"
ROBUSTNESS = "robustness.parquet"
REPORT = "report.html"
FIGURE = "curves.png"
FIGURE_1 = "figure1.png"
TABLE_1 = "table1.csv"
FIGURE_3, FIGURE_3_TABLE = "figure3.png", "figure3.csv"
FIGURE_4, FIGURE_4_TABLE = "figure4.png", "figure4.csv"
LINEAR_PROGRAM = "linear_program.parquet"
COMPARISON = "compare.png"
COMPARISON_TABLE = "compare.csv"

NETWORK = "network.pt2"
IMAGES = "images/"
SPEC = "spec.yaml"

_SHARD = re.compile(r"counts/round=0/shard-(\d{6,})\.parquet")
_ROUND = re.compile(r"counts/round=(\d+)/shard-(\d{6,})\.parquet")
_RETRY = re.compile(r"counts/round=0/shard-(\d{6,})\.retry-(\d{6,})\.parquet")
_FAILED = re.compile(r"failed/shard-(\d{6,})\.json")
_DRIVER = re.compile(r"drivers/[^/]+\.json")
_ATTACK = re.compile(r"attacks/([a-z0-9][a-z0-9_-]*)/attack\.json")
_ATTEMPTS = re.compile(r"attacks/([a-z0-9][a-z0-9_-]*)/shard-(\d{6,})\.parquet")
_PROBE = re.compile(r"\.probe/[0-9a-f]{32}")


def counts(shard: int, round: int = 0) -> str:
    """Key of a shard's votes of one round of draws."""
    return f"{COUNTS}round={round}/shard-{shard:06d}.parquet"


def shard_of(key: str) -> int | None:
    """The shard whose first votes lie under ``key``; None for any other key."""
    match = _SHARD.fullmatch(key)
    # One key per shard: 0000042 is not another name of 000042.
    return int(match[1]) if match and counts(int(match[1])) == key else None


def later_round(key: str) -> tuple[int, int] | None:
    """The shard and round, from 1, whose votes lie under ``key``; None for any other key."""
    match = _ROUND.fullmatch(key)
    if match is None or int(match[1]) == 0 or counts(int(match[2]), int(match[1])) != key:
        return None
    return int(match[2]), int(match[1])


def retries(shard: int) -> str:
    """What the keys of all retries of a shard begin with."""
    return f"{COUNTS}round=0/shard-{shard:06d}.retry-"


def retry(shard: int, number: int) -> str:
    """Key of the votes of a shard's images that had failed, and were counted by its retry of that number, from 1."""
    return f"{retries(shard)}{number:06d}.parquet"


def retry_of(key: str) -> tuple[int, int] | None:
    """The shard and number of the retry whose votes lie under ``key``; None for any other key."""
    match = _RETRY.fullmatch(key)
    return (int(match[1]), int(match[2])) if match and retry(int(match[1]), int(match[2])) == key else None


def part(number: int) -> str:
    """Key of a part of packed images."""
    return f"{IMAGES}part-{number:06d}.parquet"


def driver(name: str) -> str:
    """Key of the record of a driver at work."""
    return f"{DRIVERS}{name}.json"


def failed(shard: int) -> str:
    """Key of the record of a shard given up."""
    return f"{FAILED}shard-{shard:06d}.json"


def failed_of(key: str) -> int | None:
    """The shard whose record lies under ``key``; None for any other key."""
    match = _FAILED.fullmatch(key)
    return int(match[1]) if match and failed(int(match[1])) == key else None


def is_driver(key: str) -> bool:
    """Whether the record of a driver lies under ``key``."""
    return _DRIVER.fullmatch(key) is not None


def attack(name: str) -> str:
    """Key of what an attack is."""
    return f"{ATTACKS}{name}/attack.json"


def attack_of(key: str) -> str | None:
    """The name of the attack that is described under ``key``; None for any other key."""
    match = _ATTACK.fullmatch(key)
    return match[1] if match else None


def attempts(name: str, shard: int) -> str:
    """Key of an attack's attempts on a shard's images."""
    return f"{ATTACKS}{name}/shard-{shard:06d}.parquet"


def attempts_of(key: str) -> tuple[str, int] | None:
    """The attack and shard whose attempts lie under ``key``; None for any other key."""
    match = _ATTEMPTS.fullmatch(key)
    return (match[1], int(match[2])) if match and attempts(match[1], int(match[2])) == key else None


def probe() -> str:
    """Key of an object of no meaning, another one at every call."""
    return f"{PROBES}{uuid.uuid4().hex}"


def is_probe(key: str) -> bool:
    """Whether an object of no meaning lies under ``key``."""
    return _PROBE.fullmatch(key) is not None


def may_hold_votes(key: str) -> bool:
    """Whether an object is the plan, what became of it, or lies among the votes, of attacked images too, whatever its
    name there: never to be deleted."""
    return key in (PLAN, GOAL) or key.startswith((COUNTS, ATTACKS))
