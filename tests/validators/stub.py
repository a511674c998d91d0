"""A small OpenAI-compatible server that adds two numbers, and misbehaves in one named way at a time."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

JSON = dict[str, Any]
MODEL = "tiny-qwq"
CONTEXT = 512
SUM = re.compile(r"([0-9]+)\+([0-9]+)")


class Stub:
    """The server, on a free port of 127.0.0.1, as a context manager. `defects` names what it does wrong: see the code below.

    With `dies_after` it answers so many requests and is gone.
    """

    def __init__(self, *defects: str, stall: float = 30.0, dies_after: int | None = None) -> None:
        self.defects = set(defects)
        self.requests = 0
        self.bad_requests = 0
        self.in_flight = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.stall = stall
        self.dies_after = dies_after
        stub = self

        class Bound(Handler):
            server_stub = stub

        self.server = Quiet(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.server.block_on_close = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Stub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.die()

    def die(self) -> None:
        """Stop listening, and answer nothing more on the connections that are open."""
        with self.lock:
            first = not self.stopped.is_set()
            self.stopped.set()
        if first:
            self.server.shutdown()
            self.server.server_close()


def reply(prompt: str) -> str:
    """What the model says: with a character of three bytes, so that streams cut one in two."""
    match = SUM.search(prompt)
    return f"<think>\n{match[1]} 加 {match[2]}\n</think>\n\n{int(match[1]) + int(match[2])}" if match else "?"


def pieces(text: str) -> list[str]:
    """The tokens of a text: two characters each."""
    return [text[i : i + 2] for i in range(0, len(text), 2)]


class Quiet(ThreadingHTTPServer):
    """A server that takes a client which hangs up for granted."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_stub: Stub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def has(self, defect: str) -> bool:
        return defect in self.server_stub.defects

    def send(self, status: int, body: JSON | bytes, content_type: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        self.server_stub.bad_requests += 1
        self.send(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def do_GET(self) -> None:
        if self.path == "/health":
            sick = self.has("sick-after-errors") and self.server_stub.bad_requests
            self.send(503 if sick or self.has("sick") else 200, b"")
        elif self.path == "/v1/models" and self.has("models-not-json"):
            self.send(200, b"<html>", "text/html")
        elif self.path == "/v1/models":
            name = "another" if self.has("models-without-ours") else MODEL
            self.send(200, {"object": "list", "data": [{"id": name, "object": "model", "max_model_len": CONTEXT}]})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        stub = self.server_stub
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with stub.lock:
            stub.requests += 1
            stub.in_flight += 1
            last = stub.dies_after is not None and stub.requests > stub.dies_after
        if last:
            stub.die()
        if stub.stopped.is_set():
            self.close_connection = True
            return
        try:
            self.answer(data)
        finally:
            with stub.lock:
                stub.in_flight -= 1

    def answer(self, data: bytes) -> None:
        if self.has("stalls"):
            self.server_stub.stopped.wait(self.server_stub.stall)
            return None
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            return self.send(200, b"{}") if self.has("path-200") else self.send(404, {"detail": "Not Found"})
        try:
            body = json.loads(data)
        except ValueError:
            return self.refuse_json()
        if self.has("500"):
            return self.send(500, b"Internal Server Error", "text/plain")
        if self.refused(body):
            return None
        return self.serve(body)

    def refuse_json(self) -> None:
        if self.has("bad-json-500"):
            return self.fail(500, "unexpected", "InternalServerError")
        if self.has("bad-json-plain"):
            return self.send(400, b"bad", "text/plain")
        if self.has("bad-json-no-type"):
            return self.send(400, {"error": {"message": "bad", "code": 400}})
        return self.fail(400, "no JSON")

    def refused(self, body: JSON) -> bool:
        """Answer a bad request, and say whether it was one."""
        roles = [turn.get("role") for turn in body.get("messages", [])]
        text = "".join(str(turn.get("content")) for turn in body.get("messages", []))
        if body["model"] != MODEL and not self.has("unknown-model-served"):
            self.fail(400 if self.has("unknown-model-400") else 404, "no such model", "NotFoundError")
        elif body.get("max_tokens", 1) < 1 and not self.has("negative-accepted"):
            self.fail(400, "max_tokens must be positive")
        elif len(text) // 2 > CONTEXT and self.has("overlong-500"):
            self.fail(500, "boom", "InternalServerError")
        elif len(text) // 2 > CONTEXT and self.has("overlong-kills"):
            threading.Thread(target=self.server_stub.die).start()
            self.server_stub.stopped.wait(5)
            self.close_connection = True
        elif len(text) // 2 > CONTEXT and not self.has("overlong-accepted"):
            self.fail(400, "too long")
        elif any(not isinstance(role, str) for role in roles) and not self.has("role-accepted"):
            self.fail(400, "role must be a text")
        elif "wizard" in roles and self.has("wizard-500"):
            self.fail(500, "boom", "InternalServerError")
        else:
            return False
        return True

    def serve(self, body: JSON) -> None:
        stub = self.server_stub
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        crowded = bool({"crosstalk", "drops-under-load", "drifts"} & stub.defects) and self.wait_for_a_crowd()
        if crowded and self.has("drops-under-load"):
            self.close_connection = True
            return None
        if crowded and self.has("crosstalk"):
            prompt = "What is 12+30?"
        text = reply(prompt)
        if self.has("random-text") or (crowded and self.has("drifts")):
            text += f" {stub.requests}"
        tokens, finish = self.cut(body, pieces(text))
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens), "total_tokens": len(prompt) + len(tokens)}
        if self.has("usage-wrong-sum"):
            usage["total_tokens"] += 1
        if self.has("prompt-tokens-drift"):
            usage["prompt_tokens"] += stub.requests
            usage["total_tokens"] += stub.requests
        if body["model"] and self.path == "/v1/completions":
            return self.complete(tokens, finish, usage)
        if body.get("stream"):
            return self.stream(body, tokens, finish, usage)
        return self.chat(body, tokens, finish, usage)

    def wait_for_a_crowd(self) -> bool:
        """Wait a moment for a second request in flight, and say whether there is one."""
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            if self.server_stub.in_flight > 1:
                return True
            time.sleep(0.002)
        return False

    def cut(self, body: JSON, tokens: list[str]) -> tuple[list[str], str]:
        """Apply stop and max_tokens."""
        finish, limit, stops = "stop", body.get("max_tokens", 64), body.get("stop") or []
        if self.has("stop-ignored") or (self.has("stop-list-ignored") and isinstance(stops, list)):
            stops = []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = "".join(tokens)
            if stop in text:
                tokens = pieces(text.partition(stop)[0] + (stop if self.has("stop-included") else ""))
        if limit < len(tokens) and not self.has("max-tokens-ignored"):
            tokens = tokens[: max(limit, 0) + self.has("max-tokens-off-by-one")]
            finish = "stop" if self.has("max-tokens-finish-stop") else "length"
        if self.has("finish-null"):
            return tokens, None  # type: ignore[return-value]
        return tokens, "abort" if self.has("aborts") else finish

    def complete(self, tokens: list[str], finish: str, usage: JSON) -> None:
        if self.has("completion-500"):
            return self.fail(500, "boom", "InternalServerError")
        text = "" if self.has("completion-empty") else "".join(tokens)
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        return self.send(200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage})

    def chat(self, body: JSON, tokens: list[str], finish: str, usage: JSON) -> None:
        content: str | None = "".join(tokens)
        if self.has("empty-content"):
            content = ""
        if self.has("null-content"):
            content = None
        message = {"role": "user" if self.has("wrong-role") else "assistant", "content": content}
        choice: JSON = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        if body.get("logprobs") and not self.has("logprobs-missing"):
            choice["logprobs"] = {"content": [self.logprob(token, int(body["top_logprobs"])) for token in tokens]}
        count = 1 if self.has("n-ignored") else body.get("n", 1) + self.has("one-choice-more")
        choices = [choice | {"index": 0 if self.has("same-index") else i} for i in range(count)]
        answer: JSON = {"id": "chatcmpl-1", "object": "chat.completion", "choices": choices, "usage": usage}
        if self.has("no-id"):
            del answer["id"]
        if self.has("no-choices"):
            answer["choices"] = []
        if self.has("no-usage"):
            answer["usage"] = None
        if self.has("not-json"):
            return self.send(200, b"<html>busy</html>", "text/html")
        if self.has("surrogate"):
            return self.send(200, json.dumps(answer).replace("<think>", "\\ud800").encode())
        return self.send(200, answer)

    def logprob(self, token: str, top: int) -> JSON:
        value = 0.5 if self.has("logprob-positive") else -0.1
        first = "x" if self.has("chosen-not-on-top") else token
        others = [{"token": f"other{i}", "logprob": -3.0 - i} for i in range(0 if self.has("top-missing") else top - 1)]
        return {"token": token, "logprob": value, "top_logprobs": [{"token": first, "logprob": value}, *others]}

    def stream(self, body: JSON, tokens: list[str], finish: str, usage: JSON) -> None:
        if self.has("stream-other-text"):
            tokens = [*tokens[:-1], "0"]
        deltas: list[JSON] = [{"role": "assistant", "content": ""}, *({"content": token} for token in tokens)]
        if self.has("no-role-first"):
            deltas = deltas[1:]
        events: list[JSON] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        events[-1]["choices"][0]["finish_reason"] = finish
        if self.has("two-finish-reasons"):
            events[-2]["choices"][0]["finish_reason"] = finish
        if body.get("stream_options", {}).get("include_usage") and not self.has("no-usage-event"):
            events.append({"choices": events[-1]["choices"] if self.has("usage-beside-choice") else [], "usage": usage})
        if self.has("usage-everywhere"):
            events = [event | {"usage": usage} for event in events]
        if self.has("error-event"):
            events.append({"error": {"message": "engine died"}})
        for number, event in enumerate(events):
            event["id"] = f"chatcmpl-{number if self.has('other-ids') else 1}"
        self.write_stream(events)

    def write_stream(self, events: list[JSON]) -> None:
        field = b"data:" if self.has("data-without-space") else b"data: "
        frames = [field + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events]
        if self.has("stream-not-json"):
            frames[1] = b"data: {'single': 'quotes'}\n\n"
        if self.has("no-empty-line"):
            frames = [frame[:-1] for frame in frames]
        if self.has("latin-1"):
            frames[1] = 'data: {"choices": "é"}\n\n'.encode("latin-1")
        if not self.has("no-done"):
            frames.append(b"data: [DONE]\n\n")
        if self.has("after-done"):
            frames.append(frames[0])
        data = b": a comment\n" + b"".join(frames)
        self.send_response(200)
        kind = "application/json" if self.has("not-event-stream") else "text/event-stream; charset=utf-8"
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # chunks of seven bytes cut lines and characters in two
        cuts = [data[i : i + 7] for i in range(0, len(data), 7)]
        for number, cut in enumerate(cuts):
            if self.has("stream-dies") and number == len(cuts) // 2:
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(cut), cut))
        self.wfile.write(b"0\r\n\r\n")
