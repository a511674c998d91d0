"""How far two next-token distributions are apart, as far as the most likely tokens of each tell: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from release.types import JSON

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

CHUNK: Final = 8192
"""Positions that are compared at once: with 20 tokens each, 3 MB; with 100, 80 MB."""
LEAST: Final = 1e-6
"""Added to the candidate's probability of what is not shown: logprobs are rounded to 1e-6, and a bound must hold all the same."""
REPEATS: Final = 2000
"""Bootstrap samples: the 5 % point of a mean is then good to a few percent of its own spread."""


@dataclass(frozen=True)
class Scores:
    """Positions one after another: the most likely tokens (n × K, −1 where fewer are shown), their logprobs in nats (−inf there), most
    likely first, and the logprob of the token that stands at each position (n).
    """

    top: Tokens
    logprobs: Floats
    chosen: Floats

    def __len__(self) -> int:
        return len(self.chosen)


def scores_of(records: Iterable[JSON], width: int) -> Scores:
    """Return records of `asking.read_scores` as one, with at most `width` tokens a position."""
    return stack([_scores(record, width) for record in records] or [_scores({"top": [], "logprobs": [], "chosen": []}, width)])


def _scores(record: JSON, width: int) -> Scores:
    n = len(record["chosen"])
    top, logprobs = np.full((n, width), -1, np.int64), np.full((n, width), -np.inf)
    for row, (tokens, shown) in enumerate(zip(record["top"], record["logprobs"], strict=True)):
        top[row, : len(tokens)], logprobs[row, : len(shown)] = tokens[:width], shown[:width]
    return Scores(top, logprobs, np.asarray(record["chosen"], np.float64))


def stack(scores: Sequence[Scores]) -> Scores:
    """Return scores of the same width one after another."""
    return Scores(
        np.concatenate([one.top for one in scores]),
        np.concatenate([one.logprobs for one in scores]),
        np.concatenate([one.chosen for one in scores]),
    )


def kl_bound(reference: Scores, candidate: Scores) -> Floats:
    """Return a lower bound of KL(reference ‖ candidate) in nats for each position, never below 0.

    The larger of two bounds. (a) The tokens that both sides show, and all others as one: by the log sum inequality, merging outcomes never
    raises a divergence. (b) The tokens that the reference shows, and all others as one, with an upper bound for each probability
    that the candidate does not show: of a token the least that it does show, of the others what its shown share of these tokens
    leaves. Sources: T. M. Cover, J. A. Thomas, Elements of Information Theory, theorem 2.7.1; the top-k form of llama.cpp's
    `--kl-divergence`.
    """
    pieces = [_bound(_cut(reference, start), _cut(candidate, start)) for start in range(0, max(len(reference), 1), CHUNK)]
    return np.concatenate(pieces)


def _cut(scores: Scores, start: int) -> Scores:
    end = start + CHUNK
    return Scores(scores.top[start:end], scores.logprobs[start:end], scores.chosen[start:end])


def _bound(reference: Scores, candidate: Scores) -> Floats:
    same = (reference.top[:, :, None] == candidate.top[:, None, :]) & (reference.top[:, :, None] >= 0)
    both, where = same.any(axis=2), same.argmax(axis=2)
    lr, p = reference.logprobs, np.exp(reference.logprobs)
    lc = np.take_along_axis(candidate.logprobs, where, axis=1)
    least = np.where(np.isfinite(candidate.logprobs), candidate.logprobs, np.inf).min(axis=1, initial=np.inf)
    shared = np.where(both, p * (np.where(both, lr, 0.0) - np.where(both, lc, 0.0)), 0.0).sum(axis=1)
    left = 1 - np.where(both, np.exp(lc), 0.0).sum(axis=1)
    coarse = shared + _term(1 - np.where(both, p, 0.0).sum(axis=1), left)
    missing = ~both & (reference.top >= 0)
    capped = np.where(missing, p * (np.where(missing, lr, 0.0) - least[:, None]), 0.0).sum(axis=1)
    fine = shared + capped + _term(1 - p.sum(axis=1), left)
    return np.asarray(np.maximum(np.maximum(coarse, fine), 0.0))


def _term(p: Floats, q: Floats) -> Floats:
    """Return p·ln(p/q) with p cut at 0 and q rounded up by LEAST."""
    p = np.clip(p, 0.0, 1.0)
    return np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / (np.maximum(q, 0.0) + LEAST)), 0.0)


def disagreements(reference: Scores, candidate: Scores) -> NDArray[np.bool_]:
    """Return for each position whether the most likely token is another."""
    return np.asarray(reference.top[:, 0] != candidate.top[:, 0])


def gaps(scores: Scores) -> Floats:
    """Return for each position by how many nats the most likely token leads the second; inf where only one is shown."""
    if scores.logprobs.shape[1] < 2:
        return np.full(len(scores), np.inf)
    return np.asarray(scores.logprobs[:, 0] - scores.logprobs[:, 1])


@dataclass(frozen=True)
class Mean:
    """A mean over positions with the ends of its one-sided 95 % bounds, from a bootstrap over prompts."""

    value: float
    low: float
    high: float

    def figures(self) -> JSON:
        """Return it for a verdict."""
        return {"mean": self.value, "low-95": self.low, "high-95": self.high}


def clustered_mean(values: NDArray[Any], clusters: Tokens, *, tail: float = 0.05, seed: int = 0) -> Mean:
    """Return the mean of `values` and the `tail` and 1 − `tail` points of its bootstrap distribution, where whole clusters are drawn.

    Tokens of one prompt are not independent, prompts are. Percentile bootstrap of a ratio of sums; deterministic by `seed`.
    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, §13.3. Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("there is nothing to take the mean of")
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, np.float64))
    counts = np.bincount(index).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), REPEATS).astype(np.float64)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Mean(float(sums.sum() / counts.sum()), float(low), float(high))


def quantiles(values: Floats, points: Sequence[float] = (0.5, 0.9, 0.99, 0.999)) -> JSON:
    """Return quantiles of `values` under the names p50, p90, p99, p99.9, and the largest as max."""
    found = {f"p{100 * point:g}": float(value) for point, value in zip(points, np.quantile(values, points), strict=True)}
    return found | {"max": float(values.max())}
