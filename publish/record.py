"""The record, `release.json`: the whole truth about one release. Card, index and catalogue are rendered from it and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release import __version__
from release.oci import link_or_copy, sha256_file
from release.types import JSON, Concern, Plan, State, Verdict, dump, family, state_of

if TYPE_CHECKING:
    from release.pipeline import Work

SCHEMA: Final = "release-record/1"
EVIDENCE: Final = (
    ("serve", "server.log"),
    ("conformance", "conformance.json"),
    ("consistency", "*.jsonl"),
    ("reference:trace", "trace.json"),
    ("reference:trace", "*.jsonl"),
    ("accuracy", "samples.jsonl"),
    ("accuracy", "evaluation.json"),
    ("performance", "*-*-*-*.json"),
    ("profile", "coverage.json"),
    ("profile", "*.json.gz"),
    ("profile", "calls-*.json"),
    ("reference:accuracy", "samples.jsonl"),
    ("reference:accuracy", "evaluation.json"),
)
"""Raw results behind the verdicts, by the stage that made them; a star stands for whatever its files are called."""
CARDS: Final = {"en": "README.md", "zh": "README_zh.md"}
"""The files of the card by its language."""
FACTS: Final = (
    *(
        "dtype",
        "device",
        "base",
        "sources",
        "packages",
        "weights",
        "container",
        "parallel",
        "world-sizes",
        "features",
        "adapters",
    ),
    *("trials", "conflicts", "documents", "note"),
)
"""What a record keeps of the plan, beside chip, model, precision and engine."""
CONTEXT: Final = ("max-model-len", "max-seq-len", "context-length", "max-position-embeddings")
"""How engines spell the tokens that a sequence may have."""
IMAGE_WORD: Final = "$IMAGE"
"""What stands for the image in the command of a release that is not built: no id exists yet, and none is invented."""


def verdicts_of(work: Work) -> list[JSON]:
    """Return every verdict that was reached, as its validator gave it: conformance, consistency, accuracy, performance, operators."""
    consistency = work.result("consistency", "consistency.json")
    layers = [{**verdict, "name": f"consistency/{verdict['name']}"} for verdict in (consistency or {}).get("verdicts", ())]
    judged = work.result("judge", "judged.json")
    further = work.result("settle", "settlement.json")["verdicts"]
    return [*work.result("conformance", "conformance.json"), *layers, work.result("compare", "compare.json"), *further, *judged]


def assemble(work: Work, verdicts: list[JSON], waivers: list[JSON]) -> JSON:
    """Return the record of the release whose stage outputs `work` holds, and lay the evidence beside it under evidence/.

    `verdicts` are those of the release as its waivers leave them, and `waivers` say what each of them did, in its `outcome`.
    """
    plan = work.reads["plan"]
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
        "state": state_from(verdicts).value,
        "chip": plan["chip"],
        "model": plan["model"],
        "precision": plan["precision"],
        "variant": plan["variant"],
        "engine": plan["engine"],
        "pins": _pins(work, plan),
        "image": work.result("image", "image.json"),
        "weights": work.result("weights", "weights.json"),
        "serve": work.result("serve", "serve.json"),
        "verdicts": verdicts,
        "waivers": waivers,
        "consistency": work.result("consistency", "consistency.json"),
        "settlement": work.result("settle", "settlement.json")["settlement"],
        "performance": work.result("performance", "performance.json"),
        "coverage": _coverage(work),
        "accuracy": {
            "rule": plan["accuracy"],
            "candidate": work.result("accuracy", "accuracy.json"),
            "reference": work.result("reference:accuracy", "accuracy.json") if "reference:accuracy" in work.inputs else None,
        },
        "reference": _reference(work, plan),
        "reported": plan["reported"],
        "plan": plan_facts(
            plan,
            files=_texts(work.inputs["render"] / "files"),
            concerns=work.reads.get("concerns", ()),
            memory=work.reads.get("memory"),
            layout=work.reads.get("layout"),
        ),
        "pictures": [],
        "evidence": [
            {"path": name, "sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in evidence.items()
        ],
        "stages": [
            {"stage": need, "key": work.task.needs[need], "seconds": fact.get("seconds"), "created": fact["created"]}
            for need, fact in facts.items()
        ],
    }


def _coverage(work: Work) -> JSON | None:
    """Return the shares of Triton with what each counts; the list of all kinds of operators is evidence, and none was asked for: None."""
    if "profile" not in work.inputs:
        return None
    found = work.result("profile", "coverage.json")
    return {name: value for name, value in found.items() if name != "kinds"}


def _pins(work: Work, plan: Mapping[str, Any]) -> JSON:
    """Return what the release was made from, by digest."""
    return {
        "sources": work.result("unpatch", "sources.json"),
        "git": work.result("unpatch", "git.json"),
        "wheels": work.result("wheels", "wheels.json"),
        "base": work.result("base", "base.json"),
        "checkpoint": plan["model"]["checkpoint"]["files"],
        "pylock": _digest(work.inputs["render"] / "pylock.toml"),
        "dockerfile": sha256_file(work.inputs["render"] / "Dockerfile"),
        "questions": plan["accuracy"] and plan["accuracy"]["sha256"],
        "prompts": plan["consistency"] and plan["consistency"]["sha256"],
    }


def planned(
    plan: Plan,
    *,
    command: list[str],
    argv: Sequence[str],
    health: str,
    files: dict[str, str],
    concerns: tuple[Concern, ...],
    memory: JSON | None,
    layout: JSON | None,
) -> JSON:
    """Return the record of a release that is not built: of the same shape as `assemble`'s, and null where nothing exists yet.

    `command` is the `docker run` line with IMAGE_WORD for the image (empty if it is not known), `argv` what runs in the container,
    `files` the engine's configuration as text by path. `memory` is one device's, in bytes: `weights`, `kv-per-token`, `context`,
    `asked`, `reserve`, `budget`, `needed`, `starts`, `full`; `layout` is `tensor-parallel-size`, `pipeline-parallel-size`, `replicas`
    and, where the plan chose it, `why`. Without `layout` the plan's own stands.
    """
    document: JSON = dump(plan)
    return {
        "schema": SCHEMA,
        "made-by": f"release {__version__}",
        "cell": plan.cell,
        "created": None,
        "state": State.PLANNED.value,
        **{name: document[name] for name in ("chip", "model", "precision", "variant", "engine")},
        "pins": {
            **dict.fromkeys(("sources", "git", "wheels", "base", "pylock", "dockerfile")),
            "checkpoint": document["model"]["checkpoint"]["files"],
            "questions": plan.accuracy and plan.accuracy.sha256,
            "prompts": plan.consistency and plan.consistency.sha256,
        },
        "image": None,
        "weights": None,
        "serve": {
            "command": command,
            "image": None,
            "port": plan.serve.port,
            "argv": list(argv),
            "env": dict(plan.serve.env),
            "memory": plan.serve.memory,
            "health": health,
            "model": plan.served_model_name,
            "ready-after": None,
        },
        "verdicts": [],
        "waivers": [{**dump(waiver), "outcome": "planned"} for waiver in plan.waivers],
        "consistency": None,
        "settlement": None,
        "performance": None,
        "coverage": None,
        "accuracy": {"rule": document["accuracy"], "candidate": None, "reference": None},
        "reference": plan.reference and {"cell": plan.reference, "serve": None},
        "reported": document["reported"],
        "plan": plan_facts(document, files=files, concerns=[dump(concern) for concern in concerns], memory=memory, layout=layout),
        "pictures": [],
        "evidence": [],
        "stages": [],
    }


def plan_facts(
    plan: Mapping[str, Any], *, files: Mapping[str, str], concerns: Sequence[JSON], memory: JSON | None, layout: JSON | None
) -> JSON:
    """Return what a record keeps of a plan (as JSON): FACTS, the context in tokens that a client may use, and what was worked out from it."""
    return {
        **{name: plan[name] for name in FACTS},
        "context": _context(plan),
        "layout": layout or plan["parallel"],
        "memory": memory,
        "concerns": list(concerns),
        "files": dict(sorted(files.items())),
    }


def state_from(verdicts: list[JSON]) -> State:
    """Return what a release is by its record's verdicts. A conformance that looked at nothing blocks it, whatever the rest says."""
    found = tuple(Verdict.model_validate(verdict, strict=False) for verdict in verdicts)
    return state_of(found if any(family(verdict.name) == "conformance" for verdict in found) else ())


def evidence_files(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the evidence that is there, by the path under which a release carries it."""
    found = {}
    for stage, pattern in EVIDENCE:
        for path in sorted(inputs[stage].glob(pattern)) if stage in inputs else ():
            found[f"evidence/{stage.replace('reference:', 'reference-')}/{path.name}"] = path
    return found


def _digest(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def _reference(work: Work, plan: Mapping[str, Any]) -> JSON | None:
    if plan["reference"] is None:
        return None
    return {"cell": plan["reference"], "serve": work.result("reference:serve", "serve.json")}


def _context(plan: Mapping[str, Any]) -> int:
    """Return the tokens that a sequence may have: what the engine is told in any spelling, else the model's own limit."""
    args = plan["serve"]["args"]
    told = (args.get(spelling) for name in CONTEXT for spelling in (name, name.replace("-", "_")))
    own: int = plan["model"]["architecture"]["context"]
    return next((number for number in told if isinstance(number, int) and not isinstance(number, bool)), own)


def _texts(folder: Path) -> dict[str, str]:
    """Return the text files below a folder by their paths in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in found}
