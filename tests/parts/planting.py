"""Errors planted in a copy of the kernels' room: what the check of kernels has to find."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from release.matrix.load import Matrix
from release.operators import ROOM, check
from release.types import Status, Verdict

MATRIX: Final = Matrix()
CPU: Final = MATRIX.chip("cpu")
EXACT: Final = CPU.model_copy(update={"dtypes": ["fp32"]})
"""The chip with the dtype in which errors show best."""
PLACES: Final = (
    (EXACT, "tiny-qwq", frozenset({"cache-write", "paged-attention"})),
    (EXACT, "qwen3-30b-a3b", frozenset({"softmax-topk"})),
    (CPU, "tiny-r1", frozenset({"fp8-matmul", "fp8-dequantise"})),
)
"""Where operators are tried that tiny-r1 does not have, or that give no float32."""


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


def failed(room: Path, operators: Iterable[str]) -> list[Verdict]:
    """Check operators of a room, each at a model that has it and where errors show best; return the verdicts that failed."""
    rest, found = frozenset(operators), list[Verdict]()
    for chip, model, own in (*PLACES, (EXACT, "tiny-r1", rest.difference(*(own for *_, own in PLACES)))):
        if asked := sorted(rest & own):
            found += check(chip, MATRIX.model(model), asked, room=room).verdicts
    return [verdict for verdict in found if verdict.status is Status.FAILED]
