"""The permutation test is uniform where nothing differs, sees what differs, and its size is an unbiased one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from release.validators.consistency.discrepancy import discrepancy, hamming

Array = np.ndarray[Any, Any]


def kernels(rng: np.random.Generator, prompts: int, n: int, shift: float) -> Array:
    """Kernels of sequences of 8 tokens, one side's tokens drawn from a distribution that is `shift` away from the other's."""
    found = []
    for _ in range(prompts):
        p = rng.dirichlet(np.ones(6))
        q = (1 - shift) * p + shift * rng.dirichlet(np.ones(6))
        sides = [rng.choice(6, (n, 8), p=one).tolist() for one in (p, q)]
        found.append(hamming([*sides[0], *sides[1]]))
    return np.stack(found)


def test_p_is_uniform_where_both_sides_are_the_same() -> None:
    rng = np.random.default_rng(11)
    drawn = np.sort([discrepancy(kernels(rng, 6, 4, 0.0), 4, seed=i, permutations=99).p for i in range(400)])
    distance = np.abs(drawn - np.arange(1, 401) / 400).max()
    assert distance < 1.63 / np.sqrt(400) + 0.01, "Kolmogorov–Smirnov at 1 %, and the step of 1/100"
    assert 0.01 <= (drawn <= 0.05).mean() <= 0.09


def test_the_statistic_has_no_bias_where_both_sides_are_the_same() -> None:
    rng = np.random.default_rng(12)
    values = [discrepancy(kernels(rng, 10, 5, 0.0), 5, permutations=9).value for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)


def test_what_differs_is_seen() -> None:
    found = discrepancy(kernels(np.random.default_rng(13), 40, 8, 0.6), 8)
    assert found.p == 0.001 and found.low > 0 and found.prompts == 40


def test_answers_that_are_all_the_same_differ_by_nothing() -> None:
    found = discrepancy(np.ones((5, 8, 8)), 4)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_kernel_is_the_share_of_equal_positions() -> None:
    assert hamming([[1, 2, 3, 4], [1, 2, 9], []]).tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]]
    assert hamming(["ab", "ab"]).tolist() == [[1, 1], [1, 1]] and hamming([[], []]).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(("prompts", "m", "n"), [(0, 4, 2), (3, 4, 1), (3, 4, 3)])
def test_too_little_to_compare_is_refused(prompts: int, m: int, n: int) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        discrepancy(np.ones((prompts, m, m)), n)
