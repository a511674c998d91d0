"""The two distributions that every interval stands on: the standard normal, and Student's t by the incomplete beta function."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Final

NORMAL: Final = NormalDist()
ALPHA: Final = 0.05
"""One-sided error of a verdict: a 90 % interval is two one-sided tests of 5 %."""
POWER: Final = 0.80
STEPS: Final = 500
"""Terms of the continued fraction after which it counts as converged: 10⁸ degrees of freedom take fewer than 50."""


def quantile(confidence: float) -> float:
    """Return z such that a standard normal variable lies in [−z, z] with probability `confidence` (0 < confidence < 1)."""
    _check_confidence(confidence)
    return NORMAL.inv_cdf((1 + confidence) / 2)


def student_tail(t: float, freedom: float) -> float:
    """Return P(T > `t`) of Student's t with `freedom` degrees of freedom.

    ½·I(ν/(ν + t²); ν/2, ½) for t ≥ 0, I the regularised incomplete beta function. Source: Abramowitz & Stegun, 26.7.1 and 26.5.27.
    Raises ValueError unless freedom > 0.
    """
    if not freedom > 0:
        raise ValueError(f"{freedom} degrees of freedom are none")
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    half = _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return half if t >= 0 else 1 - half


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, freedom: float) -> float:
    """Return t such that Student's variable with `freedom` degrees of freedom lies in [−t, t] with probability `confidence`."""
    _check_confidence(confidence)
    tail = (1 - confidence) / 2
    high = 1.0
    while student_tail(high, freedom) > tail:
        high *= 2
    return crossing(lambda t: student_tail(t, freedom) > tail, 0.0, high)


def crossing(left: Callable[[float], bool], low: float, high: float) -> float:
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


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I(x; a, b): the continued fraction of Abramowitz & Stegun 26.5.8, by Lentz's method, where it converges quickly."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, STEPS):
        before = fraction
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            fraction *= c * d
        if abs(fraction - before) <= 1e-16 * abs(fraction):
            break
    return front * fraction
