"""What it takes to know: questions or repeats for 80 % power, error spent over two looks and over several benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from release.validators.statistics.normal import ALPHA, NORMAL, POWER

LOOKS: Final = {1: ALPHA, 2: 1 - math.sqrt(1 - ALPHA)}
"""The one-sided error of each look, by how many are planned.

Two looks at 2.53 % each err in at most 5 %, however unequal they are: 1 − (1 − α)² = 5 % were they independent, and looks at growing
data are positively correlated, which only lowers it (D. Slepian, Bell System Technical Journal 41 (1962) 463–501). Pocock's 2.94 %
holds for a two-sided 5 % and equally spaced looks; a first look at one run of eight would spend 5.5 % with it (`two_look_error`).
"""


def alpha_for(looks: int) -> float:
    """Return the one-sided error of a look, if `looks` of them are planned. Raises ValueError for more than two, or none."""
    if looks not in LOOKS:
        raise ValueError(f"{looks} looks: one or two are planned beforehand, and runs are never repeated until they pass")
    return LOOKS[looks]


def two_look_error(alpha: float, fraction: float) -> float:
    """Return how often at least one of two looks errs, each at one-sided `alpha`, the first at `fraction` of the data (0 to 1).

    P(Z₁ > z or Z₂ > z) = α + ∫ φ(x)·(1 − Φ((z − ρx)/√(1 − ρ²))) dx for x < z, ρ = √fraction, by Simpson's rule. Source: S. J. Pocock,
    Biometrika 64 (1977) 191–199, for two looks.
    """
    z, rho = NORMAL.inv_cdf(1 - alpha), math.sqrt(fraction)
    if fraction >= 1:
        return alpha
    steps, low = 2000, -9.0
    width = (z - low) / steps
    total = 0.0
    for step in range(steps + 1):
        x = low + step * width
        weight = 1 if step in (0, steps) else 4 if step % 2 else 2
        total += weight * NORMAL.pdf(x) * NORMAL.cdf((rho * x - z) / math.sqrt(1 - rho * rho))
    return alpha + total * width / 3


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p-values adjusted for being several, in the order given: what is below α may be called so, with error α for all.

    The i-th smallest of n is multiplied by n − i + 1, and none is smaller than the one before it. Source: S. Holm, Scandinavian
    Journal of Statistics 6 (1979) 65–70.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return tuple(adjusted)


def planning(alpha: float = ALPHA) -> float:
    """Return (z₁₋α + z₀.₈₀)², the constant of every sample size here: 6.183 for one look."""
    return (NORMAL.inv_cdf(1 - alpha) + NORMAL.inv_cdf(POWER)) ** 2


PLANNING: Final = planning()


def questions_needed(discordance: float, margin: float, *, alpha: float = ALPHA) -> int:
    """Return how many questions a fresh paired run needs to be CONSISTENT with 80 % power, if the true difference is 0.

    ⌈6.183·d/m²⌉, d the share of discordant pairs, m the margin (both shares). At least so many that no discordant pair at all
    would do: z²/(n + z²) < m (`tango_interval`), which decides where d is 0. Source: the paired form of the usual
    non-inferiority sample size, (z₀.₉₅ + z₀.₈₀)²·σ²/m², with σ² = d. Raises ValueError unless 0 ≤ d ≤ 1 and 0 < m < 1.
    """
    _check_plan(discordance, margin)
    return max(math.ceil(planning(alpha) * discordance / margin**2), _silent_pairs(margin, alpha))


def repeats_needed(discordance: float, margin: float, n: int, *, alpha: float = ALPHA, reference: int | None = None) -> int:
    """Return how many runs of `n` questions each side needs to be CONSISTENT with 80 % power, if the true difference is 0.

    k = ⌈6.183·d/(n·m²)⌉ and at least 1, d the discordance of two runs: for sampling above temperature 0, where repeats are new
    draws. At temperature 0 more questions are needed instead (`questions_needed`). With `reference` runs that the reference has
    already, k is the candidate's alone: d/2·(1/k + 1/reference) ≤ n·m²/6.183; unless even endless runs of the candidate would not
    do, and then both sides need the k of before. Never fewer than it takes where no pair is discordant. Source: as for
    `questions_needed`. Raises ValueError as that does, and for n ≤ 0.
    """
    _check_plan(discordance, margin)
    if n <= 0:
        raise ValueError(f"n must be positive, not {n}")
    room = n * margin**2 / planning(alpha)
    left = room - discordance / 2 / reference if reference else 0.0
    k = discordance / 2 / left if left > 0 else discordance / room
    return max(1, math.ceil(k), math.ceil(_silent_pairs(margin, alpha) / n))


def _silent_pairs(margin: float, alpha: float) -> int:
    """Return how many pairs without a discordant one exclude a loss of `margin`: z²/(n + z²) < m."""
    z2 = NORMAL.inv_cdf(1 - alpha) ** 2
    return math.floor(z2 * (1 - margin) / margin) + 1


def _check_plan(discordance: float, margin: float) -> None:
    if not 0 <= discordance <= 1 or not 0 < margin < 1:
        raise ValueError(f"discordance {discordance} and margin {margin} are no shares to plan with")
