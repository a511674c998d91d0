"""The stages around the consistency check: what they read, what they spare, and what is said where nothing can be compared."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest
from folders import write

from release.consistency import consistency, reads_consistency, reads_trace, trace
from release.errors import MatrixError
from release.house import House
from release.matrix.check import plan_of
from release.matrix.load import OURS, Matrix
from release.pipeline import Stage, Task, Work
from release.progress import Line
from release.session import Session
from release.store import Store
from release.trial import period
from release.types import JSON, Plan

CANDIDATE, REFERENCE = "cpu/tiny-qwq@bf16", "cpu/tiny-qwq@fp32"
MATRIX = Matrix()


def plan(cell: str = CANDIDATE, **changes: Any) -> Plan:
    return plan_of(MATRIX, cell).model_copy(update=changes)


def work(tmp_path: Path, reads: JSON, inputs: dict[str, Path] | None = None) -> Work:
    task = Task(Stage("consistency", 1, (), lambda plan, matrix: {}, lambda work: ""), CANDIDATE, reads, {}, "a" * 64)
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir(), scratch.mkdir()
    store = Store(tmp_path / "store")
    return Work(task, inputs or {}, out, scratch, MATRIX, store, cast(Session, None), cast(Line, None), "b" * 64)


def found(given: Work) -> Any:
    return json.loads((given.out / "consistency.json").read_bytes())


def test_a_cell_that_asks_for_no_examination_gets_none_and_needs_no_trace(tmp_path: Path) -> None:
    house = House.open((), tmp_path / "store", "docker")
    assert "trace" not in {stage for _, stage in house.graph("nvidia/qwen3-32b@bf16", None).of}
    given = work(tmp_path, reads_consistency(plan(consistency=None), MATRIX))
    assert consistency(given) == "no examination"
    assert found(given) is None


def test_a_cell_of_the_matrix_has_its_reference_s_trace_among_its_needs(tmp_path: Path) -> None:
    tasks = House.open((), tmp_path / "store", "docker").graph(CANDIDATE, None)
    assert (REFERENCE, "trace") in tasks.of and (CANDIDATE, "trace") not in tasks.of
    assert tasks.task(CANDIDATE, "consistency").needs["reference:trace"] == tasks.of[REFERENCE, "trace"]


def test_without_a_reference_the_check_is_skipped_with_the_reason(tmp_path: Path) -> None:
    given = work(tmp_path, reads_consistency(plan(REFERENCE), MATRIX))
    assert consistency(given).startswith("UNVERIFIABLE")
    (verdict,) = found(given)["verdicts"]
    assert verdict["status"] == "SKIPPED"
    assert "names no reference" in verdict["reason"]


def test_a_reference_that_records_no_trace_leaves_the_candidate_unverifiable(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    asked = tmp_path / "asked"
    asked.mkdir()
    given = work(asked, reads_trace(plan(REFERENCE, consistency=None), MATRIX))
    assert trace(given) == "no examination"
    candidate = work(tmp_path, reads_consistency(plan(), MATRIX), {"reference:trace": given.out})
    consistency(candidate)
    assert (found(candidate)["finding"], found(candidate)["verdicts"][0]["status"]) == ("UNVERIFIABLE", "INCONCLUSIVE")


def test_a_damaged_trace_is_no_release_s_fault_and_no_pass(tmp_path: Path) -> None:
    broken = tmp_path / "trace"
    broken.mkdir()
    (broken / "trace.json").write_text('{"harness": "another"}')
    given = work(tmp_path, reads_consistency(plan(), MATRIX), {"reference:trace": broken})
    consistency(given)
    assert found(given)["finding"] == "UNVERIFIABLE"
    assert "is no trace" in found(given)["verdicts"][0]["reason"]


def test_limits_are_those_of_the_precision_unless_the_cell_has_its_own(tmp_path: Path) -> None:
    spec = plan().consistency
    assert spec is not None
    assert reads_consistency(plan(), MATRIX)["limits"]["kl"] == MATRIX.limits("bf16").kl
    strict = MATRIX.limits("bf16").model_copy(update={"kl": 1e-6})
    assert reads_consistency(plan(consistency=spec.model_copy(update={"limits": strict})), MATRIX)["limits"]["kl"] == 1e-6


def test_limits_and_patience_record_no_trace_anew() -> None:
    spec = plan().consistency
    assert spec is not None
    other = spec.model_copy(update={"limits": MATRIX.limits("fp8"), "within": 7.0, "patience": 3.0, "concurrency": 4})
    assert reads_trace(plan(REFERENCE, consistency=other), MATRIX) == reads_trace(plan(REFERENCE), MATRIX)
    more = spec.model_copy(update={"tokens": 60_000})
    assert reads_trace(plan(REFERENCE, consistency=more), MATRIX) != reads_trace(plan(REFERENCE), MATRIX)


def test_results_that_are_older_than_the_cell_allows_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(date):
        @classmethod
        def today(cls) -> date:
            return date(2026, 12, 31)

    assert period(None) == {}
    before = [period(days) for days in (1, 10, 10_000_000)]
    monkeypatch.setattr("release.trial.date", Later)
    assert [period(days) != old for days, old in zip((1, 10, 10_000_000), before, strict=True)] == [True, True, False]
    assert all(Later.today().toordinal() - period(days)["period"] * days < days for days in (1, 7, 30))


def cell_with(waiver: str) -> str:
    text = (OURS / "cells/cpu/tiny-qwq.yaml").read_text()
    return text.replace("cells:\n", f"waivers:\n  - {waiver}\ncells:\n", 1)


def test_a_waiver_of_an_unknown_verdict_is_refused_with_the_near_one(tmp_path: Path) -> None:
    text = cell_with("{validator: consistency/decodeing, reason: a known gap, owner: me, issue: '#1', expires: '2999-01-01'}")
    house = House.open((write(tmp_path / "m", {"cells/cpu/tiny-qwq.yaml": text}),), tmp_path / "store", "docker")
    with pytest.raises(MatrixError, match=r"names 'consistency/decodeing', which no validator says.*consistency/decoding"):
        house.plan(CANDIDATE)


def test_an_expired_waiver_is_told_before_anything_is_built(tmp_path: Path) -> None:
    text = cell_with("{validator: accuracy, bound: 0.05, reason: a known gap, owner: me, issue: '#1', expires: '2020-01-01'}")
    house = House.open((write(tmp_path / "m", {"cells/cpu/tiny-qwq.yaml": text}),), tmp_path / "store", "docker")
    (concern,) = (each for each in house.study(CANDIDATE).concerns if each.rule == "waivers")
    assert (concern.severity, "expired on 2020-01-01" in concern.message) == ("warn", True)
