"""What this machine can run: container engine, programs, disk, memory, devices. It looks and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from release import processes
from release.errors import EngineError, ReleaseError
from release.hardware import Found, known_as, older, probe
from release.house import House, Study
from release.matrix.check import Asked
from release.matrix.load import Matrix
from release.types import Base, Chip, Tool, Unknown, split_cell

if TYPE_CHECKING:
    from release.containers import Engine

DISK: Final = 12e9
"""Bytes that a first build takes at its peak, store and engine together."""
MEMORY: Final = 6e9
"""Bytes that two servers of the demo and the build beside them take."""
PROGRAMS: Final = {
    "git": "sudo apt-get install git",
    "mmdebstrap": "sudo apt-get install mmdebstrap (only for bases made with bootstrap)",
}
GIVEN: Final = "3"
"""What Linux says of an interface whose hardware address was set (NET_ADDR_SET)."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "missing", "note"]
    found: str
    next_step: str = ""


def examine(matrix: Matrix, store: Path, engine_kind: str) -> list[Finding]:
    """Return findings about this machine, the store's disk and the container engine."""
    return [*_engine(engine_kind), *_programs(), _disk(store), _memory(), _processor(), *_chips(matrix)]


def _engine(kind: str) -> list[Finding]:
    from release.containers import connect

    try:
        with connect(kind) as engine:
            found = [Finding("container engine", "ok", f"{engine.kind} {engine.version} at {engine.address}")]
            if engine.address.startswith("unix:"):
                found += bridge(engine, lambda path: Path(path).read_text())
            return found
    except EngineError as problem:
        return [Finding("container engine", "missing", problem.message, problem.next_step)]


def bridge(engine: Engine, read: Callable[[str], str]) -> list[Finding]:
    """Return a finding where the engine's bridge has no address of its own; `read` returns a file of the engine's machine.

    A bridge that was given none (by hand, by another program) has the lowest of its ports' (Linux, br_stp_recalculate_bridge_id). As a
    container ends it changes, and the others send to the old one: an answer that is on its way arrives minutes later, or never.
    """
    try:
        name = engine.bridge()
        folder = f"/sys/class/net/{name}"
        if not name or read(f"{folder}/addr_assign_type").strip() == GIVEN:
            return []
        address = read(f"{folder}/address").strip()
    except (OSError, ReleaseError):  # an engine without one, or in a machine of its own
        return []
    said = f"the bridge {name} changes its address as containers end: answers of the others are late then by minutes, or lost"
    return [Finding("network", "note", said, f"give it the one it has for good: sudo ip link set {name} address {address}")]


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
    """Return one finding a chip of the matrix: whether its devices are here, by its tool and by the files that its containers need."""
    return [_chip(matrix.chip(name)) for name in matrix.chips()]


def _chip(chip: Chip) -> Finding:
    what, container = f"chip {chip.id}", chip.container
    absent = [device for device in container.devices if not Path(device.split(":")[0]).exists()]
    if not chip.devices and not container.devices and container.gpus is None and chip.host.tool is None:
        return Finding(what, "ok", f"needs no device; {chip.name}")
    if absent:
        return Finding(what, "note", f"not here: {', '.join(absent)}")
    if chip.host.tool is not None:
        return _by_tool(what, chip, chip.host.tool)
    there = ", ".join(container.devices)
    return Finding(what, "ok" if there else "note", f"{there or 'nobody has said which tool shows it'}; {chip.name}")


