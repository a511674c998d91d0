"""What is printed of a coverage: three shares with what each counts, and whose operators they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from release.coverage import by_library, document, percent
from release.kernels.calls import summed
from release.kernels.coverage import RULES, Coverage, Share, recorded
from release.kernels.registry import beyond
from release.show.text import as_document, text

UNRECORDED: Final = "No calls were recorded: the server has no plugin release-kernels, or compiles its model."
UNDETERMINED: Final = (
    "Undetermined, in the total and not counted as Triton: FlagGems is registered, and its record cannot tell whether it served"
)
MOST: Final = 12
"""Kinds that a table shows; the others are in --json."""


def covered(found: Coverage, calls: Sequence[Mapping[str, Any]] = (), *, as_json: bool) -> str:
    """Return the three shares with their definitions, the libraries, the kinds that took longest, and the calls that were recorded."""
    if as_json:
        return as_document(document(found, calls))
    shares = Table("Triton", "by", "of", "definition", box=None, pad_edge=False, header_style="bold")
    _fill(shares, found.shares)
    libraries = Table("library", "Triton", "kinds", "launches", "ms", box=None, pad_edge=False, header_style="bold")
    for name, triton, kinds, launches, time in by_library(found.kinds):
        libraries.add_row(escape(name), "yes" if triton else "no", str(kinds), str(launches), f"{time / 1000:.1f}")
    longest = Table("operator", "library", "launches", "ms", box=None, pad_edge=False, header_style="bold")
    for kind in found.kinds[:MOST]:
        longest.add_row(escape(kind.name[:60]), escape(kind.library), str(kind.launches), f"{kind.time / 1000:.1f}")
    rules = [RULES, *([f"{UNDETERMINED}: {', '.join(found.unrecorded)}."] if found.unrecorded else [])]
    if not calls:
        return text(shares, *rules, libraries, longest, UNRECORDED)
    switched = Table("ours or FlagGems", "by", "of", "definition", box=None, pad_edge=False, header_style="bold")
    _fill(switched, recorded(calls))
    counted = Table("recorded operator", "library", "calls", box=None, pad_edge=False, header_style="bold")
    for row in summed(calls):
        counted.add_row(escape(row["operator"]), escape(row["library"]), str(row["calls"]))
    unreached = Table("not in the switch's reach", "why", box=None, pad_edge=False, header_style="bold")
    for name, why in beyond().items():
        unreached.add_row(escape(name), escape(why))
    return text(shares, *rules, libraries, longest, switched, counted, unreached)


def _fill(table: Table, shares: Sequence[Share]) -> None:
    for share in shares:
        why = f". Not told: {share.reason}" if share.reason else ""
        figure = "–" if share.reason else _figure(share.by, share.part, share.whole)
        table.add_row(percent(share), share.by, figure, share.definition + why)


def _figure(by: str, part: float, whole: float) -> str:
    return f"{part / 1000:.1f} of {whole / 1000:.1f} ms" if by == "time" else f"{part:.0f} of {whole:.0f}"
