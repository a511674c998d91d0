"""Statistics of verdicts: intervals, tests and the number of questions they need, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final

NORMAL: Final = NormalDist()
ALPHA: Final = 0.05
"""One-sided error of a verdict: a 90 % interval is two one-sided tests of 5 %."""
POWER: Final = 0.80
PLANNING: Final = (NORMAL.inv_cdf(1 - ALPHA) + NORMAL.inv_cdf(POWER)) ** 2
"""(z₀.₉₅ + z₀.₈₀)² = 6.183: the constant of every sample size below."""


def quantile(confidence: float) -> float:
    """Return z such that a standard normal variable lies in [−z, z] with probability `confidence` (0 < confidence < 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return NORMAL.inv_cdf((1 + confidence) / 2)


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
    lower = _crossing(lambda delta: tango_score(b, c, n, delta) > z, -1.0, estimate)
    upper = _crossing(lambda delta: tango_score(b, c, n, delta) >= -z, estimate, 1.0)
    return lower, upper


def _crossing(left: Callable[[float], bool], low: float, high: float) -> float:
    """Return where `left` turns from true to false between `low` and `high`, to the last bit but a few."""
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if left(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def wilson_interval(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the score interval of a proportion k/n, both ends within [0, 1].

    (p + z²/2n ± z√(p(1 − p)/n + z²/4n²)) / (1 + z²/n). Source: E. B. Wilson, JASA 22 (1927) 209–212. Raises ValueError
    unless 0 ≤ k ≤ n and n > 0.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no proportion")
    z2 = quantile(confidence) ** 2
    p = k / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


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


def two_proportions(k1: int, n1: int, k2: int, n2: int) -> float:
    """Return the two-sided p-value of "k1/n1 and k2/n2 are the same proportion": the pooled z test; 1 where both are 0 or 1.

    z = (p₁ − p₂)/√(p(1 − p)(1/n₁ + 1/n₂)), p the pooled share; the sides count as independent. Source: J. L. Fleiss,
    Statistical Methods for Rates and Proportions, §2.3, without continuity correction. Raises ValueError unless 0 ≤ k ≤ n > 0.
    """
    if min(n1, n2) <= 0 or not (0 <= k1 <= n1 and 0 <= k2 <= n2):
        raise ValueError(f"{k1} of {n1} and {k2} of {n2} are no proportions")
    pooled = (k1 + k2) / (n1 + n2)
    if pooled in (0.0, 1.0):
        return 1.0
    z = (k1 / n1 - k2 / n2) / math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    return math.erfc(abs(z) / math.sqrt(2))


def questions_needed(discordance: float, margin: float) -> int:
    """Return how many questions a fresh paired run needs to be CONSISTENT with 80 % power, if the true difference is 0.

    ⌈6.183·d/m²⌉, d the share of discordant pairs, m the margin (both shares). At least so many that no discordant pair at all
    would do: z²/(n + z²) < m (`tango_interval`), which decides where d is 0. Source: the paired form of the usual
    non-inferiority sample size, (z₀.₉₅ + z₀.₈₀)²·σ²/m², with σ² = d. Raises ValueError unless 0 ≤ d ≤ 1 and 0 < m < 1.
    """
    _check_plan(discordance, margin)
    z2 = NORMAL.inv_cdf(1 - ALPHA) ** 2
    return max(math.ceil(PLANNING * discordance / margin**2), math.floor(z2 * (1 - margin) / margin) + 1)


def repeats_needed(discordance: float, margin: float, n: int) -> int:
    """Return how many runs of `n` questions each side needs to be CONSISTENT with 80 % power, if the true difference is 0.

    k = ⌈6.183·d/(n·m²)⌉ and at least 1, d the discordance of two runs: for sampling above temperature 0, where repeats are new
    draws. At temperature 0 more questions are needed instead (`questions_needed`). Raises ValueError as that does, and for n ≤ 0.
    """
    _check_plan(discordance, margin)
    if n <= 0:
        raise ValueError(f"n must be positive, not {n}")
    return max(1, math.ceil(PLANNING * discordance / (n * margin**2)))


def _check_plan(discordance: float, margin: float) -> None:
    if not 0 <= discordance <= 1 or not 0 < margin < 1:
        raise ValueError(f"discordance {discordance} and margin {margin} are no shares to plan with")
