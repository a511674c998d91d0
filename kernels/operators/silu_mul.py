"""SiLU and multiply: the gate of a feed-forward network, silu(gate) · up, of one tensor that holds both halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, tile_of


@triton.jit
def release_silu_mul_kernel(x, out, x_stride, out_stride, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute a tile of ROWS by COLUMNS."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (column < width)
    gate = tl.load(x + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + width + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=mask)


def launch(x: torch.Tensor, *, configuration: Mapping[str, int] | None = None) -> torch.Tensor:
    """Return silu(x[..., :width]) · x[..., width:] of x [..., 2 · width]."""
    if x.shape[-1] % 2:
        raise ValueError(f"rows of {x.shape[-1]} have no two halves")
    cut = configured("silu-mul", configuration, rows=x.shape[:-1].numel(), dtype=x.dtype)
    width = x.shape[-1] // 2
    rows, out = rows_of(x, "x"), torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    flat = rows_of(out, "out")
    tile, columns = tile_of(width, cut)
    if out.numel():
        release_silu_mul_kernel[(triton.cdiv(rows.shape[0], tile), triton.cdiv(width, columns))](
            *(rows, flat, rows.stride(0), flat.stride(0), rows.shape[0], width), ROWS=tile, COLUMNS=columns, **launched(cut)
        )
    return out


def reference(x: torch.Tensor) -> torch.Tensor:
    """Return the product in float64."""
    gate, up = x.double().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return what the two projections give."""
    shape = sizes["rows"], 2 * sizes["width"]
    return {"x": torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)}


def shapes(facts: Facts) -> list[Sizes]:
    """Return the dense feed-forward's, the shared expert's, and the routed experts', whose tokens stand once for each expert they go to."""
    found: list[Sizes] = [{"rows": tokens, "width": facts.intermediate} for tokens in TOKENS]
    if facts.experts:
        shared = facts.shared_experts * facts.expert_intermediate
        found += [{"rows": tokens, "width": shared} for tokens in TOKENS if shared]
        found += [{"rows": tokens * facts.experts_per_token, "width": facts.expert_intermediate} for tokens in TOKENS]
    return found


OPERATOR: Final = Operator(
    name="silu-mul",
    family="activation",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=16, width=8192),
    edges={
        "one row": {"rows": 1, "width": 128},
        "empty": {"rows": 0, "width": 128},
        "odd": {"rows": 7, "width": 641},
        "longer than a tile": {"rows": 3, "width": 8193},
    },
    hostile=("x",),
    strided=("x",),
    moved=lambda inputs: size_of(inputs["x"]) * 3 // 2,
    flops=lambda inputs: 5 * int(inputs["x"].numel()) // 2,
)
