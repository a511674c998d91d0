"""The stages that measure and judge: what they read, what another bound leaves alone, and that a claim without a proof fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import pytest

from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.measure import judge, machine, performance, reads_judge, reads_performance, ungated
from release.pipeline import Stage, Task, Work
from release.progress import Line
from release.session import Session
from release.store import Store
from release.types import JSON, Plan, dump
from release.types.performance import Load, Machine, Performance, Point, Run

CELL = "cpu/tiny-qwen3@bf16"
PROOF = "Successfully enabled flag_gems as default ops implementation"
CLAIM = {"library": "flaggems", "env": {"USE_FLAGGEMS": "1"}, "proof": PROOF, "source": "the card"}


def plan(**changes: Any) -> Plan:
    return plan_of(Matrix(), CELL).model_copy(update=changes)


def measured(rate: float) -> Performance:
    counts = {"completed": 10, "failed": 0, "input_tokens": 10, "output_tokens": round(rate)}
    run = Run(seconds=1.0, requests_per_second=10.0, output_tokens_per_second=rate, **counts)
    point = Point(input_tokens=128, output_tokens=64, concurrency=8, requests=10, runs=(run,))
    return Performance(tool="t", version="1", machine=Machine(processor="x", cores=2), prefix_cache="off", points=(point,))


def work(
    tmp_path: Path, reads: JSON, *, log: str = "", mine: Performance | None = None, other: Performance | None = None
) -> Work:
    inputs = {}
    for need, files in (
        ("conformance", {"server.log": log}),
        ("performance", {"performance.json": json.dumps(mine and dump(mine))}),
        ("reference:performance", {"performance.json": json.dumps(other and dump(other))}),
    ):
        inputs[need] = tmp_path / need
        inputs[need].mkdir()
        for name, text in files.items():
            (inputs[need] / name).write_text(text)
    out = tmp_path / "out"
    out.mkdir()
    task = Task(Stage("judge", 1, (), lambda plan, matrix: {}, lambda work: ""), CELL, reads, {}, "a" * 64)
    matrix = Matrix((tmp_path,))
    return Work(task, inputs, out, tmp_path, matrix, Store(tmp_path / "s"), cast(Session, None), cast(Line, None), "b" * 64)


def judged(given: Work) -> list[JSON]:
    judge(given)
    found: list[JSON] = json.loads((given.out / "judged.json").read_bytes())
    return found


def test_a_cell_without_a_load_is_not_measured_and_not_judged(tmp_path: Path) -> None:
    given = work(tmp_path, reads_performance(plan(performance=None), Matrix()))
    assert performance(given).startswith("not measured")
    assert json.loads((given.out / "performance.json").read_bytes()) is None
    (tmp_path / "next").mkdir()
    assert judged(work(tmp_path / "next", reads_judge(plan(performance=None), Matrix()))) == []


def test_a_load_without_a_bound_is_measured_and_gives_no_verdict(tmp_path: Path) -> None:
    assert judged(work(tmp_path, reads_judge(plan(), Matrix()), mine=measured(100))) == []
    assert ungated(plan()) == ("reference:performance",)


def test_another_bound_measures_nothing_again() -> None:
    load = Load(grid=((128, 64),), concurrency=(8,))
    gated = load.model_copy(update={"of_reference": 0.8})
    assert reads_performance(plan(performance=load), Matrix()) == reads_performance(plan(performance=gated), Matrix())
    assert ungated(plan(performance=gated)) == ()


@pytest.mark.parametrize(("rate", "status"), [(90.0, "PASSED"), (10.0, "FAILED")])
def test_the_throughput_is_held_against_the_reference_and_the_last_release(tmp_path: Path, rate: float, status: str) -> None:
    last = json.dumps({"performance": dump(measured(100))})
    (tmp_path / "last.json").write_text(last)
    load = Load(
        grid=((128, 64),), concurrency=(8,), of_reference=0.8, of_last=0.85, last="last.json",
        last_sha256="sha256:" + hashlib.sha256(last.encode()).hexdigest(),
    )  # fmt: skip
    found = judged(work(tmp_path, reads_judge(plan(performance=load), Matrix()), mine=measured(rate), other=measured(100)))
    assert [(verdict["name"], verdict["status"]) for verdict in found] == [
        ("performance/reference", status),
        ("performance/last", status),
    ]


@pytest.mark.parametrize(
    ("log", "status"),
    [
        (f"INFO 11-27 model_runner.py:80] {PROOF}.\nINFO up\n", "PASSED"),
        ("WARNING Falling back to default implementation.\nINFO up\n", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_operators_that_are_claimed_must_be_proven_by_the_server_s_log(tmp_path: Path, log: str, status: str) -> None:
    reads = {**reads_judge(plan(), Matrix()), "operators": CLAIM}
    (verdict,) = judged(work(tmp_path, reads, log=log))
    assert (verdict["name"], verdict["status"]) == ("operators/proof", status)
    assert "flaggems" in verdict["reason"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("ours: rms-norm; native (none of ours is bound here): expert-matmul; in RMSNorm", "PASSED"),
        ("native (excluded): rotary; ours: rms-norm; in RMSNorm", "PASSED"),
        ("native (none of ours: is bound here): expert-matmul; in no layer", "FAILED"),
        ("native (triton is not installed): rms-norm; in RMSNorm; calls are recorded", "FAILED"),
    ],
)
def test_a_line_of_our_plugin_that_names_no_operator_of_the_library_proves_none(tmp_path: Path, line: str, status: str) -> None:
    claim = {**CLAIM, "library": "ours", "proof": "release operators"}
    (verdict,) = judged(
        work(tmp_path, {**reads_judge(plan(), Matrix()), "operators": claim}, log=f"INFO release operators: {line}")
    )
    assert verdict["status"] == status


def test_a_long_line_is_quoted_from_what_proves_on(tmp_path: Path) -> None:
    claim = {**CLAIM, "library": "ours", "proof": "release operators: ours"}
    log = f"(Worker pid=7) INFO 11-27 [plugin.py:80] release operators: ours: rms-norm; native (excluded): {'x, ' * 99}"
    (verdict,) = judged(work(tmp_path, {**reads_judge(plan(), Matrix()), "operators": claim}, log=log))
    assert verdict["measured"].startswith("release operators: ours: rms-norm; native") and verdict["measured"].endswith("…")
    assert len(verdict["measured"]) == 200


def test_a_host_is_told_by_its_processor_and_not_by_its_name() -> None:
    import socket

    found = machine(Path("/proc/cpuinfo").read_text(), None, None)
    assert found.cores > 0 and found.processor
    assert socket.gethostname() not in found.model_dump_json()
