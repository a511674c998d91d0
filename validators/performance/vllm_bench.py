"""vLLM's own benchmark, `vllm bench serve`, run inside the serving container: its command line, and its result file. Read from 0.32."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from release.errors import StageError
from release.types import JSON
from release.types.performance import METRICS, Latency, Load, Objective, Run

TOOL: Final = "vllm bench serve"
RESULT: Final = "/tmp/release-bench.json"
"""Where the result lies in the container: its root is read-only, and /tmp is memory."""


def argv(load: Load, tokens: tuple[int, int], concurrency: int, repeat: int, *, model: str, port: int) -> list[str]:
    """Return the command that puts one load on the server at 127.0.0.1:`port` in its own container, and prints the result file.

    Prompts are random tokens, others for every repeat, so that no cached prefix helps. The completions API is used: no chat template.
    """
    line = ["vllm", "bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions", "--host", "127.0.0.1"]
    line += ["--port", str(port), "--model", model, "--served-model-name", model, "--tokenizer", "/model"]
    line += ["--dataset-name", "random", "--random-input-len", str(tokens[0]), "--random-output-len", str(tokens[1])]
    line += ["--random-range-ratio", "0", "--num-prompts", str(load.requests_at(concurrency)), "--request-rate", "inf"]
    line += ["--max-concurrency", str(concurrency), "--num-warmups", str(load.warmups), "--seed", str(load.seed + repeat)]
    line += ["--ignore-eos", "--disable-tqdm", "--percentile-metrics", ",".join(METRICS), "--metric-percentiles", "50,90,99"]
    if load.slo:
        line += ["--goodput", *(f"{name}:{value:g}" for name, value in _objectives(load.slo))]
    line += ["--save-result", "--result-dir", "/tmp", "--result-filename", RESULT.rpartition("/")[2]]
    quoted = " ".join(_quoted(word) for word in line)
    return ["sh", "-c", f"{quoted} >/tmp/release-bench.log 2>&1 || {{ tail -20 /tmp/release-bench.log; exit 1; }}; cat {RESULT}"]


def read_run(document: Any, load: float | None = None) -> Run:
    """Return a run from a result document; `load` is the host's load average before it. Raises StageError for what does not add up."""
    if not isinstance(document, dict):
        raise StageError(f"the result of {TOOL} is no object")
    try:
        return Run(
            seconds=_number(document, "duration"),
            completed=int(_number(document, "completed")),
            failed=int(_number(document, "failed")),
            input_tokens=int(_number(document, "total_input_tokens")),
            output_tokens=int(_number(document, "total_output_tokens")),
            requests_per_second=_number(document, "request_throughput"),
            output_tokens_per_second=_number(document, "output_throughput"),
            goodput=None if document.get("request_goodput") is None else _number(document, "request_goodput"),
            load=load,
            **{name: _latency(document, name) for name in METRICS},
        )
    except (ValidationError, OverflowError, ValueError) as problem:
        raise StageError(f"the result of {TOOL} does not add up: {_first(problem)}") from problem


def _latency(document: JSON, name: str) -> Latency | None:
    if f"mean_{name}_ms" not in document:
        return None
    return Latency(
        mean=_number(document, f"mean_{name}_ms"),
        **{f"p{rank}": _number(document, f"p{rank}_{name}_ms") for rank in (50, 90, 99)},
    )


def _number(document: JSON, name: str) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StageError(f"the result of {TOOL} has no number {name}")
    return float(value)


def _objectives(slo: Objective) -> list[tuple[str, float]]:
    return [(name, value) for name in ("ttft", "tpot", "e2el") if (value := getattr(slo, name)) is not None]


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _first(problem: Exception) -> str:
    return str(problem.errors(include_url=False)[0]["msg"]) if isinstance(problem, ValidationError) else str(problem)
