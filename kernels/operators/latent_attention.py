"""Attention of one new token a sequence over the paged latent cache of DeepSeek's MLA, in absorbed form.

A place of the cache holds the latent (`kv_lora_rank` numbers, the values too) and the rotated key that all heads share. The query comes
as two parts, the first already multiplied by the up-projection of the keys; the result is multiplied by that of the values
afterwards (DeepSeek-V2 report, 2.1.2 and appendix C; DeepSeek-V3's inference/model.py, `attn_impl == "absorb"`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import attend, product
from ..configurations import configuration as configured
from ..operator import DECODE, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, whole
from .paged_attention import inputs as contexts
from .paged_attention import outweigh
from .paged_attention import reference as attended


@triton.jit
def release_latent_attention_kernel(
    query,
    rotated,
    cache,
    tables,
    lengths,
    out,
    scale,
    heads,
    query_token,
    query_head,
    rotated_token,
    rotated_head,
    table_row,
    cache_block,
    cache_place,
    out_token,
    out_head,
    LATENT: tl.constexpr,
    ROTATED: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_LATENT: tl.constexpr,
    BLOCK_ROTATED: tl.constexpr,
):
    """Answer BLOCK_HEADS heads of one sequence."""
    sequence = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + sequence)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    channel = tl.arange(0, BLOCK_LATENT)
    turn = tl.arange(0, BLOCK_ROTATED)
    asked = (head < heads)[:, None] & (channel < LATENT)[None, :]
    q = tl.load(query + sequence * query_token + head[:, None] * query_head + channel[None, :], mask=asked, other=0.0)
    turned = rotated + sequence * rotated_token + head[:, None] * rotated_head + turn[None, :]
    r = tl.load(turned, mask=(head < heads)[:, None] & (turn < ROTATED)[None, :], other=0.0)
    highest = tl.full((BLOCK_HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_HEADS,), dtype=tl.float32)
    result = tl.zeros((BLOCK_HEADS, BLOCK_LATENT), dtype=tl.float32)
    for start in range(0, length, BLOCK_KEYS):
        place = start + tl.arange(0, BLOCK_KEYS)
        held = place < length
        block = tl.load(tables + sequence * table_row + place // PAGE, mask=held, other=0).to(tl.int64)
        row = cache + (block * cache_block + place % PAGE * cache_place)[:, None]
        k = tl.load(row + channel[None, :], mask=held[:, None] & (channel < LATENT)[None, :], other=0.0)
        s = tl.load(row + LATENT + turn[None, :], mask=held[:, None] & (turn < ROTATED)[None, :], other=0.0)
        score = product(q, tl.trans(k), tl.zeros((BLOCK_HEADS, BLOCK_KEYS), dtype=tl.float32))
        score = product(r, tl.trans(s), score) * (scale * 1.44269504089)
        score = tl.where(held[None, :], score, float("-inf"))
        highest, total, result = attend(score, k, highest, total, result)
    result = result / tl.where(total == 0, 1.0, total)[:, None]
    there = out + sequence * out_token + head[:, None] * out_head + channel[None, :]
    tl.store(there, result.to(out.dtype.element_ty), mask=asked)


def launch(
    query: torch.Tensor,
    rotated: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    *,
    configuration: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Return the weighted latents [sequences, heads, latent] in query's dtype; 0 for a sequence of no length.

    query [sequences, heads, latent], rotated [sequences, heads, rope], cache [blocks, page, latent + rope], all of one dtype; tables
    and lengths as of paged-attention.
    """
    sequences, heads, latent = query.shape
    rope = rotated.shape[2]
    if cache.shape[2] != latent + rope or cache.stride(2) != 1 or query.stride(2) != 1 or rotated.stride(2) != 1:
        raise ValueError(f"queries of {latent} + {rope} do not fit a cache of {tuple(cache.shape)}")
    whole(lengths=lengths)
    table_row = rows_of(tables, "tables").stride(0)
    cut = configured("latent-attention", configuration, rows=sequences, dtype=query.dtype)
    out = torch.empty((sequences, heads, latent), dtype=query.dtype, device=query.device)
    if out.numel():
        release_latent_attention_kernel[(sequences, triton.cdiv(heads, cut["heads"]))](
            *(query, rotated, cache, tables, lengths, out, scale, heads, *query.stride()[:2], *rotated.stride()[:2]),
            *(table_row, *cache.stride()[:2], *out.stride()[:2]),
            LATENT=latent,
            ROTATED=rope,
            PAGE=cache.shape[1],
            BLOCK_HEADS=cut["heads"],
            BLOCK_KEYS=cut["keys"],
            BLOCK_LATENT=max(16, triton.next_power_of_2(latent)),
            BLOCK_ROTATED=max(16, triton.next_power_of_2(rope)),
            **launched(cut),
        )
    return out


