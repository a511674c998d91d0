"""RMSNorm: each row divided by the root of its mean square, times a weight (arXiv 1910.07467)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import heads_of, launched, tile_of


@triton.jit
def release_rms_norm_kernel(
    x,
    weight,
    out,
    x_heads,
    x_stride,
    x_head_stride,
    out_heads,
    out_stride,
    out_head_stride,
    rows,
    width,
    epsilon,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Normalise ROWS rows, COLUMNS elements at a time; WHOLE says that a row fits and is read once. Groups of one cost no division."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    x += row // x_heads * x_stride + row % x_heads * x_head_stride
    out += row // out_heads * out_stride + row % out_heads * out_head_stride
    column = tl.arange(0, COLUMNS)[None, :]
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    value = tl.zeros([ROWS, COLUMNS], tl.float32)  # known before the loop, or Triton's compiler forgets it behind it
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        value = tl.load(x + start + column, mask=mask, other=0.0).to(tl.float32)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 1) / width + epsilon)[:, None]
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        if not WHOLE:
            value = tl.load(x + start + column, mask=mask, other=0.0).to(tl.float32)
        factor = tl.load(weight + start + column, mask=start + column < width, other=0.0).to(tl.float32)
        tl.store(out + start + column, (value * scale * factor).to(out.dtype.element_ty), mask=mask)


def launch(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, *, configuration: Mapping[str, int] | None = None
) -> torch.Tensor:
    """Return the norm of x [..., width] with weight [width], in x's dtype. Of three dimensions the first two may have any strides."""
    if weight.shape != x.shape[-1:] or not weight.is_contiguous():
        raise ValueError(f"weight of shape {tuple(weight.shape)} does not fit rows of {x.shape[-1]}, or is not contiguous")
    width, out = x.shape[-1], torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, *lie = heads_of(x, "x")
    cut = configured("rms-norm", configuration, rows=rows, dtype=x.dtype)
    tile, columns = tile_of(width, cut)
    if x.numel():
        release_rms_norm_kernel[(triton.cdiv(rows, tile),)](
            *(x, weight, out, *lie, *heads_of(out, "out")[1:], rows, width, epsilon),
            WHOLE=columns >= width,
            ROWS=tile,
            COLUMNS=columns,
            **launched(cut),
        )
    return out


def reference(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the norm in float64."""
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight.double()


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return rows of a residual stream, or the first `heads` of a product that has others `beside` them, and a weight around one."""
    heads, width = sizes.get("heads", 1), sizes["width"]
    x = torch.randn(
        *(sizes["rows"], (heads + sizes.get("beside", 0)) * width), generator=generator, device=device, dtype=torch.float32
    )
    weight = 1 + 0.1 * torch.randn(width, generator=generator, device=device, dtype=torch.float32)
    x = x.to(dtype)
    if "heads" in sizes:
        x = x[:, : heads * width].view(sizes["rows"], heads, width)
    return {"x": x, "weight": weight.to(dtype), "epsilon": 1e-6}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return rows so small that what is added to their mean square counts as much as that, and one of zeros."""
    plain = inputs({"rows": 5, "width": 200}, dtype, device, generator)
    small = plain["x"] * 3e-3
    small[1] = 0.0
    return {"small rows": {**plain, "x": small, "epsilon": 1e-5}}


def shapes(facts: Facts) -> list[Sizes]:
    """Return the norms of the stream, of the latent ranks (DeepSeek), and of heads (Qwen3), which lie beside others in one product."""
    found: list[Sizes] = [{"rows": tokens, "width": facts.hidden} for tokens in TOKENS]
    for tokens in TOKENS:
        if facts.qk_norm:
            every = facts.heads + 2 * facts.kv_heads
            for heads in (facts.heads, facts.kv_heads):
                found.append({"rows": tokens, "heads": heads, "beside": every - heads, "width": facts.head_dim})
        found += [{"rows": tokens, "width": rank} for rank in (facts.q_lora_rank, facts.kv_lora_rank) if rank]
    return found


def moved(inputs: Inputs) -> int:
    """Return the bytes of x read once and written once, and of the weight."""
    return 2 * size_of(inputs["x"]) + size_of(inputs["weight"])


OPERATOR: Final = Operator(
    name="rms-norm",
    family="norm",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=12 if "heads" in sizes else 48, heads=8, beside=4, width=8192),
    edges={
        "one row": {"rows": 1, "width": 128},
        "empty": {"rows": 0, "width": 128},
        "odd": {"rows": 7, "width": 641},
        "odd heads": {"rows": 7, "heads": 3, "beside": 2, "width": 100},
        "longer than a tile": {"rows": 3, "width": 8193 + 64},
    },
    hostile=("x",),
    adversarial=adversarial,
    strided=("x",),
    laid={"odd heads": {"x": (1, 0, 2)}},
    moved=moved,
    flops=lambda inputs: 4 * inputs["x"].numel(),
)
