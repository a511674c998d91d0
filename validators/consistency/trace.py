"""The reference's side as a folder of evidence: recorded once, compared with as often as there are candidates, named by its digest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from release.errors import StageError
from release.types import JSON
from release.types.consistency import Examination
from release.validators.consistency import answers, identity, scoring
from release.validators.consistency.asking import Clock, Progress, UnshownError
from release.validators.consistency.case import HARNESS, Side
from release.validators.consistency.evidence import ANEW, digest_of, write_whole

FILE: Final = "trace.json"
ASKED: Final = ("sha256", "tokens", "top", "max_tokens", "samples", "temperature", "seed", "floor")
"""What of an examination decides the reference's evidence."""


@dataclass(frozen=True)
class Trace:
    """A recorded reference: its folder, the digest of its trace.json, and what that says."""

    folder: Path
    digest: str
    facts: JSON


def record(side: Side) -> Trace:
    """Record everything that a candidate can be compared with, resuming what an earlier run left; return the trace.

    A reference that shows no token ids or no logprobs is recorded without scores: `facts["unshown"]` says why, and scoring is
    UNVERIFIABLE with it. Raises ServingError and StageError.
    """
    seconds: dict[str, float] = {}
    unshown = ""
    for name, step in STEPS.items():
        clock = Clock(side.spec.within)
        try:
            step(replace(side, progress=_named(name, side.progress)), clock)
        except UnshownError as problem:
            if step not in SCORED:
                raise
            unshown = problem.message
        seconds[name] = round(clock.spent, 2)
    files = {path.name: digest_of(path) for path in sorted(side.folder.glob("*.jsonl")) if not (unshown and path.name in SCORES)}
    facts = {"harness": HARNESS, "asked": asked_of(side.spec), "model": side.endpoint.model, "files": files, "seconds": seconds}
    write_whole(side.folder / FILE, facts | {"unshown": unshown})
    return read(side.folder)


def _named(name: str, progress: Progress) -> Progress:
    """Return a progress that says which step it is."""
    return lambda done, total, what: progress(done, total, f"{name}: {what}")


def read(folder: Path) -> Trace:
    """Return the trace in a folder. Raises StageError if it is missing, not finished, or not what its trace.json names by digest."""
    path = folder / FILE
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise StageError(f"there is no finished trace: {problem}", where=str(path), next_step="record the reference") from problem
    files = facts.get("files") if isinstance(facts, dict) else None
    if not isinstance(files, dict) or facts.get("harness") != HARNESS or not {identity.FILE, answers.FILE} <= files.keys():
        raise StageError(f"is no trace of {HARNESS}", where=str(path), next_step="record the reference anew")
    for name, digest in files.items():
        if Path(name).name != name or digest_of(folder / name) != digest:
            raise StageError(f"{name} is not the one that {FILE} names", where=str(path), next_step=ANEW)
    return Trace(folder, digest_of(path), facts)


def asked_of(spec: Examination) -> JSON:
    """Return what of an examination decides the reference's evidence."""
    return {name: getattr(spec, name) for name in ASKED}


def check(trace: Trace, spec: Examination) -> None:
    """Raise StageError unless a trace was recorded as `spec` asks."""
    asked = trace.facts.get("asked")
    told = asked if isinstance(asked, dict) else {}
    other = [
        f"{name} ({told.get(name)!r:.80} there, {value!r:.80} here)"
        for name, value in asked_of(spec).items()
        if told.get(name) != value
    ]
    if other:
        raise StageError(
            f"the trace was recorded otherwise: {', '.join(other)}", where=str(trace.folder), next_step="record it anew"
        )


STEPS: Final[dict[str, Callable[[Side, Clock], Path]]] = {
    "identity": identity.record,
    "answers": answers.record,
    "alone": answers.record_alone,
    "scores": scoring.record,
    "floor": scoring.record_floor,
}
"""What is recorded of a reference, in this order: each may build on the ones before."""
SCORED: Final = (scoring.record, scoring.record_floor)
SCORES: Final = (scoring.FILE, scoring.FLOOR)
NEEDS: Final = {
    "identity": ("identity",),
    "scoring": ("answers", "scores", "floor"),
    "decoding": ("alone",),
    "sampling": (),
}
"""Which steps a layer needs beside those of the layers before."""
