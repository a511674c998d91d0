"""Whether a model's shapes can be divided over devices: heads, feed-forwards, quantisation blocks and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from release.matrix.memory import DEFAULT_BLOCK, Format, partition
from release.types import Architecture, Parallel

LARGEST: Final = 64
"""Devices of one tensor parallel group at most, where sizes are tried out."""
UNEVEN: Final = 1.2
"""How much more than its share the fullest pipeline stage may hold in a layout that is chosen for somebody."""

Obstacle = Callable[[Architecture, Format, Parallel], Iterator[str]]


def heads(a: Architecture, f: Format, parallel: Parallel) -> Iterator[str]:
    """Every device computes whole attention heads, and equally many."""
    tp = parallel.tensor_parallel_size
    if a.heads % tp:
        yield f"tensor-parallel-size {tp} does not divide {a.heads} attention heads"


def kv_heads(a: Architecture, f: Format, parallel: Parallel) -> Iterator[str]:
    """Key-value heads are split, or each lies on equally many devices; latent attention has none to split."""
    tp = parallel.tensor_parallel_size
    if not a.mla and a.kv_heads % tp and tp % a.kv_heads:
        yield f"tensor-parallel-size {tp} neither divides {a.kv_heads} key-value heads nor is a multiple of them"


def feed_forwards(a: Architecture, f: Format, parallel: Parallel) -> Iterator[str]:
    """Every device computes an equal part of each feed-forward, also of each expert's."""
    tp = parallel.tensor_parallel_size
    for what, width in _widths(a):
        if width % tp:
            yield f"tensor-parallel-size {tp} does not divide {what} of {width}"


def blocks(a: Architecture, f: Format, parallel: Parallel) -> Iterator[str]:
    """A quantisation block or group lies on one device: the inputs of a divided layer, per device, are a multiple of its side."""
    tp, side = parallel.tensor_parallel_size, block_of(f)
    if tp == 1 or side is None:
        return
    values = a.heads * (a.mla.v_head_dim if a.mla else a.head_dim)
    for what, width in (*_widths(a), ("an attention output", values)):
        if not width % tp and width // tp % side:
            yield (
                f"tensor-parallel-size {tp} cuts {what} of {width} into {width // tp}, "
                f"which is not a multiple of the quantisation block of {side}"
            )


def stages(a: Architecture, f: Format, parallel: Parallel) -> Iterator[str]:
    """Every pipeline stage has a layer."""
    if parallel.pipeline_parallel_size > a.layers:
        yield f"pipeline-parallel-size {parallel.pipeline_parallel_size} is more than {a.layers} layers"


OBSTACLES: Final[dict[str, Obstacle]] = {
    "attention-heads": heads,
    "key-value-heads": kv_heads,
    "feed-forward": feed_forwards,
    "quantisation-block": blocks,
    "pipeline": stages,
}
"""What can stand in the way of a layout, by the name of its rule. (vLLM refuses the same: config/model.py, verify_with_parallel_config;
model_executor/layers/quantization/utils/fp8_utils.py, validate_fp8_block_shape.)"""


def obstacles(a: Architecture, f: Format, parallel: Parallel) -> tuple[str, ...]:
    """Return why the arithmetic forbids a layout: nothing where it does not."""
    return tuple(message for obstacle in OBSTACLES.values() for message in obstacle(a, f, parallel))


def sizes(a: Architecture, f: Format, most: int = LARGEST) -> tuple[int, ...]:
    """Return every tensor parallel size up to `most` that the arithmetic allows."""
    return tuple(size for size in _divisors(a.heads, most) if not obstacles(a, f, Parallel(tensor_parallel_size=size)))


def even(a: Architecture, pp: int) -> bool:
    """Say whether `pp` stages share the layers so evenly that one would choose it."""
    return pp <= a.layers and max(partition(a.layers, pp)) * pp <= UNEVEN * a.layers


def block_of(f: Format) -> int | None:
    """Return the side of a quantisation block or group; None where weights have none, or nobody has said how large an int4 group is."""
    if f.precision == "fp8":
        return f.block or DEFAULT_BLOCK
    return f.block if f.precision in ("w4a16", "w8a16") else None


def _widths(a: Architecture) -> Iterator[tuple[str, int]]:
    if a.moe is None or a.moe.dense_layers:
        yield "a feed-forward", a.intermediate
    if a.moe and a.moe.dense_layers < a.layers:
        yield "an expert", a.moe.intermediate


def _divisors(number: int, most: int) -> Iterator[int]:
    yield from (divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0)
