"""Servers that break in every way below HTTP and in it: they answer GET as they should, and POST as badly as they are told to."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from stub import MODEL

Serve = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "7"}, "finish_reason": null}]}\n\n'
FOREVER = 90.0
"""Seconds after which even the most patient of these servers gives up."""


def answer(body: bytes, head: bytes = OK + JSON_TYPE) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def sender(*parts: bytes, pause: float = 0.0, then: float = 0.0) -> Serve:
    """A server that sends parts with a pause after each, keeps the connection for `then` seconds, and closes it."""

    def serve(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        waiting(connection, then)

    return serve


def endless(head: bytes, part: bytes, pause: float = 0.0) -> Serve:
    """A server that sends a head, and then the same part for ever."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        ends = time.monotonic() + FOREVER
        while time.monotonic() < ends:
            connection.sendall(part)
            time.sleep(pause)

    return serve


def waiting(connection: socket.socket, seconds: float) -> None:
    """Wait until the other side hangs up, and so long at most."""
    connection.settimeout(max(seconds, 0.001))
    with suppress(OSError):
        connection.recv(1)


def reset(connection: socket.socket) -> None:
    """Close a connection without a word, so that the other side sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chat(text: str = "7", **changes: object) -> bytes:
    """A right answer to a chat, or one that is changed a little."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    body = {"id": "1", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
    return json.dumps(body | changes).encode()


BROKEN: dict[str, Serve] = {
    "500": sender(answer(b'{"error": {"message": "boom"}}', b"HTTP/1.1 500 Oops\r\n" + JSON_TYPE)),
    "503 with Retry-After": sender(answer(b"{}", b"HTTP/1.1 503 Later\r\nRetry-After: 999999\r\n" + JSON_TYPE)),
    "429 with Retry-After": sender(answer(b"{}", b"HTTP/1.1 429 Later\r\nRetry-After: 0\r\n" + JSON_TYPE)),
    "hangs before its head": sender(then=FOREVER),
    "hangs in its head": sender(OK + b"Content-Ty", then=FOREVER),
    "hangs in its body": sender(OK + JSON_TYPE + b"Content-Length: 100\r\n\r\n{", then=FOREVER),
    "hangs in a stream": sender(EVENTS + CHUNKED + chunk(EVENT), then=FOREVER),
    "drips its head": endless(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a", pause=0.02),
    "drips one chunk": endless(OK + JSON_TYPE + CHUNKED + b"fffff\r\n", b" ", pause=0.02),
    "drips its body": endless(OK + JSON_TYPE + b"Content-Length: 1000000\r\n\r\n", b" ", pause=0.02),
    "drips comments": endless(EVENTS + CHUNKED, chunk(b": still here\n"), pause=0.02),
    "cut stream": sender(EVENTS + CHUNKED + chunk(EVENT)),
    "cut chunk": sender(OK + JSON_TYPE + CHUNKED + b"ff\r\n{"),
    "stream without its end": sender(EVENTS + CHUNKED + chunk(EVENT) + b"0\r\n\r\n"),
    "malformed events": sender(EVENTS + CHUNKED + chunk(b"event: x\ndata {}\n\n") + b"0\r\n\r\n"),
    "never-ending events": endless(EVENTS + CHUNKED, chunk(EVENT * 500)),
    "never-ending line": endless(EVENTS + CHUNKED, chunk(b"data: " + b"x" * 60_000)),
    "never-ending body": endless(OK + JSON_TYPE + CHUNKED, chunk(b" " * 60_000)),
    "never-ending headers": endless(OK, b"X-More: and more\r\n" * 1000),
    "never-ending 100": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10),
    "never-ending trailer": endless(OK + JSON_TYPE + CHUNKED + b"0\r\n", b"X-More: and more\r\n" * 1000),
    "huge content length": sender(OK + JSON_TYPE + b"Content-Length: 99999999999\r\n\r\n{", then=FOREVER),
    "content length of words": sender(OK + JSON_TYPE + b"Content-Length: many\r\n\r\n{}"),
    "two content lengths": sender(OK + JSON_TYPE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"),
    "chunk that lies": sender(OK + JSON_TYPE + CHUNKED + b"1\r\n{}\r\n0\r\n\r\n"),
    "unasked compression": sender(answer(b"\x1f\x8b", OK + JSON_TYPE + b"Content-Encoding: gzip\r\n")),
    "redirect": sender(answer(b"", b"HTTP/1.1 307 There\r\nLocation: http://127.0.0.1:1/\r\n")),
    "redirect to itself": sender(answer(b"", b"HTTP/1.1 302 Found\r\nLocation: /v1/chat/completions\r\n")),
    "page of a proxy": sender(answer(b"<html><h1>502</h1></html>", OK + b"Content-Type: text/html\r\n")),
    "no content": sender(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "switches protocols": sender(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
    "no HTTP": sender(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "HTTP/2": sender(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "closes at once": sender(),
    "resets": reset,
    "empty body": sender(answer(b"")),
    "a list": sender(answer(b"[]")),
    "null": sender(answer(b"null")),
    "deep nesting": sender(answer(b"[" * 100_000)),
    "NaN": sender(answer(chat(usage={"prompt_tokens": float("nan")}))),
    "Infinity": sender(answer(chat().replace(b'"index": 0', b'"index": 0, "logprobs": {"content": [{"logprob": -Infinity}]}'))),
    "huge number": sender(answer(b'{"choices": ' + b"9" * 5000 + b"}")),
    "choices that are numbers": sender(answer(chat(choices=[7]))),
    "content that is a number": sender(answer(chat().replace(b'"content": "7"', b'"content": 7'))),
}
"""What a server does with a POST, by what is wrong with it."""


@contextmanager
def server(serve: Serve, *, get: bool = True) -> Iterator[str]:
    """A server that answers GET like a healthy one (unless told not to), and does with each other request what `serve` says."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while True:
                first = read_request(connection)
                if not first:
                    return
                if get and first.startswith(b"GET"):
                    known = first.startswith((b"GET /health ", b"GET /v1/models "))
                    models = json.dumps({"data": [{"id": MODEL, "max_model_len": 512}]}).encode()
                    connection.sendall(answer(models) if known else answer(b"{}", b"HTTP/1.1 404 Not Found\r\n"))
                else:
                    serve(connection)
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def read_request(connection: socket.socket) -> bytes:
    """Read a request to the end of its body: closing a socket with unread bytes resets the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head
