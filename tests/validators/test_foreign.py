"""What other tools wrote is read as they wrote it, and refused where it is damaged, unfinished or worth a part.

The files below `foreign/` are cut out of what lm-eval 0.4.13, evalscope 1.14.1 and inspect-ai 0.3.285 wrote about a real server.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from release.errors import StageError
from release.validators.accuracy import graded_rightly
from release.validators.foreign import evaluation, keep, read_evalscope, read_inspect, read_lm_eval
from release.validators.samples import Samples, read_samples

FILES = Path(__file__).parent / "foreign"
GENERATED = FILES / "lm-eval" / "samples_additions_2026-11-20T17-36-41.664924.jsonl"
SCORED = FILES / "lm-eval" / "samples_mc_2026-11-20T17-38-34.079838.jsonl"
LOG = FILES / "inspect" / "additions.json"
RUN = FILES / "evalscope"
RIGHT = "Rouge-L-R"


def test_generations_of_lm_eval_are_read() -> None:
    samples = read_lm_eval(GENERATED)
    told, first = samples.fingerprint, samples.records[0]
    assert (told["harness"], told["grader"], told["n"], told["repeats"]) == ("lm-eval 0.4.13", "lm-eval exact_match,none", 3, 1)
    assert (told["temperature"], told["max-tokens"], told["shots"], told["model"]) == (0.0, 64, 0, "tiny-qwq")
    assert (first.question_id, first.expected, first.correct) == ("0", "7", False)
    assert first.text.endswith("07") and first.finish_reason is None and first.completion_tokens is None


def test_choices_of_lm_eval_are_read() -> None:
    samples = read_lm_eval(SCORED)
    assert [sample.correct for sample in samples.records] == [True, True, True, False]
    assert (samples.records[0].answer, samples.records[0].expected) == ("B", "1")
    assert json.loads(samples.records[0].text) == [-18.244393348693848, -7.015504360198975]


def test_a_log_of_inspect_is_read_with_its_repeats() -> None:
    samples = read_inspect(LOG)
    told, first = samples.fingerprint, samples.records[0]
    assert (told["harness"], told["grader"], told["n"], told["repeats"]) == ("inspect-ai 0.3.285", "inspect-ai match", 3, 2)
    assert [sample.key for sample in samples.records][:3] == [("q000", 0), ("q000", 1), ("q001", 0)]
    assert (first.correct, first.answer, first.finish_reason) == (True, "7", "stop")
    assert (first.prompt_tokens, first.completion_tokens) == (15, 29)


def test_a_run_of_evalscope_is_read_with_its_repeats_and_subsets() -> None:
    samples = read_evalscope(RUN, "general_qa")
    told, first = samples.fingerprint, samples.records[0]
    assert (told["harness"], told["grader"], told["n"], told["repeats"]) == ("evalscope 1.14.1", f"evalscope {RIGHT}", 2, 2)
    assert (told["temperature"], told["max-tokens"], told["model"]) == (0.0, 64, "tiny-qwq")
    assert (first.question_id, first.cluster, first.answer, first.finish_reason) == ("additions/0", "additions", "07", "stop")
    assert (first.prompt_tokens, first.completion_tokens) == (15, 29)


@pytest.mark.parametrize(
    "read", [lambda: read_lm_eval(SCORED), lambda: read_inspect(LOG), lambda: read_evalscope(RUN, "general_qa")]
)
def test_what_was_read_can_be_kept_and_read_again(tmp_path: Path, read: Callable[[], Samples]) -> None:
    samples = read()
    path = tmp_path / "evidence" / "samples.jsonl"
    assert keep(samples, path) == keep(samples, path) == read_samples(path).summary
    assert read_samples(path).records == samples.records and read_samples(path).fingerprint == samples.fingerprint
    assert all(graded_rightly(sample, samples.fingerprint["grader"]) for sample in samples.records)


def test_the_same_questions_have_the_same_digest_and_others_another(tmp_path: Path) -> None:
    other = tmp_path / "log.json"
    log = json.loads(LOG.read_text())
    log["samples"] = log["samples"][::-1]
    other.write_text(json.dumps(log))
    assert read_inspect(other).fingerprint == read_inspect(LOG).fingerprint
    for sample in log["samples"]:
        sample["input"] += " "
    other.write_text(json.dumps(log))
    assert read_inspect(other).fingerprint["questions"] != read_inspect(LOG).fingerprint["questions"]


# hostile files


def changed_lm_eval(folder: Path, change: Callable[[list[Any]], None] | bytes) -> Path:
    path = folder / GENERATED.name
    shutil.copy(next(FILES.glob("lm-eval/results_*41.664924.json")), folder)
    if isinstance(change, bytes):
        path.write_bytes(change)
        return path
    lines = [json.loads(line) for line in GENERATED.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (b"", "there are no samples"),
        (b"{\n", "line 1 is no JSON"),
        (b"\n", "line 1 is blank"),
        (b"[]\n", "no object"),
        (b"{}\n", "there is no filter"),
        (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "line 1 is no JSON"),
        (b"\xff\n", "line 1 is no JSON"),
        (lambda lines: lines[0].update(exact_match=0.5), "neither right nor wrong"),
        (lambda lines: lines[0].update(exact_match=float("nan")), "line 1 is no JSON"),
        (lambda lines: lines[0].update(exact_match="C" * 1000), "neither right nor wrong"),
        (lambda lines: lines[0].pop("exact_match"), "there is no exact_match"),
        (lambda lines: lines[0].update(metrics=["acc"], acc=1), "the metrics acc, exact_match"),
        (lambda lines: lines.append({**lines[0], "filter": "strict-match"}), "the filters none, strict-match"),
        (lambda lines: lines.append(lines[0]), "'0' .repeat 0. stands twice"),
        (lambda lines: lines[0].update(resps=[]), "there is no resps.0.0"),
        (lambda lines: lines[0].update(resps=[[7]]), "text"),
        (lambda lines: lines[0].update(filtered_resps=[["x", "y"]]), "no numbers"),
        (lambda lines: lines[0].update(filtered_resps=[["nan", "y"]]), "no numbers"),
        (lambda lines: lines[0].update(arguments=7), "there is no arguments"),
    ],
)
def test_damaged_files_of_lm_eval_are_refused(
    tmp_path: Path, change: Callable[[list[Any]], None] | bytes, complaint: str
) -> None:
    with pytest.raises(StageError, match=complaint):
        read_lm_eval(changed_lm_eval(tmp_path, change))


def test_one_of_several_filters_can_be_named(tmp_path: Path) -> None:
    path = changed_lm_eval(
        tmp_path, lambda lines: lines.extend({**line, "filter": "strict", "exact_match": 1.0} for line in lines[:])
    )
    assert read_lm_eval(path, "exact_match,strict").summary.correct == 3
    assert read_lm_eval(path, "exact_match,none").summary.correct == 0


def test_samples_without_their_results_and_other_names_are_refused(tmp_path: Path) -> None:
    shutil.copy(GENERATED, tmp_path)
    with pytest.raises(StageError, match="cannot be read"):
        read_lm_eval(tmp_path / GENERATED.name)
    with pytest.raises(StageError, match="is not named samples_TASK_DATE"):
        read_lm_eval(tmp_path / "samples.jsonl")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda log: log.update(status="error"), "the run ended with 'error'"),
        (lambda log: log.pop("samples"), "there is no samples"),
        (lambda log: log.update(samples={}), "no list"),
        (lambda log: log.update(samples=[]), "there are no samples"),
        (lambda log: log.update(samples=[7]), "there is no id"),
        (lambda log: log["samples"].pop(), "samples are not 2 of each"),
        (lambda log: log["samples"][0].update(epoch=0), "epoch 0 is none"),
        (lambda log: log["samples"][0].update(epoch="1"), "epoch '1' is none"),
        (lambda log: log["samples"][0].update(input="other"), "do not ask the same"),
        (lambda log: log["samples"][0]["scores"].update(other={"value": 1}), "there are the scores match, other"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value="P"), "neither right nor wrong"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value=0.3), "neither right nor wrong"),
        (lambda log: log["samples"][0]["output"].update(choices=[]), "there is no choices.0"),
        (lambda log: log["samples"][0]["output"]["usage"].update(output_tokens=-1), "completion_tokens"),
    ],
)
def test_damaged_logs_of_inspect_are_refused(tmp_path: Path, change: Callable[[Any], None], complaint: str) -> None:
    log = json.loads(LOG.read_text())
    change(log)
    (tmp_path / "log.json").write_text(json.dumps(log))
    with pytest.raises(StageError, match=complaint):
        read_inspect(tmp_path / "log.json")


def test_failures_and_cut_off_answers_of_inspect_are_not_graded(tmp_path: Path) -> None:
    log = json.loads(LOG.read_text())
    log["samples"][0]["error"] = {"message": "boom"}
    log["samples"][1]["output"]["choices"][0]["stop_reason"] = "max_tokens"
    log["samples"][2]["output"]["choices"][0]["stop_reason"] = "content_filter"
    (tmp_path / "log.json").write_text(json.dumps(log))
    summary = read_inspect(tmp_path / "log.json").summary
    assert (summary.failed, summary.truncated, summary.n) == (2, 1, 6)


def test_an_archive_of_inspect_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="an archive") as caught:
        read_inspect(tmp_path / "log.eval")
    assert "inspect log convert" in caught.value.next_step


def changed_evalscope(folder: Path, kind: str, change: Callable[[list[Any]], Any]) -> Path:
    shutil.copytree(RUN, folder / "run")
    path = folder / "run" / kind / "tiny-qwq" / "general_qa_additions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "run"


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("reviews", lambda lines: lines.pop(), "1 predictions have no review"),
        ("predictions", lambda lines: lines.pop(), "has a review and no prediction"),
        ("reviews", lambda lines: lines[0].pop("sample_score"), "there is no sample_score"),
        ("reviews", lambda lines: lines[0]["sample_score"]["score"]["value"].update({RIGHT: 0.4}), "neither right nor wrong"),
        ("reviews", lambda lines: lines[0]["sample_score"].update(generation_index=-1), "repeat"),
        ("reviews", lambda lines: lines[0]["sample_score"].update(generation_index=True), "repeat"),
        ("reviews", lambda lines: lines[0]["sample_score"].update(generation_index=7), "samples are not 8 of each"),
        ("predictions", lambda lines: lines[0].update(model_output=None), None),
        ("predictions", lambda lines: lines[0]["model_output"].update(error="boom"), None),
    ],
)
def test_damaged_runs_of_evalscope_are_refused_and_failures_counted(
    tmp_path: Path, kind: str, change: Callable[[list[Any]], Any], complaint: str | None
) -> None:
    folder = changed_evalscope(tmp_path, kind, change)
    if complaint is None:
        assert read_evalscope(folder, "general_qa").summary.failed == 1
        return
    with pytest.raises(StageError, match=complaint):
        read_evalscope(folder, "general_qa")


def test_a_benchmark_that_was_not_run_is_refused_with_those_that_were() -> None:
    with pytest.raises(StageError, match="no review of mmlu") as caught:
        read_evalscope(RUN, "mmlu")
    assert "general_qa_additions" in caught.value.next_step


def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(StageError, match="is no file"):
        read_inspect(tmp_path / "x.json")
    monkeypatch.setattr(evaluation, "LARGEST", 100)
    with pytest.raises(StageError, match="more than 100 bytes"):
        read_inspect(LOG)
    monkeypatch.setattr(evaluation, "LARGEST", 10**9)
    monkeypatch.setattr(evaluation, "LONGEST_LINE", 100)
    with pytest.raises(StageError, match="line 1 has 100 bytes or more"):
        read_lm_eval(GENERATED)
