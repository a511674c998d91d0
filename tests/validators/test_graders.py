"""Graders take one answer out of a text, strictly, and none where there is none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.errors import MatrixError
from release.types import Accuracy
from release.validators.graders import GRADERS
from release.validators.questions import Question, read_questions


def test_the_matrix_knows_every_grader() -> None:
    for name in GRADERS:
        Accuracy(questions="q.jsonl", sha256="sha256:" + "0" * 64, grader=name, margin=0.1, max_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grader", "text", "answer"),
    [
        ("last-number", "It costs $1,024.00.", "1024"),
        ("last-number", "#### 42", "42"),
        ("last-number", "3 + 4 = 7. So -7", "-7"),
        ("last-number", "0.50", "0.5"),
        ("last-number", "-0.0", "0"),
        ("last-number", "007", "7"),
        ("last-number", "<think>5</think>none", None),
        ("last-number", "12,34", "34"),
        ("last-number", "", None),
        ("boxed-integer", "so \\boxed{ 042 }.", "42"),
        ("boxed-integer", "\\boxed{1} or \\boxed{2}", "2"),
        ("boxed-integer", "17", "17"),
        ("boxed-integer", "<think>\\boxed{1}</think>?", None),
        ("boxed-integer", "\\boxed{x}", None),
        ("exact", " Paris \n", "Paris"),
        ("exact", "<think>Rome</think>Paris", "Paris"),
        ("exact", "e\u0301", "é"),
        ("exact", " ", None),
        ("choice-letter", "B", "B"),
        ("choice-letter", "(B)", "B"),
        ("choice-letter", "**B**.", "B"),
        ("choice-letter", "B.", "B"),
        ("choice-letter", "because …\nThe answer is B.", "B"),
        ("choice-letter", "Answer: **C**", "C"),
        ("choice-letter", "所以答案是 D。", "D"),
        ("choice-letter", "$\\boxed{A}$", "A"),
        ("choice-letter", "It is this:\nB", "B"),
        ("choice-letter", "<think>A</think>B", "B"),
        ("choice-letter", "A or B", None),
        ("choice-letter", "b", None),
        ("choice-letter", "Banana", None),
        ("choice-letter", "The answer is B.\nOr is it?", None),
        ("choice-letter", "", None),
        ("yes-no", "Yes.", "yes"),
        ("yes-no", "so\nThe answer is **no**", "no"),
        ("yes-no", "yes and no", None),
        ("choice-loglikelihood", "[-3.5, -1.25]", "B"),
        ("choice-loglikelihood", "[-1, -1]", None),
        ("choice-loglikelihood", "C", "C"),
        ("choice-loglikelihood", "[]", None),
        ("choice-loglikelihood", "[null]", None),
        ("choice-loglikelihood", "7", None),
        ("choice-loglikelihood", "[NaN, -1]", None),
    ],
)
def test_an_answer_is_taken_or_there_is_none(grader: str, text: str, answer: str | None) -> None:
    assert GRADERS[grader](text) == answer


@pytest.mark.parametrize("grader", GRADERS)
@given(text=st.text())
def test_no_text_breaks_a_grader_and_an_answer_is_its_own_answer(grader: str, text: str) -> None:
    found = GRADERS[grader](text)
    assert found is None or GRADERS[grader](found) == found


@pytest.mark.parametrize("grader", GRADERS)
def test_a_long_text_takes_a_grader_no_long_time(grader: str) -> None:
    for piece in ("1,", "a", "answer ", "\\boxed{", "((", "1.", "**", "答案是", "\n", "[", "-"):
        GRADERS[grader](piece * (200_000 // len(piece)))


def written(folder: Path, *questions: dict[str, Any]) -> tuple[Path, str]:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_questions_may_have_choices_and_a_cluster(tmp_path: Path) -> None:
    spec = {
        "id": "a",
        "prompt": "The capital of France is",
        "choices": [" Rome", " Paris"],
        "answer": "B",
        "cluster": "geography",
    }
    (question,) = read_questions(*written(tmp_path, spec), "choice-loglikelihood")
    assert question == Question(
        id="a", prompt="The capital of France is", choices=(" Rome", " Paris"), answer="B", cluster="geography"
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"choices": []}, "needs 'choices'"),
        ({"choices": [" Rome"], "answer": "A"}, "needs 'choices'"),
        ({"answer": "C"}, "letter of none of 2 choices"),
        ({"answer": "Paris"}, "none that the grader"),
        ({"choices": [" Rome", " Rome"]}, "stands twice"),
        ({"choices": [" Rome", ""]}, "choices.1"),
        ({"choices": [" Rome", 7]}, "choices.1"),
        ({"choices": "AB"}, "choices"),
        ({"choices": [str(i) for i in range(27)]}, "choices"),
        ({"cluster": ""}, "cluster"),
    ],
)
def test_choices_that_cannot_be_scored_are_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    spec = {"id": "a", "prompt": "The capital of France is", "choices": [" Rome", " Paris"], "answer": "B"} | change
    with pytest.raises(MatrixError, match=complaint):
        read_questions(*written(tmp_path, spec), "choice-loglikelihood")
