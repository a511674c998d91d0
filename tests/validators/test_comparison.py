"""A comparison says CONSISTENT, REGRESSED or INCONCLUSIVE by its interval, and nothing at all about what cannot be compared."""

from __future__ import annotations

from typing import Any

import pytest

from release.types import Accuracy, Status, Verdict
from release.validators.accuracy import fingerprint_of
from release.validators.comparison import compare
from release.validators.samples import Sample, Samples, summarize
from release.validators.statistics import tango_interval

JSON = dict[str, Any]
ACCURACY = Accuracy(questions="q.jsonl", sha256="sha256:" + "0" * 64, grader="final-integer", margin=0.02, max_tokens=64)
NAMES = ("cpu/tiny-qwq@bf16", "cpu/tiny-qwq@fp32")


def record(number: int, correct: bool | None, **changes: Any) -> Sample:
    cut = correct is None
    text = "7" if correct else "6"
    fields: JSON = {
        "question_id": f"q{number:05}", "prompt_sha256": "0" * 64, "answer": text, "expected": "7", "correct": correct,
        "finish_reason": "length" if cut else "stop", "prompt_tokens": 17, "completion_tokens": 30, "latency_s": 0.1,
        "text": text, "error": None,
    }  # fmt: skip
    return Sample.model_validate(fields | changes)


def samples(records: list[Sample], accuracy: Accuracy = ACCURACY, model: str = "tiny-qwq", **fingerprint: Any) -> Samples:
    told = fingerprint_of(accuracy, len(records), model, 1024) | fingerprint
    return Samples(told, tuple(records), summarize(records, told, 7.0, 0))


def sides(both: int, only_candidate: int, only_reference: int, neither: int) -> tuple[Samples, Samples]:
    outcomes = [(True, True)] * both + [(True, False)] * only_candidate + [(False, True)] * only_reference
    outcomes += [(False, False)] * neither
    one = [record(i, c) for i, (c, _) in enumerate(outcomes)]
    return samples(one), samples([record(i, r) for i, (_, r) in enumerate(outcomes)])


def verdict(*counts: int) -> Verdict:
    return compare(*sides(*counts), ACCURACY, NAMES)


def test_a_lower_end_above_the_margin_is_consistent() -> None:
    found = verdict(944, 5, 8, 43)
    assert found.status is Status.PASSED and found.figures["finding"] == "CONSISTENT"
    lower, upper = tango_interval(5, 8, 1000, 0.9)
    assert found.measured == f"-0.30 points [{100 * lower:+.2f}, {100 * upper:+.2f}] 90 % interval, n = 1000, 94.9 % vs 95.2 %"
    assert found.wanted == "lower end above -2.00 points"
    assert found.figures["table"] == {"both": 944, "candidate-only": 5, "reference-only": 8, "neither": 43}
    assert found.figures["interval-90"] == [lower, upper] and found.figures["delta"] == -0.003
    assert found.figures["interval-95"] == list(tango_interval(5, 8, 1000, 0.95))
    assert found.figures["candidate"]["name"] == NAMES[0] and found.figures["reference"]["correct"] == 952


def test_a_loss_beyond_the_margin_and_below_zero_is_a_regression() -> None:
    found = verdict(900, 5, 45, 50)
    assert found.status is Status.FAILED and found.figures["finding"] == "REGRESSED" and found.reason.startswith("REGRESSED: ")


def test_too_few_questions_are_inconclusive_and_say_how_many_it_would_take() -> None:
    found = verdict(25, 1, 1, 3)
    assert found.status is Status.INCONCLUSIVE and found.figures["finding"] == "INCONCLUSIVE"
    assert found.figures["questions-needed"] == 1031 and "1031 questions" in found.reason


def test_a_perfect_match_of_too_few_questions_is_still_inconclusive() -> None:
    assert verdict(100, 0, 0, 0).figures["finding"] == "INCONCLUSIVE"
    assert verdict(133, 0, 0, 0).figures["finding"] == "CONSISTENT"


def test_above_temperature_zero_it_says_how_many_repeats() -> None:
    hot = ACCURACY.model_copy(update={"temperature": 0.6})
    one, two = sides(25, 1, 1, 3)
    one, two = samples(list(one.records), hot), samples(list(two.records), hot)
    found = compare(one, two, hot, NAMES)
    assert found.figures["repeats-needed"] == 35 and "35 repeats on each side" in found.reason


def test_a_small_loss_within_the_margin_is_consistent_and_named() -> None:
    assert "a small loss is likely" in verdict(996, 0, 3, 1).reason
    assert "a small loss is real" in verdict(990, 0, 8, 2).reason
    assert verdict(990, 0, 8, 2).status is Status.PASSED


def test_a_candidate_that_is_far_better_is_consistent_with_a_note() -> None:
    found = verdict(900, 60, 5, 35)
    assert found.status is Status.PASSED and "not worse than" in found.reason and "better by more than" in found.reason


def test_cut_off_pairs_are_left_out_and_said() -> None:
    one = [record(i, True) for i in range(500)]
    two = [record(i, None if i < 3 else True) for i in range(500)]
    found = compare(samples(one), samples(two), ACCURACY, NAMES)
    assert (found.figures["excluded"], found.figures["n"]) == (3, 497) and "3 pairs with a cut-off answer" in found.reason


