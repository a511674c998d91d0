"""Further question sets: asked once each, judged each, and one decision over all of them that never counts what was not asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from folders import write
from pydantic import ValidationError

from release.benchmarks import MAIN, benchmarks, reads_benchmarks, reads_settle, settle_sets, unsettled
from release.house import House
from release.matrix.check import plan_of
from release.matrix.load import OURS, Matrix
from release.pipeline import Stage, Task, Work
from release.progress import Line
from release.session import Session
from release.store import Store
from release.types import JSON, Evaluation, Plan, QuestionSet, tuples
from release.validators.foreign.evaluation import finished, keep
from release.validators.samples import Sample

CELL, REFERENCE = "cpu/tiny-qwen3@bf16", "cpu/tiny-qwen3@fp32"
TOOL: JSON = {"name": "gsm8k", "runner": "evalscope", "dataset": "gsm8k", "path": "gsm8k", "margin": 0.02, "max-tokens": 16}


def plan(cell: str = CELL, **changes: Any) -> Plan:
    return plan_of(Matrix(), cell).model_copy(update=changes)


def work(tmp_path: Path, reads: JSON, inputs: dict[str, Path]) -> Work:
    out = tmp_path / "out"
    out.mkdir()
    task = Task(Stage("settle", 1, (), lambda plan, matrix: {}, lambda work: ""), CELL, reads, {}, "a" * 64)
    return Work(task, inputs, out, tmp_path, Matrix(), Store(tmp_path / "s"), cast(Session, None), cast(Line, None), "b" * 64)


def side(folder: Path, right: int, n: int) -> Path:
    """Write the samples of one side with their fingerprint."""
    folder.mkdir(parents=True)
    samples = [
        Sample(
            question_id=f"q{number}",
            prompt_sha256="0" * 64,
            answer="1",
            expected="1",
            correct=number < right,
            finish_reason="stop",
            prompt_tokens=5,
            completion_tokens=5,
            latency_s=0.1,
            text="1",
            error=None,
        )
        for number in range(n)
    ]
    told = {"questions": "sha256:" + "1" * 64, "n": n, "repeats": 1, "grader": "exact", "prompt": "p", "temperature": 0.0}
    keep(finished(samples, {**told, "max-tokens": 16, "harness": "h 1", "model": "m"}, str(folder)), folder / "samples.jsonl")
    return folder


def settled(tmp_path: Path, candidate: int, reference: int, further: tuple[int, int] | None, sets: tuple[Any, ...]) -> JSON:
    inputs = {
        "accuracy": side(tmp_path / "accuracy", candidate, 1000),
        "reference:accuracy": side(tmp_path / "theirs", reference, 1000),
    }
    for need, right in zip(("benchmarks", "reference:benchmarks"), further or (), strict=False):
        folder = tmp_path / need
        side(folder / "more", right, 1000)
        (folder / "benchmarks.json").write_text(json.dumps({"more": {"n": 1000, "correct": right}}))
        inputs[need] = folder
    given = work(tmp_path, reads_settle(plan(benchmarks=sets), Matrix()), inputs)
    settle_sets(given)
    found: JSON = json.loads((given.out / "settlement.json").read_bytes())
    return found


def more(margin: float = 0.02) -> QuestionSet:
    return QuestionSet(
        name="more", questions="q.jsonl", sha256="sha256:" + "1" * 64, grader="exact", margin=margin, max_tokens=16
    )


@pytest.mark.parametrize(
    ("candidate", "further", "decision"),
    [(950, (950, 950), "RELEASE"), (950, (700, 950), "BLOCK"), (950, (930, 950), "PENDING")],
)
def test_one_decision_is_made_over_all_sets(tmp_path: Path, candidate: int, further: tuple[int, int], decision: str) -> None:
    found = settled(tmp_path, candidate, 950, further, (more(),))
    settlement = found["settlement"]
    if decision == "PENDING":
        assert settlement["decision"] in ("PENDING", "BLOCK")
    else:
        assert settlement["decision"] == decision
    (verdict,) = found["verdicts"]
    assert verdict["name"] == "accuracy/more"
    assert {one["benchmark"] for one in settlement["benchmarks"]} == {MAIN, "more"}


def test_a_set_that_was_not_asked_leaves_the_cell_pending_and_is_skipped_with_the_reason(tmp_path: Path) -> None:
    found = settled(tmp_path, 950, 950, None, (more(),))
    (verdict,) = found["verdicts"]
    assert (verdict["name"], verdict["status"]) == ("accuracy/more", "SKIPPED")
    assert found["settlement"]["decision"] == "PENDING"
    assert "not judged: more" in found["settlement"]["reason"]


def test_a_tool_that_is_not_here_is_skipped_and_no_server_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELEASE_EVALSCOPE", raising=False)
    sets = (Evaluation.model_validate(tuples(TOOL)),)
    given = work(tmp_path, reads_benchmarks(plan(benchmarks=sets), Matrix()), {})
    assert benchmarks(given) == "gsm8k SKIPPED"
    told = json.loads((given.out / "benchmarks.json").read_bytes())
    assert "names no interpreter" in told["gsm8k"]["skipped"]


def test_a_cell_without_further_sets_needs_none_and_settles_its_own() -> None:
    assert unsettled(plan(benchmarks=())) == ("benchmarks", "reference:benchmarks")
    assert reads_benchmarks(plan(benchmarks=()), Matrix()) == {"serve": None, "sets": []}
    assert list(reads_settle(plan(benchmarks=()), Matrix())["margins"]) == [MAIN]
    assert reads_settle(plan(REFERENCE, benchmarks=()), Matrix())["margins"] == {}


def test_another_margin_asks_nothing_again() -> None:
    assert reads_benchmarks(plan(benchmarks=(more(0.02),)), Matrix()) == reads_benchmarks(
        plan(benchmarks=(more(0.05),)), Matrix()
    )


@pytest.mark.parametrize("wrong", [{"runner": "nobody"}, {"path": "/etc"}, {"dataset": "a b"}, {"margin": 0}])
def test_a_set_that_cannot_be_is_refused(wrong: JSON) -> None:
    with pytest.raises(ValidationError):
        Evaluation.model_validate(tuples({**TOOL, **wrong}))


def test_a_cell_may_name_sets_of_both_kinds(tmp_path: Path) -> None:
    text = (OURS / "cells/cpu/tiny-qwen3.yaml").read_text()
    text = text.replace("benchmarks:\n", f"benchmarks:\n  - {json.dumps(TOOL)}\n", 1)
    house = House.open((write(tmp_path / "m", {"cells/cpu/tiny-qwen3.yaml": text}),), tmp_path / "store", "docker")
    found = house.plan(CELL).benchmarks
    assert [type(each) for each in found] == [Evaluation, QuestionSet]
    tasks = house.graph(CELL, None)
    assert (REFERENCE, "benchmarks") in tasks.of and tasks.task(CELL, "settle").needs["benchmarks"] == tasks.of[
        CELL, "benchmarks"
    ]
