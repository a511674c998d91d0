"""config.json is edited as data: what no edit names stays, the dtype is said once, and what a quantised source says of itself goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.builders.weights.config import automatic, difference, document, edited, merged, read_config, same, yarn
from release.builders.weights.run import edited as first_level
from release.errors import StageError

WORDS = st.text(max_size=5)
JSONS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(WORDS, JSONS, max_size=5)

# The 15 examples of RFC 7396, appendix A
EXAMPLES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), EXAMPLES)
def test_a_merge_patch_does_what_the_standard_says(target: Any, patch: Any, result: Any) -> None:
    assert same(merged(target, patch), result)


@given(OBJECTS, OBJECTS)
def test_no_key_is_lost_that_no_patch_names_and_the_order_stays(config: dict[str, Any], patch: dict[str, Any]) -> None:
    before = json.dumps(config)
    after = merged(config, patch)
    untouched = [key for key in config if key not in patch]
    assert [key for key in after if key in untouched] == untouched
    assert all(same(after[key], config[key]) for key in untouched)
    assert json.dumps(config) == before


@given(OBJECTS, OBJECTS)
def test_a_patch_laid_twice_is_a_patch_laid_once(config: dict[str, Any], patch: dict[str, Any]) -> None:
    assert same(merged(merged(config, patch), patch), merged(config, patch))


@given(OBJECTS, OBJECTS)
def test_the_edits_of_the_first_level_make_the_same_of_it(config: dict[str, Any], patch: dict[str, Any]) -> None:
    after = merged(config, patch)
    assert same(first_level(config, difference(config, after)), after)


def test_null_cannot_be_set_but_stays_where_it_is() -> None:
    assert difference({"a": None}, {"a": None}) == {}
    with pytest.raises(StageError, match="null cannot be set"):
        difference({"a": 1}, {"a": None})


@given(OBJECTS)
def test_what_is_written_is_read_back(config: dict[str, Any]) -> None:
    assert same(json.loads(document(config)), config)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"dtype": "float32", "torch_dtype": "float32"}, {"torch_dtype": "bfloat16", "dtype": "bfloat16"}),
        ({}, {"torch_dtype": "bfloat16"}),
        ({"quantization_config": {"quant_method": "fp8"}}, {"torch_dtype": "bfloat16", "quantization_config": None}),
        ({"num_nextn_predict_layers": 1}, {"torch_dtype": "bfloat16"}),
    ],
)
def test_what_follows_from_a_conversion_follows(config: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert automatic(config, "bf16") == wanted


def test_dropped_prediction_layers_are_no_more_in_the_config() -> None:
    assert automatic({"num_nextn_predict_layers": 1, "dtype": "x"}, "bf16", drop_mtp=True)["num_nextn_predict_layers"] == 0
    assert "num_nextn_predict_layers" not in automatic({"dtype": "x"}, "bf16", drop_mtp=True)


def test_both_spellings_of_the_dtype_agree_after_an_edit_of_one() -> None:
    config = {"dtype": "bfloat16", "torch_dtype": "bfloat16", "a": 1}
    assert edited(config, {"torch_dtype": "float16"}) == {"dtype": "float16", "torch_dtype": "float16", "a": 1}
    assert edited({"dtype": "bfloat16"}, {"torch_dtype": "float16"}) == {"dtype": "float16", "torch_dtype": "float16"}
    with pytest.raises(StageError, match="two dtypes"):
        edited(config, {"torch_dtype": "float16"}, {"dtype": "bfloat16"})


def test_a_longer_context_is_the_vendors_own_words() -> None:
    assert yarn(4, 32768) == {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}
    for factor, original in ((0.5, 32768), (4, 0)):
        with pytest.raises(StageError, match="rope_scaling"):
            yarn(factor, original)


HOSTILE = {
    "nothing": b"",
    "a list": b"[]",
    "half": b'{"a": ',
    "a key twice": b'{"a": 1, "a": 2}',
    "no number": b'{"a": NaN}',
    "no utf-8": b'{"\xff": 1}',
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_broken_config_is_refused_by_name(what: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(HOSTILE[what])
    with pytest.raises(StageError, match=r"config\.json is not a sound"):
        read_config(tmp_path)


def test_a_missing_or_huge_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="not a sound"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    monkeypatch.setattr("release.builders.weights.config.LIMIT", 4)
    with pytest.raises(StageError, match="8 bytes, more than 4"):
        read_config(tmp_path)
