"""What the store need not keep: entries that no plan of the matrix and no last build names, and files that no entry shares any more."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.errors import MatrixError, UsageError
from release.house import House

DAY: Final = 86_400
"""Seconds."""


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be: entries, downloaded files, half-done stages, and the bytes that only they held."""

    entries: int
    files: int
    halves: int
    bytes: int
    kept: int


def collect(house: House, days: int, *, dry_run: bool = False) -> Collected:
    """Remove from the store what is older than `days` and of no use to any cell: neither its present plan nor its last build names it.

    What was laid out (under dist), pulled or exported needs nothing of the store, and stays whole: its files are copies, or links of their own,
    whose bytes are not counted here. A build's entries are not touched from before it looks for them until its release is laid out.
    Raises StoreError where a build works in the store: what it needs may be what another matrix knows.
    """
    store, before = house.store, time.time() - days * DAY
    with store.alone():
        needed = set(_needed(house))
        entries = [key for key in store.entries() if key not in needed and store.get(key).stat().st_mtime < before]
        size = sum(_size(store.get(key)) for key in entries)
        halves = [path for path in (store.path / "partial").glob("*") if path.stat().st_mtime < before]
        size += sum(map(_size, halves))
        going = {key: _names(store.get(key)) for key in entries}
        if not dry_run:
            for key in entries:
                store.discard(key)
            for path in halves:
                shutil.rmtree(path, ignore_errors=True)
        gone = Counter(node for nodes in going.values() for node in nodes) if dry_run else Counter[int]()
        files = [path for path in (store.path / "blobs").glob("*") if _is_loose(path, before, gone)]
        size += sum(path.stat().st_size for path in files)
        if not dry_run:
            for path in files:
                path.unlink()
                path.with_name(path.name + ".name").unlink(missing_ok=True)
        return Collected(len(entries), len(files), len(halves), size, len(needed & set(store.entries())))


def _needed(house: House) -> Iterator[str]:
    """Yield the keys that plans and last builds name, of imported bases too. A cell that is refused has no plan."""
    for cell, _ in house.matrix.cells():
        yield from house.history(cell).values()
        try:
            tasks = house.graph(cell, None).tasks
        except (MatrixError, UsageError):
            continue
        yield from tasks
        for task in tasks.values():
            if task.stage.name == "base" and (image := task.reads["base"].get("image")):
                yield str(image).rpartition("@sha256:")[2]


def _names(entry: Path) -> list[int]:
    """Return the inodes of an entry's files."""
    return [path.stat().st_ino for path in entry.rglob("*") if path.is_file() and not path.is_symlink()]


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files that are nowhere else."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.stat().st_nlink == 1)


def _is_loose(path: Path, before: float, gone: Counter[int]) -> bool:
    """Say whether no entry shares a downloaded file, once those that hold the inodes `gone` are gone."""
    if path.suffix == ".name" or not path.is_file():
        return False
    facts = path.stat()
    return facts.st_nlink - gone[facts.st_ino] <= 1 and facts.st_mtime < before
