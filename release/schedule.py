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

from release.errors import HostError, StageError
from release.matrix.load import Matrix
from release.pipeline import Graph, Run, Task, missing
from release.progress import Progress
from release.store import Store
from release.types import Lent, Seat

if TYPE_CHECKING:
    from release.session import Session


MOVES: Final = 2
"""Hosts that may fail under one stage before it is the one to be looked at."""
DROPPED: Final = -1
"""Stands for the number of needs that a task waits for, where it will never start."""


@dataclass(frozen=True)
class Limits:
    """What there is: how many stages may work at once, and how many units of each resource; one that is not named has no end.

    `hosts` are resources that servers find on hosts only: what each of them lends.
    """

    jobs: int = field(default_factory=lambda: max(2, os.cpu_count() or 2))
    units: Mapping[str, int] = field(default_factory=dict)
    hosts: Mapping[str, Mapping[str, Lent]] = field(default_factory=dict)


@dataclass
class Ledger:
    """What a run came to: what ran (`cell: stage`, in order), what failed and why, and what was not reached because of which failure."""

    ran: list[str] = field(default_factory=list)
    failed: dict[str, BaseException] = field(default_factory=dict)
    unreached: dict[str, str] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    """Stages that went to another host, and why."""


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
    ledger: Ledger | None = None,
) -> Ledger:
    """Bring the results of the keys `wanted` into the store within `limits`, and return what became of it, in `ledger` if there is one.

    Where all of them are valid, nothing happens. Otherwise every task they stand on is looked at, and run unless its result is valid:
    no task before what it needs, and first what has the longest way to the end by the `seconds` that tasks are expected to take.
    A server stays up while tasks that talk to it are left, one of them at a time; where units lack, one that nobody talks to is stopped,
    and started again when its turn comes. After a failure nothing new is started; with `keep_going`, only nothing that stands on it.
    What failed because its host is at fault goes to another one, at most `MOVES` times: nothing more is started on a host at fault.
    Ctrl-C is raised at once: what runs is then for `Session.abandon` to end.
    """
    with work.store.in_use():  # before looking: what is there stays until all of it is done
        keys = missing(graph, wanted, work.store)
        ledger = Ledger() if ledger is None else ledger
        if not keys:
            return ledger
        schedule = _Schedule(graph, keys, limits, seconds)
        running: dict[Future[bool], Task] = {}
        stopping: dict[Future[None], str] = {}
        pool = ThreadPoolExecutor(limits.jobs + 1)
        while True:
            if keep_going or not ledger.failed:
                for task, idle, seat in schedule.startable(limits.jobs - len(running)):
                    running[pool.submit(partial(_perform, work, task, idle, seat))] = task
                for task, refusal in schedule.impossible():
                    ledger.failed[task.key] = refusal.located(f"{task.cell}: {task.stage.name}")
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
                for server in schedule.settle(task, failure, ledger):
                    stopping[pool.submit(work.session.stop, server)] = server
                if failure is None and result.result():
                    ledger.ran.append(f"{task.cell}: {task.stage.name}")
        pool.shutdown()
    ledger.moved += work.moved
    return ledger


def _perform(work: Run, task: Task, idle: tuple[str, ...], seat: Seat | None) -> bool:
    """Stop the servers that make room, then do the task; say whether it had to run. Raises HostError where not the task is at fault."""
    for server in idle:
        work.session.stop(server)
    if seat is None or work.session.fleet is None:
        return work.perform(task)
    work.session.seat(task.server, seat)
    try:
        return work.perform(task, seat.host)
    except Exception as problem:
        reason = work.session.fleet.fault(seat)
        if not reason:
            raise
        work.session.stop(task.server)
        raise HostError(
            f"host {seat.host} is at fault: {reason}", where=f"{task.cell}: {task.stage.name}", next_step="release hosts check"
        ) from problem


