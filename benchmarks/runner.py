"""How many questions a second our runner asks, beside lm-eval, of the same server on this machine that answers at once.

    python benchmarks/runner.py --lm-eval VENV/bin/lm_eval [--pairs 5] [--questions 4000] [--in-flight 32] [--memory 20000]

The named peer is EleutherAI's lm-eval with its `local-chat-completions` client, in an environment of its own. The two take turns, each
asks the same questions with the same bound on requests in flight, and both are graded: 9 of 10 answers are right, which each has to
find. Two figures each: end to end (a process from start to end), and the time between the first and the last request as the server
saw them, start and grading of the peer left out. At last ours alone asks many questions with long answers, for its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

GOAL, MEMORY_GOAL = 1.0, 300
MODEL = "adder"
SUM = re.compile(rb"What is ([0-9]+)\+([0-9]+)\?")
LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)
PROGRAM = """
import json, sys
from pathlib import Path
from typing import ClassVar
from release.types import Accuracy
from release.validators.accuracy import evaluate
from release.validators.endpoint import Endpoint
url, model, spec, questions, samples = sys.argv[1:]
summary = evaluate(Endpoint(url, model), Accuracy.model_validate_json(spec), Path(questions), Path(samples), progress=lambda *_: None)
print(json.dumps({"share": summary.correct / summary.n, "failed": summary.failed}))
"""
TASK = """
task: additions
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 64, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


class Adder(asyncio.Protocol):
    """A server that adds two numbers at once, and wrongly where the first one ends with a 3."""

    seen: ClassVar[list[float]] = []
    padding = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hear that somebody is there."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self.buffer, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            request, self.buffer = self.buffer[:whole], self.buffer[whole:]
            self.answer(request)

    def answer(self, request: bytes) -> None:
        """Answer one request."""
        if request.startswith(b"GET /v1/models"):
            body = json.dumps({"data": [{"id": MODEL, "max_model_len": 4096}]})
        elif request.startswith(b"GET"):
            body = "{}"
        else:
            self.seen.append(time.monotonic())
            match = SUM.search(request)
            assert match
            text = self.padding + str(int(match[1]) + int(match[2]) + match[1].endswith(b"3"))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
            body = json.dumps({"id": "1", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n"
        self.transport.write((head + body).encode())


def serve(pipe: Connection, padding: int) -> None:
    """Run the server, tell its port, and tell the times of the requests each time somebody asks by the pipe."""

    async def run() -> None:
        Adder.padding = "<think>" + "x" * padding + "</think>" if padding else ""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Adder, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv):
            pipe.send((len(Adder.seen), Adder.seen[-1] - Adder.seen[0] if Adder.seen else 0.0))
            Adder.seen.clear()

    asyncio.run(run())


class Server:
    """The server in a process of its own."""

    def __init__(self, padding: int = 0) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, padding), daemon=True)
        self.process.start()
        self.url = f"http://127.0.0.1:{self.pipe.recv()}"

    def take(self) -> tuple[int, float]:
        """Return how many questions came since the last call, and the seconds between the first and the last."""
        self.pipe.send(True)
        count, seconds = self.pipe.recv()
        return int(count), float(seconds)

    def stop(self) -> None:
        """End the server."""
        self.pipe.send(False)
        self.process.join(10)


def write_questions(path: Path, n: int) -> str:
    """Write n questions and return their digest."""
    with path.open("w") as file:
        for i in range(n):
            file.write(json.dumps({"id": f"q{i:06}", "prompt": f"What is {i}+7?", "answer": str(i + 7)}) + "\n")
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def timed(argv: list[str], log: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Run a process to its end and return its seconds and the largest memory it had, in MB."""
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environ})
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{argv[0]} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def ours(server: Server, folder: Path, questions: Path, digest: str, in_flight: int) -> dict[str, float]:
    """Ask the questions with our runner."""
    spec = {
        "questions": "q.jsonl", "sha256": digest, "grader": "final-integer", "margin": 0.5, "max-tokens": 64, "concurrency": in_flight
    }  # fmt: skip
    samples = Path(tempfile.mkdtemp(dir=folder)) / "samples.jsonl"
    log = folder / "ours.log"
    argv = [sys.executable, "-c", PROGRAM, server.url, MODEL, json.dumps(spec), str(questions), str(samples)]
    wall, memory = timed(argv, log, {})
    said = json.loads(log.read_text().splitlines()[-1])
    return figures(server, wall, memory, said["share"])


def theirs(server: Server, folder: Path, questions: Path, program: str, in_flight: int) -> dict[str, float]:
    """Ask the questions with lm-eval."""
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "additions.yaml").write_text(TASK % questions)
    out = Path(tempfile.mkdtemp(dir=folder))
    options = f"model={MODEL},base_url={server.url}/v1/chat/completions,num_concurrent={in_flight},tokenizer_backend=None"
    argv = [program, "run", "--model", "local-chat-completions", "--model_args", options, "--apply_chat_template"]
    argv += ["--tasks", "additions", "--include_path", str(folder / "tasks"), "--output_path", str(out), "--log_samples"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "none"}
    wall, memory = timed(argv, folder / "theirs.log", offline)
    results = json.loads(next(out.rglob("results_*.json")).read_text())
    return figures(server, wall, memory, results["results"]["additions"]["exact_match,none"])


def figures(server: Server, wall: float, memory: float, share: float) -> dict[str, float]:
    """Put one run's figures together."""
    count, seconds = server.take()
    return {"end-to-end": count / wall, "requests": (count - 1) / seconds, "memory-mb": memory, "share": share, "asked": count}


def main() -> None:
    """Measure, and print what came out as JSON."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--lm-eval", required=True)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--questions", type=int, default=4000)
    options.add_argument("--in-flight", type=int, default=32)
    options.add_argument("--memory", type=int, default=20_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = folder / "questions.jsonl"
        digest = write_questions(questions, given.questions)
        server = Server()
        pairs = []
        for number in range(given.pairs):
            turns = {
                "ours": lambda: ours(server, folder, questions, digest, given.in_flight),
                "lm-eval": lambda: theirs(server, folder, questions, given.lm_eval, given.in_flight),
            }
            order = list(turns) if number % 2 else list(reversed(turns))
            pair = {side: turns[side]() for side in order}
            assert pair["ours"]["share"] == pair["lm-eval"]["share"] and pair["ours"]["asked"] == given.questions
            pairs.append(pair)
        server.stop()
        many = folder / "many.jsonl"
        digest = write_questions(many, given.memory)
        server = Server(padding=20_000)
        memory = ours(server, folder, many, digest, given.in_flight)
        server.stop()
    result: dict[str, object] = {"questions": given.questions, "in-flight": given.in_flight, "pairs": given.pairs}
    for key in ("end-to-end", "requests"):
        one, two = (statistics.median(pair[side][key] for pair in pairs) for side in ("ours", "lm-eval"))
        ratio = statistics.median(pair["ours"][key] / pair["lm-eval"][key] for pair in pairs)
        result[f"{key}-per-second"] = {"ours": round(one), "lm-eval": round(two), "ratio": round(ratio, 2), "goal": GOAL}
    result["share"] = pairs[0]["ours"]["share"]
    result["memory-mb"] = {
        "ours": round(statistics.median(pair["ours"]["memory-mb"] for pair in pairs)),
        "lm-eval": round(statistics.median(pair["lm-eval"]["memory-mb"] for pair in pairs)),
        f"ours, {given.memory} answers of 20 kB": round(memory["memory-mb"]),
        "goal": MEMORY_GOAL,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
