"""Causal attention over prompts of different lengths packed one behind the other, each with a part that may lie in the paged cache.

Heads of keys may serve several heads of queries, and values may be narrower than keys, as in DeepSeek's MLA (192 and 128).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import attend, product
from ..configurations import configuration as configured
from ..operator import PREFILL, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, whole
from .paged_attention import inputs as contexts
from .paged_attention import outweigh


@triton.jit
def scored(q, k, seen, scale):
    """Return the scores of queries and keys as powers of two, −infinity where a query does not see a key."""
    score = product(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), dtype=tl.float32)) * (scale * 1.44269504089)
    return tl.where(seen, score, float("-inf"))


# fmt: off
@triton.jit
def release_prefill_attention_kernel(
    query, key, value, starts, key_cache, value_cache, tables, prefixes, out, scale,
    query_token, query_head, key_token, key_head, value_token, value_head,
    table_row, cache_block, cache_place, cache_head, out_token, out_head,
    SHARE: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, PREFIX: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_KEY_SIZE: tl.constexpr, BLOCK_VALUE_SIZE: tl.constexpr,
):
# fmt: on
    """Answer BLOCK_QUERIES tokens of one sequence in one head."""
    sequence = tl.program_id(2)
    head = tl.program_id(1)
    first = tl.load(starts + sequence).to(tl.int64)
    count = (tl.load(starts + sequence + 1) - first).to(tl.int32)
    asking = tl.program_id(0) * BLOCK_QUERIES
    if asking >= count:
        return
    wide = tl.arange(0, BLOCK_KEY_SIZE)
    slim = tl.arange(0, BLOCK_VALUE_SIZE)
    line = asking + tl.arange(0, BLOCK_QUERIES)
    there = query + (first + line)[:, None] * query_token + head * query_head + wide[None, :]
    q = tl.load(there, mask=(line < count)[:, None] & (wide < KEY_SIZE)[None, :], other=0.0)
    highest = tl.full((BLOCK_QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), dtype=tl.float32)
    result = tl.zeros((BLOCK_QUERIES, BLOCK_VALUE_SIZE), dtype=tl.float32)
    if PREFIX:
        prefix = tl.load(prefixes + sequence)
        for start in range(0, prefix, BLOCK_KEYS):
            place = start + tl.arange(0, BLOCK_KEYS)
            held = place < prefix
            block = tl.load(tables + sequence * table_row + place // PAGE, mask=held, other=0).to(tl.int64)
            row = (block * cache_block + place % PAGE * cache_place + head // SHARE * cache_head)[:, None]
            k = tl.load(key_cache + row + wide[None, :], mask=held[:, None] & (wide < KEY_SIZE)[None, :], other=0.0)
            v = tl.load(value_cache + row + slim[None, :], mask=held[:, None] & (slim < VALUE_SIZE)[None, :], other=0.0)
            highest, total, result = attend(scored(q, k, held[None, :], scale), v, highest, total, result)
    for start in range(0, min(count, asking + BLOCK_QUERIES), BLOCK_KEYS):
        place = start + tl.arange(0, BLOCK_KEYS)
        held = place < count
        row = (first + place)[:, None]
        k = tl.load(
            key + row * key_token + head // SHARE * key_head + wide[None, :],
            mask=held[:, None] & (wide < KEY_SIZE)[None, :],
            other=0.0,
        )
        v = tl.load(
            value + row * value_token + head // SHARE * value_head + slim[None, :],
            mask=held[:, None] & (slim < VALUE_SIZE)[None, :],
            other=0.0,
        )
        seen = held[None, :] & (place[None, :] <= line[:, None])
        highest, total, result = attend(scored(q, k, seen, scale), v, highest, total, result)
    there = out + (first + line)[:, None] * out_token + head * out_head + slim[None, :]
    result = result / total[:, None]
    tl.store(there, result.to(out.dtype.element_ty), mask=(line < count)[:, None] & (slim < VALUE_SIZE)[None, :])


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    key_cache: torch.Tensor | None,
    value_cache: torch.Tensor | None,
    tables: torch.Tensor | None,
    prefixes: torch.Tensor | None,
    *,
    configuration: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Return the attention [tokens, heads, value size] in query's dtype, of each token over its prefix and its sequence up to itself.

    query [tokens, heads, key size], key [tokens, key heads, key size], value [tokens, key heads, value size]; sequence s is tokens
    starts[s] up to starts[s + 1] (int32), none longer than `longest`. With caches [blocks, page, key heads, size] of the same strides,
    the prefixes[s] tokens before are read by tables, as of paged-attention; without, all four are None.
    """
    tokens, heads, wide = query.shape
    groups, slim = value.shape[1:]
    if heads % groups or key.shape != (tokens, groups, wide) or any(x.stride(2) != 1 for x in (query, key, value)):
        raise ValueError(f"query, key and value of {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)} do not fit")
    if key_cache is not None and (value_cache is None or key_cache.stride() != value_cache.stride() or key_cache.stride(3) != 1):
        raise ValueError("both caches need the same strides")
    whole(starts=starts, prefixes=prefixes)
    table_row = 0 if tables is None else rows_of(tables, "tables").stride(0)
    cut = configured("prefill-attention", configuration, rows=tokens, dtype=query.dtype)
    out = torch.empty((tokens, heads, slim), dtype=query.dtype, device=query.device)
    if out.numel():
        release_prefill_attention_kernel[(triton.cdiv(longest, cut["queries"]), heads, len(starts) - 1)](
            *(query, key, value, starts, key_cache, value_cache, tables, prefixes, out, scale),
            *(*query.stride()[:2], *key.stride()[:2], *value.stride()[:2]),
            *(table_row, *((0, 0, 0) if key_cache is None else key_cache.stride()[:3])),
            *out.stride()[:2],
            SHARE=heads // groups,
            KEY_SIZE=wide,
            VALUE_SIZE=slim,
            PREFIX=key_cache is not None,
            PAGE=1 if key_cache is None else key_cache.shape[1],
            BLOCK_QUERIES=cut["queries"],
            BLOCK_KEYS=cut["keys"],
            BLOCK_KEY_SIZE=max(16, triton.next_power_of_2(wide)),
            BLOCK_VALUE_SIZE=max(16, triton.next_power_of_2(slim)),
            **launched(cut),
        )
    return out


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    key_cache: torch.Tensor | None,
    value_cache: torch.Tensor | None,
    tables: torch.Tensor | None,
    prefixes: torch.Tensor | None,
) -> torch.Tensor:
    """Return it in float64, sequence by sequence."""
    out = torch.zeros(*query.shape[:2], value.shape[2], dtype=torch.float64, device=query.device)
    share = query.shape[1] // value.shape[1]
    for sequence in range(len(starts) - 1):
        own = slice(int(starts[sequence]), int(starts[sequence + 1]))
        q, k, v = (x[own].double() for x in (query, key, value))
        before = 0
        if key_cache is not None and value_cache is not None and tables is not None and prefixes is not None:
            before = int(prefixes[sequence])
            blocks = tables[sequence, : -(-before // key_cache.shape[1])].long()
            k = torch.cat([key_cache[blocks].flatten(0, 1)[:before].double(), k])
            v = torch.cat([value_cache[blocks].flatten(0, 1)[:before].double(), v])
        k, v = (x.repeat_interleave(share, 1) for x in (k, v))
        score = torch.einsum("qhd,khd->hqk", q, k) * scale
        unseen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(before + 1)
        out[own] = torch.einsum("hqk,khd->qhd", score.masked_fill(unseen, float("-inf")).softmax(-1), v)
    return out


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return `rows` tokens of `count` prompts of different lengths, of which one is a single token where there are more."""
    rows, groups, count = sizes["rows"], sizes["groups"], min(sizes["count"], sizes["rows"])
    cuts = (torch.randperm(max(0, rows - 2), generator=generator, device=device)[: max(0, count - 2)] + 2).sort().values
    ends = ([1] if count > 1 else []) + cuts.tolist() + ([rows] if rows else [])
    starts = torch.tensor([0, *ends], dtype=torch.int32, device=device)
    longest = int(starts.diff().max()) if ends else 0

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    found: Inputs = {"query": made(rows, groups * sizes["share"], sizes["wide"]), "key": made(rows, groups, sizes["wide"])}
    found |= {"value": made(rows, groups, sizes["slim"]), "starts": starts, "longest": longest, "scale": sizes["wide"] ** -0.5}
    if not sizes["prefix"] or not ends:
        return {**found, "key_cache": None, "value_cache": None, "tables": None, "prefixes": None}
    like = {**sizes, "rows": len(ends), "size": sizes["wide"], "page": 16, "context": sizes["prefix"], "narrow": 0}
    held = contexts(like, dtype, device, generator)
    held["lengths"][-1:] = 0
    return {**found, **{name: held[name] for name in ("key_cache", "value_cache", "tables")}, "prefixes": held["lengths"]}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return scores so large that exp overflows without its maximum, and NaN in the last token, which no other sequence may see.

    Tokens of its own may: a share of nothing of NaN is NaN, in every attention that multiplies blocks. In 16 bits also small shares, of the
    own sequence and of a prefix.
    """
    sizes = {"rows": 37, "groups": 1, "share": 2, "wide": 24, "slim": 24, "count": 3, "prefix": 0}
    sharp, late = (inputs(sizes, dtype, device, generator) for _ in range(2))
    late["key"][-1], late["value"][-1] = float("nan"), float("nan")
    found = {"large scores": {**sharp, "scale": 64.0}, "NaN in the last token": late}
    if dtype is torch.float32:
        return found
    keys = configured("prefill-attention", rows=1024, dtype=dtype)["keys"]
    few = {"groups": 1, "share": 1, "wide": 16, "slim": 16}
    rows = (12 if dtype is torch.bfloat16 else 32) * keys + 1
    own = inputs({**few, "rows": rows, "count": 1, "prefix": 0}, dtype, device, generator)
    behind = inputs({**few, "rows": 2, "count": 2, "prefix": 3001}, dtype, device, generator)
    for one in (own, behind):
        one["query"].zero_()[..., 0], one["scale"] = 1.0, 1.0
    outweigh(own["key"], own["value"], (0,), keys)
    behind["key"].zero_()[..., 0] = -20.0
    outweigh(behind["key_cache"], behind["value_cache"], (int(behind["tables"][0, 0]), 0), keys)
    return {**found, "many small shares": own, "many small shares of a prefix": behind}


def shapes(facts: Facts) -> list[Sizes]:
    """Return prompts alone and behind a prefix; with latent attention as it is computed unabsorbed, its keys wider than its values."""
    if facts.kv_lora_rank:
        wide = facts.qk_nope_head_dim + facts.qk_rope_head_dim
        rest = {"groups": facts.heads, "share": 1, "wide": wide, "slim": facts.v_head_dim, "prefix": 0}
        return [{"rows": rows, "count": count, **rest} for rows in PREFILL for count in (1, 4)]
    rest = {"groups": facts.kv_heads, "share": facts.heads // facts.kv_heads, "wide": facts.head_dim, "slim": facts.head_dim}
    return [{"rows": rows, "count": count, "prefix": prefix, **rest} for rows in PREFILL for count, prefix in ((1, 0), (4, 1024))]


def arithmetic(inputs: Inputs) -> int:
    """Return two operations for each query, each key that it sees, and each channel of key and value."""
    counts = inputs["starts"].diff().double()
    before = 0.0 if inputs["prefixes"] is None else inputs["prefixes"].double()
    seen = float((counts * (counts + 1) / 2 + counts * before).sum())
    return int(2 * seen * inputs["query"].shape[1] * (inputs["query"].shape[2] + inputs["value"].shape[2]))


def moved(inputs: Inputs) -> int:
    """Return the bytes of query, key and value, of the result, and of the keys and values of the prefixes."""
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    result = int(query.shape[0] * query.shape[1] * value.shape[2]) * int(query.element_size())
    before = 0 if inputs["prefixes"] is None else int(inputs["prefixes"].sum()) * 2 * size_of(inputs["key_cache"][0, 0])
    return size_of(query, key, value) + result + before


LAID: Final = {
    **{"query": (1, 0, 2), "key": (0, 1, 2), "value": (1, 0, 2), "tables": (0, 1)},
    **{"key_cache": (0, 2, 1, 3), "value_cache": (0, 2, 1, 3)},
}
"""Heads outside of tokens, in the caches too, as some engines have them (HND), and tables that are part of wider ones."""

OPERATOR: Final = Operator(
    name="prefill-attention",
    family="attention",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=100, groups=2, prefix=40),
    edges={
        "one row": {"rows": 1, "groups": 1, "share": 1, "wide": 64, "slim": 64, "count": 1, "prefix": 0},
        "empty": {"rows": 0, "groups": 1, "share": 1, "wide": 64, "slim": 64, "count": 1, "prefix": 0},
        "odd": {"rows": 71, "groups": 3, "share": 3, "wide": 40, "slim": 24, "count": 4, "prefix": 0},
        "a prefix": {"rows": 41, "groups": 2, "share": 2, "wide": 40, "slim": 40, "count": 4, "prefix": 33},
    },
    strided=("query", "key", "value", "key_cache", "value_cache"),
    laid={"a prefix": LAID},
    adversarial=adversarial,
    moved=moved,
    flops=arithmetic,
    memory_bound=False,
    reduces=lambda inputs: 8 if inputs["query"].dtype is torch.float32 else 64,
)
