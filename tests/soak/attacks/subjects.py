"""Whom the attack soak attacks: smoothed classifiers and their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stn_core.models import build_network
from stn_core.noise import Gaussian
from tests.stn_core.planes import Plane
from workers.counting import load_model
from workers.images import load_all
from workers.settings import Digits, Model

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Subject:
    """A smoothed classifier, images, and how both are certified and attacked.

    Attributes:
        name: for people.
        model: the network, without gradients of its own.
        noise: that it is smoothed with, in [0, 1] pixel units.
        images: float32 in [0, 1], (images, channels, height, width).
        labels: int64 (images,).
        num_classes: of the network.
        protocol: "label" certifies the label, "split" the most voted class of the selection votes.
        draws: of each image, that its certificates come from.
        second_draws: of a try whose first votes are not clear.
        share: of the soak's tries, against others' shares.
        too_far: the factor by which the control's radii are too large.
    """

    name: str
    model: nn.Module
    noise: Gaussian
    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    protocol: str
    draws: int
    second_draws: int
    share: float
    too_far: float


def planes(images: int, seed: int) -> Subject:
    """Two classes on either side of a plane: there the Neyman-Pearson bound is tight, and the true radius is the
    distance from the plane."""
    plane, noise = Plane(seed), Gaussian(0.15)
    plane.offset = -float(plane.normal.sum()) / 2  # through grey: images near it are far from 0 and 1
    # Of those nearer by and farther away, votes bound the radius less tightly.
    distances = noise.scale * np.linspace(0.5, 1.9, images)
    return Subject(
        name="plane",
        model=plane,
        noise=noise,
        images=plane.at(distances.tolist(), seed + 1),
        labels=torch.zeros(images, dtype=torch.int64),
        num_classes=2,
        protocol="label",
        draws=20_000,
        second_draws=10_000,
        share=0.37,
        too_far=1.25,
    )


def digits(seed: int) -> Subject:
    """A small network, trained in here on noisy digits, and 500 digits that it never saw."""
    noise = Gaussian(0.25)
    held_out = load_all(Digits(kind="digits", split="test"))
    return Subject(
        name="digits",
        model=_trained(noise, seed),
        noise=noise,
        images=torch.from_numpy(held_out.pixels).float() / 255,
        labels=torch.from_numpy(held_out.labels),
        num_classes=10,
        protocol="split",
        draws=5_000,
        second_draws=10_000,
        share=0.6,
        too_far=2.5,
    )


def smooth_adversarial(images: int) -> Subject:
    """The network that comes with the project, trained against attacks; it takes most of the time."""
    checkpoint = ROOT / "examples" / "mnist_smoothadv.pt"
    held_out = load_all(Digits(kind="digits", split="test", limit=images))
    return Subject(
        name="smoothadv",
        model=_finished(load_model(Model(name="mnist_small", checkpoint=checkpoint), 10)),
        noise=Gaussian(0.5),
        images=torch.from_numpy(held_out.pixels).float() / 255,
        labels=torch.from_numpy(held_out.labels),
        num_classes=10,
        protocol="label",
        draws=1_000,
        second_draws=2_000,
        share=0.03,
        too_far=3.0,
    )


def _trained(noise: Gaussian, seed: int, epochs: int = 8) -> nn.Module:
    """One layer of convolutions that has seen digits under the noise: quick to train, and to ask a billion times."""
    seen = load_all(Digits(kind="digits", split="train"))
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network("mnist_shallow", 10)
    labels = torch.from_numpy(seen.labels)
    adam = torch.optim.Adam(network.parameters(), lr=0.005)
    for _ in range(epochs):
        for rows in np.array_split(random.permutation(len(labels)), len(labels) // 64):
            noisy = noise.disturb(torch.from_numpy(seen.pixels[rows]), random)
            adam.zero_grad()
            nn.functional.cross_entropy(network(noisy), labels[rows]).backward()
            adam.step()
    return _finished(network)


def _finished(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def shares(subjects: Sequence[Subject], tries: int) -> list[int]:
    """How many tries each one gets: its share, rounded up."""
    whole = sum(subject.share for subject in subjects)
    return [int(np.ceil(tries * subject.share / whole)) for subject in subjects]
