"""`stn init`: whatever it is told, what it writes is a spec that validates; and runs."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.beginning import starter
from orchestrator.beginning.starter import Answers, Data, fetching, largest_radius, objection, starter_spec
from orchestrator.beginning.surroundings import Seen, look, split_folders
from orchestrator.cli import main, words
from orchestrator.counting.certification import Certification, certify_run
from orchestrator.spec import load_spec, load_text
from orchestrator.training.train import prepare, train_model
from stn_core import Gaussian, certify
from tests.orchestrator.inline import fit_inline, hire_inline, no_cluster
from tests.workers.samples import encoded, noise_image, write_folder
from workers.settings import Cifar10

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own, and what the command does to its process undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def init(*arguments: object, said: str = "") -> Result:
    return CliRunner().invoke(main, ["init", *(str(argument) for argument in arguments)], input=said)


def folder(root: Path, classes: int = 2, each: int = 3, size: int = 32) -> Path:
    """Images of noise as CLASS/FILE."""
    files = {
        f"class{label}/{number}.png": encoded(noise_image(10 * label + number, size))
        for label in range(classes)
        for number in range(each)
    }
    return write_folder(root, files)


# --- What it writes ------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12) | st.sampled_from(
    ["yes", "null", "1e3", "0x1f", "a b", "a: b", "a #b", "'", '"', "{x}", "- a", "!t", "&a", "~", "%", "@", "\\n", "é"]
)

NETWORKS = {
    "digits": ["mnist", "mnist_small", "my.module:make", "exported"],
    "mnist": ["mnist", "mnist_shallow", "my.module:make"],
    "cifar10": ["cifar10", "cifar_resnet110", "resnet18", "my.module:make"],
    "imagenet": ["resnet50", "cifar_resnet20", "exported", "my.module:make"],
    "folder": ["resnet18", "cifar10", "vit_b_16", "my.module:make", "exported"],
}

SIZES = st.tuples(st.integers(1, 500), st.integers(1, 500))


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    """Answers to which nothing is to be objected."""
    data = draw(st.sampled_from(words.DATA))
    place = st.sampled_from(["s3://bucket/a b", "data/x", "/data/ä"]) | TEXTS
    source = draw(st.sampled_from(["train", "checkpoint", "weights", "none"]))
    seen = st.builds(Seen, st.integers(0, 2000), st.integers(1, 100), SIZES, SIZES) | st.just(Seen(3, 0)) | st.none()
    return Answers(
        data=typing.cast(Data, data),
        path="" if data == "digits" else draw(place),
        model=draw(st.sampled_from([name for name in NETWORKS[data] if source != "train" or name != "exported"])),
        weights="DEFAULT" if source == "weights" else None,
        checkpoint=draw(place) if source in ("train", "checkpoint") else None,
        train=source == "train",
        train_path=f"train {draw(place)}" if data == "folder" and source == "train" else "",
        sigma=draw(st.floats(1e-6, 1e6)),
        draws=draw(st.integers(starter.LEAST_DRAWS, 10_000_000)),
        run=draw(place),
        seen=draw(seen) if data == "folder" else None,
    )


def with_what_is_commented_out(text: str) -> Iterator[str]:
    """The text with one of its suggestions taken at a time."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r" *# [a-z_]+: ", line) and "# Once: " not in line:
            yield "\n".join([*lines[:number], line.replace("# ", "", 1), *lines[number + 1 :]])


@given(answers())
def test_whatever_was_answered_the_spec_says_it_and_validates(asked: Answers) -> None:
    assert objection(asked) is None
    spec = load_text(starter_spec(asked), "starter")
    assert spec.dataset.kind == ("image_folder" if asked.data == "folder" else asked.data)
    assert (spec.model.name, spec.model.weights) == (asked.model, asked.weights)
    assert str(spec.model.checkpoint) == str(None if asked.checkpoint is None else spec.model.checkpoint)
    assert (spec.noise.model_dump()["sigma"], spec.sampling.draws) == (asked.sigma, asked.draws)
    assert (spec.store.run, spec.training is not None) == (asked.run, asked.train)
    assert 5 <= len(spec.radii) <= 22
    assert spec.radii[-2] <= largest_radius(asked.sigma, asked.draws) <= spec.radii[-1] * (1 + 1e-9)
    if asked.path:
        assert Path(str(spec.dataset.path)) == Path(asked.path)  # type: ignore[union-attr]


