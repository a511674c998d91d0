"""What is wrong with a card: the defects that published cards are known to have, each found by a rule of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from release.publish import claims, commands, pins
from release.publish.page import MEANINGS, Defect, Page
from release.types import JSON

__all__ = ["MEANINGS", "Defect", "lint"]

LONGEST_TEXT: Final = 1 << 21
LONGEST_LINE: Final = 20_000
"""Characters that are read. What is longer is no card, and hides what it says: that is a defect by itself."""
RULES: Final[tuple[Callable[[Page], Iterator[Defect]], ...]] = (
    claims.cards,
    claims.fences,
    commands.clones,
    commands.images,
    commands.checkpoints,
    commands.folders,
    commands.ports,
    commands.served_names,
    commands.weights,
    commands.indexes,
    pins.packages,
    pins.links,
    pins.literals,
    claims.placeholders,
    claims.switches,
    claims.shares,
    claims.scores,
    claims.schemas,
    claims.names,
    claims.versions,
    claims.states,
)


def lint(text: str, record: JSON | None = None) -> tuple[Defect, ...]:
    """Return what is wrong with a card, in the order of its lines; with its `record`, also where the two disagree.

    One pass over the text for each rule; a text beyond LONGEST_TEXT is not read, a line beyond LONGEST_LINE is cut there, and both
    are defects. A rule that finds the same again and again says so once for each line.
    """
    if len(text) > LONGEST_TEXT:
        return (Defect(1, "too-long", f"{len(text)} characters: no reader gets through it, and it was not checked"),)
    if "\0" in text:
        return (Defect(1, "not-a-card", "it is no text"),)
    lines = text.replace("\r\n", "\n").split("\n")
    found = {
        Defect(number, "too-long", f"{len(line)} characters in one line: checked up to {LONGEST_LINE}")
        for number, line in enumerate(lines, 1)
        if len(line) > LONGEST_LINE
    }
    page = Page.of("\n".join(line[:LONGEST_LINE] for line in lines), record)
    for rule in RULES:
        found.update(rule(page))
    return tuple(sorted(found))
