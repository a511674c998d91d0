"""The per-sample log of an evaluation: written line by line while it runs, read again to resume it and to compare."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from release.errors import ReleaseError, StageError
from release.types import JSON, Frozen

SIDECAR: Final = "evaluation.json"
ANEW: Final = "remove the folder of this evaluation to start anew"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Sample(Frozen):
    """One question, asked once.

    `correct` is null where nothing was graded: a request that failed (`error` says how) or an answer that was cut off at
    max_tokens (`finish_reason` "length"). `answer` is what the grader took from `text`, null where it found none.
    """

    question_id: str
    prompt_sha256: str
    answer: str | None
    expected: str
    correct: bool | None
    finish_reason: str | None
    prompt_tokens: Count | None
    completion_tokens: Count | None
    latency_s: Seconds
    text: str
    error: str | None

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut off at max_tokens."""
        return self.error is None and self.finish_reason == "length"

    @property
    def empty(self) -> bool:
        """Whether the model ended its answer by itself without having said anything."""
        return self.error is None and not self.truncated and not self.text.strip()


class Summary(Frozen):
    """The totals of an evaluation. n = correct + wrong + failed + truncated; the `empty` answers are among the wrong ones.

    `seconds` is the wall-clock time of the run that finished the evaluation; `reused` of its samples came from an earlier run
    that was interrupted, and took no part of it.
    """

    n: int
    correct: int
    wrong: int
    failed: int
    truncated: int
    empty: int
    completion_tokens_mean: float | None
    seconds: Seconds
    reused: int
    fingerprint: JSON


@dataclass(frozen=True)
class Samples:
    """A finished evaluation: what it was (`fingerprint`) and what came out, sorted by question id."""

    fingerprint: JSON
    records: tuple[Sample, ...]
    summary: Summary


def summarize(records: Iterable[Sample], fingerprint: JSON, seconds: float, reused: int) -> Summary:
    """Count what came out. `seconds` and `reused` go into the summary as they are."""
    kept = tuple(records)
    tokens = [r.completion_tokens for r in kept if r.error is None and r.completion_tokens is not None]
    return Summary(
        n=len(kept),
        correct=sum(r.correct is True for r in kept),
        wrong=sum(r.correct is False for r in kept),
        failed=sum(r.error is not None for r in kept),
        truncated=sum(r.truncated for r in kept),
        empty=sum(r.empty for r in kept),
        completion_tokens_mean=sum(tokens) / len(tokens) if tokens else None,
        seconds=seconds,
        reused=reused,
        fingerprint=fingerprint,
    )


def json_lines(data: bytes, path: Path, error: type[ReleaseError]) -> Iterator[tuple[str, JSON]]:
    """Yield (file:line, object) for each line of a JSONL file, strictly: no blank line, no key twice, no NaN, UTF-8.

    Raises `error` at the first line that is anything else, with its place. A last line without a line feed is a line too.
    """

    def once(pairs: list[tuple[str, Any]]) -> JSON:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
        except (ValueError, RecursionError) as problem:
            reason = "is blank" if not line.strip() else f"is no JSON: {problem}"
            raise error(f"line {number} {reason}", where=where) from problem
        if not isinstance(value, dict):
            raise error(f"line {number} is JSON, and no object", where=where)
        yield where, value


def complaint(problem: ValidationError) -> str:
    """Return the first thing that is wrong with foreign data, in one line: 'prompt: Field required'."""
    first = problem.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _parsed(data: bytes, path: Path) -> dict[str, Sample]:
    records: dict[str, Sample] = {}
    for where, value in json_lines(data, path, StageError) if data else ():
        try:
            record = Sample.model_validate(value)
        except ValidationError as problem:
            raise StageError(f"no sample: {complaint(problem)}", where=where, next_step=ANEW) from problem
        if record.question_id in records:
            raise StageError(f"question {record.question_id!r} stands twice", where=where, next_step=ANEW)
        records[record.question_id] = record
    return records


