"""What tools measured is read strictly, kept in one schema, and compared only with what it can be compared with."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from release.errors import StageError
from release.types import Status
from release.types.performance import Load, Machine, Objective, Performance, Point, Run
from release.validators.performance import argv, gate, read_aisbench, read_evalscope_perf, read_run

LATENCIES = {
    f"{kind}_{metric}_ms": value
    for metric, scale in (("ttft", 40.0), ("tpot", 3.0), ("itl", 3.0), ("e2el", 230.0))
    for kind, value in (
        ("mean", scale),
        ("median", scale),
        ("std", 1.0),
        ("p50", scale),
        ("p90", scale * 1.5),
        ("p99", scale * 2),
    )
}
BENCH: dict[str, Any] = {
    **{"date": "20261127-184200", "backend": "openai", "model_id": "tiny-qwen3", "num_prompts": 100, "max_concurrency": 8},
    **{"duration": 2.5, "completed": 100, "failed": 0, "total_input_tokens": 12800, "total_output_tokens": 6400},
    **{"request_throughput": 40.0, "request_goodput": 39.2, "output_throughput": 2560.0, "total_token_throughput": 7680.0},
    **LATENCIES,
}
"""The shape of vLLM 0.32's result file, without what --save-detailed adds."""


def test_a_result_of_vllm_s_benchmark_becomes_a_run() -> None:
    run = read_run(BENCH, 1.5)
    assert (run.completed, run.failed, run.output_tokens_per_second, run.goodput, run.load) == (100, 0, 2560.0, 39.2, 1.5)
    assert run.ttft is not None and (run.ttft.p50, run.ttft.p90, run.ttft.p99) == (40.0, 60.0, 80.0)
    assert read_run({name: value for name, value in BENCH.items() if not name.endswith("_itl_ms")}).itl is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"duration": 0}, "greater than 0"),
        ({"duration": "2.5"}, "no number duration"),
        ({"duration": True}, "no number duration"),
        (
            {"completed": 0, "failed": 0, "total_output_tokens": 0, "output_throughput": 0.0, "request_throughput": 0.0},
            "no request",
        ),
        ({"output_throughput": 9999.0}, "a second over"),
        ({"request_goodput": 77.0}, "goodput is greater"),
        ({"p90_ttft_ms": 1.0}, "percentiles fall"),
        ({"p99_e2el_ms": float("nan")}, "does not add up|finite|greater"),
        ({"completed": float("inf")}, "does not add up"),
        ({"mean_tpot_ms": -1.0}, "greater than or equal"),
    ],
)
def test_a_result_that_does_not_add_up_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        read_run({**BENCH, **change})


@pytest.mark.parametrize("document", [None, [], "x", {}, {"duration": 1.0}])
def test_what_is_no_result_is_refused(document: object) -> None:
    with pytest.raises(StageError):
        read_run(document)


def test_the_command_line_puts_another_random_load_on_for_every_repeat() -> None:
    load = Load(grid=((128, 64),), concurrency=(8,), slo=Objective(ttft=2000, tpot=100))
    first, second = (argv(load, (128, 64), 8, repeat, model="it's", port=8000)[2] for repeat in (0, 1))
    assert "--random-input-len 128" in first.replace("'", "") and "--num-prompts 100" in first.replace("'", "")
    assert "'--goodput' 'ttft:2000' 'tpot:100'" in first
    assert "'it'\\''s'" in first
    assert first.replace("'--seed' '0'", "'--seed' '1'") == second
    assert load.requests_at(8) == 100 and load.requests_at(64) == 320


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": ()},
        {"grid": ((0, 1),)},
        {"concurrency": (0,)},
        {"of_last": 0.97},
        {"last": "x.json", "last_sha256": "sha256:" + "0" * 64},
        {"slo": {}},
    ],
)
def test_a_load_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Load.model_validate({"grid": ((1, 1),), "concurrency": (1,), **wrong})


