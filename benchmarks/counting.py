"""Votes per second against the plain loop: per image, repeat, add noise, forward, argmax, count."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Row, compare
from stn_core import DiscreteGaussian, Gaussian, count_votes
from stn_core.models import build_network
from stn_core.noise import Draws

SIGMA = 0.7


def plain_loop(model: nn.Module, images: torch.Tensor, draws: int, batch: int, classes: int) -> np.ndarray:
    """What a single-GPU script does, image by image, in batches of noisy copies of one image."""
    counts = np.zeros((len(images), classes), dtype=np.int64)
    with torch.inference_mode():
        for i, image in enumerate(images.float() / 255):
            for start in range(0, draws, batch):
                copies = image.repeat((min(batch, draws - start), 1, 1, 1))
                predictions = model(copies + torch.randn_like(copies) * SIGMA).argmax(1)
                for label in predictions.tolist():
                    counts[i, label] += 1
    return counts


def rows() -> Iterator[Row]:
    """One row per network: the paper's MNIST one, a small one that Python would bind, and ResNet-18 on 224 x 224."""
    torch.set_num_threads(1)
    yield noise_alone()
    small = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    cases = [
        ("the paper's MNIST network, n = 100", build_network("mnist", 10), (1, 28, 28), 40, 100, 10),
        ("the paper's MNIST network, n = 20", build_network("mnist", 10), (1, 28, 28), 100, 20, 10),
        ("a 784-32-10 network, n = 100", small, (1, 28, 28), 400, 100, 10),
        ("a 784-32-10 network, n = 10", small, (1, 28, 28), 1000, 10, 10),
        ("ResNet-18 at 224 x 224, n = 32", build_network("resnet18", 1000), (3, 224, 224), 1, 32, 1000),
    ]
    for name, network, shape, count, draws, classes in cases:
        torch.manual_seed(0)
        model = network.eval()
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)

        def ours(m: nn.Module = channels_last, x: torch.Tensor = images, n: int = draws, k: int = classes) -> None:
            count_votes(m, x, noise=Gaussian(SIGMA), draws=n, num_classes=k, seed=0, keys=range(len(x)))

        def loop(m: nn.Module = model, x: torch.Tensor = images, n: int = draws, k: int = classes) -> None:
            plain_loop(m, x, n, 100, k)

        yield compare(f"votes: {name}", ours, "plain per-image loop", loop, rounds=5, detail=f"{count * draws} votes")

        def sound(m: nn.Module = channels_last, x: torch.Tensor = images, n: int = draws, k: int = classes) -> None:
            count_votes(m, x, noise=DiscreteGaussian(SIGMA), draws=n, num_classes=k, seed=0, keys=range(len(x)))

        yield compare(f"votes, sound sampler: {name}", sound, "the plain sampler", ours, rounds=5)


def noise_alone() -> Row:
    """What the sound sampler costs where nothing else is done."""
    rows = torch.empty(512, 3, 32, 32)
    draws = [Draws(0, 0, "estimation", 0, len(rows))]
    plain, sound = Gaussian(SIGMA), DiscreteGaussian(SIGMA)
    return compare(
        "noise of 512 images of 3 x 32 x 32, sound sampler",
        lambda: sound.fill(rows, draws),
        "the plain sampler",
        lambda: plain.fill(rows, draws),
        rounds=5,
    )
