"""The picture of a night's work: cells × stages, where what several cells share is one box over all their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from release.errors import MatrixError
from release.pipeline import is_valid
from release.show.text import counted
from release.stages import STAGES
from release.templates.render import render_page

if TYPE_CHECKING:
    from release.house import House
    from release.pipeline import Graph

TEMPLATE: Final = "status/graph.svg.j2"
ROW, COLUMN, BOX, LEFT, TOP = 26, 96, 84, 210, 92
"""Pixels: of a row, of a column and its boxes, left of the first column, above the first row."""


@dataclass(frozen=True)
class Box:
    """A piece of work as it is drawn: over `count` rows from `first` on. `again` is one that was drawn already, with others between."""

    stage: str
    key: str
    first: int
    count: int
    again: bool


def graph(house: House, cells: Sequence[str]) -> str:
    """Return an SVG of all stages of `cells` and of what they are compared with: what is shared, what the store has, and its seconds.

    Cells whose plans the rules refuse are left out; raises MatrixError where none is left.
    """
    tasks = house.graph_of(_sound(house, cells), None)
    stages = [stage.name for stage in STAGES if any(name == stage.name for _, name in tasks.of)]
    rows = _rows(tasks, stages)
    boxes = list(_boxes(tasks, stages, rows))
    done = {key: is_valid(house.store, task) for key, task in tasks.tasks.items()}
    took = {key: float(house.store.facts(key).get("seconds", 0.0)) for key, had in done.items() if had}
    uses = Counter(tasks.of.values())
    lefts = {stage: LEFT + COLUMN * number for number, stage in enumerate(stages)}
    return render_page(
        TEMPLATE,
        {
            **{"width": LEFT + COLUMN * len(stages) + 16, "height": TOP + ROW * len(rows) + 16, "top": TOP},
            "title": f"{counted(len(tasks.of), 'stage')} of {counted(len(rows), 'cell')}: {len(tasks.tasks)} pieces of work",
            "said": f"{sum(done.values())} are in the store and took {_time(sum(took.values()))}; each cell by itself would have taken "
            f"{_time(sum(took.get(key, 0.0) * count for key, count in uses.items()))}. A box over several rows is done once for all of them.",
            "heads": [{"x": lefts[stage], "name": stage, "said": _sum(tasks, stage)} for stage in stages],
            "rows": [{"y": TOP + ROW * n, "cell": cell, "reference": cell not in cells} for n, cell in enumerate(rows)],
            "boxes": [_drawn(box, lefts[box.stage], done[box.key], took.get(box.key), uses[box.key]) for box in boxes],
        },
    )


def _sound(house: House, cells: Sequence[str]) -> list[str]:
    kept = []
    for cell in cells:
        try:
            house.plans([cell])
            kept.append(cell)
        except MatrixError:
            continue
    if not kept:
        raise MatrixError("the rules refuse the plans of all these cells", next_step="`release plan --all` says why")
    return kept


def _rows(tasks: Graph, stages: Sequence[str]) -> list[str]:
    """Return the cells in an order in which those stand together that share most, from the first stage on."""
    cells = sorted({cell for cell, _ in tasks.of})
    place = {key: number for number, key in enumerate(tasks.tasks)}
    return sorted(cells, key=lambda cell: ([place.get(tasks.of.get((cell, stage), ""), -1) for stage in stages], cell))


def _boxes(tasks: Graph, stages: Sequence[str], rows: Sequence[str]) -> Iterator[Box]:
    for stage in stages:
        seen: set[str] = set()
        first = 0
        for key, group in groupby(tasks.of.get((cell, stage), "") for cell in rows):
            count = len(list(group))
            if key:
                yield Box(stage, key, first, count, key in seen)
                seen.add(key)
            first += count


def _drawn(box: Box, left: int, had: bool, seconds: float | None, uses: int) -> dict[str, Any]:
    words = "to do" if seconds is None else _time(seconds)
    shared = f" × {uses}" if uses > 1 else ""
    told = f"{box.stage} {box.key[:12]}: {words}" + (f", shared by {uses} cells" if uses > 1 else "")
    return {
        **{"x": left, "y": TOP + ROW * box.first + 3, "width": BOX, "height": ROW * box.count - 6},
        **{"kind": "had" if had else "to-do", "told": told, "text": "see above" if box.again else words + shared},
    }


def _sum(tasks: Graph, stage: str) -> str:
    keys = [key for (_, name), key in tasks.of.items() if name == stage]
    return f"{len(set(keys))} for {len(keys)}"


def _time(seconds: float) -> str:
    """Return seconds as people say them: `0.3 s`, `17 s`, `3 min 5 s`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
