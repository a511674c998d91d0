"""Each way of being another model is caught by the cheapest layer that can see it; what cannot be measured says so, in bounded time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import MODEL, Oracle

from release.errors import StageError
from release.types import Status
from release.types.consistency import Consistency, Examination, Limits
from release.validators.consistency import Trace, compare_folders, compare_with, examine, read_trace, record_reference
from release.validators.consistency.asking import NumbersError, UnshownError, read_answer, read_prompt, read_scores
from release.validators.endpoint import Endpoint

LIMITS = Limits(kl=0.005, disagreement=0.02, divergence=0.10, mmd=0.03, calibrated="for the oracle alone")
WORDS = ("add", "a long walk", "sum of these", "go", "tell me more", "what now", "three words here", "zebra")


def lines() -> Iterator[dict[str, Any]]:
    for number in range(32):
        text = f"{WORDS[number % 8]} {WORDS[number % 5]} {'again ' * (number % 7)}"
        if number % 4 == 3:
            yield {"id": f"p{number:02}", "kind": "text", "text": text}
        else:
            yield {"id": f"p{number:02}", "kind": "chat", "messages": [{"role": "user", "content": text}]}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    return path


def spec(prompts: Path, **changes: Any) -> Examination:
    fields: dict[str, Any] = {
        "prompts": "prompts.jsonl", "sha256": "sha256:" + hashlib.sha256(prompts.read_bytes()).hexdigest(),
        "tokens": 1000, "top": 10, "max_tokens": 24, "samples": 10, "floor": 8, "concurrency": 8, "patience": 5.0, "within": 60.0,
    }  # fmt: skip
    return Examination.model_validate(fields | changes)


def client(oracle: Oracle) -> Endpoint:
    return Endpoint(oracle.url, MODEL)


def model_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8, "dtype": "float32"} | changes))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}, "version": "1.0"}')
    (folder / "chat_template.jinja").write_text("<{{ role }}>\n")
    return folder


@pytest.fixture(scope="module")
def trace(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("reference")
    with Oracle() as oracle:
        return record_reference(
            client(oracle), spec(prompts), prompts, folder / "trace", model_folder=model_folder(folder / "model")
        )


def compared(
    trace: Trace, prompts: Path, out: Path, *defects: str, options: dict[str, Any] | None = None, **changes: Any
) -> Consistency:
    with Oracle(*defects, **(options or {})) as oracle:
        return compare_with(trace, client(oracle), spec(prompts, **changes), LIMITS, prompts, out)


pytestmark = pytest.mark.integration


def test_the_same_model_is_consistent_in_all_layers(trace: Trace, prompts: Path, tmp_path: Path) -> None:
    found = compared(trace, prompts, tmp_path / "out")
    assert (found.finding, found.caught_by, found.reference) == ("CONSISTENT", None, trace.digest)
    assert [one.name for one in found.verdicts] == ["identity", "scoring", "decoding", "sampling"]
    assert all(one.status is Status.PASSED for one in found.verdicts)
    scoring = found.verdicts[1].figures
    assert scoring["kl"]["mean"] < 1e-6 and scoring["disagreement"]["mean"] == 0 and scoring["tokens"] >= 1000
    assert {one["slice"] for one in scoring["slices"]} >= {"kind chat", "kind text"}


@pytest.mark.parametrize(
    ("defects", "options", "layer", "says"),
    [
        (("template",), {}, "identity", "chat template differs"),
        (("template", "no-ids"), {}, "identity", "each by -1 tokens: the chat template differs"),
        (("tokenizer",), {}, "identity", "have other tokens: the tokenizer differs"),
        ((), {"context": 90}, "identity", "cut to 90 tokens of 200"),
        (("no-context",), {"context": 60}, "identity", "refused that the reference answers"),
        (("usage-lies",), {}, "identity", "usage says"),
        ((), {"noise": 0.5}, "scoring", "KL ≥"),
        (("nan",), {}, "scoring", "is nan"),
        (("null",), {}, "scoring", "is None"),
        (("positive",), {}, "scoring", "is 0.5"),
        (("short",), {}, "scoring", "positions are scored"),
        (("unscored",), {}, "scoring", "the token that stands there is not scored"),
        (("loops",), {}, "decoding", "endless"),
        (("cold",), {}, "sampling", "MMD²"),
    ],
)
def test_a_defect_is_caught_by_the_cheapest_layer_that_sees_it(
    trace: Trace, prompts: Path, tmp_path: Path, defects: tuple[str, ...], options: dict[str, Any], layer: str, says: str
) -> None:
    found = compared(trace, prompts, tmp_path / "out", *defects, options=options)
    assert (found.finding, found.caught_by) == ("DIFFERENT", layer)
    caught = next(one for one in found.verdicts if one.name == layer)
    assert caught.status is Status.FAILED and says in caught.reason and caught.reason.startswith("DIFFERENT: ")
    after = found.verdicts[found.verdicts.index(caught) + 1 :]
    assert all(one.status is Status.SKIPPED and layer in one.reason for one in after)


@pytest.mark.parametrize(
    ("defect", "layer", "says"),
    [
        ("no-scores", "scoring", "shows no prompt_logprobs"),
        ("scoring-500", "scoring", "HTTP 500"),
        ("stalls-scoring", "scoring", "within 1 s"),
    ],
)
def test_a_layer_that_cannot_be_measured_keeps_the_whole_from_being_consistent(
    trace: Trace, prompts: Path, tmp_path: Path, defect: str, layer: str, says: str
) -> None:
    found = compared(trace, prompts, tmp_path / "out", defect, patience=1.0)
    verdict = next(one for one in found.verdicts if one.name == layer)
    assert verdict.status is Status.INCONCLUSIVE and verdict.figures["finding"] == "UNVERIFIABLE" and says in verdict.reason
    assert found.finding == "INCONCLUSIVE" and found.caught_by is None


@pytest.mark.parametrize("defect", ["stalls", "500"])
def test_a_server_that_answers_nothing_is_unverifiable_in_bounded_time(
    trace: Trace, prompts: Path, tmp_path: Path, defect: str
) -> None:
    began = time.monotonic()
    found = compared(trace, prompts, tmp_path / "out", defect, patience=1.0)
    assert found.finding == "UNVERIFIABLE" and time.monotonic() - began < 60


def test_a_layer_ends_when_its_time_is_over(trace: Trace, prompts: Path, tmp_path: Path) -> None:
    found = compared(trace, prompts, tmp_path / "out", "slow", within=0.3, concurrency=1)
    assert "within 0.3 s" in found.verdicts[1].reason and found.finding == "UNVERIFIABLE"


def test_a_server_that_is_gone_is_not_asked_again(
    trace: Trace, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.validators.consistency.asking.PAUSES", ())
    with Oracle() as oracle:
        url = oracle.url
    found = compare_with(trace, Endpoint(url, MODEL), spec(prompts), LIMITS, prompts, tmp_path / "out")
    assert [one.status for one in found.verdicts] == [Status.INCONCLUSIVE] + [Status.SKIPPED] * 3
    assert found.finding == "UNVERIFIABLE" and "gone" in found.verdicts[1].reason


@pytest.mark.parametrize("defect", ["no-ids", "strict"])
def test_without_token_ids_only_text_is_compared(trace: Trace, prompts: Path, tmp_path: Path, defect: str) -> None:
    found = compared(trace, prompts, tmp_path / "out", defect)
    assert [one.figures["finding"] for one in found.verdicts] == ["CONSISTENT"] * 4
    assert found.verdicts[0].figures["ids-shown"] == 0


def test_a_reference_without_token_ids_has_no_scores_and_says_so(prompts: Path, tmp_path: Path) -> None:
    with Oracle("no-ids") as oracle:
        silent = record_reference(client(oracle), spec(prompts), prompts, tmp_path / "trace")
    assert "return_token_ids" in silent.facts["unshown"] and "scores.jsonl" not in silent.facts["files"]
    found = compared(silent, prompts, tmp_path / "out")
    assert found.verdicts[1].figures["finding"] == "UNVERIFIABLE" and found.verdicts[2].status is Status.PASSED


def test_an_interrupted_recording_goes_on_where_it_stopped(prompts: Path, tmp_path: Path) -> None:
    with Oracle("scoring-500") as oracle, pytest.raises(StageError, match="HTTP 500"):
        record_reference(client(oracle), spec(prompts), prompts, tmp_path / "trace")
    with pytest.raises(StageError, match="no finished trace"):
        read_trace(tmp_path / "trace")
    with Oracle() as oracle:
        done = record_reference(client(oracle), spec(prompts), prompts, tmp_path / "trace")
        assert all("prompt_logprobs" in body for body in oracle.requests)
        asked = len(oracle.requests)
        again = record_reference(client(oracle), spec(prompts), prompts, tmp_path / "trace")
        assert len(oracle.requests) == asked and again.facts["files"] == done.facts["files"]


def test_a_killed_recording_loses_at_most_what_was_in_flight(prompts: Path, tmp_path: Path) -> None:
    asked = spec(prompts)
    program = (
        "from pathlib import Path\nfrom release.types.consistency import Examination\n"
        "from release.validators.consistency import record_reference\nfrom release.validators.endpoint import Endpoint\n"
        "import sys\nrecord_reference(Endpoint(sys.argv[1], sys.argv[2]), Examination.model_validate_json(sys.argv[3]), "
        "Path(sys.argv[4]), Path(sys.argv[5]))\n"
    )
    words = [MODEL, asked.model_dump_json(by_alias=True), str(prompts), str(tmp_path / "trace")]
    with Oracle("slow") as oracle:
        process = subprocess.Popen([sys.executable, "-c", program, oracle.url, *words])
        try:
            deadline = time.monotonic() + 60
            while len(oracle.requests) < 100 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        oracle.defects.clear()
        record_reference(client(oracle), asked, prompts, tmp_path / "trace")
        total = len(oracle.requests)
    with Oracle() as oracle:
        record_reference(client(oracle), asked, prompts, tmp_path / "whole")
        assert len(oracle.requests) <= total <= len(oracle.requests) + asked.concurrency


def test_a_trace_that_was_changed_or_recorded_otherwise_is_refused(trace: Trace, prompts: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "trace"
    shutil.copytree(trace.folder, copy)
    with pytest.raises(StageError, match=r"recorded otherwise: samples \(10 there, 7 here\)"):
        compared(trace, prompts, tmp_path / "out", samples=7)
    text = (copy / "answers.jsonl").read_text()
    (copy / "answers.jsonl").write_text(text.replace("stop", "stop ", 1))
    with pytest.raises(StageError, match=r"answers.jsonl is not the one"):
        read_trace(copy)
    (copy / "trace.json").write_text('{"files": {"../x": "y"}, "harness": "other"}')
    with pytest.raises(StageError, match="is no trace"):
        read_trace(copy)


def test_two_running_servers_are_examined_in_turns(prompts: Path, tmp_path: Path) -> None:
    with Oracle() as reference, Oracle() as same, Oracle("template") as other:
        found = examine(client(reference), client(other), spec(prompts), LIMITS, prompts, tmp_path / "other")
        assert (found.caught_by, found.reference) == ("identity", None)
        assert len(reference.requests) == 32, "the reference is asked only for what the layer needs"
        found = examine(client(reference), client(same), spec(prompts), LIMITS, prompts, tmp_path / "same")
        assert found.finding == "CONSISTENT"


def test_folders_are_compared_without_a_server(trace: Trace, prompts: Path, tmp_path: Path) -> None:
    assert compare_folders(trace, model_folder(tmp_path / "same", dtype="bfloat16")) == ""
    other = model_folder(tmp_path / "other", hidden_size=9)
    (other / "chat_template.jinja").write_text("<{{ role }}>")
    assert compare_folders(trace, other) == "the folders differ in chat template, config.json (hidden_size)"
    with Oracle() as oracle:
        found = compare_with(trace, client(oracle), spec(prompts), LIMITS, prompts, tmp_path / "out", model_folder=other)
        assert found.caught_by == "identity" and oracle.requests == []


def test_what_was_thought_is_part_of_an_answer() -> None:
    thought = choice(message={"content": None, "reasoning_content": "hm"}, finish_reason="length")
    assert read_answer(thought) == {"prompt": None, "ids": None, "text": "hm", "finish": "length"}


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [fields], "usage": {"prompt_tokens": 2}}


@pytest.mark.parametrize(
    ("shown", "error"),
    [
        (None, UnshownError),
        ("x", NumbersError),
        ([None], NumbersError),
        ([None, None], NumbersError),
        ([None, {}], NumbersError),
        ([None, {"5": {"logprob": "x"}}], NumbersError),
        ([None, {"5": {"logprob": True}}], NumbersError),
        ([None, {"five": {"logprob": -1.0}}], NumbersError),
        ([None, {"6": {"logprob": -1.0}}], NumbersError),
        ([None, {"5": None}], NumbersError),
    ],
)
def test_scores_of_another_shape_are_refused(shown: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_scores(choice(prompt_logprobs=shown), [4, 5], 1, 3)


def test_scores_are_sorted_by_logprob_then_rank_and_cut() -> None:
    at = {"5": {"logprob": -3.0, "rank": 4}, "7": {"logprob": -1.0, "rank": 2}, "8": {"logprob": -1.0, "rank": 1}}
    found = read_scores(choice(prompt_logprobs=[None, at]), [4, 5], 1, 2)
    assert found == {"top": [[8, 7]], "logprobs": [[-1.0, -1.0]], "chosen": [-3.0]}


def test_answers_of_another_shape_are_refused() -> None:
    for broken in (
        {},
        {"choices": []},
        choice(text=3, finish_reason="stop"),
        choice(text="x", finish_reason="abort"),
        choice(message={"content": ["x"]}, finish_reason="stop"),
    ):
        with pytest.raises(StageError):
            read_answer(broken)
    with pytest.raises(UnshownError, match=r"usage.prompt_tokens"):
        read_prompt({"choices": [{}]})
    with pytest.raises(NumbersError, match="usage says 2"):
        read_prompt(choice() | {"prompt_token_ids": [1]})
