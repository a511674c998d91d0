"""A night of small stages in real processes: what ran is counted in a journal, which outlives whoever is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, cast

from release.matrix.load import Matrix
from release.pipeline import Graph, Run, Stage, Task, Work, digest
from release.progress import Line, Progress
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.store import Store

JOURNAL: Final = "RELEASE_TEST_JOURNAL"
"""The environment variable that names the file in which stages write that they began. It is no input: keys do not know it."""


class Silent:
    """A progress that says nothing."""

    def line(self, cell: str, stage: str) -> Line:
        return Line(cast(Progress, self), cell, stage)

    def changed(self, line: Line) -> None: ...
    def moved(self, line: Line) -> None: ...
    def close(self) -> None: ...


def labour(work: Work) -> str:
    """Note that it began, take the time that it takes, and write what its inputs come to."""
    note(work.task.stage.name)
    time.sleep(work.reads["seconds"])
    found = {need: json.loads((folder / "result.json").read_bytes()) for need, folder in sorted(work.inputs.items())}
    work.write("result.json", {"name": work.task.stage.name, "of": digest(found)})
    (work.out / "deep" / "empty").mkdir(parents=True)
    (work.out / "deep" / "program").write_text("#!/bin/sh\n")
    (work.out / "deep" / "program").chmod(0o755)
    (work.out / "latest").symlink_to("deep/program")
    return work.task.stage.name


def note(text: str) -> None:
    """Add a line to the journal, in one write."""
    with open(os.environ[JOURNAL], "ab", buffering=0) as stream:
        stream.write(f"{text}\n".encode())


def journal() -> list[str]:
    """Return which stages began, in order."""
    path = Path(os.environ[JOURNAL])
    return path.read_text().split() if path.is_file() else []


def night(
    cells: int = 8, seconds: float = 0.0, work: Callable[[Work], str] = labour, *, uses: dict[str, int] | None = None, **told: Any
) -> tuple[Graph, list[str]]:
    """Return a graph in which cells share sources, weights and image, and the keys of their last stages; each stage reads what is `told`."""
    tasks: dict[str, Task] = {}
    of: dict[tuple[str, str], str] = {}

    def add(name: str, cell: str, *needs: str) -> str:
        stage = Stage(name, 1, needs, lambda plan, matrix: {}, work)
        reads: dict[str, Any] = {"seconds": seconds, **told}
        keys = {need: key_of[need] for need in needs}
        key = digest({"stage": name, "version": 1, "reads": reads, "needs": keys})
        tasks.setdefault(key, Task(stage, cell, reads, keys, key, uses or {}))
        of[cell, name] = key_of[name] = key
        return name

    key_of: dict[str, str] = {}
    ends = []
    for number in range(cells):
        cell = f"chip{number % 2}/model{number % 4}@v{number}"
        image = add(f"image{number % 2}", cell, add(f"source{number % 2}", cell))
        weights = add(f"weights{number % 4}", cell)
        ends.append(key_of[add(f"card{number}", cell, add(f"serve{number}", cell, image, weights))])
    return Graph(tasks, of), ends


def build(store: Store, graph: Graph, wanted: Sequence[str], jobs: int = 2) -> Ledger:
    """Carry the graph out with the real parts; raise the first failure."""
    session = Session()
    work = Run(graph, Matrix(), store, session, cast(Progress, Silent()))
    ledger = carry_out(graph, wanted, work, Limits(jobs))
    session.close()
    for failure in ledger.failed.values():
        raise failure
    return ledger


def build_night(folder: Path, cells: int, seconds: float, told: Path, kept: str) -> None:
    """Build a night into a store, with the journal `kept`; write what ran into a file. What a process of its own does."""
    os.environ[JOURNAL] = kept
    ledger = build(Store(folder), *night(cells, seconds))
    told.write_text(json.dumps(ledger.ran))


def process(work: Callable[..., None], *words: object) -> BaseProcess:
    """Start a process that has all modules loaded already, and does `work`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["night"])
    started = context.Process(target=work, args=words)
    started.start()
    return started
