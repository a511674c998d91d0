"""Asking a server a set of questions and grading its answers: each as often as planned, resumable, never repeated until it passes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from release.errors import ServingError, StageError
from release.types import JSON, Accuracy
from release.validators.endpoint import Endpoint, PatienceError, RefusedError, UnreachableError
from release.validators.graders import GRADERS, LOGLIKELIHOOD
from release.validators.lanes import Lane
from release.validators.questions import Question, read_questions
from release.validators.samples import ANEW, Journal, Sample, Summary

HARNESS: Final = "release accuracy 1"
"""Name and version of this way of asking and grading. Raise the number when either changes what an answer is worth."""
PROMPT: Final = "chat, one user message"
SCORED: Final = "completion, the prompt and each choice after it"
CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
PAUSES: Final = (0.5, 2.0)
"""Seconds to wait before a request whose connection was lost is asked again: twice, then it counts as failed."""
BUSY: Final = 5
"""How often a server may ask to be asked later (429 or 503 with Retry-After) before a request counts as failed."""
LONGEST_WAIT: Final = 30.0
"""Seconds that such a server is given at most each time."""

Progress = Callable[[int, int, str], None]
"""Hears (done, total, what) after each step."""


def fingerprint_of(accuracy: Accuracy, n: int, model: str, max_model_len: int | None) -> JSON:
    """Return what makes two evaluations comparable, and `model`, the served name, which does not. `n` counts questions."""
    return {
        "questions": accuracy.sha256,
        "n": n,
        "repeats": accuracy.repeats,
        "grader": accuracy.grader,
        "prompt": SCORED if accuracy.grader == LOGLIKELIHOOD else PROMPT,
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
    """Ask every question `repeats` times and grade what comes; return the totals.

    Each sample is appended to `samples_path` (JSONL, `samples.Sample`) the moment it is there; `evaluation.json` beside it says
    what was asked (the fingerprint) and, at the end, the totals. What an interrupted run left under the same fingerprint is taken
    over, failures included; a different fingerprint starts anew. At the end the file is rewritten, sorted by question id.

    A request that fails (another status than 200, no answer in time, a malformed answer, a connection lost three times) and an
    answer cut off at max_tokens are counted and never graded. A server that is dead is no failed request: ServingError, and the
    samples so far stay. `concurrency` requests are in flight (default: what `accuracy` says), from an event loop of its own: not to
    be called from inside one. Raises what `read_questions` and `samples.Journal` raise.
    """
    questions = read_questions(questions_path, accuracy.sha256, accuracy.grader)
    fingerprint = fingerprint_of(accuracy, len(questions), endpoint.model, endpoint.max_model_len())
    total = len(questions) * accuracy.repeats
    check = partial(_check, {question.id: question for question in questions}, accuracy, str(samples_path))
    with Journal(samples_path, fingerprint, check) as journal:
        if journal.finished:
            progress(total, total, "finished before")
            return journal.finished
        reused = len(journal.known)
        todo = (
            (question, repeat)
            for repeat in range(accuracy.repeats)
            for question in questions
            if (question.id, repeat) not in journal.known
        )

        def keep(sample: Sample) -> None:
            journal.append(sample)
            progress(len(journal.known), total, sample.question_id)

        started = time.monotonic()
        lanes = min(concurrency or accuracy.concurrency, total - reused)
        asyncio.run(_ask_all(endpoint, accuracy, todo, keep, lanes))
        return journal.finish(time.monotonic() - started, reused)


async def _ask_all(
    endpoint: Endpoint, accuracy: Accuracy, todo: Iterator[tuple[Question, int]], keep: Callable[[Sample], None], lanes: int
) -> None:
    """Ask what is to do over so many connections; the first exception ends them all."""
    pulse = Pulse(endpoint)

    async def work() -> None:
        lane = Lane(endpoint)
        try:
            for question, repeat in todo:
                keep(await ask(lane, question, repeat, accuracy, pulse.beats))
        finally:
            lane.close()

    tasks = [asyncio.create_task(work()) for _ in range(lanes)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Pulse:
    """Whether a server is alive, asked once for all that want to know at the same time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = asyncio.Lock()
        self._felt, self._alive = float("-inf"), True

    async def beats(self) -> bool:
        """Return whether the server is alive, as of now or later."""
        since = time.monotonic()
        async with self._lock:
            if self._felt < since:
                self._alive = await asyncio.to_thread(self._endpoint.alive)
                self._felt = time.monotonic()
            return self._alive


