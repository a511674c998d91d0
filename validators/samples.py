"""The per-sample log of an evaluation: written line by line while it runs, read again to resume it and to compare."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

from pydantic import Field, ValidationError

from release.errors import ReleaseError, StageError
from release.types import JSON, Frozen

SIDECAR: Final = "evaluation.json"
ANEW: Final = "remove the folder of this evaluation to start anew"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Sample(Frozen):
    """One question, asked once; of several repeats the one with the number `repeat`, from 0.

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
    repeat: Count = 0
    cluster: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What no two samples of an evaluation share."""
        return self.question_id, self.repeat

    @property
    def failed(self) -> bool:
        """Whether the request failed, so that nothing was graded."""
        return self.error is not None

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

    n counts samples: questions × `repeats`.

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
    repeats: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class Samples:
    """A finished evaluation: what it was (`fingerprint`) and what came out, sorted by question id and repeat."""

    fingerprint: JSON
    records: tuple[Sample, ...]
    summary: Summary


class Tally:
    """The totals of samples that are counted one by one and not kept."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("n", "correct", "wrong", "failed", "truncated", "empty"), 0)
        self.tokens = self.with_tokens = 0
        self.repeats = 1

    def add(self, record: Sample) -> None:
        """Count one sample."""
        counts = self.counts
        counts["n"] += 1
        counts["correct"] += record.correct is True
        counts["wrong"] += record.correct is False
        counts["failed"] += record.failed
        counts["truncated"] += record.truncated
        counts["empty"] += record.empty
        self.repeats = max(self.repeats, record.repeat + 1)
        if not record.failed and record.completion_tokens is not None:
            self.tokens += record.completion_tokens
            self.with_tokens += 1

    def summary(self, fingerprint: JSON, seconds: float, reused: int) -> Summary:
        """Return the totals. `seconds` and `reused` go into the summary as they are."""
        return Summary(
            **self.counts,
            completion_tokens_mean=self.tokens / self.with_tokens if self.with_tokens else None,
            seconds=seconds,
            reused=reused,
            fingerprint=fingerprint,
            repeats=self.repeats,
        )


def summarize(records: Iterable[Sample], fingerprint: JSON, seconds: float, reused: int) -> Summary:
    """Count what came out. `seconds` and `reused` go into the summary as they are."""
    tally = Tally()
    for record in records:
        tally.add(record)
    return tally.summary(fingerprint, seconds, reused)


def json_lines(data: bytes, path: Path, error: type[ReleaseError]) -> Iterator[tuple[str, JSON]]:
    """Yield (file:line, object) for each line of a JSONL file, strictly: no blank line, no key twice, no NaN, UTF-8.

    Raises `error` at the first line that is anything else, with its place. A last line without a line feed is a line too.
    """
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        yield f"{path}:{number}", json_line(line, number, path, error)


def json_line(line: bytes, number: int, path: Path, error: type[ReleaseError]) -> JSON:
    """Return the object in a line of a JSONL file, as strictly as `json_lines`."""

    def once(pairs: list[tuple[str, Any]]) -> JSON:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    where = f"{path}:{number}"
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as problem:
        reason = "is blank" if not line.strip() else f"is no JSON: {problem}"
        raise error(f"line {number} {reason}", where=where) from problem
    if not isinstance(value, dict):
        raise error(f"line {number} is JSON, and no object", where=where)
    return value


