"""The same questions to both sides: differences by pairs, one answer each or several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from release.validators.statistics.normal import crossing, quantile, student_quantile, student_tail


def tango_score(b: int, c: int, n: int, delta: float) -> float:
    """Return the score statistic of H0: p₁₂ − p₂₁ = `delta`, given `b` and `c` discordant pairs of `n`; ±inf at zero variance.

    T(δ) = (b − c − nδ) / √(n(2q + δ(1 − δ))), where q, the maximum-likelihood estimate of p₂₁ under H0, is the larger root of
    2n·q² + (δ(2n − b + c) − b − c)·q − cδ(1 − δ) = 0. Source: T. Tango, Statistics in Medicine 17 (1998) 891–908.
    """
    numerator = b - c - n * delta
    half = delta * (2 * n - b + c) - b - c
    constant = -c * delta * (1 - delta)
    root = math.sqrt(max(0.0, half * half - 8 * n * constant))
    # the larger root, in the form that does not subtract nearly equal numbers
    q = (root - half) / (4 * n) if half <= 0 else -2 * constant / (root + half)
    variance = n * (2 * max(q, 0.0, -delta) + delta * (1 - delta))
    if variance <= 0:
        return math.copysign(math.inf, numerator) if numerator else 0.0
    return numerator / math.sqrt(variance)


def tango_interval(b: int, c: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the score interval of a paired difference of proportions, (b − c)/n, both ends within [−1, 1].

    `b` pairs were right only on the candidate's side, `c` only on the reference's, of `n` pairs. The ends solve T(δ) = ±z
    (`tango_score`), by bisection: T falls from +∞ to −∞, also with b = c = 0, where the ends are ±z²/(n + z²).
    Raises ValueError for counts that are no table. Source: Tango (1998), equations 9–11.
    """
    if n <= 0 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"b={b}, c={c}, n={n} is no table of pairs")
    z = quantile(confidence)
    estimate = (b - c) / n
    lower = crossing(lambda delta: tango_score(b, c, n, delta) > z, -1.0, estimate)
    upper = crossing(lambda delta: tango_score(b, c, n, delta) >= -z, estimate, 1.0)
    return lower, upper


def mcnemar_exact(b: int, c: int) -> float:
    """Return the two-sided exact p-value of "both sides are right equally often", given b and c discordant pairs.

    2·P(X ≤ min(b, c)), X ~ Binomial(b + c, ½), at most 1. An alarm only: a large p is no evidence of consistency.
    Source: Q. McNemar, Psychometrika 12 (1947) 153–157, in its exact form.
    """
    if b < 0 or c < 0:
        raise ValueError(f"b={b}, c={c} are no counts")
    term = total = 1
    for i in range(min(b, c)):
        term = term * (b + c - i) // (i + 1)
        total += term
    p: float = 2 * total / 2 ** (b + c)
    return min(1.0, p)


def mcnemar_loss(b: int, c: int) -> float:
    """Return the one-sided exact p-value of "the candidate is right as often as the reference", against its being right less often.

    P(X ≤ b), X ~ Binomial(b + c, ½), b pairs that only the candidate had right, c only the reference. Errs in at most α of all runs
    at any count, which the score test does not: with 0 and 3 discordant pairs that says p = 0.042, and one run in eight of identical
    sides comes out so. Source: as `mcnemar_exact`.
    """
    if b < 0 or c < 0:
        raise ValueError(f"b={b}, c={c} are no counts")
    term = total = 1
    for i in range(b):
        term = term * (b + c - i) // (i + 1)
        total += term
    p: float = total / 2 ** (b + c)
    return min(1.0, p)


SCALE: Final = 1e9
"""Differences are counted in billionths, so that sums that are equal are found equal."""
MOST_FLIPS: Final = 40
MOST_SUMS: Final = 50_000
Scores = Sequence[float]


@dataclass(frozen=True)
class PairedMeans:
    """Differences of mean scores over the same `n` questions, candidate − reference.

    `se` takes the questions (or clusters of them) as drawn from many, with `freedom` degrees of freedom; `se_fixed` takes them as they
    are and the answers as drawn, None where neither side was asked twice. `discordance` is the variance of one answer of each side,
    the share of discordant pairs where scores are 0 and 1; None with `se_fixed`. `pairs` are answers that stand beside one another.
    `flips` is the exact one-sided p-value of "no loss" by signs, None where so many questions differ that t says the same.
    """

    n: int
    pairs: int
    delta: float
    se: float
    freedom: int
    se_fixed: float | None
    discordance: float | None
    flips: float | None = None


