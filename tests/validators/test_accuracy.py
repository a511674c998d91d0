"""Every question is asked once and graded strictly; an interruption loses nothing and repeats nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub import CONTEXT, MODEL, Stub, reply

from release.errors import FetchError, MatrixError, ServingError, StageError
from release.types import Accuracy
from release.validators import accuracy as module
from release.validators.accuracy import evaluate, grade
from release.validators.endpoint import Endpoint
from release.validators.graders import final_integer
from release.validators.questions import Question, read_questions
from release.validators.samples import SIDECAR, Journal, Sample, Summary, read_samples

JSON = dict[str, Any]


def write_questions(folder: Path, lines: list[str] | bytes) -> tuple[Path, Accuracy]:
    path = folder / "questions.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode())
    sha256 = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return path, Accuracy(questions="q.jsonl", sha256=sha256, grader="final-integer", margin=0.02, max_tokens=64, concurrency=4)


def additions(n: int) -> list[str]:
    return [json.dumps({"id": f"q{i:03}", "prompt": f"What is {i}+7?", "answer": str(i + 7)}) for i in range(n)]


def run(url: str, accuracy: Accuracy, questions: Path, out: Path, **options: Any) -> Summary:
    endpoint = Endpoint(url, options.pop("model", MODEL), read_timeout=options.pop("read_timeout", 5))
    return evaluate(endpoint, accuracy, questions, out / "samples.jsonl", progress=lambda *_: None, **options)


def lines_of(out: Path) -> list[JSON]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


# grading


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("82", "82"),
        (" \n82.\n", "82"),
        ("+082", "82"),
        ("-0", "0"),
        ("-5.", "-5"),
        ("<think>\n1+2</think>\n\n3", "3"),
        ("<think>a</think>4</think>5", "5"),
        ("<think>3", None),
        ("82.0", None),
        ("82..", None),
        ("82 .", None),
        ("1,024", None),
        ("37+45=82", None),
        ("The answer is 82", None),
        ("82\n83", None),
        ("", None),
        ("</think>", None),
        ("٨٢", None),
        ("8２", None),
        ("8_2", None),
        ("0x52", None),
        ("9" * 1001, None),
        ("9" * 1000, "9" * 1000),
    ],
)
def test_the_final_integer_is_one_integer_and_nothing_else(text: str, answer: str | None) -> None:
    assert final_integer(text) == answer


@given(st.text())
def test_no_text_breaks_the_grader(text: str) -> None:
    found = final_integer(text)
    assert found is None or str(int(found)) == found


QUESTION = Question(id="q", prompt="What is 37+45?", answer="82")


def answered(content: Any, finish: Any = "stop", usage: Any = None) -> Sample:
    answer = {"choices": [{"message": {"content": content}, "finish_reason": finish}], "usage": usage}
    return grade(QUESTION, answer, "final-integer", 0.5)


def test_an_answer_is_graded_and_kept() -> None:
    sample = answered("<think></think>82.", usage={"prompt_tokens": 9, "completion_tokens": 3})
    assert (sample.correct, sample.answer, sample.expected) == (True, "82", "82")
    assert (sample.prompt_tokens, sample.completion_tokens, sample.latency_s, sample.error) == (9, 3, 0.5, None)
    assert answered("83").correct is False and answered("no idea").correct is False


def test_a_cut_off_answer_is_not_graded_even_if_it_looks_right() -> None:
    sample = answered("82", "length")
    assert sample.correct is None and sample.truncated and sample.answer == "82"


def test_an_empty_answer_is_wrong_and_counted_as_empty() -> None:
    for content in ("", None, " \n"):
        sample = answered(content)
        assert sample.correct is False and sample.empty


@pytest.mark.parametrize("finish", ["abort", "content_filter", None, 7, ["stop"]])
def test_another_end_than_stop_or_length_is_a_failure(finish: Any) -> None:
    sample = answered("82", finish)
    assert sample.correct is None and sample.error is not None and "finish_reason" in sample.error


@pytest.mark.parametrize(
    "answer",
    [{}, {"choices": None}, {"choices": []}, {"choices": ["x"]}, {"choices": [{}]}, {"choices": [{"message": "82"}]},
     {"choices": [{"message": {"content": 82}}]}, {"choices": {"0": {}}}],
)  # fmt: skip
def test_a_malformed_answer_is_a_failure_and_not_wrong(answer: JSON) -> None:
    sample = grade(QUESTION, answer, "final-integer", 0.1)
    assert sample.correct is None and sample.error is not None


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "9", "completion_tokens": -1}, {"prompt_tokens": True}])
def test_a_usage_that_makes_no_sense_is_left_out(usage: Any) -> None:
    sample = answered("82", usage=usage)
    assert sample.prompt_tokens is None and sample.completion_tokens is None and sample.correct is True


def test_a_lone_surrogate_can_still_be_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "samples.jsonl", {"n": 1}) as journal:
        journal.append(answered("\ud800 82"))
        journal.finish(1.0, 0)
    assert read_samples(tmp_path / "samples.jsonl").records[0].text == "? 82"


# question files


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (b"", "is blank"),
        (b"\n", "is blank"),
        (b'{"id": "a", "prompt": "p", "answer": "1"}\n\n', r"questions.jsonl:2: line 2 is blank"),
        (b'{"id": "a", "prompt": "p", "answer": "1"}\n{"id": "a", "prompt": "q", "answer": "1"}\n', "'a' stands twice"),
        (b'{"id": "a", "prompt": "p"}\n', "answer: Field required"),
        (b'{"id": "a", "prompt": "p", "answer": "1", "hint": "x"}\n', "hint: Extra inputs"),
        (b'{"id": "a", "prompt": "p", "answer": 1}\n', "answer: Input should be a valid string"),
        (b'{"id": "a", "prompt": "p", "answer": "one"}\n', "'one' is none that the grader final-integer understands"),
        (b'{"id": "", "prompt": "p", "answer": "1"}\n', "id: String should have"),
        (b'{"id": " ", "prompt": "p", "answer": "1"}\n', "blank"),
        (b'{"id": "a", "prompt": "\\n", "answer": "1"}\n', "blank"),
        (b'{"id": "a", "id": "b", "prompt": "p", "answer": "1"}\n', "a key stands twice"),
        (b'{"id": "a", "prompt": "p", "answer": "1"} x\n', "no JSON"),
        (b"not json\n", "no JSON"),
        (b"[1]\n", "no object"),
        (b"\xff\n", "no JSON"),
        (b"\xef\xbb\xbf{}\n", "no JSON"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b'{"id": "a", "prompt": "\\ud800", "answer": "1"}\n', "prompt"),
        (b'{"id": "a", "prompt": NaN, "answer": "1"}\n', "NaN"),
    ],
)
def test_a_malformed_question_file_is_refused_with_its_line(tmp_path: Path, lines: bytes, complaint: str) -> None:
    path, accuracy = write_questions(tmp_path, lines)
    with pytest.raises(MatrixError, match=complaint) as caught:
        read_questions(path, accuracy.sha256, accuracy.grader)
    assert f"{path}:" in str(caught.value)


def test_a_question_file_without_a_last_line_feed_is_read(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, '{"id": "a", "prompt": "p\u2028q", "answer": "1"}'.encode())
    assert [q.id for q in read_questions(path, accuracy.sha256, accuracy.grader)] == ["a"]


def test_a_changed_or_missing_question_file_is_refused(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(2))
    path.write_text("\n".join(additions(3)))
    with pytest.raises(FetchError, match="and the matrix says"):
        read_questions(path, accuracy.sha256, accuracy.grader)
    with pytest.raises(FetchError, match="cannot be read"):
        read_questions(tmp_path / "none", accuracy.sha256, accuracy.grader)


# evaluation


@pytest.mark.integration
def test_every_question_is_asked_once_and_the_file_is_sorted(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(20)[::-1])
    heard: list[int] = []
    with Stub() as stub:
        endpoint = Endpoint(stub.url, MODEL)
        summary = evaluate(endpoint, accuracy, path, tmp_path / "samples.jsonl", progress=lambda done, *_: heard.append(done))
        assert stub.requests == 20
    assert (summary.n, summary.correct, summary.wrong, summary.failed, summary.truncated, summary.reused) == (20, 20, 0, 0, 0, 0)
    assert heard == list(range(1, 21))
    assert [line["question_id"] for line in lines_of(tmp_path)] == [f"q{i:03}" for i in range(20)]
    samples = read_samples(tmp_path / "samples.jsonl")
    assert samples.summary == summary and samples.fingerprint["max-model-len"] == CONTEXT
    assert samples.records[0].text == reply("What is 0+7?")
    assert sorted(p.name for p in tmp_path.iterdir()) == [SIDECAR, "questions.jsonl", "samples.jsonl"]


@pytest.mark.integration
def test_a_wrong_answer_is_wrong(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, [*additions(3), '{"id": "x", "prompt": "What is 1+1?", "answer": "3"}'])
    with Stub() as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
    assert (summary.correct, summary.wrong) == (3, 1)


@pytest.mark.integration
def test_truncated_answers_are_counted_and_not_graded(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(4))
    with Stub() as stub:
        summary = run(stub.url, accuracy.model_copy(update={"max_tokens": 5}), path, tmp_path)
    assert (summary.correct, summary.wrong, summary.truncated, summary.completion_tokens_mean) == (0, 0, 4, 5.0)


@pytest.mark.integration
@pytest.mark.parametrize("defect", ["500", "not-json", "no-choices", "aborts", "finish-null"])
def test_failed_requests_are_counted_with_their_error(tmp_path: Path, defect: str) -> None:
    path, accuracy = write_questions(tmp_path, additions(3))
    with Stub(defect) as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 3
    assert (summary.failed, summary.correct, summary.wrong, summary.completion_tokens_mean) == (3, 0, 0, None)
    assert all(line["error"] and line["correct"] is None for line in lines_of(tmp_path))


@pytest.mark.integration
def test_a_request_that_stalls_fails_and_is_not_asked_again(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(2))
    with Stub("stalls") as stub:
        summary = run(stub.url, accuracy, path, tmp_path, read_timeout=1.5)
        assert stub.requests == 2
    assert summary.failed == 2 and "no complete answer within 1.5 s" in lines_of(tmp_path)[0]["error"]


@pytest.mark.integration
def test_a_lost_connection_is_tried_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    path, accuracy = write_questions(tmp_path, additions(2))
    with Stub("drops-under-load") as stub:
        stub.in_flight = 10
        summary = run(stub.url, accuracy, path, tmp_path, concurrency=1)
        assert stub.requests == 6
    assert summary.failed == 2 and "connection lost" in lines_of(tmp_path)[0]["error"]


@pytest.mark.integration
def test_a_surrogate_in_an_answer_does_not_break_the_file(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(2))
    with Stub("surrogate") as stub:
        assert run(stub.url, accuracy, path, tmp_path).correct == 2


@pytest.mark.integration
def test_a_server_without_the_model_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(2))
    with Stub() as stub, pytest.raises(ServingError, match="no model 'other', only tiny-qwq"):
        run(stub.url, accuracy, path, tmp_path, model="other")
    assert stub.requests == 0 and not (tmp_path / "samples.jsonl").exists()


@pytest.mark.integration
def test_a_server_that_dies_is_no_failed_request_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    path, accuracy = write_questions(tmp_path, additions(30))
    with Stub(dies_after=10) as stub, pytest.raises(ServingError, match="the server died at question"):
        run(stub.url, accuracy, path, tmp_path)
    kept = lines_of(tmp_path)
    assert 0 < len(kept) <= 10 and all(line["error"] is None for line in kept)
    with pytest.raises(StageError, match="not finished"):
        read_samples(tmp_path / "samples.jsonl")
    with Stub() as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 30 - len(kept)
    assert (summary.correct, summary.reused) == (30, len(kept))


@pytest.mark.integration
@pytest.mark.parametrize("torn", [1, 40, 10_000])
def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path: Path, torn: int) -> None:
    path, accuracy = write_questions(tmp_path, additions(8))
    with Stub() as stub:
        complete = run(stub.url, accuracy, path, tmp_path)
        samples = tmp_path / "samples.jsonl"
        data = samples.read_bytes()
        samples.write_bytes(data[:-torn])
        left = data[:-torn].count(b"\n")
        before = stub.requests
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests - before == 8 - left
    assert summary.reused == left and summary.correct == complete.correct
    strip = [{k: v for k, v in json.loads(line).items() if k != "latency_s"} for line in data.splitlines()]
    assert [{k: v for k, v in line.items() if k != "latency_s"} for line in lines_of(tmp_path)] == strip


@pytest.mark.integration
def test_a_finished_evaluation_is_not_asked_again(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(5))
    with Stub() as stub:
        first = run(stub.url, accuracy, path, tmp_path)
        data = (tmp_path / "samples.jsonl").read_bytes()
        assert run(stub.url, accuracy, path, tmp_path) == first
        assert stub.requests == 5
    assert (tmp_path / "samples.jsonl").read_bytes() == data


@pytest.mark.integration
@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 1}, {"max_tokens": 63}])
def test_another_way_of_asking_starts_anew(tmp_path: Path, change: JSON) -> None:
    path, accuracy = write_questions(tmp_path, additions(5))
    with Stub() as stub:
        run(stub.url, accuracy, path, tmp_path)
        summary = run(stub.url, accuracy.model_copy(update=change), path, tmp_path)
        assert stub.requests == 10
    assert (summary.reused, summary.n) == (0, 5) and len(lines_of(tmp_path)) == 5


@pytest.mark.integration
def test_failures_of_an_interrupted_run_are_kept_as_failures(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(3))
    with Stub("500") as stub:
        run(stub.url, accuracy, path, tmp_path)
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(b"".join(samples.read_bytes().splitlines(keepends=True)[:2]))
    with Stub() as stub:
        summary = run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 1
    assert (summary.failed, summary.correct) == (2, 1)


@pytest.mark.integration
def test_killing_the_process_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path, accuracy = write_questions(tmp_path, additions(400))
    samples = tmp_path / "samples.jsonl"
    script = (
        "import sys; from pathlib import Path; from release.types import Accuracy\n"
        "from release.validators.endpoint import Endpoint; from release.validators.accuracy import evaluate\n"
        "url, text, questions, samples = sys.argv[1:]\n"
        f"evaluate(Endpoint(url, {MODEL!r}), Accuracy.model_validate_json(text), Path(questions), Path(samples),"
        " progress=lambda *_: None)"
    )
    with Stub() as stub:
        argv = [sys.executable, "-c", script, stub.url, accuracy.model_dump_json(), str(path), str(samples)]
        process = subprocess.Popen(argv, cwd="/", env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
        deadline = time.monotonic() + 60
        while (not samples.exists() or samples.read_bytes().count(b"\n") < 20) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = samples.read_bytes().count(b"\n")
        before = stub.requests
        summary = run(stub.url, accuracy, path, tmp_path)
        # a request that the killed process had sent may arrive late: as many as it had in flight
        assert 0 <= stub.requests - before - (400 - kept) <= accuracy.concurrency
    assert 20 <= kept < 400
    assert (summary.correct, summary.reused) == (400, kept)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"question_id": "elsewhere"}, "answers no question of this set"),
        ({"prompt_sha256": "1" * 64}, "answers no question of this set"),
        ({"correct": False}, "is not graded as final-integer grades it"),
        ({"answer": "8"}, "is not graded as final-integer grades it"),
        ({"error": "HTTP 500"}, "is not graded as final-integer grades it"),
    ],
)
def test_samples_that_somebody_edited_are_not_taken_over(tmp_path: Path, change: JSON, complaint: str) -> None:
    path, accuracy = write_questions(tmp_path, additions(2))
    with Stub() as stub:
        run(stub.url, accuracy, path, tmp_path)
        first = lines_of(tmp_path)[0]
        (tmp_path / "samples.jsonl").write_text(json.dumps(first | change) + "\n")
        with pytest.raises(StageError, match=complaint):
            run(stub.url, accuracy, path, tmp_path)
        assert stub.requests == 2
