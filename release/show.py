"""What commands print: tables and summaries as text for people, or the same facts as JSON for programs."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from release.build import stages_of

if TYPE_CHECKING:
    from pathlib import Path

    from release.build import House, Outcome
    from release.doctor import Finding
    from release.matrix.load import Matrix
    from release.pipeline import Graph
    from release.publish.artifact import Pulled
    from release.types import Plan

MARKS = {
    "PASSED": "[green]PASSED[/]",
    "FAILED": "[red]FAILED[/]",
    "INCONCLUSIVE": "[yellow]INCONCLUSIVE[/]",
    "SKIPPED": "[yellow]SKIPPED[/]",
}


def matrix(known: Matrix, *, as_json: bool) -> str:
    """Return all chips, models and cells."""
    chips = [known.chip(name) for name in known.chips()]
    models = [known.model(name) for name in known.models()]
    cells: list[dict[str, Any]] = [
        {
            "cell": cell,
            "engine": file.engine,
            "reference": file.cells[cell.split("@")[1]].reference,
            "questions": file.accuracy.questions,
            "margin": file.accuracy.margin,
        }
        for cell, file in known.cells()
    ]
    if as_json:
        return _json(
            {
                "chips": [c.model_dump(mode="json", by_alias=True) for c in chips],
                "models": [m.model_dump(mode="json", by_alias=True) for m in models],
                "cells": cells,
            }
        )
    return _text(
        _table("chip", "what", "vendor", "precisions", rows=[(c.id, c.name, c.vendor, ", ".join(c.precisions)) for c in chips]),
        _table(
            "model",
            "architecture",
            "upstream",
            "license",
            rows=[(m.id, m.architecture.class_, m.precision, m.license) for m in models],
        ),
        _table("cell", "engine", "compared with", rows=[(c["cell"], c["engine"], c["reference"] or "nothing") for c in cells]),
    )


def plan(house: House, cell: str, tasks: Graph, *, as_json: bool) -> str:
    """Return what a build of `cell` would do, and why."""
    reasons = house.reasons(tasks)
    rows: list[dict[str, Any]] = []
    for owner in dict.fromkeys([cell, *(owner for owner, _ in tasks.of)]):
        for name, task in stages_of(tasks, owner):
            why = reasons[owner, name]
            facts = house.store.facts(task.key) if not why else {}
            rows.append(
                {
                    "cell": owner,
                    "stage": name,
                    "key": task.key,
                    "cached": not why,
                    "why": why,
                    "shared": task.cell != owner,
                    "summary": facts.get("summary", ""),
                    "seconds": facts.get("seconds"),
                }
            )
    planned = house.plan(cell)
    if as_json:
        return _json({"plan": planned.model_dump(mode="json", by_alias=True), "stages": rows})
    table = Table("cell", "stage", "key", "state", "why", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        if row["shared"]:
            continue
        state = "[cyan]cached[/]" if row["cached"] else "[yellow]run[/]"
        reason = str(row["summary"]) if row["cached"] else "; ".join(row["why"])
        table.add_row(row["cell"], row["stage"], row["key"][:12], state, escape(reason))
    run = sum(not row["cached"] and not row["shared"] for row in rows)
    return _text(_facts(planned), table, f"{run} stages would run, {len({row['key'] for row in rows}) - run} are cached.")


def _facts(planned: Plan) -> Table:
    """Return the plan itself: what is released, from what, and how it is served."""
    from release.builders.engines import engine_named

    base = planned.base.image or f"Debian {planned.base.bootstrap.suite if planned.base.bootstrap else ''}, made here"
    rows = [
        ("cell", planned.cell),
        ("chip", f"{planned.chip.name}, {planned.chip.architecture}"),
        ("model", f"{planned.model.name}, {planned.model.architecture.class_}, {planned.model.precision} upstream"),
        ("base", base),
        *(("source", source.wheel + (f", patched by {source.patches}" if source.patches else "")) for source in planned.sources),
        ("wheels", f"{planned.wheels}, Python {planned.python.version}, glibc {planned.python.glibc}"),
        ("serve", " ".join(engine_named(planned.engine).command(planned.serve))),
        ("questions", f"{planned.accuracy.questions}, margin {100 * planned.accuracy.margin:g} points"),
        ("compared with", planned.reference or "nothing"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def outcome(result: Outcome, *, as_json: bool) -> str:
    """Return what a build came to: what was built, every verdict with its figure, where the card is, how to get and serve it."""
    record = result.record
    if as_json:
        return _json(
            {
                "cell": result.cell,
                "folder": str(result.folder) if result.folder else None,
                "ran": result.ran,
                "seconds": round(result.seconds, 3),
                "pushed": result.pushed,
                "record": record,
            }
        )
    count = len(result.ran)
    stages = f"{count} {'stage' if count == 1 else 'stages'} ran" if count else "nothing had to run"
    if record is None:
        return f"{result.cell}: {stages}, {result.seconds:.2f} s"
    checks = [verdict for verdict in record["verdicts"] if verdict["name"] != "accuracy"]
    passed = sum(verdict["status"] == "PASSED" for verdict in checks)
    unpacked = sum(layer["unpacked"] for layer in record["image"]["layers"])
    packed = sum(layer["bytes"] for layer in record["image"]["layers"])
    table = Table(box=None, show_header=False, pad_edge=False)
    colour = {"validated": "green", "built": "yellow", "blocked": "red"}.get(record["state"], "white")
    table.add_row("release", f"[bold]{result.cell}[/]  [{colour}]{record['state']}[/]   {stages}, {result.seconds:.2f} s")
    table.add_row("image", f"{record['image']['manifest']['digest']}   {unpacked / 1e9:.2f} GB, {packed / 1e9:.2f} GB compressed")
    size = sum(file["bytes"] for file in record["weights"]["files"].values())
    table.add_row("weights", f"{record['weights']['precision']}, {len(record['weights']['files'])} files, {size / 1e6:.2f} MB")
    worst = next((s for s in ("FAILED", "INCONCLUSIVE", "SKIPPED", "PASSED") if s in {v["status"] for v in checks}), "FAILED")
    table.add_row("conformance", f"{MARKS[worst]}  {passed} of {len(checks)} checks")
    for verdict in record["verdicts"]:
        if verdict["name"] == "accuracy" or verdict["status"] != "PASSED":
            finding = verdict["figures"].get("finding")
            table.add_row(
                escape(verdict["name"]),
                f"{MARKS[verdict['status']]}{f' {finding}' if finding else ''}  {escape(verdict['measured'])}",
            )
    table.add_row("card", str((result.folder or _nowhere()) / "README.md"))
    if result.pushed:
        table.add_row("pushed", result.pushed)
    options = f"--chip {record['chip']['id']} --model {record['model']['id']} --precision {result.cell.partition('@')[2]}"
    table.add_row("get it, run it", f"release pull {options} && release serve {options}")
    return _text(table)


def pulled(release: Pulled) -> str:
    """Return what a pull brought, and how to start it."""
    record = release.record
    count = len(record["weights"]["files"]) + len(record["evidence"]) + 2
    return "\n".join(
        [
            f"{record['cell']}  {record['state']}",
            f"every digest is right: image {record['image']['manifest']['digest']}, {count} files",
            f"lies in {_relative(release.folder)}",
            f"release serve {_relative(release.folder)}",
        ]
    )


def findings(found: list[Finding], *, as_json: bool) -> str:
    """Return what the doctor found."""
    if as_json:
        return _json([{"what": f.what, "state": f.state, "found": f.found, "next": f.next_step} for f in found])
    table = Table(box=None, show_header=False, pad_edge=False)
    colours = {"ok": "green", "missing": "red", "note": "yellow"}
    for finding in found:
        table.add_row(
            f"[{colours[finding.state]}]{finding.state}[/]",
            finding.what,
            escape(finding.found + (f"\n→ {finding.next_step}" if finding.next_step else "")),
        )
    return _text(table)


def _nowhere() -> Path:
    raise AssertionError("a record without a folder")


def _relative(path: Path) -> Path:
    import os
    from pathlib import Path

    return Path(os.path.relpath(path))


def _table(*columns: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _text(*parts: object) -> str:
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


def _json(document: object) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
