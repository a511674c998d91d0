"""Whether a printed score can be what it says it is: a number of right answers over a number of questions, after rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Final

MOST_REPEATS: Final = 64
MOST_PLACES: Final = 12


def counts_behind(score: str, n: int, repeats: int = 1, *, percent: bool = True) -> range:
    """Return how many right answers of `n` questions × `repeats` a printed score can stand for; an empty range if none.

    j/(n·k) must lie within half a unit of the last printed place: both ways of rounding a half count. The check is weak where
    n·k exceeds the number of printable scores: some j always fits. Source: N. J. L. Brown, J. A. J. Heathers, The GRIM test, Social
    Psychological and Personality Science 8 (2017) 363–369. Raises ValueError for a score that is no decimal number from 0 to 100 (or
    to 1, if not `percent`), or has more than 12 places.
    """
    value = Decimal(score)
    top = 100 if percent else 1
    if n <= 0 or repeats <= 0 or not value.is_finite() or not 0 <= value <= top:
        raise ValueError(f"{score} over {n} questions × {repeats} is no score")
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    if -exponent > MOST_PLACES:
        raise ValueError(f"{score[:40]} has more than {MOST_PLACES} places")
    total, half = n * repeats, Fraction(1, 2) / 10 ** max(0, -exponent)
    low, high = (total * (Fraction(value) + side) / top for side in (-half, half))
    return range(max(0, math.ceil(low)), min(total, math.floor(high)) + 1)


def repeats_that_fit(scores: Iterable[str], n: int, *, percent: bool = True, most: int = MOST_REPEATS) -> tuple[int, ...]:
    """Return with how many repeats, up to `most`, all of the printed scores over `n` questions are possible."""
    printed = tuple(scores)
    return tuple(k for k in range(1, most + 1) if all(len(counts_behind(score, n, k, percent=percent)) for score in printed))
