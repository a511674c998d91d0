"""Every check of the protocol passes a server that keeps it, and fails one that breaks it in the way it looks for."""

from __future__ import annotations

import pytest
from stub import CONTEXT, MODEL, Stub

from release.errors import ServingError, UsageError
from release.types import Status, Verdict
from release.validators.conformance import CHECKS, FEATURES, ON_REQUEST, PREFIX, STANDARD, conformance, validate
from release.validators.endpoint import Endpoint

pytestmark = pytest.mark.alone

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
    ("sick", "health"),
    ("same-id", "names"),
    ("other-name", "names"),
    ("last-turn-only", "conversation"),
    ("parts-longer", "content-parts"),
    ("bare-event", "stream-plain"),
    ("stop-leaks", "stream-stop"),
    ("completion-stream-other", "stream-completion"),
    ("penalty-accepted", "penalties"),
    ("chosen-below-top", "greedy-on-top"),
    ("stream-other-token", "stream-logprobs"),
    ("completion-logprob-positive", "completion-logprobs"),
    ("score-positive", "scoring"),
    ("score-null", "scoring"),
    ("score-drifts", "scoring"),
    ("nan-scores", "scoring"),
    ("nan-logprobs", "logprobs"),
    ("score-positive", "prompt-logprobs"),
    ("first-scored", "prompt-logprobs"),
    ("half-context", "full-context"),
    ("forgets", "needle"),
    ("arguments-unfit", "tools-auto"),
    ("calls-finish-stop", "tools-auto"),
    ("calls-anyway", "tools-none"),
    ("no-calls", "tools-required"),
    ("calls-same-id", "tools-required"),
    ("other-tool", "tools-named"),
    ("arguments-torn", "tools-streamed"),
    ("names-repeated", "tools-streamed"),
    ("last-turn-only", "tools-result"),
    ("any-tool", "tools-unknown"),
    ("format-ignored", "json-object"),
    ("schema-broken", "json-schema"),
    ("schema-broken", "json-schema-streamed"),
    ("bad-schema-served", "json-bad-schema"),
    ("reasons-marked", "reasoning"),
    ("reasons-otherwise", "reasoning-streamed"),
    ("last-turn-only", "reasoning-history"),
    ("drops-under-load", "one-too-many"),
    ("seeds-break", "long-at-once"),
    ("slots-leak", "hang-up"),
    ("greedy-drifts-late", "soak"),
    ("endless", "too-many-tokens"),
    ("cold-accepted", "bad-sampling"),
    ("hot-accepted", "bad-sampling"),
    ("no-messages-served", "no-messages"),
    ("get-500", "wrong-method"),
    ("utf8-500", "hostile-bodies"),
    ("wrong-key-served", "auth"),
]
LACKS = [
    ("health-404", "health"),
    ("completion-404", "completion"),
    ("completion-404", "stream-completion"),
    ("no-parts", "content-parts"),
    ("mct-ignored", "max-completion-tokens"),
    ("no-n", "two-choices"),
    ("seed-ignored", "seed"),
    ("greedy-drifts", "greedy-repeats"),
    ("logprobs-missing", "logprobs"),
    ("completion-logprobs-missing", "completion-logprobs"),
    ("no-scoring", "scoring"),
    ("echo-ignored", "scoring"),
    ("prompt-logprobs-missing", "prompt-logprobs"),
    ("no-context", "full-context"),
    ("no-context", "overlong-prompt"),
    ("no-tools", "tools-auto"),
    ("no-tools", "tools-required"),
    ("no-tools", "tools-streamed"),
    ("no-format", "json-object"),
    ("no-format", "json-bad-schema"),
    ("no-thoughts", "reasoning"),
    ("no-thoughts", "reasoning-streamed"),
    ("no-key", "auth"),
]
"""What a server may lack, and the check that says so."""


def by_name(verdicts: tuple[Verdict, ...]) -> dict[str, Verdict]:
    return {verdict.name.removeprefix(PREFIX): verdict for verdict in verdicts}


def look(*defects: str, features: tuple[str, ...] = ()) -> dict[str, Verdict]:
    with Stub(*defects) as stub:
        endpoint = Endpoint(stub.url, MODEL, read_timeout=5)
        return by_name(conformance(endpoint, max_model_len=CONTEXT, progress=lambda *_: None, features=features))


