"""Where a value of a plan comes from: file, line and dotted key, and what it was laid over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release.errors import UsageError
from release.matrix import parse
from release.matrix.check import plan_of
from release.matrix.load import Matrix, split
from release.types import dump

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """One place that says a value: `place` is its key in the plan, `under` the key in the file. The first of a place is what counts."""

    place: str
    value: Any
    path: Path | None
    line: int
    under: str
    counts: bool


def explain(matrix: Matrix, cell: str, key: str) -> tuple[Origin, ...]:
    """Return every place that says `key` (its last words are enough: `tensor-parallel-size`, `args.dtype`) for a cell.

    What counts comes first, what it was laid over after it. Raises UsageError with near misses where no place has such a key.
    """
    wanted = tuple(key.replace("_", "-").split("."))
    found: dict[Place, list[Origin]] = {}
    known: set[str] = set()
    for path, prefix, document, lines in _layers(matrix, cell):
        for place, value in _walk(document):
            known.add(parse.dotted(place))
            if _spelling(place)[-len(wanted) :] == wanted:
                line = lines.get((*prefix, *place), 1)
                same = found.setdefault(_spelling(place), [])
                same.append(Origin(parse.dotted(place), value, path, line, parse.dotted((*prefix, *place)), not same))
    for place, value in _walk(dump(plan_of(matrix, cell))):
        if not found and _spelling(place)[-len(wanted) :] == wanted:
            found[_spelling(place)] = [Origin(parse.dotted(place), value, None, 0, "", True)]
    if not found:
        raise UsageError(f"{cell} has no value {key!r}{parse.near(key, {*known, *(name.split('.')[-1] for name in known)})}")
    return tuple(origin for origins in found.values() for origin in origins)


def _layers(matrix: Matrix, cell: str) -> Iterator[tuple[Path, Place, Any, Mapping[Place, int]]]:
    """Yield file, prefix and content of what a plan is made of, the strongest first: the arm, its file, the chip, the model."""
    chip, model, arm = split(cell)
    _, path = matrix.cell_file(chip, model)
    document, lines = parse.document(path)
    if arm not in document["cells"]:
        raise UsageError(f"there is no cell {cell}{parse.near(arm, document['cells'])}")
    yield path, ("cells", arm), document["cells"][arm], lines
    yield path, (), {name: value for name, value in document.items() if name != "cells"}, lines
    for file in (matrix.chips()[chip], matrix.models()[model]):
        document, lines = parse.document(file)
        yield file, (), document, lines


def _walk(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if place:
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    for name, inner in items:
        yield from _walk(inner, (*place, name))


def _spelling(place: Place) -> tuple[str, ...]:
    return tuple(str(part).replace("_", "-") for part in place)
