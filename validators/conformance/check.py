"""What a check of the protocol is made of: a question to a server, a finding, and the ways in which an answer deviates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from release.types import JSON, Status
from release.validators.endpoint import Answer, Endpoint, RefusedError

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
ASK: Final = "What is 37+45?"
LONGEST: Final = 64
"""Tokens that a check lets the model write: enough to see the protocol, few enough for a slow chip."""
GREEDY: Final[JSON] = {"temperature": 0, "max_tokens": LONGEST}
THOUGHTS: Final = ("reasoning_content", "reasoning")
"""How servers name the thoughts of a message: DeepSeek's own API, and later versions of vLLM."""
MARKS: Final = "<think></think>"
LACKING: Final = (400, 404, 405, 415, 422, 501)
"""HTTP statuses with which servers say that they do not have something. A 5xx but 501 is never among them: that is a defect."""


class DeviationError(Exception):
    """The server answers otherwise than the protocol says: what was measured, and why that is wrong."""

    def __init__(self, measured: str, reason: str) -> None:
        super().__init__(reason)
        self.measured = measured
        self.reason = reason


class AbsentError(DeviationError):
    """The server does not have the feature that the check is about, and says so."""


class UndecidedError(DeviationError):
    """The answer leaves open whether the server does as it should."""


@dataclass(frozen=True)
class Finding:
    """What a check measured on a server that does as it should; INCONCLUSIVE where the server makes the question moot."""

    measured: str
    reason: str = "as the protocol says"
    figures: JSON = field(default_factory=dict)
    status: Status = Status.PASSED


