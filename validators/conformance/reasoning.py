"""Whether what a model thinks is kept apart from what it says: whole, streamed, and when it is handed back."""

from __future__ import annotations

from typing import Final

from release.types import JSON
from release.validators.conformance.check import ASK, THOUGHTS, AbsentError, Finding, Subject, deltas, expect, take, usage_of

MARKS: Final = ("<think>", "</think>")
MOST: Final = 2048


def _message(subject: Subject) -> tuple[str, JSON]:
    """Return the name of the field that the thoughts stand in, and the message."""
    answer = subject.endpoint.chat(ASK, temperature=0, max_tokens=subject.budget(MOST))
    message: JSON = take(answer, "choices", 0, "message")
    name = next((name for name in THOUGHTS if message.get(name)), None)
    if name is None:
        raise AbsentError("no reasoning_content", "the server keeps no thoughts apart from the answer")
    return name, message


def reasoning(subject: Subject) -> Finding:
    """Thoughts stand in a field of their own, and their marks nowhere."""
    name, message = _message(subject)
    thoughts, said = str(message[name]), str(message.get("content") or "")
    marks = [mark for mark in MARKS if mark in thoughts + said]
    expect(not marks, f"{marks}", "the marks of thoughts belong neither into the thoughts nor into the answer")
    return Finding(f"{len(thoughts)} characters in {name}, {len(said)} in content", figures={"field": name})


def reasoning_streamed(subject: Subject) -> Finding:
    """Streamed, thoughts and answer come apart as well, and say the same."""
    name, message = _message(subject)
    events = list(subject.endpoint.stream(ASK, temperature=0, max_tokens=subject.budget(MOST)))
    together = deltas(events)
    for key in (name, "content"):
        whole, stream = str(message.get(key) or ""), str(together[key])
        expect(
            stream.strip() == whole.strip(),
            f"{key} {stream!r:.80} vs {whole!r:.80}",
            f"the streamed {key} differs from the whole one",
        )
    return Finding(f"the same {len(str(message[name]))} characters of thoughts")


def reasoning_history(subject: Subject) -> Finding:
    """A message with its thoughts, handed back as a turn, is taken."""
    name, message = _message(subject)
    turn: JSON = {"role": "assistant", "content": message.get("content") or "", name: message[name]}
    turns: list[JSON] = [{"role": "user", "content": ASK}, turn, {"role": "user", "content": "What is 1+2?"}]
    lone = usage_of(subject.endpoint.chat(turns[:1], temperature=0, max_tokens=1))[0]
    long = usage_of(subject.endpoint.chat(turns, temperature=0, max_tokens=1))[0]
    expect(long > lone, f"{long} prompt tokens, {lone} for the first turn", "earlier turns must reach the model")
    return Finding(f"{long} prompt tokens, {lone} for the first turn alone")
