"""The arithmetic of a bench, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from release.kernels import figures


def test_gigabytes_are_of_ten_to_the_ninth_and_teraflops_of_ten_to_the_twelfth() -> None:
    assert figures.bandwidth(3_000_000, 2e-6) == pytest.approx(1500.0)
    assert figures.rate(2 * 4096**3, 1e-3) == pytest.approx(137.438953472)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_no_time_at_all_is_no_figure(seconds: float) -> None:
    with pytest.raises(ValueError, match="nothing to divide by"):
        figures.bandwidth(1, seconds)
    with pytest.raises(ValueError, match="nothing to divide by"):
        figures.rate(1, seconds)


def test_the_bound_is_the_longer_of_moving_and_computing() -> None:
    """2 GB at 1000 GB/s are 2 ms; 1 TFLOP at 100 TFLOP/s is 10 ms, at 1000 TFLOP/s 1 ms."""
    assert figures.bound(2 * 10**9, 10**12, 1000.0, 100.0) == pytest.approx(0.010)
    assert figures.bound(2 * 10**9, 10**12, 1000.0, 1000.0) == pytest.approx(0.002)
    assert figures.bound(2 * 10**9, 10**12, 1000.0, None) == pytest.approx(0.002)


def test_intensity_is_operations_a_byte_and_of_nothing_there_is_none() -> None:
    assert figures.intensity(4, 10) == 2.5
    assert figures.intensity(0, 10) is None
    assert figures.intensity(4, 0) is None


def test_the_best_peer_is_the_fastest_and_of_equals_the_first() -> None:
    assert figures.best({"eager": 3e-6, "compiled": 2e-6, "flaggems": 2e-6}) == ("compiled", 2e-6)
    assert figures.best({}) is None


def test_twice_as_fast_and_half_as_fast_is_one_in_the_mean() -> None:
    assert figures.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert figures.geometric_mean([1.0, 2.0, 4.0]) == pytest.approx(2.0)
    for nothing in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="nothing"):
            figures.geometric_mean(nothing)


def test_the_spread_of_two_rounds_is_a_share_of_their_median() -> None:
    assert figures.spread([9.0, 11.0]) == pytest.approx(0.2)
    assert figures.spread([4.0]) == 0.0
    with pytest.raises(ValueError, match="nothing was repeated"):
        figures.spread([])


@pytest.mark.parametrize(
    ("cache", "size", "copies"),
    [
        (50_000, 60_000, 2),  # one copy is more than the cache: that and the one in use
        (50_000, 50_000, 2),
        (50_000, 20_000, 4),  # three copies fill the cache
        (50_000, 1000, 51),
        (51_200, 1, 101),  # what is smaller than memory is given out in takes that much
        (51_200, 0, 101),
    ],
)
def test_inputs_rotate_over_as_many_copies_as_no_cache_can_hold(cache: int, size: int, copies: int) -> None:
    assert figures.rotation(cache, size) == copies
    assert (copies - 1) * max(size, figures.LEAST_ROOM) >= cache


def test_the_cache_is_emptied_until_the_host_is_ahead_and_once_where_it_is_or_nothing_is_known_of_it() -> None:
    assert [figures.covers(host, 1e-4, 32) for host in (0.0, 5e-5, 1e-4, 2.1e-4, 1.0)] == [1, 1, 2, 4, 32]
    assert figures.covers(1.0, 0.0, 32) == 1


def test_calls_fill_the_budget_within_limits() -> None:
    assert figures.calls(0.001, 0.1, 10, 200) == 100
    assert figures.calls(1.0, 0.1, 10, 200) == 10
    assert figures.calls(1e-6, 0.1, 10, 200) == 200
    assert figures.calls(0.0, 0.1, 10, 200) == 200
