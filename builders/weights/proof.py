"""A proof of a conversion: every element of every output tensor recomputed from the source by other means, and compared.

The kernels are integer tricks in compiled loops; what they are held against here is the plain float32 arithmetic of numpy, and a table of
the 256 numbers of e4m3 made from the definition of the format (OCP 8-bit floating point, 1.0).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from release.builders.weights.catalogue import Catalogue, read_catalogue
from release.builders.weights.header import WIDTH, Tensor, parse
from release.builders.weights.kernels import storage
from release.builders.weights.plan import Conversion, Step
from release.builders.weights.run import edited
from release.errors import StageError, VerificationError
from release.progress import Line

STRIP: Final = 1 << 18
"""Elements that are recomputed at a time."""
WORKERS: Final = 2
GROUP: Final = 256
"""Tensors that wait for the workers at a time."""
Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Some elements of a step's source: whole rows from `top` on, or a part of one from `left` on; `columns` are the tensor's.

    `source` is [rows, columns] of them; `sides` are the elements that a row has in each of the step's other outputs.
    """

    source: Numbers
    top: int
    left: int
    columns: int
    aside: tuple[Numbers, ...]
    parameters: Mapping[str, Any]
    sides: tuple[int, ...]


def verify(conversion: Conversion, target: Path, line: Line) -> dict[str, int]:
    """Compare the checkpoint in `target` with what the plan makes of its source; return the tensors, elements and bytes compared.

    Headers and index are read as a stranger's; carried files are compared byte by byte, config.json with its edits. Raises VerificationError
    with the first difference: the tensor, the element's number, what it is and what it has to be.
    """
    if not conversion.shards:
        return {"tensors": 0, "elements": 0, "bytes": _same_files(conversion, target)}
    found = read_catalogue(target)
    wanted = {output.name: output for shard in conversion.shards for step in shard.steps for output in step.outputs}
    if odd := sorted(set(wanted) ^ set(found.tensors)):
        raise VerificationError(f"{target}: tensor {odd[0]} is {'missing' if odd[0] in wanted else 'one too many'}")
    for name, output in wanted.items():
        if (output.dtype, output.shape) != (found.tensors[name].dtype, found.tensors[name].shape):
            raise VerificationError(f"{target}: tensor {name} is {found.tensors[name].dtype} {list(found.tensors[name].shape)}")
    line.expect(conversion.reads, "bytes")
    steps = [step for shard in conversion.shards for step in shard.steps]
    with ThreadPoolExecutor(WORKERS) as pool:
        for at in range(0, len(steps), GROUP):
            group = steps[at : at + GROUP]
            for step, _ in zip(group, pool.map(lambda step: _compare(conversion.source, step, found), group), strict=True):
                line.advance(step.source.size if step.source else 0)
    elements = sum(math.prod(output.shape) for output in wanted.values())
    return {"tensors": len(wanted), "elements": elements, "bytes": found.size + _same_files(conversion, target)}


def _same_files(conversion: Conversion, target: Path) -> int:
    size = 0
    for name in conversion.carried:
        place = target / name
        if name in conversion.files or (name == "config.json" and conversion.config):
            continue
        if not place.is_file() or place.stat().st_size != (conversion.source / name).stat().st_size:
            raise VerificationError(f"{place} is not the file of the source")
        with (conversion.source / name).open("rb") as one, place.open("rb") as other:
            while chunk := one.read(1 << 20):
                if chunk != other.read(len(chunk)):
                    raise VerificationError(f"{place} is not the file of the source")
        size += place.stat().st_size
    for name, text in conversion.files.items():
        if (target / name).read_text(encoding="utf-8") != text:
            raise VerificationError(f"{target / name} is not what was planned")
    if conversion.config:
        wanted = edited(parse((conversion.source / "config.json").read_bytes()), conversion.config)
        if json.loads((target / "config.json").read_bytes()) != wanted:
            raise VerificationError(f"{target / 'config.json'} is not the source's with the edits of the plan")
    return size


