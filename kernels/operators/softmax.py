"""Softmax and log-softmax over the last dimension: the router's shares, the sampler's probabilities and the logarithms that clients ask for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import DECODE, TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, tile_of


@triton.jit
def release_softmax_kernel(
    x, out, x_stride, out_stride, rows, width, LOG: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Compute ROWS rows in two passes: maximum and sum together, the sum rescaled as the maximum grows (arXiv 1805.02867), then the result.

    A maximum of −∞ is replaced by 0 where it is subtracted, so that −∞ − −∞ does not turn a row's first piece into NaN.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    most = tl.full([ROWS, 1], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, 1], tl.float32)
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        value = tl.load(x + row * x_stride + start + column, mask=mask, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(value, 1)[:, None])
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - shift) + tl.sum(tl.exp(value - shift), 1)[:, None]
        most = higher
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        value = tl.load(x + row * x_stride + start + column, mask=mask, other=0.0).to(tl.float32) - most
        result = value - tl.log(total) if LOG else tl.exp(value) / total
        tl.store(out + row * out_stride + start + column, result.to(out.dtype.element_ty), mask=mask)


def launch(x: torch.Tensor, *, log: bool, configuration: Mapping[str, int] | None = None) -> torch.Tensor:
    """Return the softmax of the rows of x [..., width], or its logarithm, in x's dtype; a row of −∞ alone gives NaN, as in torch."""
    cut = configured("log-softmax" if log else "softmax", configuration, rows=x.shape[:-1].numel(), dtype=x.dtype)
    rows, out = rows_of(x, "x"), torch.empty_like(x)
    flat = rows_of(out, "out")
    tile, columns = tile_of(rows.shape[1], cut)
    if x.numel():
        release_softmax_kernel[(triton.cdiv(rows.shape[0], tile),)](
            *(rows, flat, rows.stride(0), flat.stride(0), *rows.shape), LOG=log, ROWS=tile, COLUMNS=columns, **launched(cut)
        )
    return out


def reference(x: torch.Tensor, *, log: bool) -> torch.Tensor:
    """Return it in float64."""
    return torch.log_softmax(x.double(), -1) if log else torch.softmax(x.double(), -1)


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return logits, a few of them far above the others."""
    x = torch.randn(sizes["rows"], sizes["width"], generator=generator, device=device, dtype=torch.float32)
    return {"x": (4 * x).to(dtype)}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return rows that begin with −∞ for longer than a tile, as masks leave them, and rows of nothing else."""
    x = torch.randn(3, 8192 + 5, generator=generator, device=device, dtype=torch.float32).to(dtype)
    x[0, :8192] = float("-inf")
    x[1] = float("-inf")
    return {"rows of −infinity": {"x": x}}


def shapes(facts: Facts) -> list[Sizes]:
    """Return the sampler's rows and, with experts, the router's."""
    found: list[Sizes] = [{"rows": tokens, "width": facts.vocabulary} for tokens in DECODE]
    return found + [{"rows": tokens, "width": facts.experts} for tokens in TOKENS if facts.experts]


def reduced(sizes: Sizes) -> Sizes:
    """Return few rows, whose width stays more than one tile if it was."""
    return shrunk(sizes, rows=8, width=20_000)


def _operator(name: str, log: bool) -> Operator:
    made: dict[str, Any] = {
        "launch": partial(launch, log=log),
        "reference": partial(reference, log=log),
        "inputs": inputs,
        "adversarial": adversarial,
        "shapes": shapes,
        "reduced": reduced,
    }
    return Operator(
        name=name,
        family="softmax",
        **made,
        edges={
            "one row": {"rows": 1, "width": 320},
            "empty": {"rows": 0, "width": 320},
            "odd": {"rows": 7, "width": 641},
            "longer than a tile": {"rows": 3, "width": 8193},
        },
        hostile=("x",),
        strided=("x",),
        moved=lambda inputs: 2 * size_of(inputs["x"]),
        flops=lambda inputs: 5 * int(inputs["x"].numel()),
    )


OPERATOR: Final = _operator("softmax", log=False)
LOGARITHM: Final = _operator("log-softmax", log=True)
