"""Product of int8 activations and int8 weights, scaled back: the projections of a W8A8 model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import block_of
from ..configurations import configuration as configured
from ..operator import TOKENS, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched
from .matmul import shapes

DEEPEST = (2**31 - 1) // 128**2
"""The depth up to which no sum of int8 products leaves int32."""


@triton.jit
def release_w8a8_matmul_kernel(
    a,
    a_scale,
    w,
    w_scale,
    bias,
    out,
    rows,
    columns,
    depth,
    a_row,
    a_depth,
    w_column,
    w_depth,
    out_row,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Multiply one block of the result in int32, then scale it."""
    i, j = block_of(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(columns, BLOCK_COLUMNS), BAND)
    row = (i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = (j * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    step = tl.arange(0, BLOCK_DEPTH)
    left = a + (row % rows)[:, None] * a_row + step[None, :] * a_depth
    right = w + step[:, None] * w_depth + (column % columns)[None, :] * w_column
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.int32)
    for start in range(0, depth, BLOCK_DEPTH):
        inside = step < depth - start
        x = tl.load(left, mask=inside[None, :], other=0)
        y = tl.load(right, mask=inside[:, None], other=0)
        total = tl.dot(x, y, total, out_dtype=tl.int32)
        left += BLOCK_DEPTH * a_depth
        right += BLOCK_DEPTH * w_depth
    of_row = tl.load(a_scale + row, mask=row < rows, other=0.0)
    of_column = tl.load(w_scale + column, mask=column < columns, other=0.0)
    result = total.to(tl.float32) * of_row[:, None] * of_column[None, :]
    if HAS_BIAS:
        result += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    place = out + row[:, None] * out_row + column[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


def launch(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    configuration: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Return (a @ w.t()) · a_scale · w_scale + bias in `dtype`.

    `a` int8 [rows, depth] with a float32 scale for each token [rows, 1], `w` int8 [columns, depth] with one for each channel
    [columns, 1], as compressed-tensors keeps them; `bias` [columns] or None. Sums are exact in int32.
    """
    if a.dtype != torch.int8 or w.dtype != torch.int8 or a.dim() != 2 or w.dim() != 2 or a.shape[1] != w.shape[1]:
        raise ValueError(f"no int8 product of {tuple(a.shape)} {a.dtype} and {tuple(w.shape)} {w.dtype}")
    (rows, depth), columns = a.shape, w.shape[0]
    if depth > DEEPEST:
        raise ValueError(f"sums of {depth} products may leave int32: {DEEPEST} at most")
    if (a_scale.numel(), w_scale.numel()) != (rows, columns) or (bias is not None and bias.shape != (columns,)):
        raise ValueError("scales or bias do not fit")
    cut = configured("w8a8-matmul", configuration, rows=rows, dtype=a.dtype)
    out = torch.empty((rows, columns), dtype=dtype, device=a.device)
    if out.numel():
        grid = (triton.cdiv(rows, cut["rows"]) * triton.cdiv(columns, cut["columns"]),)
        release_w8a8_matmul_kernel[grid](
            *(a, a_scale.contiguous(), w, w_scale.contiguous(), None if bias is None else bias.contiguous(), out),
            *(rows, columns, depth, *a.stride(), *w.stride(), out.stride(0)),
            BLOCK_ROWS=cut["rows"],
            BLOCK_COLUMNS=cut["columns"],
            BLOCK_DEPTH=cut["depth"],
            BAND=cut["band"],
            HAS_BIAS=bias is not None,
            **launched(cut),
        )
    return out


def reference(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return it in float64, whose sums of int8 products are exact."""
    found = (a.double() @ w.double().t()) * a_scale.double().view(-1, 1) * w_scale.double().view(1, -1)
    return found if bias is None else found + bias.double()


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return codes of the whole range, scales that bring results near one, and a bias."""

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, generator=generator, device=device, dtype=torch.int8)

    def scales(count: int) -> torch.Tensor:
        return (0.5 + torch.rand(count, 1, generator=generator, device=device)) / 64

    rows, columns, depth = sizes["rows"], sizes["columns"], sizes["depth"]
    bias = torch.randn(columns, generator=generator, device=device).to(dtype)
    return {
        **{"a": codes(rows, depth), "a_scale": scales(rows), "w": codes(columns, depth)},
        **{"w_scale": scales(columns) / max(1, depth) ** 0.5, "bias": bias, "dtype": dtype},
    }


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return the largest sums there are, and a call without bias."""
    plain = inputs({"rows": 5, "columns": 37, "depth": 95}, dtype, device, generator)
    most = inputs({"rows": 2, "columns": 3, "depth": 29568}, dtype, device, generator)
    most["a"].fill_(-128)
    most["w"].fill_(-128)
    return {"largest sums": most, "without bias": {**plain, "bias": None}}


OPERATOR: Final = Operator(
    name="w8a8-matmul",
    family="w8a8 matmul",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=lambda facts: shapes(facts)[: -len(TOKENS)],
    reduced=lambda sizes: shrunk(sizes, rows=40, columns=136, depth=136),
    edges={
        "one row": {"rows": 1, "columns": 128, "depth": 128},
        "empty": {"rows": 0, "columns": 128, "depth": 128},
        "few rows": {"rows": 5, "columns": 37, "depth": 161},
        "odd": {"rows": 131, "columns": 133, "depth": 161},
        "more than a band": {"rows": 1100, "columns": 150, "depth": 32},
    },
    strided=("a", "w"),
    laid={"few rows": {"a": (1, 0), "w": (1, 0), "a_scale": (0, 1), "w_scale": (0, 1)}},
    adversarial=adversarial,
    moved=lambda inputs: (
        size_of(inputs["a"], inputs["w"], inputs["a_scale"], inputs["w_scale"])
        + int(inputs["a"].shape[0]) * int(inputs["w"].shape[0]) * int(inputs["dtype"].itemsize)
    ),
    flops=lambda inputs: 2 * int(inputs["a"].numel()) * int(inputs["w"].shape[0]),
    memory_bound=False,
)