@dataclass(frozen=True)
class Subject:
    """The server that is looked at, and what is known of it.

    `max_model_len` is its context in tokens and `max_num_seqs` how many requests it runs at once, None where nobody said; `soak` is
    for how many seconds to load it, where that is wanted.
    """

    endpoint: Endpoint
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    soak: float = 1800.0

    def budget(self, tokens: int) -> int:
        """Return how many tokens an answer may take: so many, and half of the context at most."""
        return tokens if self.max_model_len is None else max(1, min(tokens, self.max_model_len // 2))

    def context(self) -> int:
        """Return the context in tokens. Raises AbsentError where nobody knows it."""
        if self.max_model_len is None:
            raise AbsentError("no max_model_len", "neither /v1/models nor the caller says how many tokens the context has")
        return self.max_model_len


@dataclass(frozen=True)
class Check:
    """One question to a server. `look` raises DeviationError or ServingError where the answer is not the `wanted` one.

    A check with a `feature` is about something that a server may lack: see `table.FEATURES`.
    """

    wanted: str
    look: Callable[[Subject], Finding]
    feature: str | None = None


def take(answer: Any, *path: str | int) -> Any:
    """Return the field of a JSON answer at `path`. Raises DeviationError naming the path if it is not there."""
    value = answer
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError) as problem:
            raise DeviationError("a malformed answer", f"the answer has no {'.'.join(map(str, path))}") from problem
    return value


def expect(true: bool, measured: str, reason: str) -> None:
    """Raise DeviationError unless `true`."""
    if not true:
        raise DeviationError(measured, reason)


def spoken(message: JSON) -> tuple[str, str]:
    """Return what a message thinks and what it says; a server without a field for thoughts has none of them."""
    thoughts = next((message[name] for name in THOUGHTS if message.get(name)), "")
    content = message.get("content") or ""
    for part in (thoughts, content):
        expect(isinstance(part, str), f"content {part!r:.60}", "an answer's content must be a text")
    return str(thoughts), str(content)


def text_of(answer: JSON, choice: int = 0) -> str:
    """Return the text of a chat completion, thoughts first. Raises DeviationError if it is none, or empty."""
    message = take(answer, "choices", choice, "message")
    text = "".join(spoken(message))
    expect(bool(text), f"content {take(message, 'content')!r:.60}", "an answer's content must be a text that says something")
    return text


def stop_in(answer: JSON, length: int) -> tuple[str, str]:
    """Return a stop string out of the middle of an answer, and what is left of its thoughts (of its content, without thoughts).

    Stops are looked for in all that the model writes, its thoughts and the marks around them included.
    """
    thoughts, content = spoken(take(answer, "choices", 0, "message"))
    whole = thoughts or content
    starts = range(len(whole) // 2, len(whole) - length + 1)
    stop = next((whole[i : i + length] for i in starts if whole[i : i + length] not in MARKS), "")
    expect(bool(stop), f"{whole!r:.80}", "the answer is too short to be stopped")
    return stop, whole.partition(stop)[0]


def usage_of(answer: JSON) -> tuple[int, int]:
    """Return (prompt tokens, completion tokens). Raises DeviationError unless both are positive and add up to the total."""
    prompt, completion, total = (take(answer, "usage", key) for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
    counts = all(isinstance(count, int) and not isinstance(count, bool) for count in (prompt, completion, total))
    expect(
        counts and prompt > 0 and completion > 0 and prompt + completion == total,
        f"{prompt} + {completion} = {total}",
        "prompt and completion tokens must be positive and add up to the total",
    )
    return prompt, completion


def asked(subject: Subject, **parameters: Any) -> JSON:
    """Return the greedy answer to ASK; `parameters` replace what is asked."""
    return subject.endpoint.chat(ASK, **(GREEDY | parameters))


def streamed(subject: Subject, **parameters: Any) -> list[JSON]:
    """Return the events of the greedy streamed answer to ASK with its usage."""
    return list(subject.endpoint.stream(ASK, **(GREEDY | {"stream_options": {"include_usage": True}} | parameters)))


def deltas(events: Iterable[JSON]) -> JSON:
    """Return the message that a client puts together from the deltas of a stream: its content and its thoughts."""
    message = dict.fromkeys(("content", *THOUGHTS), "")
    for event in events:
        delta = take(event, "choices", 0, "delta") if event.get("choices") else {}
        for key in message:
            piece = delta.get(key) or ""
            expect(isinstance(piece, str), f"{key} {piece!r:.60}", "a piece of an answer must be a text")
            message[key] += piece
    return message


def told(events: Iterable[JSON]) -> str:
    """Return the text of a stream, thoughts first."""
    return "".join(spoken(deltas(events)))


def offered(ask: Callable[[], JSON], what: str) -> JSON:
    """Return what `ask` returns. Raises AbsentError if the server refuses the request as one for something it does not have."""
    try:
        return ask()
    except RefusedError as problem:
        if problem.status in LACKING:
            raise AbsentError(f"HTTP {problem.status}", f"the server has no {what}: {problem}") from problem
        raise


def refusal(answer: Answer, *statuses: int) -> Finding:
    """Check that an answer refuses with one of `statuses` (any 4xx if none) and an OpenAI error body.

    That is an object `error` with message and type (texts) and code: null or a text at OpenAI, the HTTP status at vLLM 0.32.
    """
    fits = answer.status in statuses if statuses else 400 <= answer.status < 500
    expect(fits, f"HTTP {answer.status}: {answer.quoted}", "a bad request must be refused as the client's error")
    error = take(answer.json(), "error")
    for key in ("message", "type"):
        value = take(error, key)
        expect(isinstance(value, str) and bool(value), f"error.{key} {value!r:.60}", f"error.{key} must be a text")
    code = take(error, "code")
    right = code is None or (isinstance(code, int | str) and not isinstance(code, bool))
    expect(right, f"error.code {code!r:.60}", "error.code must be a number, a text or null")
    return Finding(f"HTTP {answer.status}, {error['type']}", figures={"status": answer.status})


def is_logprob(value: Any) -> bool:
    """Return whether a value is a log-probability: a number that is not positive."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= 0