async def ask(lane: Lane, question: Question, repeat: int, accuracy: Accuracy, alive: Callable[[], Awaitable[bool]]) -> Sample:
    """Ask one question and grade the answer. Raises ServingError if the server died of it, or meanwhile."""
    started = time.monotonic()
    try:
        if accuracy.grader == LOGLIKELIHOOD:
            return await _score(lane, question, repeat, started)
        body: JSON = {
            "model": lane.model,
            "messages": [{"role": "user", "content": question.prompt}],
            "temperature": accuracy.temperature,
            "seed": seed_of(accuracy, question, repeat),
            "max_tokens": accuracy.max_tokens,
        }
        answer, latency = await _answer(lane, CHAT, body)
        return grade(question, answer, accuracy.grader, latency, repeat)
    except ServingError as problem:
        suspicious = isinstance(problem, UnreachableError | PatienceError) or getattr(problem, "status", 0) >= 500
        if suspicious and not await alive():
            raise ServingError(
                f"the server died at question {question.id}: {problem}",
                next_step="its log says why; the samples so far are kept, and the next run goes on from there",
            ) from problem
        return _failed(question, repeat, time.monotonic() - started, str(problem))


def seed_of(accuracy: Accuracy, question: Question, repeat: int) -> int:
    """Return the seed of one sample: the plan's where each question is asked once, else one of its own for each sample."""
    if accuracy.repeats == 1:
        return accuracy.seed
    return int.from_bytes(hashlib.sha256(f"{accuracy.seed}/{question.id}/{repeat}".encode()).digest()[:4], "big") >> 1


async def _answer(lane: Lane, path: str, body: JSON) -> tuple[JSON, float]:
    """Return the answer and the seconds it took. A lost connection is tried twice more, a busy server as often as it may ask for it."""
    lost, busy = list(PAUSES), BUSY
    while True:
        started = time.monotonic()
        try:
            return (await lane.post(path, body)).wanted(path), time.monotonic() - started
        except UnreachableError:
            if not lost:
                raise
            pause = lost.pop(0)
        except RefusedError as problem:
            if problem.status not in (429, 503) or problem.retry_after is None or not busy:
                raise
            busy, pause = busy - 1, min(problem.retry_after, LONGEST_WAIT)
            lost = list(PAUSES)  # it answered: losses are counted in a row
        await asyncio.sleep(pause)