def reference(
    query: torch.Tensor, rotated: torch.Tensor, cache: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return it in float64: every head attends to one key, of which the latent is the value."""
    whole = torch.cat([query, rotated], -1)
    latents = cache[..., : query.shape[2]].clone()
    found = attended(whole, cache[:, :, None], _padded(latents, cache)[:, :, None], tables, lengths, scale, None, None)
    return found[..., : query.shape[2]]


def _padded(latents: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    return torch.cat([latents, torch.zeros_like(cache[..., latents.shape[-1] :])], -1)


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return queries in both parts, and contexts from one token up to `context`."""
    heads, latent, rope = (sizes[name] for name in ("heads", "latent", "rope"))
    like = {**sizes, "groups": 1, "share": heads, "size": latent + rope, "narrow": 0}
    one = contexts(like, dtype, device, generator)
    query, rotated = one["query"].split([latent, rope], -1)
    rest = {name: one[name] for name in ("tables", "lengths")}
    scale = sizes["head"] ** -0.5
    return {
        "query": query.contiguous(),
        "rotated": rotated.contiguous(),
        "cache": one["key_cache"][:, :, 0],
        **rest,
        "scale": scale,
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return decoding steps over contexts of 4096."""
    if not facts.kv_lora_rank:
        return []
    rest = {"heads": facts.heads, "latent": facts.kv_lora_rank, "rope": facts.qk_rope_head_dim, "page": 64}
    head = facts.qk_nope_head_dim + facts.qk_rope_head_dim
    return [{"rows": rows, **rest, "context": min(4096, facts.context), "head": head} for rows in DECODE]


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return scores so large that exp overflows without its maximum, a sequence of no length, in 16 bits also a context of small shares."""
    sizes = {"rows": 3, "heads": 3, "latent": 48, "rope": 24, "page": 16, "context": 40, "head": 48}
    sharp, none = (inputs(sizes, dtype, device, generator) for _ in range(2))
    none["lengths"][1] = 0
    found = {"large scores": {**sharp, "scale": 64.0}, "no length": none}
    if dtype is torch.float32:
        return found
    small = inputs({**sizes, "rows": 1, "context": 1501}, dtype, device, generator)
    small["query"].zero_()
    small["rotated"].zero_()[..., 0], small["scale"] = 1.0, 1.0
    keys = configured("latent-attention", rows=1, dtype=dtype)["keys"]
    cache, latent = small["cache"], sizes["latent"]
    outweigh(cache[..., latent:], cache[..., :latent], (int(small["tables"][0, 0]), 0), keys)
    return {**found, "many small shares": small}


OPERATOR: Final = Operator(
    name="latent-attention",
    family="attention",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=5, heads=20, context=150),
    edges={
        "one row": {"rows": 1, "heads": 1, "latent": 64, "rope": 16, "page": 16, "context": 1, "head": 48},
        "empty": {"rows": 0, "heads": 1, "latent": 64, "rope": 16, "page": 16, "context": 1, "head": 48},
        "odd": {"rows": 5, "heads": 17, "latent": 72, "rope": 24, "page": 7, "context": 61, "head": 48},
    },
    strided=("query", "rotated", "cache"),
    laid={"odd": {"query": (1, 0, 2), "rotated": (0, 1, 2), "cache": (1, 0, 2), "tables": (0, 1)}},
    adversarial=adversarial,
    moved=lambda inputs: (
        int(inputs["lengths"].sum()) * size_of(inputs["cache"][0, 0]) + 2 * size_of(inputs["query"]) + size_of(inputs["rotated"])
    ),
    flops=lambda inputs: (
        2
        * int(inputs["lengths"].sum())
        * int(inputs["query"].shape[1])
        * (2 * int(inputs["query"].shape[2]) + int(inputs["rotated"].shape[2]))
    ),
    reduces=lambda inputs: 8 if inputs["query"].dtype is torch.float32 else 64,
)
