"""A record of the operators that were really called: per operator the implementation, shape, dtype and count, in a file for each process."""

from __future__ import annotations

import atexit
import json
import os
import threading
from pathlib import Path
from typing import Any, Final

RECORD: Final = "RELEASE_OPERATORS_RECORD"
"""Environment variable: the folder in which each process that calls operators keeps `calls-PID.json`."""
SCHEMA: Final = "release-operator-calls/1"
EVERY_SECONDS: Final = 5.0
MOST_SHAPES: Final = 4096
"""Different calls that are told apart; a server has a few for each number of tokens. Beyond that the shape is left out."""


class Calls:
    """Counts calls. `count` costs one look-up in a dictionary; a thread writes the file every few seconds, and the end of the process does."""

    def __init__(self, folder: Path | None) -> None:
        self.counts: dict[tuple[str, str, Any, Any], int] = {}
        self.path = folder / f"calls-{os.getpid()}.json" if folder else None
        self._written = 0
        if self.path:
            atexit.register(self.write)
            threading.Thread(target=self._keep_writing, name="operator-calls", daemon=True).start()

    def count(self, operator: str, library: str, shape: Any, dtype: Any) -> None:
        """Count one call of an operator with its first tensor's shape and dtype."""
        key = (operator, library, shape, dtype)
        if key not in self.counts and len(self.counts) >= MOST_SHAPES:
            key = (operator, library, (), dtype)
        self.counts[key] = self.counts.get(key, 0) + 1

    def document(self) -> dict[str, Any]:
        """Return the record: calls by operator, library, shape and dtype, the most frequent first."""
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
        return {"schema": SCHEMA, "process": os.getpid(), "calls": sorted(rows, key=lambda row: (-row["calls"], str(row)))}

    def write(self) -> None:
        """Write the record whole or not at all; nothing where nothing was called since. A folder that cannot be written loses the record."""
        total = sum(list(self.counts.values()))
        if self.path is None or total == self._written:
            return
        try:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.document()), encoding="utf-8")
            os.replace(part, self.path)
        except OSError:
            return
        self._written = total

    def _keep_writing(self) -> None:
        pause = threading.Event()
        while not pause.wait(EVERY_SECONDS):
            self.write()
