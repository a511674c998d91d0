"""Rules that read numbers: no NaN and no infinity anywhere, and a static int8 layer's bias and scale are those of its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from release.builders.weights.findings import CHUNK, Checkpoint, Finding, Module
from release.builders.weights.header import Tensor

EXPONENTS: Final = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""The bits of the exponent: all set, a number is infinite or none."""
ROUNDING: Final = 2.0**-22
"""What float32 arithmetic may lose of the terms of a quant_bias, as a share: they are sums of two rounded numbers."""
DTYPES: Final = {"bfloat16": "F32", "float32": "F32", "float16": "I64"}
"""What deq_scale is stored as where a model computes in a dtype (msmodelslim 26.1.0): of float16 models the bits, widened."""


def finite(checkpoint: Checkpoint, advance: Callable[[int], None] = lambda count: None) -> Iterator[Finding]:
    """No tensor holds a NaN or an infinity. Every byte of every float tensor is read, CHUNK bytes at a time."""
    for tensor in sorted(checkpoint.tensors.values(), key=lambda one: (one.file, one.offset)):
        if tensor.dtype not in EXPONENTS and tensor.dtype not in ("F8_E4M3", "F8_E5M2"):
            advance(tensor.size)
            continue
        count = 0
        for chunk in checkpoint.chunks(tensor):
            count += _special(chunk, tensor.dtype)
            advance(len(chunk))
        if count:
            yield Finding("finite", tensor.file, tensor.name, f"{count} of {tensor.elements} numbers are NaN or infinite")


def _special(chunk: NDArray[np.uint8], dtype: str) -> int:
    if dtype == "F8_E4M3":
        return int(np.count_nonzero((chunk & 0x7F) == 0x7F))
    if dtype == "F8_E5M2":
        return int(np.count_nonzero((chunk & 0x7F) >= 0x7C))
    view, exponent = EXPONENTS[dtype]
    bits = chunk.view(view)
    mask = bits.dtype.type(exponent)
    return int(np.count_nonzero((bits & mask) == mask))


def static_layers(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Of a static int8 layer: `deq_scale` has the dtype that torch_dtype asks for, and `quant_bias` is what its weight gives.

    quant_bias[n] = round(bias[n] / deq_scale[n] − input_offset · Σ_k q[n,k]), up to what float32 loses of the terms.
    """
    for module in sorted(checkpoint.modules.values(), key=lambda one: one.name):
        scale = module.tensors.get("deq_scale")
        if scale is None:
            continue
        wanted = DTYPES.get(str(checkpoint.torch_dtype))
        if wanted is not None and scale.dtype != wanted and scale.dtype in DTYPES.values():
            message = f"is {scale.dtype}, and for a model in {checkpoint.torch_dtype} it is {wanted}"
            yield Finding("deq-scale", scale.file, scale.name, message)
        factors = _factors(checkpoint, scale)
        if factors is None:
            yield Finding("deq-scale", scale.file, scale.name, f"is {scale.dtype} and holds no positive float32 numbers")
            continue
        yield from _product(checkpoint, module, factors)
        yield from _bias(checkpoint, module, factors)


def _factors(checkpoint: Checkpoint, scale: Tensor) -> NDArray[np.float64] | None:
    """Return deq_scale as numbers; of an int64 the lower half's bits. None if they are no scales."""
    if scale.dtype not in ("F32", "I64"):
        return None
    found = checkpoint.read(scale)
    if scale.dtype == "I64":
        if ((found < 0) | (found >= 1 << 31)).any():
            return None
        found = found.astype(np.uint32).view(np.float32).astype(np.float64)
    return found if np.isfinite(found).all() and (found > 0).all() else None


def _product(checkpoint: Checkpoint, module: Module, factors: NDArray[np.float64]) -> Iterator[Finding]:
    given, scale = module.tensors.get("input_scale"), module.tensors.get("weight_scale")
    if given is None or scale is None or given.elements != 1 or scale.elements != len(factors):
        return
    wanted = checkpoint.read(given)[0] * checkpoint.read(scale)
    wrong = int(np.count_nonzero(np.abs(wanted - factors) > np.abs(factors) * ROUNDING))
    if wrong:
        tensor = module.tensors["deq_scale"]
        yield Finding("deq-scale", tensor.file, tensor.name, f"{wrong} of {len(factors)} are not input_scale × weight_scale")


def _bias(checkpoint: Checkpoint, module: Module, factors: NDArray[np.float64]) -> Iterator[Finding]:
    weight, tensor, offset = (module.tensors.get(word) for word in ("weight", "quant_bias", "input_offset"))
    if weight is None or tensor is None or offset is None or weight.dtype != "I8" or len(weight.shape) != 2:
        return
    bias = module.tensors.get("bias")
    rows = weight.shape[0]
    sound = tensor.elements == rows == len(factors) and offset.elements == 1 and (bias is None or bias.elements == rows)
    if not sound or tensor.dtype != "I32" or offset.dtype not in ("F32", "BF16", "F16", "I8", "I32"):
        return
    shift = checkpoint.read(offset)[0] * _row_sums(checkpoint, weight)
    added = checkpoint.read(bias) / factors if bias is not None else np.zeros(rows)
    slack = 1 + (np.abs(shift) + np.abs(added)) * ROUNDING
    wrong = np.flatnonzero(~(np.abs(np.rint(added - shift) - checkpoint.read(tensor)) <= slack))
    if len(wrong):
        row = int(wrong[0])
        found, wanted = checkpoint.read(tensor)[row], np.rint(added - shift)[row]
        message = f"{len(wrong)} of {rows} are not what the weight gives: number {row} is {int(found)}, and would be {wanted:.0f}"
        yield Finding("quant-bias", tensor.file, tensor.name, message)


def _row_sums(checkpoint: Checkpoint, weight: Tensor) -> NDArray[Any]:
    """Return Σ_k q[n,k] of an int8 matrix, read CHUNK bytes at a time, rows cut wherever a chunk ends."""
    rows, columns = weight.shape
    sums = np.zeros(rows, dtype=np.int64)
    done = 0
    for chunk in checkpoint.chunks(weight, max(CHUNK // max(columns, 1), 1) * columns if columns <= CHUNK else CHUNK):
        values = chunk.view(np.int8)
        if len(values) % columns == 0 and done % columns == 0:
            first = done // columns
            sums[first : first + len(values) // columns] += values.reshape(-1, columns).sum(axis=1, dtype=np.int64)
        else:
            starts = np.arange(-(done % columns), len(values), columns).clip(min=0)
            sums[done // columns : done // columns + len(starts)] += np.add.reduceat(values, starts, dtype=np.int64)
        done += len(values)
    return sums
