"""Stages on the machines of a Ray cluster: what can work anywhere is sent there, what needs this machine stays. Ray is an extra.

The scheduler is still ours: it says when a stage starts, Ray says where. A stage is one Ray task, and does on its machine what it would do
here, in the same store, under the same lock. So all machines have to see the store's folder, at the same path and with its locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from release import __version__
from release.errors import HostError, ReleaseError, StageError, StoreError, UsageError
from release.node import QUIET, SETTINGS, alone
from release.pipeline import Graph, Run, Task, is_had
from release.progress import Line, Progress
from release.schedule import MOVES
from release.session import Session
from release.store import Store

if TYPE_CHECKING:
    from release.matrix.load import Matrix

BEAT: Final = 0.25
"""Seconds between two looks at how far a stage is."""
PATIENCE: Final = 60.0
"""Seconds that stages which were cancelled get to notice it."""
DEVICE, CHIP = "device:", "chip:"
"""What a resource of ours is called, and the custom resource that a machine of the cluster has for it (`ray start --resources`)."""


class State(NamedTuple):
    """What the line of a stage shows: the words and numbers of `Line`."""

    state: str
    text: str
    unit: str
    total: int | None
    reached: int

    @classmethod
    def of(cls, line: Line) -> State:
        """Return what a line shows."""
        return cls(line.state, line.text, line.unit, line.total, line.count)

    def show(self, line: Line) -> None:
        """Make a line show it."""
        if self.state == "running" and line.state != "running":
            line.start()
        line.text, line.unit, line.total, line.count = self.text, self.unit, self.total, self.reached
        if self.state in ("done", "cached", "failed"):
            line.state = self.state
            line.progress.changed(line)
        else:
            line.progress.moved(line)


@dataclass(frozen=True)
class Order:
    """All that a machine is told of a task. What a session holds (keys, engine, servers) stays where it is."""

    task: Task
    matrix: Matrix
    store: Path
    offline: bool
    version: str = __version__


class _Mute:
    """A progress that keeps its one line, and shows nothing."""

    def __init__(self) -> None:
        self.kept: Line | None = None

    def line(self, cell: str, stage: str) -> Line:
        self.kept = Line(cast(Progress, self), cell, stage)
        return self.kept

    def changed(self, line: Line) -> None: ...
    def moved(self, line: Line) -> None: ...
    def close(self) -> None: ...


def labour(order: Order) -> Iterator[State | bool]:
    """Bring a task's result into the store, on a machine of the cluster: yield how far it is, and at last whether it had to run."""
    if order.version != __version__:
        raise StageError(f"a machine of the cluster has release {__version__}, and this is {order.version}")
    if not order.store.is_dir():
        raise StoreError(
            f"a machine of the cluster does not see the store {order.store}",
            next_step="name a folder that all of them have under the same path with --store",
        )
    mute, session, last = _Mute(), Session(offline=order.offline), None
    run = Run(Graph({}, {}), order.matrix, Store(order.store), session, cast(Progress, mute))
    with contextlib.closing(session), ThreadPoolExecutor(1) as pool:
        future = pool.submit(run.perform, order.task)
        while True:
            wait([future], timeout=BEAT)
            over = future.done()
            if mute.kept is not None and (state := State.of(mute.kept)) != last:
                last = state
                yield state
            if over:
                break
        yield future.result()


@dataclass(frozen=True)
class Spread(Run):
    """A run that sends stages to a cluster. Sources and the container engine are here, and servers where hosts.yaml says: those stay."""

    cluster: Cluster = field(kw_only=True)

    def perform(self, task: Task, host: str = "") -> bool:
        """Bring one task's result into the store; say whether it had to run. A stage whose machine is lost goes to another one."""
        if not self.ships(task):
            with self.cluster.desk:
                return super().perform(task, host)
        line = self.progress.line(task.cell, task.stage.name)
        if is_had(self.store, task):
            line.cached(str(self.store.facts(task.key).get("summary", "")))
            return False
        for key in task.needs.values():
            self.store.bring(key)
        ran = self._sent(Order(task, self.matrix, self.store.path, self.session.offline), line)
        if not self.store.has(task.key):
            raise StoreError(
                f"a machine of the cluster has another store under {self.store.path}",
                where=f"{task.cell}: {task.stage.name}",
                next_step="name a folder that all of them share with --store",
            )
        self.store.share(task.key)
        return ran

    def ships(self, task: Task) -> bool:
        """Say whether a task can work on another machine."""
        stays = task.server or task.stage.here or task.stage.local
        return not stays and not any(self.graph.tasks[key].stage.local for key in task.needs.values())

    def abandon(self) -> None:
        """Cancel what works on the cluster, then leave the rest to the guard."""
        self.cluster.close()
        super().abandon()

    def _sent(self, order: Order, line: Line) -> bool:
        """Have the cluster do a task, once more at most `MOVES` times where its machine is lost. Raises what the stage raised."""
        where = f"{order.task.cell}: {order.task.stage.name}"
        for attempt in range(MOVES + 1):
            try:
                return self.cluster.follow(order, line)
            except self.cluster.losses as problem:
                reason = f"its machine was lost ({type(problem).__name__})"
                if attempt == MOVES or self.cluster.closed:
                    line.failed(reason)
                    raise HostError(reason, where=where, next_step="look at the machines with `ray status`") from problem
                self.moved.append(f"{where}: {reason}")
                line.note(f"{reason}, it goes to another one")
            except StageError as problem:
                line.failed(problem.message)
                raise
        raise AssertionError("the last attempt returns or raises")


