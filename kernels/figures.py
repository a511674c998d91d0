"""Arithmetic of a bench: what seconds, bytes and operations come to, beside what the device can do at most. No torch is loaded here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

GIGA = 1e9
TERA = 1e12
LEAST_ROOM = 512
"""Bytes that a device's memory is given out in at least."""


def bandwidth(moved: int, seconds: float) -> float:
    """Return GB/s, 10⁹ bytes a second, of bytes that had to be moved at least. Raises ValueError for no time at all."""
    return moved / _positive(seconds) / GIGA


def rate(flops: int, seconds: float) -> float:
    """Return TFLOP/s, 10¹² operations a second; a multiply-add is two. Raises ValueError for no time at all."""
    return flops / _positive(seconds) / TERA


def bound(moved: int, flops: int, gigabytes: float, teraflops: float | None) -> float:
    """Return the seconds that a device needs at least, which copies `gigabytes` and multiplies `teraflops` a second.

    The longer of both, as of a roofline (Williams, Waterman, Patterson, 2009). Without a rate only the memory bounds.
    """
    arithmetic = flops / (_positive(teraflops) * TERA) if teraflops is not None else 0.0
    return max(moved / (_positive(gigabytes) * GIGA), arithmetic)


def intensity(moved: int, flops: int) -> float | None:
    """Return operations a byte: where a case stands below the roofline. None where nothing is moved or nothing computed."""
    return flops / moved if moved and flops else None


def best(peers: Mapping[str, float]) -> tuple[str, float] | None:
    """Return the fastest peer and its seconds, None where there is none; of equals the first."""
    return min(peers.items(), key=lambda peer: peer[1], default=None)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean: twice as fast here and half as fast there is 1. Raises ValueError for no ratio, or none above zero."""
    if not ratios:
        raise ValueError("there is no mean of nothing")
    return math.exp(math.fsum(math.log(_positive(ratio)) for ratio in ratios) / len(ratios))


def spread(repeats: Sequence[float]) -> float:
    """Return how far repeats lie apart, as a share of their median. Raises ValueError for none."""
    if not repeats:
        raise ValueError("nothing was repeated")
    return (max(repeats) - min(repeats)) / _positive(median(repeats))


def rotation(cache: int, size: int) -> int:
    """Return among how many copies of the inputs of `size` bytes calls go round, so that none finds its own in a cache of `cache` bytes.

    The copies beside the one in use fill the cache. What is smaller than LEAST_ROOM takes that much.
    """
    return 1 + math.ceil(cache / max(size, LEAST_ROOM))


def covers(host: float, cover: float, most: int) -> int:
    """Return how often the cache is emptied before a call of which the host needs `host` seconds, each time `cover` seconds.

    Half as long again as the host needs, since it is not always as fast; once at least, and not more often than `most`.
    """
    return max(1, min(most, math.ceil(1.5 * host / cover))) if cover > 0 else 1


def calls(estimate: float, budget: float, fewest: int, most: int) -> int:
    """Return how many calls of `estimate` seconds to time, for `budget` seconds, within limits."""
    return most if estimate <= 0 else max(fewest, min(most, math.ceil(budget / estimate)))


def _positive(value: float) -> float:
    if not value > 0 or math.isinf(value):
        raise ValueError(f"{value} is nothing to divide by")
    return value
