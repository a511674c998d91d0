"""The intervals and tests behind a verdict say what their sources say."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from release.validators.statistics import (
    mcnemar_exact,
    quantile,
    questions_needed,
    repeats_needed,
    tango_interval,
    tango_score,
    two_proportions,
    wilson_interval,
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 3000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


def test_tango_gives_the_published_interval() -> None:
    # Cavo et al. 2012, as tabulated by Fagerland, Lydersen & Laake; CRAN contingencytables, Tango_asymptotic_score_CI_paired_2x2
    assert tango_interval(6, 16, 161, 0.95) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@given(tables(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_ends_of_tango_solve_the_score_equation(table: tuple[int, int, int], confidence: float) -> None:
    b, c, n = table
    lower, upper = tango_interval(b, c, n, confidence)
    z = quantile(confidence)
    assert -1 <= lower <= (b - c) / n <= upper <= 1
    if lower > -1 + 1e-9:
        assert tango_score(b, c, n, lower) == pytest.approx(z, rel=1e-5)
    if upper < 1 - 1e-9:
        assert tango_score(b, c, n, upper) == pytest.approx(-z, rel=1e-5)


@given(tables())
def test_swapping_the_sides_mirrors_the_interval(table: tuple[int, int, int]) -> None:
    b, c, n = table
    lower, upper = tango_interval(b, c, n, 0.9)
    assert tango_interval(c, b, n, 0.9) == pytest.approx((-upper, -lower), abs=1e-12)


@given(tables())
def test_more_confidence_is_a_wider_interval(table: tuple[int, int, int]) -> None:
    narrow, wide = (tango_interval(*table, confidence) for confidence in (0.9, 0.95))
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@pytest.mark.parametrize("n", [1, 30, 1000, 14042])
def test_no_discordant_pair_gives_the_closed_form(n: int) -> None:
    z2 = quantile(0.9) ** 2
    assert tango_interval(0, 0, n, 0.9) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), rel=1e-9)


def test_all_pairs_discordant_reaches_the_boundary() -> None:
    assert tango_interval(50, 0, 50, 0.95)[1] == pytest.approx(1)
    assert tango_interval(0, 50, 50, 0.95)[0] == pytest.approx(-1)
    assert tango_interval(50, 0, 50, 0.95)[0] > 0.8


def test_tango_agrees_with_an_independent_inversion_of_the_score_test() -> None:
    optimize = pytest.importorskip("scipy.optimize")

    def score(b: int, c: int, n: int, delta: float) -> float:
        """The definition, with the restricted likelihood maximised numerically instead of by the closed form."""

        def loss(q: float) -> float:
            cells = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        return float((b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta))))

    for b, c, n in [(3, 9, 40), (5, 8, 1000), (1, 7, 21), (12, 2, 50), (40, 20, 160), (120, 150, 700)]:
        z, estimate = quantile(0.9), (b - c) / n
        lower = optimize.brentq(lambda d, b=b, c=c, n=n, z=z: score(b, c, n, d) - z, -0.999, estimate)
        upper = optimize.brentq(lambda d, b=b, c=c, n=n, z=z: score(b, c, n, d) + z, estimate, 0.999)
        assert tango_interval(b, c, n, 0.9) == pytest.approx((lower, upper), abs=1e-5)


def test_tango_agrees_with_the_quartic_of_yang_sun_and_hardin() -> None:
    numpy = pytest.importorskip("numpy")
    for b, c, n, confidence in itertools.product((0, 1, 6, 33), (2, 16, 60), (100, 1319), (0.9, 0.95)):
        z2 = quantile(confidence) ** 2
        # squaring T(δ) = ±z and removing q gives a polynomial of degree four in δ (Statistics in Medicine 32 (2013) 1336)
        d, s = b - c, b + c
        quartic = [
            n**2 * (n / z2 + 1) ** 2,
            -n * d * (n / z2 + 1) * (4 * n / z2 + 1),
            2 * n * d**2 * (3 * n / z2 + 2) / z2 - n**2 * (s / z2 + 1),
            n * d * (2 * s / z2 + 1) - d**3 * (4 * n / z2 + 1) / z2,
            d**2 * (d**2 / z2 - s) / z2,
        ]
        roots = sorted(r.real for r in numpy.roots(quartic) if abs(r.imag) < 1e-7)
        lower, upper = tango_interval(b, c, n, confidence)
        assert min(abs(r - lower) for r in roots) < 1e-6 and min(abs(r - upper) for r in roots) < 1e-6


@pytest.mark.parametrize(("p12", "p21"), [(0.03, 0.03), (0.01, 0.03), (0.002, 0.002), (0.10, 0.05)])
def test_tango_covers_what_it_promises(p12: float, p21: float) -> None:
    random_numbers, n, runs, inside = random.Random(20261120), 400, 1500, 0
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    for _ in range(runs):
        draws = [random_numbers.random() for _ in range(n)]
        b, c = sum(u < p12 for u in draws), sum(p12 <= u < p12 + p21 for u in draws)
        lower, upper = ends.setdefault((b, c), tango_interval(b, c, n, 0.9))
        inside += lower <= p12 - p21 <= upper
    assert 0.88 <= inside / runs <= (1.0 if p12 < 0.01 else 0.93)


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 0), (-1, 0, 5), (3, 3, 5), (0, 0, -4)])
def test_tango_refuses_what_is_no_table(b: int, c: int, n: int) -> None:
    with pytest.raises(ValueError, match="no table"):
        tango_interval(b, c, n, 0.9)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 95.0, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        tango_interval(1, 1, 10, confidence)


def test_wilson_gives_the_published_intervals() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    assert wilson_interval(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148, 0.95) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29, 0.95) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50)
def test_wilson_agrees_with_statsmodels(share: tuple[int, int]) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    assert wilson_interval(*share, 0.95) == pytest.approx(proportion.proportion_confint(*share, method="wilson"), abs=1e-12)


def test_wilson_refuses_what_is_no_proportion() -> None:
    for k, n in [(1, 0), (-1, 5), (6, 5)]:
        with pytest.raises(ValueError, match="no proportion"):
            wilson_interval(k, n, 0.9)


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=50)
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9) and mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_takes_large_counts() -> None:
    assert 0 < mcnemar_exact(5000, 5200) < 0.06 and mcnemar_exact(0, 5000) == 0.0


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=50)
def test_the_test_of_two_proportions_is_the_pooled_z_test(k1: int, k2: int) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    if (k1, k2) in ((0, 0), (300, 300)):
        assert two_proportions(k1, 300, k2, 300) == 1.0
    else:
        assert two_proportions(k1, 300, k2, 300) == pytest.approx(
            proportion.proportions_ztest([k1, k2], [300, 300])[1], abs=1e-12
        )


def test_the_plan_is_the_formula_of_the_margins() -> None:
    assert questions_needed(0.05, 0.02) == math.ceil(6.1826 * 0.05 / 0.0004)
    # evaluation.md §1.4: AIME25, n = 30, margin 5 points, 2p(1 − p) = 0.3111 → k = 27 at λ = 0.97…; GPQA-D 16 at m = 3
    assert repeats_needed(0.4493, 0.03, 198) == 16
    assert repeats_needed(0.0001, 0.02, 1000) == 1


def test_without_discordant_pairs_the_plan_is_what_the_interval_needs() -> None:
    n = questions_needed(0.0, 0.02)
    assert tango_interval(0, 0, n, 0.9)[0] > -0.02 >= tango_interval(0, 0, n - 1, 0.9)[0]


def test_the_planned_number_of_questions_has_its_power() -> None:
    random_numbers, d, m = random.Random(7), 0.06, 0.03
    n, runs, passed = questions_needed(d, m), 400, 0
    for _ in range(runs):
        draws = [random_numbers.random() for _ in range(n)]
        b, c = sum(u < d / 2 for u in draws), sum(d / 2 <= u < d for u in draws)
        passed += tango_interval(b, c, n, 0.9)[0] > -m
    assert 0.72 <= passed / runs <= 0.88


@pytest.mark.parametrize(("d", "m"), [(-0.1, 0.02), (1.1, 0.02), (0.1, 0.0), (0.1, 1.0), (math.nan, 0.1)])
def test_a_plan_without_shares_is_refused(d: float, m: float) -> None:
    with pytest.raises(ValueError, match="plan"):
        questions_needed(d, m)
