"""The arithmetic of conversions by name. A kernel sees strips: some elements, or whole rows, of one tensor, and fills what becomes of them.

numpy is enough for "copy", "constant", fp32 → bf16 and bf16 → fp32; all others are compiled by numba (the extra `weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from release.builders.weights.header import WIDTH
from release.errors import StageError

if TYPE_CHECKING:
    from release.builders.weights.plan import Step, Value

Numbers = NDArray[Any]
ASIDE_LIMIT: Final = 64 << 20
"""Bytes of the tensors that a step holds whole: scales that it is given, and scales that it finds."""
ROW_LIMIT: Final = 4 << 20
"""Bytes of a row, where a kernel works by rows."""
STORAGE: Final[Mapping[int, Any]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Elements travel as unsigned numbers of their width; a kernel views them as what they are."""


@dataclass(frozen=True, slots=True)
class Strip:
    """What a kernel works on: flat arrays of whole elements, or of whole rows, little-endian, in the STORAGE of their dtypes' widths.

    `source` are the source's elements from number `begin` on, `out` what becomes of them (of a row, as many as outputs[0] has in a row).
    `shape` is the source's. `aside` are the tensors that were given whole, flat. `sides` are the parts of the other outputs that belong
    to the rows in `source`, flat. `counts` has a number for every name in `Kernel.counts`, to be added to.
    """

    source: Numbers
    out: Numbers
    begin: int
    shape: tuple[int, ...]
    aside: tuple[Numbers, ...]
    sides: tuple[Numbers, ...]
    counts: NDArray[np.int64]
    parameters: Mapping[str, Value]

    @property
    def columns(self) -> int:
        """Elements of a row of the source."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Kernel:
    """A conversion of elements.

    `reads` are the dtypes that its source may have (empty: any), `writes` those of its outputs (empty: the source's); `by` is what a strip
    is a whole number of. `counts` names what it counts, `fatal` those of them that are always errors. It may be called with the same
    elements more than once, from several threads at once, and must give the same result: what it counts is counted once.
    `version` changes when its results do, and so undoes unfinished runs. `makes` finds the function to run, compiling it if need be.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    makes: Callable[[], Callable[[Strip], None]]
    by: Literal["element", "row"] = "element"
    counts: tuple[str, ...] = ()
    fatal: frozenset[str] = frozenset()
    version: int = 1

    def check(self, step: Step) -> None:
        """Raise StageError unless the step's tensors are such as this kernel takes and makes."""
        name, source = step.outputs[0].name, step.source
        if source is None:
            if self.name != "constant" or len(step.outputs) != 1 or not step.data or step.outputs[0].size % len(step.data):
                raise StageError(f"tensor {name}: only a constant has no source, and its data fill it evenly")
            return
        dtypes = tuple(output.dtype for output in step.outputs)
        if (self.reads and source.dtype not in self.reads) or dtypes != (self.writes or (source.dtype,)):
            raise StageError(f"tensor {name}: {self.name} does not make {', '.join(dtypes)} of {source.dtype}")
        small = sum(tensor.size for tensor in step.aside) + sum(output.size for output in step.outputs[1:])
        if small > ASIDE_LIMIT:
            raise StageError(f"tensor {name}: its scales have {small} bytes, more than {ASIDE_LIMIT}")
        if self.by == "element" and (len(step.outputs) > 1 or math.prod(step.outputs[0].shape) != source.elements):
            raise StageError(f"tensor {name}: {self.name} keeps the number of elements")
        if self.by == "row":
            if not source.shape or any(not output.shape or output.shape[0] != source.shape[0] for output in step.outputs):
                raise StageError(f"tensor {name}: {self.name} keeps the rows, and {list(source.shape)} has others")
            rows = max(1, source.shape[0])
            if max(source.size, step.outputs[0].size) // rows > ROW_LIMIT:
                raise StageError(f"tensor {name} has rows of more than {ROW_LIMIT} bytes")
            if len(step.outputs) > 1 and step.outputs[0].size % 8:
                raise StageError(f"tensor {name} does not fill whole 8 bytes", next_step="exclude it: it is small")


def storage(dtype: str) -> Any:
    """Return the numpy dtype in which elements of a safetensors dtype travel."""
    return STORAGE[WIDTH[dtype]]


def kernel(name: str) -> Kernel:
    """Return a kernel by name."""
    return KERNELS[name]


def _loop(name: str) -> Any:
    """Return a compiled loop. Raises StageError where numba is missing."""
    try:
        from release.builders.weights import loops, narrow
    except ImportError as problem:
        if not (problem.name or "").startswith(("numba", "llvmlite")):
            raise
        raise StageError(f"this conversion ({name}) needs numba", next_step="pip install 'release[weights]'") from problem
    return getattr(loops if hasattr(loops, name) else narrow, name)


def _copy(strip: Strip) -> None:
    strip.out[:] = strip.source


def _constant(strip: Strip) -> None:
    raise AssertionError("a constant has no source")


def _plain(name: str) -> Callable[[], Callable[[Strip], None]]:
    """Return what makes a kernel of a loop that takes source, out and counts."""

    def make() -> Callable[[Strip], None]:
        loop = _loop(name)
        return lambda strip: loop(strip.source, strip.out, strip.counts)

    return make


def _fp32_to_bf16() -> Callable[[Strip], None]:
    try:
        return _plain("fp32_to_bf16")()
    except StageError:
        return numpy_fp32_to_bf16


def numpy_fp32_to_bf16(strip: Strip) -> None:
    """Round float32 to bfloat16 with numpy alone, some elements at a time so that the temporary arrays stay in the cache."""
    for at in range(0, strip.source.size, 1 << 16):
        bits = strip.source[at : at + (1 << 16)]
        magnitude = bits & np.uint32(0x7FFFFFFF)
        infinite = np.count_nonzero(magnitude == 0x7F800000)
        nan = np.count_nonzero(magnitude > 0x7F800000)
        strip.counts[:3] += (nan, infinite, np.count_nonzero(magnitude >= 0x7F7F8000) - infinite - nan)
        rounded = magnitude + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # 31 bits and one more: no overflow
        strip.out[at : at + rounded.size] = (rounded >> np.uint32(16)) | ((bits >> np.uint32(16)) & np.uint32(0x8000))


def _bf16_to_fp32(strip: Strip) -> None:
    np.left_shift(strip.source, np.uint32(16), out=strip.out)
    magnitude = strip.source & np.uint16(0x7FFF)
    strip.counts[:2] += (np.count_nonzero(magnitude > 0x7F80), np.count_nonzero(magnitude == 0x7F80))


def _fp8_block(name: str) -> Callable[[], Callable[[Strip], None]]:
    """Return what makes the kernel of a loop over FP8 blocks."""

    def make() -> Callable[[Strip], None]:
        loop = _loop(name)

        def run(strip: Strip) -> None:
            high, wide = int(strip.parameters["high"]), int(strip.parameters["wide"])
            loop(strip.source, strip.out, strip.begin, strip.columns, strip.aside[0].view(np.float32), high, wide, strip.counts)

        return run

    return make


def _int8(view: Any, kind: int) -> Callable[[], Callable[[Strip], None]]:
    """Return what makes the int8 kernel of a source type; `kind` is how scales are kept: 0 float32, 1 bfloat16, 2 float16."""

    def make() -> Callable[[Strip], None]:
        loop = _loop("to_int8")

        def run(strip: Strip) -> None:
            side = strip.sides[0]
            scales = side.view(np.float32) if kind == 0 else np.empty(side.size, np.float32)
            wide = strip.source.size // max(1, side.size)
            loop(strip.source.view(view), strip.out.view(np.int8), scales, wide, kind, strip.counts)
            if kind == 1:
                side[:] = scales.view(np.uint32) >> np.uint32(16)
            elif kind == 2:
                side[:] = scales.astype(np.float16).view(np.uint16)

        return run

    return make


def _int4(view: Any, kind: int) -> Callable[[], Callable[[Strip], None]]:
    """Return what makes the int4 kernel of a source type; `kind` is how scales are kept, as for int8."""

    def make() -> Callable[[Strip], None]:
        loop = _loop("to_int4")

        def run(strip: Strip) -> None:
            side = strip.sides[0]
            scales = side.view(np.float32) if kind == 0 else np.empty(side.size, np.float32)
            loop(strip.source.view(view), strip.out, scales, strip.source.size // max(1, side.size), kind, strip.counts)
            if kind:
                side[:] = scales.view(np.uint32) >> np.uint32(16) if kind == 1 else scales.astype(np.float16).view(np.uint16)

        return run

    return make


def _fp8(view: Any) -> Callable[[], Callable[[Strip], None]]:
    """Return what makes the FP8 kernel of a source type."""

    def make() -> Callable[[Strip], None]:
        loop = _loop("to_fp8")
        return lambda strip: loop(
            strip.source.view(view), strip.out, strip.sides[0].view(np.float32), strip.columns, strip.counts
        )

    return make


NAN: Final = frozenset({"nan"})
NO_SENSE: Final = frozenset({"nan", "scale"})
BROKEN: Final = frozenset({"nan", "infinite"})
FP16_COUNTS: Final = ("nan", "infinite", "overflow", "subnormal", "flushed")
KERNELS: Final[Mapping[str, Kernel]] = {
    kernel.name: kernel
    for kernel in (
        Kernel("copy", (), (), lambda: _copy),
        Kernel("constant", (), (), lambda: _constant),
        Kernel("fp32-to-bf16", ("F32",), ("BF16",), _fp32_to_bf16, counts=("nan", "infinite", "overflow"), fatal=NAN),
        Kernel("fp16-to-bf16", ("F16",), ("BF16",), _plain("fp16_to_bf16"), counts=("nan", "infinite"), fatal=NAN),
        Kernel("bf16-to-fp16", ("BF16",), ("F16",), _plain("to_fp16"), counts=FP16_COUNTS, fatal=NAN),
        Kernel("fp32-to-fp16", ("F32",), ("F16",), _plain("to_fp16"), counts=FP16_COUNTS, fatal=NAN),
        Kernel("bf16-to-fp32", ("BF16",), ("F32",), lambda: _bf16_to_fp32, counts=("nan", "infinite"), fatal=NAN),
        *(
            Kernel(
                f"fp8-block-to-{to}", ("F8_E4M3",), (made,), _fp8_block(f"fp8_to_{to}"), counts=("nan", "scale"), fatal=NO_SENSE
            )
            for to, made in (("bf16", "BF16"), ("fp32", "F32"))
        ),
        *(
            Kernel(f"{source}-to-int8{own}", (read,), ("I8", kept), _int8(view, kind), "row", ("nan", "infinite"), BROKEN)
            for source, read, view in (("bf16", "BF16", np.uint16), ("fp16", "F16", np.int16), ("fp32", "F32", np.uint32))
            for own, kept, kind in (("", "F32", 0), ("-scale-bf16", "BF16", 1), ("-scale-fp16", "F16", 2))
        ),
        *(
            Kernel(f"{source}-to-int4{own}", (read,), ("I32", kept), _int4(view, kind), "row", ("nan", "infinite"), BROKEN)
            for source, read, view in (("bf16", "BF16", np.uint16), ("fp16", "F16", np.int16), ("fp32", "F32", np.uint32))
            for own, kept, kind in (("", "F32", 0), ("-scale-bf16", "BF16", 1), ("-scale-fp16", "F16", 2))
        ),
        *(
            Kernel(f"{source}-to-fp8", (read,), ("F8_E4M3", "F32"), _fp8(view), "row", ("nan", "infinite"), BROKEN)
            for source, read, view in (("bf16", "BF16", np.uint16), ("fp16", "F16", np.int16), ("fp32", "F32", np.uint32))
        ),
    )
}
"""Every kernel by name.

`fp8-block-to-…`: aside the scales, F32 [ceil(M/high), ceil(N/wide)]; parameters `high` and `wide`, the block's sides (128 and 128). The
scale MULTIPLIES, whatever its name says. `…-to-int8`: symmetric, true division, ties to even, clamped to ±127; sides the scales [M, 1], [M],
or [M, N/g] for groups of g columns: max|x| / 127 in float32, at least 2^-23; `-scale-bf16`, `-scale-fp16` keep (and divide by) the scale
rounded to that type. `…-to-int4`: the same to ±7, 8 codes in an I32 [M, N/8] (first one lowest, plus 8), sides [M, N/g]. `…-to-fp8`: e4m3, sides
[M, 1]: max|x| / 448. `…-to-fp16` counts what becomes infinite (overflow), subnormal, or zero (flushed).
"""
