"""Votes per second against the plain loop: per image, repeat, add noise, forward, argmax, count."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Row, compare
from stn_core import DiscreteGaussian, Gaussian, count_votes
from stn_core.arithmetic import Precision
from stn_core.models import build_network, folded
from stn_core.noise import Draws
from stn_core.votes import default_batch_size

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


def bare_loop(model: nn.Module, images: torch.Tensor, draws: int, batch: int) -> None:
    """Noise and forward passes alone, in the arithmetic and layout that ``count_votes`` uses; nothing is counted."""
    with torch.inference_mode():
        for image in images:
            pixels = image.float() / 255
            for _ in range(0, draws, batch):
                noisy = torch.randn(batch, *image.shape).mul_(SIGMA).add_(pixels)
                model(noisy.contiguous(memory_format=torch.channels_last))


def rows() -> Iterator[Row]:
    """The paper's MNIST network, a small one that Python would bind, ResNets at 224 x 224; on one thread."""
    torch.set_num_threads(1)
    yield noise_alone()
    yield from resnet50()
    small = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    cases: list[tuple[str, nn.Module, tuple[int, int, int], int, int, int, Precision, str]] = [
        ("the paper's MNIST network, n = 100", build_network("mnist", 10), (1, 28, 28), 40, 100, 10, "float32", ""),
        ("the same in bfloat16", build_network("mnist", 10), (1, 28, 28), 40, 100, 10, "bfloat16", "≥ 2"),
        ("the paper's MNIST network, n = 20", build_network("mnist", 10), (1, 28, 28), 100, 20, 10, "float32", ""),
        ("a 784-32-10 network, n = 100", small, (1, 28, 28), 400, 100, 10, "float32", ""),
        ("a 784-32-10 network, n = 10", small, (1, 28, 28), 1000, 10, 10, "float32", ""),
        ("ResNet-18 at 224 x 224, n = 32", build_network("resnet18", 1000), (3, 224, 224), 1, 32, 1000, "float32", ""),
    ]
    for name, network, shape, count, draws, classes, precision, goal in cases:
        torch.manual_seed(0)
        model = network.eval()
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        ours, sound = (
            partial(
                count_votes,
                channels_last,
                images,
                noise=noise,
                draws=draws,
                num_classes=classes,
                seed=0,
                keys=range(count),
                precision=precision,
            )
            for noise in (Gaussian(SIGMA), DiscreteGaussian(SIGMA))
        )
        loop = partial(plain_loop, model, images, draws, 100, classes)
        votes = f"{count * draws} votes"
        against = "plain per-image loop, float32"
        yield compare(f"votes: {name}", ours, against, loop, rounds=5, detail=votes, goal=goal)
        if precision == "float32":
            yield compare(f"votes, sound sampler: {name}", sound, "the plain sampler", ours, rounds=5)


def resnet50() -> Iterator[Row]:
    """Against a loop that only draws noise and runs the network: counting as such, and as a worker does it."""
    torch.manual_seed(0)
    model = build_network("resnet50", 1000).eval().to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    draws, batch = 64, default_batch_size(images[0].numel(), torch.device("cpu"))
    bare = partial(bare_loop, model, images, draws, batch)
    for name, network, goal in (
        ("votes: ResNet-50 at 224 x 224", model, "≥ 0.97"),
        ("the same, batch normalisation folded as workers do", folded(model), ""),
    ):
        ours = partial(
            count_votes, network, images, noise=Gaussian(SIGMA), draws=draws, num_classes=1000, seed=0, keys=[0]
        )
        yield compare(name, ours, "bare noise and forward passes", bare, rounds=3, detail=f"{draws} votes", goal=goal)


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
