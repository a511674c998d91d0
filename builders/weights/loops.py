"""The loops that numba compiles: one pass over the elements in registers, no temporary arrays, the interpreter's lock not held.

Results are those of float32 arithmetic, rounded once to nearest, ties to even. All that decides a bit is integer arithmetic and single
IEEE additions, multiplications and divisions without fast-math, none of them on subnormal float32 numbers where the result depends on it:
so they are the same on every machine, whatever its flush-to-zero mode, and none takes the slow path that subnormals have in hardware.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

Loop = Callable[..., None]
U: Final = np.uint32
F: Final = np.float32
SIGN: Final = U(0x80000000)
INFINITE: Final = U(0x7F800000)
FOLD: Final = F(1.5 * 2**23)
"""Added to a float32 below 2^22 in magnitude, it leaves the number, rounded to the nearest even integer, in the lowest bits."""
WIDEST: Final = F(2.0**119)
"""What the scale of an FP8 block stays below: 448 times that is still a bfloat16, and a float32."""
EPSILON: Final = F(2.0**-23)
"""The least scale of an int8 row, as msmodelslim's and torch's `finfo(float32).eps`."""


def _cache() -> bool:
    """Choose where machine code is kept between runs: a folder of the user's own, since whoever writes there is run. No folder, no cache."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return True
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "release" / "numba"
    with contextlib.suppress(OSError, RuntimeError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK):
            settings: Any = numba.config
            settings.CACHE_DIR = str(folder)
            return True
    return False


CACHED: Final = _cache()


def _compiled(*signatures: str) -> Callable[[Loop], Loop]:
    """Compile a loop for its types (all of them, not what it is called with) when it is first called, or take it from numba's cache.

    Only functions of a module are compiled, no closures: numba's cache would take one for another, or never find one again.
    """

    def later(function: Loop) -> Loop:
        lock = threading.Lock()
        found: list[Loop] = []

        @functools.wraps(function)
        def call(*arrays: Any) -> None:
            if not found:
                with lock:
                    found[:] = found or [numba.njit(list(signatures), nogil=True, cache=CACHED, error_model="numpy")(function)]
            found[0](*arrays)

        return call

    return later


