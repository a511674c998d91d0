"""Where a value of a plan comes from: file, line and dotted key, and what it was laid over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from release.errors import UsageError
from release.matrix import parse
from release.matrix.check import plan_of
from release.matrix.layout import choose
from release.matrix.load import Matrix, split
from release.matrix.memory import CONTEXT, SEQUENCES, UTILIZATION, demand_of, plain
from release.types import Unknown, dump

Place = tuple[str | int, ...]


MERGED: Final = ("serve", "packages", "engine-config", "features", "conflicts", "note")
"""What an arm lays over its file key by key, or adds to it; all else it replaces as a whole."""
OF_CHIP: Final = ("base", "container", "python")
"""What a cell takes from its chip where it does not say it itself."""
ALIKE: Final = (CONTEXT, SEQUENCES, UTILIZATION)
"""Settings that memory is reckoned from, by all their spellings."""


@dataclass(frozen=True)
class Origin:
    """One place that says a value: `place` is its key in the plan, `under` the key in the file. The first of a place is what counts.

    Where no file says it, `path` is None and `why` says who did.
    """

    place: str
    value: Any
    path: Path | None
    line: int
    under: str
    counts: bool
    why: str = ""


def explain(matrix: Matrix, cell: str, key: str) -> tuple[Origin, ...]:
    """Return every place that says `key` (its last words are enough: `tensor-parallel-size`, `args.dtype`) for a cell.

    Keys of the chip's file begin with `chip.`, those of the model's with `model.`. What counts comes first, what it was laid over after it.
    What no file says is the plan's own: the layout that it chooses, what its memory is reckoned with, or a default. Raises UsageError with
    near misses where no place has such a key.
    """
    wanted = tuple(key.replace("_", "-").split("."))
    found: dict[Place, list[Origin]] = {}
    known: set[str] = set()
    owners: dict[str, Place] = {}
    for path, prefix, under, document, lines in _layers(matrix, cell):
        for place, value in _walk(document, prefix):
            if place in (("chip",), ("model",)) and prefix:
                continue  # the whole file: the cell's own file says which it is
            known.add(parse.dotted(place))
            owner = owners.setdefault(str(place[0]), under) if place[0] not in MERGED else under
            if _fits(_spelling(place), wanted):
                there = (*under, *place[len(prefix) :])
                same = found.setdefault(_spelling(place), [])
                counts = not same and (owner == under or place[0] in ("chip", "model"))
                same.append(Origin(parse.dotted(place), value, path, lines.get(there, 1), parse.dotted(there), counts))
    files = tuple(origin for origins in found.values() for origin in origins)
    own = () if any(origin.counts for origin in files) else tuple(_planned(matrix, cell, wanted))
    if not own and not files:
        raise UsageError(f"{cell} has no value {key!r}{parse.near(key, {*known, *(name.split('.')[-1] for name in known)})}")
    return own + files


def _planned(matrix: Matrix, cell: str, wanted: tuple[str, ...]) -> Iterator[Origin]:
    """Yield what the plan says by itself: the layout that it chooses, what its memory is reckoned with, and its defaults."""
    plan, why = plan_of(matrix, cell), {}
    if plan.parallel is None and plan.device is not None and not isinstance(plan.device.memory, Unknown):
        choice = choose(plan)
        plan = plan.model_copy(update={"parallel": choice.best.parallel}) if choice.best else plan
        why["parallel"] = f"chosen by the plan: {choice.why}"
    said = False
    for place, value in _walk(dump(plan)):
        copied = place[0] == "chip" and len(place) > 1 and place[1] in OF_CHIP and wanted[0] != "chip"
        if _fits(_spelling(place), wanted) and not copied:
            said = True
            yield Origin(parse.dotted(place), value, None, 0, "", True, why.get(str(place[0]), "by default"))
    if not said and plan.device is not None:
        demand = demand_of(plan)
        for names, value in zip(ALIKE, (demand.context, demand.sequences, demand.utilization), strict=True):
            if plain(wanted[-1]) in names:
                yield Origin(wanted[-1], value, None, 0, "", True, "by default of the plan, which reckons its memory with it")


def _layers(matrix: Matrix, cell: str) -> Iterator[tuple[Path, Place, Place, Any, Mapping[Place, int]]]:
    """Yield file, prefix in the plan, prefix in the file and content of what a plan is made of, the strongest first.

    That is the arm, its file, the chip, the model.
    """
    chip, model, arm = split(cell)
    _, path = matrix.cell_file(chip, model)
    document, lines = parse.document(path)
    if arm not in document["cells"]:
        raise UsageError(f"there is no cell {cell}{parse.near(arm, document['cells'])}")
    yield path, ("precision",), ("cells", arm), arm.partition("~")[0], lines
    yield path, (), ("cells", arm), document["cells"][arm] or {}, lines
    yield path, (), (), {name: value for name, value in document.items() if name != "cells"}, lines
    for kind, file in (("chip", matrix.chips()[chip]), ("model", matrix.models()[model])):
        document, lines = parse.document(file)
        taken = OF_CHIP if kind == "chip" else ()
        yield file, (), (), {name: value for name, value in document.items() if name in taken}, lines
        yield file, (kind,), (), {name: value for name, value in document.items() if name not in taken}, lines


def _fits(place: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Say whether a place ends in the wanted words; of a setting that memory is reckoned from, in any of its spellings."""
    names = next((names for names in ALIKE if plain(wanted[-1]) in names), ())
    if plain(place[-1]) in names and place[0] in ("serve", "engine-config"):
        return len(wanted) == 1 or place[-len(wanted) : -1] == wanted[:-1]
    whole = ("chip", *place) if place[0] in OF_CHIP and wanted[0] == "chip" else place
    return whole[-len(wanted) :] == wanted


def _walk(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if place:
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    for name, inner in items:
        yield from _walk(inner, (*place, name))


def _spelling(place: Place) -> tuple[str, ...]:
    return tuple(str(part).replace("_", "-") for part in place)
