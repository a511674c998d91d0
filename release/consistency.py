"""The stages that compare a release with its reference token by token: the reference's trace, and the candidate held against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from release.errors import StageError
from release.matrix.load import Matrix
from release.pipeline import Work
from release.trial import period, reads_serve, server_of
from release.types import JSON, Plan, Status, Verdict, dump
from release.types.consistency import Consistency, Examination, Limits

if TYPE_CHECKING:
    from release.validators.endpoint import Endpoint

ASKED: Final = frozenset(
    {"prompts", "sha256", "tokens", "top", "max_tokens", "samples", "temperature", "seed", "floor", "max_age"}
)
"""What of an examination decides the reference's trace: what only bounds the waiting, or the candidate, records nothing anew."""


def trace(work: Work) -> str:
    """Record what the reference shows of itself, answers and scores; a killed run resumes inside."""
    from release.oci import link_or_copy
    from release.validators.consistency import record_reference

    if work.reads["examination"] is None:
        work.write("unasked.json", {"why": "the cell asks for no examination"})
        return "no examination"
    spec = _spec(work)
    found = record_reference(
        _endpoint(work),
        spec,
        work.matrix.file(spec.prompts),
        work.partial(),
        model_folder=work.inputs["weights"] / "model",
        progress=work.line.follow,
    )
    for file in sorted(found.folder.iterdir()):
        link_or_copy(file, work.out / file.name)
    missing = f", {found.facts['unshown']}" if found.facts["unshown"] else ""
    return f"{len(found.facts['files'])} files, {sum(found.facts['seconds'].values()):.1f} s of asking{missing}"


def reads_trace(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, and what is asked of it."""
    spec = plan.consistency
    return {
        "serve": reads_serve(plan, matrix),
        "examination": spec and spec.model_dump(mode="json", by_alias=True, include=set(ASKED)),
        **period(spec.max_age if spec else None),
    }


def consistency(work: Work) -> str:
    """Compare the candidate with its reference's trace, cheapest layer first."""
    from release.oci import link_or_copy
    from release.validators.consistency import compare_with, read_trace

    if work.reads["examination"] is None:
        work.write("consistency.json", None)
        return "no examination"
    spec, limits = _spec(work), Limits.model_validate(work.reads["limits"])
    if "reference:trace" not in work.inputs:
        found = _not_compared(limits, Status.SKIPPED, "the cell names no reference: it is one itself")
    elif (work.inputs["reference:trace"] / "unasked.json").is_file():
        found = _not_compared(limits, Status.INCONCLUSIVE, f"{work.reads['reference']} asks for no examination, and has no trace")
    else:
        try:
            found = compare_with(
                read_trace(work.inputs["reference:trace"]),
                _endpoint(work),
                spec,
                limits,
                work.matrix.file(spec.prompts),
                work.partial(),
                model_folder=work.inputs["weights"] / "model",
                progress=work.line.follow,
            )
        except StageError as problem:  # the two examinations differ: there is a release, and nothing to hold it against
            found = _not_compared(limits, Status.INCONCLUSIVE, problem.message)
    for file in sorted(work.partial().glob("*.jsonl")):
        link_or_copy(file, work.out / file.name)
    work.write("consistency.json", dump(found))
    caught = f" by the layer {found.caught_by}" if found.caught_by else ""
    return f"{found.finding}{caught}: {found.verdicts[-1 if not caught else _place(found)].measured}, {found.seconds:.1f} s"


def reads_consistency(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, what is asked of it, how far it may be from the reference, and who that is."""
    spec = plan.consistency
    return {
        "serve": reads_serve(plan, matrix),
        "examination": spec and spec.model_dump(mode="json", by_alias=True, exclude={"limits"}),
        "limits": dump(spec.limits or matrix.limits(plan.precision)) if spec else None,
        "reference": plan.reference,
        **period(spec.max_age if spec else None),
    }


def unexamined(plan: Plan) -> tuple[str, ...]:
    """Return the needs of the stage that a plan without an examination spares."""
    return () if plan.consistency else ("reference:trace",)


def _spec(work: Work) -> Examination:
    return Examination.model_validate(work.reads["examination"])


def _endpoint(work: Work) -> Endpoint:
    from release.validators.endpoint import Endpoint

    reads = work.reads["serve"]
    return Endpoint(server_of(work, work.task.needs["serve"], reads).url, reads["model"])


def _not_compared(limits: Limits, status: Status, why: str) -> Consistency:
    """Return the outcome where there was nothing to compare with."""
    verdict = Verdict(
        name="identity",
        status=status,
        measured="no comparison",
        wanted="a reference's trace to compare with",
        reason=f"{why}.",
        figures={"finding": "UNVERIFIABLE"},
    )
    return Consistency(finding="UNVERIFIABLE", caught_by=None, seconds=0.0, reference=None, limits=limits, verdicts=(verdict,))


def _place(found: Consistency) -> int:
    return next(place for place, verdict in enumerate(found.verdicts) if verdict.name == found.caught_by)
