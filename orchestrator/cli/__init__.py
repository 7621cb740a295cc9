"""`stn`: the command line. Each command is a thin shell over one function."""

from __future__ import annotations

import os
import sys

import click

from orchestrator import logs
from orchestrator.cli.attack import attack
from orchestrator.cli.compare import compare
from orchestrator.cli.comparisons import paper, sweep
from orchestrator.cli.completion import completion
from orchestrator.cli.init import init
from orchestrator.cli.job import certify, plan, train
from orchestrator.cli.paper_attacks import figure3, figure4
from orchestrator.cli.results import import_cohen, reduce, report, status
from orchestrator.cli.schema import schema
from orchestrator.cli.shell import Commands
from orchestrator.cli.submit import submit
from orchestrator.cli.upkeep import doctor, gc, verify

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stn")
@click.option("-v", "--verbose", is_flag=True, help="Log every event to standard error.")
@click.option(
    "--log-format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar=logs.FORMAT,
    help="json: all on standard error as one JSON object a line.  [default: text, or $STN_LOG_FORMAT]",
)
def main(verbose: bool, form: logs.Format) -> None:
    """Certify a network's robustness from its votes under noise.

    \b
    From nothing to a curve, and on:
      stn init my.yaml                a commented spec to begin with
      stn train my.yaml               where its network has no weights yet
      stn certify my.yaml             votes, and certificates from them
      stn report runs/my              table, figure, and a page to look at
      stn compare runs/my runs/other  on the same images, with intervals

    \b
    Example: stn certify examples/demo.yaml

    \b
    Exit codes:
      0    complete
      2    bad usage or spec
      3    finished incomplete: the same command goes on with what is missing
      4    verify found something wrong, or an attack a contradiction
      130  interrupted: the same command goes on
    """
    # The user's own modules (model.name: package.module:callable) are looked for where the command is run.
    sys.path.append(os.getcwd())
    logs.configure(form, verbose=verbose)


_COMMANDS = (
    *(init, train, plan, certify, attack, submit, sweep, paper, status, reduce, report, compare, import_cohen),
    *(schema, gc, doctor, verify, completion),
)
for _command in _COMMANDS:
    main.add_command(_command)
for _command in (figure3, figure4):
    paper.add_command(_command)
