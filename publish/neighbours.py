"""Which repository of a registry has a blob, as far as this machine has put it there: what one cell sent, the next takes over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from release.publish.distribution import exclusive

LIMIT: Final = 100_000
"""Digests that are remembered of one registry."""


class Neighbours:
    """What was pushed from here, in a file of its own: a hint and no more, for the registry says whether it still has the blob."""

    def __init__(self, file: Path, host: str, name: str) -> None:
        self.file, self.host, self.name = file, host, name
        self._known = self._read().get(host, {})

    def __call__(self, digest: str) -> str:
        """Return another repository that had the blob, or nothing."""
        found = self._known.get(digest, "")
        return found if found != self.name else ""

    def remember(self, digests: Iterable[str]) -> None:
        """Note that this repository has the blobs."""
        with exclusive(str(self.file)):
            everything = self._read()
            merged = {**everything.get(self.host, {}), **dict.fromkeys(digests, self.name)}
            everything[self.host] = dict(list(merged.items())[-LIMIT:])
            temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(everything))
            os.replace(temporary, self.file)

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            found = json.loads(self.file.read_text())
            return {
                host: {digest: name for digest, name in blobs.items() if isinstance(name, str)} for host, blobs in found.items()
            }
        except (OSError, ValueError, AttributeError):
            return {}
