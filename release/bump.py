"""What another pin would cost: which cells change, which stages run anew, and how long they took the last time. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from release.errors import ReleaseError, UsageError
from release.house import House
from release.patches.read import SERIES
from release.pins import Bump, Pins, bumped, check_known, differences, pins_of, text_of, with_pins
from release.pipeline import Graph, Task, graph, is_valid
from release.stages import STAGES
from release.supply import matrix_patches
from release.types import Plan

DEVICE: Final = "device:"
"""How the resources begin that are devices of a chip."""


@dataclass(frozen=True)
class Cost:
    """What a set of stages would take: how many there are, of how many it is known, their seconds, and those with a device held, by chip.

    `seconds` is None where nothing is known. Device seconds are seconds × devices; `held` counts the stages that hold devices.
    """

    stages: int
    known: int
    seconds: float | None
    device_seconds: dict[str, float]
    held: int


@dataclass(frozen=True)
class Change:
    """A cell that changes: its pins before and after, the stages that get another key, and the reason where no pin of its own changes."""

    cell: str
    pins: dict[str, tuple[str, str]]
    stages: tuple[str, ...]
    because: str


@dataclass(frozen=True)
class Effect:
    """What bumps come to: the cells that change and those that do not, the work that is to be done, each piece once, and its cost."""

    changes: tuple[Change, ...]
    untouched: int
    refused: dict[str, str]
    by_stage: dict[str, int]
    cost: Cost


def effect(house: House, cells: Sequence[str], bumps: Sequence[Bump]) -> Effect:
    """Return what the bumps would change of the cells, and of what they are compared with where that has the very same pin.

    Raises UsageError for a pin that no cell has, or a value that it cannot take.
    """
    plans: dict[str, Plan] = {}
    refused = {}
    for cell in cells:
        try:
            plans = house.plans([cell], plans)
        except ReleaseError as problem:
            refused[cell] = problem.message.removeprefix(f"{cell}: ")
    pins = {cell: pins_of(plan, house.matrix) for cell, plan in plans.items()}
    check_known(bumps, [(cell, pin) for cell, found in pins.items() for pin in found])
    then, impossible = _bumped([cell for cell in cells if cell not in refused], pins, bumps)
    refused |= impossible
    kept = [cell for cell in cells if cell not in refused]
    _check_patch_sets(house, [(pins[cell], then[cell]) for cell in kept])
    after = {cell: plan if then[cell] == pins[cell] else with_pins(plan, then[cell], pins[cell]) for cell, plan in plans.items()}
    old, new = (graph(STAGES, each, house.matrix, kept, STAGES[-1].name) for each in (plans, after))
    changes = tuple(_changes(kept, {cell: (pins[cell], then[cell]) for cell in kept}, after, old, new))
    fresh = [task for key, task in new.tasks.items() if key not in old.tasks and not is_valid(house.store, task)]
    by_stage = {stage.name: count for stage in STAGES if (count := sum(task.stage.name == stage.name for task in fresh))}
    return Effect(changes, len(kept) - len(changes), refused, by_stage, _cost(house, new, fresh))


def _bumped(cells: Sequence[str], pins: Mapping[str, Pins], bumps: Sequence[Bump]) -> tuple[dict[str, Pins], dict[str, str]]:
    """Return the pins of all plans as they are to be, and why those of some of the `cells` cannot be so: one that has no name yet, for one.

    Raises UsageError where that is so of every cell that is meant: it is the value then.
    """
    fitting = {cell: [pin for pin in pins[cell] if any(bump.fits(cell, pin) for bump in bumps)] for cell in cells}
    meant = {(pin, text_of(pins[cell][pin])) for cell, found in fitting.items() for pin in found}
    then, wrong = dict(pins), dict[str, UsageError]()
    for cell, found in pins.items():
        if cell in fitting or any((pin, text_of(value)) in meant for pin, value in found.items()):
            try:
                then[cell] = bumped(cell, found, bumps)
            except UsageError as problem:
                wrong[cell] = problem.located(cell)
    if wrong and all(cell in wrong for cell, found in fitting.items() if found):
        raise next(iter(wrong.values()))
    return then, {cell: f"{wrong[cell].message}; {wrong[cell].next_step}" for cell in cells if cell in wrong}


def _check_patch_sets(house: House, changed: Iterable[tuple[Pins, Pins]]) -> None:
    """Raise UsageError for a patch set that there is not."""
    for before, then in changed:
        for pin, value in then.items():
            if pin.kind == "patches" and value != before[pin] and not (matrix_patches(house.matrix, value) / SERIES).is_file():
                raise UsageError(f"--bump {pin}={value}: there is no patch set {value}", next_step="add it under patches/")


def _changes(
    cells: Sequence[str], pins: dict[str, tuple[Pins, Pins]], after: dict[str, Plan], old: Graph, new: Graph
) -> Iterator[Change]:
    for cell in cells:
        stages = tuple(
            stage.name for stage in STAGES if (key := new.of.get((cell, stage.name))) and key != old.of[cell, stage.name]
        )
        if stages:
            changed = differences(*pins[cell])
            because = "" if changed else f"compared with {after[cell].reference}, which changes"
            yield Change(cell, changed, stages, because)


def _cost(house: House, tasks: Graph, fresh: Sequence[Task]) -> Cost:
    """Return what the tasks took the last time that any of the cells that share them did that stage."""
    owners: dict[str, list[str]] = {}
    for (cell, _), key in tasks.of.items():
        owners.setdefault(key, []).append(cell)
    took = house.durations({cell for cell, _ in tasks.of})
    known: list[float] = []
    devices: dict[str, float] = {}
    held = 0
    for task in fresh:
        uses = {
            name: count
            for name, count in (tasks.tasks[task.server].uses if task.server else {}).items()
            if name.startswith(DEVICE)
        }
        held += bool(uses)
        seconds = next((took[cell, task.stage.name] for cell in owners[task.key] if (cell, task.stage.name) in took), None)
        if seconds is None:
            continue
        known.append(seconds)
        for name, count in uses.items():
            chip = name.removeprefix(DEVICE)
            devices[chip] = devices.get(chip, 0.0) + seconds * count
    return Cost(len(fresh), len(known), sum(known) if known else None, devices, held)