def complaint(problem: ValidationError) -> str:
    """Return the first thing that is wrong with foreign data, in one line: 'prompt: Field required'."""
    first = problem.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _parsed(lines: Iterable[bytes], path: Path) -> Iterator[tuple[bytes, Sample]]:
    """Yield each line with the sample in it. Raises StageError at a line that holds none, or one that was there before."""
    seen = set()
    for number, line in enumerate(lines, 1):
        value = json_line(line.removesuffix(b"\n"), number, path, StageError)
        try:
            record = Sample.model_validate(value)
        except ValidationError as problem:
            raise StageError(f"no sample: {complaint(problem)}", where=f"{path}:{number}", next_step=ANEW) from problem
        if record.key in seen:
            again = f" (repeat {record.repeat})" if record.repeat else ""
            raise StageError(f"question {record.question_id!r}{again} stands twice", where=f"{path}:{number}", next_step=ANEW)
        seen.add(record.key)
        yield line, record


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
    fingerprint = side["fingerprint"]
    records = tuple(record for _, record in _parsed(data.splitlines(keepends=True), path))
    if summary != summarize(records, fingerprint, summary.seconds, summary.reused):
        raise StageError("the summary is not the sum of the samples", where=str(path.with_name(SIDECAR)), next_step=ANEW)
    return Samples(_complete(fingerprint), records, summary)


def _complete(fingerprint: JSON) -> JSON:
    """Return a fingerprint with what was not said before there were repeats."""
    return {"repeats": 1, **fingerprint}


class Journal:
    """The samples file while it grows: a context manager that holds the file alone, and appends one whole line a sample.

    Entering reads what an earlier run left. Under the same fingerprint its samples are kept, each of them heard by `check`, which may
    raise; a last line that was torn by a crash is cut off; under another fingerprint the file starts anew. `known` holds the place of
    each sample in the file, and no text: memory does not grow with what the model says. Raises StageError if another process writes
    the file, if samples lie there without `evaluation.json`, or if one of their lines is damaged.
    """

    def __init__(self, path: Path, fingerprint: JSON, check: Callable[[Sample], None] = lambda record: None) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.known: dict[tuple[str, int], tuple[int, int]] = {}
        self.finished: Summary | None = None
        self._check = check
        self._tally = Tally()
        self._end = 0
        self._mutex = threading.Lock()
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
        side = _sidecar(self.path) if self.path.stat().st_size else {}
        if _complete(side.get("fingerprint") or {}) != _complete(self.fingerprint):
            os.ftruncate(self._descriptor, 0)
            self._write_sidecar(None, None)
            return
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for line, record in _parsed((line for line in file if line.endswith(b"\n")), self.path):
                self._check(record)
                self._note(record, len(line))
                digest.update(line)
        os.ftruncate(self._descriptor, self._end)
        if side.get("samples-sha256") == f"sha256:{digest.hexdigest()}":
            self.finished = Summary.model_validate(side["summary"])

    def _note(self, record: Sample, length: int) -> None:
        self.known[record.key] = (self._end, length)
        self._end += length
        self._tally.add(record)

    def append(self, record: Sample) -> None:
        """Write one sample: one write of one whole line, so that a crash tears at most the last one. Safe from any thread."""
        line = _line(record)
        with self._mutex:
            if os.write(self._descriptor, line) != len(line):
                raise StageError("a sample could not be written whole: is the disk full?", where=str(self.path))
            self._note(record, len(line))

    def finish(self, seconds: float, reused: int) -> Summary:
        """Replace the file by one sorted by question id and repeat, whoever was answered first; write and return the summary."""
        digest = hashlib.sha256()
        with _replacing(self.path) as file:
            for key in sorted(self.known):
                offset, length = self.known[key]
                line = os.pread(self._descriptor, length, offset)
                digest.update(line)
                file.write(line)
        summary = self._tally.summary(self.fingerprint, seconds, reused)
        self._write_sidecar(summary, f"sha256:{digest.hexdigest()}")
        return summary

    def _write_sidecar(self, summary: Summary | None, digest: str | None) -> None:
        content = {
            "fingerprint": self.fingerprint,
            "samples-sha256": digest,
            "summary": summary.model_dump() if summary else None,
        }
        with _replacing(self.path.with_name(SIDECAR)) as file:
            file.write(json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def _line(record: Sample) -> bytes:
    return record.model_dump_json().encode() + b"\n"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Hand out a file to write that takes the place of another one whole, or not at all."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
