"""Whether two servers draw their answers from the same distribution: maximum mean discrepancy with a permutation test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERMUTATIONS: Final = 999
BATCH: Final = 100
"""Permutations that are computed at once."""


@dataclass(frozen=True)
class Discrepancy:
    """The squared MMD (mean over prompts, may fall below 0), its one-sided 95 % bounds from a bootstrap over prompts, and the
    permutation p-value of "both sides draw from the same distributions".
    """

    value: float
    low: float
    high: float
    p: float
    prompts: int


def hamming(sequences: Sequence[Sequence[int] | str]) -> Floats:
    """Return the kernel of every two sequences: the share of positions where they have the same token, of the longest one's.

    Behind its end a sequence has an end of its own at each position, and two ends are the same. Source: I. Gao, P. Liang, C. Guestrin, Model
    Equality Testing (arXiv 2410.20247), the Hamming kernel on strings padded to one length.
    """
    longest = max(map(len, sequences), default=0)
    if not longest:
        return np.ones((len(sequences), len(sequences)))
    table = np.full((len(sequences), longest), -1, np.int64)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence)] = [ord(one) if isinstance(one, str) else one for one in sequence]
    return np.asarray((table[:, None, :] == table[None, :, :]).mean(axis=2))


def discrepancy(kernels: Floats, n: int, *, seed: int = 0, permutations: int = PERMUTATIONS) -> Discrepancy:
    """Compare `n` answers of one side with the others of the other side, prompt by prompt.

    `kernels` is prompts × m × m, each the kernel of all answers to one prompt, one side's `n` first. The statistic is the unbiased estimate
    of MMD² (A. Gretton et al., JMLR 13 (2012) 723–773, equation 3), averaged over prompts; for the p-value the sides are shuffled
    within each prompt, and p = (1 + how many are as large) / (1 + permutations): exact at any number of answers.
    Raises ValueError for fewer than two answers on a side, or no prompts.
    """
    prompts, m, _ = kernels.shape
    if prompts == 0 or n < 2 or m - n < 2:
        raise ValueError(f"{prompts} prompts with {n} and {m - n} answers cannot be compared")
    bare = kernels * (1 - np.eye(m))
    first = np.zeros((1, prompts, m))
    first[:, :, :n] = 1.0
    own = _statistic(bare, first, n)[0]
    rng = np.random.default_rng(seed)
    value, as_large = float(own.mean()), 0
    for start in range(0, permutations, BATCH):
        count = min(BATCH, permutations - start)
        order = rng.permuted(np.broadcast_to(np.arange(m), (count, prompts, m)), axis=2)
        drawn = _statistic(bare, (order < n).astype(np.float64), n).mean(axis=1)
        as_large += int((drawn >= value - 1e-12).sum())
    means = own[rng.integers(0, prompts, (2000, prompts))].mean(axis=1)
    low, high = np.quantile(means, [0.05, 0.95])
    return Discrepancy(value, float(low), float(high), (1 + as_large) / (1 + permutations), prompts)


def _statistic(bare: Floats, first: Floats, n: int) -> Floats:
    """Return MMD² (draws × prompts) for labels `first` (draws × prompts × m, 1 for the first side); `bare` has an empty diagonal."""
    other = bare.shape[1] - n
    second = 1 - first
    left = np.einsum("dpi,pij->dpj", first, bare, optimize=True)
    within = (left * first).sum(axis=2) / (n * (n - 1))
    across = (left * second).sum(axis=2) / (n * other)
    right = np.einsum("dpi,pij->dpj", second, bare, optimize=True)
    return np.asarray(within + (right * second).sum(axis=2) / (other * (other - 1)) - 2 * across)
