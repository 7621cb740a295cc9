from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_core import audit
from stn_core.audit import NOTHING, Claim, Standing, Terms, has_rule, standings
from stn_core.certificates import CERTIFICATES
from stn_core.certify import certify, certify_outcomes
from stn_core.confidence import PROTOCOLS, outcomes_of_looks
from stn_core.looks import Looks
from stn_core.noise import Gaussian, Laplace, Noise, Splitting, Uniform

NOISES: dict[str, Noise] = {
    "gaussian": Gaussian(0.37),
    "laplace": Laplace(0.21),
    "uniform": Uniform(0.44),
    "splitting": Splitting(0.4),
}
SPLITTING_DRAWS = 204
ONE_CLASS = "neyman_pearson_one_class"

#: Every certificate under every protocol that fits it.
LINES = [
    (name, protocol)
    for name, certificate in CERTIFICATES.items()
    for protocol in PROTOCOLS
    if (protocol == "exact") == (certificate.noise == "splitting")
]


@dataclasses.dataclass(frozen=True)
class Image:
    """One image's votes, as ``audit`` takes them."""

    estimation: Sequence[int]
    selection: Sequence[int]
    label: int
    draws: int
    uniform: float | None = None

    def audit(self, terms: Terms, claim: Claim) -> list[str]:
        return audit.audit(terms, claim, **vars(self))


