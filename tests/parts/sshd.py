"""Hosts of a test: loopback addresses with an sshd each, all settings in the test's own folder; they die, stall and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

SSHD = "/usr/sbin/sshd"


def client(root: Path) -> Path:
    """Make keys and an `ssh` that reads the test's own configuration and nothing of the user's; return the folder to put on PATH."""
    for name in ("key", "host-key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)], check=True)
    (root / "config").write_text(
        f"Host *\n  IdentityFile {root}/key\n  IdentitiesOnly yes\n  UserKnownHostsFile {root}/known\n  GlobalKnownHostsFile none\n"
    )
    (root / "bin").mkdir()
    program = root / "bin" / "ssh"
    program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {root}/config "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return root / "bin"


@dataclass
class Sshd:
    """An sshd at an address of the loopback; `known` false keeps its key out of the client's known hosts."""

    root: Path
    address: str
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    seen: list[int] = field(default_factory=list)

    def start(self, *, known: bool = True) -> None:
        """Listen, at the same port as before if there was one."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind((self.address, 0))
                self.port = int(probe.getsockname()[1])
        Path("/run/sshd").mkdir(exist_ok=True)
        public = (self.root / "host-key.pub").read_text().split()[:2]
        if known:
            with (self.root / "known").open("a") as names:
                names.write(f"[{self.address}]:{self.port} {' '.join(public)}\n")
        words = (
            "UsePAM=no",
            "StrictModes=no",
            "PasswordAuthentication=no",
            f"AuthorizedKeysFile={self.root}/key.pub",
            "PidFile=none",
        )
        options = [word for option in words for word in ("-o", option)]
        line = [
            SSHD,
            "-D",
            "-f",
            "/dev/null",
            "-p",
            str(self.port),
            "-h",
            str(self.root / "host-key"),
            "-E",
            str(self.root / "sshd.log"),
        ]
        self.process = subprocess.Popen([*line, "-o", f"ListenAddress={self.address}", *options], start_new_session=True)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.root / "sshd.log").read_text()
                time.sleep(0.05)

    def tree(self) -> list[int]:
        """Return the sshd and all that it started, its own first."""
        assert self.process is not None
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def send(self, sign: signal.Signals) -> None:
        """Send a signal to the whole host: sshd, its sessions, and what they run."""
        self.seen = self.tree()
        for pid in self.seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)

    def end(self) -> None:
        """Wake the host if it stalls, and end it."""
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None
