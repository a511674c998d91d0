"""A waiver lets a verdict pass for a while, within its bound, never as PASSED; expired or exceeded it blocks."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from release.types import State, Status, Verdict, Waiver, dump, state_of
from release.validators.verdicts import Plan, judge_pairs
from release.validators.waivers import idle, settle, waived

TODAY = date(2026, 11, 20)
WAIVER: dict[str, Any] = {
    "validator": "accuracy", "benchmark": "gsm8k", "bound": 0.08, "reason": "sampling kernel is being fixed",
    "owner": "someone", "issue": "#42", "expires": "2026-12-31",
}  # fmt: skip


def waiver(**changes: Any) -> Waiver:
    return Waiver.model_validate(WAIVER | changes)


def regressed() -> Verdict:
    return judge_pairs(5, 45, 1000, 900, Plan(0.02), benchmark="gsm8k").verdict("accuracy")


def test_a_waived_verdict_says_what_it_would_have_been_and_is_not_passed() -> None:
    (found,) = waived([regressed()], [waiver()], TODAY)
    assert found.status is Status.SKIPPED
    assert found.reason.startswith(
        "would have been REGRESSED (FAILED) without this waiver: sampling kernel is being fixed (#42, someone"
    )
    assert found.figures["waiver"]["outcome"] == "applied" and found.figures["waiver"]["without"] == "FAILED"
    passed = Verdict(name="serving", status=Status.PASSED, measured="", wanted="", reason="")
    assert state_of((found, passed)) is State.BUILT and state_of((regressed(), passed)) is State.BLOCKED


def test_the_last_day_still_counts_and_the_next_blocks() -> None:
    assert waived([regressed()], [waiver()], date(2026, 12, 31))[0].status is Status.SKIPPED
    (found,) = waived([regressed()], [waiver()], date(2027, 1, 1))
    assert found.status is Status.FAILED and "expired on 2026-12-31" in found.reason


def test_a_loss_beyond_the_bound_blocks_even_what_was_only_inconclusive() -> None:
    (found,) = waived([regressed()], [waiver(bound=0.03)], TODAY)
    assert found.status is Status.FAILED and "is exceeded: up to 5.2" in found.reason and "bound 3.00" in found.reason
    unsure = judge_pairs(1, 3, 30, 20, Plan(0.02), benchmark="gsm8k").verdict("accuracy")
    assert unsure.status is Status.INCONCLUSIVE
    assert waived([unsure], [waiver(bound=0.05)], TODAY)[0].status is Status.FAILED
    assert waived([unsure], [waiver(bound=0.3)], TODAY)[0].status is Status.SKIPPED


def test_a_waiver_of_another_validator_or_benchmark_changes_nothing() -> None:
    verdicts = [regressed()]
    assert waived(verdicts, [waiver(benchmark="mmlu"), waiver(validator="performance")], TODAY) == tuple(verdicts)
    assert idle(verdicts, [waiver(), waiver(benchmark="mmlu")]) == (waiver(benchmark="mmlu"),)


def test_a_passed_verdict_stays_and_says_that_its_waiver_can_go() -> None:
    verdict = judge_pairs(5, 5, 1000, 900, Plan(0.02), benchmark="gsm8k").verdict("accuracy")
    (found,) = waived([verdict], [waiver(expires="2020-01-01")], TODAY)
    assert found.status is Status.PASSED and "is not needed" in found.reason


def test_bound_and_figures_must_go_together() -> None:
    bare = Verdict(name="conformance", status=Status.FAILED, measured="500", wanted="400", reason="a bad request ends in 500")
    whole = waiver(validator="conformance", benchmark=None, bound=None)
    assert waived([bare], [whole], TODAY)[0].status is Status.SKIPPED
    (found,) = waived([bare], [waiver(validator="conformance", benchmark=None)], TODAY)
    assert found.status is Status.FAILED and "does not apply: it has a bound, and the verdict no figure" in found.reason
    (found,) = waived([regressed()], [waiver(bound=None)], TODAY)
    assert found.status is Status.FAILED and "does not apply: it states no bound" in found.reason


@pytest.mark.parametrize(
    "figures", [{"loss": float("nan")}, {"interval": ["x"]}, {"delta": True}, {"interval": []}, {"delta": None}]
)
def test_figures_that_are_none_hold_no_bound(figures: dict[str, Any]) -> None:
    verdict = Verdict(
        name="accuracy", status=Status.FAILED, measured="", wanted="", reason="", figures={"benchmark": "gsm8k"} | figures
    )
    assert waived([verdict], [waiver()], TODAY)[0].status is Status.FAILED


def test_a_stated_loss_comes_before_an_interval() -> None:
    verdict = Verdict(
        name="performance",
        status=Status.FAILED,
        measured="",
        wanted="",
        reason="",
        figures={"loss": 0.1, "interval": [-0.5, 0.5]},
    )
    assert waived([verdict], [waiver(validator="performance", benchmark=None, bound=0.2)], TODAY)[0].status is Status.SKIPPED


@pytest.mark.parametrize(
    "changes",
    [{"expires": "soon"}, {"expires": "2026-13-01"}, {"expires": "31.12.2026"}, {"bound": 0.0}, {"bound": -1.0}, {"reason": ""},
     {"owner": ""}, {"issue": ""}, {"validator": ""}, {"until": "2026-12-31"}],
)  # fmt: skip
def test_a_waiver_without_reason_owner_issue_or_end_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        waiver(**changes)


def test_a_record_s_waivers_are_told_with_what_each_of_them_did() -> None:
    given = [
        dump(waiver()),
        dump(waiver(benchmark="mmlu")),
        dump(waiver(validator="consistency/decoding", bound=None, benchmark=None)),
    ]
    layer = {"name": "consistency/decoding", "status": "FAILED", "measured": "", "wanted": "", "reason": "far", "figures": {}}
    verdicts, told = settle([dump(regressed()), layer], given, TODAY)
    assert [one["outcome"] for one in told] == ["applied", "idle", "applied"]
    assert [verdict["status"] for verdict in verdicts] == ["SKIPPED", "SKIPPED"]
    assert verdicts[1]["reason"].startswith("would have been FAILED (FAILED) without this waiver")
    _, late = settle([dump(regressed())], given[:1], date(2027, 1, 1))
    assert late[0]["outcome"] == "expired"


@pytest.mark.parametrize("name", ["", "Accuracy", "accuracy/", "a b", "consistency/a/b", "consistency/\n"])
def test_what_is_no_verdict_s_name_cannot_be_waived(name: str) -> None:
    with pytest.raises(ValidationError):
        waiver(validator=name)
