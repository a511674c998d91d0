"""How torch itself does the operators: the peers that ours are timed beside. Whole tensors at a time, no call waits for the device.

The references of the operators will not do: they compute in float64, and some ask the device for every sequence or expert. What an engine
knows on the host anyway (where sequences begin, which tokens are padding, which experts are met) is `known` before, and not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F

from .attending import (
    cut,
    gathered,
    latent_attention,
    latent_gathered,
    latents,
    one_piece,
    paged_attention,
    paged_gathered,
    prefill_attention,
    served,
    varlen_attention,
)
from .operator import Inputs
from .operators.fp8_dequantise import BLOCK

LEAST_ROWS: Final = 17
"""Rows that cuBLAS wants of an int8 product at least (torch._int_mm); fewer are padded to 32, as torchao does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """How torch does one operator: `eager(**known(inputs))` returns what the operator returns.

    `others` are further ways by name, each with what is known for it. `unfused` says why `eager` is not handed to torch.compile. `ties`
    names the outputs that may differ where inputs are equal.
    """

    eager: Callable[..., Any]
    known: Callable[[Inputs], Inputs] = dict
    others: Mapping[str, tuple[Callable[..., Any], Callable[[Inputs], Inputs]]] = field(default_factory=dict)
    unfused: str = ""
    ties: tuple[int, ...] = ()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return torch's own norm."""
    return F.rms_norm(x, weight.shape, weight, epsilon)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add in place, then normalise."""
    residual.add_(x)
    return F.rms_norm(residual, weight.shape, weight, epsilon), residual


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """Return silu of one half times the other."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rotary(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, table: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn pairs in place. In float32, since differences of rounded products would miss the tolerance."""
    half = table.shape[1] // 2
    cos, sin = table.index_select(0, positions).float().unsqueeze(1).chunk(2, -1)
    for x in (query, key):
        turned = x[..., : 2 * half]
        a, b = turned.unflatten(-1, (half, 2)).unbind(-1) if interleaved else turned.chunk(2, -1)
        first, second = a * cos - b * sin, b * cos + a * sin
        a.copy_(first)
        b.copy_(second)
    return query, key


def int8_quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale of each row; a row of zeros stays zeros."""
    wide = x.float()
    most = wide.abs().amax(-1, keepdim=True)
    return torch.round(wide / torch.where(most > 0, most, 1.0) * 127.0).to(torch.int8), most / 127.0


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product of the device's own library."""
    return a @ b


