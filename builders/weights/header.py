"""The header of a safetensors file, read as a stranger's: 8 bytes of length, JSON, data without gaps or overlaps."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from release.errors import StageError

HEADER_LIMIT: Final = 32 << 20
"""Bytes that a header may have. The format allows 100 MB; DeepSeek-R1 as one file would need 12."""
MOST_TENSORS: Final = 1 << 17
"""Tensors that a file may have. DeepSeek-R1 has 91,991 in 163 files, scales counted."""
MOST_DIMENSIONS: Final = 16
LARGEST: Final = 1 << 62
"""What a dimension and an offset stay below."""
WIDTH: Final[Mapping[str, int]] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of an element of every dtype whose elements are whole bytes."""
ALIGNMENT: Final = 8
"""What the start of the data is a multiple of in files that are written here."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it lies in a file: `offset` counts from the start of the file, `size` is in bytes."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return self.size // WIDTH[self.dtype]


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its tensors in the order of their bytes, its metadata, where its data start, its size."""

    file: str
    size: int
    start: int
    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]


def read_file(path: Path, name: str = "") -> Header:
    """Return the header of a safetensors file; tensors bear `name` (the file's own by default). Raises StageError."""
    name = name or path.name
    try:
        with path.open("rb") as stream:
            return read_header(stream, path.stat().st_size, name)
    except OSError as problem:
        raise StageError(f"{name} cannot be read: {problem.strerror}") from problem


def read_header(stream: IO[bytes], size: int, file: str) -> Header:
    """Return the header of the safetensors data in `stream`, `size` bytes in all; only the header is read.

    Everything in it is checked: its length against the file and HEADER_LIMIT before it is read, how much it holds before it is
    parsed, UTF-8, each key once, dtypes, shapes against byte counts, no gaps, no overlaps, nothing before or after. Raises StageError.
    """
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(f"the header claims {length} bytes, the file has {size}")
        text = stream.read(length)
        if len(text) != length or text[:1] != b"{":
            raise ValueError("the header is cut short, or is no object")
        header = parse(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not a map of texts")
        if len(header) > MOST_TENSORS:
            raise ValueError(f"it has {len(header)} tensors, more than {MOST_TENSORS}")
        tensors = _in_order((_tensor(name, entry, file, 8 + length) for name, entry in header.items()), 8 + length, size)
    except (struct.error, ValueError, KeyError, TypeError, RecursionError, OverflowError) as problem:
        raise StageError(f"{file} is not a sound safetensors file: {problem}") from problem
    return Header(file, size, 8 + length, metadata, tensors)


def parse(text: bytes) -> Any:
    """Return a stranger's JSON object: UTF-8, each key of an object once, no NaN; refused by its size before it becomes objects.

    Raises ValueError (or RecursionError for what is nested too deep).
    """
    if (values := text.count(b",") + text.count(b"[") + text.count(b"{")) > 10 * MOST_TENSORS:
        raise ValueError(f"it has up to {values} values, more than {10 * MOST_TENSORS}")
    document = json.loads(text.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number)
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    return document


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:200]!r} stands there twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _tensor(name: str, entry: Any, file: str, start: int) -> Tensor:
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:200]!r} has a shape or offsets that are no short lists")
    if not all(type(number) is int and 0 <= number < LARGEST for number in (*shape, *offsets)):
        raise ValueError(f"tensor {name[:200]!r} has a shape or offsets that are no whole numbers")
    if not name or "\0" in name or dtype not in WIDTH:
        raise ValueError(f"tensor {name[:200]!r} has an impossible name or the dtype {str(dtype)[:20]}")
    name.encode("utf-8")
    begin, end = offsets
    if end - begin != math.prod(shape) * WIDTH[dtype]:
        raise ValueError(f"tensor {name[:200]!r} has impossible offsets: {end - begin} bytes for {dtype} {shape}")
    return Tensor(name, file, dtype, tuple(shape), start + begin, end - begin)


def _in_order(tensors: Iterable[Tensor], start: int, size: int) -> tuple[Tensor, ...]:
    found = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size))
    reached = start
    for tensor in found:
        if tensor.offset != reached:
            raise ValueError(
                f"tensor {tensor.name[:200]!r} has impossible offsets: it starts at {tensor.offset}, not at {reached}"
            )
        reached += tensor.size
    if reached != size:
        raise ValueError(f"the tensors end at {reached}, the file at {size}")
    return tuple(found)


def pack_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file whose data are these tensors (name, dtype, shape) one after the other, padded to ALIGNMENT."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, reached + size]}
        reached += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
