"""Errors planted in a copy of the kernels' room: what the check of kernels has to find."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from release.operators import ROOM


def planted(folder: Path, errors: Iterable[tuple[str, str, str]]) -> Path:
    """Return a copy of the room in `folder` in which of each error (file, what stood there, what stands there now) stands the latter."""
    room = folder / "kernels"
    shutil.copytree(ROOM, room, ignore=shutil.ignore_patterns("__pycache__"))
    for name, was, now in errors:
        file = room / name if (room / name).is_file() else room / "operators" / name
        text = file.read_text(encoding="utf-8")
        assert text.count(was) == 1, f"{name} changed: {was!r} stands there {text.count(was)} times"
        file.write_text(text.replace(was, now), encoding="utf-8")
    return room
