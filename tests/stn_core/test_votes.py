"""Counting votes, against one draw at a time, against a known answer, and under every way of dividing the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from stn_core import DiscreteGaussian, Gaussian, Laplace, Splitting, Tally, Uniform, count_votes
from stn_core.noise import Draws, Noise, Phase
from stn_core.votes import default_batch_size

NOISE = Gaussian(0.5)
#: One of every kind.
KINDS: list[Noise] = [NOISE, Laplace(0.4), Uniform(0.8), DiscreteGaussian(0.5), Splitting(0.2)]
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


def tally_of(
    model: nn.Module | None = None, pixels: torch.Tensor | NDArray[np.uint8] | None = None, **changes: Any
) -> Tally:
    arguments: dict[str, Any] = {"noise": NOISE, "draws": DRAWS, "num_classes": CLASSES, "seed": SEED, "keys": KEYS}
    pixels = images() if pixels is None else pixels
    return count_votes(model or network(), pixels, **{**arguments, **changes})


def count(
    model: nn.Module | None = None, pixels: torch.Tensor | NDArray[np.uint8] | None = None, **changes: Any
) -> Votes:
    return tally_of(model, pixels, **changes).votes


class Logits(nn.Module):
    """A network given by a function of the noisy pixels."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._function(pixels)


