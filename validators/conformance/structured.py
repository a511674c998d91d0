"""Whether structured output is what was asked for: JSON, of the given schema, and no character torn when it is streamed."""

from __future__ import annotations

from typing import Any, Final

from release.errors import ServingError
from release.types import JSON
from release.validators.conformance.check import (
    ASK,
    CHAT,
    AbsentError,
    DeviationError,
    Finding,
    Subject,
    UndecidedError,
    deltas,
    expect,
    offered,
    refusal,
    take,
)
from release.validators.endpoint import json_object

WORD: Final = "加é😀"
"""Characters of two, three and four bytes: what tears when tokens are turned into text one by one."""
SCHEMA: Final[JSON] = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": [WORD]}, "sum": {"type": "integer", "enum": [82]}},
    "required": ["word", "sum"],
    "additionalProperties": False,
}
MOST: Final = 1024


def _format(schema: JSON) -> JSON:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _parsed(text: Any, finish: Any) -> JSON:
    """Return the JSON object in a text. Raises UndecidedError where max_tokens cut it off, and DeviationError."""
    if finish == "length":
        reason = "the model did not come to an end: what it would have said is unknown"
        raise UndecidedError(f"{len(str(text))} characters, cut off at max_tokens", reason)
    try:
        return json_object(str(text).rpartition("</think>")[2].encode("utf-8", "replace"))
    except ServingError as problem:
        raise DeviationError(f"{text!r:.80}", "structured output must be a JSON object") from problem


def json_answer(subject: Subject) -> Finding:
    """response_format json_object gives a JSON object."""
    ask: JSON = {"temperature": 0, "max_tokens": subject.budget(MOST), "response_format": {"type": "json_object"}}
    answer = offered(lambda: subject.endpoint.chat(f"{ASK} Answer in JSON.", **ask), "response_format json_object")
    choice = take(answer, "choices", 0)
    found = _parsed(take(choice, "message", "content"), take(choice, "finish_reason"))
    return Finding(f"an object with {len(found)} keys")


def _schema_answer(found: JSON) -> Finding:
    if not {"word", "sum"} & found.keys():
        raise AbsentError(f"{found!r:.80}", "the server ignores the schema")
    expect(found == {"word": WORD, "sum": 82}, f"{found!r:.80}", "structured output must fit its schema")
    return Finding(f"{found!r}")


def json_schema(subject: Subject) -> Finding:
    """response_format json_schema gives an object of that schema, its characters whole."""
    ask: JSON = {"temperature": 0, "max_tokens": subject.budget(MOST), "response_format": _format(SCHEMA)}
    answer = offered(lambda: subject.endpoint.chat(ASK, **ask), "response_format json_schema")
    choice = take(answer, "choices", 0)
    return _schema_answer(_parsed(take(choice, "message", "content"), take(choice, "finish_reason")))


def json_schema_streamed(subject: Subject) -> Finding:
    """The same object comes streamed, with no character torn between two events."""
    ask: JSON = {"temperature": 0, "max_tokens": subject.budget(MOST), "response_format": _format(SCHEMA)}
    offered(lambda: subject.endpoint.chat(ASK, **ask), "response_format json_schema")
    events = list(subject.endpoint.stream(ASK, **ask))
    finish = [choice.get("finish_reason") for event in events for choice in take(event, "choices")][-1:]
    text = str(deltas(events)["content"])
    expect("\ufffd" not in text, f"{text!r:.80}", "a character was torn between two events")
    return _schema_answer(_parsed(text, finish[0] if finish else None))


def json_bad_schema(subject: Subject) -> Finding:
    """A schema that is none is refused."""
    ask: JSON = {"temperature": 0, "max_tokens": subject.budget(MOST)}
    offered(lambda: subject.endpoint.chat(ASK, **ask, response_format=_format(SCHEMA)), "response_format json_schema")
    body = subject.endpoint.chat_body(ASK, **ask, response_format=_format({"type": "nonsense"}))
    return refusal(subject.endpoint.post(CHAT, body))
