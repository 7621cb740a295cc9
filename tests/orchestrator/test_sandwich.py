"""Attempts held against certificates, and the masking check: on tables made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom, binomtest

from orchestrator.attacking.masking import masking_check
from orchestrator.attacking.robustness import ATTEMPTS_SCHEMA, ROBUSTNESS_SCHEMA, Attacked, Description
from orchestrator.attacking.sandwich import Sandwich, sandwich
from orchestrator.attacking.text import masking_text, sandwich_text
from orchestrator.reducing.tables import Line
from stn_core.prediction import predict
from workers import counts_table
from workers.attack_settings import CarliniWagner, ProjectedGradient, Square
from workers.settings import Model

DRAWS = 100


def row(
    attack: str, norm: str, index: int, size: float, distance: float, votes: tuple[int, ...], alpha: float = 0.001
) -> dict[str, Any]:
    """Of an image of class 0; the distance is that of all norms."""
    predicted = predict(np.array([votes]))
    answer = int(predicted.answer(alpha)[0])
    return {
        "attack": attack,
        "norm": norm,
        "index": index,
        "key": index,
        "label": 0,
        "size": size,
        "l1": distance,
        "l2": distance,
        "linf": distance,
        "votes": [{"class": c, "votes": v} for c, v in enumerate(votes) if v],
        "draws": DRAWS,
        "prediction": None if answer < 0 else answer,
        "p_value": float(predicted.p_value[0]),
        "correct": answer == 0,
    }


def attacked_of(rows: list[dict[str, Any]], **descriptions: Any) -> Attacked:
    found = {name: Description(name, attack, DRAWS, 0, 0, None) for name, attack in descriptions.items()}
    return Attacked(
        found, pa.Table.from_pylist(rows, schema=ATTEMPTS_SCHEMA), ROBUSTNESS_SCHEMA.empty_table(), alpha=0.001
    )


def held(rows: list[dict[str, Any]], radii: list[float], **changes: Any) -> Sandwich:
    """Against certificates of class 0 with these radii, of images 0, 1, …"""
    certificates = pa.table(
        {
            "index": range(len(radii)),
            "prediction": pa.array([0] * len(radii), pa.int64()),
            "correct": [True] * len(radii),
            "radius": radii,
        }
    )
    values = {"images": len(radii), "alpha": 0.001, "beta": 0.01, **changes}
    return sandwich(Line("renyi", "split"), certificates, attacked_of(rows), **values)


def test_what_holds_within_radii_is_between_the_curves() -> None:
    rows = [row("a", "l2", image, 1.0, 1.0, (100, 0, 0)) for image in range(3)]
    rows += [row("a", "l2", image, 3.0, 3.0, (10, 90, 0)) for image in range(2)]
    found = held(rows, [1.5, 2.0, 0.5])
    assert found.holds
    assert (found.images, found.tries, found.undecided) == (2, 2, 0)
    by_radius = {
        step: (low, high) for step, low, high in zip(found.radius, found.certified, found.attacked, strict=True)
    }
    assert by_radius == {
        0.0: (1, 1),
        0.5: (1, 1),
        1.5: (2 / 3, 1),
        2.0: (1 / 3, 1),
        3.0: (0, pytest.approx(1)),
    }
    assert "none surely answered otherwise" in sandwich_text(found)[0]


def test_another_class_within_a_radius_contradicts() -> None:
    found = held([row("a", "linf", 0, 0.1, 1.0, (5, 95, 0))], [1.5, 1.0])
    assert not found.holds
    (one,) = found.contradictions
    assert (one.index, one.attack, one.distance, one.radius, one.certified, one.answered) == (0, "a", 1.0, 1.5, 0, 1)
    assert one.p_value == pytest.approx(binomtest(95, 100).pvalue)
    text = " ".join(sandwich_text(found))
    assert "CONTRADICTED" in text
    assert "image 0, attack a: class 1 at distance 1" in text


def test_a_broken_image_among_certified_ones_makes_the_curves_cross() -> None:
    found = held([row("a", "l2", 0, 1.0, 1.0, (5, 95, 0))], [1.5, 1.5])
    (crossing,) = found.crossings
    assert (crossing.size, crossing.certified, crossing.attacked) == (1.5, 1.0, 0.5)
    assert "falls under the certified one at 1.5" in " ".join(sandwich_text(found))


def test_just_outside_a_radius_nothing_is_contradicted() -> None:
    assert held([row("a", "l2", 0, 2.0, 1.5001, (0, 100, 0))], [1.5]).holds
    assert not held([row("a", "l2", 0, 2.0, 1.4999, (0, 100, 0))], [1.5]).holds


def test_votes_that_decide_nothing_contradict_nothing() -> None:
    found = held([row("a", "l2", 0, 1.0, 1.0, (45, 55, 0))], [1.5])
    assert found.holds
    assert found.undecided == 1


def test_an_abstaining_or_missing_image_has_no_certificate_to_contradict() -> None:
    certificates = pa.table(
        {
            "index": [0],
            "prediction": pa.array([None], pa.int64()),
            "correct": [False],
            "radius": [0.0],
        }
    )
    rows = [row("a", "l2", 0, 1.0, 0.0, (0, 100, 0)), row("a", "l2", 7, 1.0, 0.5, (0, 100, 0))]
    options = {"images": 2, "alpha": 0.001, "beta": 0.01}
    assert sandwich(Line("renyi", "split"), certificates, attacked_of(rows), **options).tries == 0
    assert sandwich(Line("renyi", "split"), certificates.slice(0, 0), attacked_of(rows), **options).holds


def test_chance_of_the_votes_is_paid_for_by_the_number_of_tries() -> None:
    """Of honest certificates whose attacked images are a coin's throw between two classes, contradictions are so rare
    that of 300 runs with 50 tries each hardly any has one; at the attacks' own alpha many would."""
    random = np.random.default_rng(0)
    contradicted = crossed = wrong = 0
    for _ in range(300):
        votes = random.binomial(DRAWS, 0.5, 50)
        rows = [row("a", "l2", image, 1.0, 1.0, (DRAWS - other, other, 0)) for image, other in enumerate(votes)]
        found = held(rows, [1.5] * 50, beta=0.1)
        contradicted += bool(found.contradictions)
        crossed += bool(found.crossings)
        wrong += sum(one["prediction"] == 1 for one in rows)
    assert contradicted <= binom.isf(1e-6, 300, 0.1)
    assert crossed == contradicted, "of 50 certified images one that is surely broken"
    assert wrong > 0


