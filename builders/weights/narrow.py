"""The loops that numba compiles for formats narrower than int8, and for FP8: what `loops` says of its own holds here.

Symmetric throughout: a group's scale is its largest magnitude over the largest code, at least EPSILON, and numbers are divided by it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from release.builders.weights.loops import (
    EPSILON,
    FOLD,
    INFINITE,
    SIGN,
    F,
    U,
    _compiled,
    _inline,
    as_bits,
    as_float,
    largest,
    own_scale,
    widen,
)

LEAST_NORMAL: Final = U(121 << 23)
"""2^-6, the least normal number of e4m3, as float32."""
STEP: Final = F(2.0**14)
"""Added to a float32 below 2^-6 in magnitude, it leaves the number in units of 2^-9, e4m3's least, in the lowest bits."""
HIGHEST: Final = U(0x7E)
"""The code of 448; the next one is NaN."""


@_inline
def nibble(number: Any, scale: Any) -> Any:
    """Return the integer nearest to number / scale, ties to even, no further from 0 than 7, as an offset of 8."""
    f = number / scale
    f = F(7) if f > F(7) else f
    f = F(-7) if f < F(-7) else f
    return U(U(as_bits(f + FOLD) + U(8)) & U(0xF))


@_inline
def e4m3(number: Any) -> Any:
    """Return the e4m3 code nearest to a float32, ties to even; from 448 on it is 448."""
    u = as_bits(number)
    a = U(u & U(0x7FFFFFFF))
    r = U(a - U(120 << 23))
    normal = U(U(r + U(0x7FFFF) + U(U(r >> U(20)) & U(1))) >> U(20))
    normal = HIGHEST if normal > HIGHEST else normal
    low = U(as_bits(as_float(a) + STEP) - as_bits(STEP))
    code = low if a < LEAST_NORMAL else normal
    return U(code | U(U(u & SIGN) >> U(24)))


@_compiled(
    "void(uint16[::1], uint32[::1], float32[::1], int64, int64, int64[::1])",
    "void(int16[::1], uint32[::1], float32[::1], int64, int64, int64[::1])",
    "void(uint32[::1], uint32[::1], float32[::1], int64, int64, int64[::1])",
)
def to_int4(source: Any, out: Any, scales: Any, wide: Any, kind: Any, counts: Any) -> None:
    """Write groups of `wide` elements (a multiple of 8) as int4 codes, 8 in a word from its lowest bits on, and their scales: max|x| / 7.

    counts: groups with a NaN, groups with an infinity.
    """
    for g in range(scales.size):
        row = source[g * wide : (g + 1) * wide]
        top = largest(row)
        if top >= INFINITE:
            counts[0 if top > INFINITE else 1] += 1
            top = U(0)
        scale = own_scale(max(as_float(top) / F(7), EPSILON), kind)
        scales[g] = scale
        for word in range(wide // 8):
            packed = U(0)
            for place in range(8):
                packed |= U(nibble(as_float(widen(row[word * 8 + place])), scale) << U(4 * place))
            out[g * wide // 8 + word] = packed


@_compiled(
    "void(uint16[::1], uint8[::1], float32[::1], int64, int64[::1])",
    "void(int16[::1], uint8[::1], float32[::1], int64, int64[::1])",
    "void(uint32[::1], uint8[::1], float32[::1], int64, int64[::1])",
)
def to_fp8(source: Any, out: Any, scales: Any, wide: Any, counts: Any) -> None:
    """Write rows of `wide` elements as e4m3, and their scales: max|x| / 448.

    counts: rows with a NaN, rows with an infinity.
    """
    for g in range(scales.size):
        row = source[g * wide : (g + 1) * wide]
        top = largest(row)
        if top >= INFINITE:
            counts[0 if top > INFINITE else 1] += 1
            top = U(0)
        scale = max(as_float(top) / F(448), EPSILON)
        scales[g] = scale
        for i in range(wide):
            out[g * wide + i] = np.uint8(e4m3(as_float(widen(row[i])) / scale))
