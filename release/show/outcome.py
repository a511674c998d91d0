"""What is printed of a release that was built or pulled, and of a host that was looked at."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rich.markup import escape

from release.show.text import MARKS, as_document, bare, text
from release.types import family

if TYPE_CHECKING:
    from pathlib import Path

    from release.build import Outcome
    from release.doctor import Finding
    from release.publish.artifact import Pulled


def outcome(result: Outcome, *, as_json: bool) -> str:
    """Return what a build came to: what was built, every verdict with its figure, where the card is, how to get and serve it."""
    record = result.record
    if as_json:
        return as_document(
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
    checks = [verdict for verdict in record["verdicts"] if family(verdict["name"]) == "conformance"]
    passed = sum(verdict["status"] == "PASSED" for verdict in checks)
    unpacked = sum(layer["unpacked"] for layer in record["image"]["layers"])
    packed = sum(layer["bytes"] for layer in record["image"]["layers"])
    table = bare()
    colour = {"validated": "green", "built": "yellow", "blocked": "red"}.get(record["state"], "white")
    table.add_row("release", f"[bold]{result.cell}[/]  [{colour}]{record['state']}[/]   {stages}, {result.seconds:.2f} s")
    table.add_row("image", f"{record['image']['manifest']['digest']}   {unpacked / 1e9:.2f} GB, {packed / 1e9:.2f} GB compressed")
    size = sum(file["bytes"] for file in record["weights"]["files"].values())
    table.add_row("weights", f"{record['weights']['precision']}, {len(record['weights']['files'])} files, {size / 1e6:.2f} MB")
    worst = next((s for s in ("FAILED", "INCONCLUSIVE", "SKIPPED", "PASSED") if s in {v["status"] for v in checks}), "FAILED")
    table.add_row("conformance", f"{MARKS[worst]}  {passed} of {len(checks)} checks")
    for verdict in record["verdicts"]:
        if family(verdict["name"]) != "conformance" or verdict["status"] != "PASSED":
            finding = verdict["figures"].get("finding")
            table.add_row(
                escape(verdict["name"]),
                f"{MARKS[verdict['status']]}{f' {finding}' if finding else ''}  {escape(verdict['measured'])}",
            )
    if settlement := record.get("settlement"):
        table.add_row("all sets", f"{settlement['decision']}  {escape(settlement['reason'])}")
    if performance := record.get("performance"):
        points = [
            (statistics.median(run["output-tokens-per-second"] for run in point["runs"]), point)
            for point in performance["points"]
        ]
        rate, best = max(points, key=lambda pair: pair[0])
        load = f"{best['input-tokens']} + {best['output-tokens']} tokens, {best['concurrency']} in flight"
        table.add_row("performance", f"measured  {rate:.0f} output tokens/s at {load}, median of {len(best['runs'])}")
    table.add_row("card", str((result.folder or _nowhere()) / "README.md"))
    if result.pushed:
        table.add_row("pushed", result.pushed)
    options = f"--chip {record['chip']['id']} --model {record['model']['id']} --precision {result.cell.partition('@')[2]}"
    table.add_row("get it, run it", f"release pull {options} && release serve {options}")
    return text(table)


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
        return as_document([{"what": f.what, "state": f.state, "found": f.found, "next": f.next_step} for f in found])
    table = bare()
    colours = {"ok": "green", "missing": "red", "note": "yellow"}
    for finding in found:
        table.add_row(
            f"[{colours[finding.state]}]{finding.state}[/]",
            finding.what,
            escape(finding.found + (f"\n→ {finding.next_step}" if finding.next_step else "")),
        )
    return text(table)


def _nowhere() -> Path:
    raise AssertionError("a record without a folder")


def _relative(path: Path) -> Path:
    import os
    from pathlib import Path

    return Path(os.path.relpath(path))
