"""Commands that look after runs and machines: gc, doctor, verify."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.completion import complete_runs, complete_specs
from orchestrator.cli.shell import (
    EXIT_DAMAGED,
    EXIT_INCOMPLETE,
    EXIT_USAGE,
    address_option,
    command,
    json_option,
    load,
    run_option,
    say,
    set_option,
)
from orchestrator.errors import SpecError
from orchestrator.progress import time_text
from workers.store import open_store

if TYPE_CHECKING:
    from orchestrator.upkeep.doctor import Finding
    from orchestrator.upkeep.recount import Recount
    from orchestrator.upkeep.verify import Verification


def _a_number(_: click.Context, parameter: click.Parameter, value: float) -> float:
    # Nothing is less than it, so nothing would be too young.
    if math.isnan(value):
        raise click.BadParameter("nan is not in the range x>=0.")
    return value


@click.command()
@click.argument("run", shell_complete=complete_runs)
@click.option("--yes", is_flag=True, help="Delete, instead of only showing.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    callback=_a_number,
    default=60.0,
    show_default=True,
    metavar="MINUTES",
    help="Leave what is half written alone for that long: somebody may be at work on it.",
)
@json_option
@command
def gc(run: str, yes: bool, older_than: float, as_json: bool) -> None:
    """Show what a run can do without, such as objects half written by a driver that was killed. Never a vote.

    \b
    Example: stn gc runs/demo --yes
    """
    from orchestrator.upkeep.cleanup import delete_leftovers, find_leftovers

    store = open_store(run)
    found = find_leftovers(store, older_than * 60)
    garbage = [leftover for leftover in found if leftover.verdict == "delete"]
    if yes:
        delete_leftovers(store, garbage)
    if as_json:
        shown = [{name: getattr(leftover, name) for name in _COLUMNS} for leftover in found]
        click.echo(json.dumps({"run": store.uri, "leftovers": shown, "deleted": len(garbage) if yes else 0}))
        return
    width = max((len(leftover.key) for leftover in found), default=0)
    for leftover in found:
        state = "deleted" if yes and leftover.verdict == "delete" else _STATES[leftover.verdict]
        age = time_text(leftover.age_s)
        click.echo(f"{leftover.key:{width}}  {leftover.bytes:>12} B  {age:>10}  {leftover.reason}: {state}")
    objects = f"{len(garbage)} object{'' if len(garbage) == 1 else 's'}, {sum(one.bytes for one in garbage)} bytes"
    if not garbage:
        click.echo(f"nothing to delete in {store.uri}")
    else:
        click.echo(f"deleted {objects}" if yes else f"{objects}; delete them with --yes")


_COLUMNS = ("key", "bytes", "age_s", "reason", "verdict")
_STATES = {"delete": "to be deleted", "too young": "too young, left alone", "not ours": "not ours, left alone"}


@click.command()
@click.argument("spec", type=click.Path(path_type=Path), required=False, shell_complete=complete_specs)
@run_option
@set_option
@address_option
@json_option
@command
def doctor(spec: Path | None, run: str | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Look at this machine, the cluster's nodes and all that a spec names: each line is ok, or says what to do.

    Exit codes: 0 all is well; 2 something must be fixed.

    \b
    Example: stn doctor examples/demo.yaml
    """
    if spec is None and (run is not None or overrides):
        raise click.UsageError("--run and --set go with a SPEC")
    found = []
    for finding in _examine(spec, overrides, run):
        found.append(finding)
        if not as_json:
            click.echo(str(finding))
    well = all(finding.ok for finding in found)
    if as_json:
        lines = [{"ok": finding.ok, **dataclasses.asdict(finding)} for finding in found]
        click.echo(json.dumps({"ok": well, "findings": lines}))
    return 0 if well else EXIT_USAGE


def _examine(spec: Path | None, overrides: tuple[str, ...], run: str | None) -> Iterator[Finding]:
    from orchestrator.upkeep.doctor import Finding, examine_job, examine_machines, this_machine

    here = this_machine()
    yield from examine_machines(here)
    if spec is None:
        return
    try:
        job = load(spec, overrides, run)
    except SpecError as error:
        yield Finding("spec", str(error))
        return
    yield Finding(f"spec: {spec} is valid")
    yield from examine_job(job, here)


@click.command()
@click.argument("run", shell_complete=complete_runs)
@click.option(
    "--recount",
    "images",
    type=click.IntRange(min=1),
    metavar="K",
    help="Also count K random images again, by the stored spec, and compare their votes.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Chooses the images. Default: another one each time, printed.")
@json_option
@command
def verify(run: str, images: int | None, seed: int | None, as_json: bool) -> int:
    """Check all that a run's store holds: checksums, gaps, doubles, sums; and derive its certificates anew from votes.

    Exit codes: 0 all is right and the run complete; 3 what is there is right; 4 something is wrong.

    \b
    Example: stn verify runs/demo --recount 10
    """
    from orchestrator import api

    if images is None and seed is not None:
        raise click.UsageError("--seed goes with --recount")
    verified = api.verify(run, recount=images, seed=seed)
    found, again, findings = verified.stored, verified.recounted, verified.findings
    if as_json:
        values = {**dataclasses.asdict(found), "recount": None if again is None else dataclasses.asdict(again)}
        click.echo(json.dumps({"right": verified.right, "complete": verified.complete, **values}))
    else:
        right = "incomplete, and right so far" if found.lacking else "all is right"
        click.echo(f"{found.run}: {'something is wrong' if findings else right}")
        for kind, (title, good) in _checks(found, again).items():
            wrong = [finding for finding in findings if finding.kind == kind]
            click.echo(f"{title:13}{f'{len(wrong)} wrong' if wrong else f'ok: {good}'}")
            for finding in wrong[:_SHOWN]:
                click.echo(f"  {finding.where}: {finding.text}" if finding.where else f"  {finding.text}")
            if len(wrong) > _SHOWN:
                click.echo("  and more: --json lists them")
    for sentence in found.lacking:
        say(f"incomplete: {sentence}")
    return EXIT_DAMAGED if findings else EXIT_INCOMPLETE if found.lacking else 0


#: Findings of a kind that are printed one by one.
_SHOWN = 20


def _checks(found: Verification, again: Recount | None) -> dict[str, tuple[str, str]]:
    """For each kind of finding, what was checked, and what can be said where nothing was found."""
    older = f", {found.without_checksum} of them from before there were checksums" if found.without_checksum else ""
    checks = {"damaged": ("objects", f"{found.objects} objects are what was written{older}")}
    if not found.shards:  # the plan is damaged, and nothing else can be checked
        return checks
    checks |= {
        "foreign": ("belonging", "nothing of another run or shard"),
        "gap": ("gaps", f"{found.images_counted} of {found.images} images have votes"),
        "double": ("doubles", "no image and no key twice"),
        "sum": ("sums", "votes and invalid draws add up to the planned draws"),
        "certificate": ("certificates", "none to derive anew"),
        "curve": ("curves", "none to compare"),
    }
    if found.certificates:
        unread = f"; {found.certificates_skipped} could not be, for their votes" if found.certificates_skipped else ""
        checks["certificate"] = ("certificates", f"{found.certificates} derived anew from the votes{unread}")
        checks["curve"] = ("curves", "what the certificates give")
    if found.attempts or any(finding.kind == "attempt" for finding in found.findings):
        checks["attempt"] = ("attempts", f"{found.attempts} objects, within their sizes, and what their tables say")
    if again is not None:
        checks["recount"] = ("recount", f"{len(again.images)} images came out the same, chosen by seed {again.seed}")
    return checks
