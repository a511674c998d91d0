"""What the stages of one run share: the container engine, the servers they talk to, and the guard that clears up after all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from release.errors import EngineError
from release.guard import Guard

if TYPE_CHECKING:
    from release.containers import Engine
    from release.fleet import Fleet
    from release.types import Chip, Hosts, Seat
    from release.validators.serving import Server


class Session:
    """Made at the start of a run, closed at its end. Everything in it comes into being when it is first asked for.

    `engine_kind` is "auto", "docker" or "podman"; `use_build_cache` lets the engine reuse its own layers. `patch_key` is the file of the
    private key for encrypted patches (None: the environment's); with `offline`, repositories and wheels come from the store alone.
    `hosts` are those that servers may be on, with the chips that they lend.
    """

    def __init__(
        self,
        engine_kind: str = "auto",
        *,
        use_build_cache: bool = True,
        patch_key: Path | None = None,
        offline: bool = False,
        hosts: tuple[Hosts, Mapping[str, Chip]] | None = None,
    ) -> None:
        self.engine_kind = engine_kind
        self.use_build_cache = use_build_cache
        self.patch_key = patch_key
        self.offline = offline
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._guard: Guard | None = None
        self._servers: dict[str, tuple[Server, ExitStack]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._seats: dict[str, Seat] = {}
        self.fleet: Fleet | None = None
        if hosts is not None:
            from release.fleet import Fleet

            self.fleet = Fleet(*hosts, lambda: self.guard)

    @property
    def guard(self) -> Guard:
        """The guard of this run."""
        with self._lock:
            if self._guard is None:
                self._guard = Guard()
            return self._guard

    @property
    def engine(self) -> Engine:
        """The container engine of this run."""
        with self._lock:
            if self._engine is None:
                from release.containers import connect

                self._engine = self._stack.enter_context(connect(self.engine_kind))
            return self._engine

    def seat(self, key: str, seat: Seat) -> None:
        """Say on which host the server under `key` is to be when it is started next."""
        self._seats[key] = seat

    def seat_of(self, key: str) -> Seat | None:
        """Return where the server under `key` is to be; None for this machine."""
        return self._seats.get(key)

    def look(self, key: str, path: str) -> str:
        """Return a small text file of the machine that the server under `key` is on."""
        seat = self.seat_of(key)
        if seat is None or self.fleet is None:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        return "\n".join(self.fleet.run(seat.host, ["cat", path]))

    def once(self, key: str) -> threading.Lock:
        """Return the lock of a key: what two stages would do at once to one thing, one does and the other finds done."""
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())

    def server(self, key: str, start: Callable[[ExitStack], Server]) -> Server:
        """Return the running server under `key`; the first to ask starts it, and the session stops it at its end."""
        with self.once(key):
            if key not in self._servers:
                own = ExitStack()
                try:
                    server = start(own)
                except BaseException:
                    own.close()
                    raise
                self._servers[key] = server, own
            return self._servers[key][0]

    def last_words(self, key: str, patience: float) -> str:
        """Return all that the server under `key` wrote, if it was started here and has ended, or does within so many seconds."""
        server, _ = self._servers.get(key, (None, None))
        return server.last_words(patience) if server is not None else ""

    def stop(self, key: str) -> None:
        """Stop the server under `key`, if there is one; who asks for it later starts it again."""
        with self.once(key):
            _, own = self._servers.pop(key, (None, None))
            if own is not None:
                try:
                    own.close()
                except EngineError:
                    if key not in self._seats:  # a host that is gone: its leases' token finds what is left there
                        raise

    def close(self) -> None:
        """Stop the servers, let go of the engine, end the guard."""
        with ExitStack() as stack:
            stack.push(self._stack)
            if self.fleet is not None:
                stack.callback(self.fleet.close)
            for key in list(self._servers):
                stack.callback(self.stop, key)
        if self._guard is not None:
            self._guard.close()

    def abandon(self) -> None:
        """Leave everything to the guard, and wait until it has cleared up. For Ctrl-C, when stages still run."""
        if self._guard is not None:
            self._guard.close()