async def _score(lane: Lane, question: Question, repeat: int, started: float) -> Sample:
    """Score each choice as what follows the prompt: the sum of the log-probabilities of the tokens that the prompt alone has not.

    That is lm-eval's `acc` for multiple choice. `text` keeps the sums as a JSON list.
    """
    ask: JSON = {"model": lane.model, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    base, prompt_tokens = _scored((await _answer(lane, COMPLETIONS, ask | {"prompt": question.prompt}))[0])
    sums = []
    for choice in question.choices:
        both, _ = _scored((await _answer(lane, COMPLETIONS, ask | {"prompt": question.prompt + choice}))[0])
        shared = next(
            (i for i, (one, two) in enumerate(zip(base, both, strict=False)) if one[0] != two[0]), min(len(base), len(both))
        )
        rest = [value for _, value in both[shared:]]
        if not rest or None in rest:
            raise ServingError(f"{COMPLETIONS}: the choice {choice!r:.60} has no tokens with log-probabilities of their own")
        sums.append(round(sum(value for value in rest if value is not None), 6))
    text = json.dumps(sums)
    found = GRADERS[LOGLIKELIHOOD](text)
    return _sample(question, repeat, time.monotonic() - started).model_copy(
        update={
            "answer": found,
            "correct": found == question.answer,
            "finish_reason": "stop",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 0,
            "text": text,
        }
    )


def _scored(answer: JSON) -> tuple[list[tuple[str, float | None]], int]:
    """Return the tokens of an echoed prompt with their log-probabilities, without what was written after it, and their number."""
    choice, usage = _first(answer.get("choices")) or {}, answer.get("usage")
    found = choice.get("logprobs")
    prompt, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if not isinstance(found, dict) or prompt is None or written is None:
        raise ServingError(f"{COMPLETIONS}: the answer has no choices[0].logprobs and usage")
    tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or not len(tokens) == len(values) == prompt + written:
        raise ServingError(f"{COMPLETIONS}: the logprobs are not one for each of {prompt} + {written} tokens: is echo ignored?")
    pairs = []
    for token, value in islice(zip(tokens, values, strict=True), prompt):
        right = value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value <= 0)
        if not isinstance(token, str) or not right:
            raise ServingError(f"{COMPLETIONS}: {token!r:.60} has the log-probability {value!r:.60}")
        pairs.append((token, value))
    return pairs, prompt


def _check(known: dict[str, Question], accuracy: Accuracy, where: str, record: Sample) -> None:
    """Raise StageError unless a record belongs to a question and says what the grader says of its text."""
    question = known.get(record.question_id)
    asked = question is not None and (record.prompt_sha256, record.expected) == (_sha256(question.prompt), question.answer)
    if not asked or record.repeat >= accuracy.repeats:
        raise StageError(f"sample {record.question_id!r} answers no question of this set", where=where, next_step=ANEW)
    if not graded_rightly(record, accuracy.grader):
        raise StageError(
            f"sample {record.question_id!r} is not graded as {accuracy.grader} grades it", where=where, next_step=ANEW
        )


def check_samples(records: Iterable[Sample], questions: Iterable[Question], accuracy: Accuracy, where: str) -> None:
    """Raise StageError unless each record belongs to a question and says what the grader says of its text."""
    known = {question.id: question for question in questions}
    for record in records:
        _check(known, accuracy, where, record)


def graded_rightly(record: Sample, grader: str) -> bool:
    """Return whether `answer` and `correct` of a sample follow from its text; of a grader that is not ours, nobody can say here."""
    if record.failed:
        return record.correct is None and record.answer is None
    if grader not in GRADERS:
        return not record.truncated or record.correct is None
    take = GRADERS[grader]
    found = take(record.text)
    correct = None if record.truncated else found is not None and found == take(record.expected)
    return (record.answer, record.correct) == (found, correct)


def grade(question: Question, answer: JSON, grader: str, latency: float, repeat: int = 0) -> Sample:
    """Turn a chat completion into a sample. An answer of another shape, or one that ended for another reason than "stop" or
    "length", is a failure and not wrong. `latency` is in seconds.
    """
    choice = _first(answer.get("choices"))
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict) or not isinstance(message.get("content", ""), str | None):
        return _failed(question, repeat, latency, "the answer has no choices[0].message.content")
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return _failed(question, repeat, latency, f"the answer ended with finish_reason {reason!r:.50}")
    # a lone surrogate is legal in JSON and in no file: it becomes a question mark
    text = (message.get("content") or "").encode("utf-8", "replace").decode()
    found = GRADERS[grader](text)
    usage = answer.get("usage")
    return _sample(question, repeat, latency).model_copy(
        update={
            "answer": found,
            "correct": None if reason == "length" else found is not None and found == GRADERS[grader](question.answer),
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


def _sample(question: Question, repeat: int, latency: float) -> Sample:
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
        repeat=repeat,
        cluster=question.cluster,
    )


def _failed(question: Question, repeat: int, latency: float, error: str) -> Sample:
    return _sample(question, repeat, latency).model_copy(update={"error": error.encode("utf-8", "replace").decode()})