def evalscope(folder: Path, **changes: Any) -> Path:
    """Write what `evalscope perf` 1.14.1 leaves of a run."""
    summary = {
        **{"Test Duration (s)": 10.0, "Concurrency": 4, "Request Rate (req/s)": -1, "Total Requests": 50, "Success Requests": 50},
        **{"Failed Requests": 0, "Req Throughput (req/s)": 5.0, "Avg Latency (s)": 0.8, "Avg Input Tokens": 128.0},
        **{"Output Throughput (tok/s)": 320.0, "Total Throughput (tok/s)": 960.0, "Avg TTFT (ms)": 50.0, "Avg TPOT (ms)": 12.0},
        **{"Avg ITL (ms)": 12.0, "Avg Output Tokens": 64.0},
    }
    rows = [
        {
            "Percentiles": rank,
            "TTFT (ms)": 40.0 + at,
            "ITL (ms)": 11.0 + at,
            "TPOT (ms)": 11.0 + at,
            "Latency (s)": 0.7 + at / 100,
        }
        for at, rank in enumerate(["min", "50%", "90%", "99%", "max"])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark_summary.json").write_text(json.dumps({**summary, **changes}))
    (folder / "benchmark_percentile.json").write_text(json.dumps(rows))
    return folder


def test_a_run_of_evalscope_becomes_a_point(tmp_path: Path) -> None:
    point = read_evalscope_perf(evalscope(tmp_path))
    (run,) = point.runs
    assert (point.name, point.requests, run.output_tokens) == ("128+64 × 4", 50, 3200)
    assert run.e2el is not None and run.e2el.p50 == pytest.approx(710.0) and run.e2el.mean == pytest.approx(800.0)
    assert run.ttft is not None and (run.ttft.p50, run.ttft.p90, run.ttft.p99) == (41.0, 42.0, 43.0)


def aisbench(folder: Path, unit: str = " ms", **changes: Any) -> Path:
    """Write what AISBench 3.1 leaves of a data set."""
    totals = {
        **{"Benchmark Duration": f"10000.0{unit}", "Total Requests": 50, "Failed Requests": 0, "Success Requests": 50},
        **{"Concurrency": 3.9, "Max Concurrency": 4, "Request Throughput": "5.0 req/s", "Total Input Tokens": 6400},
        **{"Total Output Tokens": 3200, "Output Token Throughput": "320.0 token/s"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gsm8k.json").write_text(json.dumps({name: {"total": value} for name, value in {**totals, **changes}.items()}))
    heads = ["Performance Parameters", "Stage", "Average", "Min", "Max", "Median", "P75", "P90", "P99", "N"]
    with (folder / "gsm8k.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(heads)
        for name, at in (("E2EL", 800), ("TTFT", 50), ("TPOT", 12), ("ITL", 12)):
            rows.writerow([name, "total", *(f"{at + step}.0 ms" for step in (2, 0, 9, 1, 3, 4, 5)), 50])
        rows.writerow(["InputTokens", "total", *["128.0"] * 7, 50])
    return folder


def test_a_run_of_aisbench_becomes_a_point(tmp_path: Path) -> None:
    point = read_aisbench(aisbench(tmp_path), "gsm8k")
    (run,) = point.runs
    assert (point.name, run.seconds, run.output_tokens) == ("128+64 × 4", 10.0, 3200)
    assert run.e2el is not None and (run.e2el.mean, run.e2el.p50, run.e2el.p90, run.e2el.p99) == (802.0, 801.0, 804.0, 805.0)


@pytest.mark.parametrize(
    "wrong", [{"Total Requests": "many"}, {"Success Requests": {}}, {"Output Token Throughput": "1 token/s"}]
)
def test_a_broken_file_of_aisbench_is_refused_with_its_place(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(StageError, match=r"gsm8k\.json"):
        read_aisbench(aisbench(tmp_path, **wrong), "gsm8k")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Success Requests": 1}', '{"Success Requests": NaN}', "[" * 5000])
def test_a_broken_file_of_evalscope_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    evalscope(tmp_path)
    (tmp_path / "benchmark_summary.json").write_text(text)
    with pytest.raises(StageError, match=r"benchmark_summary\.json"):
        read_evalscope_perf(tmp_path)


def run(rate: float, failed: int = 0) -> Run:
    return Run(
        seconds=10.0,
        completed=100 - failed,
        failed=failed,
        input_tokens=12800,
        output_tokens=round(rate * 10),
        requests_per_second=(100 - failed) / 10,
        output_tokens_per_second=rate,
    )


def measured(*rates: float, failed: int = 0, **changes: Any) -> Performance:
    point = Point(
        input_tokens=128, output_tokens=64, concurrency=8, requests=100, runs=tuple(run(rate, failed) for rate in rates)
    )
    facts = {"tool": "t", "version": "1", "machine": Machine(processor="x", cores=2), "prefix_cache": "off", "points": (point,)}
    return Performance(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mine", "theirs", "finding", "status"),
    [
        ((990, 1000, 1010), (1000, 1005, 1010), "CONSISTENT", Status.PASSED),
        ((500, 510, 520), (1000, 1005, 1010), "REGRESSED", Status.FAILED),
        ((940, 990, 1030), (1000, 1005, 1010), "INCONCLUSIVE", Status.INCONCLUSIVE),
        ((0.0, 0.0), (0.0, 0.0), "CONSISTENT", Status.PASSED),
    ],
)
def test_a_gate_passes_or_fails_only_what_no_repeat_contradicts(
    mine: tuple[float, ...], theirs: tuple[float, ...], finding: str, status: Status
) -> None:
    verdict = gate(measured(*mine), measured(*theirs), 0.97, name="last", whose="the last release")
    assert (verdict.figures["finding"], verdict.status, verdict.name) == (finding, status, "performance/last")


def test_requests_that_failed_fail_the_gate_however_fast_the_others_were() -> None:
    verdict = gate(measured(2000, failed=3), measured(1000), 0.8, name="reference", whose="native")
    assert verdict.status is Status.FAILED and "3 requests failed" in verdict.reason


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (None, "no measurement"),
        (measured(1000, machine=Machine(processor="y", cores=2)), "the machine differs"),
        (measured(1000, tool="u"), "the tool differs"),
        (measured(1000, prefix_cache="on"), "the prefix cache differs"),
        (
            measured(1000, points=(Point(input_tokens=9, output_tokens=9, concurrency=1, requests=9, runs=(run(9.0),)),)),
            "no load in common",
        ),
    ],
)
def test_what_cannot_be_compared_is_unverifiable_and_says_why(other: Performance | None, why: str) -> None:
    verdict = gate(measured(1000), other, 0.97, name="last", whose="the last release")
    assert (verdict.figures["finding"], verdict.status) == ("UNVERIFIABLE", Status.INCONCLUSIVE)
    assert why in verdict.reason


@given(
    st.lists(st.floats(1, 1e5), min_size=1, max_size=5), st.lists(st.floats(1, 1e5), min_size=1, max_size=5), st.floats(0.1, 2)
)
@settings(max_examples=80)
def test_a_pass_means_that_every_pair_of_repeats_keeps_the_bound(mine: list[float], theirs: list[float], least: float) -> None:
    mine, theirs = [round(rate) for rate in mine], [round(rate) for rate in theirs]
    verdict = gate(measured(*mine), measured(*theirs), least, name="last", whose="x")
    ratios = [one / two for one in mine for two in theirs]
    if verdict.status is Status.PASSED:
        assert min(ratios) >= least - 1e-3
    if verdict.status is Status.FAILED:
        assert max(ratios) < least + 1e-3
