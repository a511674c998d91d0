"""Fused add and RMSNorm: the residual stream takes up what a block gave, in place, and is normalised for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, tile_of
from . import rms_norm


@triton.jit
def release_add_rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    x_stride,
    residual_stride,
    out_stride,
    rows,
    width,
    epsilon,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add ROWS rows to the residual and normalise the sum, COLUMNS elements at a time; the sum is rounded only where it is stored."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    value = tl.zeros([ROWS, COLUMNS], tl.float32)  # known before the loop, or Triton's compiler forgets it behind it
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        place = residual + row * residual_stride + start + column
        value = tl.load(x + row * x_stride + start + column, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
        tl.store(place, value.to(residual.dtype.element_ty), mask=mask)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 1) / width + epsilon)[:, None]
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        if not WHOLE:
            value = tl.load(residual + row * residual_stride + start + column, mask=mask, other=0.0).to(tl.float32)
        factor = tl.load(weight + start + column, mask=start + column < width, other=0.0).to(tl.float32)
        tl.store(out + row * out_stride + start + column, (value * scale * factor).to(out.dtype.element_ty), mask=mask)


def launch(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    *,
    configuration: Mapping[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add x [..., width] to the residual of the same shape, in place, and return the norm of the sum with weight [width], and the residual.

    A row longer than a tile is read again from the residual, rounded to its dtype.
    """
    if weight.shape != x.shape[-1:] or not weight.is_contiguous() or residual.shape != x.shape:
        raise ValueError(f"x {tuple(x.shape)}, residual {tuple(residual.shape)} and weight {tuple(weight.shape)} do not fit")
    cut = configured("add-rms-norm", configuration, rows=x.shape[:-1].numel(), dtype=x.dtype)
    rows, stream, out = rows_of(x, "x"), rows_of(residual, "residual"), torch.empty_like(x)
    flat = rows_of(out, "out")
    tile, columns = tile_of(rows.shape[1], cut)
    if x.numel():
        release_add_rms_norm_kernel[(triton.cdiv(rows.shape[0], tile),)](
            *(rows, stream, weight, flat, rows.stride(0), stream.stride(0), flat.stride(0), *rows.shape, epsilon),
            WHOLE=columns >= rows.shape[1],
            ROWS=tile,
            COLUMNS=columns,
            **launched(cut),
        )
    return out, residual


def reference(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return norm and sum in float64."""
    total = x.double() + residual.double()
    return rms_norm.reference(total, weight, epsilon), total


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return what RMSNorm takes, and a residual of the same kind."""
    made = rms_norm.inputs(sizes, dtype, device, generator)
    residual = torch.randn(made["x"].shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
    return {"x": made["x"], "residual": residual, "weight": made["weight"], "epsilon": made["epsilon"]}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return sums so small that what is added to their mean square counts as much as that, and one of zeros."""
    plain = inputs({"rows": 5, "width": 200}, dtype, device, generator)
    small, residual = plain["x"] * 2e-3, plain["residual"] * 2e-3
    small[1] = -residual[1]
    return {"small rows": {**plain, "x": small, "residual": residual, "epsilon": 1e-5}}


def shapes(facts: Facts) -> list[Sizes]:
    """Return the two sums of a layer, which have one shape."""
    return [{"rows": tokens, "width": facts.hidden} for tokens in TOKENS]


OPERATOR: Final = Operator(
    name="add-rms-norm",
    family="norm",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=48, width=8192),
    edges={name: sizes for name, sizes in rms_norm.OPERATOR.edges.items() if "heads" not in sizes},
    hostile=("x", "residual"),
    adversarial=adversarial,
    strided=("x", "residual"),
    in_place=("residual",),
    moved=lambda inputs: 4 * size_of(inputs["x"]) + size_of(inputs["weight"]),
    flops=lambda inputs: 5 * int(inputs["x"].numel()),
)