def _inline(function: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = numba.njit(inline="always", nogil=True)(function)
    return found


def _bitcast(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


def _bitcast_back(context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


as_float: Final[Any] = intrinsic(_bitcast)
as_bits: Final[Any] = intrinsic(_bitcast_back)


@_inline
def round_bf16(u: Any) -> Any:
    """Return the bfloat16 nearest to float32 bits, ties to even; a NaN is not minded."""
    return np.uint16(U(u + U(0x7FFF) + U(U(u >> U(16)) & U(1))) >> U(16))


@_inline
def widen_fp16(x: Any) -> Any:
    """Return a float16's bits as those of the float32 that is equal to it (of an infinity or a NaN: one of the same kind)."""
    m = U(x & U(0x7FFF))
    small = m < U(0x400)
    base = U(113 << 23) if small else U(112 << 23)
    less = F(2.0**-14) if small else F(0)
    bits = as_bits(as_float(U(U(m << U(13)) + base)) - less)
    bits = U(U(m << U(13)) | INFINITE) if m >= U(0x7C00) else bits
    return U(bits | U(U(x & U(0x8000)) << U(16)))


@_inline
def narrow_fp16(a: Any) -> Any:
    """Return the float16 magnitude nearest to a float32 magnitude's bits, ties to even; from 65520 on it is the infinity."""
    r = U(a - U(112 << 23))
    normal = U(U(r + U(0xFFF) + U(U(r >> U(13)) & U(1))) >> U(13))
    normal = U(0x7C00) if normal > U(0x7C00) else normal
    low = U(as_bits(as_float(a) + F(0.5)) - U(0x3F000000))
    return low if a < U(0x38800000) else normal


@_inline
def times_fp8(x: Any, scale: Any) -> Any:
    """Return an e4m3 number's bits times `scale`, as the bits of a float32; a NaN is not minded."""
    m = U(x & U(0x7F))
    small = m < U(8)
    base = U(121 << 23) if small else U(120 << 23)
    less = F(2.0**-6) if small else F(0)
    f = as_float(U(U(m << U(20)) + base)) - less
    return U(as_bits(f * scale) ^ U(U(x & U(0x80)) << U(24)))


@_inline
def fp8_block(source: Any, out: Any, scale: Any) -> Any:
    """Write e4m3 numbers times `scale` as bfloat16; bit 7 of what is returned says that there was a NaN."""
    bad = U(0)
    for i in range(source.size):
        x = U(source[i])
        out[i] = round_bf16(times_fp8(x, scale))
        bad |= U(U(x & U(0x7F)) + U(1))
    return bad


@_inline
def fp8_block_wide(source: Any, out: Any, scale: Any) -> Any:
    """Write e4m3 numbers times `scale` as float32; bit 7 of what is returned says that there was a NaN."""
    bad = U(0)
    for i in range(source.size):
        x = U(source[i])
        out[i] = times_fp8(x, scale)
        bad |= U(U(x & U(0x7F)) + U(1))
    return bad


@_compiled("void(uint8[::1], uint16[::1], int64, int64, float32[::1], int64, int64, int64[::1])")
def fp8_to_bf16(source: Any, out: Any, begin: Any, columns: Any, scales: Any, high: Any, wide: Any, counts: Any) -> None:
    """Write elements `begin`… of an [M, columns] e4m3 tensor as bfloat16, each times the scale of its block of high × wide.

    counts: NaN codes (of the blocks' runs that have one), scales that are no finite number of sense.
    """
    across = (columns + wide - 1) // wide
    at = 0
    while at < source.size:
        row = (begin + at) // columns
        column = (begin + at) % columns
        run = min(wide - column % wide, columns - column, source.size - at)
        scale = scales[(row // high) * across + column // wide]
        if not (abs(scale) < WIDEST):
            counts[1] += 1
        if fp8_block(source[at : at + run], out[at : at + run], scale) & U(0x80):
            counts[0] += 1
        at += run


@_compiled("void(uint8[::1], uint32[::1], int64, int64, float32[::1], int64, int64, int64[::1])")
def fp8_to_fp32(source: Any, out: Any, begin: Any, columns: Any, scales: Any, high: Any, wide: Any, counts: Any) -> None:
    """Write elements `begin`… of an [M, columns] e4m3 tensor as float32, each times the scale of its block; counts as of `fp8_to_bf16`."""
    across = (columns + wide - 1) // wide
    at = 0
    while at < source.size:
        row = (begin + at) // columns
        column = (begin + at) % columns
        run = min(wide - column % wide, columns - column, source.size - at)
        scale = scales[(row // high) * across + column // wide]
        if not (abs(scale) < WIDEST):
            counts[1] += 1
        if fp8_block_wide(source[at : at + run], out[at : at + run], scale) & U(0x80):
            counts[0] += 1
        at += run


@_compiled("void(uint32[::1], uint16[::1], int64[::1])")
def fp32_to_bf16(source: Any, out: Any, counts: Any) -> None:
    """Round float32 to bfloat16. counts: NaN, infinities, numbers that become infinite."""
    nan, infinite, over = U(0), U(0), U(0)
    for i in range(source.size):
        a = U(source[i] & U(0x7FFFFFFF))
        nan += U(a > INFINITE)
        infinite += U(a == INFINITE)
        over += U(a >= U(0x7F7F8000))
        out[i] = round_bf16(U(source[i]))
    counts[0] += nan
    counts[1] += infinite
    counts[2] += over - infinite - nan


@_compiled("void(uint16[::1], uint16[::1], int64[::1])")
def fp16_to_bf16(source: Any, out: Any, counts: Any) -> None:
    """Round float16 to bfloat16. counts: NaN, infinities."""
    nan, infinite = U(0), U(0)
    for i in range(source.size):
        x = U(source[i])
        m = U(x & U(0x7FFF))
        nan += U(m > U(0x7C00))
        infinite += U(m == U(0x7C00))
        out[i] = round_bf16(widen_fp16(x))
    counts[0] += nan
    counts[1] += infinite


def widen(x: Any) -> Any:
    """Return an element's bits as float32: uint16 is a bfloat16, int16 a float16, uint32 a float32 already. Compiled code only."""
    raise NotImplementedError


@overload(widen, strict=False)
def _widen(x: Any) -> Any:
    if x == types.uint16:
        return lambda x: U(U(x) << U(16))
    if x == types.int16:
        return lambda x: widen_fp16(U(np.uint16(x)))
    return lambda x: U(x)  # noqa: PLW0108 - numba wants a function of Python


@_compiled("void(uint16[::1], uint16[::1], int64[::1])", "void(uint32[::1], uint16[::1], int64[::1])")
def to_fp16(source: Any, out: Any, counts: Any) -> None:
    """Round to float16. counts: NaN, infinities, numbers that become infinite, that become subnormal, that become zero."""
    nan, infinite, high, low, lost = U(0), U(0), U(0), U(0), U(0)
    for i in range(source.size):
        u = widen(source[i])
        a = U(u & U(0x7FFFFFFF))
        r = narrow_fp16(a)
        nan += U(a > INFINITE)
        infinite += U(a == INFINITE)
        high += U(r >= U(0x7C00))
        low += U(U(r - U(1)) < U(0x3FF))
        lost += U((r == U(0)) & (a != U(0)))
        out[i] = np.uint16(r | U(U(u >> U(16)) & U(0x8000)))
    counts[0] += nan
    counts[1] += infinite
    counts[2] += high - infinite - nan
    counts[3] += low
    counts[4] += lost


@_inline
def own_scale(scale: Any, kind: Any) -> Any:
    """Return a scale as it will be kept: float32 (0), or rounded to bfloat16 (1) or float16 (2)."""
    if kind == 1:
        return as_float(U(U(round_bf16(as_bits(scale))) << U(16)))
    if kind == 2:
        return as_float(widen_fp16(narrow_fp16(as_bits(scale))))
    return scale


@_inline
def largest(row: Any) -> Any:
    """Return the bits of the largest magnitude, as float32."""
    top = U(0)
    for i in range(row.size):
        top = max(top, U(widen(row[i]) & U(0x7FFFFFFF)))
    return top


@_inline
def codes(row: Any, out: Any, scale: Any) -> None:
    """Write the integers nearest to numbers / scale, ties to even, no further from 0 than 127."""
    for i in range(row.size):
        f = as_float(widen(row[i])) / scale
        f = F(127) if f > F(127) else f
        f = F(-127) if f < F(-127) else f
        out[i] = np.int8(as_bits(f + FOLD) & U(0xFF))


@_compiled(
    "void(uint16[::1], int8[::1], float32[::1], int64, int64, int64[::1])",
    "void(int16[::1], int8[::1], float32[::1], int64, int64, int64[::1])",
    "void(uint32[::1], int8[::1], float32[::1], int64, int64, int64[::1])",
)
def to_int8(source: Any, out: Any, scales: Any, wide: Any, kind: Any, counts: Any) -> None:
    """Write groups of `wide` elements as int8 codes, symmetric, and their scales: max|x| / 127, at least EPSILON, as `own_scale` keeps it.

    counts: groups with a NaN, groups with an infinity.
    """
    for g in range(scales.size):
        row = source[g * wide : (g + 1) * wide]
        top = largest(row)
        if top >= INFINITE:
            counts[0 if top > INFINITE else 1] += 1
            top = U(0)
        scale = own_scale(max(as_float(top) / F(127), EPSILON), kind)
        scales[g] = scale
        codes(row, out[g * wide : (g + 1) * wide], scale)
