"""The one place that starts processes: run to the end with a log, or in the background until told to stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from release.errors import StageError

TAIL: Final = 15
"""Lines of output that an error quotes."""
Process = subprocess.Popen[str]
"""A command that was started in the background."""
FULL: Final = "No space left on device"


def find(program: str) -> str | None:
    """Return the path of `program`, also where only root's PATH has it, or None."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    stdin: str = "",
    log: Path | None = None,
    timeout: float | None = None,
) -> list[str]:
    """Run a command to its end and return its output lines, stdout and stderr together.

    `env` is added to our own environment. `on_line` hears each line as it comes; `log` gets all of them. The process gets SIGTERM
    when we die, however we die, and its group when `timeout` seconds are over. Raises StageError with the last lines when the
    command cannot be started or ends with another status than 0.
    """
    lines: list[str] = []
    with _started(argv, env, cwd, log) as process:
        assert process.stdin is not None and process.stdout is not None
        timer = _deadline(process, timeout)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        with open(log or os.devnull, "a", encoding="utf-8") as copy:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                copy.write(line)
                if on_line:
                    on_line(lines[-1])
        status = process.wait()
        if timer.cancel_and_say_whether_it_fired():
            raise StageError(f"{_name(argv)} was stopped after {timeout:.0f} s", next_step=_last(lines))
    if status and any(FULL in line for line in lines):
        raise StageError(
            f"{_name(argv)}: no space left on the disk", next_step="free some space; `release doctor` shows what is needed"
        )
    if status:
        raise StageError(f"{_name(argv)} ended with status {status}", next_step=_last(lines))
    return lines


def background(argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path) -> subprocess.Popen[str]:
    """Start a command in a session of its own, its output going to `log`, and return it. Stop it with `stop`, and have it guarded."""
    with log.open("a") as output:
        return subprocess.Popen(
            list(argv),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            text=True,
        )


def wired(argv: Sequence[str], wire: int, *, log: Path) -> subprocess.Popen[str]:
    """Start a command that reads from and writes to the file descriptor `wire`, its complaints going to `log`."""
    with log.open("a") as complaints:
        return subprocess.Popen(list(argv), stdin=wire, stdout=wire, stderr=complaints, start_new_session=True, text=True)


def guarded(argv: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command that listens on its standard input, in a session of its own that outlives ours by design."""
    return subprocess.Popen(
        list(argv), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, text=True
    )


def replace_with(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Become another program (execvp): its exit status is ours, signals reach it directly."""
    os.execvpe(argv[0], list(argv), {**os.environ, **(env or {})})


def stop(process: subprocess.Popen[str], grace: float = 10.0) -> None:
    """End a process group: SIGTERM, then SIGKILL after `grace` seconds."""
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue


class _Deadline:
    """A timer that ends a process group, and remembers that it did."""

    def __init__(self, process: subprocess.Popen[str], timeout: float | None) -> None:
        import threading

        self.fired = False
        self._timer = threading.Timer(timeout, self._fire, [process]) if timeout else None
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def _fire(self, process: subprocess.Popen[str]) -> None:
        self.fired = True
        stop(process, grace=2.0)

    def cancel_and_say_whether_it_fired(self) -> bool:
        if self._timer:
            self._timer.cancel()
        return self.fired


def _deadline(process: subprocess.Popen[str], timeout: float | None) -> _Deadline:
    return _Deadline(process, timeout)


@contextlib.contextmanager
def _started(
    argv: Sequence[str], env: Mapping[str, str] | None, cwd: Path | None, log: Path | None
) -> Iterator[subprocess.Popen[str]]:
    if log:
        with log.open("a", encoding="utf-8") as copy:
            copy.write("$ " + " ".join(argv) + "\n")
    try:
        process = subprocess.Popen(
            [*tied(), *argv],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as problem:
        raise StageError(f"{_name(argv)} cannot be started: {problem.strerror or problem}") from problem
    try:
        yield process
    finally:
        if process.poll() is None:
            stop(process, grace=2.0)
        if process.stdout:
            process.stdout.close()


def tied() -> list[str]:
    """Return the words in front of a command that tie its life to the thread that waits for it: SIGTERM when that is gone."""
    program = find("setpriv")
    return [program, "--pdeathsig", "TERM", "--"] if program else []


def _name(argv: Sequence[str]) -> str:
    program = Path(argv[0]).name
    if "-m" in argv[1:3]:
        return argv[argv.index("-m") + 1]
    return program


def _last(lines: Sequence[str]) -> str:
    return "its last lines:\n" + "\n".join(deque((line for line in lines if line.strip()), maxlen=TAIL))


def wait_until(ready: Callable[[], bool], *, timeout: float, every: float = 0.1) -> bool:
    """Poll `ready` until it is true or `timeout` seconds are over; return whether it became true."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
