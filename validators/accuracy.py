"""Asking a server a set of questions and grading its answers: each question once, resumable, never repeated until it passes."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from release.errors import FetchError, MatrixError, ServingError, StageError
from release.types import JSON, Accuracy, Frozen
from release.validators.endpoint import Endpoint, UnreachableError
from release.validators.samples import ANEW, Journal, Sample, Summary, complaint, json_lines

HARNESS: Final = "release accuracy 1"
"""Name and version of this way of asking and grading. Raise the number when either changes what an answer is worth."""
PROMPT: Final = "chat, one user message"
PAUSES: Final = (0.5, 2.0)
"""Seconds to wait before a request whose connection was lost is asked again: twice, then it counts as failed."""
INTEGER: Final = re.compile(r"([+-]?[0-9]{1,1000})\.?")

Progress = Callable[[int, int, str], None]
"""Hears (done, total, what) after each step."""


class Question(Frozen):
    """One line of a question file."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    prompt: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]


def final_integer(text: str) -> str | None:
    """Return the integer that `text` answers with, in canonical form ("82" for "+082."), or None.

    What follows the last `</think>`, without surrounding white space, must be one integer in ASCII digits and nothing else,
    except for one period that ends the sentence. "82.0", "1,024", "37+45=82" and an unclosed `<think>` are no answers.
    """
    match = INTEGER.fullmatch(text.rpartition("</think>")[2].strip())
    return str(int(match[1])) if match else None


GRADERS: Final[dict[str, Callable[[str], str | None]]] = {"final-integer": final_integer}
"""What takes the answer out of a text, by the name it has in the matrix; answers are compared as its canonical strings."""


