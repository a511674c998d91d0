"""Means of repeated answers, their errors by question, cluster and answer, and exact tests for few differences."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from release.validators.statistics import (
    PairedMeans,
    mcnemar_loss,
    means_interval,
    means_loss,
    paired_means,
    sign_flips,
)

Answers = list[tuple[list[float], list[float]]]


def drawn(n: int, k: int, seed: int = 3) -> Answers:
    source = random.Random(seed)
    chances = [source.betavariate(0.7, 0.4) for _ in range(n)]
    return [([float(source.random() < p) for _ in range(k)], [float(source.random() < p) for _ in range(k)]) for p in chances]


def test_the_error_over_questions_is_that_of_the_paired_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    answers = drawn(198, 8)
    means = paired_means(answers)
    one, two = ([sum(side) / 8 for side in sides] for sides in zip(*answers, strict=True))
    theirs = stats.ttest_rel(one, two)
    assert means.delta / means.se == pytest.approx(theirs.statistic) and means.freedom == theirs.df == 197
    if means.delta < 0:
        assert means_loss(means, independent=10**9) >= theirs.pvalue / 2 - 1e-12


def test_the_error_over_clusters_is_the_sandwich_of_statsmodels() -> None:
    linear = pytest.importorskip("statsmodels.regression.linear_model")
    source = random.Random(5)
    shifts = [source.gauss(0, 0.3) for _ in range(40)]
    clusters = [source.randrange(40) for _ in range(600)]
    answers: Answers = [([shifts[g] + source.gauss(0, 0.2)], [0.0]) for g in clusters]
    means = paired_means(answers, clusters)
    fit = linear.OLS([one[0] for one, _ in answers], [1.0] * 600).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert means.se == pytest.approx(fit.bse[0], rel=1e-9) and means.freedom == len(set(clusters)) - 1
    assert means.se > paired_means(answers).se


def test_the_wider_of_questions_and_clusters_counts() -> None:
    answers = drawn(100, 2)
    assert paired_means(answers, list(range(100))).se == pytest.approx(paired_means(answers).se)
    # questions of a cluster that differ in opposite ways must not make the error smaller
    opposite: Answers = [([float(i % 2)], [float(1 - i % 2)]) for i in range(100)]
    assert paired_means(opposite, [i // 2 for i in range(100)]).se == paired_means(opposite).se


def test_the_error_over_answers_is_the_formula() -> None:
    answers = drawn(50, 4)
    total = 0.0
    for sides in answers:
        for side in sides:
            p = sum(side) / 4
            total += 4 / 3 * p * (1 - p) / 4
    means = paired_means(answers)
    assert means.se_fixed == pytest.approx(math.sqrt(total) / 50) and means.discordance == pytest.approx(4 * total / 50)
    assert means.pairs == 200 and means.n == 50


def test_a_reference_with_more_repeats_and_one_with_a_single_one_both_count() -> None:
    answers = [(one, two[:1]) for one, two in drawn(50, 8)]
    means = paired_means(answers)
    spread = [8 / 7 * (sum(one) / 8) * (1 - sum(one) / 8) for one, _ in answers]
    mean = sum(spread) / 50
    assert means.se_fixed == pytest.approx(math.sqrt(sum(s / 8 + mean for s in spread)) / 50)
    assert means.pairs == 50
    assert paired_means([(one[:1], two) for one, two in answers]).se_fixed is None


def test_no_spread_at_all_is_not_taken_for_certainty() -> None:
    same: Answers = [([1.0, 1.0], [1.0, 1.0])] * 30
    lower, upper = means_interval(paired_means(same), 0.9, independent=60)
    assert (lower, upper) == pytest.approx((-0.04315, 0.04315), abs=5e-5)
    assert means_interval(paired_means(same), 0.9, independent=30)[0] < -0.08
    assert means_loss(paired_means(same), independent=60) == 1.0


def test_the_p_value_of_no_loss_and_the_interval_agree_where_many_differ() -> None:
    for delta in (-0.001, -0.02, -0.04, -0.2):
        means = PairedMeans(200, 1600, delta, 0.02, 199, 0.018, 0.2)
        for alpha in (0.01, 0.05, 0.1):
            below = means_interval(means, 1 - 2 * alpha, independent=1600)[1] < 0
            assert below == (means_loss(means, independent=1600) < alpha)


def test_signs_are_counted_exactly() -> None:
    differences = [-0.5, 0.25, -0.125, -0.375, 0.0, 0.125]
    known = [d for d in differences if d]
    sums = [sum(s * d for s, d in zip(signs, known, strict=True)) for signs in itertools.product((1, -1), repeat=len(known))]
    assert sign_flips(differences) == pytest.approx(sum(s <= sum(known) + 1e-12 for s in sums) / len(sums))
    assert sign_flips([-1.0, -1.0, -1.0]) == 0.125 and sign_flips([]) == 1.0
    assert sign_flips([0.01 * i for i in range(1, 60)]) is None


def test_few_differences_deceive_student_and_not_the_signs() -> None:
    few: Answers = [([0.0, 0.0], [1.0, 1.0])] * 3 + [([1.0, 1.0], [1.0, 1.0])] * 27
    means = paired_means(few)
    assert means.flips == 0.125 and means_loss(means, independent=60) >= 0.125


def test_the_one_sided_test_is_the_exact_binomial_one() -> None:
    stats = pytest.importorskip("scipy.stats")
    for b, c in [(0, 3), (2, 9), (5, 5), (40, 61), (0, 0), (7, 2)]:
        wanted = stats.binomtest(b, b + c, alternative="less").pvalue if b + c else 1.0
        assert mcnemar_loss(b, c) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar_loss(0, 3) == 0.125


def test_too_little_for_a_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        paired_means([([1.0], [0.0])])
    with pytest.raises(ValueError, match="too few"):
        paired_means([([1.0], []), ([1.0], [0.0])])
    with pytest.raises(ValueError, match="one cluster"):
        paired_means([([1.0], [0.0])] * 3, ["a"] * 3)
    with pytest.raises(ValueError, match="no counts"):
        mcnemar_loss(-1, 2)
