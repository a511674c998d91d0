"""Symmetric int8 quantisation by rows: of activations token by token as they come, and of weights by output channel once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
import triton
import triton.language as tl

from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched, rows_of, tile_of

MOST: Final = 127


@triton.jit
def release_int8_quantise_kernel(
    x,
    out,
    scale,
    x_stride,
    out_stride,
    scale_stride,
    rows,
    width,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Quantise ROWS rows by their largest magnitude, COLUMNS elements at a time.

    Adding and taking away 1.5·2²³ rounds a float32 to a whole number, halves to even, on every backend. Dividing before multiplying keeps
    rows of tiny numbers finite.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    most = tl.zeros([ROWS, 1], tl.float32)
    value = tl.zeros([ROWS, COLUMNS], tl.float32)  # known before the loop, or Triton's compiler forgets it behind it
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        value = tl.load(x + row * x_stride + start + column, mask=mask, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.max(tl.abs(value), 1)[:, None])
    tl.store(scale + row * scale_stride, most / 127.0, mask=row < rows)
    divisor = tl.where(most > 0, most, 1.0)
    for start in range(0, width, COLUMNS):
        mask = (row < rows) & (start + column < width)
        if not WHOLE:
            value = tl.load(x + row * x_stride + start + column, mask=mask, other=0.0).to(tl.float32)
        whole = value / divisor * 127.0 + 12582912.0 - 12582912.0
        tl.store(out + row * out_stride + start + column, whole.to(tl.int8), mask=mask)


def launch(x: torch.Tensor, *, name: str, configuration: Mapping[str, int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [..., width] as int8 of the same shape, and the scales [..., 1] in float32: x ≈ int8 · scale. A row of zeros has scale 0.

    What becomes of NaN and infinities is not defined.
    """
    cut = configured(name, configuration, rows=x.shape[:-1].numel(), dtype=x.dtype)
    rows, out = rows_of(x, "x"), torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    flat, scales = rows_of(out, "out"), rows_of(scale, "scale")
    tile, columns = tile_of(rows.shape[1], cut)
    if x.numel():
        release_int8_quantise_kernel[(triton.cdiv(rows.shape[0], tile),)](
            *(rows, flat, scales, rows.stride(0), flat.stride(0), scales.stride(0), *rows.shape),
            WHOLE=columns >= rows.shape[1],
            ROWS=tile,
            COLUMNS=columns,
            **launched(cut),
        )
    return out, scale


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both from float64, the first before it is rounded."""
    most = x.double().abs().amax(-1, keepdim=True) if x.numel() else x.new_zeros((*x.shape[:-1], 1)).double()
    return x.double() / torch.where(most > 0, most, 1.0) * MOST, most / MOST


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return rows of which one is all zeros and every one has an outlier, as activations do."""
    x = torch.randn(sizes["rows"], sizes["width"], generator=generator, device=device, dtype=torch.float32)
    x[:, :1] *= 20
    x[1:2] = 0
    return {"x": x.to(dtype)}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return numbers halfway between steps, and the smallest there are."""
    halves = torch.arange(-127, 128, device=device, dtype=torch.float32)[None, :].repeat(2, 1)
    halves[:, 1:-1] += 0.5
    tiny = torch.full((2, 64), torch.finfo(dtype).tiny, device=device, dtype=dtype)
    return {"between steps": {"x": halves.to(dtype)}, "tiny values": {"x": tiny}}


def token_shapes(facts: Facts) -> list[Sizes]:
    """Return what goes into the projections: the stream, the attention's output and the gated feed-forward."""
    value = facts.v_head_dim if facts.kv_lora_rank else facts.head_dim
    widths = sorted({facts.hidden, facts.heads * value, facts.intermediate, facts.q_lora_rank} - {0})
    return [{"rows": tokens, "width": width} for width in widths for tokens in TOKENS]


def channel_shapes(facts: Facts) -> list[Sizes]:
    """Return weights [out, in] of the dense feed-forward and of the attention's output, which every model has."""
    value = facts.v_head_dim if facts.kv_lora_rank else facts.head_dim
    return [
        {"rows": 2 * facts.intermediate, "width": facts.hidden},
        {"rows": facts.hidden, "width": facts.intermediate},
        {"rows": facts.hidden, "width": facts.heads * value},
    ]


def _operator(name: str, shapes: Any) -> Operator:
    return Operator(
        name=name,
        family="quantisation",
        launch=partial(launch, name=name),
        reference=reference,
        inputs=inputs,
        adversarial=adversarial,
        shapes=shapes,
        reduced=lambda sizes: shrunk(sizes, rows=48, width=20_000),
        edges={
            "one row": {"rows": 1, "width": 128},
            "empty": {"rows": 0, "width": 128},
            "odd": {"rows": 7, "width": 641},
            "longer than a tile": {"rows": 3, "width": 8193},
        },
        hostile=("x",),
        finite=True,
        strided=("x",),
        moved=lambda inputs: size_of(inputs["x"]) + int(inputs["x"].numel()) + 4 * int(inputs["x"].shape[0]),
        flops=lambda inputs: 3 * int(inputs["x"].numel()),
        steps=1,
    )


OPERATOR: Final = _operator("int8-per-token", token_shapes)
CHANNELS: Final = _operator("int8-per-channel", channel_shapes)
