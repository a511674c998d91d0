"""The operators by name: the one place that loads torch, triton and every kernel."""

from __future__ import annotations

from typing import Final

from ..operator import Operator
from . import add_rms_norm, int8_quantise, rms_norm, rotary, silu_mul, softmax

OPERATORS: Final[dict[str, Operator]] = {
    operator.name: operator
    for operator in (
        rms_norm.OPERATOR,
        add_rms_norm.OPERATOR,
        silu_mul.OPERATOR,
        rotary.OPERATOR,
        softmax.OPERATOR,
        softmax.LOGARITHM,
        int8_quantise.OPERATOR,
        int8_quantise.CHANNELS,
    )
}
