"""Which compressor for image layers: seconds, MB/s and ratio on one tar, contenders alternating, medians.

    python benchmarks/compression.py [--tar LAYER.tar] [--rounds 3] [--megabytes 300]

The named peer is zlib level 6, what `docker push` and most tools use. Every contender reads the tar in blocks of 1 MiB, from
the page cache, and writes to a sink that counts. Without --tar, a tar is made of the files that the running interpreter
imports from: site-packages, then the standard library, over again until there are enough.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import zstandard

from release.builders import tar
from release.builders.compression import DEFAULT, NONE, Compression, Stream, fast_gzip, slow_gzip

PEER = "gzip-6"


class Counter:
    """A sink that counts."""

    size = 0

    def write(self, data: bytes) -> int:
        """Count `data`."""
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing."""


def zstd(level: int, threads: int) -> Compression:
    """Return zstd, for comparison: `skopeo copy` to dockerd 20.10 refuses it, so that no layer here is written with it."""

    def start(target: tar.Sink) -> Stream:
        return zstandard.ZstdCompressor(level, threads=threads).stream_writer(target, closefd=False)  # type: ignore[arg-type]

    version = f"zstandard {zstandard.__version__}"
    return Compression(f"zstd-{level} ×{threads}", version, "application/vnd.oci.image.layer.v1.tar+zstd", start)


def contenders() -> list[Compression]:
    """Return what is compared."""
    fast = [replace(fast_gzip(level, threads), name=f"igzip-{level} ×{threads}") for level in (0, 1, 2) for threads in (1, 2)]
    return [slow_gzip(6), slow_gzip(1), *fast, zstd(3, 1), zstd(3, 2), NONE]


def compress(path: Path, compression: Compression, limit: int) -> tuple[float, int, int]:
    """Return seconds, bytes read and bytes written for the first `limit` bytes of a file."""
    sink, read = Counter(), 0
    start = time.perf_counter()
    with path.open("rb", buffering=0) as stream:
        target = compression.open(sink)
        while read < limit and (chunk := stream.read(min(tar.CHUNK, limit - read))):
            target.write(chunk)
            read += len(chunk)
        target.close()
    return time.perf_counter() - start, read, sink.size


def files() -> Iterator[Path]:
    """Yield the files that the running interpreter imports from, in a fixed order, without bytecode."""
    for name in ("purelib", "platlib", "stdlib"):
        root = Path(sysconfig.get_path(name))
        yield from (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".pyc")


def make_tar(path: Path, size: int) -> None:
    """Write a tar of about `size` bytes."""
    with path.open("wb") as stream:
        for number, file in enumerate(cycle(list(files()))):
            data = file.read_bytes()
            member = tar.Member(f"{number}/{file.name}", tar.FILE, 0o644, 0, 0, len(data), 0, "", 0, 0)
            stream.write(tar.header(member, 0) + data + tar.padding(len(data)))
            if stream.tell() >= size:
                break
        stream.write(tar.END)


def measure(path: Path, rounds: int, limit: int, say: Callable[[str], None]) -> None:
    """Run every contender `rounds` times, one after the other within each round, and say a table of medians."""
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    field = contenders()
    for _ in range(rounds):
        for contender in field:
            taken, read, written = compress(path, contender, limit)
            seconds.setdefault(contender.name, []).append(taken)
            if sizes.setdefault(contender.name, (read, written)) != (read, written):
                raise SystemExit(f"{contender} wrote {written} bytes, and {sizes[contender.name][1]} bytes in an earlier round")
    read = sizes[PEER][0]
    say(f"{path.name}: {read / 1e6:.0f} MB, {rounds} rounds, medians, {os.cpu_count()} cores; the default is {DEFAULT}\n")
    say(f"| compressor | library | s | min–max s | MB/s | × {PEER} | output MB | of input |")
    say("|---|---|---|---|---|---|---|---|")
    peer = statistics.median(seconds[PEER])
    for contender in field:
        times, written = seconds[contender.name], sizes[contender.name][1]
        middle = statistics.median(times)
        clock = f"{middle:.2f} | {min(times):.2f}–{max(times):.2f} | {read / middle / 1e6:.0f} | {peer / middle:.1f}"
        say(f"| {contender.name} | {contender.version} | {clock} | {written / 1e6:.1f} | {written / read:.1%} |")


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tar", type=Path, help="the tar to compress")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=300, help="how much of the tar is compressed, from its start")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = options.tar or Path(scratch) / "site-packages.tar"
        if not options.tar:
            make_tar(path, options.megabytes * 1_000_000)
        measure(path, options.rounds, options.megabytes * 1_000_000, print)


if __name__ == "__main__":
    main()
