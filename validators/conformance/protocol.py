"""Whether the server answers at all, in the shapes that clients read: models, chat, text completions, forms of messages."""

from __future__ import annotations

from release.types import JSON
from release.validators.conformance.check import (
    ASK,
    COMPLETIONS,
    GREEDY,
    AbsentError,
    Finding,
    Subject,
    asked,
    expect,
    offered,
    take,
    text_of,
    usage_of,
)


def health(subject: Subject) -> Finding:
    """/health says 200."""
    status = subject.endpoint.get("/health").status
    if status in (404, 405):
        raise AbsentError(f"HTTP {status}", "the server has no /health")
    expect(status == 200, f"HTTP {status}", "a server that answers must call itself healthy")
    return Finding("HTTP 200")


def models_listed(subject: Subject) -> Finding:
    """/v1/models lists the served model."""
    names = [f"{entry['id']:.200}" for entry in subject.endpoint.models()]
    measured = ", ".join(names[:20]) or "no model"
    expect(subject.endpoint.model in names, measured, f"{subject.endpoint.model} is not listed")
    return Finding(measured)


def chat_answers(subject: Subject) -> Finding:
    """A chat completion has an id, one choice, role assistant, a text and a finish reason."""
    answer = asked(subject)
    expect(isinstance(answer.get("id"), str) and bool(answer["id"]), f"id {answer.get('id')!r:.60}", "an answer must have an id")
    expect(
        answer.get("object") == "chat.completion", f"object {answer.get('object')!r:.60}", "the object must be chat.completion"
    )
    expect(len(take(answer, "choices")) == 1, f"{len(take(answer, 'choices'))} choices", "one choice was asked for")
    role, finish = take(answer, "choices", 0, "message", "role"), take(answer, "choices", 0, "finish_reason")
    expect(role == "assistant", f"role {role!r:.60}", "the role must be assistant")
    expect(finish in ("stop", "length"), f"finish_reason {finish!r:.60}", "the finish reason must be stop or length")
    return Finding(f"{len(text_of(answer))} characters, finish_reason {finish}")


def names_the_model(subject: Subject) -> Finding:
    """An answer names the model that was asked for, and no two answers have the same id."""
    answers = [asked(subject) for _ in range(2)]
    names = {str(take(answer, "model")) for answer in answers}
    expect(
        names == {subject.endpoint.model}, f"model {sorted(names)!r:.100}", "the answer must name the model that was asked for"
    )
    ids = {str(take(answer, "id")) for answer in answers}
    expect(len(ids) == 2, f"id {ids.pop()!r:.60} twice", "two answers must have two ids")
    return Finding(f"{subject.endpoint.model}, 2 ids")


def completion_answers(subject: Subject) -> Finding:
    """A text completion has a text and a finish reason."""
    answer = offered(lambda: subject.endpoint.completion("37+45=", temperature=0, max_tokens=8), COMPLETIONS)
    text, finish = take(answer, "choices", 0, "text"), take(answer, "choices", 0, "finish_reason")
    expect(isinstance(text, str) and bool(text), f"text {text!r:.60}", "a completion must have a text")
    expect(finish in ("stop", "length"), f"finish_reason {finish!r:.60}", "the finish reason must be stop or length")
    usage_of(answer)
    return Finding(f"{len(text)} characters, finish_reason {finish}")


def conversation(subject: Subject) -> Finding:
    """A system message and earlier turns are taken, and count as prompt tokens."""
    turns: list[JSON] = [
        {"role": "system", "content": "Answer with the sum."},
        {"role": "user", "content": "What is 1+2?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": ASK},
    ]
    lone, long = usage_of(asked(subject))[0], usage_of(subject.endpoint.chat(turns, **GREEDY))[0]
    expect(long > lone, f"{long} prompt tokens, {lone} for the last turn alone", "earlier turns must reach the model")
    return Finding(f"{long} prompt tokens, {lone} for the last turn alone", figures={"prompt-tokens": long, "alone": lone})


def content_parts(subject: Subject) -> Finding:
    """A message whose content is a list of text parts is the same prompt as the text."""
    turn: JSON = {"role": "user", "content": [{"type": "text", "text": ASK}]}
    parts = offered(lambda: subject.endpoint.chat([turn], **GREEDY), "content in parts")
    one, two = usage_of(asked(subject))[0], usage_of(parts)[0]
    expect(one == two, f"{two} prompt tokens, {one} as a text", "the same text in one part must be the same prompt")
    return Finding(f"{two} prompt tokens, as many as the text has")


def max_completion_tokens(subject: Subject) -> Finding:
    """max_completion_tokens, the newer name of max_tokens, bounds the answer."""
    answer = offered(lambda: subject.endpoint.chat(ASK, temperature=0, max_completion_tokens=2), "max_completion_tokens")
    tokens = usage_of(answer)[1]
    if tokens > 2:
        raise AbsentError(f"{tokens} tokens", "the server ignores max_completion_tokens")
    return Finding(f"{tokens} tokens")
