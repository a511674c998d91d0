"""What inspect-ai wrote: a log as one JSON file (`--log-format json`, or `inspect log convert --to json`). Read from 0.3.285's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from release.errors import StageError
from release.types import JSON
from release.validators.foreign.evaluation import ENDS, document, finished, pick, record, right
from release.validators.samples import Sample, Samples

CONVERT: Final = "inspect log convert --to json --output-dir OUT LOG"


def read_inspect(path: Path, metric: str | None = None) -> Samples:
    """Read the log at `path`. `metric` is the scorer's name, where there are several.

    Raises StageError if it is another format, malformed or of a run that did not finish, or if a score is neither right nor wrong.
    """
    if path.suffix == ".eval":
        raise StageError("is an archive of inspect-ai's own", where=str(path), next_step=f"convert it: {CONVERT}")
    log, where = document(path), str(path)
    if log.get("status") != "success":
        raise StageError(
            f"the run ended with {log.get('status')!r:.60}", where=where, next_step="inspect eval-retry goes on with it"
        )
    told = pick(log, "eval", where=where)
    samples = pick(log, "samples", where=where)
    if not isinstance(samples, list):
        raise StageError("the samples are no list", where=where, next_step="run without --no-log-samples")
    names: set[str] = set()
    records = [_sample(sample, metric, names, f"{where}: sample {number}") for number, sample in enumerate(samples)]
    if len(names) > 1:
        raise StageError(f"the samples are graded by {', '.join(sorted(names))}", where=where, next_step="name one of them")
    return finished(records, _told(told, min(names, default="")), where)


def _sample(sample: Any, metric: str | None, names: set[str], where: str) -> Sample:
    fields: dict[str, Any] = {
        "question_id": str(pick(sample, "id", where=where)),
        "repeat": _epoch(pick(sample, "epoch", where=where), where),
        "prompt": pick(sample, "input", where=where),
        "expected": str(pick(sample, "target", where=where)),
    }
    if sample.get("error"):
        return record(where, **fields, correct=None, text="", error=str(pick(sample, "error", "message", where=where)))
    output = pick(sample, "output", where=where)
    stopped = pick(output, "choices", 0, "stop_reason", where=where)
    finish = ENDS.get(str(stopped))
    if finish is None:
        return record(where, **fields, correct=None, text="", error=f"the answer ended with {stopped!r:.50}")
    scores = pick(sample, "scores", where=where)
    name = metric or (min(scores) if isinstance(scores, dict) and len(scores) == 1 else "")
    if not name:
        raise StageError(f"there are the scores {', '.join(sorted(scores or []))}", where=where, next_step="name one of them")
    names.add(name)
    score = pick(scores, name, where=where)
    answer = score.get("answer") if isinstance(score, dict) else None
    usage = output.get("usage") or {}
    return record(
        where,
        **fields,
        answer=None if answer is None else str(answer),
        correct=None if finish == "length" else right(pick(score, "value", where=where), name, where),
        text=str(output.get("completion") or ""),
        finish_reason=finish,
        prompt_tokens=usage.get("input_tokens"),
        completion_tokens=usage.get("output_tokens"),
        latency_s=float(output.get("time") or 0.0),
    )


def _epoch(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StageError(f"epoch {value!r:.40} is none", where=where)
    return value - 1


def _told(told: JSON, metric: str) -> JSON:
    generation = told.get("model_generate_config") or {}
    return {
        "grader": f"inspect-ai {metric}",
        "prompt": f"inspect-ai {told.get('task')}, version {told.get('task_version')}",
        "temperature": generation.get("temperature"),
        "seed": generation.get("seed"),
        "max-tokens": generation.get("max_tokens"),
        "max-model-len": None,
        "harness": f"inspect-ai {(told.get('packages') or {}).get('inspect_ai')}",
        "model": str(told.get("model")),
    }
