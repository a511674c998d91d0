"""What tells the time of operators: a device's own events, its cache emptied before each call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final, Protocol

import torch

ASSUMED: Final = 64 << 20
"""Bytes of a cache whose size the device does not tell."""
LEAST_FLUSH: Final = 256 << 20
"""Bytes that are read before each call at least: long enough that the host has most calls ready before the device asks for them."""


class Clock(Protocol):
    """Tells the time of calls. `name` says how, and goes wherever a figure of it goes; `cache` is the bytes of the last cache.

    `cover` is the seconds that the device is busy emptying its cache once, in which the host gets ahead of it; 0 where nothing is covered.
    """

    name: str
    device: torch.device
    cache: int
    cover: float

    def time(self, calls: Sequence[Callable[[], object]], covers: int = 1) -> list[float]:
        """Make the calls one after the other, each behind so many emptyings of the cache, and return the seconds of each."""

    def issue(self, calls: Sequence[Callable[[], object]], covers: int = 1) -> list[float]:
        """Return the seconds that the host needs for each call, the device at rest but for so many emptyings."""

    def settle(self) -> None:
        """Wait for all that was begun, and give back what memory is free. Raises what the device raises once it is lost."""


class DeviceClock:
    """A clock of device events, through torch's module of the device, so for every device that torch knows.

    The cache is emptied by reading: what is written would have to go back to memory during the call. Events of all calls are looked at
    after the last, so that no call waits for the host.
    """

    def __init__(self, device: torch.device, module: Any, flush: Callable[[], object], cache: int) -> None:
        self.name = f"device events ({device.type})"
        self.device, self.module, self.flush, self.cache, self.cover = device, module, flush, cache, 0.0

    def time(self, calls: Sequence[Callable[[], object]], covers: int = 1) -> list[float]:
        """Return the seconds between an event before and one after each call."""
        pairs = []
        for call in calls:
            for _ in range(covers):
                self.flush()
            begin, end = (self.module.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        self.module.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def issue(self, calls: Sequence[Callable[[], object]], covers: int = 1) -> list[float]:
        """Return the host's seconds of each call, waiting for the device between them: a full queue would hold the host up."""
        found = []
        for call in calls:
            self.module.synchronize()
            for _ in range(covers):
                self.flush()
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
        self.module.synchronize()
        return found

    def settle(self) -> None:
        """Wait for the device, and give back its free memory."""
        self.module.synchronize()
        self.module.empty_cache()


def clock_of(device: torch.device) -> DeviceClock:
    """Return the clock of a device that is here."""
    module = torch.get_device_module(device)
    cache = cache_of(module, device) or ASSUMED
    buffer = torch.zeros(max(2 * cache, LEAST_FLUSH) // 4, dtype=torch.float32, device=device)
    clock = DeviceClock(device, module, buffer.sum, cache)
    clock.time([buffer.sum] * 3)  # the first loads what the next ones find
    clock.cover = median(clock.time([buffer.sum] * 9))
    return clock


def cache_of(module: Any, device: torch.device) -> int:
    """Return the bytes of the device's last cache, 0 where torch does not know them."""
    return int(getattr(module.get_device_properties(device), "L2_cache_size", 0) or 0)
