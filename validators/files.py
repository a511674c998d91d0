"""Result files of two sides, ours or anybody's JSONL of graded answers, into one judgement: bounded, strict, line by line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from release.errors import UsageError
from release.types import JSON
from release.validators.answers import Answer, Side, judge
from release.validators.judgement import Judgement
from release.validators.samples import SIDECAR, json_line
from release.validators.verdicts import Plan

LONGEST_LINE: Final = 16 << 20
MOST_LINES: Final = 5_000_000
LONGEST_ID: Final = 500
LARGEST_SIDECAR: Final = 1 << 20
IDS: Final = ("id", "question_id", "question-id", "qid")
GRADES: Final = ("correct", "score")
REPEATS: Final = ("repeat", "epoch")
CLUSTERS: Final = ("cluster", "subject", "subset")
BENCHMARKS: Final = ("bench", "benchmark")
FORM: Final = 'a line is {"id": "q1", "correct": true}, with "repeat": 0, 1, … where a question was asked several times'


def verdict_of_files(
    candidate: Path,
    reference: Path,
    *,
    margin: float,
    looks: int = 1,
    temperature: float | None = None,
    benchmark: str = "",
) -> Judgement:
    """Judge two result files question by question. `margin` is a share (0.02 = 2 points).

    A file is JSONL: our samples, or objects with an id (`id`, `question_id`, `qid`), a grade (`correct`: true, false or 0, 1; or `score`
    from 0 to 1; null where nothing could be graded) and, where there are several, `repeat`; `cluster` (or `subject`) tells what belongs
    together; `finish_reason`, `error`, `text`, `prompt_tokens` and `completion_tokens` are used where they stand there. A file of ours with
    its evaluation.json beside it is compared by fingerprint as well; without, that both were asked the same is the files' word, said in a
    note, and the finding is no measurement. Raises UsageError with file and line for anything else.
    """
    plan = Plan(margin, looks, temperature)
    sides = read_side(candidate), read_side(reference)
    said = [side.fingerprint.get("temperature") for side in sides if side.fingerprint]
    if temperature is None and said and isinstance(said[0], int | float) and not isinstance(said[0], bool):
        plan = Plan(margin, looks, float(said[0]))
    judged = judge(*sides, plan, benchmark=benchmark)
    bare = [side.name for side in sides if side.fingerprint is None]
    if bare:
        judged = judged.unmeasured("no fingerprint comes with the files: that both sides were asked the same is their word")
    if not all(side.told for side in sides):
        judged = judged.noted("how answers ended is not told: cut-off, failed and longer answers would go unseen")
    return judged


def read_side(path: Path) -> Side:
    """Read one side's result file in one pass; only what the judgement needs is kept. Raises UsageError with file and line."""
    try:
        with path.open("rb") as file:
            if not file.seekable():
                raise UsageError("is no file on disk", where=str(path))
            answers, told, digest = _read(file, path)
    except OSError as problem:
        raise UsageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    if not answers:
        raise UsageError("holds no answers", where=str(path), next_step=FORM)
    return Side.of(str(path), answers, _fingerprint(path, digest), told=told)


def _read(file: BinaryIO, path: Path) -> tuple[list[Answer], bool, str]:
    hashing = hashlib.sha256()
    answers: list[Answer] = []
    seen: set[tuple[str, int]] = set()
    told, benchmark = True, None
    for number, line in enumerate(_lines(file, path), 1):
        hashing.update(line)
        where = f"{path}:{number}"
        value = json_line(line.removesuffix(b"\n"), number, path, UsageError)
        answer = _answer(value, where)
        key = (answer.question, answer.repeat)
        if key in seen:
            raise UsageError(
                f"question {answer.question[:80]!r} stands twice" + ("" if answer.repeat else " and says no repeat"),
                where=where,
                next_step=FORM,
            )
        seen.add(key)
        named = _first(value, BENCHMARKS)
        if number > 1 and named != benchmark:
            raise UsageError(f"is of benchmark {str(named)[:80]!r}, the lines before of {str(benchmark)[:80]!r}", where=where)
        benchmark = named
        told = told and ("finish_reason" in value or "error" in value)
        answers.append(answer)
    return answers, told, "sha256:" + hashing.hexdigest()


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UsageError(f"is longer than {LONGEST_LINE} bytes", where=f"{path}:{number}")
        if number > MOST_LINES:
            raise UsageError(f"has more than {MOST_LINES} lines", where=str(path))
        yield line


def _first(value: JSON, keys: tuple[str, ...]) -> Any:
    """Return what stands under the first of the keys that is there, None if none is."""
    return next((value[key] for key in keys if key in value), None)


def _answer(value: JSON, where: str) -> Answer:
    question = _first(value, IDS)
    if isinstance(question, int) and not isinstance(question, bool):
        question = str(question)
    if not isinstance(question, str) or not question.strip() or len(question) > LONGEST_ID:
        raise UsageError("has no id of its question", where=where, next_step=FORM)
    if not any(key in value for key in GRADES):
        raise UsageError("has neither 'correct' nor 'score'", where=where, next_step=FORM)
    repeat = _first(value, REPEATS)
    if repeat is not None and (not isinstance(repeat, int) or isinstance(repeat, bool) or not 0 <= repeat < MOST_LINES):
        raise UsageError(f"repeat is {repeat!r:.60}, and no whole number", where=where, next_step=FORM)
    score = _score(_first(value, GRADES), where)
    reason, error, text = value.get("finish_reason"), value.get("error"), value.get("text")
    truncated = error is None and reason == "length"
    cluster = _first(value, CLUSTERS)
    return Answer(
        question=question,
        score=score,
        repeat=repeat or 0,
        failed=error is not None or (score is None and not truncated),
        truncated=truncated,
        empty=error is None and not truncated and isinstance(text, str) and not text.strip(),
        prompt_tokens=_count(value.get("prompt_tokens")),
        completion_tokens=_count(value.get("completion_tokens")),
        cluster=str(cluster)[:LONGEST_ID] if isinstance(cluster, str | int) else None,
    )


def _score(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1 or not math.isfinite(value):
        raise UsageError(
            f"the grade is {value!r:.60}, and neither true, false, null nor from 0 to 1", where=where, next_step=FORM
        )
    return float(value)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None


def _fingerprint(path: Path, digest: str) -> JSON | None:
    """Return the fingerprint beside a result file, if what lies there speaks of this very file."""
    side = path.with_name(SIDECAR)
    try:
        if side.stat().st_size > LARGEST_SIDECAR:
            return None
        value = json.loads(side.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("samples-sha256") != digest:
        return None
    fingerprint = value.get("fingerprint")
    return fingerprint if isinstance(fingerprint, dict) else None
