"""Intervals and tests of two independent shares say what their sources and statsmodels say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from release.validators.statistics import farrington_manning, newcombe_interval, newcombe_loss, student_quantile, student_tail

counts = st.tuples(st.integers(2, 2000), st.integers(2, 2000)).flatmap(
    lambda n: st.tuples(st.integers(0, n[0]), st.just(n[0]), st.integers(0, n[1]), st.just(n[1]))
)


def test_newcombe_gives_the_published_intervals() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 873, table II, method 10: contrasts (a) and (b)
    assert newcombe_interval(56 / 70, 70, 48 / 80, 80, 0.95) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe_interval(9 / 10, 10, 3 / 10, 10, 0.95) == pytest.approx((0.1705, 0.8090), abs=5e-5)


@given(counts, st.sampled_from([0.8, 0.9, 0.95]))
@settings(max_examples=60)
def test_newcombe_agrees_with_statsmodels(table: tuple[int, int, int, int], confidence: float) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    k1, n1, k2, n2 = table
    theirs = proportion.confint_proportions_2indep(k1, n1, k2, n2, method="newcomb", alpha=1 - confidence)
    assert newcombe_interval(k1 / n1, n1, k2 / n2, n2, confidence) == pytest.approx(theirs, abs=1e-9)


@given(counts)
@settings(max_examples=60)
def test_the_p_value_of_no_loss_and_the_interval_never_disagree(table: tuple[int, int, int, int]) -> None:
    k1, n1, k2, n2 = table
    p = newcombe_loss(k1 / n1, n1, k2 / n2, n2)
    for alpha in (0.01, 0.05, 0.2):
        if abs(p - alpha) > 1e-9:
            assert (newcombe_interval(k1 / n1, n1, k2 / n2, n2, 1 - 2 * alpha)[1] < 0) == (p < alpha)


def _p_of_a_likelihood_maximised_by_numbers(table: tuple[int, int, int, int], margin: float) -> float:
    """Return the score test's p with the shares that a minimiser finds, not the cubic of Miettinen and Nurminen (1985).

    statsmodels 0.15 is no oracle here: its cubic has x₀δ² where theirs has n₀δ², which moves p by 0.15 for small tables.
    """
    optimize = pytest.importorskip("scipy.optimize")
    k1, n1, k2, n2 = table

    def loss(p: float) -> float:
        shares = ((k1, n1, p), (k2, n2, p + margin))
        return -sum(k * math.log(max(q, 1e-300)) + (n - k) * math.log(max(1 - q, 1e-300)) for k, n, q in shares)

    p = optimize.minimize_scalar(loss, bounds=(0, 1 - margin), method="bounded", options={"xatol": 1e-12}).x
    spread = math.sqrt(p * (1 - p) / n1 + (p + margin) * (1 - p - margin) / n2)
    z = (k1 / n1 - k2 / n2 + margin) / spread
    return 0.5 * math.erfc(z / math.sqrt(2))


@given(counts, st.sampled_from([0.01, 0.02, 0.05, 0.2]))
@settings(max_examples=80)
def test_farrington_and_manning_agree_with_any_likelihood_maximised_by_numbers(
    table: tuple[int, int, int, int], margin: float
) -> None:
    k1, n1, k2, n2 = table
    ours = farrington_manning(k1 / n1, n1, k2 / n2, n2, margin)
    assert ours == pytest.approx(_p_of_a_likelihood_maximised_by_numbers(table, margin), abs=1e-5)


@pytest.mark.parametrize(
    "table",
    [
        (0, 2, 0, 2),
        (50, 50, 50, 50),
        (0, 30, 30, 30),
        (12, 50, 13, 50),
        (23, 30, 30, 30),
        (0, 9, 4, 400),
        (1, 2, 1, 3),
        (1, 2, 1, 2),
        (1, 20, 2, 20),
    ],
)
@pytest.mark.parametrize("margin", [0.01, 0.05, 0.2, 0.3])
def test_farrington_and_manning_agree_with_a_likelihood_maximised_by_numbers(
    table: tuple[int, int, int, int], margin: float
) -> None:
    k1, n1, k2, n2 = table
    ours = farrington_manning(k1 / n1, n1, k2 / n2, n2, margin)
    assert ours == pytest.approx(_p_of_a_likelihood_maximised_by_numbers(table, margin), abs=1e-5)


def test_farrington_and_manning_decide_the_extremes() -> None:
    assert farrington_manning(1.0, 50, 0.0, 50, 0.05) < 1e-9
    assert farrington_manning(0.0, 50, 1.0, 50, 0.05) > 1 - 1e-9
    assert 0 < farrington_manning(1.0, 50, 1.0, 50, 0.05) < 0.1
    assert farrington_manning(0.5, 50, 0.5, 50, 0.0) == pytest.approx(0.5)


@given(st.floats(-30, 30).filter(lambda t: abs(t) > 1e-3), st.floats(1, 500))
@settings(max_examples=80)
def test_student_agrees_with_scipy(t: float, freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-8)


@pytest.mark.parametrize("freedom", [1, 2, 5, 29, 197, 14041, 10**8])
def test_the_quantiles_of_student_agree_with_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for confidence in (0.5, 0.9, 0.9493, 0.95, 0.999):
        assert student_quantile(confidence, freedom) == pytest.approx(
            stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9 if freedom < 10**6 else 1e-7
        )


def test_what_is_no_share_is_refused() -> None:
    for p1, n1 in [(1.1, 50), (-0.1, 50), (0.5, 0), (math.nan, 50)]:
        with pytest.raises(ValueError, match="no shares"):
            newcombe_interval(p1, n1, 0.5, 50, 0.9)
        with pytest.raises(ValueError, match="no shares"):
            farrington_manning(p1, n1, 0.5, 50, 0.02)
    with pytest.raises(ValueError, match="no share to lose"):
        farrington_manning(0.5, 50, 0.5, 50, 1.0)
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_tail(1.0, 0)
