"""What other tools measured, in our own schema: evalscope perf and AISBench. Field names read from evalscope 1.14.1 and AISBench 3.1."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from release.errors import StageError
from release.types import JSON
from release.types.performance import Latency, Metric, Point, Run
from release.validators.foreign.evaluation import array, document, pick

LATENCIES: Final[dict[Metric, tuple[str, str, float]]] = {
    "ttft": ("Avg TTFT (ms)", "TTFT (ms)", 1.0),
    "tpot": ("Avg TPOT (ms)", "TPOT (ms)", 1.0),
    "itl": ("Avg ITL (ms)", "ITL (ms)", 1.0),
    "e2el": ("Avg Latency (s)", "Latency (s)", 1000.0),
}
"""Of evalscope: the average's name in benchmark_summary.json, the column in benchmark_percentile.json, and what makes it ms."""
STAGES: Final[dict[Metric, str]] = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
"""The rows of AISBench's table."""
FIGURE: Final = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(?:ms|s|token/s|req/s)?\s*")
LARGEST_TABLE: Final = 1 << 20


def read_evalscope_perf(folder: Path) -> Point:
    """Return what one run of `evalscope perf` measured (benchmark_summary.json, benchmark_percentile.json). Raises StageError."""
    path = folder / "benchmark_summary.json"
    summary = document(path)
    ranks = {str(pick(row, "Percentiles", where=path.name)): row for row in array(folder / "benchmark_percentile.json")}
    where = str(path)

    def number(name: str) -> float:
        return _figure(pick(summary, name, where=where), f"{where}: {name}")

    completed, seconds = int(number("Success Requests")), number("Test Duration (s)")
    given, made = number("Avg Input Tokens"), number("Avg Output Tokens")
    latencies: dict[str, Latency | None] = {}
    for metric, (average, column, scale) in LATENCIES.items():
        if average in summary:
            found = {f"p{rank}": scale * _figure(pick(ranks, f"{rank}%", column, where=where), where) for rank in (50, 90, 99)}
            latencies[metric] = _latency(scale * number(average), found, where)
    return _point(
        where,
        tokens=(given, made),
        concurrency=int(number("Concurrency")),
        requests=int(number("Total Requests")),
        run={
            **{"seconds": seconds, "completed": completed, "failed": int(number("Failed Requests"))},
            **{"input_tokens": round(given * completed), "output_tokens": round(made * completed)},
            "requests_per_second": number("Req Throughput (req/s)"),
            "output_tokens_per_second": number("Output Throughput (tok/s)"),
            **latencies,
        },
    )


def read_aisbench(folder: Path, dataset: str) -> Point:
    """Return what AISBench measured on a data set (DATASET.csv: a row a latency; DATASET.json: the totals). Raises StageError."""
    path = folder / f"{dataset}.json"
    totals = document(path)
    where = str(path)

    def total(name: str) -> float:
        return _figure(pick(totals, name, "total", where=where), f"{where}: {name}")

    rows = _table(folder / f"{dataset}.csv")
    latencies: dict[str, Latency | None] = {}
    for metric, name in STAGES.items():
        if row := rows.get(name):
            ranks = {"p50": row["Median"], **{f"p{rank}": row[f"P{rank}"] for rank in (90, 99) if row.get(f"P{rank}")}}
            figures = {rank: _figure(value, f"{where}: {name}") for rank, value in ranks.items()}
            latencies[metric] = _latency(_figure(row["Average"], f"{where}: {name}"), figures, where)
    completed, given, made = int(total("Success Requests")), total("Total Input Tokens"), total("Total Output Tokens")
    return _point(
        where,
        tokens=(given / max(completed, 1), made / max(completed, 1)),
        concurrency=int(total("Max Concurrency")),
        requests=int(total("Total Requests")),
        run={
            **{"seconds": total("Benchmark Duration") / 1000, "completed": completed, "failed": int(total("Failed Requests"))},
            **{"input_tokens": int(given), "output_tokens": int(made)},
            "requests_per_second": total("Request Throughput"),
            "output_tokens_per_second": total("Output Token Throughput"),
            **latencies,
        },
    )


def _table(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of AISBench's CSV of the stage `total`, by what they are about."""
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise StageError(f"has more than {LARGEST_TABLE} bytes", where=str(path))
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise StageError(f"cannot be read: {problem}", where=str(path)) from problem
    rows = {row.get("Performance Parameters", ""): row for row in found if row.get("Stage") == "total"}
    for name, row in rows.items():
        if not row.get("Average") or not row.get("Median"):
            raise StageError(f"{name!r:.40} has no Average and Median", where=str(path))
    return rows


def _point(where: str, *, tokens: tuple[float, float], concurrency: int, requests: int, run: JSON) -> Point:
    try:
        return Point(
            input_tokens=round(tokens[0]),
            output_tokens=round(tokens[1]),
            concurrency=concurrency,
            requests=requests,
            runs=(Run(**run),),
        )
    except (ValidationError, OverflowError, ValueError) as problem:
        said = problem.errors(include_url=False)[0]["msg"] if isinstance(problem, ValidationError) else problem
        raise StageError(f"does not add up: {said}", where=where) from problem


def _latency(mean: float, ranks: dict[str, float], where: str) -> Latency:
    try:
        return Latency(mean=mean, **ranks)
    except ValidationError as problem:
        raise StageError(f"does not add up: {problem.errors(include_url=False)[0]['msg']}", where=where) from problem


def _figure(value: object, where: str) -> float:
    """Return a figure, with or without its unit. Raises StageError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and len(value) < 100 and (match := FIGURE.fullmatch(value)):
        return float(match[1])
    raise StageError(f"{value!r:.40} is no figure", where=where)