def _compare(folder: Path, step: Step, found: Catalogue) -> None:
    outputs = [found.tensors[output.name] for output in step.outputs]
    if step.source is None:
        wanted = np.frombuffer(step.data, np.uint8)
        for begin in range(0, outputs[0].size, step_size := wanted.size * (1 + STRIP // wanted.size)):
            end = min(outputs[0].size, begin + step_size)
            _equal(outputs[0], begin, _read(found.folder, outputs[0], begin, end), np.resize(wanted, end - begin))
        return
    if step.kernel == "copy":
        for begin in range(0, step.source.size, 8 * STRIP):
            end = min(step.source.size, begin + 8 * STRIP)
            _equal(outputs[0], begin, _read(found.folder, outputs[0], begin, end), _read(folder, step.source, begin, end))
        return
    if step.kernel not in REFERENCES:
        raise StageError(f"tensor {step.outputs[0].name}: there is nothing to hold the kernel {step.kernel} against")
    by_row, reference = REFERENCES[step.kernel]
    aside = tuple(_read(folder, tensor, 0, tensor.size).view(storage(tensor.dtype)) for tensor in step.aside)
    rows, columns = _flat(step.source.shape)
    width = WIDTH[step.source.dtype]
    sides = tuple(output.size // WIDTH[output.dtype] // max(1, rows) for output in step.outputs[1:])
    for top, bottom, left, right in _parts(rows, columns, by_row):
        first, count = top * columns + left, (bottom - top) * (right - left)
        source = _read(folder, step.source, first * width, (first + count) * width).view(storage(step.source.dtype))
        part = Part(source.reshape(bottom - top, right - left), top, left, columns, aside, step.parameters, sides)
        for number, (output, made) in enumerate(zip(outputs, reference(part), strict=True)):
            data = np.ascontiguousarray(made).reshape(-1).view(np.uint8)
            per = output.size // max(1, rows) if by_row else WIDTH[output.dtype]
            begin = (top if by_row else first) * per
            _equal(step.outputs[number], begin, _read(found.folder, output, begin, begin + data.size), data)


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _parts(rows: int, columns: int, by_row: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield top, bottom, left, right: whole rows of about STRIP elements in all, or, of longer ones that may be cut, parts of one."""
    if not rows or not columns:
        return
    if columns > STRIP and not by_row:
        for row in range(rows):
            for left in range(0, columns, STRIP):
                yield row, row + 1, left, min(columns, left + STRIP)
        return
    high = max(1, STRIP // columns)
    for top in range(0, rows, high):
        yield top, min(rows, top + high), 0, columns


def _read(folder: Path, tensor: Tensor, begin: int, end: int) -> NDArray[np.uint8]:
    data = np.empty(end - begin, np.uint8)
    with (folder / tensor.file).open("rb", buffering=0) as stream:
        done = 0
        while done < data.size:
            count = os.preadv(stream.fileno(), [data[done:].data], tensor.offset + begin + done)
            if not count:
                raise VerificationError(f"{folder / tensor.file} ends too early")
            done += count
    return data


def _equal(output: Any, begin: int, found: Numbers, wanted: Numbers) -> None:
    if found.size == wanted.size and np.array_equal(found, wanted):
        return
    width = WIDTH[output.dtype]
    at = int(np.flatnonzero(found != wanted)[0]) // width * width if found.size == wanted.size else 0
    is_, has = (bytes(data[at : at + width][::-1]).hex() for data in (found, wanted))
    raise VerificationError(f"tensor {output.name}: element {(begin + at) // width} is 0x{is_}, the source makes it 0x{has}")


def _e4m3() -> NDArray[np.float32]:
    """Return the numbers of the 256 codes: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinities, 0x7f and 0xff are NaN."""
    numbers = []
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        number = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
        numbers.append(math.nan if code & 0x7F == 0x7F else -number if code & 0x80 else number)
    return np.array(numbers, np.float32)


E4M3: Final = _e4m3()


def bf16_of(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return float32 numbers as bfloat16 bits, to nearest, ties to even: the one of the two neighbours that is nearer, or even."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32).astype(np.uint64)
    below, rest = bits >> np.uint64(16), bits & np.uint64(0xFFFF)
    higher = (rest > 0x8000) | ((rest == 0x8000) & (below & np.uint64(1) == 1))
    found: NDArray[np.uint16] = (below + higher).astype(np.uint16)
    return found


def float_of(source: Numbers, dtype: str) -> NDArray[np.float32]:
    """Return the elements of a float tensor as float32, which holds all of them."""
    if dtype == "bf16":
        return (source.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return source.view(np.float16).astype(np.float32) if dtype == "fp16" else source.view(np.float32)


def _fp8_block(part: Part, rounded: Callable[[NDArray[np.float32]], Numbers]) -> tuple[Numbers, ...]:
    """The number of a code times the scale of its block, for all 256 codes of each block; then every code looked up."""
    high, wide = part.parameters["high"], part.parameters["wide"]
    rows, columns = part.source.shape
    scales = part.aside[0].view(np.float32).reshape(-1, -(-part.columns // wide))
    block = (part.left + np.arange(columns)) // wide
    first = int(block[0])
    parts: list[Numbers] = []
    at = 0
    while at < rows:
        row = (part.top + at) // high
        end = min(rows, (row + 1) * high - part.top)
        with np.errstate(invalid="ignore", over="ignore"):
            table = rounded(E4M3[None, :] * scales[row, first : int(block[-1]) + 1, None]).reshape(-1)
        parts.append(table.take((block - first) * 256 + part.source[at:end], mode="clip"))
        at = end
    return (np.concatenate(parts),)


def _bf16_from(dtype: str) -> Callable[[Part], tuple[Numbers, ...]]:
    return lambda part: (bf16_of(float_of(part.source, dtype)),)


def _fp16_from(dtype: str) -> Callable[[Part], tuple[Numbers, ...]]:
    def made(part: Part) -> tuple[Numbers, ...]:
        with np.errstate(over="ignore"):
            return (float_of(part.source, dtype).astype(np.float16),)

    return made


def _scales(groups: NDArray[np.float32], most: float, kept: str) -> tuple[NDArray[np.float32], Numbers]:
    """Return max|x| / most of each group in float32, at least 2^-23, as the type that is kept: as a number, and as it is stored."""
    scales = np.maximum(np.abs(groups).max(axis=2, keepdims=True) / np.float32(most), np.float32(2.0**-23))
    if kept == "bf16":
        stored: Numbers = bf16_of(scales)
        return float_of(stored, "bf16"), stored
    stored = scales.astype(np.float16) if kept == "fp16" else scales
    return stored.astype(np.float32), stored


def _integers_from(dtype: str, kept: str, most: int) -> Callable[[Part], tuple[Numbers, ...]]:
    """rint(x / scale), clamped to ±most; of 7, 8 codes plus 8 in a word, the first in its lowest bits."""

    def made(part: Part) -> tuple[Numbers, ...]:
        numbers = float_of(part.source, dtype)
        groups = numbers.reshape(numbers.shape[0], part.sides[0], -1)
        scales, stored = _scales(groups, most, kept)
        codes = np.clip(np.rint(groups / scales), -most, most).astype(np.int8)
        if most == 7:
            places = np.uint32(4) * np.arange(8, dtype=np.uint32)
            return np.bitwise_or.reduce((codes.reshape(-1, 8) + 8).astype(np.uint32) << places, axis=1), stored
        return codes, stored

    return made


def _fp8_from(dtype: str) -> Callable[[Part], tuple[Numbers, ...]]:
    """The code whose number is nearest to x / scale, of two the even one, found in the ordered table; scale = max|x| / 448."""
    between = (E4M3[:126].astype(np.float64) + E4M3[1:127]) / 2

    def made(part: Part) -> tuple[Numbers, ...]:
        numbers = float_of(part.source, dtype)[:, None, :]
        scales, stored = _scales(numbers, 448, "fp32")
        ratio = numbers / scales
        codes = np.searchsorted(between, np.abs(ratio).astype(np.float64))
        tie = (codes < 126) & (np.abs(ratio) == between[np.minimum(codes, 125)]) & (codes % 2 == 1)
        return ((codes + tie).astype(np.uint8) | (np.signbit(ratio).astype(np.uint8) << np.uint8(7))), stored

    return made


Reference = tuple[bool, Callable[[Part], tuple[Numbers, ...]]]
REFERENCES: Final[dict[str, Reference]] = {
    "fp8-block-to-bf16": (False, lambda part: _fp8_block(part, bf16_of)),
    "fp8-block-to-fp32": (False, lambda part: _fp8_block(part, lambda numbers: numbers)),
    "bf16-to-fp32": (False, lambda part: (float_of(part.source, "bf16"),)),
    "fp32-to-bf16": (False, _bf16_from("fp32")),
    "fp16-to-bf16": (False, _bf16_from("fp16")),
    "bf16-to-fp16": (False, _fp16_from("bf16")),
    "fp32-to-fp16": (False, _fp16_from("fp32")),
    **{
        f"{source}-to-int{bits}{own}": (True, _integers_from(source, kept, most))
        for source in ("bf16", "fp16", "fp32")
        for own, kept in (("", "fp32"), ("-scale-bf16", "bf16"), ("-scale-fp16", "fp16"))
        for bits, most in ((8, 127), (4, 7))
    },
    **{f"{source}-to-fp8": (True, _fp8_from(source)) for source in ("bf16", "fp16", "fp32")},
}
"""What each kernel is held against: whether it needs whole rows, and a function from a Part to the parts of all outputs."""
