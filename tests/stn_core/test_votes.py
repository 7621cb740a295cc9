"""Counting votes, against one draw at a time, against a known answer, and under every way of dividing the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from stn_core import Gaussian, count_votes
from stn_core.noise import Draws, Phase
from stn_core.votes import default_batch_size

NOISE = Gaussian(0.5)
CLASSES = 4
SEED = 11
KEYS = [5, 2**64 - 1, 0]
DRAWS = 100

Votes = NDArray[np.int64]


def network() -> nn.Module:
    """A small convolutional network whose votes under the noise are spread over its classes."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 5, CLASSES))


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def count(
    model: nn.Module | None = None, pixels: torch.Tensor | NDArray[np.uint8] | None = None, **changes: Any
) -> Votes:
    arguments: dict[str, Any] = {"noise": NOISE, "draws": DRAWS, "num_classes": CLASSES, "seed": SEED, "keys": KEYS}
    pixels = images() if pixels is None else pixels
    return count_votes(model or network(), pixels, **{**arguments, **changes}).votes


class Logits(nn.Module):
    """A network given by a function of the noisy pixels."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._function(pixels)


def one_by_one(model: nn.Module, phase: Phase = "estimation", first_draw: int = 0) -> Votes:
    votes = np.zeros((len(KEYS), CLASSES), dtype=np.int64)
    model.eval()
    for image, (pixels, key) in enumerate(zip(images(), KEYS, strict=True)):
        for number in range(first_draw, first_draw + DRAWS):
            noise = torch.empty(1, *pixels.shape)
            NOISE.fill(noise, [Draws(SEED, key, phase, number)])
            with torch.no_grad():
                votes[image, int(model(pixels / 255 + noise).argmax())] += 1
    return votes


@pytest.mark.parametrize("phase", ["selection", "estimation"])
@pytest.mark.parametrize("first_draw", [0, 70])
def test_votes_are_what_one_draw_at_a_time_gives(phase: Phase, first_draw: int) -> None:
    votes = count(phase=phase, first_draw=first_draw)
    assert votes.dtype == np.int64
    assert (votes > 0).sum() > len(KEYS)  # the votes are not all alike, so that they can differ
    np.testing.assert_array_equal(votes, one_by_one(network(), phase, first_draw))


def test_votes_follow_a_half_space_of_known_probability() -> None:
    """Class 0 where a pixel of value v exceeds c: probability Phi((v - c) / sigma). The counts lie between the binomial
    quantiles at 5e-7 and 1 - 5e-7: at 20 000 draws a probability off by 0.03 is found with probability above 0.999."""
    model = Logits(lambda pixels: torch.stack([pixels[:, 0, 0, 1] - 0.4, 0 * pixels[:, 0, 0, 1]], dim=1))
    values = np.array([0.0, 0.2, 0.4, 0.8, 1.0])
    pixels = torch.zeros(len(values), 1, 2, 2)
    pixels[:, 0, 0, 1] = torch.from_numpy(values)
    votes = count(model, pixels, keys=range(len(values)), num_classes=2, draws=20_000)
    p = stats.norm.cdf((values - 0.4) / NOISE.sigma)
    assert np.all(votes[:, 0] >= stats.binom.ppf(5e-7, 20_000, p))
    assert np.all(votes[:, 0] <= stats.binom.isf(5e-7, 20_000, p))
    assert np.all(votes.sum(axis=1) == 20_000)


@pytest.mark.parametrize("at", [0, 1, 37, 64, DRAWS])
def test_draws_counted_in_two_parts_add_up(at: int) -> None:
    parts = count(draws=at) + count(draws=DRAWS - at, first_draw=at)
    np.testing.assert_array_equal(parts, count())


def test_images_counted_apart_or_in_another_order_keep_their_votes() -> None:
    together = count()
    apart = [count(pixels=images()[i : i + 1], keys=KEYS[i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(apart), together)
    np.testing.assert_array_equal(count(pixels=images().flip(0), keys=KEYS[::-1]), together[::-1])


@pytest.mark.parametrize("batch_size", [16, 32, 64, None])
def test_batch_size_changes_no_vote(batch_size: int | None) -> None:
    np.testing.assert_array_equal(count(batch_size=batch_size), count(batch_size=48))


@pytest.mark.parametrize(
    "same",
    [images() / 255, images().double() / 255, images().numpy(), images().numpy() / 255],
    ids=["float32", "float64", "numpy uint8", "numpy float64"],
)
def test_kinds_of_pixels_agree(same: torch.Tensor) -> None:
    np.testing.assert_array_equal(count(pixels=same), count())


def test_noise_is_added_to_pixels_in_unit_range_and_never_clipped() -> None:
    seen: list[torch.Tensor] = []

    def look(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.clone())
        return torch.zeros(len(pixels), CLASSES)

    count(Logits(look), draws=8, batch_size=8)
    expected = torch.empty(24, 3, 5, 5)
    NOISE.fill(expected, [Draws(SEED, key, "estimation", number) for key in KEYS for number in range(8)])
    expected += images().repeat_interleave(8, dim=0) / 255
    torch.testing.assert_close(torch.cat(seen), expected, rtol=0, atol=1e-6)
    assert expected.min() < 0
    assert expected.max() > 1


@pytest.mark.parametrize("change", [{"seed": 12}, {"keys": [6, 7, 8]}, {"phase": "selection"}, {"first_draw": DRAWS}])
def test_another_identity_gives_other_votes(change: Mapping[str, Any]) -> None:
    assert not np.array_equal(count(**change), count())


def test_counting_again_gives_the_same_votes() -> None:
    np.testing.assert_array_equal(count(), count())


def test_caller_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.random(3)
    first = count(model := network())
    torch.manual_seed(0)
    np.random.seed(0)
    second = count(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.random(3), before[1])
    np.testing.assert_array_equal(first, second)


def test_training_modes_are_restored_module_by_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), nn.Sequential(nn.Linear(75, CLASSES)))
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}
    count(model)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="num_classes"):
        count(model, num_classes=CLASSES + 1)
    assert [module.training for module in model.modules()] == modes


def test_dropout_and_batch_statistics_are_off() -> None:
    model = network()
    noisy_in_training = nn.Sequential(nn.BatchNorm2d(3, eps=0.0), nn.Dropout(0.9), model).train()
    np.testing.assert_array_equal(count(noisy_in_training), count(model))
    assert noisy_in_training[0].num_batches_tracked == 0


@pytest.mark.parametrize("column", range(CLASSES))
def test_a_nan_logit_votes_for_no_class(column: int) -> None:
    def with_nan(pixels: torch.Tensor) -> torch.Tensor:
        logits = pixels.flatten(1)[:, :CLASSES].clone()
        logits[pixels[:, 0, 0, 0] < 0, column] = float("nan")
        return logits

    noise = torch.empty(len(KEYS) * DRAWS, 3, 5, 5)
    NOISE.fill(noise, [Draws(SEED, key, "estimation", number) for key in KEYS for number in range(DRAWS)])
    noisy = noise.view(len(KEYS), DRAWS, 75) + images().view(len(KEYS), 1, 75) / 255
    invalid = (noisy[:, :, 0] < 0).sum(dim=1).numpy()
    votes = count(Logits(with_nan))
    assert 0 < invalid.sum() < len(KEYS) * DRAWS
    np.testing.assert_array_equal(votes.sum(axis=1), DRAWS - invalid)
    winners = noisy[:, :, :CLASSES].argmax(dim=2)
    for image in range(len(KEYS)):
        valid_winners = winners[image][noisy[image, :, 0] >= 0].numpy()
        np.testing.assert_array_equal(votes[image], np.bincount(valid_winners, minlength=CLASSES))


def test_a_network_of_nan_gets_no_votes_and_one_of_infinities_does() -> None:
    assert not count(Logits(lambda pixels: torch.full((len(pixels), CLASSES), float("nan")))).any()
    infinite = torch.tensor([-float("inf"), 0.0, float("inf"), 1.0])
    assert count(Logits(lambda pixels: infinite.expand(len(pixels), -1)))[:, 2].tolist() == [DRAWS] * 3


def test_equal_logits_vote_for_the_lowest_class() -> None:
    tied = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert count(Logits(lambda pixels: tied.expand(len(pixels), -1)))[:, 1].tolist() == [DRAWS] * 3


def test_no_draws_give_no_votes() -> None:
    votes = count(draws=0)
    assert votes.shape == (3, CLASSES)
    assert not votes.any()


def test_no_images_give_an_empty_table() -> None:
    assert count(pixels=images()[:0], keys=[]).shape == (0, CLASSES)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_counts_every_draw_and_nearly_the_same_votes(precision: str) -> None:
    votes, exact = count(precision=precision), count()
    assert np.all(votes.sum(axis=1) == DRAWS)
    assert np.abs(votes - exact).max() <= DRAWS // 10


def test_every_forward_pass_has_batch_size_rows() -> None:
    rows: list[int] = []

    def look(pixels: torch.Tensor) -> torch.Tensor:
        rows.append(len(pixels))
        return torch.zeros(len(pixels), CLASSES)

    count(Logits(look), draws=7, batch_size=16)
    assert rows == [16, 16]  # 3 images x 7 draws = 21 rows, the second pass padded


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_network_gets_pixels_in_its_own_memory_layout_and_votes_alike(layout: torch.memory_format) -> None:
    seen: list[bool] = []
    model = network().to(memory_format=layout)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=layout)))
    np.testing.assert_array_equal(count(model), count())
    assert seen
    assert all(seen)


def test_a_network_may_write_to_its_input() -> None:
    model = network()
    in_place = Logits(lambda pixels: model(pixels.sub_(0.5).div_(0.25)))
    apart = Logits(lambda pixels: model((pixels - 0.5) / 0.25))
    np.testing.assert_array_equal(count(in_place, batch_size=16), count(apart, batch_size=16))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("pixels", [0, 1, 3 * 32 * 32, 3 * 224 * 224, 10**9])
def test_default_batch_sizes_are_powers_of_two_from_16(device: str, pixels: int) -> None:
    size = default_batch_size(pixels, torch.device(device))
    assert size >= 16
    assert size & (size - 1) == 0


def pixel(value: float) -> torch.Tensor:
    """Valid images but for one pixel."""
    changed = images() / 255
    changed[1, 2, 3, 4] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": images()[0]}, r"images .*\(images, channels, height, width\)"),
        ({"pixels": images().int()}, "images .*uint8 or floating point"),
        ({"pixels": pixel(1.001)}, r"images .*\[0, 1\]"),
        ({"pixels": pixel(-0.001)}, r"images .*\[0, 1\]"),
        ({"pixels": pixel(float("nan"))}, r"images .*\[0, 1\]"),
        ({"keys": KEYS[:2]}, "keys .*3 images, 2 keys"),
        ({"keys": [1, 2, -1]}, "keys .*-1"),
        ({"keys": [1, 2, 2**64]}, "keys .*18446744073709551616"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"draws": -1}, "draws"),
        ({"first_draw": -1}, "first_draw"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": CLASSES + 1}, r"model must return .*num_classes.*got \(.*, 4\)"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "float64"}, "precision .*float64"),
        ({"phase": "training"}, "phase"),
        ({"model": Logits(lambda pixels: torch.zeros(len(pixels)))}, "model must return"),
        ({"model": Logits(lambda pixels: torch.zeros(len(pixels), CLASSES, 1))}, "model must return"),
        ({"model": Logits(lambda pixels: torch.zeros(1, CLASSES))}, "model must return"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_refuses_and_names(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(**changes)


@pytest.fixture
def warnings_every_time() -> Iterator[None]:
    """torch warns of most things once per process only, perhaps in another test."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("warnings_every_time")
def test_read_only_arrays_are_accepted() -> None:
    pixels = images().numpy()
    pixels.flags.writeable = False
    np.testing.assert_array_equal(count(pixels=pixels), count())
