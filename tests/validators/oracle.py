"""A small language model behind an OpenAI-compatible server: its probabilities are known, and it is broken in one named way at a time."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final

import numpy as np
from stub import Quiet

JSON = dict[str, Any]
MODEL: Final = "oracle"
ALPHABET: Final = "#abcdefghijklmnopqrstuvwxyz <>\n+"
"""The token with the id i is the character at i; 0 ends an answer."""
REFUSED: Final = {"detail": "no"}


class Oracle:
    """The server, on a free port of 127.0.0.1, as a context manager.

    `noise` is added to every logit (its standard deviation), `context` is what it serves. `defects` names what it does wrong: see
    the code. `stall` is how many seconds a stalled answer takes.
    """

    def __init__(self, *defects: str, noise: float = 0.0, context: int = 200, stall: float = 20.0) -> None:
        self.defects = set(defects)
        self.context, self.stall = context, stall
        self.requests: list[JSON] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        drawn = np.random.default_rng(7)
        size = len(ALPHABET)
        self.table = drawn.normal(0, 2.5, (size, size)) + np.random.default_rng(8).normal(0, noise or 1e-9, (size, size))
        self.far = drawn.normal(0, 0.8, (size, size))
        self.table[:, 0] += 1.0
        alphabet = ALPHABET.translate(str.maketrans("ab", "ba")) if "tokenizer" in defects else ALPHABET
        self.ids = {character: number for number, character in enumerate(alphabet)}
        oracle = self

        class Bound(Handler):
            owner = oracle

        self.server = Quiet(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.server.block_on_close = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Oracle:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def logprobs(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """The log-probabilities of what follows `tokens`."""
        logits = self.table[tokens[-1]] + self.far[tokens[-2] if len(tokens) > 1 else 0]
        return np.asarray(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())

    def rendered(self, body: JSON) -> list[int]:
        """The tokens of a prompt."""
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            return list(prompt)
        if prompt is None:
            newline = "" if "template" in self.defects else "\n"
            prompt = "".join(f"<{turn['role']}>{turn['content']}\n" for turn in body["messages"]) + f"<assistant>{newline}"
        return [self.ids[character] for character in prompt]

    def answer(self, tokens: list[int], body: JSON) -> tuple[list[int], str]:
        """The tokens of an answer and why it ended."""
        rng = np.random.default_rng(body.get("seed"))
        said: list[int] = []
        while len(said) < body["max_tokens"]:
            values = self.logprobs([*tokens, *said])
            if "loops" in self.defects:
                values[0] = -50.0
            if not body.get("temperature"):
                token = int(values.argmax())
            else:
                values = values / (0.3 if "cold" in self.defects else body["temperature"])
                token = int((values + rng.gumbel(size=len(values))).argmax())
            said.append(token)
            if token == 0:
                return said, "stop"
        return said, "length"

    def scored(self, tokens: list[int], top: int) -> list[JSON | None]:
        """What vLLM shows as prompt_logprobs."""
        shown: list[JSON | None] = [None]
        for place in range(1, len(tokens)):
            values = self.logprobs(tokens[:place])
            order = np.argsort(-values, kind="stable")
            rank = {int(token): number for number, token in enumerate(order, 1)}
            kept = {tokens[place], *map(int, order[:top])}
            shown.append({str(one): {"logprob": float(values[one]), "rank": rank[one], "decoded_token": "?"} for one in kept})
        last = shown[-1]
        assert last is not None
        own = last[str(tokens[-1])]
        if "nan" in self.defects:
            own["logprob"] = float("nan")
        if "null" in self.defects:
            own["logprob"] = None
        if "positive" in self.defects:
            own["logprob"] = 0.5
        if "unscored" in self.defects:
            del last[str(tokens[-1])]
        return shown[:-1] if "short" in self.defects else shown


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: Oracle

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        owner = self.owner
        if self.path == "/v1/models":
            entry = {"id": MODEL} if "no-context" in owner.defects else {"id": MODEL, "max_model_len": owner.context}
            return self.send(404, REFUSED) if "no-models" in owner.defects else self.send(200, {"data": [entry]})
        return self.send(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
            owner.requests.append(body)
        scoring = "prompt_logprobs" in body
        if "stalls" in owner.defects or (scoring and "stalls-scoring" in owner.defects):
            owner.stopped.wait(owner.stall)
            self.close_connection = True
            return None
        if "500" in owner.defects or (scoring and "scoring-500" in owner.defects):
            return self.send(500, {"error": {"message": "boom"}})
        if "strict" in owner.defects and "return_token_ids" in body:
            return self.send(400, {"error": {"message": "unknown field return_token_ids"}})
        tokens = owner.rendered(body)
        if len(tokens) + body["max_tokens"] > owner.context:
            return self.send(400, {"error": {"message": f"at most {owner.context} tokens"}})
        said, finish = owner.answer(tokens, body)
        return self.reply(body, tokens, said, finish)

    def reply(self, body: JSON, tokens: list[int], said: list[int], finish: str) -> None:
        owner = self.owner
        text = "".join(ALPHABET[one] for one in said if one)
        choice: JSON = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        answer: JSON = {"choices": [choice], "usage": {"prompt_tokens": len(tokens), "completion_tokens": len(said)}}
        if "no-usage" in owner.defects:
            del answer["usage"]
        if "usage-lies" in owner.defects:
            answer["usage"]["prompt_tokens"] += 1
        if body.get("return_token_ids") and "no-ids" not in owner.defects:
            choice["token_ids"] = said
            (answer if "messages" in body else choice)["prompt_token_ids"] = tokens
        if "prompt_logprobs" in body and "no-scores" not in owner.defects:
            choice["prompt_logprobs"] = owner.scored(tokens, body["prompt_logprobs"])
        if "slow" in owner.defects:
            time.sleep(0.05)
        self.send(200, answer)
