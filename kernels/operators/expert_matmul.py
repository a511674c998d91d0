"""Every token times the weights of its own experts: the projections of a mixture-of-experts layer in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import block_of, product
from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, whole
from .align_experts import reference as aligned
from .matmul import summands, summed


@triton.jit
def release_expert_matmul_kernel(
    a,
    w,
    weights,
    order,
    owners,
    used,
    out,
    pairs,
    columns,
    depth,
    blocks,
    a_row,
    a_depth,
    w_expert,
    w_column,
    w_depth,
    out_row,
    SHARE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    """Multiply one block of pairs of one expert by BLOCK_COLUMNS of its columns."""
    i, j = block_of(tl.program_id(0), blocks, tl.cdiv(columns, BLOCK_COLUMNS), BAND)
    if i * BLOCK_ROWS >= tl.load(used):
        return
    pair = tl.load(order + i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    real = pair < pairs
    column = (j * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    expert = tl.load(owners + i).to(tl.int64)
    step = tl.arange(0, BLOCK_DEPTH)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    if expert >= 0:
        left = a + (pair // SHARE)[:, None] * a_row + step[None, :] * a_depth
        right = w + expert * w_expert + step[:, None] * w_depth + (column % columns)[None, :] * w_column
        for start in range(0, depth, BLOCK_DEPTH):
            inside = step < depth - start
            x = tl.load(left, mask=real[:, None] & inside[None, :], other=0.0)
            y = tl.load(right, mask=inside[:, None], other=0.0)
            total = product(x, y, total)
            left += BLOCK_DEPTH * a_depth
            right += BLOCK_DEPTH * w_depth
        if WEIGHTED:
            total *= tl.load(weights + pair, mask=real, other=0.0).to(tl.float32)[:, None]
    place = out + pair[:, None] * out_row + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=real[:, None] & (column < columns)[None, :])


def launch(
    a: torch.Tensor,
    w: torch.Tensor,
    order: torch.Tensor,
    owners: torch.Tensor,
    used: torch.Tensor,
    pairs: int,
    share: int,
    weights: torch.Tensor | None,
    *,
    configuration: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Return for each (token, choice) pair its row of `a` times its expert's weight [pairs, columns], in a's dtype; 0 of no expert here.

    `a` [pairs/share, depth]: pair p reads row p // share, so `share` is the experts of a token for the first projection and 1 for
    the second. `w` [experts, columns, depth]. `order`, `owners`, `used` as align-experts gives them, whose blocks set the rows of a
    program. `weights` [pairs] float32 multiplies each row, or None.
    """
    if a.dim() != 2 or w.dim() != 3 or a.shape[1] != w.shape[2] or a.dtype != w.dtype or a.shape[0] * share != pairs:
        raise ValueError(f"no product of {tuple(a.shape)} {a.dtype} and {tuple(w.shape)} {w.dtype} for {pairs} pairs")
    whole(order=order, owners=owners, used=used, weights=weights)
    cut = configured("expert-matmul", configuration, rows=pairs, dtype=a.dtype)
    columns, depth = w.shape[1:]
    out = torch.empty((pairs, columns), dtype=a.dtype, device=a.device)
    if out.numel():
        blocks = len(owners)
        release_expert_matmul_kernel[(blocks * triton.cdiv(columns, cut["columns"]),)](
            *(a, w, weights, order, owners, used, out, pairs, columns, depth, blocks, *a.stride(), *w.stride(), out.stride(0)),
            SHARE=share,
            WEIGHTED=weights is not None,
            BLOCK_ROWS=len(order) // blocks,
            BLOCK_COLUMNS=cut["columns"],
            BLOCK_DEPTH=cut["depth"],
            BAND=cut["band"],
            **launched(cut),
        )
    return out


