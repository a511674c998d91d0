"""What there is of the matrix: each cell's last release in the store, whether it still stands, and what became of the last attempt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from release.errors import ReleaseError
from release.failures import failures_of
from release.house import House
from release.journal import runs
from release.pipeline import changes, is_valid
from release.types import JSON

STATES: Final = {
    "validated": ("V", "every verdict PASSED"),
    "built": ("B", "no verdict FAILED, not all PASSED"),
    "waived": ("W", "somebody lets a verdict pass for a while"),
    "stale": ("S", "an input has changed since the last release"),
    "failed": ("F", "the last attempt failed"),
    "blocked": ("X", "a verdict FAILED"),
    "refused": ("R", "the rules refuse the plan"),
    "missing": ("·", "nothing has been released"),
}
"""What a cell can be, with its letter and what that means."""
DAILY: Final = "day:"
"""A waived release is judged anew each day: that alone makes nothing stale."""


@dataclass(frozen=True)
class Standing:
    """What a cell is, why, and what its last release was (empty if there is none)."""

    cell: str
    state: str
    why: str = ""
    was: str = ""


def standings(house: House, cells: Iterable[str]) -> list[Standing]:
    """Return what each of the cells is now."""
    last: dict[str, JSON] = {}
    for past in reversed(runs(house.store)):
        last |= past.fates
    return [_standing(house, cell, last.get(cell)) for cell in cells]


def _standing(house: House, cell: str, fate: JSON | None) -> Standing:
    try:
        house.plan(cell)
    except ReleaseError as problem:
        return Standing(cell, "refused", problem.message.removeprefix(f"{cell}: "))
    record = _record(house, cell)
    was = str(record.get("state", "")) if record else ""
    stale = _stale(house, cell) if record else ""
    failure = next(iter(failures_of(fate)), None) if fate and fate.get("reason") else None
    if failure and (record is None or stale) and not (failure.key and house.store.has(failure.key)):
        return Standing(cell, "failed", f"{failure.kind}, {failure.stage}: {failure.evidence}", was)
    if record is None:
        return Standing(cell, "missing")
    if stale:
        return Standing(cell, "stale", stale, was)
    waived = [waiver for waiver in record.get("waivers") or () if waiver.get("outcome") == "applied"]
    if was == "built" and waived:
        until = min(str(waiver["expires"]) for waiver in waived)
        return Standing(cell, "waived", f"until {until}: {', '.join(str(waiver['validator']) for waiver in waived)}", was)
    return Standing(cell, was if was in STATES else "missing", _short_of(record), was)


def _record(house: House, cell: str) -> JSON | None:
    """Return the record of the cell's last release, if the store has it."""
    key = house.history(cell).get("card", "")
    try:
        record = json.loads((house.store.get(key) / "release.json").read_bytes()) if key else None
    except (ReleaseError, OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _stale(house: House, cell: str) -> str:
    """Return the first input that has changed since the cell's last release, and how many stages would run; empty where none would."""
    tasks, history = house.graph(cell, None), house.history(cell)
    found: dict[str, list[str]] = {}
    for (owner, stage), key in tasks.of.items():
        if owner == cell and not is_valid(house.store, tasks.tasks[key]):
            found[stage] = [
                why for why in changes(house.store, tasks.tasks[key], history.get(stage)) if not why.startswith(DAILY)
            ]
    reasons = [(stage, why) for stage, all_of_it in found.items() for why in all_of_it if why != "needs card"]
    if not reasons:
        return ""
    stage, why = next(((stage, why) for stage, why in reasons if not why.startswith("needs ")), reasons[0])
    return f"{stage}: {why}; {len(found)} {'stage' if len(found) == 1 else 'stages'} would run"


def _short_of(record: JSON) -> str:
    """Say which verdicts are not PASSED."""
    return ", ".join(f"{one['name']} {one['status']}" for one in record.get("verdicts") or () if one.get("status") != "PASSED")
