"""The hosts of a run: reached when first needed, their devices leased, and one that is at fault left alone for the rest of the run."""

from __future__ import annotations

import contextlib
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from release import processes
from release.canary import provide_canary, send
from release.containers import Engine, engine_at
from release.errors import EngineError, HostError, ReleaseError
from release.guard import Guard
from release.leases import HOLDER, Grant, clear, leased
from release.transport import Way, reach
from release.types import Chip, Hosts, Seat

CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Place:
    """What a server on a host is given: its engine, and the flags of `docker run` that name its lease and its devices."""

    engine: Engine
    flags: tuple[str, ...]
    grant: Grant


class Fleet:
    """Made from `hosts.yaml`, closed at the end of a run. What cannot be cleared up on a host that is gone is tried once more then."""

    def __init__(self, hosts: Hosts, chips: Mapping[str, Chip], guard: Callable[[], Guard], lasts: float | None = None) -> None:
        self.hosts = hosts
        self.chips = chips
        self.faulty: dict[str, str] = {}
        """Hosts that were found at fault, and why."""
        self.left: dict[str, str] = {}
        """Tokens of leases that could not be given back, and the host that each is on. They expire."""
        self._guard, self._lasts = guard, lasts
        self._stack, self._lock = ExitStack(), threading.RLock()
        self._locks = {name: threading.Lock() for name in hosts.hosts}
        self._open: dict[str, tuple[Engine, Way | None, ExitStack]] = {}
        self._lost: dict[str, threading.Event] = {}
        self._known: dict[str, str] = {}
        """Engines by what they call themselves, and the host that each was met as."""

    def engine(self, name: str) -> Engine:
        """Return the engine of a host, reached if this run has not done so. Raises EngineError, and HostError as `_meet` does."""
        return self._reached(name)[0]

    def _reached(self, name: str) -> tuple[Engine, Way | None, ExitStack]:
        with self._locks[name]:
            if name not in self._open:
                host, own = self.hosts.hosts[name], ExitStack()
                try:
                    way = None if host.near else own.enter_context(reach(name, host, self._guard()))
                    reached = ("--host", host.docker)
                    engine = engine_at(way.door if way else host.docker, host.docker, reached, way.forward if way else None)
                    self._meet(name, engine)
                except BaseException:
                    own.close()
                    raise
                self._open[name] = engine, way, own
            return self._open[name]

    def _meet(self, name: str, engine: Engine) -> None:
        """Note which host an engine is. Raises HostError where it was met as another one: what both lend is there once."""
        with self._lock:
            other = self._known.setdefault(engine.identity, name) if engine.identity else name
        if other != name:
            raise HostError(
                f"{other} and {name} are one engine, whose ID is {engine.identity}: what both lend would be lent twice",
                next_step=f"leave one of them out of hosts.yaml; if they are two machines, made of one image, give {name}'s engine an ID "
                "of its own: remove engine-id in its data folder (an older Docker has /etc/docker/key.json), and start it anew",
            )

    @contextlib.contextmanager
    def sit(self, seat: Seat, note: str, say: Callable[[str], None] = lambda text: None) -> Iterator[Place]:
        """Hold the devices of a seat for as long as the block lasts. The guard frees them at once if we are killed, or leave by Ctrl-C."""
        engine, lent = self.engine(seat.host), self.hosts.hosts[seat.host].chips[seat.chip]
        lease = leased(engine, seat.host, seat.chip, lent.ids, seat.devices, note=note, lasts=self._lasts, say=say)
        grant = lease.__enter__()
        self._lost[seat.host] = grant.lost
        flags = ["--label", f"{HOLDER}={grant.token}"]
        flags += ["--env", f"{lent.visible}={','.join(grant.devices)}"] if lent.visible else []
        remove = (engine.cli, *engine.reach, "rm", "--force", *grant.containers)
        try:
            with self._guard().watch("command", *remove):
                yield Place(engine, tuple(flags), grant)
        finally:
            try:
                lease.__exit__(None, None, None)
            except EngineError:
                with self._lock:
                    self.left[grant.token] = seat.host

    def weights(self, name: str, folder: Path, store: Path, mark: str) -> str:
        """Return what a container of a host mounts as the weights in `folder`: a folder of a store it shares, or a volume of its engine.

        The volume is filled through the engine's archive API, once for each `mark`; it is whole when a container has its name.
        """
        host = self.hosts.hosts[name]
        if host.near:
            return str(folder)
        if host.store:
            return str(Path(host.store) / folder.resolve().relative_to(store.resolve()))
        engine, whole = self.engine(name), f"release-weights-{mark[:16]}"
        with self._locks[name]:
            found = next((each for each in engine.labelled("release.weights") if f"/{whole}" in each["Names"]), None)
            if found is None:
                volume = f"{whole}-{uuid4().hex[:8]}"
                labels = {"release.weights": volume}
                filler = engine.claim(volume, provide_canary(engine), labels, {volume: "/model"})
                engine.keep(filler, "/model", packed(folder))
                if engine.rename(filler, whole):
                    return volume
                engine.remove(filler)  # another build was faster
                found = next(each for each in engine.labelled("release.weights") if f"/{whole}" in each["Names"])
        return str(found["Labels"]["release.weights"])

    def run(self, name: str, argv: Iterable[str]) -> list[str]:
        """Run a small command on a host and return its lines. Raises StageError."""
        way = self._reached(name)[1]
        return way.run(list(argv)) if way else processes.run(list(argv), timeout=60)

    def fault(self, seat: Seat) -> str:
        """Say why a host is at fault, after something failed on it: "" where its canary lives, and the cell is to blame."""
        with self._lock:
            if seat.host in self.faulty:
                return self.faulty[seat.host]
        reason = ""
        try:
            engine, way, _ = self._reached(seat.host)
            lost = self._lost.get(seat.host)
            if way is not None and not way.alive():
                reason = "its connection broke"
            elif lost is not None and lost.is_set():
                reason = "a lease on it was lost"
            else:
                host = self.hosts.hosts[seat.host]
                folders = [host.store] if host.store else []
                send(engine, self.chips[seat.chip].container, lambda argv: self.run(seat.host, argv), folders)
        except ReleaseError as problem:
            reason = problem.message
        if reason:
            with self._lock:
                self.faulty[seat.host] = reason
        return reason

    def close(self) -> None:
        """Give back what is still held where that can be done now, over a new connection, and let go of all hosts."""
        for name in {*self.left.values()}:
            self._drop(name)
            with contextlib.suppress(ReleaseError):
                engine = self.engine(name)
                for token in [token for token, host in self.left.items() if host == name]:
                    clear(engine, token)
                    del self.left[token]
        for name in list(self._open):
            self._drop(name)

    def _drop(self, name: str) -> None:
        _, _, own = self._open.pop(name, (None, None, ExitStack()))
        own.close()


def packed(folder: Path) -> Iterator[bytes]:
    """Yield a tar of a folder's files, owned by root and readable by all."""
    for path in sorted(folder.rglob("*")):
        member = tarfile.TarInfo(str(path.relative_to(folder)))
        if path.is_dir():
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            yield member.tobuf()
        elif path.is_file():
            member.size, member.mode = path.stat().st_size, 0o644
            yield member.tobuf()
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
            yield bytes(-member.size % 512)
    yield bytes(1024)
