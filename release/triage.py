"""What went wrong in the last run, each cause once: its kind, the words that show it, what the failed cells alone share, whom to blame."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from release.batch import FAILED, LEFT, REFUSED, STANDING
from release.build import carry, here
from release.errors import ReleaseError, UsageError
from release.failures import KINDS, ON_DEVICE, Failure, failures_of
from release.house import House
from release.journal import Past, runs
from release.pins import pins_of, texts, traits
from release.pipeline import Stage, graph
from release.progress import progress_for
from release.session import Session
from release.stages import STAGES
from release.types import JSON, State, split_cell

GOOD: Final = (State.VALIDATED, State.BUILT)
AGAIN: Final = ("serve", "conformance")
"""Stages that a control cell goes through anew, whatever the store has."""
NONE, UNTRIED, PASSED, BROKEN = "none", "not run", "passed", "failed"
"""What can be said of a control cell: there is none, it was not run, it passed, it failed."""


@dataclass(frozen=True)
class Control:
    """A known good cell on a chip, to be run before an operator or the chip is blamed."""

    chip: str
    cell: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """One cause over all cells that met it. `shared` is what all of them have and no cell has that passed; empty for one cell alone.
    `next_step` is what the error itself advised; `detail` is all that it said besides, of the first of the cells: a log's end, for one.
    `wheel` is the one package, NAME==VERSION, that the words of every cell name.
    """

    kind: str
    sign: str
    stage: str
    evidence: str
    cells: tuple[str, ...]
    shared: Mapping[str, str]
    controls: tuple[Control, ...]
    next_step: str = ""
    detail: str = ""
    wheel: str = ""

    @property
    def blame(self) -> str:
        """Whom the evidence points at, as far as it does."""
        pins = ", ".join(f"{name} {value}" for name, value in self.shared.items())
        pins = pins or ("nothing that they alone share" if len(self.cells) > 1 else "an input of this cell alone")
        broken = [each for each in self.controls if each.state == BROKEN]
        if self.kind == "flaky":
            said = "nothing: equal inputs failed once and passed once"
        elif self.kind == "infrastructure":
            said = "the host or the network: run it again when that is mended, no cell is to blame"
        elif self.kind not in ON_DEVICE:
            said = pins
        elif broken:
            said = f"chip or host, no operator: the control cell {broken[0].cell} fails too ({broken[0].reason})"
        elif self.controls and all(each.state == PASSED for each in self.controls):
            said = f"{pins}; the chip serves its control cell"
        elif any(each.state == UNTRIED for each in self.controls):
            said = f"nobody yet (suspect: {pins}): run the control cells first, `release triage --control`"
        else:
            said = f"nobody yet (suspect: {pins}): no cell of the chip is known to be good"
        return said


@dataclass(frozen=True)
class Triage:
    """A run's causes, widest first; how many cells passed, were refused by the rules, or are not told of because the run was stopped."""

    past: Past
    entries: tuple[Entry, ...]
    passed: int
    refused: int
    untold: int


def triage(house: House, *, run: str = "", control: bool = False, session: Session | None = None) -> Triage:
    """Return what went wrong in the last run, of one cell or of many, or in the last that began at `run` (the beginning of an ISO 8601
    time); with `control`, run the control cells first. Raises UsageError without such a run.
    """
    known = runs(house.store)
    if not known:
        raise UsageError("no run is known in this store", next_step="`release build` keeps each")
    at = next((number for number, each in enumerate(known) if each.began.startswith(run)), None)
    if at is None:
        began = ", ".join(f"{each.began} ({len(each.cells)} {'cell' if len(each.cells) == 1 else 'cells'})" for each in known[:8])
        raise UsageError(f"no run began at {run}", next_step=f"the last ones did at {began}")
    past, earlier = known[at], known[at + 1 :]
    clusters: dict[tuple[str, str, str], list[tuple[str, Failure]]] = {}
    for cell, fate in past.fates.items():
        for failure in failures_of(fate):
            made = failure.key and house.store.has(failure.key)
            told = replace(failure, kind="flaky") if made and failure.kind != "infrastructure" else failure
            clusters.setdefault((told.kind, told.stage, told.cause), []).append((cell, told))
    failing = {cell for found in clusters.values() for cell, _ in found}
    controls = _controls(house, past, failing, clusters)
    if control:
        controls = {chip: _run(house, each, session) for chip, each in controls.items()}
    passing = [
        fate
        for cell, fate in past.fates.items()
        if cell not in failing and fate.get("state") not in (FAILED, STANDING, LEFT, REFUSED)
    ]
    good = [*passing, *({"pins": pins_now(house, each.cell)} for each in controls.values() if each.state == PASSED)]
    entries = [_entry(found, past, good, controls) for found in clusters.values()] + _flaky(house, earlier, failing)
    entries.sort(key=lambda entry: (-len(entry.cells), KINDS.index(entry.kind)))
    return Triage(
        past, tuple(entries), len(passing), len([c for c in past.fates.values() if c.get("state") == REFUSED]), _untold(past)
    )


def _untold(past: Past) -> int:
    left = {cell for cell, fate in past.fates.items() if fate.get("state") == LEFT}
    return len(set(past.cells) - set(past.fates) | left)


