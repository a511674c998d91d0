"""A fingerprint is the same whoever writes it, and two that differ say in which fields."""

from __future__ import annotations

from typing import Any

import pytest

from release.types import Accuracy, dump
from release.validators.accuracy import fingerprint_of
from release.validators.fingerprint import (
    Fingerprint,
    canonical,
    differences,
    digest_of,
    digest_of_ids,
    omissions,
)

FIELDS: dict[str, Any] = {
    "dataset": "openai/gsm8k", "revision": "e53f048856ff4f594e959d75785d2c2d37b678ee", "question-ids": digest_of_ids(["b", "a"]),
    "n": 1319, "repeats": 3, "prompt": "sha256:" + "1" * 64, "chat-template": "sha256:" + "2" * 64,
    "sampling": {"temperature": 0.6, "top-p": 0.95, "seed": 7}, "max-tokens": 32768, "max-model-len": 40960,
    "harness": "evalscope 1.14.1", "grader": "last-number", "model": "qwq-32b",
}  # fmt: skip


def fingerprint(**changes: Any) -> Fingerprint:
    return Fingerprint.model_validate(FIELDS | changes)


def test_canonical_json_does_not_depend_on_who_writes_it() -> None:
    assert canonical({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'.encode()
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1}) != digest_of({"a": 2, "b": "1"})
    assert digest_of_ids(["b", "a"]) == digest_of_ids(iter(["a", "b"])) != digest_of_ids(["a"])
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": float("nan")})


def test_every_field_that_differs_is_named() -> None:
    one, two = dump(fingerprint()), dump(fingerprint(sampling={"temperature": 1.0, "top-p": 0.95}, harness="evalscope 1.15.0"))
    assert [str(found) for found in differences(one, two)] == [
        "harness ('evalscope 1.14.1' vs 'evalscope 1.15.0')",
        "sampling.seed (7 vs None)",
        "sampling.temperature (0.6 vs 1.0)",
    ]
    assert differences(one, one) == ()


@pytest.mark.parametrize("field", [field for field in FIELDS if field not in ("model", "repeats")])
def test_a_field_that_one_side_lacks_is_a_difference(field: str) -> None:
    one = dump(fingerprint())
    assert differences(one, {key: value for key, value in one.items() if key != field})


def test_the_served_name_and_the_number_of_repeats_may_differ() -> None:
    one, two = fingerprint(), fingerprint(model="qwq-native", repeats=16)
    assert differences(dump(one), dump(two)) == () and one.digest == two.digest
    assert one.digest != fingerprint(**{"max-tokens": 1024}).digest


def test_true_is_not_one() -> None:
    assert differences({"x": True}, {"x": 1}) and differences({"x": {"y": 0}}, {"x": {"y": False}})


def test_what_a_fingerprint_must_say_and_does_not_is_named() -> None:
    assert omissions(dump(fingerprint())) == ()
    assert omissions({}) == ("the questions", "n", "the prompt", "sampling", "max-tokens", "the harness", "the grader")
    spec = Accuracy(questions="q.jsonl", sha256="sha256:" + "0" * 64, grader="final-integer", margin=0.02, max_tokens=64)
    assert omissions(fingerprint_of(spec, 10, "m", None)) == ()


def test_long_and_deep_values_are_cut_short_in_complaints() -> None:
    (found,) = differences({"x": "a" * 10_000}, {"x": "b"})
    assert len(str(found)) < 200
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(500):
        inner["x"] = {}
        inner = inner["x"]
    assert len(differences(deep, {})) == 1
