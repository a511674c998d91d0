"""What a comparison says follows from its interval and its margin, whoever counted."""

from __future__ import annotations

import json

import pytest

from release.errors import UsageError
from release.types import Status
from release.validators.judgement import Basis, Finding
from release.validators.statistics import tango_interval
from release.validators.verdicts import Plan, judge_pairs, judge_repeats, judge_shares, verdict_of_counts


def test_twelve_against_thirteen_of_fifty_is_inconclusive_and_says_what_it_would_take() -> None:
    found = verdict_of_counts("12/50", "13/50", margin=0.05)
    assert found.finding is Finding.INCONCLUSIVE and found.need is not None and found.need.repeats == 20
    assert found.need.requests == 2 * 20 * 50
    assert found.headline == "INCONCLUSIVE(k = 20) (from reported aggregates)"
    assert "20 repeats on each side would decide with 80 % power if there is no true difference" in found.text()
    assert found.interval is not None and found.interval[0] == pytest.approx(-0.1606, abs=5e-5)


def test_counts_say_consistent_regressed_and_inconclusive() -> None:
    assert verdict_of_counts("990/1000", "990/1000", margin=0.02).finding is Finding.CONSISTENT
    assert verdict_of_counts("400/1000", "500/1000", margin=0.05).finding is Finding.REGRESSED
    assert verdict_of_counts("480/1000", "500/1000", margin=0.02).finding is Finding.INCONCLUSIVE


def test_typed_in_counts_never_pass_as_a_measurement() -> None:
    found = verdict_of_counts("990/1000", "990/1000", margin=0.02)
    assert not found.measured and found.basis is Basis.REPORTED
    verdict = found.verdict("accuracy")
    assert verdict.status is Status.INCONCLUSIVE and verdict.reason.startswith("CONSISTENT (from reported aggregates): ")
    assert verdict_of_counts("400/1000", "500/1000", margin=0.05).verdict("accuracy").status is Status.FAILED


def test_other_totals_are_other_questions() -> None:
    found = verdict_of_counts("12/50", "13/60", margin=0.05)
    assert found.finding is Finding.UNVERIFIABLE and "n differs (50 and 60)" in found.reason and found.delta is None
    assert found.text().startswith("UNVERIFIABLE (from reported aggregates)\n  n differs")


def test_counts_over_repeats_are_planned_by_questions() -> None:
    found = verdict_of_counts("96/400", "104/400", margin=0.05, repeats=8)
    assert found.n == 50 and found.repeats == (8, 8) and found.need is not None and found.need.repeats == 20
    assert "n = 50 × 8 and 8" in found.text()


@pytest.mark.parametrize(
    "text",
    ["", "12", "12/0", "13/12", "-1/50", "1e3/50", "12/50/3", "１２/50", "12/99999999999", "x" * 10_000, "12.5/50", "NaN/50"],
)
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no count of right answers") as caught:
        verdict_of_counts(text, "13/50", margin=0.05)
    assert "12/50" in caught.value.next_step and len(str(caught.value)) < 200


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(UsageError, match="a margin of"):
        verdict_of_counts("12/50", "13/50", margin=margin)


def test_a_third_look_is_refused() -> None:
    with pytest.raises(UsageError, match="never repeated until they pass"):
        verdict_of_counts("12/50", "13/50", margin=0.05, looks=3)
    with pytest.raises(UsageError, match="no whole numbers of questions"):
        verdict_of_counts("12/50", "13/50", margin=0.05, repeats=7)


def test_one_of_two_looks_has_a_wider_interval() -> None:
    one, two = (verdict_of_counts("12/50", "13/50", margin=0.05, looks=looks) for looks in (1, 2))
    assert one.interval is not None and two.interval is not None and two.interval[0] < one.interval[0]
    assert two.confidence == pytest.approx(0.94936, abs=1e-5) and "94.94 % interval" in two.text()
    assert (
        one.need is not None
        and two.need is not None
        and two.need.repeats is not None
        and two.need.repeats > (one.need.repeats or 0)
    )


