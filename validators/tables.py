"""Tables of somebody's Markdown: their cells by line, bounded, and nothing of what stands in code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from release.errors import UsageError

LONGEST_TEXT: Final = 1 << 21
LONGEST_CELL: Final = 300
MOST_ROWS: Final = 1000
MOST_COLUMNS: Final = 50
MOST_TABLES: Final = 200
FENCE: Final = re.compile(r" {0,12}(`{3,}|~{3,})")
RULED: Final = frozenset("|:- \t\r")
PIPE: Final = re.compile(r"(?<!\\)\|")
NUMBER: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,12})?)\s{0,3}([%％]?)")
MARKS: Final = re.compile(r"\*{1,3}|`{1,3}|~~|__|<[^<>]{1,40}>|\[\^?[0-9]{1,3}\]|[\u2020\u2021†‡]")
SPREAD: Final = re.compile(r"\s{0,3}(?:±|\+/-|\+-).{0,20}$|\s{0,3}\([^()]{0,40}\)$")


@dataclass(frozen=True)
class Row:
    """One row of a table, with the number of its line."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table: its head and its rows, each row with as many cells as the head."""

    head: Row
    rows: tuple[Row, ...]

    def transposed(self) -> Table:
        """Return the table with rows for columns; every row then stands on the line of the head."""
        columns = list(zip(self.head.cells, *(row.cells for row in self.rows), strict=True))
        return Table(Row(self.head.line, columns[0]), tuple(Row(self.head.line, column) for column in columns[1:]))


def tables_of(text: str) -> tuple[Table, ...]:
    """Return the tables of a Markdown text in order: a head, a ruler of dashes, rows; with or without pipes at the sides.

    Raises UsageError for a text of more than 2 MiB, and for more tables, rows or columns than a card can have.
    """
    if len(text) > LONGEST_TEXT:
        raise UsageError(f"a card of {len(text)} characters is none: it is read up to {LONGEST_TEXT}")
    found: list[Table] = []
    for head, rows in _blocks(text.replace("\r\n", "\n").split("\n")):
        if len(rows) > MOST_ROWS or len(head.cells) > MOST_COLUMNS or len(found) >= MOST_TABLES:
            raise UsageError(f"line {head.line}: more tables, rows or columns than a card has")
        width = len(head.cells)
        found.append(Table(head, tuple(Row(row.line, (*row.cells, *[""] * width)[:width]) for row in rows)))
    return tuple(found)


def _blocks(lines: list[str]) -> Iterator[tuple[Row, list[Row]]]:
    fence = ""
    head: Row | None = None
    rows: list[Row] = []
    before = ""
    for number, line in enumerate(lines, 1):
        if fence:
            fence = "" if line.strip().startswith(fence) and not line.strip().strip(fence[0]) else fence
            continue
        if opening := FENCE.match(line):
            fence = opening[1]
        ends = fence or "|" not in line
        if head and ends:
            yield head, rows
            head = None
        elif head:
            rows.append(Row(number, _cells(line)))
        elif "|" in before and "-" in line and RULED.issuperset(line):
            above = _cells(before)
            if len(above) == len(_cells(line)) and len(above) > 1:
                head, rows = Row(number - 1, above), []
        before = "" if fence else line
    if head:
        yield head, rows


def _cells(line: str) -> tuple[str, ...]:
    inside = line.strip().removeprefix("|")
    inside = inside[:-1] if inside.endswith("|") and not inside.endswith("\\|") else inside
    return tuple(
        MARKS.sub("", cell.strip()[:LONGEST_CELL]).replace("\\|", "|").strip() for cell in PIPE.split(inside)[: MOST_COLUMNS + 1]
    )


def number_in(cell: str) -> tuple[str, bool] | None:
    """Return the figure of a cell as it is printed, and whether a percent sign follows it; None where there is no single figure.

    What stands behind it in brackets or after ± is not part of the score.
    """
    match = NUMBER.fullmatch(SPREAD.sub("", cell).strip(" _"))
    return (match[1], bool(match[2])) if match else None
