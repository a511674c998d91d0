"""Order a batch's tokens by expert, each expert's padded to whole blocks, so that a block of a matmul meets one expert only.

Out come, as in vLLM's moe_align_block_size: `order`, the numbers of (token, choice) pairs grouped by expert, filled up with the number
of pairs; `owners`, the expert of each block; and how many places of `order` are in use. Beyond that: pairs of one expert stay in
their order, so that the result is the same on every run; pairs of no expert here (a number out of range) make blocks of owner −1
at the end; so do blocks that are not in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched


@triton.jit
def release_count_kernel(chosen, counts, pairs, count, CHUNK: tl.constexpr, BINS: tl.constexpr):
    """Count the pairs of each expert in one chunk."""
    pair = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(chosen + pair, mask=pair < pairs, other=0).to(tl.int32)
    expert = tl.where((expert >= 0) & (expert < count), expert, count)
    tally = tl.histogram(expert, BINS, mask=pair < pairs)
    bins = tl.arange(0, BINS)
    tl.store(counts + tl.program_id(0) * (count + 1) + bins, tally, mask=bins <= count)


@triton.jit
def release_place_kernel(counts, starts, used, chunks, count, SIZE: tl.constexpr, BINS: tl.constexpr):
    """Turn each chunk's counts into the place where its first pair of each expert goes; one program."""
    bins = tl.arange(0, BINS)
    real = bins <= count
    total = tl.zeros((BINS,), dtype=tl.int32)
    for chunk in range(chunks):
        total += tl.load(counts + chunk * (count + 1) + bins, mask=real, other=0)
    room = tl.cdiv(total, SIZE) * SIZE
    ends = tl.cumsum(room, axis=0)
    tl.store(starts + bins, ends - room, mask=real)
    tl.store(starts + count + 1, tl.sum(room, axis=0))
    tl.store(used, tl.sum(room, axis=0))
    place = ends - room
    for chunk in range(chunks):
        here = counts + chunk * (count + 1) + bins
        tally = tl.load(here, mask=real, other=0)
        tl.store(here, place, mask=real)
        place += tally


@triton.jit
def release_order_kernel(chosen, counts, order, pairs, count, CHUNK: tl.constexpr):
    """Put the pairs of one chunk where they belong."""
    lane = tl.arange(0, CHUNK)
    pair = tl.program_id(0) * CHUNK + lane
    expert = tl.load(chosen + pair, mask=pair < pairs, other=0).to(tl.int32)
    expert = tl.where((expert >= 0) & (expert < count), expert, count)
    before = (expert[:, None] == expert[None, :]) & (lane[None, :] < lane[:, None])
    rank = tl.sum(before.to(tl.int32), axis=1)
    place = tl.load(counts + tl.program_id(0) * (count + 1) + expert, mask=pair < pairs, other=0)
    tl.store(order + place + rank, pair, mask=pair < pairs)


@triton.jit
def release_own_kernel(starts, owners, count, SIZE: tl.constexpr):
    """Name the expert of each of its blocks."""
    expert = tl.program_id(0)
    first = tl.load(starts + expert) // SIZE
    last = tl.load(starts + expert + 1) // SIZE
    for block in range(first, last):
        tl.store(owners + block, tl.where(expert < count, expert, -1))