def read_questions(path: Path, sha256: str, grader: str) -> tuple[Question, ...]:
    """Read a question file: JSONL of {"id", "prompt", "answer"}, ids unique, answers such as `grader` understands.

    Raises FetchError if the file is missing or its digest is not `sha256`, and MatrixError with file and line if a line is
    malformed.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise FetchError(f"the questions cannot be read: {problem.strerror}", where=str(path)) from problem
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise FetchError(
            f"the questions have {found}, and the matrix says {sha256}", where=str(path), next_step="restore the file"
        )
    questions: dict[str, Question] = {}
    for where, value in json_lines(data, path, MatrixError):
        try:
            question = Question.model_validate(value)
        except ValidationError as problem:
            raise MatrixError(f"no question: {complaint(problem)}", where=where) from problem
        if not question.id.strip() or not question.prompt.strip():
            raise MatrixError("id or prompt is blank", where=where)
        if question.id in questions:
            raise MatrixError(f"question id {question.id!r} stands twice", where=where)
        if GRADERS[grader](question.answer) is None:
            raise MatrixError(f"answer {question.answer!r} is none that the grader {grader} understands", where=where)
        questions[question.id] = question
    return tuple(questions.values())


def fingerprint_of(accuracy: Accuracy, n: int, model: str, max_model_len: int | None) -> JSON:
    """Return what makes two evaluations comparable, and `model`, the served name, which does not."""
    return {
        "questions": accuracy.sha256,
        "n": n,
        "grader": accuracy.grader,
        "prompt": PROMPT,
        "temperature": accuracy.temperature,
        "seed": accuracy.seed,
        "max-tokens": accuracy.max_tokens,
        "max-model-len": max_model_len,
        "harness": HARNESS,
        "model": model,
    }


def evaluate(
    endpoint: Endpoint,
    accuracy: Accuracy,
    questions_path: Path,
    samples_path: Path,
    *,
    progress: Progress,
    concurrency: int | None = None,
) -> Summary:
    """Ask every question once and grade what comes; return the totals.

    Each sample is appended to `samples_path` (JSONL, `samples.Sample`) the moment it is there; `evaluation.json` beside it says
    what was asked (the fingerprint) and, at the end, the totals. What an interrupted run left under the same fingerprint is taken
    over, failures included; a different fingerprint starts anew. At the end the file is rewritten, sorted by question id.

    A request that fails (another status than 200, no answer in time, a malformed answer, a connection lost three times) and an
    answer cut off at max_tokens are counted and never graded. A server that is dead is no failed request: ServingError, and the
    samples so far stay. `concurrency` requests are in flight (default: what `accuracy` says). Raises what `read_questions` and
    `samples.Journal` raise.
    """
    questions = read_questions(questions_path, accuracy.sha256, accuracy.grader)
    fingerprint = fingerprint_of(accuracy, len(questions), endpoint.model, _max_model_len(endpoint))
    with Journal(samples_path, fingerprint) as journal:
        if journal.finished:
            progress(len(questions), len(questions), "finished before")
            return journal.finished
        reused = len(journal.records)
        check_samples(journal.records.values(), questions, accuracy.grader, str(samples_path))
        todo = [question for question in questions if question.id not in journal.records]
        started = time.monotonic()

        def work(question: Question) -> Sample:
            sample = ask(endpoint, question, accuracy)
            journal.append(sample)
            return sample

        with ThreadPoolExecutor(concurrency or accuracy.concurrency, thread_name_prefix="ask") as pool:
            futures = [pool.submit(work, question) for question in todo]
            try:
                for done, future in enumerate(as_completed(futures), reused + 1):
                    progress(done, len(questions), future.result().question_id)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return journal.finish(time.monotonic() - started, reused)


def check_samples(records: Iterable[Sample], questions: Iterable[Question], grader: str, where: str) -> None:
    """Raise StageError unless each record belongs to a question and says what the grader says of its text."""
    known = {question.id: question for question in questions}
    for record in records:
        question = known.get(record.question_id)
        if question is None or (record.prompt_sha256, record.expected) != (_sha256(question.prompt), question.answer):
            raise StageError(f"sample {record.question_id!r} answers no question of this set", where=where, next_step=ANEW)
        if not graded_rightly(record, grader):
            raise StageError(f"sample {record.question_id!r} is not graded as {grader} grades it", where=where, next_step=ANEW)


def graded_rightly(record: Sample, grader: str) -> bool:
    """Return whether `answer` and `correct` of a sample follow from its text."""
    if record.error is not None:
        return record.correct is None and record.answer is None
    take = GRADERS[grader]
    found = take(record.text)
    correct = None if record.truncated else found == take(record.expected)
    return (record.answer, record.correct) == (found, correct)


def _max_model_len(endpoint: Endpoint) -> int | None:
    """Return the context that the server gives the model, None where it does not say. Raises ServingError without the model."""
    listed = endpoint.models()
    for entry in listed:
        if entry["id"] == endpoint.model:
            length = entry.get("max_model_len")
            return length if isinstance(length, int) else None
    raise ServingError(f"the server has no model {endpoint.model!r}, only {', '.join(str(entry['id']) for entry in listed)}")


def ask(endpoint: Endpoint, question: Question, accuracy: Accuracy) -> Sample:
    """Ask one question and grade the answer. A lost connection is tried twice more. Raises ServingError if the server died."""
    problem: ServingError
    for pause in (*PAUSES, None):
        started = time.monotonic()
        try:
            answer = endpoint.chat(
                question.prompt, temperature=accuracy.temperature, seed=accuracy.seed, max_tokens=accuracy.max_tokens
            )
            return grade(question, answer, accuracy.grader, time.monotonic() - started)
        except UnreachableError as lost:
            problem = lost
            if pause is None:
                break
            time.sleep(pause)
        except ServingError as refused:
            problem = refused
            break
    latency = time.monotonic() - started
    if not endpoint.alive():
        raise ServingError(
            f"the server died at question {question.id}: {problem}",
            next_step="its log says why; the samples so far are kept, and the next run goes on from there",
        )
    return _failed(question, latency, str(problem))


def grade(question: Question, answer: JSON, grader: str, latency: float) -> Sample:
    """Turn a chat completion into a sample. An answer of another shape, or one that ended for another reason than "stop" or
    "length", is a failure and not wrong. `latency` is in seconds.
    """
    choice = _first(answer.get("choices"))
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict) or not isinstance(message.get("content", ""), str | None):
        return _failed(question, latency, "the answer has no choices[0].message.content")
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return _failed(question, latency, f"the answer ended with finish_reason {reason!r:.50}")
    # a lone surrogate is legal in JSON and in no file: it becomes a question mark
    text = (message.get("content") or "").encode("utf-8", "replace").decode()
    found = GRADERS[grader](text)
    usage = answer.get("usage")
    return _sample(question, latency).model_copy(
        update={
            "answer": found,
            "correct": None if reason == "length" else found == GRADERS[grader](question.answer),
            "finish_reason": reason,
            "prompt_tokens": _count(usage, "prompt_tokens"),
            "completion_tokens": _count(usage, "completion_tokens"),
            "text": text,
        }
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first(choices: Any) -> JSON | None:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _sample(question: Question, latency: float) -> Sample:
    return Sample(
        question_id=question.id,
        prompt_sha256=_sha256(question.prompt),
        answer=None,
        expected=question.answer,
        correct=None,
        finish_reason=None,
        prompt_tokens=None,
        completion_tokens=None,
        latency_s=round(latency, 4),
        text="",
        error=None,
    )


def _failed(question: Question, latency: float, error: str) -> Sample:
    return _sample(question, latency).model_copy(update={"error": error.encode("utf-8", "replace").decode()})
