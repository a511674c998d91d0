"""A shard, written as it is planned: read, computed, written and hashed side by side through buffers that are used again."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from release.builders.weights.disk import Buffer, Source, Target, buffer
from release.builders.weights.header import Tensor
from release.builders.weights.jobs import CHUNK, ROOM, Active, Job, Piece, jobs
from release.builders.weights.kernels import Strip, storage
from release.builders.weights.plan import Shard
from release.errors import ReleaseError, StageError, StoreError

INPUTS: Final = 3
OUTPUTS: Final = 6
"""Buffers for input and for output: 3 × 28 MiB and 6 × 8 MiB at most."""
COMPUTERS: Final = min(2, os.cpu_count() or 1)
WRITERS: Final = 2


@dataclass(frozen=True)
class Written:
    """A finished shard: its digest (`sha256:…`), its bytes, when it was last changed, and the counts of tensors that are not zero."""

    sha256: str
    size: int
    mtime_ns: int
    counts: dict[str, dict[str, int]]


@dataclass
class Pool:
    """The buffers of a run, and its open sources; of one shard at a time. Use as a context: it closes the sources."""

    folder: Path
    inputs: list[Buffer] = field(default_factory=lambda: [buffer(ROOM) for _ in range(INPUTS)])
    outputs: list[Buffer] = field(default_factory=lambda: [buffer(CHUNK) for _ in range(OUTPUTS)])
    sources: dict[str, Source] = field(default_factory=dict)

    def source(self, file: str) -> Source:
        """Return a file of the checkpoint, opened."""
        if file not in self.sources:
            self.sources[file] = Source(self.folder / file)
        return self.sources[file]

    def close(self, kept: Iterable[str] = ()) -> None:
        """Close all sources but those that are kept."""
        for file in set(self.sources) - set(kept):
            self.sources.pop(file).close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def write_shard(pool: Pool, shard: Shard, folder: Path, refuse: frozenset[str], on_bytes: Callable[[int], None]) -> Written:
    """Write a shard into `folder` and return what came out; it is durable then, and was not there by half before.

    `refuse` names counts that are errors beside the kernels' fatal ones; `on_bytes(n)` hears of every n bytes that are streamed in.
    Raises StageError for a count that is an error, naming the tensor, and StoreError for a full disk; nothing of the file remains then.
    """
    try:
        target = Target(folder / shard.file, shard.size)
    except OSError as problem:
        raise full(problem, folder) from problem
    try:
        run = _Run(pool, shard, target, refuse, on_bytes)
        digest = run.perform()
        found = target.finish()
    except OSError as problem:
        raise full(problem, folder) from problem
    finally:
        target.abandon()
        pool.close()
    return Written(digest, shard.size, found.st_mtime_ns, run.counted)


def full(problem: OSError, folder: Path) -> ReleaseError:
    """Return the error that says what the disk refused."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left on the disk of {folder}",
            next_step="free some and start again: finished shards are kept, and not made again",
        )
    return StoreError(f"{problem.filename or folder} cannot be used: {problem.strerror}")


class _Run:
    """One shard on its way: a thread that reads, some that compute, some that write, one that hashes. The first problem ends all."""

    def __init__(self, pool: Pool, shard: Shard, target: Target, refuse: frozenset[str], on_bytes: Callable[[int], None]) -> None:
        self.pool, self.shard, self.target, self.refuse, self.on_bytes = pool, shard, target, refuse, on_bytes
        self.counted: dict[str, dict[str, int]] = {}
        self.problem: BaseException | None = None
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.digest = hashlib.sha256()
        self.empty: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self.read: queue.SimpleQueue[tuple[Job, Buffer, Buffer] | None] = queue.SimpleQueue()
        self.made: queue.SimpleQueue[tuple[Job, Buffer] | None] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[tuple[Job, Buffer] | None] = queue.SimpleQueue()
        self.users: dict[int, int] = {}
        for array in pool.inputs:
            self.empty.put(array)
        for array in pool.outputs:
            self.free.put(array)

    def perform(self) -> str:
        """Run to the end and return the digest. Raises the first problem of any thread."""
        computing = [self._thread(self._compute) for _ in range(COMPUTERS)]
        following = [*(self._thread(self._write) for _ in range(WRITERS)), self._thread(self._hash)]
        reading = self._thread(self._read)
        try:
            for thread in (reading, *computing):
                thread.join()
            for _ in following:
                self.made.put(None)
            self.ready.put(None)
            for thread in following:
                thread.join()
        except BaseException as problem:  # an interrupt comes to this thread alone
            self._stop(problem)
            for thread in (reading, *computing, *following):
                thread.join()
        if self.problem is not None:
            raise self.problem
        return "sha256:" + self.digest.hexdigest()

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as problem:
                self._stop(problem)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _stop(self, problem: BaseException) -> None:
        with self.lock:
            if self.problem is None:
                self.problem = problem
        self.stopping.set()
        for waiting in (self.empty, self.free, self.read, self.made, self.ready):
            for _ in range(COMPUTERS + WRITERS + 2):
                waiting.put(None)

    def _read(self) -> None:
        for job in jobs(self.shard):
            source, out = self.empty.get(), self.free.get()
            if source is None or out is None or self.stopping.is_set():
                return
            for piece in job.pieces:
                if piece.active.aside is None:
                    piece.active.aside = tuple(self._whole(tensor) for tensor in piece.active.step.aside)
            for read in job.reads:
                self.pool.source(read.file).read(read.begin, read.end, source, read.where)
            self.read.put((job, source, out))
        for _ in range(COMPUTERS):
            self.read.put(None)

    def _whole(self, tensor: Tensor) -> Any:
        return self.pool.source(tensor.file).whole(tensor.offset, tensor.offset + tensor.size).view(storage(tensor.dtype))

    def _compute(self) -> None:
        while (item := self.read.get()) is not None and not self.stopping.is_set():
            job, source, out = item
            out[: len(job.head)] = np.frombuffer(job.head, np.uint8)
            for piece in job.pieces:
                if piece.number == 0:
                    compute(piece, source, out)
                    self._judge(piece.active)
            for piece in job.pieces:
                if piece.number:
                    self._side(piece, out)
            self.on_bytes(sum(read.end - read.begin for read in job.reads))
            self.empty.put(source)
            with self.lock:
                self.users[job.number] = 2
            self.made.put((job, out))
            self.ready.put((job, out))

    def _judge(self, active: Active) -> None:
        """Raise StageError if the step has counted an error; note its counts when it is done."""
        kernel = active.kernel
        found = {name: int(count) for name, count in zip(kernel.counts, active.counts, strict=True) if count}
        if wrong := sorted(set(found) & (kernel.fatal | self.refuse)):
            raise refusal(active.step.outputs[0].name, kernel.name, {name: found[name] for name in wrong})
        if found and active.left == 0:
            with self.lock:
                self.counted[active.step.outputs[0].name] = found

    def _side(self, piece: Piece, out: Buffer) -> None:
        """Copy a part of a side, after all rows that it is found from were computed: they belong to jobs that are under way."""
        active = piece.active
        with active.changed:
            while active.left and not self.stopping.is_set():
                active.changed.wait(0.05)
        side = active.sides[piece.number - 1].view(np.uint8)
        out[piece.at : piece.at + piece.high - piece.low] = side[piece.low : piece.high]

    def _write(self) -> None:
        while (item := self.made.get()) is not None and not self.stopping.is_set():
            job, out = item
            self.target.write(out, job.size, job.offset)
            self._release(job, out)

    def _hash(self) -> None:
        waiting: dict[int, tuple[Job, Buffer]] = {}
        number = 0
        while (item := self.ready.get()) is not None and not self.stopping.is_set():
            waiting[item[0].number] = item
            while number in waiting:
                job, out = waiting.pop(number)
                self.digest.update(out[: job.size].data)
                self._release(job, out)
                number += 1

    def _release(self, job: Job, out: Buffer) -> None:
        with self.lock:
            self.users[job.number] -= 1
            done = self.users[job.number] == 0
            if done:
                del self.users[job.number]
        if done:
            self.free.put(out)


