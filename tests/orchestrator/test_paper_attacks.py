"""Figures 3 and 4 without Ray: which jobs, and that points are those of their runs' attacks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from orchestrator.attacking.attack import attack_run
from orchestrator.cli import main
from orchestrator.counting.crew import Crew, Device, Task
from orchestrator.counting.dispatch import Event, Failed
from orchestrator.errors import SpecError
from orchestrator.paper.attacked import KNOWN, Robust, curves_of, figure3_jobs, figure4_jobs
from orchestrator.spec import Resources, Spec, validate
from stn_core.attacks import Target
from tests.orchestrator.inline import InlinePool, fit_inline, no_cluster
from tests.orchestrator.runs import mnist_spec
from workers import layout
from workers.attacking import AttackJob
from workers.ray_attacking import AttackingActor
from workers.store import LocalStore

ATTACK = {
    "draws": 50,
    "keep": 1,
    "attacks": {
        "near": {"kind": "cw", "sizes": [0.5, 2], "steps": 4, "searches": 2, "draws": 2},
        "signs": {"kind": "pgd", "norm": "linf", "sizes": [0.05, 0.2], "steps": 3, "draws": 2},
    },
}


@pytest.fixture
def content(few_digits: Path, tmp_path: Path) -> dict[str, Any]:
    """Both figures in small: few digits, two epochs, attacks of few steps."""
    return mnist_spec(
        few_digits,
        model={"name": "tests.networks:tiny", "checkpoint": str(tmp_path / "model.pt")},
        noise={"sigma": 0.3},
        confidence={"protocol": "split"},
        store={"run": str(tmp_path / "out")},
        training={
            "gamma": 2,
            "epochs": 2,
            "batch_size": 5,
            "precision": "float32",
            "dataset": {"kind": "mnist", "path": str(few_digits), "split": "train"},
        },
        attack=ATTACK,
    )


def spec(content: dict[str, Any], **sections: Any) -> Spec:
    return validate({**content, **sections}, "spec")


def of_mnist(content: dict[str, Any], **sections: Any) -> Spec:
    """With a network whose sizes of attacks are known, and no others."""
    model = {**content["model"], "name": "mnist_small"}
    return spec({key: value for key, value in content.items() if key != "attack"}, **{"model": model, **sections})


# --- Which jobs there are ------------------------------------------------------------------------------------------


def test_figure_3_attacks_stn_and_trades_and_makes_the_same_attacks_on_madrys_network(content: dict[str, Any]) -> None:
    madry, stn, trades = (one.point.spec for one in figure3_jobs(spec(content), epsilon=0.1, steps=4))
    for job, name, method in (
        (madry, "madry", "madry"),
        (stn, "stn-sigma-0.3", "stn"),
        (trades, "trades", "trades"),
    ):
        assert job.training is not None
        assert job.training.method == method
        assert job.store.run == f"{content['store']['run']}/{name}"
        assert Path(job.model.checkpoint or "").name == f"model-{name}.pt"
        assert job.dataset == spec(content).dataset
    assert madry.attack is None
    for job in (madry, trades):
        assert job.training is not None
        assert job.training.attack is not None
        assert (job.training.attack.norm, job.training.attack.epsilon, job.training.attack.steps) == ("linf", 0.1, 4)
        assert (job.noise.kind, job.certificates) == ("none", ())
        assert (job.sampling.draws, job.sampling.selection_draws) == (1, 0)
        assert job.training.gamma is None  # STN's weight is none of theirs
    assert (stn.training and stn.training.gamma, stn.training and stn.training.attack) == (2, None)
    assert (stn.noise, stn.confidence) == (spec(content).noise, spec(content).confidence)

    assert stn.attack is not None
    assert trades.attack is not None
    assert list(stn.attack.attacks) == list(trades.attack.attacks) == ["near", "signs", "near-madry", "signs-madry"]
    for job in (stn, trades):
        assert job.attack is not None
        assert (job.attack.draws, job.attack.keep) == (50, 1)
        for name in ("near", "signs"):
            own, transfer = job.attack.attacks[name], job.attack.attacks[f"{name}-madry"]
            assert (own.source, own.sizes) == (None, transfer.sizes)
            assert transfer.source == madry.model
            assert transfer.draws is None  # without noise, all are the same
            assert type(own) is type(transfer)
    assert [one.draws for one in stn.attack.attacks.values()] == [2, 2, None, None]
    assert [one.draws for one in trades.attack.attacks.values()] == 4 * [None]


def test_figure_4_has_stn_for_every_sigma_and_a_network_without_noise(content: dict[str, Any]) -> None:
    found = figure4_jobs(spec(content), (0.0, 0.2, 0.4))
    assert [(one.label, one.point.name) for one in found] == [
        ("no noise, sigma = 0", "clean"),
        ("STN, sigma = 0.2", "stn-sigma-0.2"),
        ("STN, sigma = 0.4", "stn-sigma-0.4"),
    ]
    clean, *noisy = (one.point.spec for one in found)
    assert (clean.noise.kind, clean.training and clean.training.method) == ("none", "clean")
    assert [job.noise.sigma for job in noisy] == [0.2, 0.4]  # type: ignore[union-attr]
    assert all(job.attack == spec(content).attack for job in noisy)
    assert len({str(one.point.spec.model.checkpoint) for one in found}) == 3
    assert figure4_jobs(spec(content), (0.2, 0.4)) == found


def test_an_attackers_own_noise_is_averaged_over_on_networks_without(content: dict[str, Any]) -> None:
    near = {**ATTACK["attacks"]["near"], "noise": {"sigma": 0.1}}  # type: ignore[index]
    _, _, trades = figure3_jobs(spec(content, attack={"attacks": {"near": near}}), epsilon=0.1)
    assert trades.point.spec.attack is not None
    assert [one.draws for one in trades.point.spec.attack.attacks.values()] == [2, 2]


@pytest.mark.parametrize(("name", "epsilon"), [("mnist_small", 0.3), ("cifar_resnet20", 8 / 255)])
def test_of_known_images_the_papers_attacks_are_known(content: dict[str, Any], name: str, epsilon: float) -> None:
    madry, stn, trades = (
        one.point.spec for one in figure3_jobs(of_mnist(content, model={**content["model"], "name": name}))
    )
    for job in (madry, trades):
        assert job.training is not None
        assert job.training.attack is not None
        assert (job.training.attack.epsilon, job.training.attack.steps) == (epsilon, 10)
    assert stn.attack is not None
    kinds = {name: (one.kind, one.norm, one.sizes) for name, one in stn.attack.attacks.items()}
    assert kinds["cw"] == kinds["cw-madry"] == ("cw", "l2", KNOWN[name].l2)
    assert kinds["pgd-linf"] == kinds["pgd-linf-madry"] == ("pgd", "linf", KNOWN[name].linf)


def test_sizes_are_those_that_are_documented() -> None:
    mnist, cifar10 = KNOWN["mnist"], KNOWN["cifar10"]
    assert mnist.l2 == (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4)
    assert mnist.linf == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    assert cifar10.l2 == (0.25, 0.5, 0.75, 1, 1.25, 1.5)
    assert [round(size * 255, 9) for size in cifar10.linf] == [2, 4, 6, 8, 10, 12, 14, 16]


LAPLACE = {"noise": {"kind": "laplace", "scale": 0.1}, "confidence": {}}
SPLITTING = {
    "noise": {"kind": "splitting", "scale": 0.4},
    "sampling": {"draws": 204},
    "confidence": {"protocol": "exact"},
    "attack": None,
}
TRANSFERRED = {"attacks": {"near": {**ATTACK["attacks"]["near"], "source": {"name": "mnist"}}}}  # type: ignore[index]
TAKEN = {"attacks": {**ATTACK["attacks"], "near-madry": ATTACK["attacks"]["near"]}}  # type: ignore[dict-item, index]


@pytest.mark.parametrize(
    ("sections", "options", "says"),
    [
        (LAPLACE, (), "about gaussian noise, not laplace"),
        (SPLITTING, (), "about gaussian noise, not splitting"),
        ({"training": None}, (), "training is missing"),
        ({"model": {"name": "tests.networks:tiny"}}, (), "model.checkpoint is missing"),
        ({}, (), "of model.name 'tests.networks:tiny' Figure 3 does not know .*: name it by --epsilon"),
        ({}, ("--epsilon", "-1"), "training.attack.epsilon: got -1"),
        ({"attack": None}, ("--epsilon", "0.1"), "add an attack section"),
        ({"attack": TRANSFERRED}, ("--epsilon", "0.1"), "attack.attacks.near.source: Figure 3 makes what transfers"),
        ({"attack": TAKEN}, ("--epsilon", "0.1"), "attack.attacks.near-madry: Figure 3 calls near so"),
    ],
)
def test_what_figure_3_cannot_compare_is_told_in_a_line(
    content: dict[str, Any],
    done: list[str],
    sections: dict[str, Any],
    options: tuple[str, ...],
    says: str,
) -> None:
    result = stn({**content, **sections}, "figure3", *options)
    assert (result.exit_code, done) == (2, [])
    (line,) = result.stderr.splitlines()
    with pytest.raises(SpecError, match=says):
        raise SpecError(line)


@pytest.mark.parametrize(
    ("sections", "sigmas", "says"),
    [
        (LAPLACE, "0.1", "Figure 4 is about gaussian noise, not laplace"),
        ({"training": None}, "0.1", "training is missing: Figure 4"),
        ({}, "0", "name a sigma above 0"),
        ({}, "-0.1", "noise.sigma: got -0.1"),
        ({}, "0.1,0.1", "0.1 twice"),
        ({"attack": None}, "0.1", "Figure 4 knows no sizes of attacks: add an attack section"),
    ],
)
def test_what_figure_4_cannot_compare_is_told_in_a_line(
    content: dict[str, Any], done: list[str], sections: dict[str, Any], sigmas: str, says: str
) -> None:
    result = stn({**content, **sections}, "figure4", "--sigma", sigmas)
    assert (result.exit_code, done) == (2, [])
    (line,) = result.stderr.splitlines()
    assert says in line


# --- Doing them ----------------------------------------------------------------------------------------------------


class _Pool(InlinePool):
    """One worker that attacks."""

    def __init__(self, actor: AttackingActor) -> None:
        super().__init__(actor, "attack")  # type: ignore[arg-type]


@contextmanager
def hire_attacker(
    make_job: Callable[[Device], AttackJob], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    assert task == "attack"
    yield Crew(_Pool(AttackingActor(make_job("cpu"))), 1)


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every training and attack from here on, by name."""
    monkeypatch.chdir(tmp_path)
    kept: list[str] = []

    def fit(job: Any, **named: Any) -> bytes:
        kept.append(f"train {job.training.method}")
        return fit_inline(job, **named)

    def attack(job: Spec) -> Any:
        found = attack_run(job, hire=hire_attacker)  # type: ignore[arg-type]
        if found.done:
            kept.append(f"attack {Path(job.store.run).name}")
        return found

    monkeypatch.setattr("orchestrator.training.train.fit", fit)
    monkeypatch.setattr("orchestrator.training.train.cluster", no_cluster)
    monkeypatch.setattr("orchestrator.attacking.attack.attack_run", attack)
    return kept


