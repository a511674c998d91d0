"""Rotary embedding of query and key, in place: pairs of dimensions turned by an angle that grows with the position (arXiv 2104.09864).

Which dimensions make a pair differs: NeoX's halves (i and i + half; Qwen) or neighbours (2i and 2i + 1; DeepSeek, whose rotary part is a
tensor of its own). Angles come as a table of cosines and sines, so that any scaling of them (YaRN, arXiv 2309.00071) is the model's matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched

YARN: Final = {"factor": 40, "original": 4096, "fast": 32, "slow": 1}
"""The scaling of DeepSeek-V3's config.json, with which the checked tables are made."""


@triton.jit
def turn(x, head, heads, head_stride, cos, sin, pair, half, INTERLEAVED: tl.constexpr):
    """Turn the pairs of some heads of one token, whose first element is at x."""
    mask = (head < heads)[:, None] & (pair < half)[None, :]
    first = x + head[:, None] * head_stride + (2 * pair if INTERLEAVED else pair)[None, :]
    second = first + (1 if INTERLEAVED else half)
    a = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(second, mask=mask, other=0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(x.dtype.element_ty), mask=mask)
    tl.store(second, (b * cos + a * sin).to(x.dtype.element_ty), mask=mask)


@triton.jit
def release_rotary_kernel(
    positions,
    query,
    key,
    table,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    table_stride,
    heads,
    kv_heads,
    half,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Turn HEADS heads of one token: of the query in the first programs of a token, of the key in the others."""
    token = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(heads, HEADS)
    block = tl.program_id(1)
    pair = tl.arange(0, PAIRS)
    angles = table + tl.load(positions + token).to(tl.int64) * table_stride
    cos = tl.load(angles + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(angles + half + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
    if block < blocks:
        head = block * HEADS + tl.arange(0, HEADS)
        turn(query + token * query_stride, head, heads, query_head_stride, cos, sin, pair, half, INTERLEAVED)
    else:
        head = (block - blocks) * HEADS + tl.arange(0, HEADS)
        turn(key + token * key_stride, head, kv_heads, key_head_stride, cos, sin, pair, half, INTERLEAVED)


def launch(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    table: torch.Tensor,
    interleaved: bool,
    *,
    configuration: Mapping[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn the first `rotary` dimensions of query [tokens, heads, dim] and key [tokens, kv-heads, dim], in place, and return both.

    `positions` [tokens] are whole numbers, rows of `table` [positions, rotary], which holds the cosines and then the sines of each pair.
    """
    rotary = table.shape[1]
    if rotary % 2 or rotary > query.shape[2] or query.shape[2] != key.shape[2] or not len(query) == len(key) == len(positions):
        raise ValueError(f"query {tuple(query.shape)}, key {tuple(key.shape)} and a table of {rotary} do not fit")
    if query.stride(2) != 1 or key.stride(2) != 1 or table.stride(1) != 1 or not positions.is_contiguous():
        raise ValueError("dimensions of a head, of the table, or positions are not contiguous")
    cut = configured("rotary", configuration, rows=len(positions), dtype=query.dtype)
    heads, kv_heads, block = query.shape[1], key.shape[1], cut["heads"]
    if query.numel():
        release_rotary_kernel[(len(positions), triton.cdiv(heads, block) + triton.cdiv(kv_heads, block))](
            *(positions, query, key, table),
            *(query.stride(0), query.stride(1), key.stride(0), key.stride(1), table.stride(0), heads, kv_heads, rotary // 2),
            INTERLEAVED=interleaved,
            HEADS=block,
            PAIRS=triton.next_power_of_2(rotary // 2),
            **launched(cut),
        )
    return query, key


def reference(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, table: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in float64: as complex numbers, each pair times its angle's."""
    half = table.shape[1] // 2
    cos, sin = table.double()[positions].split(half, -1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = (
            x.double()[..., : 2 * half]
            .unflatten(-1, (half, 2) if interleaved else (2, half))
            .movedim(-1 if interleaved else -2, 0)
        )
        moved = torch.complex(pairs[0], pairs[1]) * torch.complex(cos, sin)[:, None, :]
        both = torch.stack([moved.real, moved.imag], -1 if interleaved else -2).flatten(-2)
        return torch.cat([both, x.double()[..., 2 * half :]], -1)

    return turned(query), turned(key)


def angles(context: int, rotary: int, interleaved: bool, device: torch.device) -> torch.Tensor:
    """Return cosines and sines [context, rotary] in float32; with YaRN's scaling for neighbours, as DeepSeek has it."""
    base = 10_000.0 if interleaved else 1_000_000.0
    exponent = torch.arange(0, rotary, 2, device=device, dtype=torch.float64) / rotary
    frequency = base**-exponent
    if interleaved:
        low, high = (_pair_that_turns(times, rotary, base) for times in (YARN["fast"], YARN["slow"]))
        first, last = max(math.floor(low), 0), min(math.ceil(high), rotary - 1)
        ramp = ((torch.arange(rotary // 2, device=device, dtype=torch.float64) - first) / max(last - first, 1e-3)).clamp(0, 1)
        frequency = frequency / YARN["factor"] * ramp + frequency * (1 - ramp)
    angle = torch.arange(context, device=device, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1).float()


def _pair_that_turns(times: float, rotary: int, base: float) -> float:
    """Return which pair turns so many times over the original context."""
    return rotary * math.log(YARN["original"] / (times * 2 * math.pi)) / (2 * math.log(base))


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return query and key at positions anywhere in the context, and the table."""
    rows, neighbours = sizes["rows"], bool(sizes["interleaved"])

    def random(heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, sizes["dim"], generator=generator, device=device, dtype=torch.float32).to(dtype)

    return {
        "positions": torch.randint(sizes["context"], (rows,), generator=generator, device=device),
        "query": random(sizes["heads"]),
        "key": random(sizes["kv_heads"]),
        "table": angles(sizes["context"], sizes["rotary"], neighbours, device).to(dtype),
        "interleaved": neighbours,
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return query and key of the model; with latent attention their rotary part, of which all heads share one key."""
    latent = facts.kv_lora_rank > 0
    dim = facts.qk_rope_head_dim if latent else facts.head_dim
    kv_heads = 1 if latent else facts.kv_heads
    fixed = {"heads": facts.heads, "kv_heads": kv_heads, "dim": dim, "rotary": dim, "context": facts.context}
    return [{"rows": tokens, **fixed, "interleaved": int(facts.rope == "interleaved")} for tokens in TOKENS]


def moved(inputs: Inputs) -> int:
    """Return the bytes of the turned dimensions read and written once, and of a row of the table a token."""
    query, key, table = inputs["query"], inputs["key"], inputs["table"]
    turned = size_of(query, key) * int(table.shape[1]) // int(query.shape[2])
    return 2 * turned + len(query) * size_of(table[:1]) + size_of(inputs["positions"])


SMALL: Final = {"rows": 5, "heads": 3, "kv_heads": 1, "dim": 64, "rotary": 64, "context": 97, "interleaved": 0}

OPERATOR: Final = Operator(
    name="rotary",
    family="rotary",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=12, heads=40, context=512),
    edges={
        "one row": {**SMALL, "rows": 1},
        "empty": {**SMALL, "rows": 0},
        "odd": {**SMALL, "dim": 80, "rotary": 80},
        "some dimensions": {**SMALL, "dim": 80, "rotary": 48},
        "neighbours": {**SMALL, "interleaved": 1},
        "some dimensions, neighbours": {**SMALL, "dim": 80, "rotary": 48, "interleaved": 1},
        "more heads than a block": {**SMALL, "rows": 3, "heads": 19, "kv_heads": 17},
    },
    hostile=("query", "key"),
    largest=100,
    strided=("query", "key"),
    laid={"more heads than a block": {"query": (1, 0, 2), "key": (0, 1, 2), "table": (0, 1)}},
    in_place=("query", "key"),
    moved=moved,
    flops=lambda inputs: 3 * int(inputs["query"].numel() + inputs["key"].numel()),
)