def reference(
    a: torch.Tensor,
    w: torch.Tensor,
    order: torch.Tensor,
    owners: torch.Tensor,
    used: torch.Tensor,
    pairs: int,
    share: int,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """Return it in float64, block by block."""
    out = torch.zeros(pairs, w.shape[1], dtype=torch.float64, device=a.device)
    size = len(order) // max(1, len(owners))
    for block, expert in enumerate(owners.tolist()):
        own = order[block * size : (block + 1) * size].long()
        own = own[own < pairs]
        if expert >= 0 and len(own):
            out[own] = a[own // share].double() @ w[expert].double().t()
    return out if weights is None else out * weights.double().view(-1, 1)


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return tokens that chose different experts, ordered for blocks; the second projection weighs its results."""
    rows, experts, best, share = sizes["rows"], sizes["experts"], sizes["best"], sizes["share"]
    chosen = torch.rand(rows, experts, generator=generator, device=device).argsort(dim=-1)[:, :best].int()
    weights = torch.rand(rows * best, generator=generator, device=device) if share == 1 else None
    return _called(sizes, chosen, weights, dtype, device, generator)


def _called(
    sizes: Sizes,
    chosen: torch.Tensor,
    weights: torch.Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Inputs:
    depth, columns, share = sizes["depth"], sizes["columns"], sizes["share"]
    pairs = chosen.numel()
    a = torch.randn(pairs // share, depth, generator=generator, device=device).to(dtype)
    w = torch.randn(sizes["experts"], columns, depth, generator=generator, device=device, dtype=dtype) / depth**0.5
    order, owners, used = (part.int() for part in aligned(chosen, sizes["experts"], sizes["size"]))
    return {"a": a, "w": w, "order": order, "owners": owners, "used": used, "pairs": pairs, "share": share, "weights": weights}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return experts whom no token chose, one whom all did, pairs that belong to no expert here, and a sum too long for 16 bits."""
    sizes = {"experts": 5, "best": 2, "share": 2, "size": 16, "columns": 72, "depth": 40}
    one = torch.full((21, 2), 3, dtype=torch.int32, device=device)
    few = torch.tensor([[1, 4]], dtype=torch.int32, device=device).repeat(9, 1)
    none = few.clone()
    none[::2, 0] = -1
    rest = (None, dtype, device, generator)
    addends = summands(24, configured("expert-matmul", rows=2, dtype=dtype)["depth"], dtype, device)
    long = _called({**sizes, "best": 1, "share": 1, "columns": 5, "depth": len(addends)}, one[:2, :1], *rest)
    long["a"].fill_(1.0)
    long["w"].copy_(addends.expand_as(long["w"]))
    return {
        "a long sum": long,
        "all of one expert": _called(sizes, one, *rest),
        "experts without tokens": _called(sizes, few, *rest),
        "of no expert here": _called(sizes, none, *rest),
    }


def shapes(facts: Facts) -> list[Sizes]:
    """Return both projections of a layer's experts."""
    if not facts.experts:
        return []
    inner, best = facts.expert_intermediate, facts.experts_per_token
    kinds = [
        {"columns": 2 * inner, "depth": facts.hidden, "share": best},
        {"columns": facts.hidden, "depth": inner, "share": 1},
    ]
    rest = {"experts": facts.experts, "best": best}
    return [{"rows": rows, "size": 16 if rows < 1024 else 64, **kind, **rest} for kind in kinds for rows in TOKENS]


def arithmetic(inputs: Inputs) -> int:
    """Return two operations for each pair, column and step of depth."""
    return 2 * int(inputs["pairs"]) * int(inputs["w"].shape[1]) * int(inputs["w"].shape[2])


def moved(inputs: Inputs) -> int:
    """Return the bytes of the activations, of the experts that are met, and of the result."""
    met = len(set(inputs["owners"].tolist()) - {-1})
    result = int(inputs["pairs"]) * int(inputs["w"].shape[1]) * int(inputs["w"].element_size())
    return size_of(inputs["a"]) + met * size_of(inputs["w"][0]) + result


OPERATOR: Final = Operator(
    name="expert-matmul",
    family="experts",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: {**shrunk(sizes, rows=20, experts=8, columns=160, depth=100), "size": min(sizes["size"], 32)},
    edges={
        "one row": {"rows": 1, "experts": 8, "best": 2, "share": 2, "size": 16, "columns": 64, "depth": 32},
        "empty": {"rows": 0, "experts": 8, "best": 2, "share": 2, "size": 16, "columns": 64, "depth": 32},
        "odd": {"rows": 7, "experts": 5, "best": 3, "share": 1, "size": 16, "columns": 133, "depth": 161},
    },
    hostile=("a",),
    strided=("a", "w"),
    laid={"odd": {"a": (1, 0), "w": (0, 2, 1)}},
    adversarial=adversarial,
    moved=moved,
    flops=arithmetic,
    memory_bound=False,
    reduces=summed,
)
