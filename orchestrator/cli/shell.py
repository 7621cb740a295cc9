"""What all commands share: exit codes, options, and one line instead of a traceback."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator import logs
from orchestrator.cli.completion import complete_specs
from orchestrator.errors import SpecError, StnError, TrainingError, WorkersError
from workers.store import StoreError

if TYPE_CHECKING:
    from orchestrator.spec import Spec

EXIT_BUG, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_DAMAGED, EXIT_INTERRUPTED = 1, 2, 3, 4, 130
#: Nobody reads standard output any more, such as after `| head`: as of a process that SIGPIPE ended.
EXIT_UNREAD = 141


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Expected errors become one line and an exit code; nothing becomes a traceback unless asked for."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = function(**arguments) or 0
            sys.stdout.flush()
        except (WorkersError, TrainingError) as error:
            say(f"error: {error}")
            code = EXIT_INCOMPLETE
        except (StnError, StoreError) as error:
            say(f"error: {error}")
            code = EXIT_USAGE
        except KeyboardInterrupt:
            say("interrupted; what was committed is kept, and the same command continues from there")
            code = EXIT_INTERRUPTED
        except click.ClickException:
            raise
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _unread():
                sys.exit(EXIT_UNREAD)
            if os.environ.get("STN_TRACEBACK"):
                raise
            say(f"internal error: {type(error).__name__}: {error} (STN_TRACEBACK=1 shows where)")
            code = EXIT_BUG
        sys.exit(code)

    return run


class Commands(click.Group):
    """Commands, listed in the order of their use, that tell a wrong command line as everything else is told: in one
    line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with _told():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _told():
            return super().invoke(ctx)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        say(f"error: {error.format_message().rstrip('.')}{where}")
        sys.exit(EXIT_USAGE)


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads; what is left for it is then dropped, so that it is not
    tried, and told of, once more when Python ends."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """A line on standard error."""
    if logs.as_json():
        logs.record(text)
    else:
        click.echo(text, err=True)


spec_argument = click.argument("spec", type=click.Path(path_type=Path), shell_complete=complete_specs)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of the spec; repeatable."
)
run_option = click.option(
    "--run",
    metavar="URI",
    help="Where the run is kept, a folder or s3://bucket/prefix, instead of the spec's store.run.",
)
limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N images, as a run of its own: '-limit-N' is added to the spec's store.run.",
)


def _use_cluster(_: click.Context, parameter: click.Parameter, value: str | None) -> None:
    # Through the environment, since Ray decides about authentication when it is imported.
    if value is not None:
        os.environ["RAY_ADDRESS"] = value


address_option = click.option(
    "--address",
    metavar="ADDRESS",
    expose_value=False,
    callback=_use_cluster,
    help="Ray cluster. Default: $RAY_ADDRESS, or one embedded in this process.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every command takes that certifies: which job, where it is kept, and on what cluster."""
    for option in (json_option, address_option, limit_option, set_option, run_option, spec_argument):
        function = option(function)
    return function


def load(spec: Path, overrides: Sequence[str], run: str | None = None, limit: int | None = None) -> Spec:
    """A command's spec, its options applied. Raises SpecError."""
    from orchestrator.spec import load_spec  # slow to import, and help does without

    if run is not None and not run:
        raise SpecError("--run is empty: name the folder where the run is kept")
    return load_spec(spec, overrides, run=run, limit=limit)
