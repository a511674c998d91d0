"""A small OpenAI-compatible server that adds two numbers, and misbehaves in one named way at a time."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

JSON = dict[str, Any]
Score = Callable[[str], list[float]]
"""The log-probability of each character of a text."""
MODEL = "tiny-qwq"
CONTEXT = 512
SUM = re.compile(r"([0-9]+)\+([0-9]+)")


class Stub:
    """The server, on a free port of 127.0.0.1, as a context manager. `defects` names what it does wrong: see the code below.

    With `dies_after` it answers so many requests and is gone.
    """

    def __init__(
        self,
        *defects: str,
        stall: float = 30.0,
        dies_after: int | None = None,
        key: str | None = None,
        score: Score | None = None,
    ) -> None:
        self.defects = set(defects)
        self.key = key
        self.score = score or (lambda text: [-0.5] * len(text))
        self.numbers = itertools.count(1)
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


def content_of(turn: JSON) -> str:
    """The text of a message, also where it comes in parts."""
    content = turn.get("content")
    return "".join(part["text"] for part in content) if isinstance(content, list) else str(content or "")


def parted(text: str) -> tuple[str, str]:
    """Thoughts and answer of a text, without the marks around the thoughts."""
    thoughts, mark, said = text.removeprefix("<think>\n").partition("\n</think>\n\n")
    return (thoughts, said) if mark or text.startswith("<think>") else ("", text)


def bad_format(body: JSON) -> bool:
    """Whether a request asks for a format that is none."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {"type": "object"})
    return schema["type"] == "nonsense"


