"""Commands that train several networks and attack them: paper figure3, paper figure4. Run again, they resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.comparisons import finish, sigma_option
from orchestrator.cli.printing import print_robust
from orchestrator.cli.shell import command, job_options, load, say
from workers import layout
from workers.store import Store


@dataclasses.dataclass(frozen=True)
class _Figure:
    """What is written of a figure.

    Attributes:
        title: of it.
        drawing, table: keys.
    """

    title: str
    drawing: str
    table: str


_FIGURE_3 = _Figure("Figure 3: robust accuracy under attack", layout.FIGURE_3, layout.FIGURE_3_TABLE)
_FIGURE_4 = _Figure("Figure 4: robust accuracy by noise", layout.FIGURE_4, layout.FIGURE_4_TABLE)


@click.command()
@job_options
@click.option(
    "--epsilon",
    type=float,
    metavar="E",
    help="L-infinity bound of the adversary that TRADES and Madry's network are trained against, in [0, 1] pixel "
    "units. Default: 0.3 for networks of MNIST, 8/255 for those of CIFAR-10.",
)
@click.option(
    "--adversary-steps",
    "steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps of that adversary, 2.5 E / N each. Default: 10.",
)
@command
def figure3(
    spec: Path,
    epsilon: float | None,
    steps: int | None,
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> int:
    """Figure 3: STN and TRADES under attack, white-box and transferred from a network trained as Madry et al. do.

    The spec's attack section says which attacks; without one, the paper's: Carlini & Wagner in L2, projected gradients
    in L-infinity. Runs are kept below the spec's, figure3.png and figure3.csv beside them.

    \b
    Example: stn paper figure3 examples/mnist.yaml --run runs/figure3
    """
    from orchestrator.paper.attacked import figure3_jobs

    loaded = load(spec, overrides, run, limit)
    return _compare(figure3_jobs(loaded, epsilon, steps), loaded.store.open(), _FIGURE_3, as_json)


@click.command()
@job_options
@sigma_option
@command
def figure4(
    spec: Path,
    sigmas: tuple[float, ...],
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> int:
    """Figure 4: STN for several sigma under white-box attacks, beside a network without noise, which is sigma = 0.

    The spec's attack section says which attacks; without one, the paper's: Carlini & Wagner in L2, projected gradients
    in L-infinity. Runs are kept below the spec's, figure4.png and figure4.csv beside them.

    \b
    Example: stn paper figure4 examples/mnist.yaml --sigma 0.5,0.7,1.0 --run runs/figure4
    """
    from orchestrator.paper.attacked import figure4_jobs

    loaded = load(spec, overrides, run, limit)
    return _compare(figure4_jobs(loaded, sigmas), loaded.store.open(), _FIGURE_4, as_json)


def _compare(contenders: Sequence[Any], target: Store, figure: _Figure, as_json: bool) -> int:
    """Train all networks, attack those that are to be, write the figure and tell of it; the command's exit code."""
    from orchestrator.attacking.masking import masking_check
    from orchestrator.paper.attacked import robust_png, robust_rows
    from orchestrator.paper.certified import rows_csv
    from orchestrator.sweeping import check_ready

    check_ready([one.point for one in contenders], target)
    shown = [one for one in contenders if one.point.spec.attack is not None]
    attacked = _train_and_attack(contenders, shown)
    rows = robust_rows(shown, attacked)
    target.replace(figure.drawing, robust_png(rows, figure.title))
    target.replace(figure.table, rows_csv(rows))
    checks = {one.label: masking_check(found) for one, found in zip(shown, attacked, strict=True)}
    if not as_json:
        print_robust(rows, checks)
    complete = all(row.complete for row in rows)
    if not complete:
        say("incomplete: run the same command again; images that are missing or failed count as not robust")
    content = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "masking": {label: [dataclasses.asdict(one) for one in check] for label, check in checks.items()},
    }
    written = [f"{target.uri}/{name}" for name in (figure.drawing, figure.table)]
    return finish(complete, written, content, as_json)


def _train_and_attack(contenders: Sequence[Any], shown: Sequence[Any]) -> list[Any]:
    """What became of the attacks on those that are shown. All are trained first: one may be what others are attacked
    by."""
    from orchestrator.attacking.attack import attack_run
    from orchestrator.training.train import train_spec

    for number, one in enumerate(contenders, 1):
        say(f"training {number} of {len(contenders)}: {one.point.name}")
        train_spec(one.point.spec)
    found = []
    for number, one in enumerate(shown, 1):
        say(f"attacking {number} of {len(shown)}: {one.point.name}")
        result = attack_run(one.point.spec)
        for what, reason in result.given_up.items():
            say(f"{what} was given up: {reason}")
        found.append(result.attacked)
    return found
