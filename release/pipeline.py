"""What a build is: a graph of stages keyed by what they read, and how one of them is brought into the store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release.errors import ReleaseError, ServingError, StageError, StoreError
from release.matrix.load import Matrix
from release.progress import Line, Progress
from release.store import Store
from release.types import JSON, Plan

if TYPE_CHECKING:
    from release.session import Session

REFERENCE: Final = "reference:"
DYING: Final = 15.0
"""Seconds that a server is given to end after an answer that looks like its end."""


@dataclass(frozen=True)
class Stage:
    """One step of a build: a function from what it declares to a folder of files.

    `needs` names the stages whose folders it gets (`reference:NAME` is that stage of the plan's reference; left out where there is
    none). `reads` is everything else it may use, as JSON; it gets nothing more. `version` changes when the function does.
    `work` fills `Work.out` and returns a one-line summary. `spared` names the needs that a plan can do without. `uses` are the units of
    each resource that it holds while it works; a stage that talks to a server names in `on` the stage that starts one (which may be
    itself): what that stage uses is held for as long as the server is up. What a stage that is `local` made lies partly in the store
    around its folder (mirrors): no other store can have it, and what needs it works on the same machine. A stage that works `here` uses the
    container engine of the machine that builds.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    reads: Callable[[Plan, Matrix], JSON]
    work: Callable[[Work], str]
    spared: Callable[[Plan], Collection[str]] = lambda plan: ()
    uses: Callable[[Plan], Mapping[str, int]] = lambda plan: {}
    on: str = ""
    local: bool = False
    here: bool = False


@dataclass(frozen=True)
class Task:
    """A stage with its inputs pinned: `key` is the digest of stage, version, reads and the keys of its needs.

    `uses` are the units of each resource that it holds, `server` is the key of the task whose server it talks to, if it does.
    """

    stage: Stage
    cell: str
    reads: JSON
    needs: Mapping[str, str]
    key: str
    uses: Mapping[str, int] = field(default_factory=dict)
    server: str = ""

    @property
    def facts(self) -> JSON:
        """What the store keeps beside the output, and what a later plan is compared with."""
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "cell": self.cell,
            "reads": self.reads,
            "needs": dict(self.needs),
        }


@dataclass(frozen=True)
class Work:
    """What a stage is given: its reads, its inputs' folders by name, an empty folder to fill, and the run's session.

    `partial()` is a folder that survives a kill, for stages that resume inside; `scratch` is an empty folder that does not.
    """

    task: Task
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    matrix: Matrix
    store: Store
    session: Session
    line: Line
    partial_key: str = ""

    @property
    def reads(self) -> JSON:
        """What the stage declared that it reads."""
        return self.task.reads

    def partial(self) -> Path:
        """Return the folder that outlives a killed run, of this key with these very inputs."""
        return self.store.partial(self.partial_key)

    def result(self, need: str, name: str) -> Any:
        """Return a JSON file out of an input's folder."""
        return json.loads((self.inputs[need] / name).read_bytes())

    def write(self, name: str, document: object) -> None:
        """Write a JSON file into the output folder."""
        (self.out / name).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Graph:
    """All tasks of a build by key, in an order in which every task stands after its needs; `of` finds them by cell and stage."""

    tasks: Mapping[str, Task]
    of: Mapping[tuple[str, str], str]

    def task(self, cell: str, stage: str) -> Task:
        """Return the task of a stage of a cell."""
        return self.tasks[self.of[cell, stage]]


def graph(stages: Iterable[Stage], plans: Mapping[str, Plan], matrix: Matrix, cells: Iterable[str], until: str) -> Graph:
    """Return the tasks that `until` of each of `cells` needs, their references' among them; what several need stands there once."""
    by_name = {stage.name: stage for stage in stages}
    tasks: dict[str, Task] = {}
    of: dict[tuple[str, str], str] = {}

    def add(cell: str, name: str) -> str:
        if (cell, name) in of:
            return of[cell, name]
        stage, plan = by_name[name], plans[cell]
        needs: dict[str, str] = {}
        spared = stage.spared(plan)
        for need in stage.needs:
            if need in spared:
                continue
            if not need.startswith(REFERENCE):
                needs[need] = add(cell, need)
            elif plan.reference is not None:
                needs[need] = add(plan.reference, need.removeprefix(REFERENCE))
        reads = stage.reads(plan, matrix)
        key = digest({"stage": name, "version": stage.version, "reads": reads, "needs": needs})
        server = key if stage.on == name else needs.get(stage.on, "")
        tasks.setdefault(key, Task(stage, cell, reads, needs, key, stage.uses(plan), server))
        of[cell, name] = key
        return key

    for cell in cells:
        add(cell, until)
    return Graph(tasks, of)


