"""evalscope is run where it is, with its own command line, and where it is not that is said; nothing is made in its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from stub import MODEL, Stub

from release.errors import StageError
from release.types import Evaluation, tuples
from release.validators.foreign.running import DATA, VARIABLE, argv, evaluate, missing
from release.validators.samples import read_samples

SET: dict[str, Any] = {
    **{"name": "sums", "runner": "evalscope", "dataset": "general_mcq", "path": "mcq", "margin": 0.02, "max-tokens": 16},
    "options": {"subset_list": ["sums"]},
}
TABLE = "id,question,A,B,C,D,answer\n1,What is 1+1?,2,3,4,5,A\n2,What is 2+2?,4,3,2,5,A\n3,What is 3+2?,4,5,2,1,B\n"


def evaluation(**changes: Any) -> Evaluation:
    return Evaluation.model_validate(tuples({**SET, **changes}))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data" / "mcq").mkdir(parents=True)
    (tmp_path / "data" / "mcq" / "sums_val.csv").write_text(TABLE)
    monkeypatch.setenv(DATA, str(tmp_path / "data"))
    return tmp_path / "data"


def test_where_the_tool_or_the_data_is_not_here_that_is_said(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert missing(evaluation()).startswith(f"{VARIABLE} names no interpreter: python -m venv")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    assert "is no file" in missing(evaluation())
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setenv(VARIABLE, str(python))
    assert missing(evaluation()) == ""
    assert f"does not lie below {DATA}" in missing(evaluation(path="gsm8k"))
    monkeypatch.delenv(DATA)
    with pytest.raises(StageError, match="put the data set there"):
        evaluate(evaluation(), url="http://127.0.0.1:1", model="m", out=tmp_path / "s", work=tmp_path, log=tmp_path / "log")


def test_the_command_line_says_all_that_the_cell_says_and_resumes_what_is_there(tmp_path: Path) -> None:
    given = evaluation(temperature=0.6, repeats=4, seed=7, concurrency=16)
    line = argv("python", given, url="http://127.0.0.1:8000", model="m", data=Path("/data"), out=tmp_path)
    told = {word: line[place + 1] for place, word in enumerate(line[:-1]) if word.startswith("--")}
    assert json.loads(told["--dataset-args"]) == {"general_mcq": {"local_path": "/data/mcq", "subset_list": ["sums"]}}
    assert json.loads(told["--generation-config"]) == {"max_tokens": 16, "temperature": 0.6, "seed": 7}
    assert (told["--repeats"], told["--eval-batch-size"], told["--api-url"]) == ("4", "16", "http://127.0.0.1:8000/v1")
    assert "--use-cache" not in line
    (tmp_path / "predictions").mkdir()
    again = argv("python", given, url="http://127.0.0.1:8000", model="m", data=Path("/data"), out=tmp_path)
    assert again[-2:] == ["--use-cache", str(tmp_path)]


@pytest.mark.integration
@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no interpreter with evalscope")
def test_evalscope_runs_and_its_samples_are_ours(tmp_path: Path, data: Path) -> None:
    with Stub() as stub:
        summary = evaluate(
            evaluation(), url=stub.url, model=MODEL, out=tmp_path / "samples.jsonl", work=tmp_path / "ev", log=tmp_path / "log"
        )
    kept = read_samples(tmp_path / "samples.jsonl")
    assert summary.n == len(kept.records) == 3
    assert kept.fingerprint["harness"].startswith("evalscope ")
    assert "evalscope.cli.cli eval" in (tmp_path / "log").read_text()
