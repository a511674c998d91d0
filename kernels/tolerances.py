"""How far a result may lie from its reference, and by how much it does.

The tolerances are FlagGems' (flag-gems 5.0.2, flag_gems/testing/__init__.py: RESOLUTION and assert_close): relative by dtype, absolute 1e-4
times the length of the sum.
"""

from __future__ import annotations

from typing import Final

import torch

RELATIVE: Final[dict[torch.dtype, float]] = {
    torch.float64: 1e-7,
    torch.float32: 1.3e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 0.016,
    torch.float8_e4m3fn: 1e-3,
    torch.float8_e5m2: 1e-3,
}
ABSOLUTE: Final = 1e-4
HALF: Final = 1e-3
"""How far from a half a number may be rounded either way: a hundred times what float32 gets wrong of 127 steps."""


def wanted(dtype: torch.dtype, reduces: int, steps: int) -> str:
    """Return in words what `distance` of 1 stands for."""
    if dtype in RELATIVE:
        return f"within {ABSOLUTE * reduces:.4g} + {RELATIVE[dtype]:g}·|reference|"
    return f"at most {steps} apart, and rounded to the nearest where the reference is not rounded" if steps else "equal"


def distance(result: torch.Tensor, reference: torch.Tensor, reduces: int, steps: int) -> float:
    """Return the largest error as a multiple of the tolerance: up to 1 is near enough, infinite where kinds of values differ.

    NaN equals NaN and an infinity itself; the reference is rounded to the result's dtype first, as FlagGems does. Whole numbers are
    compared with what they were rounded from, where the reference is that: the nearest it is, either of two at a half.
    """
    unrounded = bool(steps) and not result.dtype.is_floating_point and reference.dtype.is_floating_point
    if result.shape != reference.shape or (result.dtype.is_floating_point != reference.dtype.is_floating_point and not unrounded):
        return float("inf")
    if not result.numel():
        return 0.0
    if unrounded:
        beyond = ((result.double() - reference).abs() - 0.5).clamp(min=0.0)
        return float((beyond / HALF).nan_to_num(nan=float("inf")).max())
    if not result.dtype.is_floating_point:
        away = float((result.double() - reference.double()).abs().max())
        return away / steps if steps else (0.0 if away == 0 else float("inf"))
    relative = RELATIVE[result.dtype]
    result, reference = result.double(), reference.to(result.dtype).double()
    same = (result == reference) | (result.isnan() & reference.isnan())
    allowed = ABSOLUTE * reduces + relative * reference.abs()
    far = torch.where(same, 0.0, (result - reference).abs() / allowed)
    return float(far.nan_to_num(nan=float("inf"), posinf=float("inf")).max())
