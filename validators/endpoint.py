"""A small client of an OpenAI-compatible server that believes nothing: every answer is checked for its framing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from release.errors import ServingError
from release.types import JSON

LARGEST: Final = 256 * 1024 * 1024
"""Bytes of one answer, streamed or not, beyond which a server is broken rather than talkative."""
QUOTED: Final = 200
"""Characters of a foreign answer that an error quotes."""


class UnreachableError(ServingError):
    """The connection could not be made or was lost before the answer was complete: asking again may help."""


class PatienceError(ServingError):
    """The server keeps the connection and does not answer in time."""


class RefusedError(ServingError):
    """The server answered with another status than 200; `status` is that status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What a server sent back: HTTP status, content type and body."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> JSON:
        """Return the body as a JSON object. Raises ServingError if it is none."""
        return json_object(self.body)

    @property
    def quoted(self) -> str:
        """The beginning of the body, fit for an error message."""
        return quote(self.body)


def quote(data: bytes) -> str:
    """Return the beginning of foreign bytes in printable form."""
    return ascii(data[:QUOTED].decode("utf-8", "replace"))


def json_object(data: bytes) -> JSON:
    """Parse bytes as one JSON object, strictly: UTF-8, no NaN. Raises ServingError with the beginning of what came instead."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as problem:
        raise ServingError(f"the server sent no JSON: {quote(data)}") from problem
    if not isinstance(value, dict):
        raise ServingError(f"the server sent JSON that is no object: {quote(data)}")
    return value


def parse_events(chunks: Iterable[bytes]) -> Iterator[JSON]:
    """Yield the events of a server-sent-event stream as OpenAI-compatible clients read it, strictly, however it is cut up.

    Each event is one line `data: <JSON object>` and an empty line; the last is `data: [DONE]`, and nothing follows it. Comment
    lines (`:`) are allowed between events. Lines end with LF or CRLF. Raises ServingError where the framing breaks, and if the
    stream ends before [DONE]. Source: HTML standard §9.2 (server-sent events), narrowed to what line-wise clients understand.
    """
    done = pending = False
    for line in _lines(chunks):
        if done and line:
            raise ServingError(f"the stream goes on after [DONE]: {quote(line)}")
        if not line:
            pending = False
        elif pending:
            raise ServingError(f"the stream has no empty line between two events: {quote(line)}")
        elif line.startswith(b":"):
            continue
        elif not line.startswith(b"data: "):
            raise ServingError(f"the stream has a line that is no 'data: ': {quote(line)}")
        else:
            pending = True
            if line[6:] == b"[DONE]":
                done = True
            else:
                yield json_object(line[6:])
    if not done or pending:
        raise ServingError("the stream ends without 'data: [DONE]' and an empty line")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a chunked byte stream without their ends. Cutting at LF bytes never cuts a UTF-8 character."""
    rest = bytearray()
    for chunk in chunks:
        start = len(rest)
        rest += chunk
        while (end := rest.find(b"\n", start)) >= 0:
            line = bytes(rest[:end])
            del rest[: end + 1]
            start = 0
            yield line.removesuffix(b"\r")
    if rest:
        raise ServingError(f"the stream ends in the middle of a line: {quote(bytes(rest))}")


