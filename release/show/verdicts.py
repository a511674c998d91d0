"""What is printed of verdicts: a line each, and how many of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from release.show.text import MARKS, as_document, text
from release.types import dump

if TYPE_CHECKING:
    from release.types import Verdict


def verdicts(found: Sequence[Verdict], *, as_json: bool) -> str:
    """Return verdicts as a table, what did not pass with its reason."""
    if as_json:
        return as_document([dump(verdict) for verdict in found])
    table = Table("verdict", "check", "measured", "wanted", "reason", box=None, pad_edge=False, header_style="bold")
    for verdict in found:
        passed = verdict.status.value == "PASSED"
        reason = "" if passed else verdict.reason
        table.add_row(MARKS[verdict.status.value], *map(escape, (verdict.name, verdict.measured, verdict.wanted, reason)))
    counts = Counter(verdict.status.value for verdict in found)
    return text(table, ", ".join(f"{counts[status]} {status}" for status in MARKS if counts[status]))
