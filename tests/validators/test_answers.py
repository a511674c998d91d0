"""Two sides are compared question by question, ours or anybody's files, and hostile ones end in a clear refusal."""

from __future__ import annotations

import hashlib
import json
import random
import resource
from pathlib import Path
from typing import Any

import pytest

from release.errors import UsageError
from release.validators.answers import Answer, Side, judge
from release.validators.files import read_side, verdict_of_files
from release.validators.judgement import Basis, Finding
from release.validators.verdicts import Plan

JSON = dict[str, Any]


def write(path: Path, rows: list[JSON], fingerprint: JSON | None = None) -> Path:
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(data)
    if fingerprint is not None:
        side = {"fingerprint": fingerprint, "samples-sha256": "sha256:" + hashlib.sha256(data).hexdigest()}
        path.with_name("evaluation.json").write_text(json.dumps(side))
    return path


def plain(right: int, n: int, offset: int = 0) -> list[JSON]:
    return [{"id": f"q{i}", "correct": offset <= i < offset + right} for i in range(n)]


def files(tmp_path: Path, one: list[JSON], two: list[JSON]) -> tuple[Path, Path]:
    return write(tmp_path / "cand.jsonl", one), write(tmp_path / "ref.jsonl", two)


def test_plain_files_are_judged_in_pairs_and_called_no_measurement(tmp_path: Path) -> None:
    found = verdict_of_files(*files(tmp_path, plain(949, 1000), plain(952, 1000)), margin=0.02)
    assert found.finding is Finding.CONSISTENT and found.basis is Basis.PAIRED and not found.measured
    assert found.delta == pytest.approx(-0.003) and found.discordance == 0.003
    assert "both sides were asked the same is their word" in found.notes[0] and "how answers ended is not told" in found.notes[1]


def test_the_pairing_shows_what_totals_hide(tmp_path: Path) -> None:
    # as many right on both sides, other ones: 100 of 1000 answers changed
    found = verdict_of_files(*files(tmp_path, plain(900, 1000), plain(900, 1000, 50)), margin=0.02)
    assert found.delta == 0.0 and found.discordance == 0.1
    same = verdict_of_files(*files(tmp_path, plain(900, 1000), plain(900, 1000)), margin=0.02)
    assert same.interval is not None and found.interval is not None and same.interval[0] > found.interval[0]


def test_files_of_ours_are_compared_by_fingerprint(tmp_path: Path) -> None:
    told = {
        "questions": "sha256:1", "n": 200, "prompt": "chat", "temperature": 0.6, "max-tokens": 64, "harness": "release 1",
        "grader": "exact", "max-model-len": 4096,
    }  # fmt: skip
    rows = [row | {"finish_reason": "stop", "error": None, "completion_tokens": 9} for row in plain(190, 200)]
    one = write(tmp_path / "a" / "samples.jsonl", rows, told)
    two = write(tmp_path / "b" / "samples.jsonl", rows, told)
    found = verdict_of_files(one, two, margin=0.05)
    assert found.finding is Finding.CONSISTENT and found.measured and found.notes == ()
    write(two, rows, told | {"max-model-len": 2048})
    found = verdict_of_files(one, two, margin=0.05)
    assert found.finding is Finding.UNVERIFIABLE and "max-model-len (4096 vs 2048)" in found.reason
    write(two, rows, {key: value for key, value in told.items() if key != "harness"})
    assert "does not say: the harness" in verdict_of_files(one, two, margin=0.05).reason


def test_a_sidecar_of_another_file_is_not_believed(tmp_path: Path) -> None:
    one, two = files(tmp_path, plain(10, 20), plain(10, 20))
    (tmp_path / "evaluation.json").write_text(json.dumps({"fingerprint": {"n": 20}, "samples-sha256": "sha256:" + "0" * 64}))
    assert read_side(one).fingerprint is None
    for hostile in ("[" * 100_000, "{", '{"samples-sha256": 1}', "null", " " * (2 << 20)):
        (tmp_path / "evaluation.json").write_text(hostile)
        assert read_side(two).fingerprint is None


def test_repeats_are_read_by_their_numbers(tmp_path: Path) -> None:
    source = random.Random(1)
    rows = [{"qid": i, "score": float(source.random() < 0.8), "repeat": k} for i in range(60) for k in range(8)]
    found = verdict_of_files(*files(tmp_path, rows, rows), margin=0.05, temperature=0.6)
    assert found.basis is Basis.REPEATED and found.repeats == (8, 8) and found.n == 60 and found.delta == 0.0
    fewer = [row for row in rows if row["repeat"] < 4]
    assert verdict_of_files(*files(tmp_path, fewer, rows), margin=0.05, temperature=0.6).repeats == (4, 8)
    torn = rows[:-1]
    found = verdict_of_files(*files(tmp_path, torn, rows), margin=0.05)
    assert found.finding is Finding.UNVERIFIABLE and "is not whole: it has between 7 and 8 answers" in found.reason