class Endpoint:
    """A client of one model on one server: `base_url` is the server's root (http://127.0.0.1:8000), without /v1.

    Proxies, netrc and redirects are ignored: requests go to that server or nowhere. Each thread has a connection of its own.
    `connect_timeout` is how long to wait for the connection, `read_timeout` for the whole answer (both in seconds).
    Every method raises UnreachableError, PatienceError or ServingError instead of an exception of the HTTP library.
    """

    def __init__(self, base_url: str, model: str, *, connect_timeout: float = 5.0, read_timeout: float = 600.0) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ServingError(f"{base_url!r} is no address of a server: it must begin with http:// or https://")
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.connect_timeout, self.read_timeout = connect_timeout, read_timeout
        self._local = threading.local()

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.trust_env = False
            self._local.session = session
        kept: requests.Session = self._local.session
        return kept

    def _chunks(self, method: str, path: str, data: bytes | None, patience: float) -> Iterator[requests.Response | bytes]:
        """Yield the response's head, then its body as it comes; translate what the HTTP library raises."""
        deadline = time.monotonic() + patience
        headers = {"Content-Type": "application/json"} if data is not None else {}
        size = 0
        try:
            with self._session().request(
                method,
                self.base_url + path,
                data=data,
                headers=headers,
                timeout=(self.connect_timeout, patience),
                stream=True,
                allow_redirects=False,
            ) as response:
                yield response
                for chunk in response.raw.stream(65536, decode_content=True):
                    size += len(chunk)
                    if time.monotonic() > deadline:
                        raise PatienceError(f"{path}: no complete answer within {patience:g} s")
                    if size > LARGEST:
                        raise ServingError(f"{path}: the answer has more than {LARGEST} bytes")
                    yield chunk
        except requests.ConnectTimeout as problem:
            raise UnreachableError(f"{path}: no connection within {self.connect_timeout:g} s") from problem
        except (requests.Timeout, ReadTimeoutError, TimeoutError) as problem:
            raise PatienceError(f"{path}: no complete answer within {patience:g} s") from problem
        except (requests.RequestException, HTTPError, OSError) as problem:
            raise UnreachableError(f"{path}: connection lost: {_cause(problem)}") from problem

    def _ask(self, method: str, path: str, data: bytes | None, patience: float) -> Answer:
        chunks = self._chunks(method, path, data, patience)
        head = next(chunks)
        assert isinstance(head, requests.Response)
        body = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
        return Answer(head.status_code, head.headers.get("Content-Type", ""), body)

    def get(self, path: str, patience: float | None = None) -> Answer:
        """Return the answer to GET `path`, whatever its status. `patience` replaces `read_timeout` for this once."""
        return self._ask("GET", path, None, self.read_timeout if patience is None else patience)

    def post(self, path: str, body: JSON | bytes) -> Answer:
        """Return the answer to POST `path`, whatever its status; bytes are sent as they are, as application/json."""
        return self._ask("POST", path, _encoded(body), self.read_timeout)

    def alive(self, patience: float = 10.0) -> bool:
        """Return whether the server answers /health (where it has none: /v1/models) with 200 within `patience` seconds."""
        try:
            health = self.get("/health", patience).status
            return (self.get("/v1/models", patience).status if health in (404, 405) else health) == 200
        except ServingError:
            return False

    def models(self) -> list[JSON]:
        """Return what /v1/models lists. Raises ServingError if it is no list of objects with an id."""
        listed = self._object(self.get("/v1/models"), "/v1/models").get("data")
        if not isinstance(listed, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in listed):
            raise ServingError("/v1/models: the answer's 'data' is no list of models")
        return listed

    def chat(self, messages: str | Sequence[JSON], **parameters: Any) -> JSON:
        """Return a chat completion. A string is one user message; `parameters` go into the request as they are."""
        return self._object(self.post("/v1/chat/completions", self.chat_body(messages, **parameters)), "/v1/chat/completions")

    def completion(self, prompt: str, **parameters: Any) -> JSON:
        """Return a text completion."""
        return self._object(
            self.post("/v1/completions", {"model": self.model, "prompt": prompt, **parameters}), "/v1/completions"
        )

    def stream(self, messages: str | Sequence[JSON], **parameters: Any) -> Iterator[JSON]:
        """Yield the events of a streamed chat completion as they come, up to [DONE].

        Raises RefusedError for another status than 200, and ServingError if the framing breaks (`parse_events`), the content type
        is not text/event-stream, or an event reports an error.
        """
        path = "/v1/chat/completions"
        chunks = self._chunks("POST", path, _encoded(self.chat_body(messages, stream=True, **parameters)), self.read_timeout)
        head = next(chunks)
        assert isinstance(head, requests.Response)
        content_type = head.headers.get("Content-Type", "")
        body = (chunk for chunk in chunks if isinstance(chunk, bytes))
        if head.status_code != 200:
            raise RefusedError(f"{path}: HTTP {head.status_code}: {quote(b''.join(body))}", head.status_code)
        if content_type.partition(";")[0].strip().lower() != "text/event-stream":
            raise ServingError(f"{path}: a stream was asked for, and the content type is {content_type!r}")
        for event in parse_events(body):
            if "error" in event:
                raise ServingError(f"{path}: the stream reports an error: {ascii(event['error'])[:QUOTED]}")
            yield event

    def chat_body(self, messages: str | Sequence[JSON], **parameters: Any) -> JSON:
        """Return the body of a chat request for this model."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return {"model": self.model, "messages": turns, **parameters}

    @staticmethod
    def _object(answer: Answer, path: str) -> JSON:
        if answer.status != 200:
            raise RefusedError(f"{path}: HTTP {answer.status}: {answer.quoted}", answer.status)
        return answer.json()


def _encoded(body: JSON | bytes) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False, allow_nan=False).encode()


def _cause(problem: BaseException) -> str:
    """Return the innermost reason of a nest of exceptions: 'Connection refused' rather than three lines of wrapping."""
    while (inner := problem.__cause__ or problem.__context__) is not None:
        problem = inner
    return (problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)) or type(problem).__name__
