"""Shell completion: the command that prints a shell's script, and what arguments complete to.

What is completed is looked for in names alone, a folder or two deep: it must not take longer than a key press.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from glob import escape
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from workers import layout

#: The environment variable that asks for completions, as click derives it from `stn`.
_VARIABLE = "_STN_COMPLETE"

#: More are not looked for, and would not be read.
_MOST = 200

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_specs(_: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Spec files, here and a folder below; where there are none, any file."""
    patterns = ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml")
    return _items(_found(incomplete, patterns)) or [CompletionItem(incomplete, type="file")]


def complete_runs(_: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders that hold a run or an imported result, here and a folder below; where there are none, any folder."""
    kept = (layout.PLAN, layout.IMPORTED)
    patterns = [f"*{below}/{name}" for below in ("", "/*") for name in kept]
    folders = (path.rpartition("/")[0] for path in _found(incomplete, patterns))
    return _items(folders) or [CompletionItem(incomplete, type="dir")]


def complete_from(known: Sequence[str], *, separated: bool = False) -> Completer:
    """Names out of ``known``; ``separated``: of a list, by commas, the last."""

    def complete(_: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if separated else ("", "", incomplete)
        return [CompletionItem(f"{before}{comma}{word}") for word in known if word.startswith(last)]

    return complete


def _found(incomplete: str, patterns: Iterable[str]) -> list[str]:
    """Paths that begin as typed, and go on as a pattern does."""
    if "://" in incomplete or incomplete.startswith("~"):
        return []
    folder, slash, start = incomplete.rpartition("/")
    root = Path(f"{folder}{slash}" or ".")
    try:
        found = itertools.chain.from_iterable(root.glob(escape(start) + pattern) for pattern in patterns)
        names = [path.relative_to(root).as_posix() for path in itertools.islice(found, _MOST)]
    except OSError:  # nobody may look there
        return []
    return sorted(f"{folder}{slash}{name}" for name in names if start or not name.startswith("."))


def _items(values: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(value) for value in dict.fromkeys(values)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which a shell completes `stn`: its commands, options, specs, runs and certificates.

    \b
    bash, in ~/.bashrc:  eval "$(stn completion bash)"
    zsh, in ~/.zshrc:    eval "$(stn completion zsh)"
    fish, once:          stn completion fish > ~/.config/fish/completions/stn.fish

    \b
    Example: stn completion bash
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(click.get_current_context().find_root().command, {}, "stn", _VARIABLE).source())
