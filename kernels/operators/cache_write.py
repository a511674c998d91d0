"""Keys and values of new tokens into the paged cache, as they are or as int8 by a scale of each channel (C8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, whole


@triton.jit
def narrow(x, scale):
    """Round x / scale to int8, half to even; NaN, which int8 has not, becomes 0. The sum rounds: float32 has 23 bits behind 1.5 · 2^23."""
    code = tl.div_rn(x.to(tl.float32), scale)
    code = tl.where(code == code, code, 0.0)  # noqa: PLR0124
    code = tl.minimum(tl.maximum(code, -128.0), 127.0)
    return (code + 12582912.0 - 12582912.0).to(tl.int8)


@triton.jit
def release_cache_write_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slots,
    key_scale,
    value_scale,
    capacity,
    heads,
    size,
    key_token,
    key_head,
    value_token,
    value_head,
    cache_block,
    cache_place,
    cache_head,
    PAGE: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write BLOCK channels of one token; slot −1, or one beyond the cache, is padding."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if (slot < 0) | (slot >= capacity):
        return
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = channel < heads * size
    head = channel // size
    within = channel % size
    there = slot // PAGE * cache_block + slot % PAGE * cache_place + head * cache_head + within
    k = tl.load(key + token * key_token + head * key_head + within, mask=real, other=0.0)
    v = tl.load(value + token * value_token + head * value_head + within, mask=real, other=0.0)
    if NARROW:
        k = narrow(k, tl.load(key_scale + channel, mask=real, other=1.0))
        v = narrow(v, tl.load(value_scale + channel, mask=real, other=1.0))
    tl.store(key_cache + there, k, mask=real)
    tl.store(value_cache + there, v, mask=real)


def launch(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    *,
    configuration: Mapping[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write key and value [tokens, heads, size] into the caches [blocks, page, heads, size] and return these.

    Token t goes to place slots[t] % page of block slots[t] // page (int64); −1 is padding, and so is what lies beyond the cache. Into
    int8 caches by float32 scales [heads, size] of each channel; NaN, which int8 has not, becomes 0. No slot may come twice.
    """
    tokens, heads, size = key.shape
    narrow = key_cache.dtype is torch.int8
    if key.stride(2) != 1 or value.stride(2) != 1 or key_cache.stride() != value_cache.stride() or key_cache.stride(3) != 1:
        raise ValueError("keys, values and caches need contiguous channels, and both caches the same strides")
    if (
        key_cache.shape[2:] != key.shape[1:]
        or value.shape != key.shape
        or (narrow and (key_scale is None or value_scale is None))
    ):
        raise ValueError(f"tokens of {tuple(key.shape)} and scales do not fit a cache of {tuple(key_cache.shape)}")
    whole(slots=slots, key_scale=key_scale, value_scale=value_scale)
    cut = configured("cache-write", configuration, rows=tokens, dtype=key.dtype)
    block = min(cut["channels"], triton.next_power_of_2(heads * size))
    if tokens:
        release_cache_write_kernel[(tokens, triton.cdiv(heads * size, block))](
            *(key, value, key_cache, value_cache, slots, key_scale, value_scale),
            *(key_cache.shape[0] * key_cache.shape[1], heads, size),
            *(*key.stride()[:2], *value.stride()[:2], *key_cache.stride()[:3]),
            PAGE=key_cache.shape[1],
            NARROW=narrow,
            BLOCK=block,
            **launched(cut),
        )
    return key_cache, value_cache


def reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both caches with the tokens in them, those of int8 before they are rounded."""
    found = []
    real = (slots >= 0) & (slots < key_cache.shape[0] * key_cache.shape[1])
    for x, cache, scale in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        new = x.double()
        if scale is not None:
            new = (new / scale.double()).clamp(-128, 127).nan_to_num(0.0)
        whole = cache.double()
        whole.view(-1, *cache.shape[2:])[slots[real]] = new[real]
        found.append(whole)
    return found[0], found[1]


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return tokens for slots all over the cache, every fifth of them padding; int8 where sizes say `narrow`."""
    tokens, heads, size, page = sizes["rows"], sizes["heads"], sizes["size"], sizes["page"]
    blocks = triton.cdiv(tokens, page) + 2
    slots = torch.randperm(blocks * page, generator=generator, device=device)[:tokens]
    slots[4::5] = -1
    key, value = (torch.randn(tokens, heads, size, generator=generator, device=device).to(dtype) for _ in range(2))
    old = torch.randn(2, blocks, page, heads, size, generator=generator, device=device)
    caches = (old * 30).to(torch.int8) if sizes["narrow"] else old.to(dtype)
    scales = [(0.5 + torch.rand(heads, size, generator=generator, device=device)) / 40 for _ in range(2)]
    return {
        **{"key": key, "value": value, "key_cache": caches[0], "value_cache": caches[1], "slots": slots},
        **{"key_scale": scales[0] if sizes["narrow"] else None, "value_scale": scales[1] if sizes["narrow"] else None},
    }


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return the first and last slot and those just outside, nothing but padding, numbers that int8 cannot hold, and a view of a row."""
    sizes = {"rows": 4, "heads": 3, "size": 20, "page": 8, "narrow": 0}
    plain = inputs(sizes, dtype, device, generator)
    last = plain["key_cache"].shape[0] * 8 - 1
    large = inputs({**sizes, "narrow": 1}, dtype, device, generator)
    large["key"][:2], large["value"][0] = 3e4, float("nan")
    return {
        "the ends of the cache": {**plain, "slots": torch.tensor([0, last, -1, last + 1], device=device)},
        "nothing but padding": {**plain, "slots": torch.full((4,), -1, device=device)},
        "beyond int8": large,
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return the keys of a step, as they are and as int8; none with latent attention."""
    if facts.kv_lora_rank:
        return []
    rest = {"heads": facts.kv_heads, "size": facts.head_dim, "page": 16}
    return [{"rows": rows, **rest, "narrow": narrow} for narrow in (0, 1) for rows in TOKENS]


def moved(inputs: Inputs) -> int:
    """Return the bytes of the keys and values that are no padding, read once and written once, of the slots and of the scales."""
    key, cache, slots = inputs["key"], inputs["key_cache"], inputs["slots"]
    real = int(((slots >= 0) & (slots < cache.shape[0] * cache.shape[1])).sum())
    row = int(key.shape[1] * key.shape[2]) * int(key.element_size() + cache.element_size())
    return 2 * real * row + size_of(slots, *(inputs[name] for name in ("key_scale", "value_scale") if inputs[name] is not None))


LAID: Final = {"key": (1, 0, 2), "value": (0, 1, 2), "key_cache": (0, 2, 1, 3), "value_cache": (0, 2, 1, 3)}
"""Caches in which heads lie outside of tokens, as some engines have them (HND)."""

OPERATOR: Final = Operator(
    name="cache-write",
    family="cache",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=40),
    edges={
        "one row": {"rows": 1, "heads": 1, "size": 64, "page": 16, "narrow": 0},
        "empty": {"rows": 0, "heads": 1, "size": 64, "page": 16, "narrow": 0},
        "odd": {"rows": 7, "heads": 3, "size": 24, "page": 5, "narrow": 0},
        "odd, int8": {"rows": 7, "heads": 3, "size": 24, "page": 5, "narrow": 1},
        "more channels than a program": {"rows": 3, "heads": 5, "size": 256, "page": 5, "narrow": 1},
    },
    hostile=("key", "value"),
    strided=("key", "value", "key_cache", "value_cache"),
    laid={"odd": LAID},
    in_place=("key_cache", "value_cache"),
    adversarial=adversarial,
    moved=moved,
    steps=1,
)