def look_at_one(check: str, *defects: str, require: tuple[str, ...] = (), key: str | None = None) -> Verdict:
    more = ("reasons",) if check.startswith("reasoning") and "no-thoughts" not in defects else ()
    with Stub(*defects, *more, key=key) as stub:
        before = ["bad-json"] if check == "healthy-after-errors" else []
        *_, verdict = validate(stub.url, MODEL, select=[*before, check], require=require, timeout=5, soak=0.5, api_key=key)
    assert verdict.name == PREFIX + check and verdict.measured and verdict.wanted and verdict.reason
    return verdict


def test_every_check_has_a_defect_that_it_finds() -> None:
    assert {check for _, check in DEFECTS} | {"max-completion-tokens", "seed", "greedy-repeats"} == set(CHECKS)


def test_every_feature_belongs_to_a_check_and_every_check_to_a_known_feature() -> None:
    assert {check.feature for check in CHECKS.values()} - {None} == set(FEATURES)
    assert set(FEATURES) >= STANDARD | ON_REQUEST and not STANDARD & ON_REQUEST
    assert list(CHECKS)[-1] == "healthy-after-errors"


@pytest.mark.integration
def test_a_server_that_keeps_the_protocol_passes_every_check_that_a_release_must_pass() -> None:
    verdicts = look()
    assert {name: v.reason for name, v in verdicts.items() if v.status is not Status.PASSED} == {}
    assert list(verdicts) == [name for name, check in CHECKS.items() if check.feature is None or check.feature in STANDARD]
    assert all(v.measured and v.wanted and v.reason for v in verdicts.values())
    assert verdicts["many-at-once"].figures == {"requests": 16, "differ": 0}


@pytest.mark.integration
def test_a_feature_that_the_plan_wants_is_looked_at_and_fails_where_it_is_lacking() -> None:
    assert look("no-tools", features=("tools",))["tools-auto"].status is Status.FAILED
    assert look(features=("tools",))["tools-auto"].status is Status.PASSED
    assert "tools-auto" not in look("no-tools")
    with pytest.raises(UsageError, match="no server has the feature 'toolz'"):
        look(features=("toolz",))


@pytest.mark.integration
@pytest.mark.parametrize("thinks", [False, True])
def test_a_server_that_has_everything_passes_everything(thinks: bool) -> None:
    with Stub("slots-free", *["reasons"] * thinks, key="sk-secret") as stub:
        require = sorted(FEATURES) if thinks else sorted(FEATURES.keys() - {"reasoning"})
        verdicts = by_name(validate(stub.url + "/v1", MODEL, require=require, api_key="sk-secret", soak=0.5, timeout=5))
    lacking = set() if thinks else {"reasoning", "reasoning-streamed", "reasoning-history"}
    assert {name for name, v in verdicts.items() if v.status is not Status.PASSED} == lacking
    assert list(verdicts) == list(CHECKS)
    assert verdicts["hang-up"].measured.endswith("no request left in work")


@pytest.mark.integration
@pytest.mark.parametrize(("lack", "check"), LACKS)
def test_what_a_server_lacks_is_skipped_and_never_passed_and_fails_where_it_is_required(lack: str, check: str) -> None:
    verdict = look_at_one(check, lack)
    assert verdict.status is Status.SKIPPED, verdict
    feature = CHECKS[check].feature
    assert feature is not None
    verdict = look_at_one(check, lack, require=(feature,))
    assert verdict.status is Status.FAILED and verdict.reason.endswith(f"{feature} is wanted"), verdict


@pytest.mark.integration
@pytest.mark.parametrize(("defect", "check"), DEFECTS)
def test_a_check_fails_the_defect_that_it_looks_for(defect: str, check: str) -> None:
    verdict = look_at_one(
        check, defect, require=tuple({CHECKS[check].feature or "completions"}), key="k" if check == "auth" else None
    )
    assert verdict.status is Status.FAILED, verdict
    assert verdict.measured and verdict.reason != "as the protocol says"


