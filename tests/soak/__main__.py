"""The soak's command line."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.soak.soak import Settings, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=sys.modules["tests.soak"].__doc__)
    parser.add_argument(
        "--kills", type=int, default=100, help="kill -9 of drivers, actors, raylets and the head, in all"
    )
    parser.add_argument("--minutes", type=float, default=40, help="after which the soak has failed")
    parser.add_argument("--pause", type=float, default=6, metavar="S", help="mean time between two kills")
    parser.add_argument("--nodes", type=int, default=3, help="Ray nodes with an actor each, besides the head")
    parser.add_argument("--shards", type=int, default=60, help="of each run, 62 at most")
    parser.add_argument(
        "--outlasting", type=float, default=0.04, help="share of held calls that the client gives up on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all choices")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder for logs, written anew")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    return soak(
        Settings(
            kills=given.kills,
            minutes=given.minutes,
            pause_s=given.pause,
            nodes=given.nodes,
            shards=given.shards,
            outlasting=given.outlasting,
            seed=given.seed,
            out=given.out,
        )
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


sys.exit(main())
