"""What a person sees while a build runs: one live line a stage on a terminal, quiet plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

HEARTBEAT: Final = 5.0
"""Seconds after which a stage that still runs says so on a plain stream."""

WIDTH: Final = 80
"""Characters that a heartbeat quotes of what a stage does."""


class Line:
    """The line of one stage. Safe to use from any thread."""

    def __init__(self, progress: Progress, cell: str, stage: str) -> None:
        self.progress, self.cell, self.stage = progress, cell, stage
        self.state = "waiting"
        self.text = ""
        self.unit = ""
        self.total: int | None = None
        self.count = 0
        self.began = self.spoke = time.monotonic()
        self.shown: TaskID | None = None

    def start(self) -> None:
        """The stage runs from now on."""
        self.state = "running"
        self.began = self.spoke = time.monotonic()
        self.progress.changed(self)

    def expect(self, total: int | None, unit: str) -> None:
        """The stage will do `total` units ("bytes", "samples", …) from now on."""
        self.total, self.unit, self.count = total, unit, 0
        self.progress.changed(self)

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self.count += count
        self.progress.moved(self)

    def reach(self, count: int) -> None:
        """`count` units are done in all."""
        self.count = count
        self.progress.moved(self)

    def follow(self, done: int, total: int, text: str) -> None:
        """`done` of `total` samples are done; `text` says what comes next. The shape in which validators report."""
        self.text, self.unit, self.total, self.count = text, "samples", total, done
        self.progress.moved(self)

    def note(self, text: str) -> None:
        """Say what the stage is doing."""
        self.text = text
        self.progress.moved(self)

    def done(self, summary: str) -> None:
        """The stage has finished."""
        self._end("done", summary)

    def cached(self, summary: str) -> None:
        """The store had the result already."""
        self._end("cached", summary)

    def failed(self, reason: str) -> None:
        """The stage has failed."""
        self._end("failed", reason)

    def _end(self, state: str, text: str) -> None:
        self.state, self.text = state, text
        self.progress.changed(self)

    @property
    def seconds(self) -> float:
        """Seconds since the stage started."""
        return time.monotonic() - self.began

    def measure(self) -> str:
        """Return how far the stage is: `312.0 of 489.1 MB`, `640 of 1000 samples`, or what it noted last."""
        if not self.unit:
            return self.text
        if self.unit == "bytes":
            whole = f" of {self.total / 1e6:.1f} MB" if self.total else " MB"
            return f"{self.text + '  ' if self.text else ''}{self.count / 1e6:.1f}{whole}"
        whole = f" of {self.total}" if self.total else ""
        return f"{self.text + '  ' if self.text else ''}{self.count}{whole} {self.unit}"


class Progress(Protocol):
    """Where lines are shown."""

    def line(self, cell: str, stage: str) -> Line:
        """Return a new line for a stage of a cell."""
        ...

    def changed(self, line: Line) -> None:
        """Show that a line began, ended or learnt its size."""
        ...

    def moved(self, line: Line) -> None:
        """Show that a line went on."""
        ...

    def close(self) -> None:
        """Show nothing more."""
        ...


class Plain:
    """Lines on a stream that is no terminal: one when a stage ends, and one every few seconds while it runs."""

    def __init__(self, stream: TextIO | None = None, *, show_cached: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._show_cached = show_cached
        self._lock = threading.Lock()
        self._running: set[Line] = set()
        self._closed = threading.Event()
        self._heart: threading.Thread | None = None

    def line(self, cell: str, stage: str) -> Line:
        """Return a new line for a stage of a cell."""
        return Line(self, cell, stage)

    def changed(self, line: Line) -> None:
        """Print a line that began or ended."""
        with self._lock:
            if line.state == "running":
                self._running.add(line)
                if self._heart is None:
                    self._heart = threading.Thread(target=self._beat, daemon=True)
                    self._heart.start()
            else:
                self._running.discard(line)
            if line.state in ("done", "failed") or (line.state == "cached" and self._show_cached):
                self._print(line, line.text)

    def moved(self, line: Line) -> None:
        """Nothing: the heartbeat speaks."""

    def close(self) -> None:
        """End the heartbeat."""
        self._closed.set()

    def _beat(self) -> None:
        while not self._closed.wait(1.0):
            with self._lock:
                for line in sorted(self._running, key=lambda running: running.began):
                    if time.monotonic() - line.spoke >= HEARTBEAT:
                        line.spoke = time.monotonic()
                        self._print(line, line.measure())

    def _print(self, line: Line, text: str) -> None:
        clock = "" if line.state == "cached" else f"{line.seconds:6.1f} s"
        if line.state == "running" and len(text) > WIDTH:
            text = text[: WIDTH - 1] + "…"
        self._stream.write(f"{line.cell}  {line.stage:<12} {line.state:<8} {clock:>8}  {text}".rstrip() + "\n")
        self._stream.flush()


class Live:
    """Lines on a terminal, drawn by rich: a spinner or a bar while a stage runs, its summary when it has ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self._bars = Bars(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[cell]}", style="dim", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[stage]}", style="bold", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[clock]}", justify="right", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=Console(stderr=True),
            expand=True,
            refresh_per_second=8,
        )
        self._lines: list[Line] = []
        self._bars.start()
        self._closed = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def line(self, cell: str, stage: str) -> Line:
        """Return a new line for a stage of a cell."""
        return Line(self, cell, stage)

    def changed(self, line: Line) -> None:
        """Draw a line that began, ended or learnt its size."""
        if line.shown is None:
            line.shown = self._bars.add_task("", total=None, **self._fields(line))
            self._lines.append(line)
        self.moved(line)

    def moved(self, line: Line) -> None:
        """Draw how far a line is."""
        if line.shown is None:
            return
        ended = line.state in ("done", "cached", "failed")
        total = 1 if ended else line.total
        self._bars.update(line.shown, total=total, completed=1 if ended else line.count, **self._fields(line))

    def close(self) -> None:
        """Leave the last picture on the screen."""
        self._closed.set()
        self._bars.stop()

    def _tick(self) -> None:
        while not self._closed.wait(0.5):
            for line in self._lines:
                if line.state == "running":
                    self.moved(line)

    def _fields(self, line: Line) -> dict[str, Any]:
        colour = {"done": "green", "cached": "cyan", "failed": "red"}.get(line.state, "yellow")
        return {
            "cell": line.cell,
            "stage": line.stage,
            "state": f"[{colour}]{line.state}[/]",
            "clock": "" if line.state in ("cached", "waiting") else f"{line.seconds:.1f} s",
            "text": line.text if line.state != "running" else line.measure(),
        }


def progress_for(stream: TextIO) -> Progress:
    """Return live lines for a terminal and plain ones for anything else."""
    return Live() if stream.isatty() else Plain(stream)
