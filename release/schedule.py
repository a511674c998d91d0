"""Who works when: the tasks of a graph over the workers, servers and devices that there are, each once, what is longest first."""

from __future__ import annotations

import os
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from release.errors import StageError
from release.matrix.load import Matrix
from release.pipeline import Graph, Run, Task, missing
from release.progress import Progress
from release.store import Store

if TYPE_CHECKING:
    from release.session import Session


DROPPED: Final = -1
"""Stands for the number of needs that a task waits for, where it will never start."""


@dataclass(frozen=True)
class Limits:
    """What there is: how many stages may work at once, and how many units of each resource; one that is not named has no end."""

    jobs: int = field(default_factory=lambda: max(2, os.cpu_count() or 2))
    units: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Ledger:
    """What a run came to: what ran (`cell: stage`, in order), what failed and why, and what was not reached because of which failure."""

    ran: list[str] = field(default_factory=list)
    failed: dict[str, BaseException] = field(default_factory=dict)
    unreached: dict[str, str] = field(default_factory=dict)


def unit(task: Task) -> float:
    """Expect every stage to take as long as any other."""
    return 1.0


def run(
    graph: Graph,
    wanted: Iterable[str],
    matrix: Matrix,
    store: Store,
    session: Session,
    progress: Progress,
    jobs: int | None = None,
) -> tuple[str, ...]:
    """Bring the results of the keys `wanted` into the store, up to `jobs` stages at a time; return what ran, `cell: stage` each.

    The first failure lets what runs finish, starts nothing new, and is raised. Otherwise as `carry_out`.
    """
    limits = Limits() if jobs is None else Limits(jobs)
    ledger = carry_out(graph, wanted, Run(graph, matrix, store, session, progress), limits)
    for failure in ledger.failed.values():
        raise failure
    return tuple(ledger.ran)


def carry_out(
    graph: Graph,
    wanted: Iterable[str],
    work: Run,
    limits: Limits,
    *,
    keep_going: bool = False,
    seconds: Callable[[Task], float] = unit,
) -> Ledger:
    """Bring the results of the keys `wanted` into the store within `limits`, and return what became of it.

    Where all of them are valid, nothing happens. Otherwise every task they stand on is looked at, and run unless its result is valid:
    no task before what it needs, and first what has the longest way to the end by the `seconds` that tasks are expected to take.
    A server stays up while tasks that talk to it are left, one of them at a time; where units lack, one that nobody talks to is stopped,
    and started again when its turn comes. After a failure nothing new is started; with `keep_going`, only nothing that stands on it.
    Ctrl-C is raised at once: what runs is then for `Session.abandon` to end.
    """
    keys = missing(graph, wanted, work.store)
    if not keys:
        return Ledger()
    schedule, ledger = _Schedule(graph, keys, limits, seconds), Ledger()
    running: dict[Future[bool], Task] = {}
    stopping: dict[Future[None], str] = {}
    with work.store.in_use():
        pool = ThreadPoolExecutor(limits.jobs + 1)
        while True:
            if keep_going or not ledger.failed:
                for task, idle in schedule.startable(limits.jobs - len(running)):
                    running[pool.submit(partial(_perform, work, task, idle))] = task
                for task, reason in schedule.impossible():
                    ledger.failed[task.key] = StageError(reason, where=f"{task.cell}: {task.stage.name}")
                    ledger.unreached |= schedule.drop(task)
                for server in schedule.useless():
                    stopping[pool.submit(work.session.stop, server)] = server
            if not running and not stopping:
                break
            futures: list[Future[Any]] = [*running, *stopping]
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in [each for each in stopping if each in done]:
                schedule.stopped(stopping.pop(future))
                future.result()
            for result in [each for each in running if each in done]:
                task, failure = running.pop(result), result.exception()
                schedule.finish(task)
                if failure is not None:
                    ledger.failed[task.key] = failure
                    ledger.unreached |= schedule.drop(task)
                elif result.result():
                    ledger.ran.append(f"{task.cell}: {task.stage.name}")
        pool.shutdown()
    return ledger


def _perform(work: Run, task: Task, idle: tuple[str, ...]) -> bool:
    """Stop the servers that make room, then do the task; say whether it had to run."""
    for server in idle:
        work.session.stop(server)
    return work.perform(task)


