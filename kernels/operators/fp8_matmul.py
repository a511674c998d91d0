"""Product of FP8 activations, scaled in groups of 1 × 128, and FP8 weights, scaled in blocks of 128 × 128, as in DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import block_of, float_of_e4m3, product
from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched
from .fp8_dequantise import BLOCK, blocks, weights
from .fp8_dequantise import reference as dequantised
from .matmul import summands


@triton.jit
def release_fp8_matmul_kernel(
    a,
    a_scale,
    w,
    w_scale,
    out,
    rows,
    columns,
    depth,
    a_row,
    a_depth,
    a_scale_row,
    a_scale_group,
    w_column,
    w_depth,
    w_scale_block,
    w_scale_group,
    out_row,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BAND: tl.constexpr,
    BITS: tl.constexpr,
):
    """Multiply one block of the result, one group of scales at a time."""
    BLOCK_DEPTH: tl.constexpr = 128
    i, j = block_of(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(columns, BLOCK_COLUMNS), BAND)
    row = (i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = (j * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    step = tl.arange(0, BLOCK_DEPTH)
    left = a + (row % rows)[:, None] * a_row + step[None, :] * a_depth
    right = w + step[:, None] * w_depth + (column % columns)[None, :] * w_column
    left_scale = a_scale + (row % rows) * a_scale_row
    right_scale = w_scale + (column % columns) // 128 * w_scale_block
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        inside = step < depth - start
        x = tl.load(left, mask=inside[None, :], other=0.0)
        y = tl.load(right, mask=inside[:, None], other=0.0)
        if BITS:
            # Every e4m3 number is a bfloat16 number: chips without FP8 units lose nothing here.
            x = float_of_e4m3(x).to(tl.bfloat16)
            y = float_of_e4m3(y).to(tl.bfloat16)
        part = product(x, y, tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32))
        total += part * tl.load(left_scale)[:, None] * tl.load(right_scale)[None, :]
        left += BLOCK_DEPTH * a_depth
        right += BLOCK_DEPTH * w_depth
        left_scale += a_scale_group
        right_scale += w_scale_group
    place = out + row[:, None] * out_row + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


def launch(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    configuration: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Return (a · a_scale) @ (w · w_scale).t() in `dtype`, each 128 of the depth summed and scaled in float32.

    `a` float8 e4m3fn [rows, depth], a_scale float32 [rows, ⌈depth/128⌉]; `w` [columns, depth], w_scale [⌈columns/128⌉, ⌈depth/128⌉].
    `bits: 1` in the configuration is for chips without FP8: decoded by integer arithmetic, multiplied in bfloat16, which is exact.
    """
    if a.dtype != torch.float8_e4m3fn or w.dtype != a.dtype or a.dim() != 2 or w.dim() != 2 or a.shape[1] != w.shape[1]:
        raise ValueError(f"no FP8 product of {tuple(a.shape)} {a.dtype} and {tuple(w.shape)} {w.dtype}")
    (rows, depth), columns = a.shape, w.shape[0]
    groups = triton.cdiv(depth, BLOCK)
    if a_scale.shape != (rows, groups) or w_scale.shape != (triton.cdiv(columns, BLOCK), groups):
        raise ValueError(f"scales of {tuple(a_scale.shape)} and {tuple(w_scale.shape)} do not fit")
    cut = configured("fp8-matmul", configuration, rows=rows, dtype=a.dtype)
    out = torch.empty((rows, columns), dtype=dtype, device=a.device)
    if out.numel():
        left, right = (x.view(torch.uint8) if cut["bits"] else x for x in (a, w))
        release_fp8_matmul_kernel[(triton.cdiv(rows, cut["rows"]) * triton.cdiv(columns, cut["columns"]),)](
            *(left, a_scale, right, w_scale, out, rows, columns, depth),
            *(*a.stride(), *a_scale.stride(), *w.stride(), *w_scale.stride(), out.stride(0)),
            BLOCK_ROWS=cut["rows"],
            BLOCK_COLUMNS=cut["columns"],
            BAND=cut["band"],
            BITS=bool(cut["bits"]),
            **launched(cut),
        )
    return out


def reference(a: torch.Tensor, a_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the product in float64."""
    wide = a.double() * a_scale.double().repeat_interleave(BLOCK, 1)[:, : a.shape[1]]
    return wide @ dequantised(w, w_scale).t()


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return activations quantised in groups, and a weight in blocks."""
    rows, columns, depth = sizes["rows"], sizes["columns"], sizes["depth"]
    w, w_scale = blocks(columns, depth, device, generator)
    a, _ = blocks(rows, depth, device, generator)
    a_scale = (0.5 + torch.rand(rows, triton.cdiv(depth, BLOCK), generator=generator, device=device)) / 256
    return {"a": a, "a_scale": a_scale, "w": w, "w_scale": w_scale, "dtype": dtype}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return a row with NaN, which must stay in its row, and a sum of groups, one after the other too small for 16 bits."""
    odd = inputs({"rows": 5, "columns": 140, "depth": 200}, dtype, device, generator)
    odd["a"].view(torch.uint8)[2, 199] = 127
    long = inputs({"rows": 2, "columns": 5, "depth": 24 * BLOCK}, dtype, device, generator)
    for name in ("a", "w"):
        long[name].view(torch.uint8).fill_(56)  # the code of 1
    long["a_scale"].fill_(1.0)
    long["w_scale"].copy_(summands(24, 1, dtype, device).float() / BLOCK)
    return {"NaN in a row": odd, "a long sum": long}


def shapes(facts: Facts) -> list[Sizes]:
    """Return every FP8 weight at every number of tokens."""
    return [{"rows": rows, "columns": size["rows"], "depth": size["columns"]} for size in weights(facts) for rows in TOKENS]


OPERATOR: Final = Operator(
    name="fp8-matmul",
    family="fp8 matmul",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    dtypes=("float16", "bfloat16"),
    reduced=lambda sizes: shrunk(sizes, rows=40, columns=200, depth=330),
    edges={
        "one row": {"rows": 1, "columns": 128, "depth": 128},
        "empty": {"rows": 0, "columns": 128, "depth": 128},
        "odd": {"rows": 7, "columns": 133, "depth": 261},
        "more than a band": {"rows": 1100, "columns": 150, "depth": 128},
    },
    strided=("a", "w"),
    laid={"odd": {"a": (1, 0), "a_scale": (1, 0), "w": (1, 0), "w_scale": (1, 0)}},
    adversarial=adversarial,
    moved=lambda inputs: (
        size_of(*(inputs[name] for name in ("a", "a_scale", "w", "w_scale")))
        + int(inputs["a"].shape[0]) * int(inputs["w"].shape[0]) * int(inputs["dtype"].itemsize)
    ),
    flops=lambda inputs: 2 * int(inputs["a"].numel()) * int(inputs["w"].shape[0]),
    memory_bound=False,
    reduces=lambda inputs: int(inputs["a"].shape[1]),
)
