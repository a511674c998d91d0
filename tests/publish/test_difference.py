"""Two records side by side: nothing that differs is passed over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from records import record

from release.errors import VerificationError
from release.publish.difference import differences
from release.types import JSON


def sound() -> JSON:
    made = copy.deepcopy(record())
    made["serve"] = {
        **made["serve"],
        "argv": ["serve", "/weights", "--lora", "one", "--lora", "two", "--flag"],
        "env": {"A": "1"},
    }
    return made


def test_equal_records_have_no_difference() -> None:
    assert differences(sound(), sound()) == []


def first(made: JSON) -> Any:
    return made["verdicts"][0]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda made: made["serve"]["argv"].__setitem__(3, "EVIL"), "argument"),
        (lambda made: made["serve"]["argv"].append("word"), "argument"),
        (lambda made: made["serve"]["argv"].pop(), "argument"),
        (lambda made: made["serve"]["env"].update(A="2"), "environment"),
        (lambda made: first(made).update(wanted="anything"), "verdict"),
        (lambda made: first(made).update(figures={"n": 1}), "figures"),
        (lambda made: made["verdicts"].insert(0, {**first(made), "status": "FAILED"}), "verdict"),
        (lambda made: made.update(waivers=[{"validator": "accuracy", "outcome": "applied", "expires": "2026-12-01"}]), "waiver"),
        (lambda made: made["pins"]["wheels"][0].update(sha256="sha256:" + "f" * 64), "wheel"),
        (lambda made: made["pins"]["wheels"].pop(), "wheel"),
        (lambda made: made["image"]["manifest"].update(digest="sha256:" + "f" * 64), "image"),
    ],
)
def test_whatever_differs_is_said(change: Callable[[JSON], object], kind: str) -> None:
    changed = sound()
    change(changed)
    assert {each.kind for each in differences(sound(), changed)} == {kind}


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(VerificationError):
        differences(sound(), {})