def w8a8_matmul(
    a: torch.Tensor, a_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the library's product of int8, scaled after."""
    rows = a.shape[0]
    total = torch._int_mm(F.pad(a, (0, 0, 0, 32 - rows)) if rows < LEAST_ROWS else a, w.t())[:rows]
    found = total.float() * a_scale.view(-1, 1) * w_scale.view(1, -1)
    return (found if bias is None else found + bias.float()).to(dtype)


def fp8_dequantise(w: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return the weight times its blocks' scales; scales are spread over rows alone where blocks end with the columns."""
    rows, columns = w.shape
    by_row = scale.repeat_interleave(BLOCK, 0)[:rows]
    if columns % BLOCK:
        return (w.float() * by_row.repeat_interleave(BLOCK, 1)[:, :columns]).to(dtype)
    return (w.float().view(rows, -1, BLOCK) * by_row.unsqueeze(-1)).view(rows, columns).to(dtype)


def fp8_matmul(
    a: torch.Tensor, a_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the product of both, dequantised before."""
    wide = a.float() * a_scale.repeat_interleave(BLOCK, 1)[:, : a.shape[1]]
    return wide.to(dtype) @ fp8_dequantise(w, w_scale, dtype).t()


def scaled_matmul(
    a: torch.Tensor, a_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, dtype: torch.dtype, rows: int
) -> torch.Tensor:
    """Return the product of the device's own library, which knows such scales by their sizes."""
    return torch._scaled_mm(a, w, a_scale, w_scale, out_dtype=dtype)[:rows]


def grouped_topk(
    logits: torch.Tensor, correction: torch.Tensor, groups: int, kept: int, best: int, renormalise: bool, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and experts of each token."""
    scores = logits.float().sigmoid()
    choice = scores + correction
    if kept < groups:
        parts = choice.unflatten(1, (groups, -1))
        chosen = parts.topk(2, dim=-1).values.sum(-1).topk(kept, dim=-1, sorted=False).indices
        inside = torch.zeros(parts.shape[:2], dtype=torch.bool, device=logits.device).scatter_(1, chosen, True)
        choice = parts.masked_fill(~inside.unsqueeze(-1), float("-inf")).flatten(1)
    experts = choice.topk(best, dim=-1).indices
    weights = scores.gather(1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * factor, experts.int()


def softmax_topk(logits: torch.Tensor, best: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and experts of each token."""
    weights, experts = logits.float().softmax(-1).topk(best, dim=-1)
    return (weights / weights.sum(-1, keepdim=True) if renormalise else weights), experts.int()


def align_experts(chosen: torch.Tensor, experts: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return order, owners and used by one stable sort and sums over the experts."""
    flat, device = chosen.flatten().long(), chosen.device
    flat = torch.where((flat >= 0) & (flat < experts), flat, experts)
    pairs = flat.numel()
    blocks = -(-(pairs + min(pairs, experts + 1) * (size - 1)) // size)
    owner, pair = flat.sort(stable=True)
    count = torch.zeros(experts + 1, dtype=torch.long, device=device).scatter_add_(0, flat, torch.ones_like(flat))
    room = (count + size - 1) // size * size
    ends = room.cumsum(0)
    place = torch.arange(pairs, device=device) + (ends - room - count.cumsum(0) + count)[owner]
    order = torch.full((blocks * size,), pairs, dtype=torch.int32, device=device).scatter_(0, place, pair.int())
    owners = torch.searchsorted(ends, torch.arange(blocks, device=device) * size, right=True)
    return order, owners.masked_fill(owners >= experts, -1).int(), ends[-1:].int()


def expert_matmul(
    a: torch.Tensor,
    w: torch.Tensor,
    met: list[tuple[int, torch.Tensor, torch.Tensor]],
    pairs: int,
    whole: bool,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply expert by expert: of each one met, the rows of `a` and the pairs that they belong to."""
    out = _room(a, w, pairs, whole)
    for expert, rows, own in met:
        out[own] = a[rows] @ w[expert].t()
    return out if weights is None else out * weights.to(out.dtype).unsqueeze(1)


def grouped_matmul(
    a: torch.Tensor,
    w: torch.Tensor,
    rows: torch.Tensor,
    own: torch.Tensor,
    ends: torch.Tensor,
    pairs: int,
    whole: bool,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply all experts by torch's grouped product, whose rows lie expert by expert."""
    found = F.grouped_mm(a.index_select(0, rows), w.transpose(1, 2), offs=ends)
    out = _room(a, w, pairs, whole).index_copy_(0, own, found)
    return out if weights is None else out * weights.to(out.dtype).unsqueeze(1)


def _room(a: torch.Tensor, w: torch.Tensor, pairs: int, whole: bool) -> torch.Tensor:
    """Return room for the products of all pairs: zeros only where some pair has none, since filling takes time that no engine spends."""
    return a.new_empty(pairs, w.shape[1]) if whole else a.new_zeros(pairs, w.shape[1])


def cache_write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the tokens `kept`, which are no padding, to their slots."""
    for x, cache, scale in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        new = x.index_select(0, kept)
        if scale is not None:
            new = torch.round(new.float() / scale).clamp(-128, 127).to(torch.int8)
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, new)
    return key_cache, value_cache


def _laid(inputs: Inputs) -> Inputs:
    """Lay out what the library wants: rows in fours, their scales with rows next to one another, weight and its scales transposed."""
    rows = len(inputs["a"])
    room = -rows % 4
    a = torch.cat([inputs["a"].view(torch.uint8), inputs["a"].new_zeros(room, inputs["a"].shape[1]).view(torch.uint8)])
    scale = F.pad(inputs["a_scale"], (0, 0, 0, room), value=1.0).t().contiguous().t()
    turned = {"a": a.view(inputs["a"].dtype), "a_scale": scale, "w": inputs["w"].t(), "w_scale": inputs["w_scale"].t()}
    return {**turned, "dtype": inputs["dtype"], "rows": rows}


def _met(inputs: Inputs) -> list[tuple[int, torch.Tensor]]:
    """Return the experts that are met, in their order, and the pairs of each."""
    owners, order = inputs["owners"].tolist(), inputs["order"].view(len(inputs["owners"]), -1).long()
    own: dict[int, list[torch.Tensor]] = {}
    for block, expert in enumerate(owners):
        if expert >= 0:
            own.setdefault(expert, []).append(order[block][order[block] < inputs["pairs"]])
    return [(expert, torch.cat(parts)) for expert, parts in sorted(own.items())]


def _looped(inputs: Inputs) -> Inputs:
    met = [(expert, own // inputs["share"], own) for expert, own in _met(inputs)]
    whole = sum(len(own) for _, _, own in met) == inputs["pairs"]
    return {"met": met, "whole": whole, **{name: inputs[name] for name in ("a", "w", "pairs", "weights")}}


def _grouped(inputs: Inputs) -> Inputs:
    counts = torch.zeros(len(inputs["w"]), dtype=torch.int32)
    for expert, own in _met(inputs):
        counts[expert] = len(own)
    own = torch.cat([own for _, own in _met(inputs)])
    ends = counts.cumsum(0, dtype=torch.int32).to(own.device)
    rest = {name: inputs[name] for name in ("a", "w", "pairs", "weights")}
    return {"rows": own // inputs["share"], "own": own, "ends": ends, "whole": len(own) == inputs["pairs"], **rest}


def _kept(inputs: Inputs) -> Inputs:
    slots, cache = inputs["slots"], inputs["key_cache"]
    kept = ((slots >= 0) & (slots < cache.shape[0] * cache.shape[1])).nonzero().flatten()
    return {**inputs, "slots": slots[kept], "kept": kept}


NATIVE: Final[dict[str, Native]] = {
    "rms-norm": Native(eager=rms_norm),
    "add-rms-norm": Native(eager=add_rms_norm),
    "silu-mul": Native(eager=silu_mul),
    "rotary": Native(eager=rotary),
    "softmax": Native(eager=lambda x: x.softmax(-1)),
    "log-softmax": Native(eager=lambda x: x.log_softmax(-1)),
    "int8-per-token": Native(eager=int8_quantise),
    "int8-per-channel": Native(eager=int8_quantise),
    "matmul": Native(eager=matmul),
    "w8a8-matmul": Native(eager=w8a8_matmul),
    "fp8-dequantise": Native(eager=fp8_dequantise),
    "fp8-matmul": Native(eager=fp8_matmul, others={"scaled_mm": (scaled_matmul, _laid)}),
    "grouped-topk": Native(eager=grouped_topk, ties=(1,)),
    "softmax-topk": Native(eager=softmax_topk, ties=(1,)),
    "align-experts": Native(eager=align_experts),
    "expert-matmul": Native(
        eager=expert_matmul,
        known=_looped,
        others={"grouped_mm": (grouped_matmul, _grouped)},
        unfused="a loop over the experts would be unrolled",
    ),
    "cache-write": Native(eager=cache_write, known=_kept),
    "paged-attention": Native(
        eager=paged_attention,
        known=served,
        others={"varlen_attn": (varlen_attention, one_piece), "gathered": (paged_gathered, gathered)},
    ),
    "latent-attention": Native(eager=latent_attention, known=served, others={"gathered": (latent_gathered, latents)}),
    "prefill-attention": Native(eager=prefill_attention, known=cut, others={"varlen_attn": (varlen_attention, one_piece)}),
}
