"""Which experts a token goes to in Qwen3-MoE: the likeliest by softmax, their weights made to sum to one where asked.

Of equals the one with the lower number wins (transformers' Qwen3MoeSparseMoeBlock, `norm_topk_prob`).
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
def release_softmax_topk_kernel(
    logits,
    weights,
    experts,
    count,
    logits_row,
    logits_column,
    weights_row,
    experts_row,
    BEST: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
):
    """Choose for one token."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    real = expert < count
    score = tl.load(logits + token * logits_row + expert * logits_column, mask=real, other=float("-inf")).to(tl.float32)
    power = tl.exp(score - tl.max(score, axis=0))
    share = power / tl.sum(power, axis=0)
    # What is no number loses against every number, yet is an expert that exists.
    choice = tl.where(score == score, tl.maximum(score, -3.0e38), -3.0e38)  # noqa: PLR0124
    choice = tl.where(real, choice, float("-inf"))
    rank = tl.arange(0, BLOCK_BEST)
    weight = tl.zeros((BLOCK_BEST,), dtype=tl.float32)
    chosen = tl.zeros((BLOCK_BEST,), dtype=tl.int32)
    for turn in tl.static_range(BEST):
        winner = tl.argmax(choice, axis=0)
        here = expert == winner
        weight = tl.where(rank == turn, tl.sum(tl.where(here, share, 0.0), axis=0), weight)
        chosen = tl.where(rank == turn, winner, chosen)
        choice = tl.where(here, float("-inf"), choice)
    if RENORMALISE:
        weight = weight / tl.sum(weight, axis=0)
    tl.store(weights + token * weights_row + rank, weight, mask=rank < BEST)
    tl.store(experts + token * experts_row + rank, chosen, mask=rank < BEST)


def launch(
    logits: torch.Tensor, best: int, renormalise: bool, *, configuration: Mapping[str, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights float32 and experts int32, both [tokens, best], of logits [tokens, experts].

    A token whose logits are NaN gets NaN weights, and experts that exist.
    """
    tokens, experts = logits.shape
    if not 1 <= best <= experts:
        raise ValueError(f"no {best} of {experts} experts")
    cut = configured("softmax-topk", configuration, rows=tokens, dtype=logits.dtype)
    weights = torch.empty((tokens, best), dtype=torch.float32, device=logits.device)
    chosen = torch.empty((tokens, best), dtype=torch.int32, device=logits.device)
    if tokens:
        release_softmax_topk_kernel[(tokens,)](
            *(logits, weights, chosen, experts, *logits.stride(), weights.stride(0), chosen.stride(0)),
            BEST=best,
            RENORMALISE=renormalise,
            BLOCK=triton.next_power_of_2(experts),
            BLOCK_BEST=triton.next_power_of_2(best),
            **launched(cut),
        )
    return weights, chosen


def reference(logits: torch.Tensor, best: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both, computed in float64."""
    shares = logits.double().softmax(-1)
    order = logits.double().nan_to_num(nan=-3e38, posinf=float("inf"), neginf=-3e38)
    chosen = order.sort(dim=-1, descending=True, stable=True).indices[:, :best]
    weights = shares.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True) if renormalise else weights, chosen


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return the logits of a router; those of 16 bits have ties."""
    logits = torch.randn(sizes["rows"], sizes["experts"], generator=generator, device=device).to(dtype)
    return {"logits": logits, "best": sizes["best"], "renormalise": True}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return ties, huge logits, experts that are shut out, no number, and shares that need not sum to one."""
    plain = inputs({"rows": 3, "experts": 30, "best": 4}, dtype, device, generator)
    shut = plain["logits"].clone()
    shut[:, 5:28] = float("-inf")
    without = plain["logits"].clone()
    without[1, 7] = float("nan")
    return {
        "all equal": {**plain, "logits": torch.zeros_like(plain["logits"])},
        "huge logits": {**plain, "logits": plain["logits"] * 1e4},
        "experts shut out": {**plain, "logits": shut},
        "not renormalised": {**plain, "renormalise": False},
        "without a number": {**plain, "logits": without},
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return the router's sizes, where its scores are a softmax and it does not choose by groups."""
    if not facts.experts or facts.groups or facts.scoring != "softmax":
        return []
    return [{"rows": rows, "experts": facts.experts, "best": facts.experts_per_token} for rows in TOKENS]


OPERATOR: Final = Operator(
    name="softmax-topk",
    family="routing",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=12),
    edges={
        "one row": {"rows": 1, "experts": 16, "best": 3},
        "empty": {"rows": 0, "experts": 16, "best": 3},
        "odd": {"rows": 7, "experts": 61, "best": 5},
    },
    strided=("logits",),
    laid={"odd": {"logits": (1, 0)}},
    adversarial=adversarial,
    moved=lambda inputs: size_of(inputs["logits"]) + 8 * len(inputs["logits"]) * int(inputs["best"]),
)
