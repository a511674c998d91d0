"""Ports of the loopback at which nobody listens now. Whoever wants one soon takes it soon: others look for some, too."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Final

from release.errors import ServingError

HERE: Final = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return so many free ports, each another."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HERE, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port(port: int = 0) -> int:
    """Return `port` (or any free one for 0). Raises ServingError when it is taken."""
    if not port:
        return free_ports(1)[0]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was there a minute ago is no obstacle
        try:
            probe.bind((HERE, port))
        except OSError as problem:
            raise ServingError(f"port {port} on {HERE} is taken", next_step="give another one with --port") from problem
    return port
