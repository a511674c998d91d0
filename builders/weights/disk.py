"""Reading and writing large files past the page cache: aligned buffers that are used again, O_DIRECT where the disk takes it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from release.errors import StageError

PAGE: Final = 4096
"""What offsets, lengths and addresses of O_DIRECT are multiples of."""
SMALL: Final = 32 << 20
"""Bytes up to which a file goes through the page cache: what is small may well be there, and is read soon."""
DIRECT: Final = getattr(os, "O_DIRECT", 0)
NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)
Buffer = NDArray[np.uint8]


def up(number: int, multiple: int = PAGE) -> int:
    """Return the next multiple."""
    return -(-number // multiple) * multiple


def buffer(size: int) -> Buffer:
    """Return an array of bytes at the start of a page. Its pages become memory when they are first written, and stay."""
    return np.frombuffer(mmap.mmap(-1, up(size)), dtype=np.uint8)


class Source:
    """A file to read from: by O_DIRECT if it is large and not in the page cache already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size
        self.direct = -1
        if DIRECT and self.size > SMALL:
            with contextlib.suppress(OSError):
                self.direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | DIRECT)

    def close(self) -> None:
        """Close the file, and leave nothing of it in the page cache if it was read through it."""
        if self.size > SMALL and self.direct < 0:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(self.descriptor)
        if self.direct >= 0:
            os.close(self.direct)

    def read(self, begin: int, end: int, into: Buffer, where: int) -> None:
        """Read the bytes from `begin` to `end` to into[where:].

        For O_DIRECT, `where` and `begin` lie as far behind a page, and whole pages around the bytes are overwritten.
        """
        if self.direct >= 0 and (where - begin) % PAGE == 0 and end - begin >= PAGE:
            if self._cached(begin, end, into, where):
                return
            low, high = begin - begin % PAGE, min(up(end), up(self.size))
            start = where - begin % PAGE
            try:
                self._fill(self.direct, low, into[start : start + high - low].data, end - low)
            except OSError as problem:
                if problem.errno != errno.EINVAL:
                    raise
                os.close(self.direct)
                self.direct = -1
            else:
                return
        self._fill(self.descriptor, begin, into[where : where + end - begin].data, end - begin)

    def whole(self, begin: int, end: int) -> Buffer:
        """Return a few bytes in memory of their own, through the page cache."""
        found = np.empty(end - begin, np.uint8)
        self._fill(self.descriptor, begin, found.data, end - begin)
        return found

    def _cached(self, begin: int, end: int, into: Buffer, where: int) -> bool:
        """Read from the page cache if all of it is there."""
        if not NOWAIT:
            return False
        try:
            return os.preadv(self.descriptor, [into[where : where + end - begin].data], begin, NOWAIT) == end - begin
        except OSError:
            return False

    def _fill(self, descriptor: int, offset: int, view: memoryview, needed: int) -> None:
        done = 0
        while done < needed:
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise StageError(
                    f"{self.path.name} ends at {offset + done} while it is read", next_step="nothing may change it meanwhile"
                )
            done += count


class Target:
    """A file to write: whole pages at offsets that are whole pages, in any order; the last chunk may end anywhere.

    It is written under another name, and `finish` makes it durable and gives it its own.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.writing = path.with_name(f".{path.name}.writing")
        self.writing.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.is_direct = bool(DIRECT) and size > SMALL
        try:
            self.descriptor = os.open(self.writing, flags | (DIRECT if self.is_direct else 0), 0o644)
        except OSError as problem:
            if not self.is_direct or problem.errno != errno.EINVAL:
                raise
            self.writing.unlink(missing_ok=True)
            self.is_direct = False
            self.descriptor = os.open(self.writing, flags, 0o644)

    def write(self, chunk: Buffer, size: int, offset: int) -> None:
        """Write the first `size` bytes of a chunk; the buffer has room up to the next page."""
        view: memoryview = chunk[: up(size) if self.is_direct else size].data
        done = 0
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], offset + done)

    def finish(self) -> os.stat_result:
        """Cut the file to its size, make it durable, give it its name; return what it is then."""
        os.ftruncate(self.descriptor, self.size)
        os.fsync(self.descriptor)
        if not self.is_direct and self.size > SMALL:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.fchmod(self.descriptor, 0o644)
        found = os.fstat(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = -1
        os.replace(self.writing, self.path)
        sync_folder(self.path.parent)
        return found

    def abandon(self) -> None:
        """Remove what was written so far."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.writing.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
