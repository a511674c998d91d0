"""Evidence files of a consistency check: JSONL that grows record by record, survives a crash, and says what was asked."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from release.errors import StageError
from release.types import JSON
from release.validators.samples import json_lines

ANEW: Final = "remove the folder of this evidence to start anew"


class Log:
    """One evidence file while it grows: a context manager that holds the file alone.

    The first line is the header {"asked": …}, then one record a line with its `key`, and in a finished file {"end": n}. Entering
    keeps what an earlier run left under the same header (`done`: its keys), cuts off a torn last line, and starts the file anew
    under another header. Raises StageError if another process writes it or if a line is damaged.
    """

    def __init__(self, path: Path, asked: JSON) -> None:
        self.path = path
        self.asked = json.loads(json.dumps(asked))
        self.done: set[str] = set()
        self.finished = False
        self._descriptor = -1
        self._guard = threading.Lock()

    def __enter__(self) -> Log:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self._resume()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise StageError("another check writes this file", where=str(self.path), next_step="wait for it") from problem

    def _resume(self) -> None:
        size = self.path.stat().st_size
        whole = _whole(self.path, size)
        lines = _lines(self.path, whole) if whole else iter(())
        if next(lines, None) != {"asked": self.asked}:
            os.ftruncate(self._descriptor, 0)
            self._write({"asked": self.asked})
            return
        for line in lines:
            if "end" in line:
                self.finished = line["end"] == len(self.done)
            elif isinstance(line.get("key"), str):
                self.done.add(line["key"])
            else:
                raise StageError("a line has no key", where=str(self.path), next_step=ANEW)
        if whole < size:
            os.ftruncate(self._descriptor, whole)

    def _write(self, record: JSON) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise StageError("a record could not be written whole: is the disk full?", where=str(self.path))

    def append(self, key: str, record: JSON) -> None:
        """Write one record: one write of one whole line, so that a crash tears at most the last one. Safe from any thread."""
        with self._guard:
            self._write({"key": key, **record})
            self.done.add(key)

    def finish(self) -> None:
        """Say that nothing is missing."""
        if not self.finished:
            self._write({"end": len(self.done)})
            os.fsync(self._descriptor)
            self.finished = True


def read_log(path: Path) -> Iterator[JSON]:
    """Yield the records of a finished evidence file. Raises StageError if it is missing, damaged or not finished."""
    count, ended = 0, False
    try:
        for number, line in enumerate(_lines(path, path.stat().st_size)):
            if "end" in line:
                ended = line["end"] == count
            elif number:
                count += 1
                yield line
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    if not ended:
        raise StageError("this evidence is not finished", where=str(path), next_step="run the check again: it resumes")


def header_of(path: Path) -> JSON:
    """Return what was asked for an evidence file. Raises StageError if it says nothing."""
    try:
        first = next(_lines(path, path.stat().st_size), {})
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    asked = first.get("asked")
    if not isinstance(asked, dict):
        raise StageError("says nowhere what was asked", where=str(path), next_step=ANEW)
    return asked


def digest_of(path: Path) -> str:
    """Return the digest of a file. Raises StageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem


def write_whole(path: Path, document: JSON) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _whole(path: Path, size: int) -> int:
    """Return where the last whole line of a file ends."""
    with path.open("rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
    return 0


def _lines(path: Path, size: int) -> Iterator[JSON]:
    """Yield the JSON objects of the first `size` bytes of a file, a line at a time."""
    with path.open("rb") as file:
        number, read = 0, 0
        while read < size and (line := file.readline()):
            number, read = number + 1, read + len(line)
            try:
                yield from (value for _, value in json_lines(line, path, StageError))
            except StageError as problem:
                raise StageError(f"line {number} is damaged: {problem.message}", where=str(path), next_step=ANEW) from problem
