"""Whether tools are called as clients read it: by name, with arguments that fit the schema, whole and in pieces."""

from __future__ import annotations

from typing import Any, Final

from release.errors import ServingError
from release.types import JSON
from release.validators.conformance.check import (
    CHAT,
    DeviationError,
    Finding,
    Subject,
    UndecidedError,
    expect,
    offered,
    refusal,
    take,
    text_of,
    usage_of,
)
from release.validators.endpoint import json_object

ASK: Final = "What is 37+45? Use the tool."
TOOL: Final[JSON] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two integers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
NAMED: Final[JSON] = {"type": "function", "function": {"name": "add"}}
MOST: Final = 1024


def _body(subject: Subject, choice: Any, **parameters: Any) -> JSON:
    return subject.endpoint.chat_body(
        ASK, temperature=0, max_tokens=subject.budget(MOST), tools=[TOOL], tool_choice=choice, **parameters
    )


def _ask(subject: Subject, choice: Any) -> JSON:
    name = choice if isinstance(choice, str) else "by name"
    answer = offered(lambda: subject.endpoint.post(CHAT, _body(subject, choice)).wanted(CHAT), f"tool_choice {name}")
    if take(answer, "choices", 0, "finish_reason") == "length":
        raise UndecidedError("cut off at max_tokens", "the model did not come to an end: what it would have called is unknown")
    return answer


def check_arguments(text: Any) -> JSON:
    """Return the arguments of a call. Raises DeviationError unless they are JSON that fits the schema of TOOL."""
    expect(isinstance(text, str), f"arguments {text!r:.60}", "arguments must be a text that holds JSON")
    try:
        found = json_object(text.encode("utf-8", "replace"))
    except ServingError as problem:
        raise DeviationError(f"arguments {text!r:.80}", "arguments must be a JSON object") from problem
    right = set(found) == {"a", "b"} and all(type(value) is int for value in found.values())
    expect(right, f"arguments {text!r:.80}", "arguments must fit the tool's schema: integers a and b, and nothing else")
    return found


def _calls(message: JSON) -> list[JSON]:
    """Return the calls of a message. Raises DeviationError unless each has an id of its own, our tool's name and fitting arguments."""
    calls: list[JSON] = message.get("tool_calls") or []
    for call in calls:
        expect(take(call, "type") == "function", f"type {call['type']!r:.60}", "a call's type must be function")
        name = take(call, "function", "name")
        expect(name == "add", f"name {name!r:.60}", "only the tool `add` was offered")
        check_arguments(take(call, "function", "arguments"))
    ids = {str(take(call, "id")) for call in calls}
    expect(
        len(ids) == len(calls) and "" not in ids, f"{len(ids)} ids for {len(calls)} calls", "each call must have an id of its own"
    )
    return calls


def _forced(answer: JSON) -> list[JSON]:
    calls = _calls(take(answer, "choices", 0, "message"))
    finish = take(answer, "choices", 0, "finish_reason")
    expect(len(calls) > 0, f"no call, finish_reason {finish!r:.60}", "a call was required")
    expect(finish in ("tool_calls", "stop"), f"finish_reason {finish!r:.60}", "a call ends with finish_reason tool_calls or stop")
    return calls


def tools_auto(subject: Subject) -> Finding:
    """Offered a tool, the model calls it with fitting arguments or answers in words."""
    answer = _ask(subject, "auto")
    message = take(answer, "choices", 0, "message")
    calls = _calls(message)
    finish = take(answer, "choices", 0, "finish_reason")
    if not calls:
        return Finding(f"{len(text_of(answer))} characters and no call", "the model may choose", {"calls": 0})
    expect(finish == "tool_calls", f"finish_reason {finish!r:.60}", "a call must end with finish_reason tool_calls")
    return Finding(f"{len(calls)} calls, arguments {calls[0]['function']['arguments']!r:.60}", figures={"calls": len(calls)})


def tools_none(subject: Subject) -> Finding:
    """With tool_choice none nothing is called."""
    answer = _ask(subject, "none")
    calls = take(answer, "choices", 0, "message").get("tool_calls") or []
    expect(not calls, f"{len(calls)} calls", "tool_choice none forbids calls")
    return Finding("no call")


def tools_required(subject: Subject) -> Finding:
    """With tool_choice required at least one call comes, each with an id of its own and fitting arguments."""
    calls = _forced(_ask(subject, "required"))
    return Finding(f"{len(calls)} calls", figures={"calls": len(calls)})


def tools_named(subject: Subject) -> Finding:
    """A tool that is asked for by name is called."""
    calls = _forced(_ask(subject, NAMED))
    return Finding(f"{len(calls)} calls, arguments {calls[0]['function']['arguments']!r:.60}")


def tools_streamed(subject: Subject) -> Finding:
    """Streamed arguments, put together by their index, fit the schema; the name comes once."""
    _ask(subject, NAMED)
    found: dict[int, JSON] = {}
    for event in subject.endpoint.events(CHAT, _body(subject, NAMED, stream=True)):
        for choice in take(event, "choices"):
            for piece in take(choice, "delta").get("tool_calls") or []:
                call = found.setdefault(int(take(piece, "index")), {"names": [], "arguments": ""})
                function = piece.get("function") or {}
                call["names"] += [function["name"]] if function.get("name") else []
                call["arguments"] += function.get("arguments") or ""
    expect(len(found) > 0, "no call", "a call was asked for")
    for call in found.values():
        expect(call["names"] == ["add"], f"names {call['names']!r:.60}", "each call must name its tool once")
        check_arguments(call["arguments"])
    return Finding(f"{len(found)} calls, arguments {found[min(found)]['arguments']!r:.60}")


def tools_result(subject: Subject) -> Finding:
    """A call and its result, given back as turns, are taken and count as prompt tokens."""
    call = _forced(_ask(subject, NAMED))[0]
    turns: list[JSON] = [
        {"role": "user", "content": ASK},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "82"},
    ]
    ask: JSON = {"temperature": 0, "max_tokens": 8, "tools": [TOOL]}
    one, two = (usage_of(subject.endpoint.chat(turns[:count], **ask))[0] for count in (1, 3))
    expect(two > one, f"{two} prompt tokens, {one} without the call", "a call and its result must reach the model")
    return Finding(f"{two} prompt tokens, {one} without the call")


def tools_unknown(subject: Subject) -> Finding:
    """A tool that was not offered is refused."""
    _ask(subject, "none")
    return refusal(subject.endpoint.post(CHAT, _body(subject, {"type": "function", "function": {"name": "subtract"}})))
