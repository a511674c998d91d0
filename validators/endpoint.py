"""A small client of an OpenAI-compatible server that believes nothing: every answer is checked for its framing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from release.errors import ServingError
from release.types import JSON
from release.validators.connection import Connection, whole
from release.validators.wire import PatienceError, UnreachableError, address_of, quote, request_bytes

__all__ = ["Answer", "Endpoint", "PatienceError", "RefusedError", "UnreachableError", "json_object", "parse_events", "quote"]

LARGEST: Final = 64 * 1024 * 1024
"""Bytes of one answer, streamed or not, beyond which a server is broken rather than talkative."""
KEY: Final = re.compile(r"[!-~]{1,4096}")


class RefusedError(ServingError):
    """The server answered with another status than 200; `status` is that status, `retry_after` the seconds it asks to wait."""

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Answer:
    """What a server sent back: HTTP status, content type, body, and the seconds after which it wants to be asked again."""

    status: int
    content_type: str
    body: bytes
    retry_after: float | None = None

    def json(self) -> JSON:
        """Return the body as a JSON object. Raises ServingError if it is none."""
        return json_object(self.body)

    def wanted(self, path: str) -> JSON:
        """Return the body of an answer with status 200 as a JSON object. Raises RefusedError for another status, and ServingError."""
        if self.status != 200:
            raise RefusedError(f"{path}: HTTP {self.status}: {self.quoted}", self.status, self.retry_after)
        return self.json()

    @property
    def quoted(self) -> str:
        """The beginning of the body, fit for an error message."""
        return quote(self.body)


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
    `connect_timeout` is how long to wait for the connection, `read_timeout` for the whole answer (both in seconds), `largest` how
    many bytes an answer may have. `api_key` is sent as a bearer token and shown nowhere.
    Every method raises UnreachableError, PatienceError or ServingError.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 600.0,
        largest: int = LARGEST,
    ) -> None:
        if api_key is not None and not KEY.fullmatch(api_key):
            raise ServingError("the key for the server is empty, or has characters that no header can carry")
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.address = address_of(self.base_url)
        self.connect_timeout, self.read_timeout, self.largest = connect_timeout, read_timeout, largest
        self.headers: Mapping[str, str] = {"Authorization": f"Bearer {api_key}"} if api_key is not None else {}
        self._local = threading.local()

    def patient(self, read_timeout: float) -> Endpoint:
        """Return a client of the same model on the same server that waits for so many seconds."""
        return self._like(read_timeout, self.headers)

    def with_key(self, api_key: str | None) -> Endpoint:
        """Return a client of the same model on the same server that shows another key, or none."""
        return self._like(self.read_timeout, {"Authorization": f"Bearer {api_key}"} if api_key is not None else {})

    def _like(self, read_timeout: float, headers: Mapping[str, str]) -> Endpoint:
        other = Endpoint(
            self.base_url, self.model, connect_timeout=self.connect_timeout, read_timeout=read_timeout, largest=self.largest
        )
        other.headers = headers
        return other

    def redact(self, text: str) -> str:
        """Return `text` without the key: a server may repeat it in what it says."""
        for header in self.headers.values():
            text = text.replace(header.removeprefix("Bearer "), "***")
        return text

    def request(self, method: str, path: str, body: JSON | bytes | None) -> bytes:
        """Return the bytes of a request to this server; bytes are sent as they are, as application/json."""
        data = body if isinstance(body, bytes | None) else json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        return request_bytes(self.address, method, path, self.headers, data)

    def _connection(self) -> Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self.address, self.connect_timeout)
        kept: Connection = self._local.connection
        return kept

    def _ask(self, method: str, path: str, body: JSON | bytes | None, patience: float) -> Answer:
        try:
            head, data = whole(self._connection().exchange(self.request(method, path, body), patience, self.largest))
        except ServingError as problem:
            raise problem.located(path) from problem.__cause__
        return Answer(head.status, head.content_type, data, head.retry_after)

    def get(self, path: str, patience: float | None = None) -> Answer:
        """Return the answer to GET `path`, whatever its status. `patience` replaces `read_timeout` for this once."""
        return self._ask("GET", path, None, self.read_timeout if patience is None else patience)

    def post(self, path: str, body: JSON | bytes) -> Answer:
        """Return the answer to POST `path`, whatever its status; bytes are sent as they are, as application/json."""
        return self._ask("POST", path, body, self.read_timeout)

    def alive(self, patience: float = 10.0) -> bool:
        """Return whether the server answers /health (where it has none: /v1/models) with 200 within `patience` seconds."""
        try:
            health = self.get("/health", patience).status
            return (self.get("/v1/models", patience).status if health in (404, 405) else health) == 200
        except ServingError:
            return False

    def models(self) -> list[JSON]:
        """Return what /v1/models lists. Raises ServingError if it is no list of objects with an id."""
        listed = self.get("/v1/models").wanted("/v1/models").get("data")
        if not isinstance(listed, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in listed):
            raise ServingError("/v1/models: the answer's 'data' is no list of models")
        return listed

    def max_model_len(self) -> int | None:
        """Return the context that the server gives the model, None where it does not say. Raises ServingError without the model."""
        listed = self.models()
        for entry in listed:
            if entry["id"] == self.model:
                length = entry.get("max_model_len")
                return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None
        names = ", ".join(f"{entry['id']:.100}" for entry in listed[:20])
        raise ServingError(f"the server has no model {self.model!r}, only {names or 'none'}")

    def chat(self, messages: str | Sequence[JSON], **parameters: Any) -> JSON:
        """Return a chat completion. A string is one user message; `parameters` go into the request as they are."""
        path = "/v1/chat/completions"
        return self.post(path, self.chat_body(messages, **parameters)).wanted(path)

    def completion(self, prompt: str, **parameters: Any) -> JSON:
        """Return a text completion."""
        path = "/v1/completions"
        return self.post(path, {"model": self.model, "prompt": prompt, **parameters}).wanted(path)

    def stream(self, messages: str | Sequence[JSON], **parameters: Any) -> Generator[JSON, None, None]:
        """Yield the events of a streamed chat completion as they come, up to [DONE]; ending the iteration early hangs up.

        Raises RefusedError for another status than 200, and ServingError if the framing breaks (`parse_events`), the content type
        is not text/event-stream, or an event reports an error.
        """
        return self.events("/v1/chat/completions", self.chat_body(messages, stream=True, **parameters))

    def events(self, path: str, body: JSON) -> Generator[JSON, None, None]:
        """Yield the events that POST `path` is answered with, as `stream` does."""
        answer = self._connection().exchange(self.request("POST", path, body), self.read_timeout, self.largest)
        try:
            head = next(answer)
            assert not isinstance(head, bytes)
            pieces = (piece for piece in answer if isinstance(piece, bytes))
            if head.status != 200:
                refusal = f"{path}: HTTP {head.status}: {quote(b''.join(pieces))}"
                raise RefusedError(refusal, head.status, head.retry_after)
            if head.content_type.partition(";")[0].strip().lower() != "text/event-stream":
                raise ServingError(f"{path}: a stream was asked for, and the content type is {head.content_type!r:.100}")
            for event in parse_events(pieces):
                if "error" in event:
                    raise ServingError(f"{path}: the stream reports an error: {ascii(event['error'])[:200]}")
                yield event
        except (UnreachableError, PatienceError) as problem:
            raise problem.located(path) from problem.__cause__
        finally:
            answer.close()

    def chat_body(self, messages: str | Sequence[JSON], **parameters: Any) -> JSON:
        """Return the body of a chat request for this model."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return {"model": self.model, "messages": turns, **parameters}
