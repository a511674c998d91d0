"""What is written as YAML is read as the same values, by readers of YAML 1.1, and nothing breaks out of its place."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from release.errors import TemplateError
from release.templates.document import document

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "yes",
        "No",
        "null",
        "~",
        "1",
        "1e3",
        "0x1f",
        "1_000",
        "12:30",
        "=",
        "<<",
        "- a",
        "a: b",
        "# x",
        "'",
        '"',
        "\\",
        "---",
        "...",
        "? a",
    ]
)
SCALARS = TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


@given(VALUES)
@example({"a": {"b": [{"c": 1, "d": [[], {}]}, [1, [2]], ""]}})
@example({"on": "off", "no": ["y", "N"], "exp": 1e-05, "large": 1e22})
@example("\ufeff\u2028\x85\U0001f600")
def test_a_document_is_read_as_it_was_meant(value: object) -> None:
    assert yaml.safe_load(document(value)) == value


@given(VALUES)
def test_a_document_is_text_of_whole_lines_without_control_characters(value: object) -> None:
    text = document(value)
    assert text.endswith("\n")
    assert all(line.isprintable() for line in text.removesuffix("\n").split("\n"))


@given(st.dictionaries(TEXTS, TEXTS, min_size=1))
def test_a_text_stays_on_the_line_of_its_key(value: dict[str, str]) -> None:
    assert len(document(value).splitlines()) == len(value)


def test_the_same_value_is_the_same_text() -> None:
    value = {"list": [1, 2.5, True, None, "text", "two words"], "map": {"a": {}, "b": [], "c": "/model"}}
    assert document(value) == (
        'list:\n  - 1\n  - 2.5\n  - true\n  - null\n  - text\n  - "two words"\nmap:\n  a: {}\n  b: []\n  c: /model\n'
    )
    assert document(json.loads(json.dumps(value))) == document({"list": tuple(value["list"]), "map": value["map"]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", b"bytes", object(), {1, 2}])
def test_what_yaml_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(TemplateError):
        document({"a": [value]})