def terms_of(certificate: str, protocol: str, image: Image, alpha: float = 0.05) -> Terms:
    return Terms(
        certificate,
        protocol,
        scale=NOISES[CERTIFICATES[certificate].noise].scale,
        alpha=alpha,
        classes=len(image.estimation),
        dimension=784,
        interval="clopper_pearson" if image.uniform is None else "randomised",
        stages=(image.draws // 2 + 1, image.draws) if protocol == "stages" else (),
    )


def produced(terms: Terms, image: Image) -> Claim:
    """What production publishes."""
    found = certify(
        np.array([image.estimation]),
        np.array([image.selection]),
        np.array([image.label]),
        certificate=terms.certificate,
        protocol=terms.protocol,
        noise=NOISES[CERTIFICATES[terms.certificate].noise],
        alpha=terms.alpha,
        draws=image.draws,
        dimension=terms.dimension,
        uniform=None if image.uniform is None else [image.uniform],
        stages=terms.stages or None,
    )
    prediction = None if found.abstain[0] else int(found.prediction[0])
    return Claim(prediction, float(found.p1_lower[0]), float(found.p2_upper[0]), float(found.radius[0]))


# --- Independence --------------------------------------------------------------------------------------------------


def test_none_of_the_code_under_audit_is_imported() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(audit.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert "scipy.stats.binom" in imported
    assert {name for name in imported if name.startswith("stn_core")} == set()


def test_there_is_a_rule_for_everything_that_is_published() -> None:
    assert len(LINES) == len(CERTIFICATES) * 7 - 6
    assert all(has_rule(certificate, protocol) for certificate, protocol in LINES)


# --- Agreement with production -------------------------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn, draws: int | None = None) -> Image:
    """Votes of all kinds: clear, close, none at all, some lost to NaN; in any class."""
    classes = draw(st.sampled_from([2, 3, 10]))
    n = draws or draw(st.sampled_from([1, 2, 7, 64, 1000, 20_000, 1_000_000]))
    left = n - (draw(st.integers(0, min(n, 3))) if draw(st.booleans()) else 0)
    estimation = []
    for _ in range(classes):
        votes = draw(st.integers(0, left) | st.just(left) | st.just(left // 2))
        estimation.append(votes)
        left -= votes
    selection = draw(st.lists(st.integers(0, 3), min_size=classes, max_size=classes))
    order = draw(st.permutations(range(classes)))
    uniform = draw(st.none() | st.floats(0, 1, exclude_min=True))
    return Image([estimation[i] for i in order], selection, draw(st.integers(0, classes - 1)), n, uniform)


@pytest.mark.parametrize("certificate", CERTIFICATES)
@given(data=st.data(), alpha=st.sampled_from([1e-4, 0.05, 0.5, 0.9]))
def test_what_production_publishes_is_right(certificate: str, data: st.DataObject, alpha: float) -> None:
    protocol = data.draw(st.sampled_from([protocol for name, protocol in LINES if name == certificate]))
    image = data.draw(images(SPLITTING_DRAWS if protocol == "exact" else None))
    if PROTOCOLS[protocol].sequential:
        image = dataclasses.replace(image, uniform=None)
    terms = terms_of(certificate, protocol, image, alpha)
    assert image.audit(terms, produced(terms, image)) == []


@pytest.mark.parametrize("draws", [10_000, 100_000, 10_000_000])
@pytest.mark.parametrize("uniform", [None, 0.3, 1e-9])
def test_bounds_from_many_draws_are_right(draws: int, uniform: float | None) -> None:
    for top in (1, draws // 1000, draws // 2 + draws // 500, draws - 17, draws):
        image = Image([draws - top, top], [0, 1], 1, draws, uniform)
        terms = terms_of("renyi", "label", image, 0.001)
        assert image.audit(terms, produced(terms, image)) == []


@st.composite
def looks(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Top, runner-up and draws of an image after each of a few rounds."""
    top = runner_up = draws = 0
    found = []
    for _ in range(draw(st.integers(1, 5))):
        more = draw(st.sampled_from([1, 3, 50, 700, 20_000]))
        votes = draw(st.integers(0, more) | st.just(more) | st.just(more - more // 50))
        others = draw(st.integers(0, more - votes))
        top, runner_up, draws = top + votes, runner_up + others, draws + more
        found.append((top, runner_up, draws))
    return found


@pytest.mark.parametrize("protocol", ["anytime", "anytime_label", "stages"])
@given(seen=looks(), alpha=st.sampled_from([1e-4, 0.05, 0.5]), certificate=st.sampled_from(["renyi", ONE_CLASS]))
def test_of_several_looks_the_best_is_published_and_right(
    protocol: str, seen: list[tuple[int, int, int]], alpha: float, certificate: str
) -> None:
    image = Image([1, 0], [1, 0], 0, seen[-1][2])
    terms = dataclasses.replace(terms_of(certificate, protocol, image, alpha), stages=(seen[0][2], seen[-1][2], 3))
    top, runner_up, trials = (np.array(column) for column in zip(*seen, strict=True))
    outcomes = outcomes_of_looks(Looks(np.array([0]), np.zeros_like(top), top, runner_up, trials), 2)
    found = certify_outcomes(
        outcomes,
        certificate=CERTIFICATES[certificate],
        protocol=PROTOCOLS[protocol],
        scale=terms.scale,
        alpha=alpha,
        stages=terms.stages,
    )
    prediction = None if found.abstain[0] else 0
    claim = Claim(prediction, float(found.p1_lower[0]), float(found.p2_upper[0]), float(found.radius[0]))
    standing = Standing(0, tuple(seen))
    assert audit.audit_standing(terms, claim, standing) == []
    if claim.p1_lower > 1e-3:
        for p1 in (claim.p1_lower * (1 + 1e-6), claim.p1_lower * (1 - 1e-6)):
            assert audit.audit_standing(terms, dataclasses.replace(claim, p1_lower=p1), standing) != []
        # Whoever forgets an image's best look finds the bound too large, or still its own.
        without = Standing(0, tuple(seen[1:]) or ((0, 0, 1),))
        told = audit.audit_standing(terms, claim, without)
        assert all(re.search("too large|too small|without a vote", text) for text in told), told


def test_randomised_intervals_are_not_for_votes_that_chose_their_number() -> None:
    image = dataclasses.replace(CLEAR, uniform=0.4)
    terms = terms_of("renyi", "anytime", image)
    (found,) = image.audit(terms, produced(dataclasses.replace(terms, interval="clopper_pearson"), CLEAR))
    assert "does not bear" in found


# --- By hand -------------------------------------------------------------------------------------------------------


def test_an_image_that_can_be_worked_out_by_hand() -> None:
    """All 20 draws for the label, one class: p1 = alpha^(1/20), and under uniform noise radius = scale (2 p1 - 1)."""
    image = Image([20, 0], [0, 0], 0, 20)
    terms = terms_of("neyman_pearson_uniform_one_class", "label", image)
    p1 = float(np.nextafter(0.05 ** (1 / 20), 0))
    right = Claim(0, p1, 1 - p1, float(np.nextafter(0.44 * (2 * p1 - 1), 0)))
    assert image.audit(terms, right) == []
    assert image.audit(terms, dataclasses.replace(right, p1_lower=0.95 ** (1 / 20))) != []
    assert image.audit(terms, dataclasses.replace(right, radius=0.44 * (2 * p1 - 1) * (1 + 1e-12))) != []
    # With a variate of a half, p1 = (2 alpha)^(1/20); one so small that luck alone would count is none of them.
    for uniform, expected in ((0.5, 0.1), (0.01, 0.95)):
        p1 = expected ** (1 / 20) * (1 - 1e-13)
        lucky = Claim(0, p1, 1 - p1, 0.44 * (2 * p1 - 1) * (1 - 1e-13))
        randomised = dataclasses.replace(image, uniform=uniform)
        assert randomised.audit(dataclasses.replace(terms, interval="randomised"), lucky) == []


def test_standings_by_protocol() -> None:
    estimation = [[5, 9, 9], [3, 0, 1], [0, 0, 0]]
    selection = [[0, 0, 4], [2, 2, 0], [0, 0, 0]]
    labels = [0, 2, 1]
    expected = {
        "paper": [(1, 9, 9), (0, 3, 1), (0, 0, 0)],
        "paper_two": [(1, 9, 9), (0, 3, 1), (0, 0, 0)],
        "exact": [(1, 9, 9), (0, 3, 1), (0, 0, 0)],
        "split": [(2, 9, 9), (0, 3, 1), (-1, 0, 0)],
        "label": [(0, 5, 9), (2, 1, 3), (1, 0, 0)],
    }
    expected |= {"anytime": expected["split"], "stages": expected["split"], "anytime_label": expected["label"]}
    for protocol, rows in expected.items():
        found = standings(protocol, estimation, selection, labels)
        assert list(zip(*(values.tolist() for values in found), strict=True)) == rows, protocol
    assert estimation == [[5, 9, 9], [3, 0, 1], [0, 0, 0]]
    found = standings("label", estimation, selection, [3, -1, 2])
    assert [values.tolist() for values in found] == [[3, -1, 2], [0, 0, 0], [9, 3, 0]]


# --- Tampering -----------------------------------------------------------------------------------------------------

#: Class 2 is voted most, by far; of draws that splitting noise has.
CLEAR = Image([8, 3, 180, 10], [1, 0, 7, 2], 2, SPLITTING_DRAWS)
#: No class stands out.
CLOSE = Image([50, 51, 50, 51], [2, 3, 2, 3], 1, SPLITTING_DRAWS)

FOR_ONE_LOOK = [line for line in LINES if not PROTOCOLS[line[1]].sequential]
TAMPERED = [*LINES, *[(*line, 0.4) for line in FOR_ONE_LOOK if line[1] != "exact"]]


@pytest.mark.parametrize("line", TAMPERED, ids=str)
def test_whatever_is_changed_is_found(line: tuple[str, str] | tuple[str, str, float]) -> None:
    image = dataclasses.replace(CLEAR, uniform=line[2] if len(line) == 3 else None)
    terms = terms_of(line[0], line[1], image)
    claim = produced(terms, image)
    assert claim.prediction == 2
    assert image.audit(terms, claim) == []
    p1, p2, radius = claim.p1_lower, claim.p2_upper, claim.radius
    only_p1 = CERTIFICATES[terms.certificate].bounds == 1
    changes: list[tuple[dict[str, float | None], str]] = [
        ({"radius": radius * 1.001}, "too large for p1_lower"),
        ({"radius": radius * 0.99}, "allow"),
        ({"radius": 0.0}, "allow"),
        ({"p1_lower": p1 * (1 + 1e-7)}, "p1_lower .* is (too large|not 180 of 204)"),
        ({"p1_lower": p1 * (1 - 1e-7)}, "p1_lower .* is (smaller|not 180 of 204)"),
        (
            {"p2_upper": p2 * (1 - 1e-7)},
            "p2_upper .* not what" if only_p1 else "p2_upper .* is (too small|not 10)",
        ),
        ({"p2_upper": p2 * (1 + 1e-7)}, "p2_upper .* not what" if only_p1 else "p2_upper .* is (larger|not 10)"),
        ({"prediction": 1}, "certifies class 1, where .* certifies class 2"),
        ({"prediction": None}, "abstains although"),
        ({"prediction": None, "radius": 0.0}, "abstains although"),
        ({"radius": float("nan")}, "out of range"),
        ({"radius": float("inf")}, "out of range"),
        ({"p1_lower": float("nan")}, "out of range"),
        ({"p2_upper": -0.1}, "out of range"),
        # Bounds that would certify anything.
        ({"p1_lower": 1.0, "p2_upper": 0.0, "radius": 1e9}, "radius .* is too large"),
    ]
    for change, says in changes:
        found = image.audit(terms, dataclasses.replace(claim, **change))
        assert any(re.search(says, complaint) for complaint in found), (change, found)


@pytest.mark.parametrize("line", LINES, ids=str)
def test_an_image_that_must_abstain(line: tuple[str, str]) -> None:
    terms = terms_of(*line, CLOSE)
    claim = produced(terms, CLOSE)
    assert (claim.prediction, claim.radius) == (None, 0.0)
    assert CLOSE.audit(terms, claim) == []
    for change in ({"radius": 0.01}, {"prediction": 1}, {"prediction": 1, "radius": 0.01}):
        assert len(CLOSE.audit(terms, dataclasses.replace(claim, **change))) == 1, change  # type: ignore[arg-type]


def test_bounds_of_a_protocol_that_promises_less_are_found() -> None:
    """Alpha shared among two bounds where all of eight classes' must hold."""
    for name in ("paper_two", "split", "label"):
        claim = produced(terms_of("renyi", name, CLEAR), CLEAR)
        found = CLEAR.audit(terms_of("renyi", "paper", CLEAR), claim)
        assert len(found) == 2, name
        assert "p1_lower" in found[0]
        assert "too large for 180 of 204 votes" in found[0]
        assert "too small for 10 of 204 votes" in found[1]


def test_the_most_voted_class_of_the_selection_is_certified_under_split_alone() -> None:
    image = dataclasses.replace(CLEAR, selection=[1, 9, 7, 2], label=0)
    paper = terms_of("renyi", "paper", image)
    claim = produced(paper, image)
    for name, whom in (("split", "class 1"), ("label", "class 0")):
        assert f"certifies {whom}" in image.audit(dataclasses.replace(paper, protocol=name), claim)[0]
    none = dataclasses.replace(image, selection=[0, 0, 0, 0])
    assert "certifies none" in none.audit(dataclasses.replace(paper, protocol="split"), claim)[0]


def test_another_variate_or_none_is_found() -> None:
    image = dataclasses.replace(CLEAR, uniform=0.4)
    terms = terms_of("renyi", "label", image)
    claim = produced(terms, image)
    assert "too large" in dataclasses.replace(image, uniform=0.41).audit(terms, claim)[0]
    assert "smaller than 180 of 204 votes allow" in dataclasses.replace(image, uniform=0.39).audit(terms, claim)[0]
    for uniform in (None, 0.0, 1.5, float("nan")):
        (found,) = dataclasses.replace(image, uniform=uniform).audit(terms, claim)
        assert f"its variate is {uniform!r}" in found


def test_of_an_image_without_votes_nothing_may_be_claimed() -> None:
    terms = terms_of("renyi", "label", CLEAR)
    for standing in (Standing(2, ()), Standing(-1, ())):
        assert audit.audit_standing(terms, NOTHING, standing) == []
        for change in ({"prediction": 2}, {"radius": 0.1}, {"p1_lower": 0.1}, {"p2_upper": 0.9}):
            claim = dataclasses.replace(NOTHING, **change)  # type: ignore[arg-type]
            assert audit.audit_standing(terms, claim, standing) == ["certifies an image that has no votes"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"certificate": "mine"}, "no rule for 'mine' under 'label'"),
        ({"protocol": "mine"}, "no rule for protocol 'mine'"),
        ({"interval": "wilson"}, "no rule for interval 'wilson'"),
    ],
)
def test_what_there_is_no_rule_for_is_never_passed(change: dict[str, str], says: str) -> None:
    terms = terms_of("renyi", "label", CLEAR)
    claim = produced(terms, CLEAR)
    unknown = dataclasses.replace(terms, **change)  # type: ignore[arg-type]
    assert CLEAR.audit(unknown, claim) == [f"not re-derived: {says}"]
    assert has_rule(unknown.certificate, unknown.protocol) == ("interval" in change)
