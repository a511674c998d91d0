"""Where answers part, whether that was a near tie, whether one loops; and that the matrix says a limit for every precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from release.matrix import parse
from release.types import PRECISIONS
from release.types.consistency import Examination, Tolerances
from release.validators.consistency.answers import chosen
from release.validators.consistency.decoding import Divergences, compare, leaves, loops
from release.validators.consistency.prompts import Prompt, read_prompts

MATRIX = Path(__file__).parents[3] / "matrix"


def answer(ids: list[int] | None, text: str = "", finish: str = "stop") -> dict[str, Any]:
    return {"ids": ids, "text": text, "finish": finish}


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        (answer([1, 2, 3]), answer([1, 2, 3]), None),
        (answer([1, 2, 3]), answer([1, 9, 3]), 1),
        (answer([1, 2, 3]), answer([1, 2]), 2),
        (answer([1], "abc"), answer(None, "abd"), 2),
        (answer([1], "abc"), answer(None, "abc"), None),
        (answer([]), answer([1]), 0),
    ],
)
def test_answers_part_at_the_first_token_that_is_another(one: dict[str, Any], other: dict[str, Any], place: int | None) -> None:
    assert leaves(one, other) == leaves(other, one) == place


def test_a_near_tie_is_told_from_a_decided_token_by_the_references_own_scores() -> None:
    scores = {key: {"top": [[1, 2], [5, 6]], "logprobs": [[-0.6, -0.7], [-0.01, -4.0]]} for key in "abcd"}
    ones = {key: answer([1, 5]) for key in "abcde"}
    others = {"a": answer([2, 5]), "b": answer([1, 6]), "c": answer([1, 7]), "d": answer([1, 5]), "e": answer([2, 5])}
    found = compare(ones, others, scores, 0.125)
    assert found == Divergences(5, (0, 1, 1, 0), near=1, untold=1) and found.decided == 2
    assert found.figures()["identical"] == 1 and found.figures()["first-divergence"]["p50"] == 0.5


def test_a_divergence_that_nobody_can_judge_leaves_the_matter_open() -> None:
    assert Divergences(1000, (), 0, 0).finding(0.02) == "CONSISTENT"
    assert Divergences(1000, (3,) * 200, near=200, untold=0).finding(0.02) == "CONSISTENT"
    assert Divergences(1000, (3,) * 200, near=0, untold=200).finding(0.02) == "INCONCLUSIVE"
    assert Divergences(1000, (3,) * 200, near=0, untold=0).finding(0.02) == "DIFFERENT"


def test_only_an_answer_that_was_cut_off_and_repeats_itself_loops() -> None:
    assert loops(answer([9, 8, *[1, 2, 3] * 4], finish="length"))
    assert not loops(answer([9, 8, *[1, 2, 3] * 4]))
    assert not loops(answer([9, 8, *[1, 2, 3] * 3], finish="length"))
    assert loops(answer(None, "well, " + "no " * 20, finish="length"))
    assert not loops(answer([], finish="length"))


def test_the_prompts_that_are_repeated_are_spread_over_the_file() -> None:
    prompts = tuple(Prompt(id=f"p{i}", kind="text", text="x") for i in range(10))
    assert [one.id for one in chosen(prompts, 4)] == ["p0", "p2", "p5", "p7"] and chosen(prompts, 10) == prompts


def test_the_matrix_has_limits_for_every_precision_and_says_where_they_come_from() -> None:
    limits = parse.read(MATRIX / "consistency.yaml", Tolerances).precisions
    assert set(limits) == set(PRECISIONS)
    assert all("measured" in one.calibrated or "cpu/" in one.calibrated for one in limits.values())
    assert limits["fp32"].kl < limits["bf16"].kl < limits["w8a8"].kl < limits["w4a16"].kl


def test_the_prompts_of_the_tiny_models_are_many_and_of_several_kinds() -> None:
    spec = Examination(
        prompts="questions/two-digit-addition-consistency.jsonl",
        sha256="sha256:4e4945afdc485467a64da03601fc4641052928c9234ab299c9aaa6564dbb949d",
    )
    prompts = read_prompts(MATRIX / spec.prompts, spec.sha256)
    assert len(prompts) == 192 and {one.kind for one in prompts} == {"question", "chat", "long", "system", "text"}