def usual(data: Any, source: str) -> Answers:
    """What is usual for a data set, with weights from a source."""
    of, own = starter.USUAL[data], data == "folder"
    return Answers(
        data=data,
        path=of.path or ("images" if own else ""),
        model=of.model,
        weights="DEFAULT" if source == "weights" else None,
        checkpoint=None if source == "weights" else "w.pt",
        train=source == "train",
        train_path="more" if own and source == "train" else "",
        sigma=of.sigma,
        draws=1000,
        run="runs/mine",
    )


@pytest.mark.parametrize("source", ["train", "checkpoint", "weights"])
@pytest.mark.parametrize("data", words.DATA)
def test_what_is_usual_is_commented_and_what_the_comments_suggest_is_valid(data: Any, source: str) -> None:
    text = starter_spec(usual(data, source))
    lines = text.splitlines()
    assert all(len(line) <= 120 or "# Once: " in line for line in lines)
    assert sum("# " in line for line in lines) > 15
    suggested = list(with_what_is_commented_out(text))
    assert len(suggested) >= 6
    for changed in suggested:
        assert load_text(changed, "starter") != load_text(text, "starter")


def test_the_radius_that_so_many_votes_reach_is_what_certify_says() -> None:
    for sigma, draws in ((0.5, 1000), (0.25, 100_000)):
        votes = [[[draws, 0]]]
        found = certify(
            votes[0], noise=Gaussian(sigma), certificate="neyman_pearson_one_class", protocol="label", alpha=0.001,
            labels=[0],
        )  # fmt: skip
        assert found.radius[0] == pytest.approx(largest_radius(sigma, draws), rel=1e-3)


@pytest.mark.parametrize(("data", "name"), [("mnist", "MNIST"), ("cifar10", "CIFAR10")])
def test_the_command_that_fetches_a_data_set_is_pythons(data: Any, name: str) -> None:
    command = fetching(data, "a 'b'")
    assert command is not None
    done = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}; {command}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "-c", f"""import torchvision; torchvision.datasets.{name}("a 'b'", download=True)"""
    ]  # fmt: skip


def test_help_and_the_module_mean_the_same_data_sets() -> None:
    assert typing.get_args(Data) == words.DATA == tuple(starter.USUAL)


# --- What it looks at ----------------------------------------------------------------------------------------------


def test_a_folder_is_looked_at_and_images_of_one_small_size_stay_as_they_are(tmp_path: Path) -> None:
    folder(tmp_path / "images", classes=3)
    (tmp_path / "images/class0/broken.png").write_bytes(b"nothing")
    (tmp_path / "images/.cache").mkdir()
    assert look(tmp_path / "images") == Seen(3, 9, (32, 32), (32, 32))
    result = init("my.yaml", "--data", "folder", "--path", "images", "--checkpoint", "w.pt")
    assert (result.exit_code, result.stderr) == (
        0,
        "found 3 classes in images; of 9 images looked at, 32 x 32 pixels\n",
    )
    dataset = load_spec(Path("my.yaml")).dataset.model_dump(exclude_none=True)
    assert dataset == {"kind": "image_folder", "path": Path("images"), "mode": "rgb", "every": 1}


def test_who_names_images_to_train_on_wants_it_trained(tmp_path: Path) -> None:
    for name in ("val", "train"):
        folder(tmp_path / name, classes=2)
    arguments = ("--data", "folder", "--path", "val", "--train-path", "train", "--model", "tests.networks:tiny_rgb")
    assert init("my.yaml", *arguments).exit_code == 0
    training = load_spec(Path("my.yaml")).training
    assert training is not None
    assert training.dataset.model_dump()["path"] == Path("train")


def test_images_of_several_sizes_are_resized_and_cropped(tmp_path: Path) -> None:
    folder(tmp_path / "images", size=300)
    (tmp_path / "images/class1/wide.png").write_bytes(encoded(noise_image(1, 40)))
    result = init("my.yaml", "--data", "folder", "--path", "images", "--checkpoint", "w.pt")
    assert "40 x 40 to 300 x 300 pixels" in result.stderr
    dataset = load_spec(Path("my.yaml")).dataset.model_dump()
    assert (dataset["resize"], dataset["crop"]) == (256, 224)