def test_another_served_name_is_no_obstacle() -> None:
    one, two = sides(200, 0, 0, 0)
    other = samples(list(two.records), model="qwq-native")
    assert compare(one, other, ACCURACY, NAMES).status is Status.PASSED


def unverifiable(one: Samples, two: Samples, accuracy: Accuracy = ACCURACY) -> str:
    found = compare(one, two, accuracy, NAMES)
    assert found.status is Status.INCONCLUSIVE and found.figures["finding"] == "UNVERIFIABLE"
    assert "delta" not in found.figures and found.reason.startswith("UNVERIFIABLE: ")
    return found.reason


@pytest.mark.parametrize(
    ("key", "value"),
    [("max-tokens", 65), ("seed", 1), ("temperature", 0.5), ("harness", "release accuracy 0"), ("max-model-len", 2048),
     ("questions", "sha256:" + "1" * 64), ("grader", "exact"), ("prompt", "completion"), ("chat-template", "other")],
)  # fmt: skip
def test_another_way_of_asking_is_unverifiable_and_named(key: str, value: Any) -> None:
    one, two = sides(200, 0, 0, 0)
    reason = unverifiable(one, samples(list(two.records), **{key: value}))
    assert f"{key} (" in reason and repr(value) in reason


def test_both_sides_asked_otherwise_than_the_plan_says_is_unverifiable() -> None:
    one, two = sides(200, 0, 0, 0)
    reason = unverifiable(one, two, ACCURACY.model_copy(update={"max_tokens": 1024}))
    assert "was not evaluated as the plan says: max-tokens" in reason


def test_other_questions_are_unverifiable() -> None:
    one = [record(i, True) for i in range(200)]
    assert "2 were asked on one side only" in unverifiable(samples(one), samples([record(i + 1, True) for i in range(200)]))
    assert "n (200 vs 199)" in unverifiable(samples(one), samples(one[1:]))
    assert "has a question twice" in unverifiable(samples([*one[1:], one[1]]), samples([*one[1:], one[1]]))


def test_a_failed_request_is_unverifiable() -> None:
    one, two = sides(200, 0, 0, 0)
    failed = record(0, None, error="HTTP 500", text="", answer=None, finish_reason=None)
    assert f"1 requests of {NAMES[1]} failed" in unverifiable(one, samples([failed, *two.records[1:]]))


def test_a_grade_that_the_text_does_not_bear_out_is_unverifiable() -> None:
    one, two = sides(200, 0, 0, 0)
    forged = record(0, True, text="6", answer="7")
    assert f"the samples of {NAMES[0]} are not graded" in unverifiable(samples([forged, *one.records[1:]]), two)


def test_more_truncated_or_empty_answers_are_unverifiable() -> None:
    one = [record(i, None if i < 8 else True) for i in range(1000)]
    two = [record(i, True) for i in range(1000)]
    assert "truncated answers differ: 8 of 1000 vs 0 of 1000" in unverifiable(samples(one), samples(two))
    assert compare(samples(one[2:]), samples(two[2:]), ACCURACY, NAMES).status is Status.PASSED
    empty = [record(i, False, text="", answer=None) if i < 8 else record(i, True) for i in range(1000)]
    assert "empty answers differ: 0 of 1000 vs 8 of 1000" in unverifiable(samples(two), samples(empty))


@pytest.mark.parametrize(("tokens", "comparable"), [(26, False), (27, True), (33, True), (34, False)])
def test_answers_of_another_length_are_unverifiable(tokens: int, comparable: bool) -> None:
    one = samples([record(i, True, completion_tokens=tokens) for i in range(200)])
    two = samples([record(i, True) for i in range(200)])
    if comparable:
        assert compare(one, two, ACCURACY, NAMES).status is Status.PASSED
    else:
        assert f"answers have {tokens}.0 tokens on average" in unverifiable(one, two)


def test_another_number_of_prompt_tokens_is_unverifiable() -> None:
    one, two = sides(200, 0, 0, 0)
    other = [record(i, True, prompt_tokens=18) for i in range(200)]
    assert "200 prompts have another number of tokens" in unverifiable(samples(other), two)
    unsaid = samples([record(i, True, prompt_tokens=None) for i in range(200)])
    assert compare(unsaid, one, ACCURACY, NAMES).status is Status.PASSED


def test_nothing_at_all_is_unverifiable() -> None:
    assert "there are no samples" in unverifiable(samples([]), samples([]))
    cut = samples([record(i, None) for i in range(10)])
    assert "no pair of answers could be graded" in unverifiable(cut, cut)
    mute = samples([record(i, True, completion_tokens=None) for i in range(200)])
    assert "does not say how many tokens" in unverifiable(mute, mute)


def test_every_obstacle_is_told_at_once() -> None:
    one, _ = sides(200, 0, 0, 0)
    other = samples([record(i, True, prompt_tokens=18, completion_tokens=90) for i in range(200)], seed=3)
    found = compare(one, other, ACCURACY, NAMES)
    assert len(found.figures["obstacles"]) == 3


def test_a_verdict_is_json() -> None:
    for counts in ((944, 5, 8, 43), (900, 5, 45, 50), (25, 1, 1, 3)):
        found = verdict(*counts)
        assert Verdict.model_validate_json(found.model_dump_json()) == found
