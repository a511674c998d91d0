"""What a person sees while many cells are built: cells × stages on a terminal, a line a finished stage elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, TextIO

from release.pipeline import Graph
from release.progress import Line, Plain, Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MARKS: Final = {
    "waiting": ("·", "dim"),
    "running": ("●", "yellow"),
    "done": ("✓", "green"),
    "cached": ("=", "cyan"),
    "failed": ("✗", "red"),
    "unreached": ("–", "red dim"),
}
"""How a stage of a cell is shown, and in which colour."""
ROOM: Final = 8
"""Lines that the table leaves for the ends of its frame and for what runs just now."""


class Grid:
    """A table of cells × stages that is drawn anew a few times a second; a task that several cells share is one in all their rows."""

    def __init__(
        self, tasks: Graph, cells: Sequence[str], stages: Sequence[str], looked_at: Collection[str], console: Console
    ) -> None:
        from rich.live import Live

        self._tasks, self._cells, self.console = tasks, cells, console
        self._stages = [stage for stage in stages if any((cell, stage) in tasks.of for cell in cells)]
        self._states = {key: "waiting" if key in looked_at else "cached" for key in tasks.tasks}
        self._running: dict[str, Line] = {}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._closed = False
        self._live = Live(get_renderable=self.picture, console=console, refresh_per_second=4)
        self._live.start()

    def line(self, cell: str, stage: str) -> Line:
        """Return a new line for a stage of a cell."""
        return Line(self, cell, stage)

    def changed(self, line: Line) -> None:
        """Note that a line began or ended; draw it at the next turn."""
        key = self._tasks.of[line.cell, line.stage]
        with self._lock:
            self._states[key] = line.state
            self._running.pop(key, None)
            if line.state == "running":
                self._running[key] = line
            elif line.state == "failed":
                self._strike(key)

    def moved(self, line: Line) -> None:
        """Nothing: the picture is drawn by the clock."""

    def close(self) -> None:
        """Leave the last picture on the screen, with all rows."""
        self._closed = True
        self._live.stop()

    def picture(self) -> RenderableType:
        """Return the table with the rows that matter most, and below it what runs."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            rows = [(cell, self._row(cell)) for cell in self._cells]
            running = list(self._running.values())
            counts = Counter(self._states.values())
        shown = self._chosen(rows)
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("cell", no_wrap=True)
        for stage in self._stages:
            table.add_column(stage[:8], justify="center", no_wrap=True)
        for cell, states in shown:
            table.add_row(cell, *(Text(*MARKS[state]) if state else Text("") for state in states))
        seconds = time.monotonic() - self._began
        told = ", ".join(f"{counts[state]} {state}" for state in MARKS if counts[state])
        more = f"{len(rows) - len(shown)} more cells; " if len(shown) < len(rows) else ""
        lines = [Text(f"{more}{len(self._states)} tasks: {told}; {seconds:.0f} s", style="dim")]
        for line in running[: ROOM - 3]:
            text = f"{line.cell}  {line.stage}  {line.seconds:.0f} s  {line.measure()}"
            lines.append(Text(text, overflow="ellipsis", no_wrap=True))
        return Group(table, *lines)

    def _row(self, cell: str) -> list[str]:
        return [self._states.get(self._tasks.of.get((cell, stage), ""), "") for stage in self._stages]

    def _chosen(self, rows: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
        """Return the rows that fit on the screen, in their order: first those where something runs or failed, then what is not finished."""
        room = max(self.console.height - ROOM, 4)
        if len(rows) <= room or self._closed:
            return rows

        def weight(row: tuple[str, list[str]]) -> int:
            states = set(row[1])
            return 0 if states & {"running", "failed"} else 1 if "waiting" in states else 2

        chosen = {cell for cell, _ in sorted(rows, key=weight)[:room]}
        return [row for row in rows if row[0] in chosen]

    def _strike(self, key: str) -> None:
        """Mark what stands on a failed task."""
        lost = {key}
        for other, task in self._tasks.tasks.items():
            if lost & set(task.needs.values()) and other not in lost:
                lost.add(other)
                self._states[other] = "unreached"


def grid_for(stream: TextIO, tasks: Graph, cells: Sequence[str], stages: Sequence[str], looked_at: Collection[str]) -> Progress:
    """Return a table for a terminal and plain lines for anything else; `stages` are the columns in their order."""
    if not stream.isatty():
        return Plain(stream)
    from rich.console import Console

    return Grid(tasks, cells, stages, looked_at, Console(file=stream))
