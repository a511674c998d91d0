"""What the host's own tool says of its devices: driver, how many, how much memory."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from release import processes
from release.errors import ReleaseError
from release.types import Device, Tool

LIMIT: Final = 1 << 20
"""Characters of a tool's answer that are looked at."""
PATIENCE: Final = 20


@dataclass(frozen=True)
class Found:
    """What a tool printed: the driver's version, the devices by the name that it gives them, and the memory of each in MiB.

    `problem` says why it printed nothing that could be read.
    """

    tool: str
    driver: str | None
    devices: tuple[str, ...]
    memory: tuple[int, ...]
    problem: str = ""

    @property
    def gib(self) -> float | None:
        """Memory of the smallest device in GiB."""
        return round(min(self.memory) / 1024, 1) if self.memory else None


def probe(tool: Tool) -> Found | None:
    """Return what the tool of a chip says on this host, or what is wrong with it; None where there is no such tool."""
    if not processes.find(tool.command[0]):
        return None
    began = time.monotonic()
    try:
        text = "\n".join(processes.run(list(tool.command), timeout=PATIENCE))[:LIMIT]
    except ReleaseError as problem:
        late = time.monotonic() - began >= PATIENCE
        said = f"did not answer within {PATIENCE:g} s" if late else f"failed: {problem.message}"
        return Found(tool.command[0], None, (), (), said)
    return read(tool, text)


def read(tool: Tool, text: str) -> Found:
    """Return what the tool's expressions find in what it printed."""
    drivers, devices, memory = (
        re.findall(pattern, text) if pattern else [] for pattern in (tool.driver, tool.device, tool.memory)
    )
    sizes = tuple(int(float(size)) for size in memory if re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(size)))
    return Found(tool.command[0], str(drivers[0]) if drivers else None, tuple(map(str, devices)), sizes)


def known_as(shown: str, devices: Mapping[str, Device]) -> str | None:
    """Return the id of the device of a chip that a tool means, or None where it shows one that the chip does not name.

    Names are compared as sets of words: all words of an id are in what is shown, or all that is shown is in the device's name.
    """
    words = _words(shown)
    fitting = [name for name, device in devices.items() if _words(name) <= words or words <= _words(device.name)]
    return max(fitting, key=lambda name: len(_words(name) & words), default=None) if words else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def older(version: str, least: str) -> bool:
    """Say whether a version is older than another, number by number: 6.2.15 is older than 6.10."""

    def parts(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)]

    return parts(version) < parts(least)