def test_chance_of_the_votes_is_paid_for_once_by_all_lines_together() -> None:
    """Of ten lines, each of which certifies another image, hardly any is contradicted by coins in any of them."""
    random = np.random.default_rng(0)
    contradicted = wrong = 0
    for _ in range(200):
        votes = random.binomial(DRAWS, 0.5, 10)
        rows = [row("a", "l2", image, 1.0, 1.0, (DRAWS - v, v, 0), alpha=0.2) for image, v in enumerate(votes)]
        lines = [held(rows, [1.5 * (own == image) for own in range(10)], beta=0.1) for image in range(10)]
        contradicted += not all(found.holds for found in lines)
        wrong += any(one["prediction"] == 1 for one in rows)
    assert contradicted <= binom.isf(1e-6, 200, 0.1)
    assert wrong > binom.isf(1e-6, 200, 0.1)


def test_clean_images_are_no_tries_but_held_to_their_certificates() -> None:
    rows = [row("a", "l2", 0, 0.0, 0.0, (100, 0, 0)), row("a", "l2", 0, 3.0, 3.0, (100, 0, 0))]
    found = held(rows, [1.5])
    assert (found.images, found.tries) == (0, 0)
    assert "nothing is tested" in sandwich_text(found)[0]
    found = held([row("a", "l2", 0, 0.0, 0.0, (0, 100, 0))], [1.5])
    assert found.tries == 0
    assert not found.holds
    assert "CONTRADICTED" in sandwich_text(found)[0]


def test_an_answer_that_is_not_sure_enough_for_all_attempts_is_told() -> None:
    rows = [row("a", "l2", 0, 1.0, 1.0, (32, 68, 0)), *(row("a", "l2", 1, 3.0, 3.0, (100, 0, 0)) for _ in range(99))]
    found = held(rows, [1.5, 1.5])
    assert found.holds
    assert (found.tries, found.undecided, found.unsure) == (1, 0, 1)
    assert "1 answered otherwise, which may be chance" in sandwich_text(found)[0]


@pytest.mark.parametrize(("votes", "tries"), [(17, 0), (18, 1)])
def test_votes_too_few_to_contradict_are_no_tries(votes: int, tries: int) -> None:
    rows = [{**row("a", "l2", 0, 1.0, 1.0, (0, votes, 0)), "draws": votes}]
    rows += [row("a", "l2", 1, 3.0, 3.0, (100, 0, 0)) for _ in range(999)]
    found = held(rows, [1.5, 1.5])
    assert found.needed == 18
    assert (found.tries, found.mute, found.holds) == (tries, 1 - tries, not tries)
    assert ("too few votes to contradict (it takes 18): nothing is tested" in sandwich_text(found)[0]) == (not tries)


