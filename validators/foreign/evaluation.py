"""An evaluation that another tool ran, in our own record: its samples as it graded them, and what is known of how they were asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from release.errors import StageError
from release.types import JSON
from release.validators.samples import Journal, Sample, Samples, Summary, complaint, json_line, summarize

LARGEST: Final = 512 * 1024 * 1024
"""Bytes of a result file beyond which it is not read."""
LONGEST_LINE: Final = 64 * 1024 * 1024
ENDS: Final = {"stop": "stop", "max_tokens": "length", "length": "length", "model_length": "length", "tool_calls": "stop"}
"""How tools spell the end of an answer, and how servers do."""


def pick(value: Any, *path: str | int, where: str) -> Any:
    """Return the field of a foreign file at `path`. Raises StageError naming the place and the path if it is not there."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError) as problem:
            raise StageError(f"there is no {'.'.join(map(str, path))}", where=where) from problem
    return value


def lines(path: Path) -> Iterator[tuple[str, JSON]]:
    """Yield (file:line, object) of a JSONL file of another tool, strictly and one line at a time. Raises StageError."""
    _bounded(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE:
                    raise StageError(f"line {number} has {LONGEST_LINE} bytes or more", where=str(path))
                yield f"{path}:{number}", json_line(line.removesuffix(b"\n"), number, path, StageError)
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem


def document(path: Path) -> JSON:
    """Return the object in a JSON file of another tool. Raises StageError."""
    value = _parsed(path)
    if not isinstance(value, dict):
        raise StageError("is JSON, and no object", where=str(path))
    return value


def array(path: Path) -> list[Any]:
    """Return the list in a JSON file of another tool. Raises StageError."""
    value = _parsed(path)
    if not isinstance(value, list):
        raise StageError("is JSON, and no list", where=str(path))
    return value


def _parsed(path: Path) -> Any:
    _bounded(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse)
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    except (ValueError, RecursionError) as problem:
        raise StageError(f"is no JSON: {problem!s:.200}", where=str(path)) from problem


def record(where: str, **fields: Any) -> Sample:
    """Return a sample. `prompt` is any JSON; a field of a wrong type is a StageError at `where`."""
    prompt = fields.pop("prompt")
    spelled = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    told: JSON = {
        "prompt_sha256": hashlib.sha256(spelled.encode("utf-8", "replace")).hexdigest(),
        "answer": None, "finish_reason": None, "prompt_tokens": None, "completion_tokens": None, "latency_s": 0.0, "error": None,
    }  # fmt: skip
    told |= {key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for key, value in fields.items()}
    try:
        return Sample.model_validate(told)
    except ValidationError as problem:
        raise StageError(f"no sample: {complaint(problem)}", where=where) from problem


def right(value: Any, metric: str, where: str) -> bool:
    """Return whether a score says that an answer is right. Raises StageError for one that is worth a part, or no number."""
    if value in ("C", "I", "N"):
        return bool(value == "C")
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise StageError(
        f"{metric} is {value!r:.60}: neither right nor wrong",
        where=where,
        next_step="name a metric that is 1 or 0 for each sample",
    )


def finished(records: Iterable[Sample], told: JSON, where: str) -> Samples:
    """Return the evaluation: samples by id and repeat, and its fingerprint with a digest of the questions as they were asked."""
    kept = sorted(records, key=lambda one: one.key)
    if not kept:
        raise StageError("there are no samples", where=where)
    if len({one.key for one in kept}) < len(kept):
        twice = next(one for one, two in pairwise(kept) if one.key == two.key)
        raise StageError(f"question {twice.question_id!r} (repeat {twice.repeat}) stands twice", where=where)
    asked = sorted({(one.question_id, one.prompt_sha256, one.expected) for one in kept})
    if len({question for question, _, _ in asked}) < len(asked):
        raise StageError("the repeats of a question do not ask the same", where=where)
    fingerprint: JSON = {
        "questions": "sha256:" + hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "n": len(asked),
        "repeats": max(one.repeat for one in kept) + 1,
        **told,
    }
    if len(kept) != fingerprint["n"] * fingerprint["repeats"]:
        raise StageError(f"{len(kept)} samples are not {fingerprint['repeats']} of each of {len(asked)} questions", where=where)
    return Samples(fingerprint, tuple(kept), summarize(kept, fingerprint, 0.0, 0))


def keep(samples: Samples, path: Path) -> Summary:
    """Write an evaluation as our own runner would: JSONL at `path`, `evaluation.json` beside it."""
    with Journal(path, samples.fingerprint) as journal:
        for sample in samples.records:
            if sample.key not in journal.known:
                journal.append(sample)
        return journal.finished or journal.finish(0.0, 0)


def _bounded(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    if not path.is_file() or size > LARGEST:
        raise StageError(f"is no file, or has more than {LARGEST} bytes", where=str(path))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