def test_folders_of_training_and_held_out_images_are_found(tmp_path: Path) -> None:
    folder(tmp_path / "images/train")
    folder(tmp_path / "images/val")
    assert split_folders(tmp_path / "images") == (tmp_path / "images/train", tmp_path / "images/val")
    result = init("my.yaml", "--data", "folder", "--path", "images")
    assert result.exit_code == 0
    spec = load_spec(Path("my.yaml"))
    assert spec.training is not None
    assert spec.dataset.path == Path("images/val")  # type: ignore[union-attr]
    assert spec.training.dataset.path == Path("images/train")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "says"),
    [("nowhere", "nowhere is not there yet"), ("empty", "empty holds no images yet"), ("s3://bucket/x", "")],
)
def test_what_is_not_there_does_not_keep_it_from_writing(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    result = init("my.yaml", "--data", "folder", "--path", path, "--checkpoint", "w.pt")
    assert result.exit_code == 0
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == (1 if says else 0)
    assert str(load_spec(Path("my.yaml")).dataset.path) == path  # type: ignore[union-attr]


def test_weights_for_other_classes_are_refused(tmp_path: Path) -> None:
    folder(tmp_path / "images")
    result = init("my.yaml", "--data", "folder", "--path", "images", "--weights", "DEFAULT")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1].startswith(
        "error: --weights tell 1000 classes apart, and there are 2: --train"
    )
    assert not Path("my.yaml").exists()


# --- How it asks ---------------------------------------------------------------------------------------------------


def test_it_says_what_to_do_next(tmp_path: Path) -> None:
    result = init("a b.yaml", "--data", "mnist")
    assert result.exit_code == 0
    commands = [line.partition("  # ")[0].strip() for line in result.stdout.splitlines()[1:]]
    assert commands[0].startswith("python -c")
    assert commands[1:] == [
        *("stn train 'a b.yaml'", "stn plan 'a b.yaml'", "stn certify 'a b.yaml'", "stn report 'runs/a b'")
    ]
    (tmp_path / "data/mnist").mkdir(parents=True)
    assert "python" not in init("other.yaml", "--data", "mnist").stdout


def test_a_person_is_asked_for_what_no_option_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["orchestrator.cli.init"], "asking", lambda: True)
    said = "\n".join(["cifar10", "elsewhere/cifar", "checkpoint", "cohen.pth.tar", "runs/x", "0.5"])
    result = init("my.yaml", "--model", "cifar_resnet110", "--draws", "500", said=said)
    assert result.exit_code == 0, result.output
    assert "Which images (digits, mnist, cifar10, imagenet, folder) [digits]:" in result.stderr
    assert "Network" not in result.stderr
    spec = load_spec(Path("my.yaml"))
    assert spec.dataset == Cifar10(kind="cifar10", path=Path("elsewhere/cifar"), every=20)
    assert (str(spec.model.checkpoint), spec.training) == ("cohen.pth.tar", None)
    assert (spec.noise.model_dump()["sigma"], spec.sampling.draws, spec.store.run) == (0.5, 500, "runs/x")


@pytest.mark.parametrize(("answer", "checkpoint"), [("mine.pt", Path("mine.pt")), ("", None)])
def test_a_person_with_code_of_their_own_is_asked_for_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, checkpoint: Path | None
) -> None:
    """Who has some and is not asked would certify a network that was never trained."""
    monkeypatch.setattr(sys.modules["orchestrator.cli.init"], "asking", lambda: True)
    folder(tmp_path / "images")
    result = init("my.yaml", "--data", "folder", "--path", "images", "--model", "mine:make", said=f"{answer}\n\n\n\n")
    assert result.exit_code == 0, result.output
    assert "File of its weights (empty: the code makes them):" in result.stderr
    assert load_spec(Path("my.yaml")).model.checkpoint == checkpoint
    assert ("# checkpoint: weights.pt" in Path("my.yaml").read_text()) == (checkpoint is None)


def test_a_first_try_of_a_folder_is_of_all_its_classes() -> None:
    """Images of a folder come by class: the first 50 may all be of one."""
    assert "# limit:" not in starter_spec(usual("folder", "checkpoint"))
    assert "# every: 10 " in starter_spec(usual("folder", "checkpoint"))
    assert "# limit: 50 " in starter_spec(usual("cifar10", "checkpoint"))


def test_it_really_asks_on_a_terminal(tmp_path: Path) -> None:
    """A terminal of its own, at which return is pressed at every question."""
    here, there = pty.openpty()
    os.write(here, b"\n" * 20)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "init", "my.yaml"],
        stdin=there, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120, check=False,
    )  # fmt: skip
    os.close(there)
    os.close(here)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("]: ") == 6
    assert load_spec(tmp_path / "my.yaml").dataset.kind == "digits"