@pytest.mark.integration
def test_a_defect_of_streams_leaves_the_other_checks_alone() -> None:
    failed = {name for name, verdict in look("no-done").items() if verdict.status is not Status.PASSED}
    assert failed == {
        *("stream-framing", "stream-plain", "stream-equals-whole", "stream-stop", "stream-completion", "usage"),
        *("stream-logprobs",),
    }


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
    with Stub("overlong-kills") as stub, pytest.raises(ServingError, match="conformance/overlong-prompt: the server died"):
        conformance(Endpoint(stub.url, MODEL, read_timeout=5), max_model_len=CONTEXT, progress=lambda *_: None)


@pytest.mark.integration
def test_a_server_that_stalls_fails_and_does_not_hold_up_the_run_for_ever() -> None:
    with Stub("stalls") as stub:
        endpoint = Endpoint(stub.url, MODEL, read_timeout=0.05)
        verdicts = conformance(endpoint, max_model_len=CONTEXT, progress=lambda *_: None)
    assert {v.name for v in verdicts if v.status is Status.PASSED} == {PREFIX + "models"}
    assert "no complete answer within 0.05 s" in verdicts[1].reason
    assert verdicts[3].status is Status.FAILED and verdicts[4].measured == "not asked"
    assert verdicts[4].reason == "3 checks in a row had no answer in time, the last of them completion"


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
    names = [name for name, check in CHECKS.items() if check.feature is None or check.feature in STANDARD]
    assert [what for _, _, what in heard] == [*names, "done"] and heard[-1][:2] == (len(names), len(names))


# any server


@pytest.mark.integration
def test_checks_are_chosen_and_left_out_by_patterns() -> None:
    with Stub() as stub:
        chosen = by_name(validate(stub.url, MODEL, select=["stream-*", "usage"], skip=["*-stop"]))
        with pytest.raises(UsageError, match="no check is named nonsense"):
            validate(stub.url, MODEL, select=["nonsense"])
    assert list(chosen) == [name for name in CHECKS if name.startswith("stream-") or name == "usage"]
    assert chosen["stream-stop"].status is Status.SKIPPED and chosen["stream-stop"].reason == "left out as asked for"


@pytest.mark.integration
def test_what_takes_long_runs_only_where_it_is_wanted() -> None:
    with Stub() as stub:
        unasked = validate(stub.url, MODEL, select=["so*", "needle*"])
        assert [v.status for v in unasked] == [Status.SKIPPED] * 2 and stub.requests == 0
        named = validate(stub.url, MODEL, select=["soak"], soak=0.3)
        assert named[0].status is Status.PASSED and named[0].figures["requests"] > 16


@pytest.mark.integration
def test_the_time_for_all_checks_is_bounded() -> None:
    with Stub() as stub:
        verdicts = validate(stub.url, MODEL, within=0.0)
    assert {v.reason for v in verdicts if v.status is Status.FAILED} == {"the 0 s for all checks are over"}
    assert Status.PASSED not in {v.status for v in verdicts}


@pytest.mark.integration
def test_a_server_that_cannot_be_reached_has_verdicts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Stub() as stub:
        url = stub.url
    verdicts = validate(url, MODEL, select=["models", "chat"])
    assert [v.status for v in verdicts] == [Status.FAILED] * 2
    assert "Connection refused" in verdicts[0].reason and verdicts[1].reason == "the server cannot be reached"


@pytest.mark.integration
@pytest.mark.parametrize("defect", ["overlong-kills", "overlong-kills-late"])
def test_a_server_that_dies_fails_what_could_not_be_asked(defect: str) -> None:
    with Stub(defect) as stub:
        verdicts = by_name(validate(stub.url, MODEL, timeout=5))
    assert verdicts["overlong-prompt"].status is Status.FAILED
    assert verdicts["healthy-after-errors"].reason == "the server died at the check overlong-prompt"


@pytest.mark.integration
def test_a_key_that_the_server_repeats_stands_in_no_verdict() -> None:
    with Stub(key="sk-other") as stub:
        verdicts = validate(stub.url, MODEL, api_key="sk-secret", timeout=5)
    text = "".join(v.model_dump_json() for v in verdicts)
    assert "sk-secret" not in text and "Bearer ***" in text


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://user:pass@host", "http://host:99999", "http://host/?a=b", "http://h\nost"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ServingError):
        validate(url, MODEL)


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX-Evil: 1", "é"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    with pytest.raises(ServingError, match="the key") as caught:
        validate("http://127.0.0.1:1", MODEL, api_key=key)
    assert not key or key not in str(caught.value)
