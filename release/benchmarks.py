"""The stages of further question sets: each asked, each judged, and the decision about all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from release.matrix.load import Matrix
from release.oci import link_or_copy
from release.pipeline import Work
from release.trial import UNUSED_MARGIN, reads_serve, server_of
from release.types import JSON, Accuracy, Evaluation, Plan, QuestionSet, Status, Verdict, dump, tuples

if TYPE_CHECKING:
    from release.validators.judgement import Judgement

SAMPLES = "samples.jsonl"


def benchmarks(work: Work) -> str:
    """Ask the server every further set of the cell, each into a folder of its own; a killed run resumes inside."""
    told: dict[str, JSON] = {}
    for given in work.reads["sets"]:
        name = given["name"]
        folder = work.partial() / name
        folder.mkdir(parents=True, exist_ok=True)
        told[name] = _asked(work, given, folder)
        for path in sorted(folder.glob("*.json*")):
            (work.out / name).mkdir(exist_ok=True)
            link_or_copy(path, work.out / name / path.name)
    work.write("benchmarks.json", told)
    parts = [f"{name} {one['correct']} of {one['n']}" if "n" in one else f"{name} SKIPPED" for name, one in told.items()]
    return ", ".join(parts) or "no further question sets"


def _asked(work: Work, given: JSON, folder: Path) -> JSON:
    """Return the summary of one set, or why it was not asked."""
    from release.validators.accuracy import evaluate
    from release.validators.endpoint import Endpoint
    from release.validators.foreign import running

    serve = work.reads["serve"]
    if "runner" in given:
        evaluation = Evaluation.model_validate(tuples({**given, "margin": UNUSED_MARGIN}))
        if problem := running.missing(evaluation):
            return {"skipped": problem}
        server = server_of(work, work.task.needs["serve"], serve)
        work.line.note(f"{evaluation.name}: evalscope {evaluation.dataset}")
        tool, log = folder / "evalscope", folder / "evalscope.log"
        found: JSON = dump(
            running.evaluate(evaluation, url=server.url, model=serve["model"], out=folder / SAMPLES, work=tool, log=log)
        )
        return found
    asked = QuestionSet.model_validate({**given, "margin": UNUSED_MARGIN})
    spec = Accuracy.model_validate(asked.model_dump(exclude={"name"}))
    server = server_of(work, work.task.needs["serve"], serve)
    questions = work.matrix.file(spec.questions)
    told: JSON = dump(
        evaluate(Endpoint(server.url, serve["model"]), spec, questions, folder / SAMPLES, progress=work.line.follow)
    )
    return told


def reads_benchmarks(plan: Plan, matrix: Matrix) -> JSON:
    """How the server was started, and the sets without their margins."""
    sets = [each.model_dump(mode="json", by_alias=True, exclude={"margin"}) for each in plan.benchmarks]
    return {"serve": reads_serve(plan, matrix) if sets else None, "sets": sets}


def settle_sets(work: Work) -> str:
    """Judge every set of the cell against its reference, and decide over all of them: RELEASE, BLOCK or PENDING, and what it would cost."""
    from release.validators.settlement import settle

    judged: list[Judgement] = []
    verdicts: list[Verdict] = []
    for name, margin in work.reads["margins"].items():
        outcome = _judged(work, name, margin)
        if isinstance(outcome, Verdict):
            verdicts.append(outcome)
        else:
            judged.append(outcome)
    if work.reads["reference"] is None or not (judged or verdicts):
        work.write("settlement.json", {"verdicts": [dump(verdict) for verdict in verdicts], "settlement": None})
        return "nothing to settle"
    decided = settle(judged, gating=tuple(work.reads["margins"]))
    further = [one.verdict(f"accuracy/{one.benchmark}") for one in decided.judgements if one.benchmark != MAIN]
    work.write(
        "settlement.json", {"verdicts": [dump(verdict) for verdict in (*further, *verdicts)], "settlement": decided.json()}
    )
    return f"{decided.decision}: {decided.reason}"


MAIN = "questions"
"""What the cell's own question set is called among its benchmarks."""


def _judged(work: Work, name: str, margin: float) -> Judgement | Verdict:
    """Return what one set says, or a verdict that says why it says nothing."""
    from release.validators.files import verdict_of_files

    sides = []
    for side in ("", "reference:"):
        need = f"{side}{'accuracy' if name == MAIN else 'benchmarks'}"
        folder = work.inputs.get(need)
        path = folder and (folder if name == MAIN else folder / name) / SAMPLES
        if path is None or not path.is_file():
            told = json.loads((folder / "benchmarks.json").read_bytes()) if folder and name != MAIN else {}
            why = told.get(name, {}).get("skipped", "it was not asked")
            who = work.reads["reference" if side else "cell"] or "a reference, of which there is none"
            return Verdict(
                name=f"accuracy/{name}",
                status=Status.SKIPPED,
                measured="no comparison",
                wanted=f"answers of {who}",
                reason=f"{name} was not asked of {who}: {why}",
                figures={"finding": "SKIPPED", "benchmark": name},
            )
        sides.append(path)
    return verdict_of_files(*sides, margin=margin, benchmark=name)


def reads_settle(plan: Plan, matrix: Matrix) -> JSON:
    """The margins by set, and the names of both sides."""
    main = {MAIN: plan.accuracy.margin} if plan.accuracy and plan.reference else {}
    return {
        "margins": {**main, **{each.name: each.margin for each in plan.benchmarks}},
        "cell": plan.cell,
        "reference": plan.reference,
    }


def unsettled(plan: Plan) -> tuple[str, ...]:
    """Return the needs that a plan without further sets spares."""
    return () if plan.benchmarks else ("benchmarks", "reference:benchmarks")
