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
from release.hardware import Found, older, probe
from release.house import House
from release.matrix.check import Asked
from release.matrix.load import Matrix
from release.types import Base, Chip, Unknown, split_cell

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


def examine_chip(house: House, name: str) -> list[Finding]:
    """Return findings about this host as one of a chip: tool, driver, devices, mounts, software, and the cells that fit what is here."""
    chip = house.matrix.chip(name)
    found = probe(chip.host.tool) if chip.host.tool else None
    return [
        *_tool(chip, found),
        *_paths("device", [path.split(":")[0] for path in chip.container.devices]),
        *_paths("mount", [path.split(":")[0] for path in chip.container.mounts]),
        *(
            Finding(what, "note", f"wanted: {_said(version)}", "this tool cannot ask for it")
            for what, version in chip.host.software.items()
        ),
        *_fitting(house, chip, found),
    ]


def _tool(chip: Chip, found: Found | None) -> list[Finding]:
    tool = chip.host.tool
    if tool is None:
        return [Finding("tool", "note", f"nobody has said which tool shows a {chip.name}")] if chip.devices else []
    if found is None:
        return [
            Finding(tool.command[0], "missing", "not installed, or it failed", f"install the driver and tools of {chip.vendor}")
        ]
    count, size = len(found.devices), f", {found.gib:g} GiB each" if found.gib else ""
    shown = f"{count} devices{size}: {', '.join(dict.fromkeys(found.devices))}" if count else "it shows no device"
    findings = [Finding(found.tool, "ok" if count else "missing", shown)]
    least = chip.host.driver
    if isinstance(least, Unknown):
        findings.append(Finding("driver", "note", f"{found.driver or 'version not shown'}; wanted: {_said(least)}"))
    elif found.driver is None:
        findings.append(Finding("driver", "note", f"version not shown; wanted: {least} or newer"))
    else:
        old = older(found.driver, least)
        findings.append(
            Finding(
                "driver",
                "missing" if old else "ok",
                f"{found.driver}; wanted: {least} or newer",
                f"install a driver of {chip.vendor} that is at least {least}" if old else "",
            )
        )
    return findings


def _paths(what: str, paths: list[str]) -> list[Finding]:
    return [
        Finding(f"{what} {path}", "ok", "there") if Path(path).exists() else Finding(f"{what} {path}", "missing", "not here")
        for path in paths
    ]


def _said(version: object) -> str:
    return f"unknown ({version.unknown})" if isinstance(version, Unknown) else str(version)


def _fitting(house: House, chip: Chip, found: Found | None) -> list[Finding]:
    """Return one finding a cell: whether it starts on the devices that are here, and with which image."""
    if chip.devices and (found is None or not found.devices):
        return [Finding("cells", "note", "no device here, so nothing can be said of what fits")]
    asked = Asked(memory=found.gib, devices=len(found.devices)) if found else Asked()
    findings = []
    for cell, _ in house.matrix.cells():
        if split_cell(cell)[0] != chip.id:
            continue
        study = house.study(cell, asked)
        plan, wrong = study.plan, study.refusal
        base = (plan.base.image or (plan.base.bootstrap and "made here")) if isinstance(plan.base, Base) else None
        fits = Finding(cell, "ok", f"fits; base image: {base or 'not pinned yet'}")
        findings.append(Finding(cell, "note", f"does not fit: {wrong.message}") if wrong else fits)
    return findings
