"""Attention of one new token a sequence over its keys and values in the paged cache: decoding, with grouped query heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import attend, product
from ..configurations import configuration as configured
from ..operator import DECODE, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, whole


@triton.jit
def release_paged_attention_kernel(
    query,
    key_cache,
    value_cache,
    tables,
    lengths,
    key_scale,
    value_scale,
    out,
    scale,
    query_token,
    query_head,
    table_row,
    cache_block,
    cache_place,
    cache_head,
    out_token,
    out_head,
    SHARE: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Answer the query heads of one sequence that share a head of keys."""
    sequence = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    length = tl.load(lengths + sequence)
    member = tl.arange(0, BLOCK_HEADS)
    head = group * SHARE + member
    channel = tl.arange(0, BLOCK_SIZE)
    wide = channel < SIZE
    asked = (member < SHARE)[:, None] & wide[None, :]
    q = tl.load(query + sequence * query_token + head[:, None] * query_head + channel[None, :], mask=asked, other=0.0)
    if NARROW:
        q = (q.to(tl.float32) * tl.load(key_scale + group * SIZE + channel, mask=wide, other=0.0)[None, :]).to(q.dtype)
    highest = tl.full((BLOCK_HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_HEADS,), dtype=tl.float32)
    result = tl.zeros((BLOCK_HEADS, BLOCK_SIZE), dtype=tl.float32)
    for start in range(0, length, BLOCK_KEYS):
        place = start + tl.arange(0, BLOCK_KEYS)
        held = place < length
        block = tl.load(tables + sequence * table_row + place // PAGE, mask=held, other=0).to(tl.int64)
        row = block * cache_block + place % PAGE * cache_place + group * cache_head
        inside = held[:, None] & wide[None, :]
        k = tl.load(key_cache + row[:, None] + channel[None, :], mask=inside, other=0).to(q.dtype)
        v = tl.load(value_cache + row[:, None] + channel[None, :], mask=inside, other=0).to(q.dtype)
        score = product(q, tl.trans(k), tl.zeros((BLOCK_HEADS, BLOCK_KEYS), dtype=tl.float32)) * (scale * 1.44269504089)
        score = tl.where(held[None, :], score, float("-inf"))
        highest, total, result = attend(score, v, highest, total, result)
    result = result / tl.where(total == 0, 1.0, total)[:, None]
    if NARROW:
        result *= tl.load(value_scale + group * SIZE + channel, mask=wide, other=0.0)[None, :]
    there = out + sequence * out_token + head[:, None] * out_head + channel[None, :]
    tl.store(there, result.to(out.dtype.element_ty), mask=asked)


def launch(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    *,
    configuration: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Return softmax(query · keys · scale) · values [sequences, heads, size] in query's dtype; 0 for a sequence of no length.

    query [sequences, heads, size]; caches [blocks, page, key heads, size], in query's dtype, or int8 with float32 scales [key heads,
    size]; tables int32 [sequences, blocks of a sequence]; lengths int32 [sequences]. Entries of tables behind a length are not read.
    """
    sequences, heads, size = query.shape
    page, groups = key_cache.shape[1:3]
    narrow = key_cache.dtype is torch.int8
    if heads % groups or key_cache.stride() != value_cache.stride() or key_cache.stride(3) != 1 or query.stride(2) != 1:
        raise ValueError(f"a query of {tuple(query.shape)} does not fit caches of {tuple(key_cache.shape)}")
    if narrow != (key_scale is not None and value_scale is not None) or (not narrow and key_cache.dtype != query.dtype):
        raise ValueError(f"a cache of {key_cache.dtype} for queries of {query.dtype}, scales or none")
    whole(lengths=lengths, key_scale=key_scale, value_scale=value_scale)
    table_row = rows_of(tables, "tables").stride(0)
    cut = configured("paged-attention", configuration, rows=sequences, dtype=query.dtype)
    out = torch.empty((sequences, heads, size), dtype=query.dtype, device=query.device)
    if out.numel():
        release_paged_attention_kernel[(sequences, groups)](
            *(query, key_cache, value_cache, tables, lengths, key_scale, value_scale, out, scale),
            *(*query.stride()[:2], table_row, *key_cache.stride()[:3], *out.stride()[:2]),
            SHARE=heads // groups,
            SIZE=size,
            PAGE=page,
            NARROW=narrow,
            BLOCK_HEADS=max(16, triton.next_power_of_2(heads // groups)),
            BLOCK_KEYS=cut["keys"],
            BLOCK_SIZE=max(16, triton.next_power_of_2(size)),
            **launched(cut),
        )
    return out


def reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Return it in float64, sequence by sequence."""
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    share = query.shape[1] // key_cache.shape[2]
    for sequence, length in enumerate(lengths.tolist()):
        if not length:
            continue
        blocks = tables[sequence, : -(-length // key_cache.shape[1])].long()
        k, v = (cache[blocks].flatten(0, 1)[:length].double() for cache in (key_cache, value_cache))
        k = k if key_scale is None else k * key_scale.double()
        v = v if value_scale is None else v * value_scale.double()
        k, v = (x.repeat_interleave(share, 1) for x in (k, v))
        weights = (torch.einsum("hd,khd->hk", query[sequence].double(), k) * scale).softmax(-1)
        out[sequence] = torch.einsum("hk,khd->hd", weights, v)
    return out


def paged(lengths: torch.Tensor, page: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """Return tables of blocks scattered over a cache of so many blocks; what lies behind a length names no block that exists."""
    counts = [-(-length // page) for length in lengths.tolist()]
    places = torch.randperm(sum(counts) + 1, generator=generator, device=lengths.device).int()
    tables = torch.full((len(counts), max([1, *counts])), 2**30, dtype=torch.int32, device=lengths.device)
    for sequence, count in enumerate(counts):
        tables[sequence, :count] = places[sum(counts[:sequence]) :][:count]
    return tables, sum(counts) + 1


def spoil(cache: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor) -> None:
    """Put NaN wherever no sequence has a token, so that a wrong mask shows."""
    used = torch.zeros(cache.shape[:2], dtype=torch.bool, device=cache.device)
    for sequence, length in enumerate(lengths.tolist()):
        places = torch.arange(length, device=cache.device)
        used[tables[sequence, places // cache.shape[1]].long(), places % cache.shape[1]] = True
    cache[~used] = float("nan") if cache.dtype.is_floating_point else 127


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return queries, and contexts from one token up to `context`, among them those that end a page and just begin one."""
    rows, groups, size, page, context = (sizes[name] for name in ("rows", "groups", "size", "page", "context"))
    lengths = torch.randint(1, context + 1, (rows,), generator=generator, device=device, dtype=torch.int32)
    edges = torch.tensor([context, 1, page, page + 1], device=device, dtype=torch.int32).clamp(max=context)[:rows]
    lengths[: len(edges)] = edges
    tables, blocks = paged(lengths, page, generator)
    query = torch.randn(rows, groups * sizes["share"], size, generator=generator, device=device).to(dtype)
    wide = torch.randn(2, blocks, page, groups, size, generator=generator, device=device)
    caches = (wide * 30).to(torch.int8) if sizes["narrow"] else wide.to(dtype)
    for cache in caches:
        spoil(cache, tables, lengths)
    scales = [(0.5 + torch.rand(groups, size, generator=generator, device=device)) / 30 for _ in range(2)]
    return {
        **{"query": query, "key_cache": caches[0], "value_cache": caches[1], "tables": tables, "lengths": lengths},
        **{"scale": size**-0.5, "key_scale": scales[0] if sizes["narrow"] else None},
        "value_scale": scales[1] if sizes["narrow"] else None,
    }


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return scores so large that exp overflows without its maximum, a sequence of no length, and a long context.

    In float32 that is random, where an error anywhere shows best; in 16 bits it is one of small shares.
    """
    sizes = {"rows": 3, "groups": 1, "share": 2, "size": 64, "page": 16, "context": 40, "narrow": 0}
    sharp = inputs(sizes, dtype, device, generator)
    none = inputs(sizes, dtype, device, generator)
    none["lengths"][1] = 0
    found = {"large scores": {**sharp, "scale": 64.0}, "no length": none}
    if dtype is torch.float32:
        return {**found, "a long context": inputs({**sizes, "rows": 1, "context": 3001}, dtype, device, generator)}
    small = inputs({**sizes, "rows": 1, "size": 16, "context": 3001}, dtype, device, generator)
    small["query"].zero_()[..., 0], small["scale"] = 1.0, 1.0
    keys = configured("paged-attention", rows=1, dtype=dtype)["keys"]
    outweigh(small["key_cache"], small["value_cache"], (int(small["tables"][0, 0]), 0), keys)
    return {**found, "many small shares": small}


def outweigh(key: torch.Tensor, value: torch.Tensor, first: tuple[int, ...], keys: int) -> None:
    """Let the first token outweigh all others, in place, for queries of 1 in the first channel and a scale of 1; NaN stays.

    A block of `keys` others adds to a running sum less than half of what the dtype resolves at 1, where it stands: a sum that is kept in
    16 bits never moves, though all blocks together add what no tolerance allows. Every other channel adds to the sum of shares alone, or
    both sums would be wrong by the same factor. In float32 a sum of bfloat16 shows without.
    """
    key.masked_fill_(~key.isnan(), 0.0)
    key[..., 0] += math.log(0.9 * torch.finfo(key.dtype).eps / 2 / keys)
    value.mul_(0.1)
    value[..., ::2] += 1.0
    key[first], value[first] = 0.0, 1.0


def shapes(facts: Facts) -> list[Sizes]:
    """Return decoding steps over contexts of 4096, with the cache as it is and as int8; none with latent attention."""
    if facts.kv_lora_rank:
        return []
    rest = {"groups": facts.kv_heads, "share": facts.heads // facts.kv_heads, "size": facts.head_dim, "page": 16}
    context = min(4096, facts.context)
    return [{"rows": rows, **rest, "context": context, "narrow": narrow} for narrow in (0, 1) for rows in DECODE]


def moved(inputs: Inputs) -> int:
    """Return the bytes of the keys and values in use, and of query and result."""
    row = 2 * size_of(inputs["key_cache"][0, 0])
    return int(inputs["lengths"].sum()) * row + 2 * size_of(inputs["query"])


LAID: Final = {"query": (1, 0, 2), "key_cache": (0, 2, 1, 3), "value_cache": (0, 2, 1, 3), "tables": (0, 1)}
"""Caches in which heads lie outside of tokens, as some engines have them (HND), and tables that are part of wider ones."""

OPERATOR: Final = Operator(
    name="paged-attention",
    family="attention",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=5, groups=2, context=150),
    edges={
        "one row": {"rows": 1, "groups": 1, "share": 1, "size": 64, "page": 16, "context": 1, "narrow": 0},
        "empty": {"rows": 0, "groups": 1, "share": 1, "size": 64, "page": 16, "context": 1, "narrow": 0},
        "odd": {"rows": 5, "groups": 3, "share": 5, "size": 40, "page": 7, "context": 61, "narrow": 0},
        "odd, int8": {"rows": 3, "groups": 3, "share": 2, "size": 40, "page": 7, "context": 61, "narrow": 1},
    },
    strided=("query", "key_cache", "value_cache"),
    laid={"odd": LAID},
    adversarial=adversarial,
    moved=moved,
    flops=lambda inputs: 4 * int(inputs["lengths"].sum()) * int(inputs["query"].shape[1]) * int(inputs["query"].shape[2]),
    reduces=lambda inputs: 8 if inputs["query"].dtype is torch.float32 else 64,
)
