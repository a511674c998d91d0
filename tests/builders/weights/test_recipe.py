"""A plan says how its weights are made, as data; a recipe of ours becomes a conversion, and one that nobody knows is refused in time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from release.builders.weights.make import make, requested
from release.builders.weights.recipe import OURS, Recipe, conversion_of, recipe_for
from release.errors import MatrixError, StageError
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.progress import Line, Plain
from release.types import Plan, Weights, dump, tuples

TINY = Path(__file__).parents[3] / "matrix" / "checkpoints" / "tiny-qwq"


def quiet() -> Line:
    return Plain(io.StringIO()).line("cell", "weights")


def plan(name: str = "cpu/tiny-qwq@w8a8", **weights: Any) -> Plan:
    found = plan_of(Matrix(), name)
    if not weights:
        return found
    return found.model_copy(update={"weights": Weights.model_validate(tuples(weights))})


def test_every_cell_of_the_matrix_has_a_recipe_that_survives_json() -> None:
    matrix = Matrix()
    for name, _ in matrix.cells():
        made = recipe_for(plan_of(matrix, name))
        assert Recipe.model_validate(tuples(json.loads(json.dumps(dump(made))))) == made


def test_a_cell_without_a_word_about_weights_is_converted_by_us() -> None:
    made = recipe_for(plan("cpu/tiny-qwq@bf16"))
    assert made == Recipe(upstream="fp32", precision="bf16", dtype="bf16")
    assert made.tool == OURS


def test_what_a_cell_says_of_its_weights_stands_in_the_recipe() -> None:
    made = recipe_for(
        plan(build={"format": "msmodelslim", "exclude": ["*.down_proj"], "drop-mtp": True}, block=32, config={"quantize": "w8a8"})
    )
    assert (made.layout, made.exclude, made.group, made.mtp, made.config) == (
        "msmodelslim",
        ("*.down_proj",),
        32,
        False,
        {"quantize": "w8a8"},
    )


def test_an_engines_edits_and_adapters_go_to_the_checkpoint() -> None:
    matrix = Matrix()
    made = [recipe_for(plan_of(matrix, name)) for name, file in matrix.cells() if file.engine == "mindie"]
    assert all("torch_dtype" in one.config for one in made)
    assert all(set(one.files) <= {"lora_adapter.json"} for one in made)
    name = next(name for name, file in matrix.cells() if file.engine == "mindie" and name.endswith("@bf16"))
    adapted = plan_of(matrix, name).model_copy(update={"adapters": {"poet": "/adapters/poet"}})
    assert json.loads(recipe_for(adapted).files["lora_adapter.json"]) == {"poet": "/adapters/poet"}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ({"exlude": []}, "did you mean 'exclude'"),
        ({"format": "gguf"}, "'gguf' is none of"),
        ({"exclude": "lm_head"}, "not a list of words"),
        ({"exclude": [1]}, "not a list of words"),
        ({"exclude": [""]}, "not a list of words"),
        ({"drop-mtp": "yes"}, "true or false"),
    ],
)
def test_a_build_that_nobody_understands_is_refused_by_key(build: dict[str, Any], reason: str) -> None:
    with pytest.raises(MatrixError, match=reason) as caught:
        recipe_for(plan(build=build))
    assert "cpu/tiny-qwq@w8a8: weights.build." in str(caught.value)


def test_a_build_file_of_another_tool_is_not_read() -> None:
    assert recipe_for(plan(tool="vamc", build={"frontend": {"type": "x"}})).build == {"frontend": {"type": "x"}}


# Conversions


def recipe(**facts: Any) -> Recipe:
    return Recipe.model_validate(tuples({"upstream": "fp32", "precision": "w8a8", "dtype": "bf16", **facts}))


@pytest.mark.parametrize("precision", ["w8a8", "fp8", "w4a16"])
def test_vllms_layout_is_the_one_that_is_taken_if_none_is_said(precision: str) -> None:
    assert conversion_of(recipe(precision=precision), TINY).recipe == f"{precision} as compressed-tensors"


def test_a_float_precision_keeps_the_edits_of_its_cell() -> None:
    made = conversion_of(
        recipe(
            precision="bf16", config={"max_position_embeddings": None, "rope_scaling": {"type": "yarn"}}, files={"a.json": "{}"}
        ),
        TINY,
    )
    assert made.config == {"dtype": "bfloat16", "max_position_embeddings": None, "rope_scaling": {"type": "yarn"}}
    assert made.files == {"a.json": "{}"}


def test_bf16_without_edits_is_what_it_was() -> None:
    made = conversion_of(recipe(precision="bf16"), TINY)
    assert (made.config, made.files) == ({"dtype": "bfloat16"}, {})


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"precision": "w8a8c8"}, "no conversion of ours makes w8a8c8"),
        ({"precision": "w8a16", "layout": "compressed-tensors"}, "no format of ours"),
        ({"upstream": "fp8"}, "no conversion from fp8 to w8a8"),
        ({"tool": "vamc"}, "made by vamc"),
        ({"config": {"torch_dtype": "float16"}}, "two dtypes"),
    ],
)
def test_what_nobody_can_make_is_refused(facts: dict[str, Any], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        conversion_of(recipe(**facts), TINY)


def test_a_tool_needs_a_place_to_work() -> None:
    with pytest.raises(StageError, match="scratch folder"):
        make(recipe(tool="vamc"), TINY, TINY, line=quiet())


# As a command line asks


def test_a_request_starts_from_what_the_checkpoint_is() -> None:
    made = requested(TINY, "w4a16", exclude=["down_proj"], group=64)
    assert (made.upstream, made.precision, made.dtype, made.exclude, made.group) == ("fp32", "w4a16", "bf16", ("down_proj",), 64)
    assert requested(TINY, "fp16").dtype == "fp16"
    assert requested(TINY, "w8a16", layout="rows", dtype="fp16").dtype == "fp16"


def test_what_is_asked_for_is_made_twice_the_same(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="quantising needs numba: pip install 'release[weights]'")
    first = make(requested(TINY, "w8a8"), TINY, tmp_path / "a", line=quiet(), partial=tmp_path / "partial")
    again = make(requested(TINY, "w8a8"), TINY, tmp_path / "b", line=quiet())
    assert first == again
    assert (first["upstream"], first["precision"], first["converted"], first["kept"]) == ("fp32", "w8a8", 26, 0)
    for name, facts in first["files"].items():
        assert (tmp_path / "a" / name).stat().st_size == facts["bytes"]
