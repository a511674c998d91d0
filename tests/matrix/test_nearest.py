"""A plan that is refused leads to the nearest one that works, with the command for it."""

from __future__ import annotations

from plans import QWEN2_7B, QWEN3_32B, R1, plan

from release.matrix.check import Asked
from release.matrix.nearest import alike, nearest
from release.types import Plan

UNKNOWN = {"unknown": "nobody has said it yet"}


def nowhere() -> list[Plan]:
    raise AssertionError("no other cell was needed")


def test_a_wrong_size_is_mended_by_another_layout_of_the_same_devices() -> None:
    assert nearest(plan(QWEN2_7B, parallel=(8,)), nowhere) == (
        "abacus/pebble-7b@bf16 would work with TP 4 × 2 replicas: release plan --chip abacus --model pebble-7b --precision bf16 --devices 8"
    )


def test_what_does_not_fit_is_mended_by_another_precision_before_another_chip() -> None:
    big = {"memory": 96.0}
    wrong = plan(QWEN3_32B, parallel=(1,), at={"memory": 64.0})
    other_chip = plan(QWEN3_32B, on={"id": "soroban"}, parallel=(1,), at=big)
    narrow = plan(QWEN3_32B, precision="w8a8", parallel=(1,), at={"memory": 64.0})
    other_model = plan(QWEN2_7B, of={"id": "sand"}, at=big)
    assert nearest(wrong, lambda: [other_model, other_chip, narrow, wrong]) == (
        "abacus/pebble-7b@w8a8 would work with TP 1: "
        "release plan --chip abacus --model pebble-7b --precision w8a8 --tensor-parallel-size 1"
    )
    assert (nearest(wrong, lambda: [other_model, other_chip, wrong]) or "").startswith(
        "soroban/pebble-7b@bf16 would work with TP 1:"
    )


def test_where_no_other_cell_helps_more_devices_do() -> None:
    wrong = plan(R1, parallel=(16,), at={"memory": 80.0})
    assert (nearest(wrong, lambda: [wrong]) or "").endswith(
        "--precision bf16 --tensor-parallel-size 8 --pipeline-parallel-size 4"
    )


def test_where_nothing_helps_nothing_is_said() -> None:
    unfit = plan(on={"dtypes": ["fp16"]}, parallel=(1,))
    assert nearest(unfit, lambda: [unfit, plan(on={"dtypes": ["fp16"]}, at={"memory": UNKNOWN})]) is None


def test_what_was_asked_for_is_asked_of_the_alternatives_and_repeated_in_the_command() -> None:
    asked = Asked(device="a9", memory=64.0, tensor_parallel_size=8, args={"max-model-len": 8192, "hf-overrides": '{"a": 1}'})
    assert (nearest(plan(QWEN2_7B, parallel=(8,)), nowhere, asked) or "").endswith(
        "--precision bf16 --device a9 --device-memory 64 --devices 8 --set max-model-len=8192 --set 'hf-overrides={\"a\": 1}'"
    )
    assert alike(asked, here=True) == Asked(device="a9", memory=64.0, args=asked.args)
    assert alike(asked, here=False) == Asked(args=asked.args)


def test_a_layout_is_looked_for_over_the_devices_that_are_there() -> None:
    found = nearest(plan(QWEN2_7B, parallel=(4,)), nowhere, Asked(devices=2, tensor_parallel_size=4)) or ""
    assert found.endswith("--tensor-parallel-size 2") or found.endswith("--devices 2")
