"""The operators by name: the one place that loads torch, triton and every kernel."""

from __future__ import annotations

from typing import Final

from ..operator import Operator
from . import (
    add_rms_norm,
    align_experts,
    cache_write,
    expert_matmul,
    fp8_dequantise,
    fp8_matmul,
    grouped_topk,
    int8_quantise,
    latent_attention,
    matmul,
    paged_attention,
    prefill_attention,
    rms_norm,
    rotary,
    silu_mul,
    softmax,
    softmax_topk,
    w8a8_matmul,
)

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
        matmul.OPERATOR,
        w8a8_matmul.OPERATOR,
        fp8_dequantise.OPERATOR,
        fp8_matmul.OPERATOR,
        grouped_topk.OPERATOR,
        softmax_topk.OPERATOR,
        align_experts.OPERATOR,
        expert_matmul.OPERATOR,
        cache_write.OPERATOR,
        paged_attention.OPERATOR,
        latent_attention.OPERATOR,
        prefill_attention.OPERATOR,
    )
}
