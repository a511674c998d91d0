"""Every check of the protocol passes a server that keeps it, and fails one that breaks it in the way it looks for."""

from __future__ import annotations

import pytest
from stub import CONTEXT, MODEL, Stub

from release.errors import ServingError
from release.types import Status, Verdict
from release.validators.conformance import CHECKS, PREFIX, conformance
from release.validators.endpoint import Endpoint

DEFECTS = [
    ("models-without-ours", "models"),
    ("models-not-json", "models"),
    ("no-id", "chat"),
    ("wrong-role", "chat"),
    ("empty-content", "chat"),
    ("null-content", "chat"),
    ("finish-null", "chat"),
    ("one-choice-more", "chat"),
    ("no-choices", "chat"),
    ("not-json", "chat"),
    ("500", "chat"),
    ("completion-empty", "completion"),
    ("completion-500", "completion"),
    ("no-done", "stream-framing"),
    ("after-done", "stream-framing"),
    ("no-role-first", "stream-framing"),
    ("two-finish-reasons", "stream-framing"),
    ("no-usage-event", "stream-framing"),
    ("usage-everywhere", "stream-framing"),
    ("usage-beside-choice", "stream-framing"),
    ("other-ids", "stream-framing"),
    ("data-without-space", "stream-framing"),
    ("no-empty-line", "stream-framing"),
    ("stream-not-json", "stream-framing"),
    ("latin-1", "stream-framing"),
    ("not-event-stream", "stream-framing"),
    ("error-event", "stream-framing"),
    ("stream-dies", "stream-framing"),
    ("stream-other-text", "stream-equals-whole"),
    ("usage-wrong-sum", "usage"),
    ("prompt-tokens-drift", "usage"),
    ("no-usage", "usage"),
    ("stop-ignored", "stop"),
    ("stop-included", "stop"),
    ("stop-list-ignored", "stop"),
    ("max-tokens-ignored", "max-tokens"),
    ("max-tokens-off-by-one", "max-tokens"),
    ("max-tokens-finish-stop", "max-tokens"),
    ("n-ignored", "two-choices"),
    ("same-index", "two-choices"),
    ("logprobs-missing", "logprobs"),
    ("logprob-positive", "logprobs"),
    ("chosen-not-on-top", "logprobs"),
    ("top-missing", "logprobs"),
    ("bad-json-500", "bad-json"),
    ("bad-json-plain", "bad-json"),
    ("bad-json-no-type", "bad-json"),
    ("unknown-model-served", "unknown-model"),
    ("unknown-model-400", "unknown-model"),
    ("negative-accepted", "negative-max-tokens"),
    ("overlong-accepted", "overlong-prompt"),
    ("overlong-500", "overlong-prompt"),
    ("role-accepted", "bad-role"),
    ("wizard-500", "bad-role"),
    ("path-200", "unknown-path"),
    ("crosstalk", "many-at-once"),
    ("drops-under-load", "many-at-once"),
    ("sick-after-errors", "healthy-after-errors"),
]


def look(*defects: str) -> dict[str, Verdict]:
    with Stub(*defects) as stub:
        verdicts = conformance(Endpoint(stub.url, MODEL, read_timeout=5), max_model_len=CONTEXT, progress=lambda *_: None)
    assert [verdict.name for verdict in verdicts] == [PREFIX + name for name in CHECKS]
    return {verdict.name.removeprefix(PREFIX): verdict for verdict in verdicts}


def test_every_check_has_a_defect_that_it_finds() -> None:
    assert {check for _, check in DEFECTS} == set(CHECKS)


@pytest.mark.integration
def test_a_server_that_keeps_the_protocol_passes_every_check() -> None:
    verdicts = look()
    assert {name: v.reason for name, v in verdicts.items() if v.status is not Status.PASSED} == {}
    assert all(v.measured and v.wanted and v.reason for v in verdicts.values())
    assert verdicts["many-at-once"].figures == {"requests": 16, "differ": 0}


@pytest.mark.integration
@pytest.mark.parametrize(("defect", "check"), DEFECTS)
def test_a_check_fails_the_defect_that_it_looks_for(defect: str, check: str) -> None:
    verdict = look(defect)[check]
    assert verdict.status is Status.FAILED, verdict
    assert verdict.measured and verdict.reason != "as the protocol says"


@pytest.mark.integration
def test_a_defect_of_streams_leaves_the_other_checks_alone() -> None:
    failed = {name for name, verdict in look("no-done").items() if verdict.status is not Status.PASSED}
    assert failed == {"stream-framing", "stream-equals-whole", "usage"}


@pytest.mark.integration
def test_a_server_that_answers_at_random_leaves_streaming_inconclusive() -> None:
    verdict = look("random-text")["stream-equals-whole"]
    assert verdict.status is Status.INCONCLUSIVE and verdict.figures["texts"] > 1


@pytest.mark.integration
def test_other_answers_under_load_are_reported_and_no_failure() -> None:
    verdict = look("drifts")["many-at-once"]
    assert verdict.status is Status.PASSED and verdict.figures["differ"] > 0
    assert f"{verdict.figures['differ']} differ" in verdict.measured and "not a failure" in verdict.reason


@pytest.mark.integration
def test_a_server_that_dies_ends_the_run_and_names_the_check() -> None:
    with Stub("overlong-kills") as stub, pytest.raises(ServingError, match="conformance/overlong-prompt: the server is dead"):
        conformance(Endpoint(stub.url, MODEL, read_timeout=5), max_model_len=CONTEXT, progress=lambda *_: None)


@pytest.mark.integration
def test_a_server_that_stalls_fails_and_does_not_hold_up_the_run_for_ever() -> None:
    with Stub("stalls") as stub:
        endpoint = Endpoint(stub.url, MODEL, read_timeout=0.05)
        verdicts = conformance(endpoint, max_model_len=CONTEXT, progress=lambda *_: None)
    assert [v.name for v in verdicts if v.status is Status.PASSED] == [PREFIX + "models"]
    assert "no complete answer within 0.05 s" in verdicts[1].reason


@pytest.mark.integration
def test_a_check_that_breaks_is_a_failed_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Endpoint) -> list[dict[str, object]]:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(Endpoint, "models", broken)
    verdict = look()["models"]
    assert verdict.status is Status.FAILED and verdict.reason == "ZeroDivisionError: nobody thought of this"


@pytest.mark.integration
def test_progress_names_each_check_before_it_runs() -> None:
    heard: list[tuple[int, int, str]] = []
    with Stub() as stub:
        conformance(Endpoint(stub.url, MODEL), max_model_len=CONTEXT, progress=lambda *step: heard.append(step))
    assert [what for _, _, what in heard] == [*CHECKS, "done"] and heard[-1][:2] == (len(CHECKS), len(CHECKS))
