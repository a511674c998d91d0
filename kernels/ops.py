"""The operators of layers as torch's own, `torch.ops.release_kernels.…`: a profile names them, and a graph that torch compiles can hold them."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch

from .operators import OPERATORS

NAMESPACE: Final = "release_kernels"


def _rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    return OPERATORS["rms-norm"].launch(x, weight, epsilon)


def _add_rms_norm(x: Any, residual: Any, weight: Any, epsilon: float) -> Any:
    return OPERATORS["add-rms-norm"].launch(x, residual, weight, epsilon)[0]


def _silu_mul(x: Any) -> Any:
    return OPERATORS["silu-mul"].launch(x)


def _rotary(positions: Any, query: Any, key: Any, table: Any, interleaved: bool) -> None:
    OPERATORS["rotary"].launch(positions, query, key, table, interleaved)


def _w8a8_linear(x: Any, weights: Any, of_columns: Any, bias: Any) -> Any:
    rows, of_rows = OPERATORS["int8-per-token"].launch(x)
    return OPERATORS["w8a8-matmul"].launch(rows, of_rows, weights, of_columns, bias, x.dtype)


SCHEMAS: Final = {
    "rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor": (
        *(_rms_norm, lambda x, weight, epsilon: x.new_empty(x.shape)),
    ),
    "add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float epsilon) -> Tensor": (
        *(_add_rms_norm, lambda x, residual, weight, epsilon: x.new_empty(x.shape)),
    ),
    "silu_mul(Tensor x) -> Tensor": (_silu_mul, lambda x: x.new_empty((*x.shape[:-1], x.shape[-1] // 2))),
    "rotary(Tensor positions, Tensor(a!) query, Tensor(b!) key, Tensor table, bool interleaved) -> ()": (
        *(_rotary, lambda positions, query, key, table, interleaved: None),
    ),
    "w8a8_linear(Tensor x, Tensor weights, Tensor of_columns, Tensor? bias) -> Tensor": (
        *(_w8a8_linear, lambda x, weights, of_columns, bias: x.new_empty((x.shape[0], weights.shape[0]))),
    ),
}
"""Of each operator, as torch's dispatcher writes it: what runs, and what tells a compiler the shape of the result. `!` is written in place."""


@cache
def ops() -> Any:
    """Return `torch.ops.release_kernels`, defined once in a process."""
    for schema, (run, shape) in SCHEMAS.items():
        name = schema.partition("(")[0]
        _library().define(schema)
        _library().impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", shape, lib=_library())
    return getattr(torch.ops, NAMESPACE)


@cache
def _library() -> torch.library.Library:
    """Return what holds the definitions: they end with it."""
    return torch.library.Library(NAMESPACE, "DEF")