def digest(document: object) -> str:
    """Return the hex SHA-256 of a JSON document in canonical form."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """What every task of one run shares. `moved` tells which stages went to another machine, and why."""

    graph: Graph
    matrix: Matrix
    store: Store
    session: Session
    progress: Progress
    moved: list[str] = field(default_factory=list)

    def abandon(self) -> None:
        """End what still works, and leave the rest to the guard. For Ctrl-C."""
        self.session.abandon()

    def perform(self, task: Task, host: str = "") -> bool:
        """Bring one task's result into the store; say whether it had to run. Its entry notes the host on which its server was."""
        line = self.progress.line(task.cell, task.stage.name)
        with self.store.locked(task.key, on_wait=lambda: line.note("waiting for another build of the same key")):
            if is_had(self.store, task):
                line.cached(str(self.store.facts(task.key).get("summary", "")))
                return False
            line.start()
            began = time.monotonic()
            for key in task.needs.values():
                self.store.bring(key)
            facts: dict[str, Any] = {**task.facts, "created": datetime.now(UTC).isoformat(timespec="seconds")}
            if host:
                facts["host"] = host
            facts["inputs"] = {need: self.store.facts(key)["mark"] for need, key in task.needs.items()}
            partial = digest([task.key, facts["inputs"]])  # samples of one image must not be joined with those of another

            def fill(out: Path) -> None:
                with ExitStack() as stack:
                    scratch = out.with_name(out.name + ".scratch")
                    scratch.mkdir()
                    stack.callback(_remove, scratch)
                    inputs = {need: self.store.get(key) for need, key in task.needs.items()}
                    work = Work(task, inputs, out, scratch, self.matrix, self.store, self.session, line, partial)
                    facts["summary"] = task.stage.work(work)
                    facts["mark"] = mark(out)
                    facts["seconds"] = round(time.monotonic() - began, 3)

            try:
                self.store.put(task.key, facts, fill)
            except ReleaseError as problem:
                line.failed(problem.message)
                if task.server:
                    self._explain(problem, task.server, partial)
                raise problem.located(f"{task.cell}: {task.stage.name}") from problem.__cause__
            except Exception as problem:
                line.failed(f"{type(problem).__name__}: {problem}")
                if not isinstance(problem, OSError):
                    raise
                raise StageError(str(problem), where=f"{task.cell}: {task.stage.name}") from problem
            self.store.settle(partial)
            if not task.stage.local:
                self.store.share(task.key)
            line.done(str(facts["summary"]))
            return True

    def _explain(self, problem: ReleaseError, server: str, partial: str) -> None:
        """Say besides what a server wrote that ended meanwhile: its end, and where all of it is kept until the stage is done."""
        from release.validators.serving import tail

        dying = isinstance(problem, ServingError) and getattr(problem, "status", 500) >= 500
        log = self.session.last_words(server, DYING if dying else 0.0)
        if log:
            problem.next_step = f"{problem.next_step}\nthe server died:\n{tail(log)}".strip()
            with suppress(OSError, StoreError):  # a full disk must not stand before what failed
                kept = self.store.partial(partial) / "died.log"
                kept.write_text(log, encoding="utf-8")
                problem.next_step += f"\nall of it: {kept}"


def missing(graph: Graph, wanted: Iterable[str], store: Store) -> set[str]:
    """Return the keys that a run has to look at: none if all that is wanted is valid, else what is not, and all that it stands on."""
    stack = [key for key in wanted if not is_had(store, graph.tasks[key])]
    found: set[str] = set()
    while stack:
        key = stack.pop()
        if key not in found:
            found.add(key)
            stack += graph.tasks[key].needs.values()
    return found


def is_had(store: Store, task: Task) -> bool:
    """Say whether the store has a result of a task that can stand, or can get it from where it is shared."""
    if not task.stage.local:
        store.bring(task.key)
    return is_valid(store, task)


def is_valid(store: Store, task: Task) -> bool:
    """Say whether the store's result of a task can stand: it is there, and its inputs were the very ones that the store has now.

    Equal keys mean equal inputs, but not every stage is a function to the last bit (another engine builds another image). A
    verdict must never be joined with an image that it was not reached on.
    """
    if not store.has(task.key):
        return False
    inputs = store.facts(task.key).get("inputs")
    if not isinstance(inputs, dict):
        return False
    return all(not store.has(key) or store.facts(key).get("mark") == inputs.get(need) for need, key in task.needs.items())


def mark(folder: Path) -> str:
    """Return a digest of what a stage wrote: paths and sizes of all files, and the content of those up to 1 MiB.

    Large files are named by digest in a small one beside them (image.json, wheels.json, base.json).
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            content = hashlib.sha256(path.read_bytes()).hexdigest() if size <= 1 << 20 else ""
            files[str(path.relative_to(folder))] = [size, content]
    return digest(files)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def changes(store: Store, task: Task, previous: str | None) -> list[str]:
    """Say why a task has to run: what differs between it and the entry `previous` of the same cell and stage."""
    if previous is None or not store.has(previous):
        return ["has not been built yet"]
    old = store.facts(previous)
    if not old.keys() >= {"version", "reads", "needs"}:
        return ["its entry in the store is damaged"]
    found = (
        [f"the stage itself changed (version {old['version']} → {task.stage.version})"]
        if old["version"] != task.stage.version
        else []
    )
    before, after = flat(old["reads"]), flat(task.reads)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found.append(f"{name}: {_short(before.get(name))} → {_short(after.get(name))}")
    found += [f"needs {need}" for need, key in sorted(task.needs.items()) if old["needs"].get(need) != key]
    return found or ["its result is gone from the store"]


def flat(document: object, place: str = "") -> dict[str, object]:
    """Return the leaves of a JSON document by dotted place."""
    if isinstance(document, Mapping) and document:
        pairs: Iterable[tuple[object, object]] = document.items()
    elif isinstance(document, list | tuple) and document:
        pairs = enumerate(document)
    else:
        return {place: document}
    leaves: dict[str, object] = {}
    for key, value in pairs:
        leaves.update(flat(value, f"{place}.{key}" if place else str(key)))
    return leaves


def _short(value: object) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:19] + "…"
    text = "(nothing)" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else text[:45] + "…"
