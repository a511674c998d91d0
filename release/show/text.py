"""How text is put together: tables and lines that are coloured on a terminal, plain and unbroken elsewhere, and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MARKS = {
    "PASSED": "[green]PASSED[/]",
    "FAILED": "[red]FAILED[/]",
    "INCONCLUSIVE": "[yellow]INCONCLUSIVE[/]",
    "SKIPPED": "[yellow]SKIPPED[/]",
}


def table(*columns: str, rows: Sequence[tuple[str, ...]]) -> Table:
    """Return a table with a head; what the rows say is no markup."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def bare() -> Table:
    """Return a table of two columns without a head: names and what is said of them."""
    return Table(box=None, show_header=False, pad_edge=False)


def text(*parts: object) -> str:
    """Return what rich makes of the parts: coloured on a terminal, plain and unbroken elsewhere."""
    import sys

    terminal = sys.stdout.isatty()
    buffer = io.StringIO()
    console = Console(
        file=buffer, force_terminal=terminal, width=None if terminal else 400, highlight=False, soft_wrap=not terminal
    )
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def as_document(document: object) -> str:
    """Return JSON with sorted keys."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 chip`, `6 chips`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def relative(path: Path) -> Path:
    """Return a path as it is shown: from here where it lies below, else in full."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
