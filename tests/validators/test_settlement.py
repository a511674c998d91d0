"""A cell is released, blocked or pending by its benchmarks, measured ones, and is told what it costs to settle."""

from __future__ import annotations

import json
from dataclasses import replace

from release.validators.judgement import Finding, Judgement
from release.validators.settlement import Decision, correct, settle
from release.validators.verdicts import Plan, judge_pairs, verdict_of_counts

PLAN = Plan(0.02, temperature=0.6)


def good(name: str) -> Judgement:
    return judge_pairs(5, 5, 1000, 900, PLAN, benchmark=name)


def bad(name: str) -> Judgement:
    return judge_pairs(5, 60, 1000, 900, PLAN, benchmark=name)


def unsure(name: str) -> Judgement:
    return judge_pairs(4, 6, 100, 80, PLAN, benchmark=name)


def test_all_consistent_by_measurement_is_a_release() -> None:
    found = settle([good("mmlu"), good("gsm8k")])
    assert found.decision is Decision.RELEASE and found.requests == 0 and "2 of 2" in found.reason


def test_one_regression_blocks() -> None:
    found = settle([good("mmlu"), bad("gsm8k"), unsure("aime")])
    assert found.decision is Decision.BLOCK and found.reason == "gsm8k regressed"


def test_one_inconclusive_is_pending_with_what_it_costs() -> None:
    found = settle([good("mmlu"), unsure("aime")])
    need = unsure("aime").need
    assert need is not None and need.repeats == 16
    assert found.decision is Decision.PENDING and found.requests == 2 * 15 * 100 == need.requests
    assert "1 of 2 are CONSISTENT by measurement; INCONCLUSIVE: aime; 3000 requests would settle it" in found.reason


def test_reported_aggregates_alone_never_release() -> None:
    reported = replace(verdict_of_counts("990/1000", "990/1000", margin=0.02), benchmark="gsm8k")
    found = settle([good("mmlu"), reported])
    assert found.decision is Decision.PENDING and "only reported: gsm8k" in found.reason and found.requests > 0


def test_nothing_is_a_block_and_what_is_missing_is_pending() -> None:
    assert settle([]).decision is Decision.BLOCK
    assert settle([good("mmlu")], gating={"mmlu", "aime"}).decision is Decision.PENDING
    assert "not judged: aime" in settle([good("mmlu")], gating={"mmlu", "aime"}).reason
    assert settle([good("mmlu")], gating=set()).decision is Decision.BLOCK


def test_what_does_not_gate_does_not_block_and_what_is_waived_is_named() -> None:
    assert settle([good("mmlu"), bad("aime")], gating={"mmlu"}).decision is Decision.RELEASE
    found = settle([good("mmlu"), bad("aime")], waived={"aime"})
    assert found.decision is Decision.RELEASE and found.reason.endswith("; waived: aime")
    assert settle([bad("aime")], waived={"aime"}).decision is Decision.BLOCK


def test_what_is_unverifiable_is_pending_and_has_no_price() -> None:
    found = settle([good("mmlu"), replace(unsure("gpqa"), need=None).hindered("the graders differ")])
    assert found.decision is Decision.PENDING and "UNVERIFIABLE: gpqa" in found.reason and "1 cannot be priced" in found.reason


def test_one_of_many_that_regresses_by_chance_does_not_block() -> None:
    slight = judge_pairs(10, 23, 500, 400, PLAN, benchmark="math")  # p of no loss 0.018
    assert slight.finding is Finding.REGRESSED
    assert settle([slight]).decision is Decision.BLOCK
    found = settle([slight, *(good(f"b{i}") for i in range(5))])
    assert found.decision is Decision.PENDING
    math = found.judgements[0]
    assert math.finding is Finding.INCONCLUSIVE and "alone it would be REGRESSED; of 6 benchmarks" in math.text()
    assert "Holm p = 0.1" in math.notes[0] and math.need is not None
    assert correct([bad("a"), bad("b")])[0].finding is Finding.REGRESSED


def test_a_settlement_is_text_and_json() -> None:
    found = settle([good("mmlu"), unsure("aime")])
    assert found.text().splitlines()[-1].startswith("PENDING: ")
    assert json.loads(json.dumps(found.json(), allow_nan=False))["decision"] == "PENDING"
