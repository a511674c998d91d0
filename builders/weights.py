"""Weights that a chip can eat: the upstream checkpoint, checked file by file, and converted tensor by tensor where its precision differs."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from release.errors import FetchError, StageError
from release.oci import sha256_file
from release.progress import Line

HEADER_LIMIT: Final = 100 << 20
"""Bytes of a safetensors header, as the reference implementation limits them."""
WIDTH: Final = {
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
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
DTYPES: Final = {"bf16": ("BF16", "bfloat16"), "fp32": ("F32", "float32")}
STRIP: Final = 1 << 20
"""Elements that are converted at a time."""


def check_files(source: Path, files: Mapping[str, str], out: Path, line: Line) -> int:
    """Copy every pinned file of a checkpoint to `out` after its digest was found to be the pinned one; return the bytes.

    Raises FetchError naming the file whose content is another.
    """
    total = 0
    line.expect(sum((source / name).stat().st_size for name in files if (source / name).is_file()), "bytes")
    for name, digest in files.items():
        path = source / name
        if not path.is_file():
            raise FetchError(f"checkpoint file {path} is missing", next_step="the model's YAML lists it under checkpoint.files")
        found = sha256_file(path)
        if found != digest:
            raise FetchError(
                f"checkpoint file {name} has {found}, the model's YAML says {digest}",
                next_step="restore the file, or, if the change is meant, pin the new digest",
            )
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.chmod(target, 0o644)
        total += target.stat().st_size
        line.advance(target.stat().st_size)
    return total


def convert(source: Path, out: Path, *, upstream: str, precision: str, line: Line) -> dict[str, Any]:
    """Write the checkpoint `source` to `out` in `precision` and return what was done: tensors converted and kept, and every file.

    fp32 → bf16 rounds to nearest, ties to even; a NaN is an error. Nothing else is converted here: any other pair of precisions
    raises StageError. Files other than safetensors are copied; config.json gets the new dtype.
    """
    if precision != upstream and (upstream, precision) != ("fp32", "bf16"):
        raise StageError(f"no conversion from {upstream} to {precision} is known")
    converted = kept = 0
    for path in sorted(file for file in source.rglob("*") if file.is_file() and not file.name.startswith(".")):
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors" and precision != upstream:
            done, left = convert_shard(path, target, DTYPES[precision][0], line)
            converted, kept = converted + done, kept + left
        elif path.name == "config.json" and precision != upstream:
            target.write_text(json.dumps(_with_dtype(json.loads(path.read_bytes()), DTYPES[precision][1]), indent=2) + "\n")
        else:
            shutil.copyfile(path, target)
        os.chmod(target, 0o644)  # a server that is not root must be able to read what safetensors writes as 0600
    files = {
        str(file.relative_to(out)): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }
    return {"upstream": upstream, "precision": precision, "converted": converted, "kept": kept, "files": files}


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    for key in ("torch_dtype", "dtype"):
        if key in config:
            config[key] = dtype
    return config if "torch_dtype" in config or "dtype" in config else {**config, "torch_dtype": dtype}


def read_header(stream: IO[bytes], size: int) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Return tensors, metadata and the offset of the data of a safetensors file (format: 8 bytes length, JSON header, data).

    Everything in it is checked: bounds, dtypes, shapes against byte counts, no gaps, no overlaps. Raises StageError.
    """
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(f"the header claims {length} bytes")
        header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not a map of texts")
        for name, tensor in header.items():
            whole = [*tensor["shape"], *tensor["data_offsets"]]
            if not all(type(number) is int and number >= 0 for number in whole) or not isinstance(tensor["shape"], list):
                raise ValueError(f"tensor {name} has a shape or offsets that are no whole numbers")
        reached = 0
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = tensor["data_offsets"]
            if begin != reached or end < begin or end - begin != math.prod(tensor["shape"]) * WIDTH[tensor["dtype"]]:
                raise ValueError(f"tensor {name} has impossible offsets")
            reached = end
        if reached != size - 8 - length:
            raise ValueError(f"the tensors have {reached} bytes, the file has {size - 8 - length}")
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise StageError(f"not a sound safetensors file: {problem}") from problem
    return header, metadata, 8 + length


def convert_shard(source: Path, target: Path, dtype: str, line: Line) -> tuple[int, int]:
    """Write a safetensors file with its F32 tensors as BF16, strip by strip; return the tensors converted and kept."""
    with source.open("rb") as reader, target.open("wb") as writer:
        tensors, metadata, start = read_header(reader, source.stat().st_size)
        names = sorted(tensors, key=lambda name: tensors[name]["data_offsets"])
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
        reached = 0
        for name in names:
            wanted = dtype if tensors[name]["dtype"] == "F32" else tensors[name]["dtype"]
            size = math.prod(tensors[name]["shape"]) * WIDTH[wanted]
            header[name] = {"dtype": wanted, "shape": tensors[name]["shape"], "data_offsets": [reached, reached + size]}
            reached += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        writer.write(struct.pack("<Q", len(text)) + text)
        line.expect(source.stat().st_size, "bytes")
        for name in names:
            begin, end = tensors[name]["data_offsets"]
            reader.seek(start + begin)
            while begin < end:
                data = reader.read(min(4 * STRIP, end - begin))
                begin += len(data)
                line.advance(len(data))
                writer.write(data if tensors[name]["dtype"] != "F32" else to_bf16(data, name))
    converted = sum(tensors[name]["dtype"] == "F32" for name in names)
    return converted, len(names) - converted


def to_bf16(data: bytes, name: str) -> bytes:
    """Return little-endian float32 data as bfloat16, rounded to nearest, ties to even. Raises StageError for a NaN."""
    import numpy as np

    bits = np.frombuffer(data, dtype="<u4")
    if (bits & 0x7FFFFFFF > 0x7F800000).any():
        raise StageError(f"tensor {name} holds a NaN", next_step="the checkpoint is damaged: fetch it again")
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()
