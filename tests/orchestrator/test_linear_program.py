"""What a cascade comes to, on tables small enough to count by hand, and what its networks are trained by."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from orchestrator.errors import SpecError
from orchestrator.paper.certified import TABLE_1
from orchestrator.paper.linear_program import NETWORKS, SCHEMA, Counted, counted, network_spec
from orchestrator.spec import validate
from stn_core.dual import margins
from stn_core.models import build_network
from tests.orchestrator.runs import mnist_spec


def table(*rows: tuple[int, int, int, int, float]) -> pa.Table:
    """Rows of (network, index, label, predicted, margin)."""
    return pa.table(dict(zip(SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), schema=SCHEMA)


#: Five images: certified by the first network; by the second alone; falsely by the first, rightly by the second;
#: by none, the last one right; by none, both right.
FIVE = table(
    *((1, 0, 3, 3, 0.1), (1, 1, 4, 4, -1.0), (1, 2, 5, 6, 0.2), (1, 3, 6, 1, -1.0), (1, 4, 7, 7, 0.0)),
    *((2, 0, 3, 2, 9.9), (2, 1, 4, 4, 0.5), (2, 2, 5, 5, 0.5), (2, 3, 6, 6, -2.0), (2, 4, 7, 7, -1.0)),
)


def test_a_single_network_certifies_what_it_answers_right_with_a_margin() -> None:
    assert counted(FIVE, 1) == Counted(certified=1 / 5, natural=3 / 5)


def test_in_a_cascade_the_first_that_certifies_decides_and_else_the_last() -> None:
    # Image 0: the first. 1: the second. 2: the first, wrongly. 3 and 4: the last.
    assert counted(FIVE, 2) == Counted(certified=2 / 5, natural=4 / 5)
    assert counted(FIVE, 7) == counted(FIVE, 2)


@pytest.mark.parametrize("name", TABLE_1)
def test_every_table_has_a_network_that_can_be_bounded(name: str) -> None:
    network = build_network(NETWORKS[name], 10)
    images = torch.rand(2, *{"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}[name])
    labels = torch.tensor([3, 4])
    bounds, at_the_image = (margins(network, images, labels, radius) for radius in (0.1, 0.0))
    assert bounds.shape == (2, 10)
    assert (bounds[:, :3] < at_the_image[:, :3]).all()


def test_networks_are_trained_on_the_tables_data_to_its_radius(tmp_path: Path) -> None:
    training = {
        "dataset": {"kind": "mnist", "path": "there", "split": "train", "limit": 50},
        "method": "stn",
        "gamma": 3.0,
        "epochs": 8,
        "batch_size": 16,
        "seed": 9,
        "workers": 2,
        "optimizer": "sgd",
    }
    model = {"name": "mnist", "checkpoint": "w.pt", "normalization": {"mean": [0.1], "std": [0.3]}, "num_classes": 12}
    content = {**mnist_spec(tmp_path), "model": model, "training": training}
    job = network_spec(validate(content, "spec"), 2, 1.58)
    assert job.model.model_dump() == {
        "name": "mnist_shallow",
        "weights": None,
        "checkpoint": Path("w-linear-program-2.pt"),
        "normalization": None,
        "num_classes": 12,
    }
    assert job.training is not None
    found = job.training.model_dump(exclude_defaults=True)
    assert found == {
        "method": "dual",
        "dataset": {"kind": "mnist", "path": Path("there"), "split": "train", "limit": 50},
        "radius": 1.58,
        "warmup": 4.0,
        "epochs": 8,
        "batch_size": 16,
        "seed": 9,
        "learning_rate": 0.003,
    }
    for missing in ({"training": None}, {"model": {"name": "mnist"}}):
        with pytest.raises(SpecError, match=r"needs the spec's training section and model\.checkpoint"):
            network_spec(validate({**content, **missing}, "spec"), 1, 1.58)