def paired_means(answers: Sequence[tuple[Scores, Scores]], clusters: Sequence[Hashable] | None = None) -> PairedMeans:
    """Return the mean difference of `answers`, for each question the candidate's and the reference's scores, and its errors.

    dᵢ is the difference of a question's mean scores, Δ their mean. SE = sd(d)/√n over questions; over clusters
    √(G/(G − 1)·Σ(Σ dᵢ − Δ)²)/n, and the wider of the two counts. SE_fixed = √(Σ(s²ᵢc/k + s²ᵢr/k))/n with s² the unbiased variance of a
    question's scores, k/(k − 1)·p(1 − p) for right and wrong; a side that was asked once borrows the other's variances. Source:
    E. Miller, Adding Error Bars to Evals, arXiv 2411.00640, §2.2, 3.1 and 4; the finite-cluster factor is CR1, C. B. Hansen, Journal of
    Econometrics 141 (2007) 597–620. Raises ValueError for fewer than two questions or clusters, and for a question without a score.
    """
    n = len(answers)
    if n < 2 or not all(candidate and reference for candidate, reference in answers):
        raise ValueError(f"{n} questions with scores on both sides are too few for a spread")
    differences = [math.fsum(c) / len(c) - math.fsum(r) / len(r) for c, r in answers]
    delta = math.fsum(differences) / n
    se = math.sqrt(math.fsum((d - delta) ** 2 for d in differences) / (n - 1) / n)
    freedom, units = n - 1, differences
    if clusters is not None:
        sums: dict[Hashable, float] = {}
        wholes: dict[Hashable, float] = {}
        for cluster, difference in zip(clusters, differences, strict=True):
            sums[cluster] = sums.get(cluster, 0.0) + difference - delta
            wholes[cluster] = wholes.get(cluster, 0.0) + difference
        units = list(wholes.values())
        if len(sums) < 2:
            raise ValueError("one cluster of questions has no spread")
        freedom = len(sums) - 1
        se = max(se, math.sqrt(len(sums) / freedom * math.fsum(s * s for s in sums.values())) / n)
    se_fixed, discordance = _within(answers)
    pairs = sum(min(len(c), len(r)) for c, r in answers)
    return PairedMeans(n, pairs, delta, se, freedom, se_fixed, discordance, sign_flips(units))


def sign_flips(differences: Sequence[float]) -> float | None:
    """Return the one-sided exact p-value of "differences are as likely to have either sign", against their being below 0.

    The share of all 2ⁿ choices of signs whose sum is no greater than the one seen, differences of 0 left out. A few differences deceive
    Student's t and not this: with three, no p-value is below 1/8. None where more than 40 differ, or the sums are too many to count.
    Source: R. A. Fisher, The Design of Experiments (1935), §21.
    """
    sizes = [round(d * SCALE) for d in differences if round(d * SCALE)]
    if len(sizes) > MOST_FLIPS:
        return None
    sums = {0: 1}
    for size in sizes:
        following: dict[int, int] = {}
        for total, ways in sums.items():
            for signed in (total + size, total - size):
                following[signed] = following.get(signed, 0) + ways
        if len(following) > MOST_SUMS:
            return None
        sums = following
    seen = sum(sizes)
    p: float = sum(ways for total, ways in sums.items() if total <= seen + len(sizes)) / 2 ** len(sizes)
    return p


def _within(answers: Sequence[tuple[Scores, Scores]]) -> tuple[float | None, float | None]:
    """Return SE_fixed and the summed variance of one answer of each side, averaged over questions."""
    spreads = [[_variance(side[which]) for side in answers if len(side[which]) > 1] for which in (0, 1)]
    known = [math.fsum(spread) / len(spread) if spread else None for spread in spreads]
    if known[0] is None and known[1] is None:
        return None, None
    usual = [known[which] if known[which] is not None else known[1 - which] for which in (0, 1)]
    total = 0.0
    for side in answers:
        for which in (0, 1):
            scores = side[which]
            total += (_variance(scores) if len(scores) > 1 else usual[which] or 0.0) / len(scores)
    return math.sqrt(total) / len(answers), (usual[0] or 0.0) + (usual[1] or 0.0)


def _variance(scores: Scores) -> float:
    mean = math.fsum(scores) / len(scores)
    return math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)


def means_interval(means: PairedMeans, confidence: float, *, independent: int) -> tuple[float, float]:
    """Return the interval of the mean difference, both ends within [−1, 1]: the widest of three half-widths.

    t·SE, z·SE_fixed, and z²/(N + z²), the score interval of no discordant pair among `independent` pairs, since a spread of 0 in few
    answers is no proof of none. N are all answers where each is a new draw, the questions where repeats only repeat (temperature 0).
    """
    z = quantile(confidence)
    half = max(
        student_quantile(confidence, means.freedom) * means.se,
        z * (means.se_fixed or 0.0),
        z * z / (independent + z * z),
    )
    return max(-1.0, means.delta - half), min(1.0, means.delta + half)


def means_loss(means: PairedMeans, *, independent: int) -> float:
    """Return the one-sided p-value of "the mean difference is not below 0": the greatest of the three half-widths' and of the signs'."""
    if means.delta >= 0:
        return 1.0
    lost = -means.delta
    by_questions = student_tail(lost / means.se, means.freedom) if means.se else 0.0
    by_answers = math.erfc(lost / means.se_fixed / math.sqrt(2)) / 2 if means.se_fixed else 0.0
    silent = math.erfc(math.sqrt(independent * lost / (1 - lost) / 2)) / 2 if lost < 1 else 0.0
    return max(by_questions, by_answers, silent, means.flips or 0.0)
