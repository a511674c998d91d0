"""The share of a served model's operators, read from profiles of its server: what the kernels room counts, as an answer of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from release.errors import UsageError
from release.kernels.coverage import RULES, Coverage, Kind, coverage, read_trace
from release.types import JSON


def profiles(paths: Sequence[Path]) -> list[Path]:
    """Return the traces among files and folders (`*.trace.json`, `*.trace.json.gz`). Raises UsageError where a folder has none."""
    found = []
    for path in paths:
        inside = sorted((*path.glob("*.trace.json"), *path.glob("*.trace.json.gz"))) if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"{path} has no *.trace.json or *.trace.json.gz", next_step="profile the server: see README, Kernels"
            )
        found += inside
    return found


def measure(paths: Sequence[Path]) -> Coverage:
    """Return what the traces of one server show. Raises UsageError for what is no trace, or shows no operator."""
    try:
        return coverage(read_trace(path) for path in profiles(paths))
    except ValueError as problem:
        raise UsageError(str(problem), next_step="give what /start_profile and /stop_profile of vLLM left") from problem


def document(found: Coverage) -> JSON:
    """Return a coverage as JSON: no share stands in it without its definition."""
    return {
        "counted": "kernels of a device" if found.device else "operators of a host processor",
        "rules": RULES,
        "shares": [
            {"by": share.by, "share": share.share, "triton": share.part, "total": share.whole, "definition": share.definition}
            for share in found.shares
        ],
        "kinds": [
            {
                "name": kind.name,
                "library": kind.library,
                "triton": kind.triton,
                "launches": kind.launches,
                "microseconds": round(kind.time, 3),
            }
            for kind in found.kinds
        ],
    }


def by_library(kinds: Sequence[Kind]) -> list[tuple[str, bool, int, int, float]]:
    """Return each library with whether it is Triton, its kinds, launches and microseconds, the longest first."""
    rows: dict[str, tuple[bool, int, int, float]] = {}
    for kind in kinds:
        _, count, launches, time = rows.get(kind.library, (False, 0, 0, 0.0))
        rows[kind.library] = (kind.triton, count + bool(kind.launches), launches + kind.launches, time + kind.time)
    return sorted(((name, *row) for name, row in rows.items()), key=lambda row: -row[4])
