"""Is it the same model? Four layers, cheapest first, that compare a candidate with its reference token by token, before any benchmark.

`record_reference` keeps what a reference says in a folder; `compare_with` compares a candidate with such a folder, at another time
and on another machine; `examine` asks two servers in turns. Each stops at the first layer that proves a difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from release.errors import ServingError
from release.types import JSON, Status, Verdict
from release.types.consistency import Consistency, Examination, Finding, Limits
from release.validators.consistency import decoding, identity, sampling, scoring, trace
from release.validators.consistency.asking import Clock, NumbersError, Progress
from release.validators.consistency.case import Case, Side, unverifiable
from release.validators.consistency.evidence import header_of
from release.validators.consistency.prompts import read_prompts
from release.validators.consistency.trace import Trace
from release.validators.endpoint import Endpoint, PatienceError, UnreachableError

__all__ = ["LAYERS", "Trace", "compare_folders", "compare_with", "examine", "read_trace", "record_reference"]

read_trace = trace.read

LAYERS: Final[dict[str, Callable[[Case, Clock], Verdict]]] = {
    identity.LAYER: identity.judge,
    scoring.LAYER: scoring.judge,
    decoding.LAYER: decoding.judge,
    sampling.LAYER: sampling.judge,
}
"""The layers by name, cheapest first."""


def _silent(done: int, total: int, what: str) -> None:
    """Hear nothing."""


def record_reference(
    endpoint: Endpoint,
    spec: Examination,
    prompts: Path,
    out: Path,
    *,
    model_folder: Path | None = None,
    progress: Progress = _silent,
) -> Trace:
    """Record in `out` what a reference shows of itself, answers and scores; return the trace, which `digest` names.

    `prompts` is the file that `spec.prompts` names; `model_folder` holds the model's tokenizer and configuration, where it can be
    seen. What an interrupted run left is taken over. Raises ServingError if the server fails, FetchError and MatrixError for the
    prompts, StageError for damaged evidence.
    """
    return trace.record(Side(endpoint, out, spec, read_prompts(prompts, spec.sha256), progress, model_folder))


def compare_with(
    reference: Trace,
    candidate: Endpoint,
    spec: Examination,
    limits: Limits,
    prompts: Path,
    out: Path,
    *,
    model_folder: Path | None = None,
    progress: Progress = _silent,
) -> Consistency:
    """Compare a candidate with a recorded reference; what the candidate says is kept in `out`, and an interrupted run resumes there.

    Layers run cheapest first and end at the first that proves a difference: the others are SKIPPED. A layer that cannot be
    finished is UNVERIFIABLE and says why, in bounded time: `spec.within` seconds a layer at most. `out` belongs to this candidate alone.
    Raises StageError if the trace was recorded otherwise than `spec` asks, and FetchError, MatrixError for the prompts.
    """
    trace.check(reference, spec)
    side = Side(candidate, out, spec, read_prompts(prompts, spec.sha256), progress, model_folder)
    return _run(Case(side, reference.folder, limits), reference.digest, lambda name: None)


def examine(
    reference: Endpoint,
    candidate: Endpoint,
    spec: Examination,
    limits: Limits,
    prompts: Path,
    out: Path,
    *,
    progress: Progress = _silent,
) -> Consistency:
    """Compare two running servers, asking the reference only for what the next layer needs; evidence of both lies under `out`.

    As `compare_with`; a reference that fails makes the layer UNVERIFIABLE. The whole trace is not recorded, so the outcome names none.
    """
    read = read_prompts(prompts, spec.sha256)
    theirs = Side(reference, out / "reference", spec, read, progress)

    def prepare(name: str) -> None:
        for step in trace.NEEDS[name]:
            trace.STEPS[step](theirs, Clock(spec.within))

    return _run(Case(Side(candidate, out / "candidate", spec, read, progress), theirs.folder, limits), None, prepare)


def compare_folders(reference: Trace, model_folder: Path) -> str:
    """Return how a candidate's tokenizer and configuration differ from the reference's; empty if they do not, or none were recorded.

    Needs no server: a wrong tokenizer is found before the first one is started.
    """
    theirs = header_of(reference.folder / identity.FILE)["files"]
    found = identity.compare_files(theirs or {}, identity.facts_of(model_folder))
    return found.reads if found.finding == "DIFFERENT" else ""


def _run(case: Case, digest: str | None, prepare: Callable[[str], None]) -> Consistency:
    began, verdicts = time.monotonic(), list[Verdict]()
    caught: str | None = None
    gone = ""
    for name, judge in LAYERS.items():
        if caught or gone:
            verdicts.append(_skipped(name, f"the layer {caught} has proven a difference" if caught else gone))
            continue
        clock = Clock(case.candidate.spec.within)
        try:
            prepare(name)
            verdict = judge(case, clock)
        except NumbersError as problem:
            verdict = unverifiable(name, str(problem), finding="DIFFERENT")
        except (PatienceError, UnreachableError) as problem:
            verdict = unverifiable(name, str(problem))
            gone = "" if case.candidate.endpoint.alive() else f"the server was gone after the layer {name}"
        except ServingError as problem:
            verdict = unverifiable(name, str(problem))
        verdicts.append(verdict.model_copy(update={"figures": {**verdict.figures, "seconds": round(clock.spent, 2)}}))
        caught = name if verdict.status is Status.FAILED else None
    return Consistency(
        finding=_finding(verdicts),
        caught_by=caught,
        seconds=round(time.monotonic() - began, 2),
        reference=digest,
        limits=case.limits,
        verdicts=tuple(verdicts),
    )


def _finding(verdicts: list[Verdict]) -> Finding:
    """Return what all layers together found. One that could not be measured keeps the whole from being CONSISTENT."""
    found: list[JSON] = [one.figures for one in verdicts]
    if any(one["finding"] == "DIFFERENT" for one in found):
        return "DIFFERENT"
    if all(one["finding"] == "CONSISTENT" for one in found):
        return "CONSISTENT"
    return "INCONCLUSIVE" if any(one["finding"] in ("CONSISTENT", "INCONCLUSIVE") for one in found) else "UNVERIFIABLE"


def _skipped(name: str, why: str) -> Verdict:
    return Verdict(
        name=name,
        status=Status.SKIPPED,
        measured="nothing",
        wanted="the reference's answers",
        reason=f"{why}.",
        figures={"finding": "SKIPPED"},
    )
