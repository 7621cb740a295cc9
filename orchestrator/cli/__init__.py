"""`stn`: the command line. Each command is a thin shell over one function."""

from __future__ import annotations

import logging
import os
import sys

import click

from orchestrator.cli.comparisons import paper, sweep
from orchestrator.cli.job import certify, plan, train
from orchestrator.cli.results import reduce, report, status
from orchestrator.cli.shell import Commands
from orchestrator.cli.submit import submit
from orchestrator.cli.upkeep import doctor, gc, verify

__all__ = ["main"]

#: Loggers that write whole requests at DEBUG, with the headers that sign them and session tokens.
_INDISCREET = ("boto3", "botocore", "s3transfer", "urllib3")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stn")
@click.option("-v", "--verbose", is_flag=True, help="Log every event to standard error.")
def main(verbose: bool) -> None:
    """Certify a network's robustness from its votes under noise: train, count, reduce, report.

    Exit codes: 0 complete; 2 bad usage or spec; 3 finished incomplete; 4 verify found something wrong;
    130 interrupted. After 3 and 130 the same command goes on with what is missing.
    """
    # The user's own modules (model.name: package.module:callable) are looked for where the command is run.
    sys.path.append(os.getcwd())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    for name in _INDISCREET if verbose else ():
        logging.getLogger(name).setLevel(logging.INFO)


for _command in (train, plan, certify, submit, sweep, paper, status, reduce, report, gc, doctor, verify):
    main.add_command(_command)
