"""The command that attacks what was certified."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.printing import print_attacks
from orchestrator.cli.shell import EXIT_DAMAGED, EXIT_INCOMPLETE, command, job_options, load, say


@click.command()
@job_options
@click.option("--retry-failed", is_flag=True, help="Attack those shards again that hold images which failed.")
@command
def attack(
    spec: Path, run: str | None, overrides: tuple[str, ...], limit: int | None, retry_failed: bool, as_json: bool
) -> int:
    """Attack the spec's classifier on the run's images, and hold the outcome against its certificates.

    Run it again to resume, or with further attacks in the spec. Exits with 4 where an attack succeeds within a
    certified radius.

    \b
    Example: stn attack examples/attack.yaml
    """
    from orchestrator import api

    result = api.attack(load(spec, overrides, run, limit), retry_failed=retry_failed)
    found, check = result.sandwiches, result.masking
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": result.run,
                    "complete": result.complete,
                    "shards_attacked": result.done,
                    "shards_given_up": result.given_up,
                    "curves": result.curves.to_pylist(),
                    "sandwich": None if found is None else [_values(one) for one in found],
                    "masking": [dataclasses.asdict(one) for one in check],
                }
            )
        )
    else:
        print_attacks(result.attacked, found, check)
        if result.done == 0 and result.complete:
            click.echo(f"already complete, nothing to do: {result.run}")
        else:
            click.echo(f"run: {result.run}")
    for what, reason in result.given_up.items():
        say(f"{what} was given up: {reason}")
    if not result.holds:
        say("error: attacks contradict the certificates: one of the two has a bug, unless chance allows for it as said")
        return EXIT_DAMAGED
    if not result.complete:
        say(
            "incomplete: the same command goes on with what is missing, and by --retry-failed with images that failed; "
            "both count as not robust"
        )
        return EXIT_INCOMPLETE
    return 0


def _values(found: Any) -> dict[str, Any]:
    """Of a sandwich, in JSON's own types."""
    return {
        "certificate": found.line.certificate,
        "protocol": found.line.protocol,
        "holds": found.holds,
        "images": found.images,
        "tries": found.tries,
        "undecided": found.undecided,
        "unsure": found.unsure,
        "mute": found.mute,
        "needed": found.needed,
        "allowed": found.allowed,
        "beta": found.beta,
        "contradictions": [dataclasses.asdict(one) for one in found.contradictions],
        "crossings": [dataclasses.asdict(one) for one in found.crossings],
    }
