"""A small process that outlives us and clears up after us: containers, processes and folders of a build that was killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from release import processes


class Guard:
    """Our end of the pipe to the guard. Whatever is under watch when the pipe closes, the guard removes.

    The pipe closes however we end, `kill -9` included. A thing is under watch from `watch` until the block of `watch` ends.
    """

    def __init__(self) -> None:
        self._process = processes.guarded([sys.executable, "-P", "-m", "release.guard"])
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watch(self, kind: str, *words: str) -> Iterator[None]:
        """Keep `kind` ("process", "folder", "command") under watch inside the block.

        A command is the argv that the guard runs, for example `docker rm --force NAME`; a process is its group id, and the name of the
        signal that ends it if that is not SIGTERM.
        """
        line = json.dumps([kind, *words])
        self._say("+" + line)
        try:
            yield
        finally:
            self._say("-" + line)

    def close(self) -> None:
        """End the guard; what is still under watch is removed."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def remove(kind: str, words: Sequence[str]) -> None:
    """Remove one thing that was left behind."""
    if kind == "process":
        with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
            os.killpg(int(words[0]), signal.Signals[words[1]] if words[1:] else signal.SIGTERM)
    elif kind == "folder":
        shutil.rmtree(Path(words[0]), ignore_errors=True)
    elif kind == "command":
        with contextlib.suppress(Exception):
            processes.run(words, timeout=60)


def main() -> None:
    """Listen until the pipe closes, then remove what is left, the newest first."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    left: list[str] = []
    for text in sys.stdin:
        line = text.rstrip("\n")
        if line.startswith("+"):
            left.append(line[1:])
        elif line[1:] in left:
            left.remove(line[1:])
    for line in reversed(left):
        kind, *words = json.loads(line)
        remove(kind, words)


if __name__ == "__main__":
    main()
