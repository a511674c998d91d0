"""The command line as a user starts it: real processes, real engines; for tests only."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CELL: Final = ("--chip", "cpu", "--model", "tiny-qwq")


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit status, what it said on either stream."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Return stdout as JSON."""
        return json.loads(self.out)


def release(
    *words: str, store: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 1200
) -> Answer:
    """Run `release --store STORE words…` to its end."""
    done = subprocess.run(
        _argv(words, store),
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def _argv(words: Sequence[str], store: Path) -> list[str]:
    return [sys.executable, "-m", "release", "--store", str(store), *words]


@dataclass
class Running:
    """A command that is still at it, and the lines that it has said so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, *words: str, store: Path, cwd: Path | None = None) -> Running:
        """Start `release --store STORE words…` in a process group of its own, hearing Ctrl-C as in a terminal.

        What a shell starts in the background has SIGINT ignored, and the tests may run there.
        """
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *_argv(words, store)],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running = cls(process)
        threading.Thread(target=running._read, daemon=True).start()
        return running

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def until(self, ready: Callable[[], bool], timeout: float = 600) -> None:
        """Wait until `ready`, or fail when the command ends or the time is over."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert self.process.poll() is None, "ended by itself:\n" + "\n".join(self.lines)
            assert time.monotonic() < deadline, "it never happened:\n" + "\n".join(self.lines)
            time.sleep(0.05)

    def says(self, pattern: str) -> bool:
        """Say whether a line so far matches."""
        return any(re.search(pattern, line) for line in list(self.lines))

    def kill(self) -> None:
        """End the process, and nothing else, with SIGKILL."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def interrupt(self) -> int:
        """Press Ctrl-C (SIGINT to the whole group) and return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=600)


def done_stages(lines: Sequence[str]) -> list[str]:
    """Return the stages that plain progress lines call done, `cell stage` each."""
    return [" ".join(line.split()[:2]) for line in lines if re.search(r"\sdone\s", line)]
