"""Questions are asked as often as planned, each time with a seed of its own, and choices are scored without being asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from stub import MODEL, Stub
from test_accuracy import additions, lines_of, run, write_questions

from release.errors import StageError
from release.types import Accuracy
from release.validators.accuracy import check_samples, fingerprint_of, graded_rightly, seed_of
from release.validators.questions import Question, read_questions
from release.validators.samples import SIDECAR, Sample, read_samples

JSON = dict[str, Any]


def repeated(folder: Path, n: int, repeats: int) -> tuple[Path, Accuracy]:
    path, accuracy = write_questions(folder, additions(n))
    return path, accuracy.model_copy(update={"repeats": repeats, "temperature": 0.6})


def test_every_sample_of_repeats_has_a_seed_of_its_own(tmp_path: Path) -> None:
    path, accuracy = repeated(tmp_path, 20, 5)
    questions = read_questions(path, accuracy.sha256, accuracy.grader)
    seeds = {seed_of(accuracy, question, repeat) for question in questions for repeat in range(5)}
    assert len(seeds) == 100 and all(0 <= seed < 2**31 for seed in seeds)
    again = accuracy.model_copy(update={"seed": 1})
    assert not seeds & {seed_of(again, question, repeat) for question in questions for repeat in range(5)}
    once = accuracy.model_copy(update={"repeats": 1, "seed": 9})
    assert {seed_of(once, question, 0) for question in questions} == {9}


@pytest.mark.integration
def test_every_question_is_asked_as_often_as_planned(tmp_path: Path) -> None:
    path, accuracy = repeated(tmp_path, 6, 3)
    with Stub("one-text") as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 18
    assert (summary.n, summary.correct, summary.repeats) == (18, 18, 3)
    assert [(line["question_id"], line["repeat"]) for line in lines_of(tmp_path)] == [
        (f"q{i:03}", k) for i in range(6) for k in range(3)
    ]
    samples = read_samples(tmp_path / "samples.jsonl")
    assert samples.fingerprint["repeats"] == 3 and samples.fingerprint["n"] == 6
    assert samples.records[1].key == ("q000", 1)


@pytest.mark.integration
def test_repeats_resume_by_sample(tmp_path: Path) -> None:
    path, accuracy = repeated(tmp_path, 6, 3)
    samples = tmp_path / "samples.jsonl"
    with Stub("one-text") as stub:
        run(stub.url, accuracy, path, tmp_path)
        samples.write_bytes(b"".join(samples.read_bytes().splitlines(keepends=True)[:7]))
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 18 + 11
    assert (summary.reused, summary.correct) == (7, 18)


@pytest.mark.integration
def test_a_repeat_that_the_plan_does_not_have_is_not_taken_over(tmp_path: Path) -> None:
    path, accuracy = repeated(tmp_path, 2, 2)
    with Stub("one-text") as stub:
        run(stub.url, accuracy, path, tmp_path)
        first = lines_of(tmp_path)[0]
        (tmp_path / "samples.jsonl").write_text(json.dumps(first | {"repeat": 2}) + "\n")
        with pytest.raises(StageError, match="answers no question of this set"):
            run(stub.url, accuracy, path, tmp_path)


@pytest.mark.integration
def test_evidence_from_before_there_were_repeats_is_read_and_resumed(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(3))
    samples, side = tmp_path / "samples.jsonl", tmp_path / SIDECAR
    with Stub() as stub:
        run(stub.url, accuracy, path, tmp_path)
        data = b"".join(
            json.dumps({key: value for key, value in line.items() if key not in ("repeat", "cluster")}).encode() + b"\n"
            for line in lines_of(tmp_path)
        )
        old = json.loads(side.read_text())
        for told in (old["fingerprint"], old["summary"], old["summary"]["fingerprint"]):
            del told["repeats"]
        samples.write_bytes(data)
        side.write_text(json.dumps(old | {"samples-sha256": "sha256:" + hashlib.sha256(data).hexdigest()}))
        found = read_samples(samples)
        assert found.fingerprint["repeats"] == 1 and found.records[0].repeat == 0 and found.summary.repeats == 1
        assert found.fingerprint == fingerprint_of(accuracy, 3, MODEL, 512)
        run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 3


# choices


CAPITALS = [
    {"id": "fr", "prompt": "Paris is in", "choices": [" Peru", " France"], "answer": "B", "cluster": "europe"},
    {"id": "pe", "prompt": "Lima is in", "choices": [" Peru", " France", " Chad"], "answer": "A", "cluster": "america"},
]
LIKES = {"Paris is in France": -0.1, "Lima is in Chad": -0.1}


def scored(folder: Path) -> tuple[Path, Accuracy]:
    path, accuracy = write_questions(folder, [json.dumps(question) for question in CAPITALS])
    return path, accuracy.model_copy(update={"grader": "choice-loglikelihood"})


def score(text: str) -> list[float]:
    """A model that is sure of every prompt, and of what follows it as LIKES says."""
    return [LIKES.get(text, -1.0)] * len(text)


@pytest.mark.integration
def test_the_most_likely_choice_is_the_answer(tmp_path: Path) -> None:
    path, accuracy = scored(tmp_path)
    with Stub(score=score) as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 3 + 4
    assert (summary.correct, summary.wrong, summary.failed, summary.completion_tokens_mean) == (1, 1, 0, 0.0)
    right, wrong = lines_of(tmp_path)
    assert (right["question_id"], right["answer"], right["text"], right["cluster"]) == ("fr", "B", "[-5.0, -0.7]", "europe")
    assert (wrong["answer"], wrong["expected"], wrong["prompt_tokens"]) == ("C", "A", len("Lima is in"))
    samples = read_samples(tmp_path / "samples.jsonl")
    assert all(graded_rightly(sample, "choice-loglikelihood") for sample in samples.records)
    assert samples.fingerprint["prompt"] == "completion, the prompt and each choice after it"


@pytest.mark.integration
@pytest.mark.parametrize(
    "defect", ["echo-ignored", "completion-logprobs-missing", "score-positive", "nan-scores", "no-scoring", "completion-404"]
)
def test_scores_that_make_no_sense_are_failures_and_not_wrong(tmp_path: Path, defect: str) -> None:
    path, accuracy = scored(tmp_path)
    with Stub(defect, score=lambda text: [-0.5] * len(text)) as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
    assert (summary.failed, summary.correct, summary.wrong) == (2, 0, 0)


def test_samples_of_a_foreign_grader_cannot_be_graded_again_and_are_not_refused(tmp_path: Path) -> None:
    sample = Sample(
        question_id="a", prompt_sha256="0" * 64, answer="x", expected="y", correct=True, finish_reason="stop", prompt_tokens=1,
        completion_tokens=1, latency_s=0.0, text="x", error=None,
    )  # fmt: skip
    assert graded_rightly(sample, "lm-eval exact_match,none") and not graded_rightly(sample, "exact")
    assert not graded_rightly(sample.model_copy(update={"finish_reason": "length"}), "lm-eval exact_match,none")
    accuracy = Accuracy(questions="q", sha256="sha256:" + "0" * 64, grader="exact", margin=0.1, max_tokens=1)
    with pytest.raises(StageError, match="answers no question"):
        check_samples([sample], [Question(id="b", prompt="p", answer="y")], accuracy, "here")
