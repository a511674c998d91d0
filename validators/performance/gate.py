"""The verdict of performance: throughput as a share of another measurement's, at every load that both have, on one machine with one tool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from release.types import JSON, Status, Verdict
from release.types.performance import Performance, Point

NAME: Final = "performance"


def gate(candidate: Performance, other: Performance | None, least: float, *, name: str, whose: str) -> Verdict:
    """Return whether the candidate's throughput is at least `least` times the other's at every load; `whose` is the other in words.

    PASSED where even the candidate's slowest repeat against the other's fastest is; FAILED where not even its fastest against the other's
    slowest is, or requests failed; between the two INCONCLUSIVE, with the loads that more repeats would settle. UNVERIFIABLE (status
    INCONCLUSIVE) where the two cannot be compared: another machine or tool, or no load in common.
    """
    wanted = f"at least {least:g} × the output tokens a second of {whose}"
    hindrances = ["there is no measurement of it"] if other is None else list(obstacles(candidate, other))
    if other is None or hindrances:
        return _verdict(name, Status.INCONCLUSIVE, "no comparison", wanted, f"UNVERIFIABLE: {'; '.join(hindrances)}", {
            "finding": "UNVERIFIABLE", "obstacles": hindrances, "least": least,
        })  # fmt: skip
    rows = [_row(mine, theirs, least) for mine, theirs in _common(candidate, other)]
    failing = sum(run.failed for point in candidate.points for run in point.runs)
    worst = min(rows, key=lambda row: float(row["ratio"]))
    findings = {str(row["finding"]) for row in rows}
    finding = (
        "REGRESSED" if failing or "REGRESSED" in findings else "CONSISTENT" if findings == {"CONSISTENT"} else "INCONCLUSIVE"
    )
    status = {"CONSISTENT": Status.PASSED, "REGRESSED": Status.FAILED, "INCONCLUSIVE": Status.INCONCLUSIVE}[finding]
    measured = (
        f"{worst['ratio']:.2f} × [{worst['low']:.2f}, {worst['high']:.2f}] at {worst['load']}, the worst of {len(rows)} loads"
    )
    reasons = [f"{failing} requests failed"] if failing else []
    reasons += [f"{row['load']}: {row['ratio']:.2f} × [{row['low']:.2f}, {row['high']:.2f}]" for row in rows]
    hint = "; more repeats would tell" if finding == "INCONCLUSIVE" else ""
    return _verdict(name, status, measured, wanted, f"{finding}: {'; '.join(reasons)}{hint}", {
        "finding": finding, "least": least, "loads": rows, "failed": failing,
    })  # fmt: skip


def obstacles(candidate: Performance, other: Performance) -> Iterator[str]:
    """Yield why two measurements cannot be compared; nothing if they can."""
    for what, one, two in (
        ("the tool", candidate.tool, other.tool),
        ("the machine", candidate.machine, other.machine),
        ("the prefix cache", candidate.prefix_cache, other.prefix_cache),
    ):
        if one != two:
            yield f"{what} differs ({one} vs {two})"
    if not list(_common(candidate, other)):
        yield "they have no load in common"


def _common(candidate: Performance, other: Performance) -> Iterator[tuple[Point, Point]]:
    theirs = {(point.name, point.requests): point for point in other.points}
    for point in candidate.points:
        if (point.name, point.requests) in theirs:
            yield point, theirs[point.name, point.requests]


def _row(mine: Point, theirs: Point, least: float) -> JSON:
    """Return one load: the ratio of the medians, and the ends that the repeats leave open."""
    (slow, fast), (their_slow, their_fast) = mine.span, theirs.span
    low, high = (share(slow, their_fast), share(fast, their_slow))
    finding = "CONSISTENT" if low >= least else "REGRESSED" if high < least else "INCONCLUSIVE"
    return {"load": mine.name, "ratio": share(mine.throughput, theirs.throughput), "low": low, "high": high, "finding": finding}


def share(one: float, other: float) -> float:
    """Return one rate as a share of another; of nothing, everything is more than enough."""
    return round(one / other, 4) if other > 0 else 999.0


def _verdict(name: str, status: Status, measured: str, wanted: str, reason: str, figures: JSON) -> Verdict:
    return Verdict(name=f"{NAME}/{name}", status=status, measured=measured, wanted=wanted, reason=reason, figures=figures)