def stn(content: dict[str, Any], figure: str, *options: str) -> Result:
    Path("job.yaml").write_text(yaml.safe_dump(content))
    return CliRunner().invoke(main, ["paper", figure, "job.yaml", *options])


def stored(run: Path) -> dict[tuple[str, float], dict[str, Any]]:
    """A run's own table of robust accuracy, by attack and size."""
    return {(row["attack"], row["size"]): row for row in pq.read_table(run / layout.ROBUSTNESS).to_pylist()}


def test_figure_3_is_read_off_the_runs_and_again_does_nothing(
    content: dict[str, Any], done: list[str], tmp_path: Path
) -> None:
    folder, options = tmp_path / "out", ("--epsilon", "0.1", "--adversary-steps", "2")
    first = stn(content, "figure3", *options)
    assert first.exit_code == 0, first.output
    assert done == ["train madry", "train stn", "train trades", "attack stn-sigma-0.3", "attack trades"]
    assert (folder / "figure3.png").read_bytes().startswith(b"\x89PNG")
    rows = csv.read_csv(folder / "figure3.csv").to_pylist()
    found = {(row["network"], row["attack"], row["size"]): row for row in rows}
    assert len(found) == len(rows) == 2 * 4 * 3
    for label, name in (("STN, sigma = 0.3", "stn-sigma-0.3"), ("TRADES", "trades")):
        for (attack, size), own in stored(folder / name).items():
            row = found[label, attack, size]
            same = ("norm", "robust_accuracy", "broken", "abstained", "failed", "missing", "images")
            assert {key: row[key] for key in same} == {key: own[key] for key in same}
            assert row["source"] == ("madry" if attack.endswith("-madry") else "white-box")
            assert row["images"] == 20
    assert {row["abstained"] for row in rows if row["network"] == "TRADES"} == {0}  # it answers without chance
    # A line for each network, STN's first.
    assert "STN, sigma = 0.3: gradient masking: " in first.stdout
    assert first.stdout.index("STN, sigma = 0.3: gr") < first.stdout.index("TRADES: gradient masking: ")

    done.clear()
    again = stn(content, "figure3", *options, "--json")
    assert (again.exit_code, done) == (0, [])
    told = json.loads(again.stdout)
    assert told["complete"]
    assert told["rows"] == rows
    assert told["written"] == [f"{folder}/figure3.png", f"{folder}/figure3.csv"]
    others = [(one["white_box"], one["other"]) for one in told["masking"]["STN, sigma = 0.3"]]
    assert others == 2 * [("near", "near-madry")] + 2 * [("signs", "signs-madry")]


