"""Matrix product of bfloat16, float16 or float32: every projection of a model that is not quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from ..blocks import block_of, product
from ..configurations import configuration as configured
from ..operator import TOKENS, Facts, Inputs, Operator, Sizes, shrunk, size_of
from ..tiles import launched


@triton.jit
def release_matmul_kernel(
    a,
    b,
    out,
    rows,
    columns,
    depth,
    a_row,
    a_depth,
    b_depth,
    b_column,
    out_row,
    out_column,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    """Multiply one block of the result: BLOCK_ROWS by BLOCK_COLUMNS, BLOCK_DEPTH of the depth at a time."""
    i, j = block_of(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(columns, BLOCK_COLUMNS), BAND)
    row = (i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = (j * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    step = tl.arange(0, BLOCK_DEPTH)
    # Rows and columns over the edge wrap around, so that only the depth needs a mask inside the loop.
    left = a + (row % rows)[:, None] * a_row + step[None, :] * a_depth
    right = b + step[:, None] * b_depth + (column % columns)[None, :] * b_column
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        inside = step < depth - start
        x = tl.load(left, mask=inside[None, :], other=0.0)
        y = tl.load(right, mask=inside[:, None], other=0.0)
        total = product(x, y, total)
        left += BLOCK_DEPTH * a_depth
        right += BLOCK_DEPTH * b_depth
    place = out + row[:, None] * out_row + column[None, :] * out_column
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


def launch(a: torch.Tensor, b: torch.Tensor, *, configuration: Mapping[str, int] | None = None) -> torch.Tensor:
    """Return a [rows, depth] @ b [depth, columns] in a's dtype, summed in float32. Any strides; a projection passes `weight.t()`."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype:
        raise ValueError(f"no product of {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}")
    cut = configured("matmul", configuration, rows=len(a), dtype=a.dtype)
    (rows, depth), columns = a.shape, b.shape[1]
    out = torch.empty((rows, columns), dtype=a.dtype, device=a.device)
    if out.numel():
        grid = (triton.cdiv(rows, cut["rows"]) * triton.cdiv(columns, cut["columns"]),)
        release_matmul_kernel[grid](
            *(a, b, out, rows, columns, depth, *a.stride(), *b.stride(), *out.stride()),
            BLOCK_ROWS=cut["rows"],
            BLOCK_COLUMNS=cut["columns"],
            BLOCK_DEPTH=cut["depth"],
            BAND=cut["band"],
            **launched(cut),
        )
    return out


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product in float64."""
    return a.double() @ b.double()


def inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Return activations, and a weight [columns, depth] as checkpoints keep it, seen from the other side."""
    a = torch.randn(sizes["rows"], sizes["depth"], generator=generator, device=device)
    weight = torch.randn(sizes["columns"], sizes["depth"], generator=generator, device=device) / max(1, sizes["depth"]) ** 0.5
    return {"a": a.to(dtype), "b": weight.to(dtype).t()}


def adversarial(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Inputs]:
    """Return a sum so long that one kept in 16 bits goes wrong."""
    weight = summands(24, configured("matmul", rows=2, dtype=dtype)["depth"], dtype, device).expand(5, -1).contiguous()
    return {"a long sum": {"a": torch.ones(2, weight.shape[1], dtype=dtype, device=device), "b": weight.t()}}


def summands(blocks: int, block: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return 1024 and behind it blocks of numbers of which each adds less than half of what 16 bits resolve there, and all far more."""
    kind = torch.float16 if dtype is torch.float16 else torch.bfloat16
    found = torch.full((blocks * block,), 0.9 * 1024 * torch.finfo(kind).eps / 2 / block, dtype=dtype, device=device)
    found[0] = 1024
    return found


def projections(facts: Facts) -> list[tuple[int, int]]:
    """Return (columns, depth) of every projection of a model, its output over the vocabulary last."""
    if facts.kv_lora_rank:
        head = facts.qk_nope_head_dim + facts.qk_rope_head_dim
        first = (facts.q_lora_rank or facts.heads * head) + facts.kv_lora_rank + facts.qk_rope_head_dim
        ups = [(facts.heads * head, facts.q_lora_rank)] if facts.q_lora_rank else []
        ups.append((facts.heads * (facts.qk_nope_head_dim + facts.v_head_dim), facts.kv_lora_rank))
        attention = [(first, facts.hidden), *ups, (facts.hidden, facts.heads * facts.v_head_dim)]
    else:
        wide = facts.heads * facts.head_dim
        attention = [(wide + 2 * facts.kv_heads * facts.head_dim, facts.hidden), (facts.hidden, wide)]
    dense = [(2 * facts.intermediate, facts.hidden), (facts.hidden, facts.intermediate)]
    return [*attention, *dense, (facts.vocabulary, facts.hidden)]


def summed(inputs: Inputs) -> int:
    """Return the length of the sums, longer where `a` is larger than ordinary numbers: their error grows with what is summed up."""
    a = inputs["a"].float().nan_to_num(0.0, 0.0, 0.0).abs()
    return int(a.shape[1]) * (max(1, int(a.max()) // 16) if a.numel() else 1)


def shapes(facts: Facts) -> list[Sizes]:
    """Return every projection at every number of tokens."""
    return [{"rows": rows, "columns": columns, "depth": depth} for columns, depth in projections(facts) for rows in TOKENS]


OPERATOR: Final = Operator(
    name="matmul",
    family="matmul",
    launch=launch,
    reference=reference,
    inputs=inputs,
    shapes=shapes,
    reduced=lambda sizes: shrunk(sizes, rows=40, columns=136, depth=136),
    edges={
        "one row": {"rows": 1, "columns": 128, "depth": 128},
        "empty": {"rows": 0, "columns": 128, "depth": 128},
        "no depth": {"rows": 3, "columns": 5, "depth": 0},
        "few rows": {"rows": 5, "columns": 37, "depth": 95},
        "odd": {"rows": 131, "columns": 133, "depth": 161},
        "more than a band": {"rows": 1100, "columns": 150, "depth": 32},
    },
    hostile=("a",),
    adversarial=adversarial,
    strided=("a",),
    laid={"few rows": {"a": (1, 0), "b": (0, 1)}},
    moved=lambda inputs: (
        size_of(inputs["a"], inputs["b"])
        + int(inputs["a"].shape[0]) * int(inputs["b"].shape[1]) * int(inputs["a"].element_size())
    ),
    flops=lambda inputs: 2 * int(inputs["a"].numel()) * int(inputs["b"].shape[1]),
    memory_bound=False,
    reduces=summed,
)
