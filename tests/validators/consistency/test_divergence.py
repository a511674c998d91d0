"""The KL bound never exceeds the divergence, the bootstrap knows prompts, and quantiles are what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from release.validators.consistency.divergence import (
    Scores,
    clustered_mean,
    disagreements,
    gaps,
    kl_bound,
    quantiles,
    scores_of,
)

Array = np.ndarray[Any, Any]


def shown(p: Array, top: int) -> Scores:
    """What a server shows of distributions (n × vocabulary): the `top` most likely tokens."""
    order = np.argsort(-p, axis=1, kind="stable")[:, :top]
    with np.errstate(divide="ignore"):
        logprobs = np.maximum(np.log(np.take_along_axis(p, order, axis=1)), -60.0)
    return Scores(order, np.round(logprobs, 6), logprobs[:, 0])


def divergence(p: Array, q: Array) -> Array:
    return np.asarray((p * (np.log(p) - np.log(q))).sum(axis=1))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 25), st.floats(0.02, 5.0), st.floats(0.0, 4.0))
def test_the_bound_is_never_above_the_true_divergence(seed: int, words: int, top: int, spread: float, noise: float) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(words, spread), 20) + 1e-12
    q = p * np.exp(rng.normal(0, noise, p.shape))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    bound = kl_bound(shown(p, top), shown(q, top))
    assert (bound >= 0).all() and (bound <= divergence(p, q) + 1e-5).all()


def test_with_the_whole_vocabulary_the_bound_is_the_divergence() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(12), 500), rng.dirichlet(np.ones(12), 500)
    assert kl_bound(shown(p, 12), shown(q, 12)) == pytest.approx(divergence(p, q), abs=1e-3)


def test_of_distributions_as_models_have_them_the_bound_keeps_almost_all() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 4, (400, 1000))
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in (logits, logits + rng.normal(0, 0.3, logits.shape)))
    assert kl_bound(shown(p, 20), shown(q, 20)).mean() > 0.8 * divergence(p, q).mean()


def test_the_same_scores_have_no_divergence_and_no_disagreement() -> None:
    one = shown(np.random.default_rng(3).dirichlet(np.ones(50), 300), 20)
    assert kl_bound(one, one).max() == 0.0 and not disagreements(one, one).any()


def test_a_token_that_the_candidate_does_not_even_show_counts_with_the_least_that_it_shows() -> None:
    reference = Scores(np.array([[5, 1]]), np.log([[0.6, 0.3]]), np.log([0.6]))
    candidate = Scores(np.array([[7, 8]]), np.log([[0.9, 0.05]]), np.log([0.9]))
    least = 0.6 * np.log(0.6 / 0.05) + 0.3 * np.log(0.3 / 0.05) + 0.1 * np.log(0.1)
    assert kl_bound(reference, candidate)[0] == pytest.approx(least, abs=1e-6)


def test_tokens_that_are_not_shown_stand_at_the_end_and_never_match() -> None:
    records = [{"top": [[3, 4], [1]], "logprobs": [[-0.1, -3.0], [-0.2]], "chosen": [-0.1, -0.2]}]
    scores = scores_of(records, 2)
    assert scores.top.tolist() == [[3, 4], [1, -1]] and scores.logprobs[1, 1] == -np.inf
    assert kl_bound(scores, scores).tolist() == [0.0, 0.0]
    assert gaps(scores).tolist() == [pytest.approx(2.9), np.inf]
    assert len(scores_of([], 2)) == 0 and len(kl_bound(scores_of([], 2), scores_of([], 2))) == 0


def test_many_tokens_of_one_prompt_say_less_than_as_many_prompts() -> None:
    rng = np.random.default_rng(4)
    effect = np.repeat(rng.normal(0, 1, 50), 100)
    together = clustered_mean(effect, np.repeat(np.arange(50), 100))
    apart = clustered_mean(effect, np.arange(5000))
    assert (together.value, apart.value) == pytest.approx((effect.mean(), effect.mean()))
    assert together.high - together.low > 5 * (apart.high - apart.low)
    assert together == clustered_mean(effect, np.repeat(np.arange(50), 100))
    with pytest.raises(ValueError, match="nothing"):
        clustered_mean(np.empty(0), np.empty(0, np.int64))


def test_the_bounds_of_a_mean_hold_in_nine_of_ten_runs() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        effect = np.repeat(rng.normal(1.0, 1.0, 60), 20) + rng.normal(0, 0.5, 1200)
        mean = clustered_mean(effect, np.repeat(np.arange(60), 20))
        held += mean.low <= 1.0 <= mean.high
    assert 0.83 <= held / 200 <= 0.96


def test_quantiles_carry_their_names() -> None:
    assert quantiles(np.arange(1001.0)) == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