class Cluster:
    """A cluster that this process is connected to; `close` ends what it does there, and the cluster itself if it was started here."""

    def __init__(self, ray: Any, own: ExitStack) -> None:
        self.ray, self._own = ray, own
        self.desk = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
        """Places for the stages that stay on this machine."""
        wrong = ray.exceptions
        self.losses: tuple[type[Exception], ...] = (
            *(wrong.NodeDiedError, wrong.WorkerCrashedError, wrong.OwnerDiedError, wrong.LocalRayletDiedError),
            *(wrong.ObjectLostError, wrong.TaskUnschedulableError, wrong.OutOfMemoryError),
        )
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._streams: set[Any] = set()

    @classmethod
    def join(cls, address: str | None = None, slots: int | None = None) -> Cluster:
        """Connect to the cluster at HOST:PORT (or "auto": the one that this machine is in), or start one of `slots` workers here.

        Raises UsageError without Ray, for what is no address and for a cluster that lets in whoever comes (unless RAY_AUTH_MODE=disabled
        says that this is known), HostError where no cluster answers. A cluster that asks for none hides that from who has a token.
        """
        if address is not None and address != "auto" and not re.fullmatch(r"[\w.\-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
            raise UsageError(
                f"{address} is no address of a cluster",
                next_step="write HOST:PORT as `ray start --head` prints it, or auto; and run release on a machine of the cluster",
            )
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}  # `ray start` would write one into the home
        os.environ.update(SETTINGS | secret if address is None else QUIET)
        if find_spec("ray") is None:
            raise UsageError("--executor ray needs Ray", next_step="pip install 'release[ray]'")
        handler, own = signal.getsignal(signal.SIGTERM), ExitStack()
        try:
            place = own.enter_context(alone(slots or max(2, os.cpu_count() or 2))) if address is None else address
            import ray

            own.callback(ray.shutdown)
            ray.init(place, log_to_driver=False, logging_level=logging.ERROR)
            if "RAY_AUTH_MODE" not in os.environ:
                raise UsageError(
                    f"the Ray cluster at {address} asks for no token: whoever reaches it may run code on its machines",
                    next_step="start it and release with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes one); "
                    "or say RAY_AUTH_MODE=disabled, if only you can reach it",
                )
            return cls(ray, own)
        except BaseException as problem:
            own.close()
            if isinstance(problem, ReleaseError) or not isinstance(problem, Exception):
                raise
            raise HostError(  # Ray has no class of its own for what can go wrong here
                f"no Ray cluster can be used at {address or 'this machine'}: {(str(problem) or type(problem).__name__).splitlines()[0]}",
                next_step="`ray start --head` starts one; run release on a machine of it, with RAY_AUTH_MODE=token if it asks for a token",
            ) from problem
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which would end us with no clearing up

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Say whether nothing more is sent."""
        return self._closed.is_set()

    @property
    def slots(self) -> int:
        """How many stages may work at once: the processors that the machines offer."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def run(self, graph: Graph, matrix: Matrix, store: Store, session: Session, progress: Progress) -> Spread:
        """Return a run over this cluster."""
        return Spread(graph, matrix, store, session, progress, cluster=self)

    def follow(self, order: Order, line: Line) -> bool:
        """Send a task, show on `line` how far it is, and say whether it had to run. Raises what it raised, or one of `losses`."""
        chips = {CHIP + name.removeprefix(DEVICE): count for name, count in order.task.uses.items() if name.startswith(DEVICE)}
        # Ray's own retries would not tell us, and would begin again after a Ctrl-C
        options = {
            "num_cpus": 1,
            "resources": chips,
            "max_retries": 0,
            "num_returns": "streaming",
            "scheduling_strategy": "SPREAD",
        }
        self._feasible(chips)
        with self._lock:
            if self.closed:
                raise StageError("the run was stopped")
            stream = self.ray.remote(labour).options(**options, name=f"{order.task.cell}: {order.task.stage.name}").remote(order)
            self._streams.add(stream)
        ran = None
        try:
            while ran is None:
                ready, _ = self.ray.wait([stream], timeout=BEAT)
                if self.closed:
                    raise StageError("the run was stopped")
                if not ready:
                    if line.state == "waiting":
                        self._feasible(chips)  # the one machine that had the chip may be gone
                    continue
                told = self.ray.get(next(stream))
                if isinstance(told, bool):
                    ran = told
                else:
                    told.show(line)
        except self.ray.exceptions.RayTaskError as problem:
            raise problem.cause from problem
        finally:
            self._streams.discard(stream)
        return ran

    def _feasible(self, chips: Mapping[str, int]) -> None:
        """Raise StageError where no machine could ever take such a task: Ray would wait for one for good."""
        wanted = {"CPU": 1, **chips}
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(machine.get(name, 0) >= count for name, count in wanted.items()) for machine in machines):
            words = ", ".join(f"{count} of {name}" for name, count in wanted.items())
            raise StageError(
                f"no machine of the cluster has {words}", next_step="`ray start --resources` says what a machine has"
            )

    def close(self) -> None:
        """Cancel what works there, and let go of the cluster; one that was started here ends, and its folder goes."""
        with self._lock:
            self._closed.set()
        if self.ray.is_initialized():
            for stream in list(self._streams):
                with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
                    self.ray.cancel(stream, force=True)
            end = time.monotonic() + PATIENCE
            while self._streams and time.monotonic() < end:  # a thread in Ray's code must not see it go
                time.sleep(0.02)
        self._own.close()