class Quiet(ThreadingHTTPServer):
    """A server that takes a client which hangs up for granted."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
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
        if self.path == "/health" and self.has("health-404"):
            self.send(404, {"detail": "Not Found"})
        elif self.path == "/metrics" and self.has("slots-leak"):
            self.send(200, b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 3.0\n', "text/plain")
        elif self.path == "/metrics" and self.has("slots-free"):
            self.send(200, b'vllm:num_requests_running{engine="0"} 0.0\n', "text/plain")
        elif self.path == "/v1/chat/completions":
            self.send(500 if self.has("get-500") else 405, {"detail": "Method Not Allowed"})
        elif self.path == "/health":
            sick = self.has("sick-after-errors") and self.server_stub.bad_requests
            self.send(503 if sick or self.has("sick") else 200, b"")
        elif self.path == "/v1/models" and self.has("models-not-json"):
            self.send(200, b"<html>", "text/html")
        elif self.path == "/v1/models":
            name = "another" if self.has("models-without-ours") else MODEL
            entry = {"id": name, "object": "model", "max_model_len": CONTEXT}
            if self.has("no-context"):
                del entry["max_model_len"]
            self.send(200, {"object": "list", "data": [entry]})
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
        shown, key = self.headers.get("Authorization"), self.server_stub.key
        if key and shown != f"Bearer {key}" and not (shown and self.has("wrong-key-served")):
            return self.fail(401, f"bad key: {shown}", "AuthenticationError")
        return self.answer_body(data)

    def answer_body(self, data: bytes) -> None:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return self.refuse_json(data)
        if not isinstance(body, dict):
            return self.fail(400, "no object")
        if self.has("500"):
            return self.send(500, b"Internal Server Error", "text/plain")
        if self.refused(body):
            return None
        return self.serve(body)

    def refuse_json(self, data: bytes) -> None:
        if self.has("utf8-500") and b"\xff" in data:
            return self.fail(500, "unexpected", "InternalServerError")
        if self.has("bad-json-500"):
            return self.fail(500, "unexpected", "InternalServerError")
        if self.has("bad-json-plain"):
            return self.send(400, b"bad", "text/plain")
        if self.has("bad-json-no-type"):
            return self.send(400, {"error": {"message": "bad", "code": 400}})
        return self.fail(400, "no JSON")

    def refused(self, body: JSON) -> bool:
        """Answer a bad request, and say whether it was one."""
        reason = self.malformed(body)
        if reason:
            self.fail(400, reason)
            return True
        turns = body.get("messages", [])
        roles = [turn.get("role") for turn in turns]
        size = sum(len(content_of(turn)) for turn in turns) // 2 + len(str(body.get("prompt", ""))) // 2
        if body["model"] != MODEL and not self.has("unknown-model-served"):
            self.fail(400 if self.has("unknown-model-400") else 404, "no such model", "NotFoundError")
        elif size > CONTEXT and self.has("overlong-500"):
            self.fail(500, "boom", "InternalServerError")
        elif size > CONTEXT and self.has("overlong-kills-late"):
            self.fail(500, "the engine is gone", "InternalServerError")
            threading.Thread(target=self.server_stub.die).start()
        elif size > CONTEXT and self.has("overlong-kills"):
            threading.Thread(target=self.server_stub.die).start()
            self.server_stub.stopped.wait(5)
            self.close_connection = True
        elif size > (CONTEXT // 2 if self.has("half-context") else CONTEXT) and not self.has("overlong-accepted"):
            self.fail(400, "too long")
        elif any(not isinstance(role, str) for role in roles) and not self.has("role-accepted"):
            self.fail(400, "role must be a text")
        elif "wizard" in roles and self.has("wizard-500"):
            self.fail(500, "boom", "InternalServerError")
        else:
            return False
        return True

    def malformed(self, body: JSON) -> str:
        """What is wrong with a request by itself."""
        limit, heat = body.get("max_tokens", 1), body.get("temperature", 0)
        numbers = isinstance(heat, int | float)
        choice, names = body.get("tool_choice"), [tool["function"]["name"] for tool in body.get("tools") or []]
        return next(
            (
                reason
                for true, reason in (
                    (limit < 0 and not self.has("negative-accepted"), "max_tokens must not be negative"),
                    (limit > CONTEXT and not self.has("endless"), "max_tokens is beyond the context"),
                    (not numbers and not self.has("hot-accepted"), "temperature must be a number"),
                    (
                        numbers and not heat >= 0 and not self.has("cold-accepted"),
                        "temperature must not be negative",
                    ),
                    (not 0 < body.get("top_p", 1) <= 1, "top_p must be in (0, 1]"),
                    (not isinstance(body.get("messages", []), list), "messages must be a list"),
                    ("messages" not in body and "prompt" not in body and not self.has("no-messages-served"), "no messages"),
                    (abs(body.get("frequency_penalty", 0)) > 2 and not self.has("penalty-accepted"), "penalties are in [-2, 2]"),
                    (bool(names) and choice not in ("none", "auto", None) and self.has("no-tools"), "no tools here"),
                    (bool(names) and choice == "auto" and self.has("no-tools"), "no tools here"),
                    (self.has("no-format") and "response_format" in body, "no response_format here"),
                    (bad_format(body) and not self.has("bad-schema-served"), "no schema"),
                    (
                        isinstance(choice, dict) and choice["function"]["name"] not in names and not self.has("any-tool"),
                        "no such tool",
                    ),
                    (self.has("no-parts") and any(isinstance(t["content"], list) for t in body.get("messages", [])), "no parts"),
                    (self.has("no-n") and body.get("n", 1) > 1, "n must be 1"),
                    (self.has("no-scoring") and ("prompt_logprobs" in body or "echo" in body), "no scoring"),
                )
                if true
            ),
            "",
        )

    def serve(self, body: JSON) -> None:
        stub = self.server_stub
        prompt = content_of(body["messages"][-1]) if body.get("messages") else str(body.get("prompt", ""))
        crowded = bool({"crosstalk", "drops-under-load", "drifts", "seeds-break"} & stub.defects) and self.wait_for_a_crowd()
        if crowded and self.has("drops-under-load"):
            self.close_connection = True
            return None
        if crowded and self.has("seeds-break") and "seed" in body and len(prompt) > CONTEXT // 4:
            return self.fail(500, "the engine is gone", "InternalServerError")
        if crowded and self.has("crosstalk"):
            prompt = "What is 12+30?"
        text = self.words(body, prompt)
        if self.has("greedy-drifts-late"):
            time.sleep(0.0015 * min(stub.requests, 60))
        if self.has("random-text") or (crowded and self.has("drifts")):
            text += f" {stub.requests}"
        tokens, finish = self.cut(body, pieces(text))
        length = sum(len(content_of(turn)) for turn in body.get("messages", [])) or len(prompt)
        length = len(prompt) if self.has("last-turn-only") else length // 2 + 1 if "messages" in body else length
        length += self.has("parts-longer") and isinstance((body.get("messages") or [{}])[-1].get("content"), list)
        usage = {"prompt_tokens": length, "completion_tokens": len(tokens), "total_tokens": length + len(tokens)}
        if self.has("endless") and body.get("max_tokens", 0) > CONTEXT:
            usage = usage | {"completion_tokens": CONTEXT, "total_tokens": length + CONTEXT}
        if self.has("usage-wrong-sum"):
            usage["total_tokens"] += 1
        if self.has("prompt-tokens-drift"):
            usage["prompt_tokens"] += stub.requests
            usage["total_tokens"] += stub.requests
        if self.path == "/v1/completions":
            return self.complete(body, prompt, tokens, finish, usage)
        if body.get("stream"):
            return self.stream(body, tokens, finish, usage)
        return self.chat(body, tokens, finish, usage)

    def words(self, body: JSON, prompt: str) -> str:
        """What the model says to a request."""
        if "response_format" in body and not self.has("format-ignored"):
            if body["response_format"]["type"] == "json_object":
                return '{"sum": 82}'
            return json.dumps({"word": "加é😀", "sum": 83 if self.has("schema-broken") else 82}, ensure_ascii=False)
        if "secret number" in prompt:
            return "0000" if self.has("forgets") else "7481"
        text = reply(prompt)
        if body.get("temperature") and body.get("seed") not in (None, 11) and not self.has("one-text"):
            text += f" #{body['seed']}"
        if self.has("seed-ignored") and body.get("temperature"):
            text += f" {next(self.server_stub.numbers)}"
        if self.has("greedy-drifts"):
            text += f" {next(self.server_stub.numbers)}"
        return text + (" !" if body.get("presence_penalty") else "")

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
        if not self.has("mct-ignored"):
            limit = min(limit, body.get("max_completion_tokens", limit))
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

    def complete(self, body: JSON, prompt: str, tokens: list[str], finish: str, usage: JSON) -> None:
        if self.has("completion-500"):
            return self.fail(500, "boom", "InternalServerError")
        if self.has("completion-404"):
            return self.send(404, {"detail": "Not Found"})
        text = "" if self.has("completion-empty") else "".join(tokens)
        if body.get("stream"):
            said = ["x", *tokens] if self.has("completion-stream-other") else tokens
            ends = [None] * (len(said) - 1) + [finish]
            return self.write_stream(
                [
                    {"id": "cmpl-1", "choices": [{"index": 0, "text": a, "finish_reason": b}]}
                    for a, b in zip(said, ends, strict=True)
                ]
            )
        echo = bool(body.get("echo")) and not self.has("echo-ignored")
        choice: JSON = {"index": 0, "text": prompt * echo + text, "finish_reason": finish, "logprobs": None}
        scores: list[float | None] = list(self.server_stub.score(prompt))
        scores[0] = -0.1 if self.has("first-scored") else None
        if self.has("score-drifts"):
            scores[1] = -float(next(self.server_stub.numbers))
        if self.has("score-positive"):
            scores[1] = 0.5
        if self.has("score-null"):
            scores[1] = None
        if body.get("logprobs") is not None and not self.has("completion-logprobs-missing"):
            own = 0.5 if self.has("completion-logprob-positive") else -0.1
            choice["logprobs"] = {
                "tokens": [*prompt, *tokens] if echo else tokens,
                "token_logprobs": [*(scores if echo else []), *([own] * len(tokens))],
                "text_offset": [],
            }
        if body.get("prompt_logprobs") is not None and not self.has("prompt-logprobs-missing"):
            choice["prompt_logprobs"] = [None if v is None else {"1": {"logprob": v, "rank": 1}} for v in scores]
        answer = {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice], "usage": usage}
        if self.has("nan-scores"):
            return self.send(200, json.dumps(answer).replace("-0.5", "NaN").encode())
        return self.send(200, answer)

    def chat(self, body: JSON, tokens: list[str], finish: str, usage: JSON) -> None:
        content: str | None = "".join(tokens)
        if self.has("empty-content"):
            content = ""
        if self.has("null-content"):
            content = None
        message = {"role": "user" if self.has("wrong-role") else "assistant", "content": content}
        calls = self.calls(body)
        if calls:
            message |= {"content": None, "tool_calls": calls}
            finish = "stop" if self.has("calls-finish-stop") else "tool_calls"
        if self.has("reasons") and content:
            thoughts, said = parted(content)
            message |= {"reasoning_content": thoughts, "content": "<think>" * self.has("reasons-marked") + said}
        choice: JSON = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        if body.get("logprobs") and not self.has("logprobs-missing"):
            choice["logprobs"] = {"content": [self.logprob(token, int(body["top_logprobs"])) for token in tokens]}
        count = 1 if self.has("n-ignored") else body.get("n", 1) + self.has("one-choice-more")
        choices = [choice | {"index": 0 if self.has("same-index") else i} for i in range(count)]
        number = 1 if self.has("same-id") else next(self.server_stub.numbers)
        name = "other" if self.has("other-name") else MODEL
        answer: JSON = {
            "id": f"chatcmpl-{number}", "object": "chat.completion", "model": name, "choices": choices, "usage": usage
        }  # fmt: skip
        if self.has("no-id"):
            del answer["id"]
        if self.has("no-choices"):
            answer["choices"] = []
        if self.has("no-usage"):
            answer["usage"] = None
        if self.has("not-json"):
            return self.send(200, b"<html>busy</html>", "text/html")
        if self.has("nan-logprobs"):
            return self.send(200, json.dumps(answer).replace("-0.1", "-Infinity").encode())
        if self.has("surrogate"):
            return self.send(200, json.dumps(answer).replace("<think>", "\\ud800").encode())
        return self.send(200, answer)

    def calls(self, body: JSON) -> list[JSON]:
        """What tools the model calls."""
        choice = body.get("tool_choice", "auto")
        silent = (
            self.has("no-calls") or (choice == "auto" and self.has("auto-in-words")) or body["messages"][-1]["role"] == "tool"
        )
        if not body.get("tools") or silent or (choice == "none" and not self.has("calls-anyway")):
            return []
        arguments = '{"a": 37, "b": "45"}' if self.has("arguments-unfit") else '{"a": 37, "b": 45'
        function = {
            "name": "subtract" if self.has("other-tool") else "add",
            "arguments": arguments + "}" * (arguments[-1] != "}"),
        }
        if self.has("arguments-torn"):
            function["arguments"] = function["arguments"][:-1]
        call = {"id": "call-1", "type": "function", "function": function}
        return [call, call | {"id": "call-1" if self.has("calls-same-id") else "call-2"}]

    def logprob(self, token: str, top: int) -> JSON:
        value = 0.5 if self.has("logprob-positive") else -0.1
        first = "x" if self.has("chosen-not-on-top") else token
        high = 3.05 if self.has("chosen-below-top") else 0
        others = [{"token": f"other{i}", "logprob": high - 3.0 - i} for i in range(0 if self.has("top-missing") else top - 1)]
        return {"token": token, "logprob": value, "top_logprobs": [{"token": first, "logprob": value}, *others]}

    def stream(self, body: JSON, tokens: list[str], finish: str, usage: JSON) -> None:
        if self.has("stream-other-text"):
            tokens = [*tokens[:-1], "0"]
        deltas: list[JSON] = [{"role": "assistant", "content": ""}, *({"content": token} for token in tokens)]
        if self.has("no-role-first"):
            deltas = deltas[1:]
        deltas = self.special(body, deltas)
        if self.has("stop-leaks") and body.get("stop"):
            deltas.append({"content": body["stop"][0]})
        events: list[JSON] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        if body.get("logprobs"):
            found = [
                self.logprob("x" if self.has("stream-other-token") else token, int(body["top_logprobs"])) for token in tokens
            ]
            events[-1]["choices"][0]["logprobs"] = {"content": found}
        events[-1]["choices"][0]["finish_reason"] = finish
        if self.has("two-finish-reasons"):
            events[-2]["choices"][0]["finish_reason"] = finish
        if (body.get("stream_options") or {}).get("include_usage") and not self.has("no-usage-event"):
            events.append({"choices": events[-1]["choices"] if self.has("usage-beside-choice") else [], "usage": usage})
        if self.has("usage-everywhere"):
            events = [event | {"usage": usage} for event in events]
        if self.has("bare-event") and not body.get("stream_options"):
            events.insert(1, {"choices": []})
        if self.has("error-event"):
            events.append({"error": {"message": "engine died"}})
        for number, event in enumerate(events):
            event["id"] = f"chatcmpl-{number if self.has('other-ids') else 1}"
        self.write_stream(events)

    def special(self, body: JSON, deltas: list[JSON]) -> list[JSON]:
        """The deltas of thoughts and of calls, where there are any."""
        if self.has("reasons"):
            thoughts, said = parted("".join(delta.get("content", "") for delta in deltas))
            said = said.replace("82", "83") if self.has("reasons-otherwise") else said
            deltas = [deltas[0], *({"reasoning_content": x} for x in pieces(thoughts)), *({"content": x} for x in pieces(said))]
        for call in self.calls(body):
            function, index = call["function"], int(call["id"][-1]) - 1
            once = {"index": index, "id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": ""}}
            halves = [
                {"index": index, "function": {"arguments": half}}
                for half in (function["arguments"][:7], function["arguments"][7:])
            ]
            if self.has("names-repeated"):
                halves[0]["function"]["name"] = "add"
            deltas = [delta for delta in deltas if not delta.get("content")] + [{"tool_calls": [x]} for x in (once, *halves)]
        return deltas

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
