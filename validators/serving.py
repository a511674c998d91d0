"""A release being served: started with the card's own command, watched until it is healthy, stopped without a trace."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import requests

from release.containers import Engine
from release.errors import ServingError
from release.failures import ERROR
from release.guard import Guard
from release.ports import free_port

POLL: Final = 0.25
LAST_LINES: Final = 20
FIRST_ERRORS: Final = 3
REACH: Final = 400
"""Lines from the end in which errors are looked for: what a server that has served for hours refused in its youth did not end it."""


@dataclass(frozen=True)
class Server:
    """A healthy server: where it listens, the command that started it, and how long it took to become healthy in seconds."""

    url: str
    container: str
    command: tuple[str, ...]
    ready_after: float
    engine: Engine

    def log(self) -> str:
        """Return all that the server wrote so far."""
        return self.engine.logs(self.container)

    def last_words(self, patience: float = 0.0) -> str:
        """Return all that the server wrote, if it has ended or does within `patience` seconds; nothing while it runs, or where nobody can say
        any more. An engine of several processes answers 500 for some seconds before the last of them ends.
        """
        deadline = time.monotonic() + patience
        try:
            while self.engine.running(self.container)[0]:
                if time.monotonic() >= deadline:
                    return ""
                time.sleep(POLL)
            return self.log()
        except Exception:  # whatever is wrong with the engine by now must not stand before what failed
            return ""


def start(
    engine: Engine,
    guard: Guard,
    stack: ExitStack,
    command: Callable[[str, Sequence[str]], list[str]],
    *,
    health: str,
    within: float,
    port: int,
    on_host: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Server:
    """Start a container and return it once `health` answers 200; `stack` stops and removes it.

    With `on_host` it listens on the host's own network, at `port`; else at a free port of ours, or of the engine's machine, from which a
    port of ours leads there. `command(publish, extra)` gives the
    `docker run` line for a published address and extra flags. Raises ServingError with the last lines of the server's log as soon as
    the container ends, or after `within` seconds.
    """
    name = f"release-{uuid4().hex[:12]}"
    host_port = free_port(port if on_host else 0) if engine.forward is None else 0
    publish = f"127.0.0.1:{host_port or ''}:{port}"  # another machine's engine chooses the port itself
    line = command(publish, ("--detach", "--name", name))  # and not --rm: its log must outlive it
    stack.enter_context(guard.watch("command", engine.cli, *engine.reach, "rm", "--force", "--volumes", name))
    stack.callback(engine.remove, name)
    began = time.monotonic()
    engine.start(line)
    if engine.forward is not None:
        host_port = stack.enter_context(engine.forward(port if on_host else engine.published(name, port)))
    url = f"http://127.0.0.1:{host_port}"
    with requests.Session() as session:
        session.trust_env = False
        while True:
            runs, status = engine.running(name)
            if not runs:
                raise ServingError(
                    f"the server ended with status {status} before it was healthy", next_step=tail(engine.logs(name))
                )
            try:
                if session.get(url + health, timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                pass
            waited = time.monotonic() - began
            if waited > within:
                raise ServingError(f"the server was not healthy after {within:.0f} s", next_step=tail(engine.logs(name)))
            say(f"waiting for {health}, {waited:.0f} s")
            time.sleep(POLL)
    return Server(url, name, tuple(line), round(time.monotonic() - began, 2), engine)


def tail(log: str) -> str:
    """Return the end of a log, and before it the errors that an engine of several processes has told not far above, each once."""
    lines = [line for line in log.splitlines() if line.strip()]
    if not lines:
        return "its log is empty"
    last = lines[-LAST_LINES:]
    told = dict.fromkeys(match[0] for line in lines[-REACH:-LAST_LINES] if (match := re.search(ERROR, line)))
    above = [text for text in told if not any(text in line for line in last)][:FIRST_ERRORS]
    return "\n".join([*(f"it said: {text}" for text in above), "the last lines of its log:", *last])
