"""Which experts a token goes to in DeepSeek-V3: the best of its best groups, by sigmoid and a learnt correction.

The scores of a token are sigmoid(logits). Chosen is by score + correction: of `groups` groups the `kept` best by the sum of their
two best experts, and in those the `best` best experts. The weights are the scores alone, made to sum to one where `renormalise`,
times `factor`. Of equals the one with the lower number wins (DeepSeek-V3's inference/model.py; DeepSeek-V3 report, 2.1.2).
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
def release_grouped_topk_kernel(
    logits,
    correction,
    weights,
    experts,
    logits_row,
    logits_column,
    weights_row,
    experts_row,
    factor,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
):
    """Choose for one token."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    member = tl.arange(0, BLOCK_SIZE)
    expert = group[:, None] * SIZE + member[None, :]
    real = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    score = tl.load(logits + token * logits_row + expert * logits_column, mask=real, other=0.0).to(tl.float32)
    score = 1.0 / (1.0 + tl.exp(-score))
    choice = score + tl.load(correction + expert, mask=real, other=0.0).to(tl.float32)
    # What is no number loses against every number, yet is an expert that exists: an index out of bounds would be worse than a wrong one.
    choice = tl.where(choice == choice, tl.maximum(choice, -3.0e38), -3.0e38)  # noqa: PLR0124
    choice = tl.where(real, choice, float("-inf"))
    if KEPT < GROUPS:
        first = tl.max(choice, axis=1)
        rest = tl.where(member[None, :] == tl.argmax(choice, axis=1)[:, None], float("-inf"), choice)
        merit = tl.where(group < GROUPS, tl.maximum(first + tl.max(rest, axis=1), -3.3e38), float("-inf"))
        kept = group < 0
        for _ in tl.static_range(KEPT):
            winner = tl.argmax(tl.where(kept, float("-inf"), merit), axis=0)
            kept = kept | (group == winner)
        choice = tl.where(kept[:, None], choice, float("-inf"))
    choice = tl.reshape(choice, (BLOCK_GROUPS * BLOCK_SIZE,))
    score = tl.reshape(score, (BLOCK_GROUPS * BLOCK_SIZE,))
    place = tl.arange(0, BLOCK_GROUPS * BLOCK_SIZE)
    rank = tl.arange(0, BLOCK_BEST)
    weight = tl.zeros((BLOCK_BEST,), dtype=tl.float32)
    chosen = tl.zeros((BLOCK_BEST,), dtype=tl.int32)
    for turn in tl.static_range(BEST):
        winner = tl.argmax(choice, axis=0)
        here = place == winner
        weight = tl.where(rank == turn, tl.sum(tl.where(here, score, 0.0), axis=0), weight)
        chosen = tl.where(rank == turn, winner // BLOCK_SIZE * SIZE + winner % BLOCK_SIZE, chosen)
        choice = tl.where(here, float("-inf"), choice)
    if RENORMALISE:
        weight = weight / (tl.sum(weight, axis=0) + 1e-20)
    tl.store(weights + token * weights_row + rank, weight * factor, mask=rank < BEST)
    tl.store(experts + token * experts_row + rank, chosen, mask=rank < BEST)


def launch(
    logits: torch.Tensor,
    correction: torch.Tensor,
    groups: int,
    kept: int,
    best: int,
    renormalise: bool,
    factor: float,
    *,
    configuration: Mapping[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights float32 and experts int32, both [tokens, best], of logits [tokens, experts] and correction [experts].

    A token whose logits are NaN gets NaN weights, and experts that exist.
    """
    tokens, experts = logits.shape
    if experts % groups or not 1 <= kept <= groups or (kept < groups and experts // groups < 2):
        raise ValueError(f"{experts} experts make no {groups} groups of which {kept} are kept")
    if not 1 <= best <= experts // groups * kept or correction.shape != (experts,) or not correction.is_contiguous():
        raise ValueError(f"no {best} of {experts} experts with a correction of {tuple(correction.shape)}")
    cut = configured("grouped-topk", configuration, rows=tokens, dtype=logits.dtype)
    weights = torch.empty((tokens, best), dtype=torch.float32, device=logits.device)
    chosen = torch.empty((tokens, best), dtype=torch.int32, device=logits.device)
    if tokens:
        release_grouped_topk_kernel[(tokens,)](
            *(logits, correction, weights, chosen, *logits.stride(), weights.stride(0), chosen.stride(0), factor),
            GROUPS=groups,
            SIZE=experts // groups,
            KEPT=kept,
            BEST=best,
            RENORMALISE=renormalise,
            BLOCK_GROUPS=triton.next_power_of_2(groups),
            BLOCK_SIZE=triton.next_power_of_2(experts // groups),
            BLOCK_BEST=triton.next_power_of_2(best),
            **launched(cut),
        )
    return weights, chosen


def reference(
    logits: torch.Tensor, correction: torch.Tensor, groups: int, kept: int, best: int, renormalise: bool, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both, computed in float64."""
    scores = logits.double().sigmoid()
    choice = (scores + correction.double()).nan_to_num(-3e38)
    if kept < groups:
        merit = choice.view(len(choice), groups, choice.shape[1] // groups).topk(2, dim=-1).values.sum(-1)
        out = merit.sort(dim=-1, descending=True, stable=True).indices[:, kept:]
        gone = torch.zeros_like(merit, dtype=torch.bool).scatter_(1, out, True)
        choice = choice.masked_fill(gone.repeat_interleave(choice.shape[1] // groups, 1), float("-inf"))
    chosen = choice.sort(dim=-1, descending=True, stable=True).indices[:, :best]
    weights = scores.gather(1, chosen)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * factor, chosen


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return logits of which no two choices are so near to one another that float32 might order them otherwise."""
    tokens, experts, groups = sizes["rows"], sizes["experts"], sizes["groups"]
    correction = 0.1 * torch.randn(experts, generator=generator, device=device)
    logits = torch.randn(tokens, experts, generator=generator, device=device).to(dtype)
    for _ in range(100):
        choice = logits.double().sigmoid() + correction
        merit = choice.view(tokens, groups, experts // groups).topk(min(2, experts // groups), dim=-1).values.sum(-1)
        near = torch.zeros(tokens, dtype=torch.bool, device=device)
        for values in (choice, merit):
            gaps = values.sort(dim=-1).values.diff(dim=-1)
            near |= (gaps < 1e-6).any(-1)
        if not near.any():
            break
        logits[near] = torch.randn(int(near.sum()), experts, generator=generator, device=device).to(dtype)
    rest = {
        "groups": groups,
        "kept": sizes["kept"],
        "best": sizes["best"],
        "renormalise": True,
        "factor": sizes.get("thousandths", 2500) / 1000,
    }
    return {"logits": logits, "correction": correction, **rest}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return ties, scores of exactly 0 and 1, groups whose best expert misleads, one group, no number, and experts in no power of two."""
    flat = inputs({"rows": 3, "experts": 32, "groups": 4, "kept": 2, "best": 4}, dtype, device, generator)
    plain = torch.zeros(32, device=device)
    huge = torch.full_like(flat["logits"], -3e4)
    huge[:, 20:30] = 3e4
    lone = torch.full_like(flat["logits"], -2.0)
    lone[:, 8], lone[:, 0:2], lone[:, 16:18] = 3.0, 1.0, 1.5
    without = flat["logits"].clone()
    without[1], without[2, 7] = float("nan"), float("nan")
    odd = inputs({"rows": 3, "experts": 30, "groups": 3, "kept": 2, "best": 6}, dtype, device, generator)
    one = inputs({"rows": 3, "experts": 24, "groups": 1, "kept": 1, "best": 3}, dtype, device, generator)
    return {
        "all equal": {**flat, "logits": torch.zeros_like(flat["logits"]), "correction": plain},
        "huge logits": {**flat, "logits": huge, "correction": plain},
        "one best in a poor group": {**flat, "logits": lone, "correction": torch.arange(32, device=device) * -1e-3},
        "odd groups": odd,
        "one group, not renormalised": {**one, "renormalise": False},
        "without a number": {**flat, "logits": without},
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return the router's sizes, where its scores are sigmoids; a model without groups has one. The factor is in thousandths."""
    if not facts.experts or facts.scoring != "sigmoid":
        return []
    groups = {"groups": facts.groups or 1, "kept": facts.top_groups or 1, "thousandths": round(facts.scaling * 1000)}
    rest = {"experts": facts.experts, **groups, "best": facts.experts_per_token}
    return [{"rows": rows, **rest} for rows in TOKENS]


OPERATOR: Final = Operator(
    name="grouped-topk",
    family="routing",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    dtypes=("float32", "bfloat16"),
    reduced=lambda sizes: shrunk(sizes, rows=12),
    edges={
        "one row": {"rows": 1, "experts": 16, "groups": 4, "kept": 2, "best": 3},
        "empty": {"rows": 0, "experts": 16, "groups": 4, "kept": 2, "best": 3},
        "odd": {"rows": 7, "experts": 30, "groups": 5, "kept": 3, "best": 5},
    },
    strided=("logits",),
    laid={"odd": {"logits": (1, 0)}},
    adversarial=adversarial,
    moved=lambda inputs: size_of(inputs["logits"], inputs["correction"]) + 8 * len(inputs["logits"]) * int(inputs["best"]),
)