def _sidecar(path: Path) -> JSON:
    """Return what stands beside the samples at `path`. Raises StageError if it is missing or has no fingerprint."""
    side = path.with_name(SIDECAR)
    try:
        value = json.loads(side.read_bytes())
    except FileNotFoundError as problem:
        raise StageError(f"{SIDECAR} is missing: nothing says what was asked", where=str(path), next_step=ANEW) from problem
    except (OSError, ValueError, RecursionError) as problem:
        raise StageError(f"cannot be read: {problem}", where=str(side), next_step=ANEW) from problem
    if not isinstance(value, dict) or not isinstance(value.get("fingerprint"), dict):
        raise StageError("has no fingerprint", where=str(side), next_step=ANEW)
    return value


def read_samples(path: Path) -> Samples:
    """Read a finished evaluation: the samples at `path` and `evaluation.json` beside them.

    Raises StageError if it was not finished, if a file is missing or malformed, or if the samples are not those that were summed
    up (by digest, and by counting again).
    """
    side = _sidecar(path)
    try:
        data = path.read_bytes()
        summary = Summary.model_validate(side.get("summary"))
    except OSError as problem:
        raise StageError(f"cannot be read: {problem.strerror}", where=str(path)) from problem
    except ValidationError as problem:
        raise StageError("the evaluation is not finished", where=str(path), next_step="run it again: it resumes") from problem
    if side.get("samples-sha256") != _digest(data):
        raise StageError(f"the samples are not those that {SIDECAR} sums up", where=str(path), next_step=ANEW)
    fingerprint, records = side["fingerprint"], tuple(_parsed(data, path).values())
    if summary != summarize(records, fingerprint, summary.seconds, summary.reused):
        raise StageError("the summary is not the sum of the samples", where=str(path.with_name(SIDECAR)), next_step=ANEW)
    return Samples(fingerprint, records, summary)


class Journal:
    """The samples file while it grows: a context manager that holds the file alone, and appends one whole line a sample.

    Entering reads what an earlier run left. Samples under the same fingerprint are kept in `records`; a last line that was torn
    by a crash is cut off; under another fingerprint the file starts anew. Raises StageError if another process writes it, if
    samples lie there without `evaluation.json`, or if one of their lines is damaged.
    """

    def __init__(self, path: Path, fingerprint: JSON) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.records: dict[str, Sample] = {}
        self.finished: Summary | None = None
        self._descriptor = -1

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self._resume()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise StageError("another evaluation writes this file", where=str(self.path), next_step="wait for it") from problem

    def _resume(self) -> None:
        data = self.path.read_bytes()
        side = _sidecar(self.path) if data else {}
        if side.get("fingerprint") != self.fingerprint:
            os.ftruncate(self._descriptor, 0)
            self._write_sidecar(None, None)
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.records = _parsed(whole, self.path)
        os.ftruncate(self._descriptor, len(whole))
        if side.get("samples-sha256") == _digest(whole):
            self.finished = Summary.model_validate(side["summary"])

    def append(self, record: Sample) -> None:
        """Write one sample: one write of one whole line, so that a crash tears at most the last one. Safe from any thread."""
        line = _line(record)
        if os.write(self._descriptor, line) != len(line):
            raise StageError("a sample could not be written whole: is the disk full?", where=str(self.path))
        self.records[record.question_id] = record

    def finish(self, seconds: float, reused: int) -> Summary:
        """Replace the file by one sorted by question id, whoever was answered first; write and return the summary."""
        records = [self.records[key] for key in sorted(self.records)]
        data = b"".join(map(_line, records))
        summary = summarize(records, self.fingerprint, seconds, reused)
        _replace(self.path, data)
        self._write_sidecar(summary, _digest(data))
        return summary

    def _write_sidecar(self, summary: Summary | None, digest: str | None) -> None:
        content = {
            "fingerprint": self.fingerprint,
            "samples-sha256": digest,
            "summary": summary.model_dump() if summary else None,
        }
        _replace(self.path.with_name(SIDECAR), json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def _line(record: Sample) -> bytes:
    return json.dumps(record.model_dump(), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
