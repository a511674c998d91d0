"""What evalscope wrote into a run's folder: `reviews/MODEL/BENCHMARK_SUBSET.jsonl`, the predictions beside it. Read from 1.14.1's files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from release.errors import StageError
from release.types import JSON
from release.validators.foreign.evaluation import ENDS, finished, lines, pick, record, right
from release.validators.samples import Sample, Samples

CONFIGURATION: Final = "configs/task_config.yaml"
LARGEST_CONFIGURATION: Final = 1024 * 1024
SCALAR: Final = re.compile(r"(?P<indent> {0,2})(?P<key>[A-Za-z0-9_]+):(?: (?P<value>.*))?")


def read_evalscope(folder: Path, benchmark: str, metric: str | None = None) -> Samples:
    """Read one benchmark of the run in `folder`, all its subsets: a subset is a cluster. `metric` is the run's main one by default.

    Raises StageError if there is no such benchmark or more than one model, if a file is malformed or a review is missing, or if a
    score is no 0 or 1.
    """
    reviews = sorted((folder / "reviews").glob("*/*.jsonl"))
    chosen = [path for path in reviews if path.name.startswith(f"{benchmark}_") or path.stem == benchmark]
    if not chosen:
        there = ", ".join(sorted({path.stem for path in reviews})[:20]) or "none"
        raise StageError(f"no review of {benchmark}", where=str(folder), next_step=f"there are: {there}")
    if len({path.parent for path in chosen}) > 1:
        raise StageError("the run has more than one model", where=str(folder))
    records: list[Sample] = []
    names: set[str] = set()
    for path in chosen:
        records += _subset(path, folder, path.stem.removeprefix(benchmark).lstrip("_") or "all", metric, names)
    if len(names) > 1:
        raise StageError(f"the subsets are graded by {', '.join(sorted(names))}", where=str(folder))
    told = _told(_scalars(folder / CONFIGURATION), benchmark, min(names, default=""))
    return finished(records, told | {"model": chosen[0].parent.name}, str(folder))


def _subset(path: Path, folder: Path, subset: str, metric: str | None, names: set[str]) -> list[Sample]:
    predictions = folder / "predictions" / path.parent.name / path.name
    outputs = {pick(line, "index", where=where): (where, line) for where, line in lines(predictions)}
    records = []
    for where, review in lines(path):
        index = pick(review, "index", where=where)
        if index not in outputs:
            raise StageError(f"sample {index!r:.40} has a review and no prediction", where=where)
        records.append(_sample(review, *outputs.pop(index), subset, metric, names, where))
    if outputs:
        raise StageError(f"{len(outputs)} predictions have no review", where=str(path), next_step="let evalscope finish the run")
    return records


def _sample(review: JSON, there: str, prediction: JSON, subset: str, metric: str | None, names: set[str], where: str) -> Sample:
    scored = pick(review, "sample_score", where=where)
    name = metric or str(pick(scored, "score", "main_score_name", where=where))
    names.add(name)
    output = pick(prediction, "model_output", where=there)
    error = output.get("error") if isinstance(output, dict) else "the prediction has no output"
    messages = pick(review, "messages", where=where)
    target = review.get("target")
    fields: dict[str, Any] = {
        "question_id": f"{subset}/{pick(scored, 'group_id', where=where)}",
        "repeat": pick(scored, "generation_index", where=where),
        "cluster": subset,
        "prompt": [[turn.get("role"), turn.get("content")] for turn in messages if isinstance(turn, dict)][:-1],
        "expected": target if isinstance(target, str) else json.dumps(target, ensure_ascii=False),
    }
    if error:
        return record(where, **fields, correct=None, text="", error=str(error))
    stopped = pick(output, "choices", 0, "stop_reason", where=there)
    finish = ENDS.get(str(stopped))
    if finish is None:
        return record(where, **fields, correct=None, text="", error=f"the answer ended with {stopped!r:.50}")
    found = pick(scored, "score", "extracted_prediction", where=where)
    return record(
        where,
        **fields,
        answer=None if found is None else str(found),
        correct=None if finish == "length" else right(pick(scored, "score", "value", name, where=where), name, where),
        text=str(pick(scored, "score", "prediction", where=where)),
        finish_reason=finish,
        prompt_tokens=(output.get("usage") or {}).get("input_tokens"),
        completion_tokens=(output.get("usage") or {}).get("output_tokens"),
        latency_s=float(output.get("time") or 0.0),
    )


def _told(said: JSON, benchmark: str, metric: str) -> JSON:
    return {
        "grader": f"evalscope {metric}",
        "prompt": f"evalscope {benchmark}",
        "temperature": said.get("generation_config.temperature"),
        "seed": said.get("generation_config.seed", said.get("seed")),
        "max-tokens": said.get("generation_config.max_tokens"),
        "max-model-len": None,
        "harness": f"evalscope {said.get('evalscope_version')}",
    }


def _scalars(path: Path) -> JSON:
    """Return the plain values of the run's configuration, one level deep: numbers and words, nothing that YAML could hide in them."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_CONFIGURATION).decode("utf-8", "replace")
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    found: JSON = {}
    above = ""
    for line in text.splitlines():
        match = SCALAR.fullmatch(line)
        if not match:
            continue
        key, value = match["key"], (match["value"] or "").strip()
        if not match["indent"]:
            above = key
        name = f"{above}.{key}" if match["indent"] else key
        if re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", value):
            found[name] = json.loads(value) if not re.match(r"-?0[0-9]", value) else value
        elif re.fullmatch(r"[A-Za-z0-9_./:+-]{1,200}", value):
            found[name] = value
    return found
