"""What became of the cells of each run, kept in the store: one small file a run, a line a cell, for triage and status."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from release.store import Store
from release.types import JSON

SCHEMA: Final = "release-journal/1"
KEPT: Final = 100
"""Runs that are kept; older ones are removed when a new one begins."""
LONGEST: Final = 1 << 24
"""Bytes beyond which a file is none of ours."""


@dataclass(frozen=True)
class Journal:
    """The journal of a run that is going on. A store that refuses it costs the build nothing: then there is none."""

    path: Path

    @classmethod
    def begin(cls, store: Store, cells: Sequence[str], until: str | None) -> Journal:
        """Begin the journal of a run over `cells`."""
        now = datetime.now(UTC)
        journal = cls(_folder(store) / f"{now:%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl")
        with contextlib.suppress(OSError):
            journal.path.parent.mkdir(parents=True, exist_ok=True)
            for old in sorted(journal.path.parent.glob("*.jsonl"))[: -KEPT + 1]:
                old.unlink(missing_ok=True)
        journal.note({"schema": SCHEMA, "began": now.isoformat(timespec="seconds"), "cells": list(cells), "until": until})
        return journal

    def note(self, line: JSON) -> None:
        """Append a line, by one write."""
        with contextlib.suppress(OSError), self.path.open("ab") as stream:
            stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def end(self, seconds: float) -> None:
        """Note that the run came to its end."""
        self.note({"ended": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 3)})


@dataclass(frozen=True)
class Past:
    """A run that was: when it began (ISO 8601), what it was to build, what became of each cell, and whether it came to its end."""

    began: str
    cells: tuple[str, ...]
    fates: dict[str, JSON] = field(default_factory=dict)
    ended: str | None = None
    moved: tuple[str, ...] = ()
    """Stages that went to another machine, and why."""


def runs(store: Store) -> list[Past]:
    """Return the runs of a store, the latest first; a file that is none of ours is left out."""
    found = (read(path) for path in sorted(_folder(store).glob("*.jsonl"), reverse=True))
    return [past for past in found if past is not None]


def read(path: Path) -> Past | None:
    """Return the run that a journal tells of: all its whole lines, also where the last one is torn. None for what is no journal."""
    try:
        if path.stat().st_size > LONGEST:
            return None
        lines = [line for text in path.read_bytes().split(b"\n") if (line := _line(text)) is not None]
    except OSError:
        return None
    if not lines or lines[0].get("schema") != SCHEMA or not isinstance(lines[0].get("cells"), list):
        return None
    fates = {str(line["cell"]): line for line in lines[1:] if isinstance(line.get("cell"), str)}
    ended = next((str(line["ended"]) for line in lines if "ended" in line), None)
    moved = tuple(str(line["moved"]) for line in lines if "moved" in line)
    return Past(str(lines[0].get("began")), tuple(map(str, lines[0]["cells"])), fates, ended, moved)


def _line(text: bytes) -> JSON | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _folder(store: Store) -> Path:
    return store.path / "journal"
