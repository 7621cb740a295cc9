"""The command that hands a job to a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shell import (
    EXIT_INTERRUPTED,
    command,
    limit_option,
    load,
    run_option,
    say,
    set_option,
    spec_argument,
)
from orchestrator.errors import SpecError

if TYPE_CHECKING:
    from orchestrator.on_ray.jobs import Command

#: What a shell exits with where there is no such command.
_NOT_FOUND = 127

#: What a shell adds to the number of the signal that ended a command.
_SIGNALLED = 128


@click.command()
@spec_argument
@run_option
@set_option
@limit_option
@click.option("--single-writer", is_flag=True, help="As of `stn certify`.")
@click.option("--retry-failed", is_flag=True, help="As of `stn certify`.")
@click.option(
    "--command",
    "task",
    type=click.Choice(["certify", "train", "attack"]),
    default="certify",
    show_default=True,
    help="What the cluster's head is to run.",
)
@click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    help="Dashboard of the cluster's head, http://HEAD:8265. Default: $RAY_API_SERVER_ADDRESS.",
)
@click.option("--follow", is_flag=True, help="Show what the job prints, and exit as it does.")
@click.option("--any-versions", is_flag=True, help="Run with whatever versions of libraries the cluster has.")
@command
def submit(
    spec: Path,
    run: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    single_writer: bool,
    retry_failed: bool,
    task: Command,
    address: str | None,
    follow: bool,
    any_versions: bool,
) -> int:
    """Let a Ray cluster's head certify, and return the job's id; submit again to follow or to resume.

    \b
    Example: stn submit examples/imagenet_cluster.yaml --address http://HEAD:8265 --follow
    """
    from orchestrator.on_ray.jobs import Jobs, job_of, to_be_shared

    if not address:
        raise SpecError("--address is missing: name the head's dashboard, http://HEAD:8265")
    flags = {"--single-writer": single_writer, "--retry-failed": retry_failed}
    options = [option for option, given in flags.items() if given]
    others = [option for option, value in {"--run": run, "--limit": limit}.items() if value is not None]
    if task == "train" and others + options:
        raise SpecError(f"`stn train` has no {(others + options)[0]}: leave it out, or --command train")
    if task == "attack" and single_writer:
        raise SpecError("`stn attack` has no --single-writer: use --set store.single_writer=true")
    loaded = load(spec, overrides, run, limit)
    job = job_of(loaded, task, spec, options)
    jobs = Jobs(address)
    submitted = jobs.submit(job, pin=not any_versions)
    if submitted.already:
        say(f"at work on {job.makes} already, so nothing is submitted; {_stop(submitted.job, address)}")
    elif shared := to_be_shared(loaded, task):
        say(f"all nodes of the cluster must share {', '.join(shared)}")
    if not follow:
        click.echo(submitted.job)
        return 0
    say(f"job {submitted.job}")
    try:
        code = jobs.follow(submitted.job, _write, say)
    except KeyboardInterrupt:
        say(f"no longer followed; the job goes on, the same command follows it again; {_stop(submitted.job, address)}")
        return EXIT_INTERRUPTED
    if code is None:
        say(f"job {submitted.job} was stopped; what was committed is kept, and the same command resumes")
        return EXIT_INTERRUPTED
    if code > _SIGNALLED:
        say(f"the driver was killed (signal {code - _SIGNALLED}); what was committed is kept, the same command resumes")
    if code == _NOT_FOUND:
        say("the head does not know the command `stn`: install it there, and start Ray with it on the PATH")
    return code


def _stop(job: str, address: str) -> str:
    return f"to stop it: ray job stop {job} --address {address}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
