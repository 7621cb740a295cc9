"""The attack soak, small: it finds nothing inside certified radii, and sees radii that are too large."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from stn_core.certify import Certified
from tests.soak.attacks import soak as soaking
from tests.soak.attacks.soak import (
    Score,
    Settings,
    allowed,
    certificates_of,
    distances_of,
    p_values_of,
    soak,
    stretched,
)
from tests.soak.attacks.subjects import Subject, planes
from tests.stn_core.planes import Plane


def small(images: int = 20) -> Subject:
    return dataclasses.replace(planes(images, 0), draws=10_000, second_draws=4_000)


def quick(tries: int, out: Path | None = None) -> tuple[Settings, list[str]]:
    said: list[str] = []
    return Settings(tries=tries, out=out, gradient_draws=8, control=300, tell=said.append), said


def test_nothing_is_found_inside_and_the_control_finds_what_is_false(tmp_path: Path) -> None:
    settings, said = quick(600, tmp_path)
    assert soak([small()], settings) == 0, said
    figures = json.loads((tmp_path / "attacks.json").read_text())
    assert figures["tries"] >= 600
    assert figures["second votes"] > 20
    assert figures["contradictions"] == 0
    assert figures["found"] == []
    (control,) = (line for line in said if line.startswith("control"))
    assert "radii times 1.25" in control


def test_certificates_that_are_false_fail_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Radii half too large: the soak itself says so, and keeps what it found."""

    def too_large(subject: Subject, settings: Settings) -> dict[str, Certified]:
        held = certificates_of(subject, settings)
        return {name: dataclasses.replace(each, radius=1.5 * each.radius) for name, each in held.items()}

    monkeypatch.setattr(soaking, "certificates_of", too_large)
    settings, said = quick(500, tmp_path)
    assert soak([small()], settings) == 4, said
    found = json.loads((tmp_path / "attacks.json").read_text())["found"]
    assert found
    for each in found:
        assert each["distance"] < each["radius"]
        assert each["votes"][0] < each["votes"][1]


def test_a_control_that_sees_nothing_fails_it() -> None:
    settings, said = quick(100)
    assert soak([dataclasses.replace(small(), too_far=1.0)], settings) == 5, said


def test_on_planes_no_radius_is_larger_than_the_distance() -> None:
    """Which is known without votes and attacks; and the Neyman-Pearson radius comes close to it."""
    subject, (settings, _) = small(50), quick(1)
    assert isinstance(subject.model, Plane)
    distances = subject.model.distances(subject.images)
    held = certificates_of(subject, settings)
    for certified in held.values():
        assert (certified.radius > distances).sum() <= allowed(50, settings.alpha, settings.beta)
    assert (held["neyman_pearson_one_class"].radius > 0.85 * distances).all()


@pytest.mark.parametrize("seed", range(20))
def test_planes_of_any_seed_have_images_at_the_distances_asked_for(seed: int) -> None:
    subject = planes(10, seed)
    assert isinstance(subject.model, Plane)
    expected = subject.noise.scale * np.linspace(0.5, 1.9, 10)
    assert subject.model.distances(subject.images) == pytest.approx(expected, abs=1e-5)


def test_images_are_stretched_as_far_as_the_pixels_allow() -> None:
    random = torch.Generator().manual_seed(0)
    clean = torch.rand((5, 1, 6, 6), generator=random)
    offsets = torch.randn(clean.shape, generator=random)
    sizes = np.array([1e-3, 0.1, 0.5, 1.0, 50.0])
    images = stretched(clean, offsets, sizes)
    assert images.min() >= 0
    assert images.max() <= 1
    distances = distances_of(images, clean)
    assert distances[:4] == pytest.approx(sizes[:4], rel=1e-3)
    farthest = torch.where(offsets > 0, 1 - clean, clean).flatten(1).norm(dim=1)[4]
    assert distances[4] == pytest.approx(float(farthest), rel=1e-5)


def test_what_is_allowed_is_exceeded_with_a_chance_of_beta_at_most() -> None:
    for images, alpha in ((1, 0.001), (700, 0.001), (1000, 0.05)):
        most = allowed(images, alpha, 0.01)
        assert stats.binom.sf(most, images, alpha) <= 0.01
        assert most == 0 or stats.binom.sf(most - 1, images, alpha) > 0.01


def test_an_image_counts_once_and_luck_does_not() -> None:
    def success(image: int, p_value: float) -> soaking.Success:
        return soaking.Success("a", image, "renyi", "square", 0, 1.0, 0.9, 0, [1, 9], p_value)

    score = Score(tries=1000, succeeded=[success(1, 1e-6), success(1, 1e-7), success(2, 1e-3)])
    assert score.contradicted(0.01) == 1
    assert score.contradicted(1.0) == 2


def test_a_class_may_lose_its_majority_and_win_unless_the_certificate_says_otherwise() -> None:
    votes = np.array([[4000, 3000, 3000], [4000, 3000, 3000], [4950, 5050, 0], [5100, 4900, 0]])
    classes = np.array([0, 1, 0, 0])
    most_likely, majority = (p_values_of(name, votes, classes) for name in ("renyi", "neyman_pearson_one_class"))
    beaten = 2 * stats.binom.sf(3999, 7000, 0.5), 2 * stats.binom.sf(5049, 10_000, 0.5)
    assert most_likely == pytest.approx([1, beaten[0], beaten[1], 1], rel=1e-9)
    assert majority[:2] == pytest.approx(2 * stats.binom.cdf([4000, 3000], 10_000, 0.5), rel=1e-9)
    assert majority[2:] == pytest.approx([2 * stats.binom.cdf(4950, 10_000, 0.5), 1], rel=1e-9)
