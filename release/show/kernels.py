"""What is printed of the check of kernels: a line for each operator and dtype, and every case that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from release.kernels.operator import REFUSED
from release.show.text import MARKS, as_document, text
from release.types import Status, dump

if TYPE_CHECKING:
    from release.operators import Check
    from release.types import Verdict


def checked(check: Check, *, cases: bool, as_json: bool) -> str:
    """Return a check as a table: of each operator and dtype how many cases passed and the worst error, of what failed every case."""
    if as_json:
        return as_document({"machine": check.machine, "verdicts": [dump(verdict) for verdict in check.verdicts]})
    table = Table(
        "verdict", "operator", "dtype", "case", "measured", "wanted", "reason", box=None, pad_edge=False, header_style="bold"
    )
    for group in _groups(check):
        passed = [verdict for verdict in group if verdict.status is Status.PASSED]
        lines = group if cases else [verdict for verdict in group if verdict.status is not Status.PASSED]
        if passed and not cases:
            worst = max(passed, key=lambda one: -1.0 if one.measured == REFUSED else float(one.measured.split()[0]))
            refused = sum(verdict.measured == REFUSED for verdict in passed)
            count = f"{len(passed)} of {len(group)} cases{f', {refused} by refusal' if refused else ''}"
            _add(table, worst, count, f"worst of them: {worst.figures.get('case', '')}")
        for verdict in lines:
            _add(table, verdict, verdict.figures.get("case", ""), "" if verdict.status is Status.PASSED else verdict.reason)
    counts = [(status, sum(verdict.status.value == status for verdict in check.verdicts)) for status in MARKS]
    return text(table, ", ".join(f"{count} {status}" for status, count in counts if count), _where(check))


def _groups(check: Check) -> list[list[Verdict]]:
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in check.verdicts:
        groups.setdefault((verdict.figures.get("operator", ""), verdict.figures.get("dtype", "")), []).append(verdict)
    return list(groups.values())


def _add(table: Table, verdict: Verdict, case: str, reason: str) -> None:
    figures = verdict.figures
    row = (figures.get("operator", "all"), figures.get("dtype", ""), case, verdict.measured, verdict.wanted, reason)
    table.add_row(MARKS[verdict.status.value], *map(escape, row))


def _where(check: Check) -> str:
    machine = check.machine
    if not machine:
        return "nothing ran"
    where = f"on {machine['device']}, torch {machine['torch']}, triton {machine['triton']}"
    if machine["interpreted"]:
        return f"{where}: reduced shapes; this proves what kernels mean and nothing about a device"
    return f"{where}: the model's own shapes"
