"""What the matmul and attention kernels share: which block a program works on, the product of two blocks, and FP8 by its bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_of(program, rows, columns, BAND: tl.constexpr):
    """Lay programs over `rows` × `columns` blocks in bands of BAND rows, so that neighbours find their operands in the L2 cache."""
    band = program // (BAND * columns)
    first = band * BAND
    height = min(rows - first, BAND)
    within = program % (BAND * columns)
    return first + within % height, within // height


@triton.jit
def product(a, b, total):
    """Add a @ b to `total`, float32; of float32 with all its bits, not rounded to tf32."""
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def attend(score, v, highest, total, result):
    """Take the scores of a block of keys, powers of two, and their values into the running softmax (Milakov and Gimelshein, 2018)."""
    higher = tl.maximum(highest, tl.max(score, axis=1))
    power = tl.exp2(score - higher[:, None])
    decay = tl.exp2(highest - higher)
    total = total * decay + tl.sum(power, axis=1)
    return higher, total, product(power.to(v.dtype), v, result * decay[:, None])


@triton.jit
def float_of_e4m3(bits):
    """Decode the bits of float8 e4m3fn, uint8, to float32, on chips that do not know the type.

    Sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinity, NaN is S.1111.111 (OCP 8-bit floating point, revision 1.0).
    Made without subnormal float32 numbers, which some chips flush to zero.
    """
    code = bits.to(tl.int32)
    exponent = (code >> 3) & 15
    mantissa = (code & 7) + tl.where(exponent > 0, 8, 0)
    power = ((tl.maximum(exponent, 1) - 10 + 127) << 23).to(tl.float32, bitcast=True)
    size = mantissa.to(tl.float32) * power
    size = tl.where((code & 127) == 127, float("nan"), size)
    return tl.where(code > 127, -size, size)
