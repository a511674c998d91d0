"""Plans have the power that they promise, two looks err no more than one, and Holm is Holm."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.validators.statistics import (
    LOOKS,
    PLANNING,
    alpha_for,
    counts_behind,
    holm,
    planning,
    repeats_needed,
    repeats_that_fit,
    tango_interval,
    two_look_error,
)


def test_the_constant_is_the_one_of_the_books() -> None:
    assert pytest.approx(6.1826, abs=1e-4) == PLANNING == planning()
    assert planning(LOOKS[2]) > PLANNING


@pytest.mark.parametrize(
    ("n", "p", "margin", "wanted"),
    [(30, 0.8, 0.05, (27, 14, 11)), (30, 0.8, 0.03, (74, 37, 30)), (198, 0.6414, 0.03, (16, 8, 7)), (198, 0.6414, 0.05, (6, 3, 3)),
     (500, 0.942, 0.02, (4, 2, 2)), (1319, 0.7278, 0.02, (5, 3, 2)), (1346, 0.8507, 0.02, (3, 2, 2)), (14042, 0.7975, 0.01, (2, 1, 1)),
     (756, 0.644, 0.03, (5, 3, 2)), (1000, 0.591, 0.02, (8, 4, 3))],
)  # fmt: skip
def test_the_table_of_repeats_is_the_one_that_is_known(n: int, p: float, margin: float, wanted: tuple[int, ...]) -> None:
    assert tuple(repeats_needed(share * 2 * p * (1 - p), margin, n) for share in (1.0, 0.5, 0.4)) == wanted


def test_a_reference_that_was_asked_often_halves_the_candidates_part() -> None:
    assert repeats_needed(0.46, 0.03, 198) == 16
    assert repeats_needed(0.46, 0.03, 198, reference=10_000) == 8
    assert repeats_needed(0.46, 0.03, 198, reference=16) == 16
    assert repeats_needed(0.46, 0.03, 198, reference=7) == 16  # too few ever to do: both sides are asked


def test_never_fewer_repeats_than_silence_needs() -> None:
    k = repeats_needed(0.0, 0.05, 30)
    assert k == 2 and tango_interval(0, 0, 60, 0.9)[0] > -0.05 >= tango_interval(0, 0, 30, 0.9)[0]


def test_two_looks_err_no_more_than_one() -> None:
    for fraction in (0.01, 1 / 27, 1 / 8, 0.5, 0.9):
        assert two_look_error(LOOKS[2], fraction) <= 0.05 + 1e-9
    assert two_look_error(LOOKS[2], 0.0) == pytest.approx(0.05, abs=1e-9)
    assert alpha_for(1) == 0.05 and alpha_for(2) == pytest.approx(0.02532, abs=1e-5)


def test_pococks_constant_is_found_again_and_does_not_hold_for_unequal_looks() -> None:
    # Jennison & Turnbull, Group Sequential Methods (2000), table 2.1: C = 1.875 for two-sided 0.10, 2.178 for 0.05, two looks
    assert two_look_error(0.5 * math.erfc(1.875 / math.sqrt(2)), 0.5) == pytest.approx(0.05, abs=2e-4)
    assert two_look_error(0.5 * math.erfc(2.178 / math.sqrt(2)), 0.5) == pytest.approx(0.025, abs=2e-4)
    assert two_look_error(0.0294, 1 / 8) > 0.055


def test_two_looks_agree_with_the_bivariate_normal_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for alpha, fraction in [(0.05, 0.125), (0.0294, 0.5), (0.1, 0.9)]:
        z, rho = stats.norm.isf(alpha), math.sqrt(fraction)
        both = stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([z, z])
        assert two_look_error(alpha, fraction) == pytest.approx(1 - both, abs=1e-6)


@pytest.mark.parametrize("looks", [0, 3, -1])
def test_a_third_look_is_refused(looks: int) -> None:
    with pytest.raises(ValueError, match="never repeated until they pass"):
        alpha_for(looks)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    if p_values:
        assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])
    else:
        assert holm(p_values) == ()


def test_scores_are_counts_or_are_not() -> None:
    assert list(counts_behind("72.78", 1319)) == [960]
    assert list(counts_behind("85.07", 1346)) == [1145] and list(counts_behind("85.36", 1346)) == [1149]
    assert not counts_behind("0.608", 198, percent=False) and not counts_behind("0.612", 198, percent=False)
    assert list(counts_behind("0.606", 198, percent=False)) == [120] and list(counts_behind("0.611", 198, percent=False)) == [121]
    assert repeats_that_fit(["0.608", "0.612"], 198, percent=False)[0] == 5
    assert (
        len(counts_behind("79.75", 14042)) >= 1
        and list(counts_behind("100.00", 30)) == [30]
        and list(counts_behind("0", 30)) == [0]
    )


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(0, 4))
def test_a_true_score_always_fits(share: tuple[int, int], places: int) -> None:
    k, n = share
    assert k in counts_behind(f"{100 * k / n:.{places}f}", n) or abs(100 * k / n % 10**-places) > 0  # a tie may round either way
    assert any(abs(j - k) <= 1 for j in counts_behind(f"{100 * k / n:.{places}f}", n))


@pytest.mark.parametrize("score", ["NaN", "inf", "-1", "100.01", "1e3", "0.12345678901234"])
def test_what_is_no_score_is_refused(score: str) -> None:
    with pytest.raises(ValueError, match=r"no score|places"):
        counts_behind(score, 100)
