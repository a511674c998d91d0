"""Ours, one job a call, a line of JSON out: the conversion, or a copy of as many bytes through the same path.

    python weights_ours.py WHAT SOURCE TARGET

WHAT: `ours`; `copy` (every byte read is written twice: the same bytes in and out, the same threads, buffers and digest, no arithmetic);
`copy-unhashed` (that without the digest); `loops` (in memory, one thread; SOURCE is the number of tensors, TARGET the rounds).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from release.builders.weights import kernels, loops, plan_conversion, stream
from release.builders.weights.kernels import Strip
from release.builders.weights.run import run
from release.progress import Plain

NAME = "fp8-block-to-bf16"


class Unhashed:
    """A digest of nothing."""

    def update(self, data: object) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """Return nothing."""
        return ""


def twice(strip: Strip) -> None:
    """Write every byte twice."""
    out = strip.out.view(np.uint8)
    out[: strip.source.size] = strip.source
    out[strip.source.size :] = strip.source


def resident() -> int:
    """Return the most kB that were resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


def in_memory(count: int, rounds: int) -> dict[str, float]:
    """Return the best bytes a second (read and written) of both loops."""
    rng = np.random.default_rng(1)
    size = 2048 * 7168
    weights = [rng.integers(0, 127, size, dtype=np.uint8) for _ in range(count)]
    scales = [rng.random(16 * 56, dtype=np.float32) for _ in range(count)]
    halves = [
        ((rng.standard_normal(size) * 0.02).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for _ in range(count)
    ]
    out, codes, rows = np.zeros(size, np.uint16), np.zeros(size, np.int8), np.zeros(2048, np.float32)
    counts = np.zeros(8, np.int64)

    def best(work: Callable[[], None]) -> float:
        work()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return 3 * size * count / min(times)

    def all_fp8() -> None:
        for weight, scale in zip(weights, scales, strict=True):
            loops.fp8_to_bf16(weight, out, 0, 7168, scale, 128, 128, counts)

    def all_int8() -> None:
        for half in halves:
            loops.to_int8(half, codes, rows, 7168, 0, counts)

    return {"fp8": best(all_fp8), "int8": best(all_int8)}


def ready() -> float:
    """Import what a conversion needs and load the loops' machine code; return the seconds since the process started."""
    nothing = np.zeros(8, np.int64)
    loops.fp8_to_bf16(np.zeros(8, np.uint8), np.zeros(8, np.uint16), 0, 8, np.ones(1, np.float32), 128, 128, nothing)
    started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main() -> None:
    """Do one job."""
    what, source, target = sys.argv[1:]
    found: dict[str, object] = {"release": version("release"), "numba": version("numba"), "numpy": version("numpy")}
    if what == "loops":
        found.update(in_memory(int(source), int(target)))
    else:
        if what.startswith("copy"):
            copying = dataclasses.replace(kernels.KERNELS[NAME], makes=lambda: twice)
            kernels.KERNELS = {**kernels.KERNELS, NAME: copying}  # type: ignore[misc]
        if what == "copy-unhashed":
            stream.hashlib = SimpleNamespace(sha256=Unhashed)  # type: ignore[assignment]
        found["libraries"] = ready()
        began, cpu = time.perf_counter(), time.process_time()
        done = run(plan_conversion(Path(source), "bf16"), Path(target), Plain(io.StringIO()).line("benchmark", "weights"))
        found |= {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "resident": resident()}
        found |= {"read": done.read, "written": done.written}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
