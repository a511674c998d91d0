"""What `release matrix` and `release explain` print: the feature table of models, chips and precisions, and where a value comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from release.errors import UsageError
from release.matrix.parse import near
from release.show.text import as_document, counted, relative, text
from release.types import PRECISIONS, split_cell

if TYPE_CHECKING:
    from release.matrix.explain import Origin
    from release.matrix.load import Matrix

NOTHING = "·"
OPTIONS = {"features": "feature"}
"""How people call a column of rows, where it is not its name."""


def rows_of(known: Matrix, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    """Return one row a cell whose chip, model, precision, engine and features fit the filters (shell patterns in any case; None fits all)."""
    rows = []
    for cell, file in known.cells():
        chip, model, arm_name = split_cell(cell)
        arm = file.cells[arm_name]
        row = {
            "cell": cell,
            "chip": chip,
            "model": model,
            "precision": arm_name.partition("~")[0],
            "variant": arm_name.partition("~")[2] or None,
            "engine": arm.engine or file.engine,
            "world-sizes": list(file.world_sizes if arm.world_sizes is None else arm.world_sizes),
            "features": sorted({*file.features, *arm.features}),
            "reference": arm.reference,
            "questions": file.accuracy.questions if file.accuracy else None,
            "margin": file.accuracy.margin if file.accuracy else None,
            "reported": [table.source for table in (file.reported if arm.reported is None else arm.reported)],
        }
        if all(pattern is None or _fits(row[name], pattern) for name, pattern in filters.items()):
            rows.append(row)
    return rows


def rows_that_fit(known: Matrix, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    """Return the rows that fit the filters. Raises UsageError with near misses where there are filters and none fits them."""
    rows = rows_of(known, filters)
    said = {name: pattern for name, pattern in filters.items() if pattern is not None}
    if rows or not said:
        return rows
    there = rows_of(known, {})
    for name, pattern in said.items():
        values = {str(each) for row in there for each in (row[name] if isinstance(row[name], list) else [row[name]])}
        if not _fits(sorted(values), pattern):
            known_as = f"there are: {', '.join(sorted(values)) or 'none'}"
            raise UsageError(
                f"no cell has the {OPTIONS.get(name, name)} {pattern!r}{near(pattern.lower(), values)}", next_step=known_as
            )
    words = " and ".join(f"{OPTIONS.get(name, name)} {pattern!r}" for name, pattern in said.items())
    raise UsageError(f"no cell has {words} together", next_step="leave one of them out")


def matrix(known: Matrix, filters: dict[str, str | None], *, form: str) -> str:
    """Return the cells that fit the filters: models × chips, or models × features of one chip; as text, `markdown` or `json`."""
    rows = rows_that_fit(known, filters)
    if form == "json":
        every = all(pattern is None for pattern in filters.values())
        dumped = {
            f"{kind}s": [get(name).model_dump(mode="json", by_alias=True) for name in names if every or name in had]
            for kind, names, get in (("chip", known.chips(), known.chip), ("model", known.models(), known.model))
            if (had := {row[kind] for row in rows}) is not None
        }
        return as_document({**dumped, "cells": rows})
    chips = list(dict.fromkeys(row["chip"] for row in rows))
    head, body = _features(rows) if len(chips) == 1 else _overview(rows, chips)
    models = len({row["model"] for row in rows})
    count = f"{counted(len(rows), 'cell')}: {counted(models, 'model')} on {counted(len(chips), 'chip')}"
    if form == "markdown":
        return "\n".join([*_markdown(head, body), "", f"{count}."])
    made = Table(*head, box=None, pad_edge=False, header_style="bold")
    for line in body:
        made.add_row(*map(escape, line))
    return text(made, f"{count}. --chip NAME shows the features of one; --json all there is.")


def _overview(rows: list[dict[str, Any]], chips: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return models × chips: the precisions (and variants), and the device counts that the vendor lists."""
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        line = [model]
        for chip in chips:
            here = [row for row in rows if (row["chip"], row["model"]) == (chip, model)]
            sizes = sorted({size for row in here for size in row["world-sizes"]})
            arms = " ".join(row["cell"].partition("@")[2] for row in here)
            line.append(f"{arms}{' ×' + ','.join(map(str, sizes)) if sizes else ''}" if here else NOTHING)
        body.append(line)
    return ["model", *chips], body


def _features(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return models × everything that a cell of this chip may have, in the way that vendors print it."""
    precisions = [name for name in PRECISIONS if any(row["precision"] == name for row in rows)]
    features = sorted({feature for row in rows for feature in row["features"]})
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        here = [row for row in rows if row["model"] == model]
        ticks = [[row["variant"] or "✓" for row in here if row["precision"] == name] for name in precisions]
        sizes = ",".join(map(str, sorted({size for row in here for size in row["world-sizes"]})))
        had = {feature for row in here for feature in row["features"]}
        body.append(
            [
                model,
                " ".join(dict.fromkeys(row["engine"] for row in here)),
                sizes or NOTHING,
                *(" ".join(tick) or NOTHING for tick in ticks),
                *("✓" if feature in had else NOTHING for feature in features),
            ]
        )
    return ["model", "engine", "world sizes", *precisions, *features], body


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    def line(words: Iterable[str]) -> str:
        return f"| {' | '.join(word.replace('|', '&#124;') for word in words)} |"

    return [line(head), line("---" for _ in head), *(line(words) for words in body)]


def _fits(value: Any, pattern: str) -> bool:
    return any(fnmatchcase(str(item).lower(), pattern.lower()) for item in (value if isinstance(value, list) else [value]))


def origins(found: tuple[Origin, ...], *, as_json: bool) -> str:
    """Return where a value comes from: what counts, and what it was laid over."""
    if as_json:
        return as_document(
            [
                {
                    **{"key": o.place, "value": o.value, "file": str(o.path) if o.path else None, "line": o.line},
                    **{"counts": o.counts, "why": o.why},
                }
                for o in found
            ]
        )
    made = Table("key", "value", "where", "there", box=None, pad_edge=False, header_style="bold")
    for origin in found:
        value = as_document(origin.value).replace("\n", " ")
        shown = escape(value if len(value) <= 100 else value[:97] + "…")
        there = escape(origin.under) + ("" if origin.counts else "  [dim](another file goes before)[/]")
        where = f"{relative(origin.path)}:{origin.line}" if origin.path else origin.why
        made.add_row(escape(origin.place), shown, escape(where), there)
    return text(made)
