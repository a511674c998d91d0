"""Who may use which device of a host: leases that stand on the host's own engine, so that builds of different machines cannot collide.

A lease is a container that is never started: of two who create one of the same name, the engine lets one succeed. Inside lies when it
expires, by the clock of the host, and its holder puts that off while he lives. It is taken from him when it has expired, by its id: a
newer one of the same name stays. Builds of one machine keep one another out by file locks too, which the kernel frees however they end.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import io
import json
import os
import platform
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from release.canary import provide_canary
from release.containers import Engine
from release.errors import EngineError, StoreError

LASTS: Final = 60.0
"""Seconds after which a lease that nobody puts off has expired."""
POLL: Final = 2.0
"""Seconds between two looks at devices that others hold."""
PATIENCE: Final = 3600.0
"""Seconds that a build waits for devices that others hold."""
LABEL: Final = "release.lease"
"""On a lease the device, `chip/id`; on what its holder started, the lease's token in `release.held-by`."""
HOLDER: Final = "release.held-by"
FILE: Final = "/lease.json"


@dataclass(frozen=True)
class Lease:
    """A lease as it stands on a host: whose, on which device, for what, and for how many seconds still (less than 0: it has expired)."""

    container: str
    device: str
    owner: str
    token: str
    note: str
    left: float

    @property
    def expired(self) -> bool:
        """Whether it may be taken from its owner."""
        return self.left < 0


@dataclass(frozen=True)
class Grant:
    """Devices that we hold: their ids, and the word by which everything that is started on them is known. `lost` is set if they are taken.

    `containers` are the leases themselves: whoever removes them frees the devices.
    """

    devices: tuple[str, ...]
    token: str
    lost: threading.Event
    containers: tuple[str, ...] = ()


def myself() -> str:
    """Return who holds the leases of this machine's builds: user and machine."""
    return f"{getpass.getuser()}@{platform.node()}"


def leases(engine: Engine) -> list[Lease]:
    """Return the leases that stand on an engine, by device."""
    now = _now(engine)
    found = (_read(engine, facts, now) for facts in engine.labelled(LABEL))
    return sorted(filter(None, found), key=lambda lease: lease.device)


def dead(engine: Engine, host: str) -> list[Lease]:
    """Return our own machine's leases whose build is gone: nobody here holds their lock. Of other machines', only time can tell."""
    found = []
    for lease in leases(engine):
        if lease.owner == myself():
            with ExitStack() as stack:
                if _locked_here(stack, engine.identity or host, lease.device):
                    found.append(lease)
    return found


def clear(engine: Engine, token: str) -> None:
    """Remove all that was started under a lease, then the lease."""
    for label in (HOLDER, "release.token"):
        for facts in engine.labelled(f"{label}={token}"):
            engine.remove(facts["Id"])


