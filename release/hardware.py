"""What the host's own tool says of its devices: driver, how many, how much memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from release import processes
from release.errors import ReleaseError
from release.types import Tool

LIMIT: Final = 1 << 20
"""Characters of a tool's answer that are looked at."""
PATIENCE: Final = 20


@dataclass(frozen=True)
class Found:
    """What a tool printed: the driver's version, the devices by the name that it gives them, and the memory of each in MiB."""

    tool: str
    driver: str | None
    devices: tuple[str, ...]
    memory: tuple[int, ...]

    @property
    def gib(self) -> float | None:
        """Memory of the smallest device in GiB."""
        return round(min(self.memory) / 1024, 1) if self.memory else None


def probe(tool: Tool) -> Found | None:
    """Return what the tool of a chip says on this host; None where there is no such tool, or it fails."""
    if not processes.find(tool.command[0]):
        return None
    try:
        text = "\n".join(processes.run(list(tool.command), timeout=PATIENCE))[:LIMIT]
    except ReleaseError:
        return None
    return read(tool, text)


def read(tool: Tool, text: str) -> Found:
    """Return what the tool's expressions find in what it printed."""
    drivers, devices, memory = (
        re.findall(pattern, text) if pattern else [] for pattern in (tool.driver, tool.device, tool.memory)
    )
    sizes = tuple(int(float(size)) for size in memory if re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(size)))
    return Found(tool.command[0], str(drivers[0]) if drivers else None, tuple(map(str, devices)), sizes)


def older(version: str, least: str) -> bool:
    """Say whether a version is older than another, number by number: 6.2.15 is older than 6.10."""

    def parts(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)]

    return parts(version) < parts(least)
