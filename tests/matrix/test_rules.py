"""Every rule refuses, warns or notes what it must, in words with the numbers and a next step, and is silent where all is well."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import QWEN2_7B, QWEN2_HALF, QWEN3_32B, QWEN3_235B, QWQ, R1, architectures, plan

from release.matrix import vendor
from release.matrix.memory import Format
from release.matrix.rules import RULES, concerns, refused
from release.types import Architecture, Plan, dump

UNKNOWN: Final = {"unknown": "nobody has said it yet"}
BF16: Final = Format("bf16", 2)
GIT: Final[dict[str, Any]] = {"name": "scale", "repository": "https://example.org/scale.git", "commit": "d" * 40}
PATCH: Final[dict[str, Any]] = {
    **{"format": "flagscale", "device-type": "abacus_A9", "commit-id": "abcdef1", "base": "e" * 40},
    "sha256": "sha256:" + "f" * 64,
}
LISTED: Final = {"world_sizes": [1, 2, 4, 8]}


def ruled(when: dict[str, Any] | None = None, **rule: Any) -> dict[str, Any]:
    """A chip with one rule."""
    spelled = {key.replace("_", "-"): value for key, value in rule.items()}
    return {"rules": [{"id": "the-vendor", "reason": "it is so", "source": "a paper", "when": when or {}, **spelled}]}


FIVE_OF_EIGHT: Final = (
    "5 of 8 sequences of 32768 tokens fit at once: with all of them 15.3 GiB of weights + 16.0 of cache + 3.0 in reserve are 34.26 "
    "of 28.80 (0.9 × 32) GiB on each Abacus 9"
)
YARN: Final = {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}
CASES: Final[list[tuple[str, str, str, Plan, Plan]]] = [
    (
        *("attention-heads", "refuse", "tensor-parallel-size 8 does not divide 28 attention heads"),
        *(plan(QWEN2_7B, parallel=(8,)), plan(QWEN2_7B, parallel=(4,))),
    ),
    (
        *(
            "attention-heads",
            "warn",
            "the vendor lists world size 8, but tensor-parallel-size 8 does not divide 28 attention heads",
        ),
        *(plan(QWEN2_7B, parallel=(8,), **LISTED), plan(QWEN2_7B, parallel=(4,), **LISTED)),
    ),
    (
        *("key-value-heads", "refuse", "tensor-parallel-size 20 neither divides 8 key-value heads nor is a multiple of them"),
        *(plan(QWQ, parallel=(20,)), plan(QWEN3_32B, parallel=(16,))),
    ),
    (
        *("feed-forward", "refuse", "tensor-parallel-size 5 does not divide a feed-forward of 27648"),
        *(plan(QWQ, parallel=(5,)), plan(QWQ, parallel=(8,))),
    ),
    (
        *("feed-forward", "refuse", "tensor-parallel-size 128 does not divide an expert of 2112"),
        plan(R1.model_copy(update={"moe": R1.moe and R1.moe.model_copy(update={"intermediate": 2112})}), parallel=(128,)),
        plan(R1, parallel=(128,)),
    ),
    (
        *("quantisation-block", "refuse"),
        "tensor-parallel-size 16 cuts an expert of 1536 into 96, which is not a multiple of the quantisation block of 128",
        *(plan(QWEN3_235B, precision="fp8", parallel=(16,)), plan(QWEN3_235B, parallel=(16,), at={"per_host": 16})),
    ),
    (
        *("quantisation-block", "refuse"),
        "tensor-parallel-size 2 cuts an attention output of 896 into 448, which is not a multiple of the quantisation block of 128",
        plan(QWEN2_HALF, precision="w4a16", parallel=(2,), weights={"block": 128}),
        plan(QWEN2_HALF, precision="w4a16", parallel=(2,), weights={"block": 32}),
    ),
    (
        *("pipeline", "refuse", "pipeline-parallel-size 29 is more than 28 layers"),
        *(plan(QWEN2_7B, parallel=(1, 29)), plan(QWEN2_7B, parallel=(1, 28), at={"per_host": 28})),
    ),
    (
        *("pipeline", "note", "8 pipeline stages share 28 layers unequally: 3, 3, 3, 4, 4, 4, 4, 3"),
        *(plan(QWEN2_7B, parallel=(1, 8)), plan(QWEN2_7B, parallel=(1, 4))),
    ),
    (
        *("world-sizes", "warn", "world size 2 is not listed: the vendor lists 4 and 8"),
        *(plan(QWQ, parallel=(2,), world_sizes=[4, 8]), plan(QWQ, parallel=(4,), world_sizes=[4, 8])),
    ),
    (
        *("world-sizes", "note", "the vendor lists 2 and 4, but tensor-parallel-size 4 does not divide 14 attention heads"),
        *(plan(QWEN2_HALF, world_sizes=[2, 4]), plan(QWEN2_HALF, world_sizes=[1, 2])),
    ),
    (
        *("hosts", "note", "world size 16 takes 2 hosts of 8 devices"),
        *(plan(QWEN3_32B, parallel=(16,)), plan(QWEN3_32B, parallel=(8,))),
    ),
    (
        *("weights-split", "refuse", "tensor-parallel-size 2 is not 4, which the weights were split for"),
        plan(QWQ, precision="w8a8sc", parallel=(2,), weights={"split": 4}),
        plan(QWQ, precision="w8a8sc", parallel=(4,), weights={"split": 4}),
    ),
    (
        *("weights-split", "note", "w8a8sc weights are split for one tensor parallel size, and the cell does not say which"),
        *(plan(QWQ, precision="w8a8sc", parallel=(4,)), plan(QWQ, precision="w8a8s", parallel=(4,))),
    ),
    (
        *("dtype", "refuse", "chip abacus does not compute in bf16"),
        *(plan(on={"dtypes": ["fp16"]}), plan(on={"dtypes": ["fp16"]}, precision="fp16", dtype="fp16")),
    ),
    (
        *("precision", "refuse", "chip abacus does not offer fp8"),
        *(plan(on={"precisions": ["bf16"]}, precision="fp8"), plan(on={"precisions": ["fp8"]}, precision="fp8")),
    ),
    (
        *("floor", "refuse", "Pebble 7B needs transformers >=4.51.0, the image has 4.43.1"),
        plan(of={"requires": {"transformers": ">=4.51.0"}}, packages={"transformers": "4.43.1"}),
        plan(of={"requires": {"transformers": ">=4.51.0"}}, packages={"transformers": "4.51"}),
    ),
    (
        *("floor", "refuse", "Pebble 7B needs transformers ==4.43.1, the image has 4.51.0.dev1"),
        plan(of={"requires": {"transformers": "==4.43.1"}}, packages={"transformers": "4.51.0.dev1"}),
        plan(of={"requires": {"transformers": "==4.43.1"}}, packages={"transformers": "4.43.1+abacus"}),
    ),
    (
        *("floor", "note", "Pebble 7B needs vllm >=0.8.0; the version in the image is not known: nobody has said it yet"),
        plan(of={"requires": {"vllm": ">=0.8.0"}}, packages={"vllm": UNKNOWN}),
        plan(of={"requires": {"vllm": ">=0.8.0"}}, sources=[{"wheel": "vllm==0.10.0", "sha256": "sha256:" + "a" * 64}]),
    ),
    (
        *("adapters", "refuse", "1 adapters over w8a8 weights: adapters lie over float weights only"),
        *(plan(precision="w8a8", adapters={"poet": "/poet"}), plan(adapters={"poet": "/poet"})),
    ),
    (
        *("adapters", "refuse", "an adapter is called 'base', which is what engines call the model without one"),
        *(plan(adapters={"base": "/poet"}), plan(adapters={"based": "/poet"})),
    ),
    (
        *("memory", "refuse"),
        "does not start with 32768 tokens: 79.9 GiB of weights + 2.1 of cache + 3.0 in reserve are 85.06 of 72.00 (0.9 × 80) GiB "
        "on each Abacus 9",
        plan(R1, parallel=(16,), at={"memory": 80.0, "per_host": 32}),
        plan(R1, parallel=(32,), at={"memory": 80.0, "per_host": 32}),
    ),
    (
        *("memory", "warn"),
        FIVE_OF_EIGHT,
        plan(QWEN3_32B, parallel=(4,), at={"memory": 32.0}, args={"max-num-seqs": 8}),
        plan(QWEN3_32B, precision="w8a8", parallel=(4,), at={"memory": 32.0}, args={"max-num-seqs": 8}),
    ),
    (
        *("memory", "note", f"assumed: 8 sequences; the cell does not say. {FIVE_OF_EIGHT}"),
        *(plan(QWEN3_32B, parallel=(4,), at={"memory": 32.0}), plan(QWEN3_32B, parallel=(8,), at={"memory": 32.0})),
    ),
    (
        *("context", "refuse", "32769 tokens a sequence are more than the 32768 that Pebble 7B reads"),
        *(plan(args={"max-model-len": 32769}), plan(args={"max-model-len": 32769}, weights={"config": YARN})),
    ),
    (
        *("context", "refuse", "131073 tokens a sequence are more than the 131072 that Pebble 7B reads"),
        plan(args={"max-model-len": 131073}, weights={"config": YARN}),
        plan(args={"max-model-len": 131072, "hf-overrides": '{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}'}),
    ),
    (
        *("weights", "warn", "how the w8a8 weights are made out of bf16 is not said"),
        *(plan(precision="w8a8"), plan(precision="w8a8", weights={"tool": "release"})),
    ),
    (
        *("arguments", "warn", "no engine is known to have the argument 'max-model-leng' (did you mean 'max-model-len'?)"),
        *(plan(args={"max-model-leng": 8}), plan(args={"max-model-len": 8, "no-enable-prefix-caching": True, "chat": True})),
    ),
    (
        *("features", "warn", "no vendor is known to tick the feature 'prefix-cahce' (did you mean 'prefix-cache'?)"),
        *(plan(features=["prefix-cahce"]), plan(features=["prefix-cache", "something-new"])),
    ),
    (
        *("memory", "note", "how much memory Abacus 9 has is not known: nobody has said it yet"),
        *(plan(parallel=(1,), at={"memory": UNKNOWN}), plan(parallel=(1,), device=None)),
    ),
    (
        *("conflict", "warn", "the text says bfloat16 only, but the table ticks FP16"),
        *(plan(conflicts=[{"says": "the text says bfloat16 only", "but": "the table ticks FP16", "source": "a"}]), plan()),
    ),
    (
        *("pin", "note", "the base image is not known: nobody has said it yet"),
        *(plan(base=UNKNOWN), plan(base={"image": "registry.example.org/abacus@sha256:" + "a" * 64})),
    ),
    (
        *("pin", "note", "the base image abacus-torch is asked for at engineer@example.org"),
        plan(base={"access": {"kind": "request", "name": "abacus-torch", "contact": "engineer@example.org"}}),
        plan(),
    ),
    (
        *("pin", "note", "the base image is taken from https://example.org/downloads"),
        plan(base={"access": {"kind": "site", "name": UNKNOWN, "contact": "https://example.org/downloads"}}),
        plan(),
    ),
    (
        *("pin", "note", "the commit of scale is not known: nobody has said it yet"),
        *(plan(sources=[{**GIT, "commit": UNKNOWN}]), plan(sources=[GIT])),
    ),
    (
        *("pin", "note", "the base commit of scale's patch for abacus_A9 is not known: nobody has said it yet"),
        *(plan(sources=[{**GIT, "vendor-patch": {**PATCH, "base": UNKNOWN}}]), plan(sources=[{**GIT, "vendor-patch": PATCH}])),
    ),
    (
        *("pin", "note", "the digest of scale's patch for abacus_A9 is not known: nobody has said it yet"),
        *(plan(sources=[{**GIT, "vendor-patch": {**PATCH, "sha256": UNKNOWN}}]), plan(sources=[{**GIT, "vendor-patch": PATCH}])),
    ),
    (
        *("pin", "note", "the revision of invented/pebble is not known: nobody has said it yet"),
        *(plan(of={"checkpoint": {"hub": {"repository": "invented/pebble", "revision": UNKNOWN}}}), plan()),
    ),
    (
        *("the-vendor", "refuse", "activations in bf16: it is so"),
        *(plan(on=ruled(dtypes=["fp16"])), plan(on=ruled(dtypes=["fp16", "bf16"]))),
    ),
    (
        *("the-vendor", "refuse", "precision bf16: it is so"),
        *(plan(on=ruled(precisions=["w8a8"])), plan(on=ruled(precisions=["w8a8", "bf16"]))),
    ),
    (
        *("the-vendor", "refuse", "w8a8 weights: it is so"),
        *(plan(on=ruled(weights="float"), precision="w8a8"), plan(on=ruled(weights="float"))),
    ),
    (
        *("the-vendor", "refuse", "prefix-cache together with this: it is so"),
        plan(on=ruled({"features": ["lora"]}, without=["prefix-cache"]), features=["lora", "prefix-cache"]),
        plan(on=ruled({"features": ["lora"]}, without=["prefix-cache"]), features=["prefix-cache"]),
    ),
    (
        *("the-vendor", "refuse", "2 adapters are more than 1: it is so"),
        *(plan(on=ruled(most=1), adapters={"a": "/a", "b": "/b"}), plan(on=ruled(most=2), adapters={"a": "/a", "b": "/b"})),
    ),
    (
        *("the-vendor", "warn", "world size 7 is odd: it is so"),
        plan(QWEN2_7B, on=ruled(world_size="even", severity="warn"), parallel=(7, 1)),
        plan(QWEN2_7B, on=ruled(world_size="even", severity="warn"), parallel=(1,)),
    ),
    (
        *("the-vendor", "refuse", "STACK_SIZE is not set: it is so"),
        plan(QWQ, on=ruled({"parameters-at-least": 32.0}, env={"STACK_SIZE": "256"})),
        plan(QWEN2_7B, on=ruled({"parameters-at-least": 32.0}, env={"STACK_SIZE": "256"})),
    ),
    (
        *("the-vendor", "refuse", "STACK_SIZE is 128: it is so"),
        plan(QWQ, on=ruled(env={"STACK_SIZE": "256"}), env={"STACK_SIZE": "128"}),
        plan(QWQ, on=ruled(env={"STACK_SIZE": "256"}), container={"env": {"STACK_SIZE": "256"}}),
    ),
    (
        *("the-vendor", "refuse", "align_qkv is not set: it is so"),
        plan(QWQ, on=ruled({"kv-heads-split": False}, args={"align_qkv": True}), parallel=(16,), at={"per_host": 16}),
        plan(QWQ, on=ruled({"kv-heads-split": False}, args={"align_qkv": True}), parallel=(8,)),
    ),
    (
        *("the-vendor", "refuse", "align_qkv is false: it is so"),
        plan(QWQ, on=ruled(args={"align_qkv": True}), weights={"build": {"frontend": {"align_qkv": False}}}),
        plan(QWQ, on=ruled(args={"align_qkv": True}), weights={"build": {"frontend": {"align_qkv": True}}}),
    ),
    (
        *("the-vendor", "refuse", "max-model-len 1000 is not a multiple of 16: it is so"),
        plan(on=ruled({"engines": ["vllm"]}, multiples={"max-model-len": 16}), args={"max_model_len": 1000}),
        plan(on=ruled({"engines": ["sglang"]}, multiples={"max-model-len": 16}), args={"max_model_len": 1000}),
    ),
    (
        *("the-vendor", "refuse", "input_ids 1030 is not a multiple of 16: it is so"),
        plan(on=ruled(multiples={"input_ids": 16}), weights={"build": {"shape": {"input_ids": [[1024], [1030]]}}}),
        plan(on=ruled(multiples={"input_ids": 16}), args={"input_ids": "[[1024],[2048]]"}),
    ),
]
"""Rule, severity, message, a plan that it speaks of, and one where it is silent."""


def said(about: Plan, rule: str, severity: str) -> list[str]:
    return [each.message for each in concerns(about) if (each.rule, each.severity) == (rule, severity)]


@pytest.mark.parametrize(("rule", "severity", "message", "wrong", "right"), CASES, ids=[f"{c[0]}-{c[2][:40]}" for c in CASES])
def test_a_rule_speaks_where_it_must_and_nowhere_else(rule: str, severity: str, message: str, wrong: Plan, right: Plan) -> None:
    assert message in said(wrong, rule, severity)
    assert said(right, rule, severity) == []


def test_every_rule_of_the_table_has_a_failing_and_a_passing_case() -> None:
    spoken = {check for check in RULES for _, _, _, wrong, _ in CASES if list(check(wrong))}
    silent = {check for check in RULES for _, _, _, _, right in CASES if not list(check(right))}
    assert set(RULES) == spoken == silent


def test_what_is_refused_or_warned_about_by_rules_of_our_own_has_a_next_step() -> None:
    for rule, _, _, wrong, _ in CASES:
        found = [each for each in concerns(wrong) if each.rule == rule and rule not in ("conflict", "pipeline")]
        assert all(each.next_step for each in found)


def test_refusals_come_before_warnings_and_warnings_before_notes() -> None:
    found = [each.severity for each in concerns(plan(R1, parallel=(16,), base=UNKNOWN, world_sizes=[8], at={"memory": 80.0}))]
    assert found == sorted(found, key=["refuse", "warn", "note"].index)
    assert {"refuse", "warn", "note"} <= set(found)


def test_contradictions_of_papers_are_the_last_of_the_warnings() -> None:
    conflict = {"says": "the text says bfloat16 only", "but": "the table ticks FP16", "source": "a"}
    found = [each.rule for each in concerns(plan(precision="w8a8", conflicts=[conflict], base=UNKNOWN))]
    assert found == ["weights", "conflict", "pin"]


def test_too_many_pipeline_stages_are_no_reason_to_advise_another_tensor_parallel_size() -> None:
    (refusal,) = (each for each in concerns(plan(parallel=(1, 29))) if each.severity == "refuse")
    assert refusal.message == "pipeline-parallel-size 29 is more than 28 layers"
    assert refusal.next_step == "use fewer pipeline stages: at most one a layer"


def test_the_advice_to_take_fewer_tokens_is_never_beyond_the_context() -> None:
    wrong = plan(QWEN3_32B, parallel=(1,), at={"memory": 82.0}, args={"max-model-len": 200000})
    (step,) = (each.next_step for each in concerns(wrong) if each.rule == "memory")
    assert step == "set max-model-len to 32768 at most, or use more devices"


def test_a_plan_in_order_raises_no_concern() -> None:
    assert concerns(plan(QWQ, parallel=(8,), args={"max-model-len": 32768, "max-num-seqs": 8})) == ()


def test_a_plan_without_a_layout_is_not_judged_by_one() -> None:
    assert concerns(plan(QWEN2_7B, on=ruled({"kv-heads-split": False}, env={"A": "1"}))) == ()


def test_a_vendors_rule_keeps_its_source() -> None:
    assert [each.source for each in concerns(plan(on=ruled(dtypes=["fp16"])))] == ["a paper"]


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({}, True),
        ({"engines": ["vllm", "sglang"]}, True),
        ({"engines": ["sglang"]}, False),
        ({"families": ["pebble"]}, True),
        ({"families": ["boulder"]}, False),
        ({"precisions": ["bf16"]}, True),
        ({"precisions": ["fp8"]}, False),
        ({"features": ["lora", "prefix-cache"]}, True),
        ({"features": ["prefix-cache"]}, False),
        ({"parameters-at-least": 32.0}, True),
        ({"parameters-at-least": 33.0}, False),
        ({"kv-heads-split": True}, True),
        ({"kv-heads-split": False}, False),
        ({"engines": ["vllm"], "families": ["boulder"]}, False),
    ],
)
def test_a_rule_applies_where_everything_that_it_names_holds(when: dict[str, Any], holds: bool) -> None:
    the_plan = plan(QWQ, on=ruled(when), parallel=(8,), features=["lora"])
    assert vendor.applies(the_plan.chip.rules[0].when, the_plan) is holds


def test_memory_says_what_would_help() -> None:
    def step(about: Plan) -> str:
        return next(each.next_step for each in concerns(about) if each.rule == "memory")

    assert step(plan(R1, parallel=(16,), at={"memory": 80.0})) == "it starts with --tensor-parallel-size 32"
    assert step(plan(QWEN3_32B, parallel=(4,), at={"memory": 22.0})).startswith("set max-model-len to ")
    assert step(plan(QWEN3_32B, parallel=(4,), at={"memory": 32.0})).startswith("set max-num-seqs to 5")
    assert step(plan(R1, parallel=(1,), at={"memory": 1.0})) == "use a pipeline over more devices, or a smaller precision"


@given(architectures(), st.integers(1, 16))
def test_a_listed_size_is_never_refused_for_its_arithmetic(shape: Architecture, tp: int) -> None:
    listed = plan(shape, parallel=(tp,), world_sizes=[tp], at={"memory": 1e6})
    assert refused(listed) is None


def test_a_concern_is_json() -> None:
    assert set(dump(concerns(plan(QWEN2_7B, parallel=(8,)))[0])) == {"rule", "severity", "message", "source", "next-step"}
