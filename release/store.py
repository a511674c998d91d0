"""The content-addressed folder in which stage outputs live: has, get, put; a lock a key; blobs shared by all cells."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from release.errors import StoreError

ENTRY: Final = ".entry.json"
"""Inside an entry: the stage, its key, what it read, when and how long it ran. Written last, before the rename."""


def default_path() -> Path:
    """Return where the store lies: $RELEASE_STORE, else $XDG_CACHE_HOME/release, else ~/.cache/release."""
    if chosen := os.environ.get("RELEASE_STORE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "release"


class Store:
    """A local store. An entry is a folder under `entries/<key>`; it exists completely or not at all.

    Keys are 64 hex digits. Entries are never changed after they appeared.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, key: str) -> bool:
        """Say whether the entry exists."""
        return (self._entry(key) / ENTRY).is_file()

    def get(self, key: str) -> Path:
        """Return the folder of an entry. Raises StoreError where there is none."""
        if not self.has(key):
            raise StoreError(f"the store {self.path} has no entry {key}")
        return self._entry(key)

    def facts(self, key: str) -> dict[str, Any]:
        """Return what `put` was told about an entry: stage, reads, needs, seconds, created."""
        try:
            facts: dict[str, Any] = json.loads((self.get(key) / ENTRY).read_bytes())
            if not isinstance(facts, dict):
                raise ValueError("it is no object")
            return facts
        except ValueError as problem:
            raise StoreError(f"entry {key} is damaged: {problem}", next_step=f"remove {self._entry(key)}") from problem

    def put(self, key: str, facts: Mapping[str, Any], work: Callable[[Path], None]) -> Path:
        """Let `work` fill a temporary folder and make it the entry `key` by one rename; return the entry.

        When `work` raises, nothing of it remains. Raises StoreError when the disk is full or refuses to be written.
        """
        with self._refusals():
            temporary = self._folder("tmp") / f"{key[:16]}-{uuid.uuid4().hex[:12]}"
            temporary.mkdir()
        try:
            with self._refusals():
                work(temporary)
                (temporary / ENTRY).write_text(json.dumps(dict(facts), indent=1, sort_keys=True))
                entry = self._entry(key)
                entry.parent.mkdir(parents=True, exist_ok=True)
                if (
                    entry.exists()
                ):  # damaged, or reached from inputs that are others now; moved, so that it never stands there by half
                    entry.rename(temporary.with_name(temporary.name + ".old"))
                temporary.rename(entry)
        finally:
            for leftover in (temporary, temporary.with_name(temporary.name + ".old")):
                shutil.rmtree(leftover, ignore_errors=True)
        return self._entry(key)

    def bring(self, key: str) -> bool:
        """Say whether the entry is here. A store that stands before a remote one first tries to get it from there."""
        return self.has(key)

    def share(self, key: str) -> None:
        """Let others have an entry: nothing to do for a store that nobody shares."""

    @contextlib.contextmanager
    def locked(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of a key: two builds that need the same key wait for one another. The kernel frees it however we end."""
        with self._refusals():
            stream = (self._folder("locks") / key).open("a")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                on_wait()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def partial(self, key: str) -> Path:
        """Return a folder that outlives a killed stage, for stages that resume inside. `settle` removes it."""
        with self._refusals():
            folder = self._folder("partial") / key
            folder.mkdir(exist_ok=True)
            return folder

    def settle(self, key: str) -> None:
        """Remove the folder of `partial`."""
        shutil.rmtree(self.path / "partial" / key, ignore_errors=True)

    def blob(self, digest: str) -> Path:
        """Return where the file with this digest (`sha256:<hex>`) lies or would lie."""
        return self._folder("blobs") / digest.removeprefix("sha256:")

    def blob_name(self, digest: str) -> Path:
        """Return where the name of a blob's file is noted; tools read meaning from some names, a wheel's for one."""
        return self._folder("blobs") / (digest.removeprefix("sha256:") + ".name")

    def note_blob(self, digest: str, name: str) -> None:
        """Note the file name of a blob. Before `keep_blob`, so that a blob never stands without the name that it needs."""
        with self._refusals():
            write_whole(self.blob_name(digest), name)

    def keep_blob(self, source: Path, digest: str) -> Path:
        """Take a file whose digest the caller has checked into the store, by link or copy, and return its place."""
        from release.oci import link_or_copy

        with self._refusals():
            link_or_copy(source, self.blob(digest))
        return self.blob(digest)

    def scratch(self) -> Path:
        """Return the folder for temporary files on the store's own disk; what a killed build left there is swept."""
        with self._refusals():
            return self._folder("tmp")

    def sweep(self) -> None:
        """Remove the temporary folders of stages that were killed. Only for who holds the store alone: see `in_use`."""
        folder = self.path / "tmp"
        for leftover in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Say that a build works here; the first one to come sweeps what earlier ones left. Where nobody may write, nobody clears up."""
        try:
            stream = (self._folder("locks") / "in-use").open("a")
        except OSError as problem:
            if problem.errno in (errno.EACCES, errno.EROFS) and self.path.is_dir():
                yield
                return
            with self._refusals():
                raise
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.sweep()
            except OSError:
                pass
            fcntl.flock(stream, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the store alone. Raises StoreError where a build works in it."""
        with (self._folder("locks") / "in-use").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                raise StoreError(f"a build works in the store {self.path}", next_step="wait until it has ended") from problem
            yield

    def entries(self) -> list[str]:
        """Return the keys of all entries."""
        return sorted(path.name for path in (self.path / "entries").glob("*/*"))

    def discard(self, key: str) -> None:
        """Remove an entry: it is gone at once, or there whole. Only for who holds the store alone."""
        temporary = self.scratch() / f"{key[:16]}-{uuid.uuid4().hex[:12]}"
        self._entry(key).rename(temporary)
        shutil.rmtree(temporary)

    def _entry(self, key: str) -> Path:
        return self.path / "entries" / key[:2] / key

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"no space left on the disk of {self.path}",
                    next_step="free some space or set RELEASE_STORE to another disk; `release doctor` shows what is needed",
                ) from problem
            if str(problem.filename or "").startswith(str(self.path)):
                raise StoreError(
                    f"{problem.filename} cannot be used: {problem.strerror}", next_step="set RELEASE_STORE to a folder of yours"
                ) from problem
            raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is never there by half: a temporary one beside it, then a rename."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