class _Schedule:
    """What is left to do, what could start, and what is held by whom. Used by one thread."""

    def __init__(self, graph: Graph, keys: set[str], limits: Limits, seconds: Callable[[Task], float]) -> None:
        self.graph, self.limits = graph, limits
        self.units = dict(limits.units)
        for name, hosts in limits.hosts.items():
            self.units |= {f"{name}@{host}": len(lent.ids) for host, lent in hosts.items()}
        self.lost: dict[str, str] = {}
        """Hosts on which nothing more is started, and why."""
        self.moves: Counter[str] = Counter()
        self.seats: dict[str, Seat] = {}
        """Where each server is that is up, or was last."""
        self.costs: dict[str, Mapping[str, int]] = {}
        """What each server holds that is up."""
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

    def startable(self, slots: int) -> Iterator[tuple[Task, tuple[str, ...], Seat | None]]:
        """Yield up to `slots` tasks to start now, each with the idle servers that have to be stopped before, and where its server is."""
        for key in list(self.ready):
            if slots <= 0:
                return
            task = self.graph.tasks[key]
            if (room := self._room(task)) is None:
                continue
            idle, cost, seat = room
            self.ready.remove(key)
            for server in idle:
                self._return(server)
            if task.server not in self.busy:
                self.held.update(cost)
                if task.server:
                    self.costs[task.server] = cost
                    self.seats.pop(task.server, None)
                    if seat is not None:
                        self.seats[task.server] = seat
            if task.server:
                self.busy.pop(task.server, None)
                self.busy[task.server] = True
            slots -= 1
            yield task, idle, self.seats.get(task.server)

    def impossible(self) -> Iterator[tuple[Task, StageError]]:
        """Yield ready tasks that ask for more than there is at all, with the reason: HostError where a host at fault would have it."""
        for key in list(self.ready):
            task = self.graph.tasks[key]
            if task.server in self.busy:
                continue
            offers = list(self._offers(task))
            if not offers:
                self.ready.remove(key)
                wanted = ", ".join(f"{count} of {name}" for name, count in self._uses(task).items() if name in self.limits.hosts)
                lost = f" but those at fault ({'; '.join(sorted(self.lost.values()))})" if self.lost else ""
                yield task, (HostError if self.lost else StageError)(f"needs {wanted}, and no host has them{lost}")
            for name, count in offers[0][1].items() if offers else ():
                if count > self.units.get(name, count):
                    self.ready.remove(key)
                    yield task, StageError(f"needs {count} of {name}, and there are {self.units[name]}")
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

    def settle(self, task: Task, failure: BaseException | None, ledger: Ledger) -> list[str]:
        """Note how a task ended; return the idle servers of a host that was found at fault: `stopped` when they are."""
        seat = self.seats.get(task.server)
        if isinstance(failure, HostError) and seat is not None and self.moves[task.key] < MOVES:
            ledger.moved.append(f"{task.cell}: {task.stage.name}: {failure.message}")
            return self.leave(task, seat.host, failure.message)
        self.finish(task)
        if failure is not None:
            ledger.failed[task.key] = failure
            ledger.unreached |= self.drop(task)
        return []

    def leave(self, task: Task, host: str, why: str) -> list[str]:
        """Have a task wait for another host, and start nothing more on this one; return the idle servers there: `stopped` when they are."""
        self.lost[host] = why
        self.moves[task.key] += 1
        self._return(task.server)
        insort(self.ready, task.key, key=self.rank.__getitem__)
        idle = [each for each, busy in self.busy.items() if not busy and each in self.seats and self.seats[each].host == host]
        self.busy.update(dict.fromkeys(idle, True))
        return idle

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

    def _room(self, task: Task) -> tuple[tuple[str, ...], Mapping[str, int], Seat | None] | None:
        """Return what a task can start with: the idle servers to stop before (often none), what it will hold, and its seat on a host.

        None where it has to wait. Of several hosts, the one where least is stopped, then the one that has least to spare.
        """
        if task.server in self.busy:
            seat = self.seats.get(task.server)
            return None if self.busy[task.server] or (seat and seat.host in self.lost) else ((), {}, seat)
        found: list[tuple[int, int, int, tuple[tuple[str, ...], Mapping[str, int], Seat | None]]] = []
        for seat, cost in self._offers(task):
            if (idle := self._idle(cost)) is not None:
                spare = sum(self.units.get(name, 0) - self.held[name] for name in cost)
                found.append((len(idle), spare, len(found), (idle, cost, seat)))
        return min(found)[3] if found else None

    def _idle(self, cost: Mapping[str, int]) -> tuple[str, ...] | None:
        """Return the idle servers whose units are needed for a cost; None where that is not enough."""
        lack = {
            name: short
            for name, count in cost.items()
            if (short := self.held[name] + count - self.units.get(name, self.held[name] + count)) > 0
        }
        idle: list[str] = []
        wanted = {self.graph.tasks[key].server for key in self.ready} if lack else set()
        for server, busy in self.busy.items():
            gain = self.costs[server]
            if any(lack.get(name, 0) > 0 for name in gain) and not busy and server not in wanted:
                idle.append(server)
                lack = {name: short - gain.get(name, 0) for name, short in lack.items()}
        return None if any(short > 0 for short in lack.values()) else tuple(idle)

    def _offers(self, task: Task) -> Iterator[tuple[Seat | None, Mapping[str, int]]]:
        """Yield where a task could be, and what it would hold there: on this machine, or on each host that lends enough."""
        uses = self._uses(task)
        resource = next((name for name in uses if name in self.limits.hosts), None)
        if resource is None or not task.server:
            yield None, uses
            return
        for host, lent in self.limits.hosts[resource].items():
            there = len(lent.ids)
            if host not in self.lost and uses[resource] <= there:
                count = uses[resource] if lent.visible else there
                yield Seat(host=host, chip=resource.removeprefix("device:"), devices=count), {f"{resource}@{host}": count}

    def _uses(self, task: Task) -> Mapping[str, int]:
        """Return what a task asks for: for as long as it works, or as its server is up."""
        return self.graph.tasks[task.server].uses if task.server else task.uses

    def _return(self, server: str) -> None:
        self.held.subtract(self.costs.pop(server))
        del self.busy[server]
