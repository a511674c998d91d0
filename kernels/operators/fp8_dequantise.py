"""FP8 weights in blocks of 128 × 128 to bfloat16, as DeepSeek-V3 and R1 are published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import float_of_e4m3
from ..configurations import configuration as configured
from ..operator import Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched
from .matmul import projections

BLOCK = 128


@triton.jit
def release_fp8_dequantise_kernel(
    w,
    scale,
    out,
    rows,
    columns,
    w_row,
    w_column,
    scale_row,
    scale_column,
    out_row,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
):
    """Dequantise a block of BLOCK_ROWS by BLOCK_COLUMNS elements."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    code = tl.load(w + row[:, None] * w_row + column[None, :] * w_column, mask=inside, other=0.0)
    of_block = scale + (row // 128)[:, None] * scale_row + (column // 128)[None, :] * scale_column
    factor = tl.load(of_block, mask=inside, other=0.0)
    value = float_of_e4m3(code) if BITS else code.to(tl.float32)
    place = out + row[:, None] * out_row + column[None, :]
    tl.store(place, (value * factor).to(out.dtype.element_ty), mask=inside)


def launch(w: torch.Tensor, scale: torch.Tensor, *, configuration: Mapping[str, int] | None = None) -> torch.Tensor:
    """Return w [rows, columns] float8 e4m3fn times scale [⌈rows/128⌉, ⌈columns/128⌉] float32 in bfloat16, rounded once.

    `bits: 1` in the configuration decodes FP8 by integer arithmetic, on chips whose compiler does not know the type.
    """
    if w.dtype != torch.float8_e4m3fn or w.dim() != 2:
        raise ValueError(f"no FP8 weight: {tuple(w.shape)} {w.dtype}")
    if scale.shape != (triton.cdiv(w.shape[0], BLOCK), triton.cdiv(w.shape[1], BLOCK)):
        raise ValueError(f"scales of shape {tuple(scale.shape)} do not fit a weight of {tuple(w.shape)}")
    cut = configured("fp8-dequantise", configuration, rows=len(w), dtype=w.dtype)
    out = torch.empty(w.shape, dtype=torch.bfloat16, device=w.device)
    if out.numel():
        release_fp8_dequantise_kernel[(triton.cdiv(w.shape[0], cut["rows"]), triton.cdiv(w.shape[1], cut["columns"]))](
            *(w.view(torch.uint8) if cut["bits"] else w, scale, out, *w.shape, *w.stride(), *scale.stride(), out.stride(0)),
            BLOCK_ROWS=cut["rows"],
            BLOCK_COLUMNS=cut["columns"],
            BITS=bool(cut["bits"]),
            **launched(cut),
        )
    return out


def reference(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the weight in float64."""
    wide = scale.double().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return w.double() * wide[: w.shape[0], : w.shape[1]]


def blocks(rows: int, columns: int, device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an FP8 weight of every code but NaN, and a scale for each of its blocks."""
    codes = torch.randint(0, 256, (rows, columns), generator=generator, device=device, dtype=torch.uint8)
    codes = torch.where(codes % 128 == 127, codes - 1, codes)
    count = (triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK))
    return codes.view(torch.float8_e4m3fn), (0.5 + torch.rand(count, generator=generator, device=device)) / 256


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return a weight and its scales."""
    w, scale = blocks(sizes["rows"], sizes["columns"], device, generator)
    return {"w": w, "scale": scale}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return every code there is, NaN among them, and blocks whose scales lie far from one another."""
    every = torch.arange(256, device=device, dtype=torch.uint8).view(1, 256).repeat(130, 1).view(torch.float8_e4m3fn)
    w, scale = blocks(260, 140, device, generator)
    return {
        "every code": {"w": every, "scale": torch.ones(2, 2, device=device)},
        "scales apart": {"w": w, "scale": scale * torch.tensor([[1e-20, 1e20]], device=device)},
    }


def weights(facts: Facts) -> list[Sizes]:
    """Return a model's weights that are FP8: the projections of attention, the dense feed-forward and one expert."""
    if facts.block != BLOCK:
        return []
    inner = facts.expert_intermediate
    experts = [(2 * inner, facts.hidden), (facts.hidden, inner)] if inner else []
    return [{"rows": rows, "columns": columns} for rows, columns in (*projections(facts)[:-1], *experts)]


OPERATOR: Final = Operator(
    name="fp8-dequantise",
    family="quantisation",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=weights,
    dtypes=("bfloat16",),
    reduced=lambda sizes: shrunk(sizes, rows=200, columns=330),
    edges={
        "one row": {"rows": 1, "columns": 128},
        "empty": {"rows": 0, "columns": 128},
        "odd": {"rows": 131, "columns": 261},
    },
    strided=("w",),
    laid={"odd": {"w": (1, 0), "scale": (1, 0)}},
    adversarial=adversarial,
    moved=lambda inputs: 3 * size_of(inputs["w"]) + size_of(inputs["scale"]),
    flops=lambda inputs: int(inputs["w"].numel()),
)