def test_questions_that_belong_together_widen_the_interval(tmp_path: Path) -> None:
    one, two = plain(600, 600), [row | {"correct": i % 30 != 0} for i, row in enumerate(plain(600, 600))]
    two = [row | {"correct": (i // 20) % 15 != 0} for i, row in enumerate(plain(600, 600))]
    apart = verdict_of_files(*files(tmp_path, two, one), margin=0.05)
    clustered = verdict_of_files(
        *files(tmp_path, *([row | {"cluster": i // 20} for i, row in enumerate(rows)] for rows in (two, one))), margin=0.05
    )
    assert apart.interval is not None and clustered.interval is not None
    assert apart.delta == clustered.delta and clustered.interval[0] < apart.interval[0] - 0.03
    assert apart.finding is Finding.REGRESSED and clustered.finding is Finding.INCONCLUSIVE


def test_other_questions_failures_and_cut_off_answers_are_seen(tmp_path: Path) -> None:
    rows = [row | {"finish_reason": "stop", "error": None, "completion_tokens": 9} for row in plain(190, 200)]

    def reason(changed: list[JSON]) -> str:
        found = verdict_of_files(*files(tmp_path, changed, rows), margin=0.05)
        assert found.finding is Finding.UNVERIFIABLE and found.delta is None
        return found.reason

    assert "1 were asked on one side only" in reason(rows[1:])
    assert "requests of" in reason([rows[0] | {"error": "HTTP 500", "correct": None}, *rows[1:]])
    assert "3 requests of" in reason([*({"id": f"q{i}", "correct": None} for i in range(3)), *rows[3:]])
    cut = [row | {"finish_reason": "length", "correct": None} for row in rows[:20]]
    assert "truncated answers differ: 20 of 200 vs 0 of 200" in reason([*cut, *rows[20:]])
    assert "answers have 90.0 tokens" in reason([row | {"completion_tokens": 90} for row in rows])
    assert (
        "another number of tokens"
        in verdict_of_files(
            *files(tmp_path, [row | {"prompt_tokens": 7} for row in rows], [row | {"prompt_tokens": 8} for row in rows]),
            margin=0.05,
        ).reason
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"\n", "is blank"),
        (b"{\n", "is no JSON"),
        (b"[1]\n", "no object"),
        (b'{"id": "a", "id": "b", "correct": true}\n', "twice"),
        (b'{"id": "a", "correct": NaN}\n', "NaN is not JSON"),
        (b'{"id": "a", "correct": "yes"}\n', "the grade is 'yes'"),
        (b'{"id": "a", "score": 1.5}\n', "the grade is 1.5"),
        (b'{"id": "a", "score": 1e999}\n', "the grade is inf"),
        (b'{"id": "a"}\n', "neither 'correct' nor 'score'"),
        (b'{"correct": true}\n', "has no id"),
        (b'{"id": "", "correct": true}\n', "has no id"),
        (b'{"id": true, "correct": true}\n', "has no id"),
        (b'{"id": "%s", "correct": true}\n' % (b"x" * 501), "has no id"),
        (b'{"id": "a", "correct": true, "repeat": -1}\n', "repeat is -1"),
        (b'{"id": "a", "correct": true, "repeat": "0"}\n', "repeat is '0'"),
        (b'{"id": "q0", "correct": true}\n', "stands twice and says no repeat"),
        (b'{"id": "a", "correct": true, "bench": "mmlu"}\n', "is of benchmark 'mmlu'"),
        (b"\xff\xfe\n", "is no JSON"),
        (b"[" * 100_000 + b"\n", "is no JSON"),
        (b'{"id": "a", "correct": ' + b"1" * 5000 + b"}\n", "is no JSON"),
        (b"x" * ((16 << 20) + 1), "is longer than"),
    ],
    ids=range(21),
)
def test_a_hostile_line_is_refused_with_its_place(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "cand.jsonl"
    path.write_bytes(b'{"id": "q0", "correct": true}\n' + line)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_side(path)
    assert f"{path}:2" in str(caught.value) and len(str(caught.value)) < 1000


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_side(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="cannot be read"):
        read_side(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="holds no answers"):
        read_side(tmp_path / "empty.jsonl")


def test_one_question_is_no_spread_and_no_question_nothing() -> None:
    one = Side.of("one", [Answer("q", 0.5)], told=False)
    assert "no spread" in judge(one, one, Plan(0.05)).reason
    none = Side.of("none", [])
    assert "there are no samples" in judge(none, none, Plan(0.05)).reason
    twice = Side.of("twice", [Answer("q", 1.0), Answer("q", 1.0)])
    assert "has a question twice" in judge(twice, twice, Plan(0.05)).reason


def test_cut_off_answers_of_several_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"id": i, "score": 1, "repeat": k, "finish_reason": "stop", "completion_tokens": 5} for i in range(99) for k in range(4)
    ]
    cut = [row | ({"score": None, "finish_reason": "length"} if row["id"] == 3 and row["repeat"] else {}) for row in rows]
    found = verdict_of_files(*files(tmp_path, cut, rows), margin=0.05, temperature=1.0)
    assert found.finding is Finding.CONSISTENT and found.n == 99 and "3 pairs with a cut-off answer are left out" in found.reason


def test_eighty_thousand_answers_fit_into_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            for k in range(4):
                file.write(
                    f'{{"id": "question-{i}", "repeat": {k}, "correct": {"true" if i % 7 else "false"}, "text": "{"x" * 300}"}}\n'
                )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = verdict_of_files(path, path, margin=0.02, temperature=0.6)
    assert found.finding is Finding.CONSISTENT and found.n == 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