def _entry(found: Sequence[tuple[str, Failure]], past: Past, passing: Sequence[JSON], controls: Mapping[str, Control]) -> Entry:
    first, cells = found[0][1], tuple(cell for cell, _ in found)
    chips = dict.fromkeys(split_cell(cell)[0] for cell in cells) if first.kind in ON_DEVICE else {}
    shared = shared_by([past.fates[cell] for cell in cells], passing) if len(cells) > 1 else {}
    advice = str(past.fates[cells[0]].get("detail") or "")
    control = tuple(controls[chip] for chip in chips)
    wheels = {str(past.fates[cell].get("wheel") or "") for cell in cells}
    return Entry(
        *(first.kind, first.sign, first.stage, first.evidence, cells, shared, control),
        next_step="" if "\n" in advice or advice == first.evidence else advice,  # more lines are a log
        detail=advice,
        wheel=wheels.pop() if len(wheels) == 1 else "",
    )


def shared_by(failed: Iterable[JSON], passing: Iterable[JSON]) -> dict[str, str]:
    """Return the pins that all failed cells have with one value, and no passing cell has with it."""
    sets = [set(_pins(fate).items()) for fate in failed]
    common = set.intersection(*sets) if sets else set()
    return dict(sorted(common - {pair for fate in passing for pair in _pins(fate).items()}))


def _pins(fate: JSON) -> dict[str, str]:
    pins = fate.get("pins")
    return {str(name): str(value) for name, value in pins.items()} if isinstance(pins, dict) else {}


def pins_now(house: House, cell: str) -> dict[str, str]:
    """Return the pins of a cell as a run's journal would tell them."""
    plan = house.plan(cell)
    return traits(plan) | texts(pins_of(plan, house.matrix))


def _flaky(house: House, earlier: Iterable[Past], failing: set[str]) -> list[Entry]:
    """Return what failed in an earlier run and was made since, from equal inputs: each key once."""
    found: dict[str, list[tuple[str, Failure, Past]]] = {}
    for past in earlier:
        for cell, fate in past.fates.items():
            for failure in failures_of(fate):
                if failure.key and failure.kind != "infrastructure" and house.store.has(failure.key) and cell not in failing:
                    found.setdefault(failure.key, []).append((cell, failure, past))
    entries = []
    for met in found.values():
        _, failure, past = met[0]
        words = f"failed in the run of {past.began}, and passed since: {failure.evidence}"
        entries.append(
            Entry("flaky", failure.sign, failure.stage, words, tuple(dict.fromkeys(cell for cell, _, _ in met)), {}, ())
        )
    return entries


def _controls(
    house: House, past: Past, failing: set[str], clusters: Mapping[tuple[str, str, str], Sequence[tuple[str, Failure]]]
) -> dict[str, Control]:
    """Return the control cell of each chip on which something failed that may be its own fault."""
    chips = {split_cell(cell)[0] for (kind, _, _), found in clusters.items() if kind in ON_DEVICE for cell, _ in found}
    found = {chip: Control(chip, "", NONE) for chip in chips}
    for cell in [name for name, _ in house.matrix.cells()] if chips else []:
        chip = split_cell(cell)[0]
        if chip in chips and found[chip].state == NONE and cell not in failing and known_good(house, cell):
            found[chip] = Control(chip, cell, UNTRIED)
    return found


def known_good(house: House, cell: str) -> bool:
    """Say whether the last release of a cell, which the store has, was validated or at least built."""
    key = house.history(cell).get("card", "")
    try:
        return bool(key) and json.loads((house.store.get(key) / "release.json").read_bytes())["state"] in GOOD
    except (ReleaseError, OSError, ValueError, KeyError, TypeError):
        return False


def _run(house: House, control: Control, session: Session | None) -> Control:
    """Start the control cell's image anew and check it; what is before that comes from the store."""
    if control.state == NONE:
        return control
    stages = again(STAGES, datetime.now(UTC).isoformat())
    own = session or Session(house.engine_kind, hosts=house.hosts())
    try:
        tasks = graph(stages, house.plans([control.cell]), house.matrix, [control.cell], AGAIN[-1])
        key = tasks.of[control.cell, AGAIN[-1]]
        with house.store.in_use():
            ledger = carry(house, tasks, [key], progress_for(sys.stderr), here(house, None), own, note=False)
            for failure in ledger.failed.values():
                raise failure
            verdicts = json.loads((house.store.get(key) / "conformance.json").read_bytes())
    except ReleaseError as problem:
        return replace(control, state=BROKEN, reason=str(problem))
    failed = [str(verdict["name"]) for verdict in verdicts if verdict["status"] == "FAILED"]
    return replace(control, state=BROKEN if failed or not verdicts else PASSED, reason=", ".join(failed))


def again(stages: Sequence[Stage], stamp: str) -> tuple[Stage, ...]:
    """Return the stages with keys that no store has for those of AGAIN: they read the time, too."""

    def stamped(stage: Stage) -> Stage:
        if stage.name not in AGAIN:
            return stage
        return replace(stage, reads=lambda plan, matrix: {**stage.reads(plan, matrix), "control": stamp})

    return tuple(map(stamped, stages))