MEANINGS: Final = {
    "nan": "holds a NaN",
    "infinite": "holds an infinity",
    "overflow": "holds numbers that are too large",
    "scale": "has a scale that is no finite number of sense",
}


def refusal(name: str, kernel: str, found: dict[str, int]) -> StageError:
    """Return the error for counts that are errors."""
    said = " and ".join(f"{MEANINGS.get(what, what)}" for what in found)
    step = "the checkpoint is damaged: fetch it again"
    if not set(found) & {"nan", "scale"}:
        step = "keep the wider type, or allow it: what does not fit becomes infinite"
    return StageError(f"tensor {name} {said} ({kernel})", next_step=step)


def compute(piece: Piece, source: Buffer, out: Buffer) -> None:
    """Fill a piece of a chunk from a job's input, and note what was counted."""
    active = piece.active
    step = active.step
    target = out[piece.at : piece.at + piece.high - piece.low]
    counts = np.zeros(len(active.kernel.counts), np.int64)
    if step.source is None:
        data = np.frombuffer(step.data, np.uint8)
        start = piece.low % data.size
        target[:] = data[0] if data.size == 1 else np.resize(np.roll(data, -start), target.size)
    elif piece.read is not None:
        where = piece.read.where + piece.inside
        if step.kernel == "copy":
            target[:] = source[where : where + target.size]
        else:
            _convert(active, piece, source, where, target, counts)
    active.made(piece.high - piece.low, counts)


def _convert(active: Active, piece: Piece, source: Buffer, where: int, target: Buffer, counts: Any) -> None:
    """Run the kernel; of a row that only partly belongs to the piece, into memory of its own."""
    unit = active.out_row
    low, high = piece.low, piece.high
    cuts: Sequence[tuple[int, int]] = ((low, high),)
    if active.by_row:
        inner = sorted({low, min(high, -(-low // unit) * unit), max(low, high // unit * unit), high})
        cuts = tuple(pairwise(inner))
    base = low // unit * active.source_row
    for begin, end in cuts:
        first, last = active.needs(begin, end)
        taken = source[where + first - base : where + last - base]
        goal = target[begin - low : end - low]
        if active.by_row and (begin % unit or end % unit):
            whole = np.empty(-(-end // unit) * unit - begin // unit * unit, np.uint8)
            _strip(active, taken, first, whole, begin // unit, counts)
            goal[:] = whole[begin % unit : begin % unit + end - begin]
        else:
            _strip(active, taken, first, goal, begin // unit, counts)


def _strip(active: Active, source: Buffer, first: int, out: Buffer, row: int, counts: Any) -> None:
    step = active.step
    assert step.source is not None
    wide = storage(step.source.dtype)
    if source.ctypes.data % active.source_width:  # a tensor that its file does not align
        source = source.copy()
    sides = []
    if active.by_row:
        rows = source.size // active.source_row if active.source_row else 0
        for array, output in zip(active.sides, step.outputs[1:], strict=True):
            per = array.size // max(1, output.shape[0])
            sides.append(array[row * per : (row + rows) * per])
    strip = Strip(
        source.view(wide),
        out.view(storage(step.outputs[0].dtype)),
        first // active.source_width,
        step.source.shape,
        active.aside or (),
        tuple(sides),
        counts,
        step.parameters,
    )
    active.run(strip)