def test_allowed_is_the_least_number_that_chance_exceeds_with_beta_at_most() -> None:
    rows = [row("a", "l2", image, 1.0, 1.0, (100, 0, 0)) for image in range(30)]
    found = held(rows, [1.5] * 30 + [0.0] * 10, alpha=0.05, beta=0.01)
    exact = [sum(binom.pmf(k, 40, 0.05) for k in range(most + 1, 41)) for most in range(41)]
    assert exact[found.allowed] <= 0.01 < exact[found.allowed - 1]


PGD = ProjectedGradient(kind="pgd", norm="l2", sizes=(1.0,), steps=10, draws=8)


def standings(**robust: list[bool]) -> list[dict[str, Any]]:
    rows = []
    for name, each in robust.items():
        for image, good in enumerate(each):
            rows.append(row(name, "l2", image, 0.0, 0.0, (100, 0, 0)))
            rows.append(row(name, "l2", image, 1.0, 1.0, (100, 0, 0) if good else (0, 100, 0)))
    return rows


def test_stronger_variants_are_held_against_the_weakest_and_others_against_the_strongest() -> None:
    more = PGD.model_copy(update={"steps": 40, "draws": 32})
    square = Square(kind="square", norm="l2", sizes=(1.0,))
    transfer = PGD.model_copy(update={"source": Model(name="mnist", weights="x")})
    cw = CarliniWagner(kind="cw", sizes=(1.0,))
    rows = standings(
        pgd=[True, False, True], more=[True, False, False], square=[True] * 3, transfer=[True] * 3, cw=[False] * 3
    )
    check = masking_check(attacked_of(rows, pgd=PGD, more=more, square=square, transfer=transfer, cw=cw))
    assert [(one.white_box, one.other, one.relation) for one in check] == [
        ("cw", "square", "gradient-free"),
        ("cw", "transfer", "transfer from mnist"),
        ("pgd", "more", "draws 8 → 32, steps 10 → 40"),
    ]
    (variant,) = [one for one in check if one.other == "more"]
    assert (variant.robust, variant.other_robust, variant.only_other, variant.only_white_box) == (2, 1, 1, 0)
    assert variant.p_value == 0.5
    assert "no sign" in masking_text(check)


def test_what_beats_the_white_box_attack_is_told() -> None:
    square = Square(kind="square", norm="l2", sizes=(1.0,))
    rows = standings(pgd=[True] * 20, square=[False] * 12 + [True] * 8)
    (one,) = masking_check(attacked_of(rows, pgd=PGD, square=square))
    assert one.beats
    assert one.p_value == pytest.approx(0.5**12)
    assert masking_text([one]).startswith("GRADIENTS MAY BE MASKED, or pgd be too weak; stronger: square")


@pytest.mark.parametrize("images", [6, 7])
def test_comparisons_on_too_few_images_to_find_anything_say_so(images: int) -> None:
    square = Square(kind="square", norm="l2", sizes=(1.0,))
    (most,) = masking_check(
        attacked_of(standings(pgd=[True] * images, square=[False] * images), pgd=PGD, square=square)
    )
    assert most.beats == (images == 7)
    none = masking_check(attacked_of(standings(pgd=[True] * images, square=[True] * images), pgd=PGD, square=square))
    assert ("on fewer than 7 images, too few" in masking_text(none)) == (images == 6)


def test_equally_strong_attacks_beat_none_but_by_chance() -> None:
    square = Square(kind="square", norm="l2", sizes=(1.0,))
    random = np.random.default_rng(1)
    beats = 0
    for _ in range(200):
        rows = standings(pgd=(random.random(30) < 0.5).tolist(), square=(random.random(30) < 0.5).tolist())
        beats += masking_check(attacked_of(rows, pgd=PGD, square=square))[0].beats
    assert beats <= binom.isf(1e-6, 200, 0.01)


def test_votes_of_the_tables_are_those_that_are_tested() -> None:
    table = attacked_of([row("a", "l2", 0, 1.0, 1.0, (5, 95, 0))]).attempts
    assert counts_table.dense(table["votes"], 3).tolist() == [[5, 95, 0]]


def test_attacks_without_images_in_common_show_nothing() -> None:
    square = Square(kind="square", norm="l2", sizes=(1.0,))
    check = masking_check(attacked_of(standings(pgd=[True] * 3), pgd=PGD, square=square))
    assert check == []
    assert "not checked" in masking_text(check)


def test_sizes_that_only_one_attack_was_made_at_give_it_no_chance_more() -> None:
    twice = PGD.model_copy(update={"sizes": (0.5, 1.0)})
    square = Square(kind="square", norm="l2", sizes=(1.0,))
    rows = standings(pgd=[True] * 4, square=[True] * 4)
    rows += [row("pgd", "l2", image, 0.5, 0.5, (0, 100, 0)) for image in range(4)]
    (one,) = masking_check(attacked_of(rows, pgd=twice, square=square))
    assert (one.robust, one.other_robust) == (4, 4)