def test_what_transfers_is_the_same_images_for_both(content: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    """STN and TRADES answer to the same attacked images, made on a network that is neither."""
    assert stn(content, "figure3", "--epsilon", "0.1", "--adversary-steps", "2").exit_code == 0
    distances: dict[str, dict[tuple[Any, ...], float]] = {}
    for run in ("stn-sigma-0.3", "trades"):
        attempts = pq.read_table(tmp_path / "out" / run / layout.ATTEMPTS).to_pylist()
        distances[run] = {(row["attack"], row["index"], row["size"]): row["l2"] for row in attempts}
    for key, distance in distances["stn-sigma-0.3"].items():
        if key[0].endswith("-madry"):
            assert distances["trades"][key] == distance
    assert distances["stn-sigma-0.3"] != distances["trades"]


def test_figure_4_is_read_off_the_runs_and_again_does_nothing(
    content: dict[str, Any], done: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    first = stn(content, "figure4", "--sigma", "0.2,0.6")
    assert first.exit_code == 0, first.output
    assert done == [
        *("train clean", "train stn", "train stn"),
        *("attack clean", "attack stn-sigma-0.2", "attack stn-sigma-0.6"),
    ]
    assert (folder / "figure4.png").read_bytes().startswith(b"\x89PNG")
    rows = csv.read_csv(folder / "figure4.csv").to_pylist()
    found = {(row["network"], row["attack"], row["size"]): row["robust_accuracy"] for row in rows}
    expected = {
        (label, *key): own["robust_accuracy"]
        for label, name in (
            ("no noise, sigma = 0", "clean"),
            ("STN, sigma = 0.2", "stn-sigma-0.2"),
            ("STN, sigma = 0.6", "stn-sigma-0.6"),
        )
        for key, own in stored(folder / name).items()
    }
    assert found == expected
    assert {row["source"] for row in rows} == {"white-box"}

    done.clear()
    assert stn(content, "figure4", "--sigma", "0.2,0.6").exit_code == 0
    assert done == []


def test_networks_of_one_figure_serve_the_other(content: dict[str, Any], done: list[str]) -> None:
    assert stn(content, "figure4", "--sigma", "0.3").exit_code == 0
    done.clear()
    assert stn(content, "figure3", "--epsilon", "0.1", "--adversary-steps", "2").exit_code == 0
    assert done == ["train madry", "train trades", "attack stn-sigma-0.3", "attack trades"]
    # What the run has from the other figure alone stays out of this one.
    assert stn(content, "figure4", "--sigma", "0.3").exit_code == 0
    attacks = {row["attack"] for row in csv.read_csv("out/figure4.csv").to_pylist()}
    assert attacks == {"near", "signs"}


def test_attacks_that_are_incomplete_say_so_and_go_on(
    content: dict[str, Any], done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(_Pool):
        def events(self, timeout_s: float) -> list[Event]:
            if self._queue and self._queue[0] == 1:
                return [Failed(0, self._queue.popleft(), "a disk on fire")]
            return super().events(timeout_s)

    pool = _Pool
    monkeypatch.setattr("tests.orchestrator.test_paper_attacks._Pool", Failing)
    result = stn(content, "figure4", "--sigma", "0.3")
    assert result.exit_code == 3, result.output
    assert "attack near, shard 1 was given up: a disk on fire" in result.stderr
    assert "STN, sigma = 0.3: near (INCOMPLETE)" in " ".join(result.stdout.split())
    rows = csv.read_csv(tmp_path / "out" / "figure4.csv").to_pylist()
    assert {(row["attack"], row["missing"]) for row in rows} == {("near", 8), ("signs", 0)}

    monkeypatch.setattr("tests.orchestrator.test_paper_attacks._Pool", pool)
    done.clear()
    assert stn(content, "figure4", "--sigma", "0.3").exit_code == 0
    assert done == ["attack clean", "attack stn-sigma-0.3"]


def test_gradients_are_of_the_network_that_the_curve_is_of(
    content: dict[str, Any], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """White-box gradients pass through the network's own noise; what transfers has none."""
    seen: set[tuple[str, int]] = set()
    built = Target.__init__

    @functools.wraps(built)
    def spied(self: Target, source: Any, noise: Any, labels: Any, keys: Any, seed: int, draws: int, rows: int) -> None:
        seen.add((noise.kind, draws))
        built(self, source, noise, labels, keys, seed, draws, rows)

    monkeypatch.setattr(Target, "__init__", spied)
    assert stn(content, "figure3", "--epsilon", "0.1", "--adversary-steps", "2").exit_code == 0
    assert seen == {("gaussian", 2), ("none", 1)}


def test_a_run_without_noise_has_nothing_to_reduce(content: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    assert stn(content, "figure4", "--sigma", "0.3").exit_code == 0
    result = CliRunner().invoke(main, ["reduce", str(tmp_path / "out" / "clean")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "nothing can be certified with noise of kind none" in line


def test_a_run_is_no_folder_for_a_figure(content: dict[str, Any], done: list[str], tmp_path: Path) -> None:
    LocalStore(tmp_path / "out").create(layout.PLAN, b"{}")
    result = stn(content, "figure3", "--epsilon", "0.1")
    assert (result.exit_code, done) == (2, [])
    assert "holds a run" in result.stderr


def test_curves_are_told_apart_by_network_source_and_attack() -> None:
    def row(network: str, attack: str, source: str, size: float, missing: int = 0) -> Robust:
        return Robust(network, attack, source, "l2", size, 0.5, 1, 1, 0, missing, 4)

    rows = [
        row("STN", "cw", "white-box", 1.0),
        row("STN", "cw", "white-box", 0.5),
        row("STN", "cw-madry", "madry", 0.5, missing=2),
        row("TRADES", "cw", "white-box", 0.5),
        row("TRADES", "cw-white-box", "white-box", 0.5),
    ]
    curves = curves_of(rows)
    assert {label: [one.size for one in curve] for label, curve in curves.items()} == {
        "STN: cw": [0.5, 1.0],
        "STN: cw from madry (INCOMPLETE)": [0.5],
        "TRADES: cw": [0.5],
        "TRADES: cw-white-box": [0.5],
    }
