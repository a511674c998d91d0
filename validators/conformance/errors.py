"""Whether bad requests are refused as the client's error, with a body that says why, and never break the server."""

from __future__ import annotations

from typing import Any, Final

from release.types import JSON
from release.validators.conformance.check import ASK, CHAT, GREEDY, AbsentError, Finding, Subject, expect, refusal

HOSTILE: Final[dict[str, bytes]] = {
    "nesting of 50,000 levels": b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "bytes that are no UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a number of 400 digits": b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1' + b"0" * 400 + b"}",
    "NaN": b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    "a lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}',
    "no body": b"",
    "a list": b"[]",
}
"""Bodies that have ended servers; the model's name is added where there is an object."""


def _refused(subject: Subject, **changes: Any) -> Finding:
    body: JSON = subject.endpoint.chat_body(ASK, **GREEDY) | changes
    return refusal(subject.endpoint.post(CHAT, {key: value for key, value in body.items() if value is not None}))


def bad_json(subject: Subject) -> Finding:
    """A body that is no JSON is refused."""
    return refusal(subject.endpoint.post(CHAT, b'{"model": "' + subject.endpoint.model.encode() + b'", '))


def unknown_model(subject: Subject) -> Finding:
    """A model that is not served is refused with 404, streamed or not."""
    body = subject.endpoint.chat_body(ASK, **GREEDY) | {"model": "no-such-model"}
    refusal(subject.endpoint.post(CHAT, body | {"stream": True}), 404)
    return refusal(subject.endpoint.post(CHAT, body), 404)


def negative_max_tokens(subject: Subject) -> Finding:
    """A negative max_tokens is refused."""
    return refusal(subject.endpoint.post(CHAT, subject.endpoint.chat_body(ASK, max_tokens=-1)))


def bad_role(subject: Subject) -> Finding:
    """A role that is a number is refused; an unknown role must not break the server, and what it gets is reported.

    vLLM 0.32 hands unknown roles to the chat template on purpose; OpenAI refuses them.
    """
    turn: JSON = {"content": ASK}
    found = _refused(subject, messages=[turn | {"role": 7}])
    unknown = subject.endpoint.post(CHAT, subject.endpoint.chat_body([turn | {"role": "wizard"}], **GREEDY)).status
    expect(unknown < 500, f"HTTP {unknown} for an unknown role", "a bad request must never be the server's error")
    note = f"{found.measured}; HTTP {unknown} for the unknown role 'wizard'"
    return Finding(note, figures=found.figures | {"unknown-role-status": unknown})


def unknown_path(subject: Subject) -> Finding:
    """A path that does not exist is 404."""
    status = subject.endpoint.post("/v1/no-such-path", {}).status
    expect(status == 404, f"HTTP {status}", "an unknown path must be 404")
    return Finding("HTTP 404")


def wrong_method(subject: Subject) -> Finding:
    """GET where only POST is answered is 405 or 404."""
    status = subject.endpoint.get(CHAT).status
    expect(status in (404, 405), f"HTTP {status}", "a wrong method must be 405")
    return Finding(f"HTTP {status}")


def no_messages(subject: Subject) -> Finding:
    """A request without messages, and one whose messages are a text, are refused."""
    _refused(subject, messages=None)
    return _refused(subject, messages="hi")


def bad_sampling(subject: Subject) -> Finding:
    """Sampling that makes no sense is refused: a temperature below 0 or in words, a top_p above 1."""
    for changes in ({"temperature": -1}, {"top_p": 2}):
        _refused(subject, **changes)
    return _refused(subject, temperature="hot")


def hostile_bodies(subject: Subject) -> Finding:
    """Bodies that have ended servers get an answer that is no server's error."""
    model = b'{"model": "' + subject.endpoint.model.encode() + b'", '
    statuses = {}
    for name, body in HOSTILE.items():
        status = subject.endpoint.post(CHAT, model + body[1:] if body.startswith(b"{") else body).status
        expect(status < 500, f"HTTP {status} for {name}", "a bad request must never be the server's error")
        statuses[name] = status
    return Finding(f"{len(statuses)} bodies, HTTP {', '.join(map(str, sorted(set(statuses.values()))))}", figures=statuses)


def auth(subject: Subject) -> Finding:
    """Without a key, and with a wrong one, a request is 401."""
    if not subject.endpoint.headers:
        raise AbsentError("no key", "no key was given: whether the server asks for one is unknown")
    statuses = []
    for key in (None, "wrong"):
        statuses.append(subject.endpoint.with_key(key).post(CHAT, subject.endpoint.chat_body(ASK, **GREEDY)).status)
    if statuses == [200, 200]:
        raise AbsentError("HTTP 200", "the server answers without a key")
    expect(set(statuses) <= {401, 403}, f"HTTP {statuses}", "a request without the right key must be 401")
    return Finding(f"HTTP {statuses[0]} without a key, {statuses[1]} with a wrong one")