def test_pairs_are_judged_by_tango() -> None:
    found = judge_pairs(5, 8, 1000, 949, Plan(0.02))
    assert found.finding is Finding.CONSISTENT and found.interval == tango_interval(5, 8, 1000, 0.9)
    assert found.shares == (0.949, 0.952) and found.delta == -0.003 and found.discordance == 0.013
    assert judge_pairs(5, 45, 1000, 905, Plan(0.02)).finding is Finding.REGRESSED
    assert found.verdict("accuracy").status is Status.PASSED


def test_three_questions_are_no_regression() -> None:
    lower, upper = tango_interval(0, 3, 30, 0.9)
    assert lower < -0.05 and upper < 0  # the interval alone would say so, of one run in eight between identical sides
    found = judge_pairs(0, 3, 30, 20, Plan(0.05))
    assert found.finding is Finding.INCONCLUSIVE and found.p_loss == 0.125


def test_repeats_are_judged_by_the_wider_error_and_planned_by_that_of_answers() -> None:
    answers = [([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]), ([0.0] * 4, [0.0] * 4), ([1.0] * 4, [1.0] * 4)] * 66
    found = judge_repeats(answers, Plan(0.03, temperature=0.6))
    assert found.basis is Basis.REPEATED and found.repeats == (4, 4) and found.n == 198 and found.delta == 0.0
    assert found.discordance == pytest.approx(2 * 4 / 3 * 0.75 * 0.25 / 3) and found.shares == pytest.approx((1.75 / 3, 1.75 / 3))
    assert found.finding is Finding.CONSISTENT
    assert judge_repeats(answers[:30], Plan(0.03, temperature=0.6)).finding is Finding.INCONCLUSIVE


def test_at_temperature_zero_more_questions_are_asked_for_and_repeats_prove_nothing() -> None:
    same = [([1.0] * 8, [1.0] * 8)] * 30
    assert judge_repeats(same, Plan(0.05, temperature=0.6)).finding is Finding.CONSISTENT
    cold = judge_repeats(same, Plan(0.05, temperature=0.0))
    assert cold.finding is Finding.INCONCLUSIVE and cold.need is not None
    assert cold.need.repeats is None and cold.need.questions == 52 and "a fresh set of 52 questions" in cold.text()


def test_what_was_asked_for_and_did_not_settle_is_planned_by_what_was_seen() -> None:
    # discordance 0.1 and a loss of half the margin: one run of 2000 questions was enough by plan, and is not
    found = judge_pairs(90, 110, 2000, 1000, Plan(0.02, temperature=0.6))
    assert found.finding is Finding.INCONCLUSIVE and found.need is not None
    assert found.need.repeats == 4 and found.need.assuming == "if the difference is the one seen"
    assert found.need.requests == 2 * 3 * 2000


def test_fractions_are_judged_without_repeats() -> None:
    answers = [([0.5], [0.25]), ([0.25], [0.5]), ([1.0], [1.0]), ([0.0], [0.0])] * 100
    found = judge_repeats(answers, Plan(0.02))
    assert found.basis is Basis.PAIRED and found.repeats == (1, 1) and found.finding is Finding.CONSISTENT


def test_a_judgement_is_json_for_everybody() -> None:
    for found in (
        verdict_of_counts("12/50", "13/50", margin=0.05),
        verdict_of_counts("12/50", "13/60", margin=0.05),
        judge_pairs(5, 8, 1000, 949, Plan(0.02)),
        judge_shares(1.0, 1.0, 30, Plan(0.05), benchmark="aime-2025"),
    ):
        assert json.loads(json.dumps(found.json(), allow_nan=False))["finding"] == found.finding
        assert found.verdict("accuracy").figures["finding"] == found.finding


def test_an_obstacle_leaves_the_figures_and_says_what_they_would_say() -> None:
    found = verdict_of_counts("12/50", "13/50", margin=0.05).hindered("the graders differ").hindered("the prompts differ")
    assert found.finding is Finding.UNVERIFIABLE and found.otherwise is Finding.INCONCLUSIVE
    assert found.obstacles == ("the graders differ", "the prompts differ") and found.hindered() is found
    assert "the figures would say INCONCLUSIVE" in found.text()
