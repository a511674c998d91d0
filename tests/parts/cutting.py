"""A network that breaks: a relay to a real server that hangs up, once, after so many bytes went one way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BLOCK = 1 << 16


class Relay:
    """Listens on a loopback port, and passes on to `host`; the first connection that has sent (or got) that much is cut, `times` times."""

    def __init__(self, host: str, *, up: int = 0, down: int = 0, times: int = 1) -> None:
        name, _, port = host.rpartition(":")
        self.target, self.limits, self.left = (name, int(port)), {"up": up, "down": down}, times
        self.passed = {"up": 0, "down": 0}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.target)
                for source, sink, way in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass, args=(source, sink, way), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        passed = 0
        with suppress(OSError):
            while block := source.recv(BLOCK):
                passed += len(block)
                with self._lock:
                    cut = bool(self.limits[way]) and passed > self.limits[way] and self.left > 0
                    self.left -= cut
                    self.passed[way] += len(block)
                if cut:
                    break
                sink.sendall(block)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(host: str, *, up: int = 0, down: int = 0, times: int = 1) -> Iterator[Relay]:
    """Run a relay to `host`."""
    relay = Relay(host, up=up, down=down, times=times)
    try:
        yield relay
    finally:
        relay.listener.close()
