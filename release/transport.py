"""The way to a host: one ssh connection with the user's own settings, through which engine, served ports and commands are reached."""

from __future__ import annotations

import contextlib
import shlex
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release import processes
from release.errors import EngineError, ReleaseError
from release.guard import Guard
from release.types import LentHost

ALIVE: Final = 5
"""Seconds of silence after which ssh asks whether the host is still there; after three unanswered times it is not."""
PATIENCE: Final = 20.0
"""Seconds that a connection may take to come about, and a small command to answer."""


@dataclass(frozen=True)
class Way:
    """An open connection: `door` is a local socket at which the host's engine answers, `folder` holds it and ssh's own."""

    host: LentHost
    folder: Path
    master: processes.Process

    @property
    def door(self) -> str:
        """The engine's address for clients of this machine."""
        return f"unix://{self.folder}/engine"

    def alive(self) -> bool:
        """Say whether the connection stands."""
        return self.master.poll() is None

    def ssh(self, *words: str) -> list[str]:
        """Return the ssh command line for the open connection; a host that bounds its sessions gets one more connection."""
        return ["ssh", "-S", f"{self.folder}/ssh", *_options(), *words[:-1], *self.host.destination, *words[-1:]]

    def run(self, argv: Sequence[str], *, timeout: float = PATIENCE) -> list[str]:
        """Run a command on the host and return its lines. Raises StageError as `processes.run` does."""
        return processes.run(self.ssh("-T", shlex.join(argv)), timeout=timeout)

    @contextlib.contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """Give a port of this machine that leads to `port` on the host's loopback, for as long as the block lasts."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            here = probe.getsockname()[1]
        line = ["-L", f"127.0.0.1:{here}:127.0.0.1:{port}"]
        self._ask("forward", line)
        try:
            yield here
        finally:
            with contextlib.suppress(ReleaseError):  # a connection that is gone has taken the port with it
                self._ask("cancel", line)

    def _ask(self, what: str, words: Sequence[str]) -> None:
        line = ["ssh", "-S", f"{self.folder}/ssh", "-O", what, *words, *self.host.destination]
        processes.run(line, timeout=PATIENCE)


def _options() -> list[str]:
    """Return what we ask of ssh beside the user's own settings: no questions, and an end to silence."""
    options = {"ServerAliveInterval": ALIVE, "ServerAliveCountMax": 3, "ConnectTimeout": 3 * ALIVE, "BatchMode": "yes"}
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


@contextlib.contextmanager
def reach(name: str, host: LentHost, guard: Guard) -> Iterator[Way]:
    """Open the way to an ssh host, for as long as the block lasts; the guard ends it if we are killed.

    Keys, known hosts and jumps are the user's own ssh configuration's, and ssh may ask for nothing (BatchMode). Docker's own transport
    is used: every connection to `door` becomes `docker system dial-stdio` on the host. Raises EngineError if there is no way.
    """
    if not processes.find("ssh"):
        raise EngineError("ssh is not installed", where=name, next_step="sudo apt-get install openssh-client")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="release-way-")))
        stack.enter_context(guard.watch("folder", str(folder)))
        log = folder / "log"
        line = ["ssh", "-M", "-N", "-T", "-S", str(folder / "ssh"), *_options(), "-o", "ControlPersist=no", *host.destination]
        master = processes.background(line, log=log)
        stack.callback(processes.stop, master, 2.0)
        stack.enter_context(guard.watch("process", str(master.pid)))
        processes.wait_until(lambda: (folder / "ssh").exists() or master.poll() is not None, timeout=PATIENCE + 5)
        if master.poll() is not None or not (folder / "ssh").exists():
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise EngineError(
                f"no connection to {host.docker}: {said[-1] if said else 'it did not answer'}",
                where=name,
                next_step=f"try it by hand: ssh {' '.join(host.destination)} docker version",
            )
        way = Way(host, folder, master)
        stack.enter_context(_door(way))
        yield way


@contextlib.contextmanager
def _door(way: Way) -> Iterator[None]:
    """Listen at the door: each client's own socket becomes the standard input and output of a dial on the host."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{way.folder}/engine")
    listener.listen(64)
    dials: list[processes.Process] = []

    def listen() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                dials[:] = [dial for dial in dials if dial.poll() is None]
                line = way.ssh("-T", "docker system dial-stdio")
                with contextlib.suppress(OSError):
                    dials.append(processes.wired(line, client.fileno(), log=way.folder / "log"))

    thread = threading.Thread(target=listen, name="door", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for dial in dials:
            processes.stop(dial, 1.0)
