"""A record of the operators that were really called: per operator the implementation, shape, dtype and count, in a file for each process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

RECORD: Final = "RELEASE_OPERATORS_RECORD"
"""Environment variable: the folder in which each process that calls operators keeps `calls-PID.json`."""
SCHEMA: Final = "release-operator-calls/2"
EVERY_SECONDS: Final = 2.0
MOST_SHAPES: Final = 4096
"""Different calls that are told apart; a server has a few for each number of tokens. Beyond that the shape is left out."""
WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,60}")
"""How operators, libraries and dtypes are spelled; a record may come from another machine."""
MOST_BYTES: Final = 16 << 20
"""Bytes of a record that are read: those of MOST_SHAPES calls are a tenth of it."""


class Calls:
    """Counts calls. `count` costs one look-up in a dictionary; a thread writes the file every few seconds, and the end of the process does.

    The first call of each operator by each library is written at once: a process that is killed loses counts of its last seconds, and
    never that an operator was called.
    """

    def __init__(self, folder: Path | None) -> None:
        self.counts: dict[tuple[str, str, Any, Any], int] = {}
        self.folder = folder
        self._seen: set[tuple[str, str]] = set()
        self._written = 0
        self._ended = False
        if folder:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
            atexit.register(self._end)
            os.register_at_fork(after_in_child=self._start)
        self._start()

    @property
    def path(self) -> Path | None:
        """The file of this process."""
        return self.folder / f"calls-{os.getpid()}.json" if self.folder else None

    def count(self, operator: str, library: str, shape: Any, dtype: Any) -> None:
        """Count one call of an operator with its first tensor's shape and dtype."""
        key = (operator, library, shape, dtype)
        if key not in self.counts and len(self.counts) >= MOST_SHAPES:
            key = (operator, library, (), dtype)
        self.counts[key] = self.counts.get(key, 0) + 1
        if (operator, library) not in self._seen:
            self._seen.add((operator, library))
            self.write()

    def document(self) -> dict[str, Any]:
        """Return the record: calls by operator, library, shape and dtype, the most frequent first; `ended` where no more will come."""
        rows = [
            {
                "operator": operator,
                "library": library,
                "shape": list(shape),
                "dtype": str(dtype).removeprefix("torch."),
                "calls": number,
            }
            for (operator, library, shape, dtype), number in list(self.counts.items())
        ]
        return {
            "schema": SCHEMA,
            "process": os.getpid(),
            "ended": self._ended,
            "calls": sorted(rows, key=lambda row: (-row["calls"], str(row))),
        }

    def write(self) -> None:
        """Write the record whole or not at all; nothing where nothing was called since. A folder that cannot be written loses the record."""
        with self._lock:
            total = sum(list(self.counts.values()))
            if self.path is None or not total or (total == self._written and not self._ended):
                return
            try:
                part = self.path.with_suffix(".part")
                part.write_text(json.dumps(self.document()), encoding="utf-8")
                os.replace(part, self.path)
            except OSError:
                return
            self._written = total

    def _start(self) -> None:
        """Begin a process of its own: a child has neither the thread nor the calls of its parent."""
        self._lock = threading.Lock()
        self.counts.clear()
        self._seen.clear()
        self._written = 0
        if self.folder:
            threading.Thread(target=self._keep_writing, name="operator-calls", daemon=True).start()

    def _end(self) -> None:
        self._ended = True
        self.write()

    def _keep_writing(self) -> None:
        pause = threading.Event()
        while not pause.wait(EVERY_SECONDS):
            self.write()


def read_calls(folder: Path) -> list[dict[str, Any]]:
    """Return what all processes of a server recorded, summed over them, the most frequent first; none where nothing was.

    Raises ValueError for a file that is no such record.
    """
    total: dict[tuple[str, str, str, tuple[int, ...]], int] = {}
    for path in sorted(folder.glob("calls-*.json")):
        for row in _rows(path):
            key = (row["operator"], row["library"], row["dtype"], tuple(row["shape"]))
            total[key] = total.get(key, 0) + row["calls"]
    rows = [
        {"operator": operator, "library": library, "shape": list(shape), "dtype": dtype, "calls": calls}
        for (operator, library, dtype, shape), calls in total.items()
    ]
    return sorted(rows, key=lambda row: (-row["calls"], str(row)))


def summed(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return calls by operator and library alone, whatever their shapes: operators in order of name, then the most frequent first."""
    total: dict[tuple[str, str], int] = {}
    for row in rows:
        total[row["operator"], row["library"]] = total.get((row["operator"], row["library"]), 0) + row["calls"]
    found = [{"operator": operator, "library": library, "calls": calls} for (operator, library), calls in total.items()]
    return sorted(found, key=lambda row: (row["operator"], -row["calls"], row["library"]))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("schema") != SCHEMA or not isinstance(document.get("calls"), list):
            raise ValueError(f"its schema is not {SCHEMA}")
        for row in document["calls"]:
            if not isinstance(row, dict) or not all(
                WORD.fullmatch(str(row.get(name))) for name in ("operator", "library", "dtype")
            ):
                raise ValueError("a call names no operator, library or dtype")
            if not isinstance(row.get("shape"), list) or not all(_whole(size) for size in (*row["shape"], row.get("calls"))):
                raise ValueError("a call has no shape, or no count")
        rows: list[dict[str, Any]] = document["calls"]
        return rows
    except (OSError, RecursionError, ValueError) as problem:
        raise ValueError(f"{path.name} is no record of calls: {problem!s:.200}") from problem


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
