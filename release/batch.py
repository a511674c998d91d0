"""Building many cells at once: one graph over all of them, each piece of work once, and for each cell, also for one alone, what became of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from release.build import Outcome, Runner, build, carry, deliver, ends, push_release, refuse_taken, suffices, target_of
from release.errors import MatrixError, ReleaseError, StageError, UsageError, VerdictError
from release.failures import alike, failures_of
from release.grid import grid_for
from release.house import House
from release.journal import Journal
from release.pins import pins_of, texts, traits, wheel_named
from release.pipeline import Graph, Run, Task, missing
from release.schedule import Ledger, Limits
from release.session import Session
from release.stages import DISK, HOST_SERVERS, NETWORK, STAGES
from release.types import JSON, Unknown

CONNECTIONS: Final = 4
"""Stages that may draw from the network at once."""
WRITERS: Final = 2
"""Stages that may write gigabytes at once."""
REFUSED, FAILED, STANDING, LEFT, DONE = "refused", "failed", "unreached", "not started", "done"
"""What can become of a cell beside what a release can be: its plan cannot work, a stage of its own failed, one that it shares did, the
run was stopped before its turn came, or all was done that was asked for."""


@dataclass(frozen=True)
class Fate:
    """What became of a cell: a release's state or one of the words above, and for a failure the stage, the reason, the failed key, the
    kind of error and what it said besides (a log's end, for one)."""

    cell: str
    state: str
    stage: str = ""
    reason: str = ""
    key: str = ""
    folder: Path | None = None
    record: JSON | None = None
    pushed: str | None = None
    error: str = ""
    detail: str = ""

    def told(self) -> JSON:
        """Return it as a journal tells it, but for pins: verdicts that are not PASSED among it."""
        verdicts = [verdict for verdict in (self.record or {}).get("verdicts", ()) if verdict["status"] != "PASSED"]
        kept = ("name", "status", "measured", "wanted", "reason")
        return {
            **{name: getattr(self, name) for name in ("cell", "state", "stage", "reason", "key", "error", "detail")},
            "verdicts": [{name: verdict[name] for name in kept} for verdict in verdicts],
        }


@dataclass(frozen=True)
class Cause:
    """One reason over all cells that it stopped: the failed stage, as the first of them met it, and what it said besides."""

    stage: str
    reason: str
    cells: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class Batch:
    """What a build of many cells came to: a fate a cell, what ran, how many stages the cells and what they are compared with have, how
    many of them differ, and seconds."""

    fates: tuple[Fate, ...]
    ran: tuple[str, ...]
    wanted: int
    tasks: int
    seconds: float
    moved: tuple[str, ...] = ()
    """Stages that left a host at fault, and why."""

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """The failures, each once with all cells that it stopped, widest first: what is alike by its evidence is one cause."""
        found: dict[tuple[str, ...], list[Fate]] = {}
        for fate in self.fates:
            if fate.reason:
                evidence = [failure.cause for failure in failures_of(fate.told())]
                found.setdefault((fate.stage, alike(fate.reason), *evidence), []).append(fate)
        causes = (Cause(met[0].stage, met[0].reason, tuple(fate.cell for fate in met), met[0].detail) for met in found.values())
        return tuple(sorted(causes, key=lambda cause: -len(cause.cells)))

    def require(self, least: str) -> None:
        """Raise StageError if a stage failed, VerdictError if a release is not at least `built` or `validated`, MatrixError if a plan was
        refused.
        """
        broken = [fate for fate in self.fates if fate.state in (FAILED, STANDING)]
        if broken:
            count = sum(1 for cause in self.causes if cause.stage != "plan")
            raise StageError(
                f"{len(broken)} of {len(self.fates)} cells could not be built, for {count} {'reason' if count == 1 else 'reasons'}",
                next_step="mend the causes above and run it again: what was finished is kept",
            )
        short = [fate.cell for fate in self.fates if fate.record is not None and not suffices(fate.record, least)]
        if short:
            raise VerdictError(f"not {least}: {', '.join(short)}", next_step="their evidence lies in their folders' evidence/")
        refused = [fate.cell for fate in self.fates if fate.state == REFUSED]
        if refused:
            raise MatrixError(
                f"the rules refuse {', '.join(refused)}", next_step="mend these cells, or leave them out with --select"
            )


def select(house: House, patterns: Iterable[str], fixed: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the ids of the cells that any of the patterns fits (`*/qwen3-*@w8a8`; all where there is none) and the options do.

    `fixed` maps chip, model, precision to what was asked for. Raises UsageError for any pattern that no cell fits.
    """
    wanted, fitting = tuple(patterns), []
    for cell, file in house.matrix.cells():
        fits = {"chip": file.chip, "model": file.model, "precision": cell.partition("@")[2]}
        if all(value in (None, fits[name]) for name, value in fixed.items()):
            fitting.append(cell)
    for pattern in wanted or ("*",):
        if not any(fnmatchcase(cell, pattern) for cell in fitting):
            asked = ", ".join([*([pattern] if wanted else []), *(value for value in fixed.values() if value)])
            raise UsageError(
                f"no cell fits {asked}", next_step="`release matrix` lists the cells; patterns are as '*/qwen3-*@w8a8'"
            )
    return tuple(cell for cell in fitting if not wanted or any(fnmatchcase(cell, pattern) for pattern in wanted))


def local_limits(house: House, cells: Iterable[str], jobs: int | None, told: Mapping[str, int]) -> Limits:
    """Return what this machine has: workers, connections, writers, and of each chip the devices that its file says a host has.

    `told` overrides any of them, by the resource's name.
    """
    limits = Limits() if jobs is None else Limits(jobs)
    units = {NETWORK: CONNECTIONS, DISK: WRITERS, HOST_SERVERS: limits.jobs}
    for chip in {cell.partition("/")[0] for cell in cells}:
        counts = [device.per_host for device in house.matrix.chip(chip).devices.values()]
        known = [count for count in counts if not isinstance(count, Unknown) and count is not None]
        if known:
            units[f"device:{chip}"] = max(known)
    hosts = house.hosts()
    return Limits(limits.jobs, units | dict(told), hosts[0].lent if hosts else {})


@dataclass
class _Night:
    """What the steps of one batch share."""

    house: House
    least: str
    dist: Path
    to: str | None
    tag: str | None
    fates: dict[str, Fate] = field(default_factory=dict)

    def sift(self, cells: Sequence[str], until: str | None) -> list[str]:
        """Return the cells whose plans can work; the fate of the others is told."""
        kept = []
        for cell in cells:
            try:
                self.house.graph(cell, until)
                kept.append(cell)
            except ReleaseError as problem:
                self.fates[cell] = Fate(cell, REFUSED, "plan", problem.message.removeprefix(f"{cell}: "))
        return kept

    def stopped(self, cell: str, tasks: Graph, ledger: Ledger) -> Fate | None:
        """Return by which failed stage a cell was stopped; None for one that was not."""
        keys = [key for (owner, _), key in tasks.of.items() if owner == cell]
        failed = next((ledger.unreached.get(key, key) for key in keys if key in ledger.failed or key in ledger.unreached), None)
        if failed is None:
            return None
        task, problem = tasks.tasks[failed], ledger.failed[failed]
        state = FAILED if failed in keys else STANDING
        detail = problem.next_step if isinstance(problem, ReleaseError) else ""
        return Fate(cell, state, task.stage.name, _words(problem, task), failed, error=type(problem).__name__, detail=detail)

    def judge(self, cell: str, tasks: Graph, ledger: Ledger, left: set[str], until: str | None) -> Fate:
        """Return what became of a cell, of whose tasks those `left` had to run; lay it out and push it if it was finished."""
        if (fate := self.stopped(cell, tasks, ledger)) is not None:
            return fate
        if any(key in left and not self.house.store.has(key) for (owner, _), key in tasks.of.items() if owner == cell):
            return Fate(cell, LEFT)
        if (cell, "publish") not in tasks.of or until not in (None, "publish"):
            return Fate(cell, DONE)
        try:
            folder = deliver(self.house, tasks, cell, self.dist)
            record: JSON = json.loads((folder / "release.json").read_bytes())
            sound = suffices(record, self.least)
            pushed = push_release(self.house, folder, target_of(cell, self.to, self.tag)) if self.to and sound else None
        except ReleaseError as problem:
            return _unpublished(cell, problem)
        return Fate(cell, str(record["state"]), folder=folder, record=record, pushed=pushed)

    def told(self, fate: Fate) -> JSON:
        """Return a cell's fate for the journal, with its pins: what triage needs."""
        if fate.state == REFUSED:
            return {**fate.told(), "pins": {}}
        plan = self.house.plan(fate.cell)
        pins = pins_of(plan, self.house.matrix)
        return {
            **fate.told(),
            "pins": traits(plan) | texts(pins),
            "wheel": wheel_named(f"{fate.reason}\n{fate.detail}", pins) if fate.reason else "",
        }


def _words(problem: BaseException, task: Task) -> str:
    """Return why a task failed, without naming its cell: equal causes have equal words."""
    return problem.message if isinstance(problem, ReleaseError) else f"{type(problem).__name__}: {problem}"


def build_all(
    house: House,
    cells: Sequence[str],
    *,
    until: str | None = None,
    limits: Limits,
    dist: Path = Path("dist"),
    to: str | None = None,
    tag: str | None = None,
    least: str = "built",
    keep_going: bool = True,
    session: Session | None = None,
    runner: Runner = Run,
) -> Batch:
    """Build all `cells` as one graph, up to `until`; lay out each that is finished under `dist`, and push it to the registry `to`, as `tag`.

    With `keep_going` a failure costs only the cells that stand on it; else nothing new starts after the first, and it is in the fates.
    A cell whose plan is refused is not built. Ctrl-C leaves nothing behind; the next run goes on. `runner` is as in `build`.
    """
    began = time.monotonic()
    night = _Night(house, least, dist, to, tag)
    kept = night.sift(cells, until)
    tasks = house.graph_of(kept, until)
    if to and until in (None, "publish"):
        refuse_taken(house, tasks, {cell: target_of(cell, to, tag) for cell in kept})
    wanted = ends(tasks, kept, until)
    with house.store.in_use():  # until all is laid out: nobody clears up what was found or made
        looked_at = missing(tasks, wanted, house.store)
        progress = grid_for(sys.stderr, tasks, kept, [stage.name for stage in STAGES], looked_at)
        own = session or Session(house.engine_kind, hosts=house.hosts())
        journal = Journal.begin(house.store, cells, until)
        ledger, seconds = Ledger(), expected(house, tasks)
        try:
            carry(
                house, tasks, wanted, progress, limits, own, keep_going=keep_going, seconds=seconds, runner=runner, ledger=ledger
            )
        except BaseException:  # a run that is stopped tells what it has met so far
            for fate in [*night.fates.values(), *filter(None, (night.stopped(cell, tasks, ledger) for cell in kept))]:
                journal.note(night.told(fate))
            raise
        for text in ledger.moved:
            journal.note({"moved": text})
        for cell in cells:
            if cell in kept:
                night.fates[cell] = night.judge(cell, tasks, ledger, looked_at, until)
            journal.note(night.told(night.fates[cell]))
    fates = tuple(night.fates[cell] for cell in cells)
    journal.end(time.monotonic() - began)
    return Batch(fates, tuple(ledger.ran), len(tasks.of), len(tasks.tasks), time.monotonic() - began, tuple(ledger.moved))


def build_one(
    house: House,
    cell: str,
    *,
    until: str | None = None,
    dist: Path = Path("dist"),
    to: str | None = None,
    tag: str | None = None,
    least: str = "built",
    **how: Any,
) -> Outcome:
    """Build one cell as `build` does, whose other words are in `how`, and tell the journal what became of it: a run as those of many."""
    began, ledger, night = time.monotonic(), Ledger(), _Night(house, least, dist, to, tag)
    journal: Journal | None = None
    tasks = Graph({}, {})

    def begin(known: Graph) -> None:
        nonlocal journal, tasks
        journal, tasks = Journal.begin(house.store, [cell], until), known

    def tell(fate: Fate | None) -> None:
        if journal is not None:
            for line in [{"moved": text} for text in ledger.moved] + ([night.told(fate)] if fate else []):
                journal.note(line)

    try:
        outcome = build(house, cell, until=until, dist=dist, to=to, tag=tag, least=least, begin=begin, ledger=ledger, **how)
    except BaseException as problem:
        fate = night.stopped(cell, tasks, ledger)
        if fate is None and isinstance(problem, ReleaseError):
            fate = _unpublished(cell, problem)
        tell(fate)
        if journal is not None and isinstance(problem, Exception):
            journal.end(time.monotonic() - began)
        raise
    state = DONE if outcome.record is None else str(outcome.record["state"])
    tell(Fate(cell, state, folder=outcome.folder, record=outcome.record, pushed=outcome.pushed))
    if journal is not None:
        journal.end(outcome.seconds)
    return outcome


def _unpublished(cell: str, problem: ReleaseError) -> Fate:
    return Fate(cell, FAILED, "publish", problem.message, error=type(problem).__name__, detail=problem.next_step)


def expected(house: House, tasks: Graph) -> Callable[[Task], float]:
    """Return how long a task is expected to take, in seconds: as it took last for this cell, else as its stage takes on average here."""
    took = house.durations({cell for cell, _ in tasks.of})
    by_stage: dict[str, list[float]] = {}
    for (_, stage), seconds in took.items():
        by_stage.setdefault(stage, []).append(seconds)
    usual = {stage: sum(all_of_it) / len(all_of_it) for stage, all_of_it in by_stage.items()}
    return lambda task: took.get((task.cell, task.stage.name), usual.get(task.stage.name, 1.0))