class _Schedule:
    """What is left to do, what could start, and what is held by whom. Used by one thread."""

    def __init__(self, graph: Graph, keys: set[str], limits: Limits, seconds: Callable[[Task], float]) -> None:
        self.graph, self.limits = graph, limits
        order = [task for key, task in graph.tasks.items() if key in keys]
        self.after: dict[str, list[str]] = {key: [] for key in keys}
        self.open = {task.key: len(set(task.needs.values())) for task in order}
        for task in order:
            for need in set(task.needs.values()):
                self.after[need].append(task.key)
        length: dict[str, float] = {}
        for task in reversed(order):
            length[task.key] = seconds(task) + max((length[key] for key in self.after[task.key]), default=0.0)
        self.rank = {task.key: (-length[task.key], place) for place, task in enumerate(order)}
        self.ready = sorted((task.key for task in order if not self.open[task.key]), key=self.rank.__getitem__)
        self.held: Counter[str] = Counter()
        self.busy: dict[str, bool] = {}
        """Servers that are up, in the order in which they were used last: whether somebody talks to them."""
        self.left = Counter(task.server for task in order if task.server)

    def startable(self, slots: int) -> Iterator[tuple[Task, tuple[str, ...]]]:
        """Yield up to `slots` tasks to start now, each with the idle servers that have to be stopped before."""
        for key in list(self.ready):
            if slots <= 0:
                return
            task = self.graph.tasks[key]
            if (idle := self._room(task)) is None:
                continue
            self.ready.remove(key)
            for server in idle:
                self._return(server)
            if not task.server or task.server not in self.busy:
                self.held.update(self._cost(task))
            if task.server:
                self.busy.pop(task.server, None)
                self.busy[task.server] = True
            slots -= 1
            yield task, idle

    def impossible(self) -> Iterator[tuple[Task, str]]:
        """Yield ready tasks that ask for more than there is at all, with the reason."""
        for key in list(self.ready):
            task = self.graph.tasks[key]
            for name, count in self._cost(task).items():
                if count > self.limits.units.get(name, count):
                    self.ready.remove(key)
                    yield task, f"needs {count} of {name}, and there are {self.limits.units[name]}"
                    break

    def finish(self, task: Task) -> None:
        """Note that a task has ended, well or not."""
        for key in self.after[task.key]:
            if self.open[key] == DROPPED:
                continue
            self.open[key] -= 1
            if not self.open[key]:
                insort(self.ready, key, key=self.rank.__getitem__)
        if task.server:
            self.busy[task.server] = False
            self.left[task.server] -= 1
        else:
            self.held.subtract(task.uses)

    def useless(self) -> list[str]:
        """Return the servers that nobody will need any more, each once: `stopped` when they are."""
        found = [server for server, busy in self.busy.items() if not busy and not self.left[server]]
        self.busy.update(dict.fromkeys(found, True))
        return found

    def stopped(self, server: str) -> None:
        """Note that a server is down: what it held is free."""
        self._return(server)

    def drop(self, task: Task) -> dict[str, str]:
        """Take out what stands on a task that failed, and was not taken out before; return it, each with the failed task's key."""
        found: dict[str, str] = {}
        stack = list(self.after[task.key])
        while stack:
            key = stack.pop()
            if self.open[key] != DROPPED:
                found[key], self.open[key] = task.key, DROPPED
                self.left[self.graph.tasks[key].server] -= 1
                stack += self.after[key]
        self.ready = [key for key in self.ready if key not in found]
        return found

    def _room(self, task: Task) -> tuple[str, ...] | None:
        """Return the idle servers whose units a task needs to start (often none); None where it has to wait."""
        if task.server in self.busy:
            return None if self.busy[task.server] else ()
        lack = {
            name: short
            for name, count in self._cost(task).items()
            if (short := self.held[name] + count - self.limits.units.get(name, self.held[name] + count)) > 0
        }
        idle: list[str] = []
        wanted = {self.graph.tasks[key].server for key in self.ready} if lack else set()
        for server, busy in self.busy.items():
            gain = self.graph.tasks[server].uses
            if any(lack.get(name, 0) > 0 for name in gain) and not busy and server not in wanted:
                idle.append(server)
                lack = {name: short - gain.get(name, 0) for name, short in lack.items()}
        return None if any(short > 0 for short in lack.values()) else tuple(idle)

    def _cost(self, task: Task) -> Mapping[str, int]:
        """Return what a task holds: for as long as it works, or as its server is up."""
        return self.graph.tasks[task.server].uses if task.server else task.uses

    def _return(self, server: str) -> None:
        self.held.subtract(self.graph.tasks[server].uses)
        del self.busy[server]
