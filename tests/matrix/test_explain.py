"""Where a value comes from: the strongest file first, with its line; and near misses for a key that nobody has."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import CELL, write

from release.errors import UsageError
from release.matrix.explain import explain
from release.matrix.load import Matrix


def found(tmp_path: Path, cell: str, key: str, **changes: str) -> list[tuple[str, object, int, bool]]:
    files = {"cells/abacus/pebble-7b.yaml": changes["file"]} if changes else {}
    matrix = Matrix((write(tmp_path, dict(files)),))
    return [(origin.under, origin.value, origin.line, origin.counts) for origin in explain(matrix, cell, key)]


def test_the_arm_goes_before_its_file_and_both_are_named_with_their_lines(tmp_path: Path) -> None:
    assert found(tmp_path, "abacus/pebble-7b@w8a8", "args.dtype") == [
        ("cells.w8a8.serve.args.dtype", "int8", 19, True),
        ("serve.args.dtype", "auto", 7, False),
    ]


def test_a_value_of_the_chip_and_one_of_the_model_are_found_by_their_last_word(tmp_path: Path) -> None:
    assert found(tmp_path, "abacus/pebble-7b@bf16", "shm-size") == [("container.shm-size", "2g", 13, True)]
    assert found(tmp_path, "abacus/pebble-7b@bf16", "kv_heads") == [("architecture.kv-heads", 1, 15, True)]


def test_the_engines_own_spelling_finds_the_layout(tmp_path: Path) -> None:
    file = CELL.replace("serve:\n  port", "parallel: {tensor-parallel-size: 2}\nserve:\n  port", 1)
    assert found(tmp_path, "abacus/pebble-7b@bf16", "tensor_parallel_size", file=file) == [
        ("parallel.tensor-parallel-size", 2, 5, True)
    ]


def test_what_no_file_says_is_said_to_be_the_default(tmp_path: Path) -> None:
    (origin,) = explain(Matrix((write(tmp_path),)), "abacus/pebble-7b@bf16", "ready-within")
    assert (origin.value, origin.path, origin.counts) == (600, None, True)


def test_one_word_that_stands_in_two_places_gives_both(tmp_path: Path) -> None:
    places = {under for under, *_ in found(tmp_path, "abacus/pebble-7b@bf16", "name")}
    assert places == {"name"}
    matrix = Matrix((write(tmp_path),))
    assert [(each.place, each.counts) for each in explain(matrix, "abacus/pebble-7b@bf16", "name")] == [
        ("chip.name", True),
        ("model.name", True),
    ]
    assert len(found(tmp_path, "abacus/pebble-7b@bf16", "id")) == 2


def test_a_key_that_nobody_has_is_refused_with_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no value 'max-modle-len' \(did you mean 'max-model-len'"):
        found(tmp_path, "abacus/pebble-7b@bf16", "max-modle-len")


def test_a_cell_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no cell"):
        found(tmp_path, "abacus/pebble-7b@fp8", "port")


def test_keys_of_the_chip_and_the_model_begin_with_their_kind() -> None:
    matrix = Matrix()
    (device,) = explain(matrix, "cambricon/deepseek-r1@bf16", "chip.devices.mlu590-m9.memory")
    assert (device.value, device.path, device.under) == (96, matrix.chips()["cambricon"], "devices.mlu590-m9.memory")
    (name,) = explain(matrix, "cambricon/deepseek-r1@bf16", "chip.name")
    assert (name.value, name.line) == ("Cambricon MLU590", 4)
    assert explain(matrix, "cambricon/deepseek-r1@bf16", "model")[0].value == "deepseek-r1"


def test_the_precision_of_a_cell_is_its_own_and_not_its_models() -> None:
    matrix = Matrix()
    own, upstream = explain(matrix, "cambricon/deepseek-r1@bf16", "precision")
    assert (own.place, own.value, own.under) == ("precision", "bf16", "cells.bf16")
    assert own.path and own.path.read_text().splitlines()[own.line - 1].strip() == "bf16:"
    assert (upstream.place, upstream.value) == ("model.precision", "fp8")


def test_a_layout_that_no_file_says_was_chosen_by_the_plan_and_why() -> None:
    (origin,) = explain(Matrix(), "cambricon/deepseek-r1@bf16", "tensor-parallel-size")
    assert (origin.value, origin.path) == (8, None)
    assert origin.why.startswith("chosen by the plan: TP 8 × PP 4: ")


@pytest.mark.parametrize(("key", "value"), [("max-num-seqs", 8), ("gpu_memory_utilization", 0.9), ("max-model-len", 32768)])
def test_what_memory_is_reckoned_with_is_the_plans_default_where_no_file_says_it(key: str, value: float) -> None:
    (origin,) = explain(Matrix(), "ascend-800i-a2/qwen2.5-14b@bf16", key)
    assert (origin.value, origin.path) == (value, None)
    assert origin.why.startswith("by default of the plan")


def test_what_an_arm_replaces_as_a_whole_leaves_nothing_of_its_file(tmp_path: Path) -> None:
    file = CELL.replace("serve:\n  port", "parallel: {tensor-parallel-size: 2}\nserve:\n  port", 1)
    file = file.replace("  bf16: {}", "  bf16: {parallel: {replicas: 2}}")
    first, second = explain(
        Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": file}),)), "abacus/pebble-7b@bf16", "tensor-parallel-size"
    )
    assert (first.value, first.counts, first.why) == (1, True, "by default")
    assert (second.value, second.counts) == (2, False)