def _by_tool(what: str, chip: Chip, tool: Tool) -> Finding:
    found = probe(tool)
    if found is None:
        said = f"not here: {tool.command[0]}, which shows it, is not installed"
    elif found.problem:
        said = f"{found.tool} {found.problem}"
    elif tool.device is None:
        said = f"{found.tool} answers; the matrix does not know how to read it"
    elif not found.devices:
        said = f"not here: {found.tool} shows no device"
    else:
        return Finding(what, "ok", f"{_shown(found)}; {chip.name}")
    return Finding(what, "note", said)


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
        return [Finding(tool.command[0], "missing", "not installed", f"install the driver and tools of {chip.vendor}")]
    if found.problem:
        step = f"run `{' '.join(tool.command)}` by hand: the driver of {chip.vendor} may hang or be another one"
        return [Finding(found.tool, "missing", found.problem, step)]
    if tool.device is None:
        return [Finding(found.tool, "note", "it answers; the matrix does not know how to read it")]
    count = len(found.devices)
    findings = [Finding(found.tool, "ok" if count else "missing", _shown(found) if count else "it shows no device")]
    strange = [name for name in dict.fromkeys(found.devices) if chip.devices and known_as(name, chip.devices) is None]
    if strange:
        known = ", ".join(device.name for device in chip.devices.values())
        said = f"{', '.join(strange)}: the matrix does not know this device; figures are taken from what the tool shows"
        findings.append(Finding("device", "note", said, f"it knows: {known}"))
    if count and len(found.memory) < count:
        findings.append(Finding("memory", "note", _memory_said(chip, found)))
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


def _memory_said(chip: Chip, found: Found) -> str:
    if found.memory:
        return f"shown for {len(found.memory)} of {len(found.devices)} devices; the smallest that is shown counts for all"
    stands_in = chip.devices.get(known_as(found.devices[0], chip.devices) or next(iter(chip.devices), ""))
    if stands_in is None:
        return "not shown by the tool, and not known to the matrix"
    size = "which is unknown too" if isinstance(stands_in.memory, Unknown) else f"{stands_in.memory:g} GiB"
    return f"not shown by the tool: the matrix's figure of {stands_in.name} is taken, {size}"


def _shown(found: Found) -> str:
    count, size = len(found.devices), f", {found.gib:g} GiB each" if found.gib else ", memory not shown"
    return f"{count} device{'s' if count > 1 else ''}{size}: {', '.join(dict.fromkeys(found.devices))}"


def _paths(what: str, paths: list[str]) -> list[Finding]:
    return [
        Finding(f"{what} {path}", "ok", "there") if Path(path).exists() else Finding(f"{what} {path}", "missing", "not here")
        for path in paths
    ]


def _said(version: object) -> str:
    return f"unknown ({version.unknown})" if isinstance(version, Unknown) else str(version)


def _fitting(house: House, chip: Chip, found: Found | None) -> list[Finding]:
    """Return one finding a cell: whether and how it starts on the devices that are here, and with which image."""
    if chip.devices and (found is None or not found.devices):
        return [Finding("cells", "note", "no device here, so nothing can be said of what fits")]
    device = known_as(found.devices[0], chip.devices) if found and len(set(found.devices)) == 1 else None
    asked = Asked(device=device, memory=found.gib, devices=len(found.devices)) if found else Asked()
    findings = []
    for cell, _ in house.matrix.cells():
        if split_cell(cell)[0] != chip.id:
            continue
        study = house.study(cell, asked)
        plan, wrong = study.plan, study.refusal
        base = (plan.base.image or (plan.base.bootstrap and "made here")) if isinstance(plan.base, Base) else None
        fits = Finding(cell, "ok", f"{_start(study)}; base image: {base or 'not pinned yet'}")
        findings.append(Finding(cell, "note", f"does not start: {wrong.message}") if wrong else fits)
    return findings


def _start(study: Study) -> str:
    """Return how a cell starts: its layout, and whether there is room for all sequences that it is asked for."""
    layout, held = study.plan.parallel, study.memory
    if layout is None:
        return "starts"
    parts = [("TP", layout.tensor_parallel_size), ("PP", layout.pipeline_parallel_size), ("replicas", layout.replicas)]
    said = " × ".join(f"{name} {number}" for name, number in parts if number > 1 or name == "TP")
    if held is None or held.full is None:
        return f"starts on {said} if its memory is enough, which nobody has said"
    room = f"all {held.asked} sequences" if held.full else f"{held.sequences} of {held.asked} sequences"
    return f"starts on {said}, with room for {room} of {held.context} tokens at once"