class Recorded(nn.Module):
    """A network whose logits are kept."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self.logits: list[torch.Tensor] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self._model(pixels)
        self.logits.append(logits)
        return logits


def tally_by_hand(logits: Sequence[torch.Tensor], rows: int) -> Tally:
    """Row by row, in Python's own numbers; ``rows`` of each image, rows that pad the last batch left out."""
    table = torch.cat(list(logits)).tolist()[: rows * len(KEYS)]
    votes, invalid, ties = np.zeros((len(KEYS), CLASSES), int), np.zeros(len(KEYS), int), np.zeros(len(KEYS), int)
    for i, row in enumerate(table):
        if any(value != value for value in row):
            invalid[i // rows] += 1
            continue
        votes[i // rows, row.index(max(row))] += 1
        ties[i // rows] += row.count(max(row)) > 1
    return Tally(votes, invalid, ties)


def assert_same(one: Tally, other: Tally) -> None:
    for field in ("votes", "invalid", "ties"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def faulty(pixels: torch.Tensor) -> torch.Tensor:
    """Logits of which some are equal, and some NaN or infinite, under every kind of noise."""
    parts = torch.remainder(pixels.flatten(1) * 37, 1)
    logits = (4 * parts[:, :CLASSES]).floor()
    logits[parts[:, 4:8] > 0.9] = float("inf")
    logits[parts[:, 8:12] > 0.9] = -float("inf")
    logits[parts[:, 12:16] > 0.9] = float("nan")
    return logits


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


def test_ties_are_equal_largest_logits() -> None:
    """Not equal smaller ones, not those next to each other; infinities are equal to each other, NaN to nothing."""
    inf, nan = float("inf"), float("nan")
    rows = {
        (0.0, 1.0, 1.0, 0.5): True,
        (1.0, 1.0, 1.0, 1.0): True,
        (1.0, 0.0, 0.0, 0.0): False,
        (0.0, -0.0, -1.0, -2.0): True,
        (inf, 0.0, inf, 1.0): True,
        (inf, 0.0, 0.0, -inf): False,
        (-inf, -inf, -inf, -inf): True,
        (-inf, -inf, -inf, 0.0): False,
        (1.0, float(np.nextafter(np.float32(1), np.float32(2))), 0.0, 0.0): False,
        (nan, 1.0, 1.0, 0.0): False,
        (inf, inf, 0.0, nan): False,
        (nan, nan, nan, nan): False,
    }
    for row, tied in rows.items():
        logits = torch.tensor(row)
        tally = tally_of(Logits(lambda pixels, logits=logits: logits.expand(len(pixels), -1)), draws=5)
        valid = not np.isnan(row).any()
        assert tally.ties.tolist() == [5 * tied] * 3, row
        assert tally.invalid.tolist() == [5 * (not valid)] * 3, row
        # The lowest of the largest gets the votes.
        assert tally.votes[:, row.index(max(row))].tolist() == [5 * valid] * 3, row
        assert tally.votes.sum() == 15 * valid


@pytest.mark.parametrize("noise", KINDS, ids=repr)
@pytest.mark.parametrize("batch_size", [1, 7, 16, 64, 1000, None])
def test_every_draw_is_a_vote_or_invalid(noise: Noise, batch_size: int | None) -> None:
    """Whatever the noise and the batch: votes, invalid draws and ties are those of the logits one by one."""
    draws = 102
    model = Recorded(Logits(faulty))
    tally = tally_of(model, noise=noise, draws=draws, batch_size=batch_size)
    assert_same(tally, tally_by_hand(model.logits, draws))
    assert_same(tally, tally_of(Logits(faulty), noise=noise, draws=draws, batch_size=48))
    for counts in (tally.votes, tally.invalid, tally.ties):
        assert counts.dtype == np.int64
    assert tally.votes.shape == (3, CLASSES)
    assert tally.invalid.shape == tally.ties.shape == (3,)
    np.testing.assert_array_equal(tally.votes.sum(axis=1) + tally.invalid, draws)
    assert np.all((tally.votes.min(axis=1) > 0) & (tally.ties > 0) & (tally.invalid > 0))
    assert np.all(tally.ties <= tally.votes.sum(axis=1))


@pytest.mark.parametrize("noise", KINDS, ids=repr)
@pytest.mark.parametrize("batch_size", [16, 32, 64, None])
def test_a_networks_tally_is_the_same_in_any_batch(noise: Noise, batch_size: int | None) -> None:
    """For draws that do not fill the batches, in one part or several, as one image or among others."""
    whole = tally_of(noise=noise, draws=102, batch_size=48)
    assert_same(tally_of(noise=noise, draws=102, batch_size=batch_size), whole)
    parts = [tally_of(noise=noise, draws=51, first_draw=first, batch_size=batch_size) for first in (0, 51)]
    np.testing.assert_array_equal(parts[0].votes + parts[1].votes, whole.votes)
    alone = tally_of(pixels=images()[1:2], keys=KEYS[1:2], noise=noise, draws=102, batch_size=batch_size)
    np.testing.assert_array_equal(alone.votes[0], whole.votes[1])
    assert (whole.votes > 0).sum() > len(KEYS)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_ties_of_low_precision_are_counted(precision: str) -> None:
    """Logits of 8 or 11 binary digits are equal now and then, where those of 24 never are."""
    model = Recorded(network())
    tally = tally_of(model, precision=precision, draws=4000, batch_size=64)
    assert {logits.dtype for logits in model.logits} == {getattr(torch, precision)}
    assert_same(tally, tally_by_hand(model.logits, 4000))
    assert tally.ties.sum() > 0
    assert np.all(tally.votes.sum(axis=1) == 4000)
    assert not tally_of(draws=4000, batch_size=64).ties.any()


def test_padding_of_the_last_batch_counts_nowhere() -> None:
    """Three images of 7 draws in batches of 16: eleven rows too many, all of which would be tied."""
    tied = tally_of(Logits(lambda pixels: torch.zeros(len(pixels), CLASSES)), draws=7, batch_size=16)
    assert tied.ties.tolist() == [7] * 3
    assert tied.votes[:, 0].tolist() == [7] * 3
    broken = tally_of(Logits(lambda pixels: torch.full((len(pixels), CLASSES), float("nan"))), draws=7, batch_size=16)
    assert broken.invalid.tolist() == [7] * 3
    assert not broken.ties.any()


def test_no_draws_give_no_votes() -> None:
    tally = tally_of(draws=0)
    assert tally.votes.shape == (3, CLASSES)
    assert tally.invalid.shape == tally.ties.shape == (3,)
    assert not any(counts.any() for counts in (tally.votes, tally.invalid, tally.ties))


def test_no_images_give_an_empty_table() -> None:
    tally = tally_of(pixels=images()[:0], keys=[])
    assert tally.votes.shape == (0, CLASSES)
    assert tally.invalid.shape == tally.ties.shape == (0,)


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


amounts = st.lists(st.integers(0, 40), min_size=3, max_size=3)


@settings(deadline=None, max_examples=60)
@given(draws=amounts, first_draw=amounts, batch_size=st.sampled_from([1, 16, 48, None]))
def test_draws_of_each_image_are_those_of_separate_calls(
    draws: list[int], first_draw: list[int], batch_size: int | None
) -> None:
    together = tally_of(
        Logits(faulty), draws=np.array(draws), first_draw=np.array(first_draw), batch_size=batch_size, keys=KEYS
    )
    for i in range(3):
        alone = tally_of(
            Logits(faulty), images()[i : i + 1], draws=draws[i], first_draw=first_draw[i], keys=KEYS[i : i + 1]
        )
        for field in ("votes", "invalid", "ties"):
            np.testing.assert_array_equal(getattr(together, field)[i], getattr(alone, field)[0], err_msg=field)
    np.testing.assert_array_equal(together.votes.sum(axis=1) + together.invalid, draws)


@pytest.mark.parametrize("draws", [[0, 50, 0], [50, 0, 7], [0, 0, 1]])
def test_images_without_draws_have_no_votes_and_take_none_from_others(draws: list[int]) -> None:
    votes = count(draws=draws)
    np.testing.assert_array_equal(votes.sum(axis=1), draws)
    for i in np.flatnonzero(draws):
        np.testing.assert_array_equal(votes[i], count(draws=draws[i])[i])


@pytest.mark.parametrize("name", ["draws", "first_draw"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], r"be one number or one per image, \(3,\), got shape \(2,\)"),
        ([[1, 2, 3]], r"be one number or one per image, \(3,\), got shape \(1, 3\)"),
        ([1, -2, 3], "not be negative, got -2"),
        ([1.0, 2.0, 3.0], "be whole numbers, got float64"),
        (np.array([True, False, True]), "be whole numbers, got bool"),
        (2.5, "be whole numbers, got 2.5"),
        ("12", "be whole numbers"),
    ],
    ids=str,
)
def test_draws_of_each_image_must_be_counts(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must {reason}"):
        count(**{name: value})


class Cramped(nn.Module):
    """A network for whose rows memory suffices only up to a number, which changes from pass to pass."""

    def __init__(self, model: nn.Module, error: Exception, most: Sequence[int]) -> None:
        super().__init__()
        self._model, self._error, self._most = model, error, list(most)
        self.sizes: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        most = self._most.pop(0) if len(self._most) > 1 else self._most[0]
        if len(pixels) > most:
            raise self._error
        self.sizes.append(len(pixels))
        return self._model(pixels)


def allocation_error() -> Exception:
    """What the CPU's allocator says, in its own words."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),
    MemoryError(),
    allocation_error(),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("noise", KINDS, ids=repr)
def test_batches_are_halved_until_they_fit(noise: Noise, error: Exception) -> None:
    model = Cramped(network(), error, [20])
    with pytest.warns(RuntimeWarning, match="out of memory with 64 noisy images at a time: went on with 16") as told:
        tally = tally_of(model, noise=noise, batch_size=64)
    assert len(told) == 1
    assert set(model.sizes) == {16}
    assert_same(tally, tally_of(noise=noise, batch_size=64))


@pytest.mark.parametrize("logits", [None, faulty], ids=["network", "NaN and ties"])
@pytest.mark.parametrize(
    "most",
    [[64, 64, 63], [64, 40, 16], [64, 64, 64, 0, 64], [64, 0, 0, 64, 0, 16]],
    ids=["in the third pass", "twice", "in the last pass, for a while", "over and over"],
)
def test_running_out_of_memory_midway_changes_no_count(
    logits: Callable[[torch.Tensor], torch.Tensor] | None, most: list[int]
) -> None:
    """Each pass that failed is done again, nothing is counted twice, and later passes are as small."""
    own = network() if logits is None else Logits(logits)
    model = Cramped(own, MEMORY_ERRORS[0], most)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        tally = tally_of(model, batch_size=64, draws=[100, 3, 150], first_draw=[0, 7, 2])
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert model.sizes[0] == 64 > model.sizes[-1]
    assert_same(tally, tally_of(own, batch_size=64, draws=[100, 3, 150], first_draw=[0, 7, 2]))


def test_memory_for_single_rows_is_enough_and_for_none_is_an_error() -> None:
    with pytest.warns(RuntimeWarning, match="went on with 1$"):
        tally = tally_of(Cramped(Logits(faulty), MEMORY_ERRORS[0], [1]), batch_size=13)
    assert_same(tally, tally_of(Logits(faulty), batch_size=13))
    with pytest.raises(MemoryError, match="memory of cpu does not suffice for one noisy image") as caught:
        tally_of(Cramped(network(), MEMORY_ERRORS[0], [0]))
    assert caught.value.__cause__ is MEMORY_ERRORS[0]


def test_noise_that_finds_no_memory_is_drawn_again_in_smaller_batches() -> None:
    class Hungry(Gaussian):
        def perturb(self, rows: torch.Tensor, *rest: Any) -> None:
            super().perturb(rows, *rest)
            if len(rows) > 32:
                raise MemoryError

    with pytest.warns(RuntimeWarning, match="went on with 32"):
        tally = tally_of(noise=Hungry(0.5), batch_size=64)
    assert_same(tally, tally_of())


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count(nn.Sequential(nn.Flatten(), nn.Linear(74, CLASSES)))


def test_a_network_that_mixes_rows_would_be_noticed() -> None:
    """The equality that is held for other batches is no accident of this file's networks."""
    mixed = Logits(lambda pixels: pixels.flatten(1)[:, :CLASSES] - pixels.flatten(1)[:, :CLASSES].mean(dim=0))
    assert not np.array_equal(count(mixed, batch_size=64), count(mixed, batch_size=16))