def test_who_stops_answering_has_interrupted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["orchestrator.cli.init"], "asking", lambda: True)
    result = init("my.yaml", said="mnist\n")
    assert result.exit_code == 130
    assert not Path("my.yaml").exists()


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    result = init("my.yaml")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: my.yaml is there already: name another file, or remove it\n",
    )
    assert (tmp_path / "my.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "folder"], "--path is missing"),
        (["--data", "folder", "--path", "x"], "--train, --checkpoint or --weights is missing"),
        (["--data", "folder", "--path", "x", "--train"], "--train-path is missing"),
        (["--data", "folder", "--path", "x", "--train", "--train-path", "x"], "--train-path is the folder that is c"),
        (["--data", "mnist", "--train-path", "x"], "--train-path goes with --data folder"),
        (["--no-train"], "--checkpoint or --weights is missing"),
        (["--path", "x"], "--path: digits come with a package"),
        (["--data", "mnist", "--model", "resnet18"], "--model resnet18 takes RGB images, and those of --data mnist a"),
        (["--data", "cifar10", "--model", "mnist"], "--model mnist takes grey images, and those of --data cifar10 a"),
        (["--data", "cifar10", "--model", "resnet5O"], "--model resnet5O: no network 'resnet5O', did you mean"),
        (["--data", "imagenet", "--weights", "V7"], "model.weights: 'resnet50' has no 'V7'"),
        (["--data", "imagenet", "--weights", "DEFAULT", "--train"], "--weights are torchvision's, and --train says"),
        (["--model", "exported", "--train"], "--train: an exported program cannot be trained"),
        (["--sigma", "nan"], "'--sigma': must lie inside (0, inf), got nan"),
        (["--sigma", "1e300"], "--sigma must lie in [1e-06, 1e+06]"),
        (["--draws", "9"], "--draws must lie in [10, 10000000]"),
        (["--run", "a\nb"], "'--run': must be a line of text, got 'a\\nb'"),
        (["--run", "ftp://x/y"], "my.yaml: model.checkpoint: got 'ftp://x/y-model/model.pt'; must be a path"),
        (["--path", "x\x00", "--data", "mnist"], "'--path': must be a line of text"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told_in_one_line_and_nothing_is_written(arguments: list[str], says: str) -> None:
    result = init("my.yaml", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert says in last
    assert not Path("my.yaml").exists()


# --- It runs -------------------------------------------------------------------------------------------------------


def run(path: str, *changes: str, monkeypatch: pytest.MonkeyPatch) -> Certification:
    """Train, where the spec says so, and certify, in this process."""
    monkeypatch.setattr("orchestrator.training.train.fit", fit_inline)
    monkeypatch.setattr("orchestrator.training.train.cluster", no_cluster)
    spec = load_spec(Path(path), changes)
    if spec.training is not None:
        train_model(prepare(spec), observe=lambda epoch: None, warn=lambda text: None)
    return certify_run(spec, hire=hire_inline)


def test_the_spec_for_digits_trains_and_certifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert init("my.yaml", "--model", "mnist_small", "--draws", 20).exit_code == 0
    few = ("dataset.limit=6", "training.dataset.limit=100", "training.epochs=1")
    result = run("my.yaml", *few, monkeypatch=monkeypatch)
    assert (result.complete, result.run) == (True, str(tmp_path / "runs/my"))
    assert (tmp_path / "runs/my-model/model.pt").exists()
    assert result.reduced.summary.counted == 6


@pytest.mark.parametrize("size", [32, 48], ids=["as they are", "resized"])
def test_the_spec_for_a_folder_trains_and_certifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    folder(tmp_path / "images/train", each=4, size=size)
    folder(tmp_path / "images/val", size=size)
    (tmp_path / "images/val/class0/0.png").write_bytes(encoded(noise_image(1, size, 3)))
    options = ("--data", "folder", "--path", "images", "--model", "cifar_resnet20", "--draws", 10)
    assert init("my.yaml", *options).exit_code == 0
    result = run("my.yaml", "training.epochs=1", "training.loaders=0", monkeypatch=monkeypatch)
    assert (result.complete, result.reduced.summary.counted) == (True, 6)


def test_the_spec_for_mnist_certifies_with_a_network_of_ones_own(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert init("my.yaml", "--data", "mnist", "--path", few_digits, "--model", "tests.networks:tiny").exit_code == 0
    result = run("my.yaml", "sampling.draws=20", monkeypatch=monkeypatch)
    assert (result.complete, result.reduced.summary.images) == (True, 2)  # every 20th of 25
