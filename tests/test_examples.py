"""The examples: each a valid spec, and the weights that come with one are what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.spec import load_spec
from orchestrator.training.train import decisive
from stn_core import Gaussian, certify, count_votes
from workers.counting import load_model
from workers.images import ImageSet, open_dataset
from workers.settings import Digits

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_spec(path: Path) -> None:
    assert load_spec(path).radii
    assert f"examples/{path.name}" in path.read_text()  # how to run it


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_dataset(Digits(kind="digits"))


def test_the_weights_that_come_with_an_example_are_small_and_of_its_training() -> None:
    (weights,) = EXAMPLES.glob("*.pt")
    assert weights.stat().st_size < 1_000_000
    spec = load_spec(weights.with_suffix(".yaml"))
    assert spec.training is not None
    assert spec.model.checkpoint == Path("examples") / weights.name
    saved = torch.load(weights, weights_only=True)
    assert saved["training"]["training"] == decisive(spec.training)
    assert saved["training"]["sigma"] == spec.noise.sigma


def test_they_certify_digits(digits: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of digits that may have been among those it learned: that it is the network it says, not how good."""
    monkeypatch.chdir(EXAMPLES.parent)
    spec = load_spec(EXAMPLES / "mnist_smoothadv.yaml")
    model = load_model(spec.model, 10).eval()
    pixels = torch.stack([torch.from_numpy(digits.read(index)) for index in range(20)])
    tally = count_votes(model, pixels, noise=Gaussian(0.5), draws=200, num_classes=10, seed=0, keys=range(20))
    found = certify(
        tally.votes,
        certificate="neyman_pearson_one_class",
        protocol="label",
        noise=Gaussian(0.5),
        labels=digits.labels[:20],
        alpha=0.05,
    )
    assert (found.radius > 0.5).sum() >= 16