def launch(
    chosen: torch.Tensor, experts: int, size: int, *, configuration: Mapping[str, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return order, owners and used, int32, of chosen experts [tokens, best], int32, for blocks of `size` pairs.

    `order` has room for every pair and for each expert's padding; `owners` has an entry for each block of `order`; `used` is one number.
    """
    if chosen.dim() != 2 or not chosen.is_contiguous() or experts < 1 or size < 1:
        raise ValueError(f"nothing to order in {tuple(chosen.shape)}, strides {chosen.stride()}, for blocks of {size}")
    cut = configured("align-experts", configuration, rows=len(chosen), dtype=None)
    pairs, device = chosen.numel(), chosen.device
    blocks = triton.cdiv(pairs + min(pairs, experts + 1) * (size - 1), size)
    order = torch.full((blocks * size,), pairs, dtype=torch.int32, device=device)
    owners = torch.full((blocks,), -1, dtype=torch.int32, device=device)
    used = torch.zeros(1, dtype=torch.int32, device=device)
    if pairs:
        chunk, bins = cut["chunk"], triton.next_power_of_2(experts + 1)
        chunks = triton.cdiv(pairs, chunk)
        counts = torch.empty(chunks * (experts + 1), dtype=torch.int32, device=device)
        starts = torch.empty(experts + 2, dtype=torch.int32, device=device)
        release_count_kernel[(chunks,)](chosen, counts, pairs, experts, CHUNK=chunk, BINS=bins, **launched(cut))
        release_place_kernel[(1,)](counts, starts, used, chunks, experts, SIZE=size, BINS=bins, **launched(cut))
        release_order_kernel[(chunks,)](chosen, counts, order, pairs, experts, CHUNK=chunk, **launched(cut))
        release_own_kernel[(experts + 1,)](starts, owners, experts, SIZE=size, **launched(cut))
    return order, owners, used


def reference(chosen: torch.Tensor, experts: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the three, expert by expert."""
    flat, device = chosen.flatten().long(), chosen.device
    flat = torch.where((flat >= 0) & (flat < experts), flat, experts)
    pairs = len(flat)
    blocks = -(-(pairs + min(pairs, experts + 1) * (size - 1)) // size)
    order = torch.full((blocks * size,), pairs, device=device)
    owners = torch.full((blocks,), -1, device=device)
    place = 0
    for expert in range(experts + 1):
        own = (flat == expert).nonzero().flatten()
        room = -(-len(own) // size) * size
        order[place : place + len(own)] = own
        owners[place // size : (place + room) // size] = expert if expert < experts else -1
        place += room
    return order, owners, torch.tensor([place], device=device)


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return for each token different experts."""
    shares = torch.rand(sizes["rows"], sizes["experts"], generator=generator, device=device)
    chosen = shares.argsort(dim=-1)[:, : sizes["best"]].int().contiguous()
    return {"chosen": chosen, "experts": sizes["experts"], "size": sizes["size"]}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return all pairs of one expert, pairs of no expert here, whole blocks without padding, and blocks of one."""
    plain = inputs({"rows": 40, "experts": 10, "best": 3, "size": 16}, dtype, device, generator)
    elsewhere = plain["chosen"].clone()
    elsewhere[::3, 1], elsewhere[1::3, 0] = -1, 10
    full = torch.arange(4, device=device, dtype=torch.int32).repeat_interleave(32).view(32, 4)
    return {
        "all of one expert": {**plain, "chosen": torch.full_like(plain["chosen"], 9)},
        "of no expert here": {**plain, "chosen": elsewhere},
        "none here": {**plain, "chosen": torch.full_like(plain["chosen"], -1)},
        "whole blocks": {**plain, "chosen": full},
        "blocks of one": {**plain, "size": 1},
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return the router's choices for the blocks that the expert matmul takes."""
    rest = {"experts": facts.experts, "best": facts.experts_per_token}
    return [{"rows": rows, "size": 16 if rows < 1024 else 64, **rest} for rows in TOKENS] if facts.experts else []


OPERATOR: Final = Operator(
    name="align-experts",
    family="routing",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    dtypes=("float32",),
    reduced=lambda sizes: shrunk(sizes, rows=70, experts=40),
    edges={
        "one row": {"rows": 1, "experts": 8, "best": 2, "size": 16},
        "empty": {"rows": 0, "experts": 8, "best": 2, "size": 16},
        "odd": {"rows": 77, "experts": 13, "best": 3, "size": 24},
    },
    adversarial=adversarial,
    moved=lambda inputs: 2 * size_of(inputs["chosen"]),
)
