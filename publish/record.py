"""The record, `release.json`: the whole truth about one release. Card, index and catalogue are rendered from it and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release import __version__
from release.oci import link_or_copy, sha256_file
from release.types import JSON, State, Verdict, state_of

if TYPE_CHECKING:
    from release.pipeline import Work

SCHEMA: Final = "release-record/1"
EVIDENCE: Final = (
    ("serve", "server.log"),
    ("conformance", "conformance.json"),
    ("accuracy", "samples.jsonl"),
    ("accuracy", "evaluation.json"),
    ("reference:accuracy", "samples.jsonl"),
    ("reference:accuracy", "evaluation.json"),
)
"""Raw results behind the verdicts, by the stage that made them."""


def assemble(work: Work) -> JSON:
    """Return the record of the release whose stage outputs `work` holds, and lay the evidence beside it under evidence/."""
    plan = work.reads["plan"]
    conformance, comparison = work.result("conformance", "conformance.json"), work.result("compare", "compare.json")
    facts = {need: work.store.facts(key) for need, key in work.task.needs.items()}
    evidence = evidence_files(work.inputs)
    for name, path in evidence.items():
        (work.out / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, work.out / name)
    return {
        "schema": SCHEMA,
        "made-by": f"release {__version__}",
        "cell": plan["cell"],
        "created": max(str(fact["created"]) for fact in facts.values()),
        "state": state_from([*conformance, comparison]).value,
        "chip": plan["chip"],
        "model": plan["model"],
        "precision": plan["precision"],
        "variant": plan["variant"],
        "engine": plan["engine"],
        "pins": {
            "sources": work.result("unpatch", "sources.json"),
            "wheels": work.result("wheels", "wheels.json"),
            "base": work.result("base", "base.json"),
            "checkpoint": plan["model"]["checkpoint"]["files"],
            "pylock": sha256_file(work.inputs["render"] / "pylock.toml"),
            "dockerfile": sha256_file(work.inputs["render"] / "Dockerfile"),
            "questions": plan["accuracy"]["sha256"],
        },
        "image": work.result("image", "image.json"),
        "weights": work.result("weights", "weights.json"),
        "serve": work.result("serve", "serve.json"),
        "verdicts": [*conformance, comparison],
        "accuracy": {
            "rule": plan["accuracy"],
            "candidate": work.result("accuracy", "accuracy.json"),
            "reference": work.result("reference:accuracy", "accuracy.json") if "reference:accuracy" in work.inputs else None,
        },
        "reference": _reference(work, plan),
        "reported": [],
        "evidence": [
            {"path": name, "sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in evidence.items()
        ],
        "stages": [
            {"stage": need, "key": work.task.needs[need], "seconds": fact.get("seconds"), "created": fact["created"]}
            for need, fact in facts.items()
        ],
    }


def state_from(verdicts: list[JSON]) -> State:
    """Return what a release is by its record's verdicts. A conformance that looked at nothing blocks it, whatever the rest says."""
    found = tuple(Verdict.model_validate(verdict, strict=False) for verdict in verdicts)
    return state_of(found if any(verdict.name != "accuracy" for verdict in found) else ())


def evidence_files(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the evidence that is there, by the path under which a release carries it."""
    found = {}
    for stage, name in EVIDENCE:
        if stage in inputs and (inputs[stage] / name).is_file():
            found[f"evidence/{stage.replace('reference:', 'reference-')}/{name}"] = inputs[stage] / name
    return found


def _reference(work: Work, plan: Mapping[str, Any]) -> JSON | None:
    if plan["reference"] is None:
        return None
    return {"cell": plan["reference"], "serve": work.result("reference:serve", "serve.json")}
