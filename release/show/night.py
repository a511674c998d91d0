"""What is printed of the whole matrix: its heat map, what a run's failures come to, what another pin would cost, what a search found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.table import Table

from release.show.text import as_document, bare, counted, text
from release.status import STATES
from release.types import PRECISIONS, split_cell

if TYPE_CHECKING:
    from release.bisect import Verdict
    from release.bump import Cost, Effect
    from release.status import Standing
    from release.triage import Entry, Triage

HEAT: Final = {
    "validated": "black on green",
    "built": "black on yellow",
    "waived": "black on bright_yellow",
    "stale": "black on cyan",
    "failed": "white on red",
    "blocked": "white on red",
    "refused": "dim",
    "missing": "dim",
}
WIDTH: Final = 80
"""Columns that the map fits into."""
NAMED: Final = 4
"""Cells that a line names; of the others it gives the number."""


def status(found: Sequence[Standing], *, as_json: bool) -> str:
    """Return the matrix as a heat map, a block a chip, and below it why cells are not what they could be."""
    if as_json:
        counts = Counter(each.state for each in found)
        return as_document({"cells": [asdict(each) for each in found], "counts": counts})
    parts: list[object] = []
    for chip in dict.fromkeys(split_cell(each.cell)[0] for each in found):
        parts += _map(chip, [each for each in found if split_cell(each.cell)[0] == chip])
    legend = [(letter, state, said) for state, (letter, said) in STATES.items() if any(each.state == state for each in found)]
    table = bare()
    for letter, state, said in legend:
        count = sum(each.state == state for each in found)
        table.add_row(f"[{HEAT[state]}] {letter} [/]", f"{count} {state}", said)
    parts.append(table)
    told = [each for each in found if each.why and each.state != "refused"]
    lines = [f"{STATES[each.state][0]} {each.cell}: {each.why}{f' (was {each.was})' if _was(each) else ''}" for each in told]
    return text(*parts) + ("\n\n" + "\n".join(lines) if lines else "")


def _was(each: Standing) -> bool:
    return each.was not in ("", each.state) and each.state in ("stale", "failed")


def _map(chip: str, found: Sequence[Standing]) -> Iterator[Table]:
    """Yield the map of a chip: models down, precisions across, in as many tables as 80 columns take; a letter a variant."""
    by: dict[tuple[str, str], list[Standing]] = {}
    for each in found:
        _, model, arm = split_cell(each.cell)
        by.setdefault((model, arm.partition("~")[0]), []).append(each)
    models = sorted({model for model, _ in by})
    precisions = [name for name in PRECISIONS if any(precision == name for _, precision in by)]
    head = max(len(chip), *(len(model) for model in models)) + 2
    widths = {name: max(len(name), *(3 * len(by.get((model, name), ())) for model in models)) + 2 for name in precisions}
    while precisions:
        shown, width = [precisions[0]], head + widths[precisions[0]]
        for name in precisions[1:]:
            width += widths[name]
            if width > WIDTH:
                break
            shown.append(name)
        precisions = precisions[len(shown) :]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column(chip, no_wrap=True)
        for name in shown:
            table.add_column(name, no_wrap=True)
        for model in models:
            table.add_row(model, *("".join(map(_letter, by.get((model, name), ()))) for name in shown))
        yield table


def _letter(each: Standing) -> str:
    return f"[{HEAT[each.state]}] {STATES[each.state][0]} [/]"


def triage(found: Triage, *, as_json: bool) -> str:
    """Return the causes, widest first, each with the words that show it and whom the evidence points at."""
    if as_json:
        entries = [
            {**asdict(each), "shared": dict(each.shared), "blame": each.blame, "cells": list(each.cells)}
            for each in found.entries
        ]
        rest = {"passed": found.passed, "refused": found.refused, "untold": found.untold}
        return as_document({"run": found.past.began, "ended": found.past.ended, "causes": entries, **rest})
    failed = len({cell for each in found.entries if each.kind != "flaky" for cell in each.cells})
    counts = [f"{failed} failed", f"{found.passed} passed"]
    counts += [f"{found.refused} refused by the rules"] if found.refused else []
    counts += [f"{found.untold} not built: the run was stopped"] if found.untold else []
    causes = counted(len(found.entries), "cause")
    lines = [f"run of {found.past.began}: {', '.join(counts)}; {causes}"]
    for number, each in enumerate(found.entries, 1):
        lines += ["", *_entry(number, each)]
    return "\n".join(lines)


def _entry(number: int, each: Entry) -> Iterator[str]:
    yield f"{number}. {each.kind} ({each.sign}) at {each.stage}: {counted(len(each.cells), 'cell')}"
    yield f"   evidence  {each.evidence}"
    more = f" and {len(each.cells) - NAMED} more" if len(each.cells) > NAMED else ""
    yield f"   cells     {', '.join(each.cells[:NAMED])}{more}"
    if each.wheel:
        yield f"   wheel     {each.wheel}: no other is named where it failed"
    for control in each.controls:
        yield f"   control   {control.cell or control.chip}: {control.state}{f' ({control.reason})' if control.reason else ''}"
    yield f"   blame     {each.blame}"
    if each.next_step:
        yield f"   next      {each.next_step}"


def bump(found: Effect, *, as_json: bool) -> str:
    """Return which cells would change, which stages would run, each once, and what they took the last time."""
    if as_json:
        return as_document(asdict(found) | {"hours": _hours(found.cost)})
    table = bare()
    for each in found.changes:
        pins = "; ".join(f"{name}: {_brief(old)} → {_brief(new)}" for name, (old, new) in each.pins.items())
        table.add_row(each.cell, escape(pins or each.because), f"{counted(len(each.stages), 'stage')} from {each.stages[0]}")
    lines = [text(table)] if found.changes else []
    lines += [f"refused  {cell}: {why}" for cell, why in found.refused.items()]
    stages = ", ".join(f"{count} {stage}" for stage, count in found.by_stage.items()) or "none"
    lines += ["", f"{counted(len(found.changes), 'cell')} of {len(found.changes) + found.untouched} would change"]
    lines += [f"{counted(found.cost.stages, 'stage')} would run, each once: {stages}", *_cost_lines(found.cost)]
    return "\n".join(lines)


def _hours(cost: Cost) -> dict[str, Any]:
    return {
        "machine": None if cost.seconds is None else cost.seconds / 3600,
        "chip": {chip: seconds / 3600 for chip, seconds in cost.device_seconds.items()},
        "known": cost.known,
        "of": cost.stages,
    }


def _cost_lines(cost: Cost) -> Iterator[str]:
    rest = (
        "" if cost.known == cost.stages else f" for {cost.known} of them; of the other {cost.stages - cost.known} it is unknown"
    )
    if cost.stages:
        yield "hours: unknown, none of them has run here" if cost.seconds is None else f"hours: {cost.seconds / 3600:.2f}{rest}"
        chips = ", ".join(f"{chip} {seconds / 3600:.2f}" for chip, seconds in sorted(cost.device_seconds.items()))
        yield f"chip-hours: {chips}{rest}" if chips else f"chip-hours: {'unknown' if cost.held else 'none'}"


def _brief(value: str) -> str:
    import re

    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+|\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1\2…", value) or "(nothing)"


def bisect(found: Verdict, *, as_json: bool) -> str:
    """Return the steps of a search, what each showed, and the pins that it came to."""
    if as_json:
        return as_document(asdict(found))
    lines = [f"{found.cell}: {counted(len(found.searched), 'pin')} differ; the bad end shows {', '.join(found.symptoms)}", ""]
    for number, step in enumerate(found.steps, 1):
        more = f" and {len(step.bad) - NAMED} more" if len(step.bad) > NAMED else ""
        ran = f"{counted(len(step.ran), 'stage')} ran" if step.ran else "all from the store"
        lines.append(f"{number:3}  {step.answer:<12}  {', '.join(step.bad[:NAMED])}{more} as in the bad one: {step.why} ({ran})")
    lines += ["", "bad with" if len(found.culprits) == 1 else "bad with these together"]
    lines += [f"  {name}: {_brief(found.searched[name][0])} → {_brief(found.searched[name][1])}" for name in found.culprits]
    if found.open:
        lines.append(f"cannot be told apart: without {', '.join(found.open)} the build shows something else")
    return "\n".join(lines)