@contextlib.contextmanager
def leased(
    engine: Engine,
    host: str,
    chip: str,
    ids: Sequence[str],
    count: int,
    *,
    note: str,
    lasts: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Grant]:
    """Hold `count` of a host's devices `ids` for as long as the block lasts; wait for them, and say whom for.

    A lease that cannot be put off until it expires, or that somebody else took, is lost: what was started under it is removed. Raises
    EngineError where others keep the devices for longer than `PATIENCE`.
    """
    lasts, token, lost, end = lasts or LASTS, uuid4().hex, threading.Event(), threading.Event()
    with ExitStack() as stack:
        held = _wait(stack, engine, host, [f"{chip}/{name}" for name in ids], count, token, note, lasts, say)
        thread = threading.Thread(target=_beat, args=(engine, held, token, lasts, lost, end), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield Grant(tuple(device.partition("/")[2] for device in held), token, lost, tuple(held.values()))
        finally:
            end.set()
            clear(engine, token)
            thread.join(5)


def _wait(
    stack: ExitStack,
    engine: Engine,
    host: str,
    devices: Sequence[str],
    count: int,
    token: str,
    note: str,
    lasts: float,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Return device: container of `count` leases, all at once or none."""
    began = time.monotonic()
    image = provide_canary(engine)
    while True:
        held: dict[str, str] = {}
        with ExitStack() as locks:
            for device in devices:
                free = len(held) < count and _locked_here(locks, engine.identity or host, device)
                if free and (container := _take(engine, image, device, token, note, lasts)):
                    held[device] = container
            if len(held) == count:
                stack.push(locks.pop_all())
                return held
            if held:
                clear(engine, token)
        owners = ", ".join(sorted({lease.owner for lease in leases(engine)})) or "another build here"
        if time.monotonic() - began > PATIENCE:
            raise EngineError(f"{count} devices of {host} are not free: {owners}", next_step="release hosts leases")
        say(f"waiting for {count} devices of {host}, held by {owners}")
        time.sleep(POLL)


def _take(engine: Engine, image: str, device: str, token: str, note: str, lasts: float) -> str:
    """Return the container of a new lease; "" where somebody holds the device. What an expired one left behind is removed first."""
    labels = {LABEL: device, "release.token": token, "release.owner": myself(), "release.note": note}
    name = f"release-lease-{device.replace('/', '-')}"
    container = engine.claim(name, image, labels)
    if not container:
        for lease in leases(engine):
            if lease.device == device and lease.expired:
                clear(engine, lease.token)
                container = engine.claim(name, image, labels)
    if container:
        _put_off(engine, container, lasts)
    return container


def _beat(engine: Engine, held: dict[str, str], token: str, lasts: float, lost: threading.Event, end: threading.Event) -> None:
    """Put the leases off until the end; set `lost` when one is gone, or could not be put off before it expired."""
    until = time.monotonic() + lasts
    while not end.wait(lasts / 4):
        try:
            standing = {facts["Id"] for facts in engine.labelled(f"release.token={token}")}
            if not standing.issuperset(held.values()):
                break
            for container in held.values():
                _put_off(engine, container, lasts)
            until = time.monotonic() + lasts
        except EngineError:
            if time.monotonic() > until:
                break
    else:
        return
    lost.set()
    with contextlib.suppress(EngineError):
        clear(engine, token)


def _put_off(engine: Engine, container: str, lasts: float) -> None:
    data = json.dumps({"expires": _now(engine) + lasts}).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(FILE.lstrip("/"))
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    engine.keep(container, "/", [stream.getvalue()])


def _read(engine: Engine, facts: dict[str, Any], now: float) -> Lease | None:
    """Return the lease that a container is; None where it went in the meantime. One without a readable time in it has its first span."""
    expires = float(facts["Created"]) + LASTS
    try:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            expires = float(json.loads(engine.kept(facts["Id"], FILE) or b"")["expires"])
    except EngineError:
        return None
    labels = facts["Labels"]
    words = [str(labels.get(f"release.{name}", "unknown")) for name in ("owner", "token", "note")]
    return Lease(facts["Id"], str(labels[LABEL]), words[0], words[1], words[2], expires - now)


def _now(engine: Engine) -> float:
    """Return the time of the engine's host in seconds: all who look at a lease have one clock."""
    return clock_of(engine.facts())


def clock_of(facts: dict[str, Any]) -> float:
    """Return the SystemTime of an engine's facts in seconds. Raises EngineError for what is none."""
    text = str(facts.get("SystemTime", ""))
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as problem:
        raise EngineError(f"the engine's clock shows {text!r}") from problem


def _locked_here(stack: ExitStack, engine: str, device: str) -> bool:
    """Hold the file lock of a device until the stack closes; False where another build of this machine holds it.

    It goes by what the engine calls itself, where it does: a host may have two names.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "release" / "leases" / re.sub(r"[^\w.-]", "-", f"{engine}-{device}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = stack.enter_context(path.open("a"))
    except OSError as problem:
        raise StoreError(
            f"{path} cannot be used: {problem.strerror}", next_step="set XDG_CACHE_HOME to a folder of yours"
        ) from problem
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
