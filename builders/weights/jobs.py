"""A shard cut into jobs: chunks of the output that begin and end at whole pages, each with what must be read and computed for it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from release.builders.weights.disk import PAGE, up
from release.builders.weights.header import WIDTH
from release.builders.weights.kernels import ROW_LIMIT, Kernel, kernel, storage
from release.builders.weights.plan import Shard, Step

CHUNK: Final = 8 << 20
"""Bytes of the output that a job makes, at most."""
INPUT: Final = 16 << 20
"""Bytes after which a job takes in no more than it must."""
ROOM: Final = INPUT + 2 * ROW_LIMIT + (4 << 20)
"""Bytes of a buffer for input: a job that has INPUT may still need two rows, and the margins of small reads, to fill a page."""
PIECES: Final = 2000
"""Pieces after which a job takes no more than it must: of tensors that are a few bytes each."""
WORTH: Final = 64 << 10
"""Bytes from which a read is laid out so that O_DIRECT can do it."""


class Active:
    """A step while it runs: the tensors that it was given whole, its sides, what it counted, and how much of it is done."""

    __slots__ = (
        *("step", "kernel", "run", "aside", "sides", "counts", "left", "changed"),
        *("width", "by_row", "out_row", "source_width", "source_row"),
    )
    MADE: ClassVar = threading.Condition()
    """One for all: it is held for the time of an addition."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.kernel: Kernel = kernel(step.kernel)
        self.run = self.kernel.makes()
        self.aside: tuple[NDArray[Any], ...] | None = () if not step.aside else None
        self.sides = tuple(np.zeros(output.size // WIDTH[output.dtype], storage(output.dtype)) for output in step.outputs[1:])
        self.counts = np.zeros(len(self.kernel.counts), np.int64)
        self.left = step.outputs[0].size
        self.changed = self.MADE
        out, source = step.outputs[0], step.source
        self.width = WIDTH[out.dtype]
        self.by_row = self.kernel.by == "row"
        rows = max(1, out.shape[0]) if self.by_row else 1
        self.out_row = out.size // rows if self.by_row else self.width
        self.source_width = WIDTH[source.dtype] if source else 1
        self.source_row = (source.size // rows if self.by_row else self.source_width) if source else 0
        if self.kernel.name == "copy":
            self.width = self.out_row = self.source_width = self.source_row = 1

    def needs(self, low: int, high: int) -> tuple[int, int]:
        """Return which bytes of the source make the bytes `low` to `high` of the first output: whole elements, or whole rows."""
        return low // self.out_row * self.source_row, -(-high // self.out_row) * self.source_row

    def made(self, size: int, counts: NDArray[np.int64]) -> None:
        """Say that so many bytes more of the first output are done."""
        with self.changed:
            self.left -= size
            self.counts += counts
            if self.left == 0:
                self.changed.notify_all()


@dataclass(slots=True)
class Read:
    """Bytes of a file, and where in a job's input they go."""

    file: str
    begin: int
    end: int
    where: int = 0


@dataclass(slots=True)
class Piece:
    """A part of an output: the bytes `low` to `high` of output `number` of a step, at `at` of the chunk; from `inside` of a read."""

    active: Active
    number: int
    low: int
    high: int
    at: int
    read: Read | None = None
    inside: int = 0


@dataclass(slots=True)
class Job:
    """A chunk of the output: `size` bytes from `offset` on, `head` first, then the pieces."""

    number: int
    offset: int
    head: bytes = b""
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    needed: int = 0

    def add(self, active: Active, number: int, low: int, high: int) -> None:
        """Append a part of an output, and what must be read for it."""
        piece = Piece(active, number, low, high, self.size)
        self.size += high - low
        self.pieces.append(piece)
        source = active.step.source
        if number or source is None or high == low:
            return
        first, last = active.needs(low, high)
        begin, end = source.offset + first, source.offset + last
        previous = self.reads[-1] if self.reads else None
        if previous is not None and previous.file == source.file and previous.end == begin:
            previous.end = end
            self.needed += end - begin
        else:
            self.reads.append(previous := Read(source.file, begin, end))
            self.needed += end - begin + (2 * PAGE if end - begin >= WORTH else 64)
        piece.read, piece.inside = previous, begin - previous.begin

    @property
    def is_full(self) -> bool:
        """Say whether it should end at the next page."""
        return self.needed >= INPUT or len(self.pieces) >= PIECES

    def settle(self) -> None:
        """Decide where in the input each read goes: as far behind a page as in its file if it is worth O_DIRECT."""
        at = 0
        for read in self.reads:
            size = read.end - read.begin
            step = PAGE if size >= WORTH else 64
            read.where = up(at, step) + read.begin % step
            at = up(read.where + size, PAGE) if step == PAGE else read.where + size


def jobs(shard: Shard) -> Iterator[Job]:
    """Yield the jobs of a shard, in the order of their bytes."""
    head = shard.header
    active: dict[int, Active] = {}
    reached = 0
    job = Job(0, 0)
    for at in range(0, len(head), CHUNK):
        job.head = head[at : at + CHUNK]
        job.size = len(job.head)
        if job.size == CHUNK:
            yield job
            reached += CHUNK
            job = Job(job.number + 1, reached)
    for step, number in shard.layout:
        found = active.get(id(step)) or active.setdefault(id(step), Active(step))
        if len(step.outputs) == 1:
            del active[id(step)]
        size, low = step.outputs[number].size, 0
        while low < size:
            high = low + _part(job, found, number, size - low)
            job.add(found, number, low, high)
            low = high
            if job.size == CHUNK or (job.is_full and job.size % PAGE == 0):
                job.settle()
                yield job
                reached += job.size
                job = Job(job.number + 1, reached)
    if job.size:
        job.settle()
        yield job


def _part(job: Job, active: Active, number: int, left: int) -> int:
    """Return how many bytes of an output the job takes: up to a chunk, and up to the next page once its input is full."""
    room = CHUNK - job.size
    if job.is_full:
        room = min(room, up(job.size + 1) - job.size)
    if number == 0 and active.step.source is not None:
        per_byte = active.source_row / max(1, active.out_row)
        affordable = math.floor(max(0, INPUT - job.needed) / per_byte) if per_byte else room
        page = up(job.size + max(1, affordable)) - job.size
        room = min(room, page)
    return min(room, left)
