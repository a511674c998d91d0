"""What is printed of many cells that were built at once: a line a cell, then each cause of failure once, with all that it stopped."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from release.show.text import as_document, bare, text

if TYPE_CHECKING:
    from release.batch import Batch, Fate

COLOURS: Final = {"validated": "green", "built": "yellow", "done": "green", "planned": "white"}
NAMED: Final = 4
"""Cells that a cause names; of the others it gives the number."""


def batch(result: Batch, *, as_json: bool) -> str:
    """Return what a build of many cells came to."""
    if as_json:
        return as_document(
            {
                "cells": [_fate(fate) for fate in result.fates],
                "causes": [asdict(each) for each in result.causes],
                "ran": result.ran,
                "moved": result.moved,
                "stages": result.wanted,
                "tasks": result.tasks,
                "seconds": round(result.seconds, 3),
            }
        )
    table = bare()
    for fate in result.fates:
        colour = COLOURS.get(fate.state, "red")
        table.add_row(fate.cell, f"[{colour}]{fate.state}[/]", escape(fate.pushed or _told(fate)))
    parts = [text(table)]
    if result.causes:
        causes = bare()
        for cause in result.causes:
            more = f" and {len(cause.cells) - NAMED} more" if len(cause.cells) > NAMED else ""
            count = "1 cell" if len(cause.cells) == 1 else f"{len(cause.cells)} cells"
            said = "".join(f"\n{line}" for line in cause.detail.splitlines())
            causes.add_row(count, cause.stage, escape(f"{cause.reason}{said}\n→ {', '.join(cause.cells[:NAMED])}{more}"))
        parts += ["", "causes, each once:", text(causes)]
    if result.moved:
        parts += ["", "went to another host:", *result.moved]
    counts = Counter(fate.state for fate in result.fates)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    parts += ["", f"{len(result.fates)} cells: {states}", _shared(result)]
    return "\n".join(parts)


def _shared(result: Batch) -> str:
    """Say how much of the work was shared."""
    failed = len({fate.key for fate in result.fates if fate.key})
    counts = [f"{count} {word}" for count, word in ((len(result.ran), "ran"), (failed, "failed")) if count]
    did = ", ".join(counts) or "nothing had to run"
    cells = "these cells and what they are compared with"
    return f"{result.wanted} stages of {cells} are {result.tasks} pieces of work, {did}, {result.seconds:.2f} s"


def _told(fate: Fate) -> str:
    if fate.reason:
        return f"{fate.stage}: see below"
    accuracy = [verdict for verdict in (fate.record or {}).get("verdicts", ()) if verdict["name"] == "accuracy"]
    return "; ".join(verdict["measured"] for verdict in accuracy)


def _fate(fate: Fate) -> dict[str, Any]:
    return {
        "cell": fate.cell,
        "state": fate.state,
        "stage": fate.stage or None,
        "reason": fate.reason or None,
        "detail": fate.detail or None,
        "folder": str(fate.folder) if fate.folder else None,
        "pushed": fate.pushed,
    }
