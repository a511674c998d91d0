"""What more workers of a Ray cluster are worth: the same sleeping stages over one worker and over four.

    python benchmarks/ray_workers.py [--stages 24] [--seconds 1.0] [--rounds 3]

The stages do not depend on one another, and sleep, so that only what sending them costs is counted. The cluster has four workers and is
started before the clock; for one worker no more than one stage is sent at a time. Contenders take turns, each round with an empty store.
A first round is not counted: a worker's process has to load its modules once. What ran is counted: each stage once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from release.cluster import Cluster
from release.matrix.load import Matrix
from release.pipeline import Graph, Stage, Task, Work, digest
from release.progress import Line, Progress
from release.schedule import Limits, carry_out
from release.session import Session
from release.store import Store


class _Silent:
    """A progress that says nothing."""

    def line(self, cell: str, stage: str) -> Line:
        return Line(cast(Progress, self), cell, stage)

    def changed(self, line: Line) -> None: ...
    def moved(self, line: Line) -> None: ...
    def close(self) -> None: ...


def sleep(work: Work) -> str:
    """Sleep, and write a file."""
    time.sleep(work.reads["seconds"])
    work.write("result.json", {})
    return "slept"


def stages(count: int, seconds: float) -> Graph:
    """Return so many tasks that need nothing."""
    tasks = {}
    for number in range(count):
        stage = Stage(f"sleep-{number}", 1, (), lambda plan, matrix: {}, sleep)
        reads: dict[str, Any] = {"seconds": seconds, "number": number}
        key = digest({"stage": stage.name, "version": 1, "reads": reads, "needs": {}})
        tasks[key] = Task(stage, "cell", reads, {}, key)
    return Graph(tasks, {})


def timed(cluster: Cluster, workers: int, count: int, seconds: float) -> float:
    """Return how many seconds the stages take with an empty store."""
    graph = stages(count, seconds)
    with tempfile.TemporaryDirectory() as folder:
        session = Session()
        work = cluster.run(graph, Matrix(), Store(Path(folder)), session, cast(Progress, _Silent()))
        began = time.monotonic()
        ledger = carry_out(graph, list(graph.tasks), work, Limits(workers))
        took = time.monotonic() - began
        session.close()
    if ledger.failed or len(ledger.ran) != count:
        raise SystemExit(f"{len(ledger.ran)} of {count} stages ran: {ledger.failed}")
    return took


def main() -> None:
    """Measure, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 4: []}
    with Cluster.join(slots=4) as cluster:
        timed(cluster, 4, 8, 0.5)
        for number in range(asked.rounds):
            for workers in (1, 4) if number % 2 == 0 else (4, 1):
                found[workers].append(timed(cluster, workers, asked.stages, asked.seconds))
    one, four = statistics.median(found[1]), statistics.median(found[4])
    for workers, times in found.items():
        print(f"{workers} of 4 workers  {statistics.median(times):6.2f} s  (all: {', '.join(f'{each:.2f}' for each in times)})")
    print(
        f"four are {one / four:.2f} × one; each stage cost {1000 * (one / asked.stages - asked.seconds):.0f} ms beside its sleep"
    )


if __name__ == "__main__":
    main()
