"""The attack soak's command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.soak.attacks.soak import Settings, soak
from tests.soak.attacks.subjects import digits, planes, smooth_adversarial


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.attacks", description=sys.modules["tests.soak.attacks"].__doc__
    )
    parser.add_argument("--tries", type=int, default=100_000, help="perturbed images inside the radii")
    parser.add_argument("--seed", type=int, default=0, help="of images, training, noise and attacks")
    parser.add_argument("--out", type=Path, default=Path("build/attack-soak"), help="folder for what was found")
    given = parser.parse_args()
    if given.tries < 1:
        parser.error(f"--tries must be at least 1, got {given.tries}")
    torch.set_num_threads(1)  # the networks are small: more threads would only wait for each other
    subjects = [planes(100, given.seed), digits(given.seed), smooth_adversarial(100)]
    return soak(subjects, Settings(tries=given.tries, seed=given.seed, out=given.out))


sys.exit(main())
