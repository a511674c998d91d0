"""How a layer is compressed: by what, in which version, so that equal layers give equal blobs and the record can say by what."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, BinaryIO, Final, Protocol, cast

import isal.igzip
import isal.igzip_lib
import isal.igzip_threaded

from release.builders.tar import CHUNK, Sink
from release.oci import LAYER_GZIP, LAYER_TAR

ISAL: Final[Any] = isal
"""The library without its annotations, which cover half of it."""
UNPACK_LIMIT: Final = 128 << 30
"""Bytes that one layer may unpack to: a stop for bombs, far above any real layer."""

MAGIC: Final = 6
"""Bytes that tell how a file is compressed."""
GZIP, BZIP2, XZ, ZSTD = "gzip", "bzip2", "xz", "zstd"
KINDS: Final = {b"\x1f\x8b": GZIP, b"BZh": BZIP2, b"\xfd7zXZ\0": XZ, b"\x28\xb5\x2f\xfd": ZSTD}
XZ_MEMORY: Final = 512 << 20
"""Bytes of memory that unpacking xz may take: `xz -9` takes 65 MiB, and a header can claim 4 GiB."""

THREADS: Final = 2
"""Threads of igzip; the bytes it writes are the same for every number of them from one up."""


class Stream(Protocol):
    """Where uncompressed bytes go. `close` ends the compressed form and leaves the file under it open."""

    def write(self, data: bytes, /) -> object:
        """Take `data`, all of it."""

    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class Compression:
    """A way to compress layers. `name` and `version` (of the library) together determine the bytes that come out."""

    name: str
    version: str
    media_type: str
    open: Callable[[Sink], Stream]

    def __str__(self) -> str:
        """Return what a record says: `igzip-1 (isal 1.9.1)`."""
        return f"{self.name} ({self.version})" if self.version else self.name


class _Plain:
    def __init__(self, target: Sink) -> None:
        self.write = target.write

    def close(self) -> None:
        pass


def fast_gzip(level: int, threads: int = THREADS) -> Compression:
    """Return gzip by Intel's ISA-L at `level` 0 to 2, in blocks of 1 MiB that are compressed side by side.

    The output was found equal on emulated Nehalem, Sandy Bridge and Haswell and on a Zen 5 with AVX-512; it differs on x86-64
    without SSE 4.2, and level 3 differs between AVX generations.
    """

    def start(target: Sink) -> Stream:
        return cast(Stream, ISAL.igzip_threaded.open(target, "wb", compresslevel=level, threads=threads, block_size=CHUNK))

    return Compression(f"igzip-{level}", f"isal {version('isal')}", LAYER_GZIP, start)


def slow_gzip(level: int) -> Compression:
    """Return gzip by the interpreter's zlib at `level` 1 to 9: slow, and equal on every processor for one zlib version."""

    def start(target: Sink) -> Stream:
        return gzip.GzipFile("", "wb", level, cast(BinaryIO, target), mtime=0)

    return Compression(f"gzip-{level}", f"zlib {zlib.ZLIB_RUNTIME_VERSION}", LAYER_GZIP, start)


NONE: Final = Compression("none", "", LAYER_TAR, _Plain)
DEFAULT: Final = fast_gzip(1)


def unpacked(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a gzip stream in chunks.

    Raises ValueError, saying why, for damaged or truncated gzip and for more than UNPACK_LIMIT bytes.
    """
    size = 0
    try:
        with ISAL.igzip.IGzipFile(fileobj=stream, mode="rb") as plain:
            while chunk := plain.read(CHUNK):
                size += len(chunk)
                if size > UNPACK_LIMIT:
                    raise ValueError(f"it unpacks to more than {UNPACK_LIMIT} bytes")
                yield chunk
    except (EOFError, gzip.BadGzipFile, ISAL.igzip_lib.IsalError) as problem:
        raise ValueError(f"damaged gzip: {problem}") from problem


def kind_of(magic: bytes) -> str:
    """Return how a file that begins with these bytes is compressed, one of KINDS; an empty string for everything else."""
    return next((kind for start, kind in KINDS.items() if magic.startswith(start)), "")


def unpacked_as(kind: str, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a gzip, bzip2 or xz stream in chunks, as `unpacked` does for gzip."""
    return unpacked(stream) if kind == GZIP else _unpacked(stream, _xz if kind == XZ else bz2.BZ2Decompressor)


class _Decompressor(Protocol):
    """What `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)


def _unpacked(stream: BinaryIO, start: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Yield the content of one or several compressed streams, one after the other; zeros may follow each, as tapes and xz have them."""
    size, data = 0, stream.read(CHUNK)
    try:
        while data:
            unpacking = start()
            while not unpacking.eof:
                if unpacking.needs_input and not data and not (data := stream.read(CHUNK)):
                    raise EOFError("it was cut off")
                chunk, data = unpacking.decompress(data, CHUNK), b""
                if (size := size + len(chunk)) > UNPACK_LIMIT:
                    raise ValueError(f"it unpacks to more than {UNPACK_LIMIT} bytes")
                if chunk:
                    yield chunk
            data = unpacking.unused_data.lstrip(b"\0")
            while not data and (more := stream.read(CHUNK)):
                data = more.lstrip(b"\0")
    except (EOFError, OSError, lzma.LZMAError) as problem:
        raise ValueError(str(problem)) from problem
