"""What this machine can run: container engine, programs, disk, memory, devices. It looks and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from release import processes
from release.errors import EngineError
from release.matrix.load import Matrix

DISK: Final = 12e9
"""Bytes that a first build takes at its peak, store and engine together."""
MEMORY: Final = 6e9
"""Bytes that two servers of the demo and the build beside them take."""
PROGRAMS: Final = {
    "git": "sudo apt-get install git",
    "mmdebstrap": "sudo apt-get install mmdebstrap (only for bases made with bootstrap)",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "missing", "note"]
    found: str
    next_step: str = ""


def examine(matrix: Matrix, store: Path, engine_kind: str) -> list[Finding]:
    """Return findings about this machine, the store's disk and the container engine."""
    return [_engine(engine_kind), *_programs(), _disk(store), _memory(), _processor(), *_chips(matrix)]


def _engine(kind: str) -> Finding:
    from release.containers import connect

    try:
        with connect(kind) as engine:
            return Finding("container engine", "ok", f"{engine.kind} {engine.version} at {engine.address}")
    except EngineError as problem:
        return Finding("container engine", "missing", problem.message, problem.next_step)


def _programs() -> list[Finding]:
    found = []
    for name, how in PROGRAMS.items():
        path = processes.find(name)
        found.append(Finding(name, "ok", path) if path else Finding(name, "missing", "not installed", how))
    return found


def _disk(store: Path) -> Finding:
    there = store
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.0f} GB free for the store at {store}; a first build takes {DISK / 1e9:.0f} GB at its peak"
    return (
        Finding("disk", "ok", text) if free >= DISK else Finding("disk", "missing", text, "free some space, or set RELEASE_STORE")
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / 1e9:.0f} GB; two servers of the demo and a build take {MEMORY / 1e9:.0f} GB"
    return Finding("memory", "ok", text) if total >= MEMORY else Finding("memory", "missing", text, "use a larger machine")


def _processor() -> Finding:
    flags = set()
    try:
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("flags"):
                flags = set(text.split(":")[1].split())
                break
    except OSError:
        pass
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags]
    text = f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(known) or 'no vector extensions seen'}"
    if platform.machine() != "x86_64":
        return Finding("processor", "note", text)
    return Finding(
        "processor", "ok" if "avx2" in flags else "note", text, "" if "avx2" in flags else "vLLM's CPU build is slow without AVX2"
    )


def _chips(matrix: Matrix) -> list[Finding]:
    """Return one finding a chip of the matrix: whether the devices that its containers need are here."""
    found = []
    for name in matrix.chips():
        chip = matrix.chip(name)
        absent = [device for device in chip.container.devices if not Path(device.split(":")[0]).exists()]
        if absent:
            found.append(Finding(f"chip {name}", "note", f"not here: {', '.join(absent)}"))
        else:
            found.append(Finding(f"chip {name}", "ok", f"{', '.join(chip.container.devices) or 'needs no device'}; {chip.name}"))
    return found
