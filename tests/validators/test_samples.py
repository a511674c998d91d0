"""A log of samples is read strictly, held by one writer, and not believed once somebody changed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from release.errors import ReleaseError, StageError
from release.validators.samples import SIDECAR, Journal, Sample, read_samples

JSON = dict[str, Any]


def sample(number: int = 0, **changes: Any) -> JSON:
    fields: JSON = {
        "question_id": f"q{number:03}", "prompt_sha256": "0" * 64, "answer": "7", "expected": "7", "correct": True,
        "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 3, "latency_s": 0.1, "text": "7", "error": None,
    }  # fmt: skip
    return fields | changes


def write_samples(folder: Path, lines: list[JSON | str], fingerprint: JSON) -> Path:
    (folder / SIDECAR).write_text(json.dumps({"fingerprint": fingerprint}))
    path = folder / "samples.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([sample(), "{}"], "samples.jsonl:2: no sample"),
        ([sample(), ""], "line 2 is blank"),
        ([sample(), "\x00\x00\x00"], "line 2 is no JSON"),
        ([sample(), sample()], "'q000' stands twice"),
        ([sample(correct="yes")], "correct"),
        ([sample(latency_s=-1)], "latency_s"),
        ([sample(latency_s=float("inf"))], "not JSON"),
        ([sample(extra=1)], "extra"),
        ([sample(question_id=7)], "question_id"),
        (["[]"], "no object"),
    ],
)
def test_damaged_samples_are_refused_with_their_line_and_left_alone(
    tmp_path: Path, lines: list[JSON | str], complaint: str
) -> None:
    path = write_samples(tmp_path, lines, {"n": 2})
    before = path.read_bytes()
    with pytest.raises(StageError, match=complaint), Journal(path, {"n": 2}):
        pass
    assert path.read_bytes() == before


def test_samples_without_their_fingerprint_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("somebody else's file\n")
    with pytest.raises(StageError, match=r"evaluation.json is missing"), Journal(path, {"n": 2}):
        pass
    (tmp_path / SIDECAR).write_text("{")
    with pytest.raises(StageError, match="cannot be read"), Journal(path, {"n": 2}):
        pass
    (tmp_path / SIDECAR).write_text("[]")
    with pytest.raises(StageError, match="no fingerprint"), Journal(path, {"n": 2}):
        pass
    assert path.read_text() == "somebody else's file\n"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with Journal(path, {"n": 1}), pytest.raises(StageError, match="another evaluation"), Journal(path, {"n": 1}):
        pass


def test_a_changed_evaluation_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with Journal(path, {"n": 1}) as journal:
        journal.append(Sample.model_validate(sample()))
        journal.finish(1.0, 0)
    assert read_samples(path).summary.correct == 1
    side = json.loads((tmp_path / SIDECAR).read_text())
    (tmp_path / SIDECAR).write_text(json.dumps(side | {"summary": side["summary"] | {"correct": 2}}))
    with pytest.raises(StageError, match="not the sum"):
        read_samples(path)
    (tmp_path / SIDECAR).write_text(json.dumps(side))
    path.write_text(path.read_text().replace("true", "false"))
    with pytest.raises(StageError, match="not those"):
        read_samples(path)
    path.unlink()
    with pytest.raises(ReleaseError, match="No such file"):
        read_samples(path)
