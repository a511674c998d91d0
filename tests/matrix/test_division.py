"""Shapes divide over devices, or the reason is said: published models, and random ones."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plans import QWEN2_7B, QWEN2_HALF, QWEN3_8B, QWEN3_235B, QWQ, R1, architectures

from release.matrix.division import OBSTACLES, block_of, even, obstacles, sizes
from release.matrix.memory import Format
from release.types import PRECISIONS, Architecture, Parallel, Precision

BF16 = Format("bf16", 2)


@pytest.mark.parametrize(
    ("shape", "precision", "allowed"),
    [
        (QWEN2_HALF, "bf16", (1, 2)),
        (QWEN2_7B, "bf16", (1, 2, 4)),
        (QWQ, "bf16", (1, 2, 4, 8)),
        (QWEN3_8B, "bf16", (1, 2, 4, 8, 16)),
        (QWEN3_235B, "bf16", (1, 2, 4, 8, 16)),
        (QWEN3_235B, "fp8", (1, 2, 4)),
        (R1, "fp8", (1, 2, 4, 8, 16)),
    ],
)
def test_the_sizes_that_work_are_the_references(shape: Architecture, precision: Precision, allowed: tuple[int, ...]) -> None:
    assert tuple(size for size in sizes(shape, Format(precision, 2), 16) if size & (size - 1) == 0) == allowed


@given(architectures(), st.integers(1, 40), st.integers(1, 12))
def test_a_layout_without_obstacles_gives_every_device_whole_and_equal_parts(shape: Architecture, tp: int, pp: int) -> None:
    parallel = Parallel(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    against = obstacles(shape, BF16, parallel)
    assert obstacles(shape, BF16, Parallel()) == ()
    whole = (
        *(shape.heads % tp == 0, shape.mla is not None or shape.kv_heads % tp == 0 or tp % shape.kv_heads == 0),
        *((shape.moe is not None and not shape.moe.dense_layers) or shape.intermediate % tp == 0, pp <= shape.layers),
        shape.moe is None or shape.moe.dense_layers >= shape.layers or shape.moe.intermediate % tp == 0,
    )
    assert (against == ()) is all(whole)
    assert all(str(tp) in message or str(pp) in message for message in against)


@given(architectures(), st.sampled_from(PRECISIONS), st.sampled_from([None, 8, 32]), st.integers(2, 16))
def test_no_block_is_cut_in_two(shape: Architecture, precision: Precision, block: int | None, tp: int) -> None:
    f = Format(precision, 2, block)
    parallel = Parallel(tensor_parallel_size=tp)
    side = block_of(f)
    if side is None:
        assert list(OBSTACLES["quantisation-block"](shape, f, parallel)) == []
        return
    assume(not obstacles(shape, f, parallel))
    if shape.moe is None:
        assert shape.intermediate // tp % side == 0
    assert shape.heads * (shape.mla.v_head_dim if shape.mla else shape.head_dim) // tp % side == 0


@given(architectures(), st.integers(1, 24))
def test_sizes_are_just_those_without_obstacles(shape: Architecture, most: int) -> None:
    free = [n for n in range(1, most + 1) if not obstacles(shape, BF16, Parallel(tensor_parallel_size=n))]
    assert sizes(shape, BF16, most) == tuple(free)


def test_a_pipeline_that_one_would_choose_is_even() -> None:
    assert even(R1, 2)
    assert even(R1, 4)
    assert not even(QWEN3_8B, 16)
    assert not even(QWEN2_7B, 29)
