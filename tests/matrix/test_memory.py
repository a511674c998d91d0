"""What a device must hold: the tensor list is the checkpoint's, and the closed forms are sums over it."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import PUBLISHED, QWEN2_72B, QWEN3_32B, QWEN3_235B, QWQ, R1, architecture, architectures, plan

from release.matrix.memory import GIB, Demand, Format, demand_of, kv_bytes, memory_of, partition, weight_bytes
from release.matrix.tensors import Tensor, active_parameters, parameters, tensors
from release.types import PRECISIONS, Architecture, Parallel, Precision

CHECKPOINTS = Path(__file__).parents[2] / "matrix" / "checkpoints"
BF16 = Format("bf16", 2)


def tensor_parallel(size: int) -> Parallel:
    return Parallel(tensor_parallel_size=size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_figures_are_met_within_half_a_percent(name: str) -> None:
    shape, billions, gib, kib, cache = PUBLISHED[name]
    assert parameters(shape) / 1e9 == pytest.approx(billions, rel=0.005)
    # The table rounds to a tenth of a GiB, which is more than half a percent of a small model.
    assert weight_bytes(shape, BF16) / GIB == pytest.approx(gib, rel=0.005, abs=0.05)
    assert kv_bytes(shape, 2) / 1024 == pytest.approx(kib, rel=0.005)
    assert kv_bytes(shape, 2) * 32768 / GIB == pytest.approx(cache, rel=0.005, abs=0.0051)


def test_the_layers_for_multi_token_prediction_are_as_large_as_their_makers_say() -> None:
    embeddings = 2 * R1.vocabulary * R1.hidden
    assert (parameters(R1, nextn=True) - parameters(R1) - embeddings) / 1e9 == pytest.approx(11.6, rel=0.005)


def test_a_token_is_multiplied_with_the_experts_that_it_goes_to() -> None:
    assert active_parameters(R1) / 1e9 == pytest.approx(37, rel=0.02)
    assert active_parameters(QWEN3_235B) / 1e9 == pytest.approx(22, rel=0.03)


TINY: dict[str, dict[str, Any]] = {
    "tiny-qwq": {"qkv_bias": True},
    "tiny-qwen3": {"qk_norm": True},
    "tiny-r1": {"tied_embeddings": False},
}


def shape_of(config: dict[str, Any]) -> Architecture:
    """The architecture that a config.json describes, read by hand."""
    kind = config["architectures"][0]
    facts: dict[str, Any] = {
        "class": kind,
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "intermediate": config["intermediate_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "vocabulary": config["vocab_size"],
        "tied_embeddings": config["tie_word_embeddings"],
        "qkv_bias": kind == "Qwen2ForCausalLM",
        "qk_norm": kind == "Qwen3ForCausalLM",
    }
    if kind == "DeepseekV3ForCausalLM":
        names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        facts["mla"] = {name: config[name] for name in names}
        facts["moe"] = {
            "experts": config["n_routed_experts"],
            "experts_per_token": config["num_experts_per_tok"],
            "intermediate": config["moe_intermediate_size"],
            "shared_experts": config["n_shared_experts"],
            "dense_layers": config["first_k_dense_replace"],
            "router_bias": True,
        }
    return architecture(**facts)


@pytest.mark.parametrize("name", ["tiny-qwq", "tiny-qwen3", "tiny-r1"])
def test_the_tensor_list_is_the_header_of_a_real_checkpoint(name: str) -> None:
    folder = CHECKPOINTS / name
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"{name} is not here")
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    there = {
        key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__" and not key.endswith("_scale_inv")
    }
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    assert {tensor.name: tensor.shape for tensor in tensors(shape)} == there


def test_the_bytes_of_a_checkpoint_in_fp8_blocks_are_those_of_its_header() -> None:
    folder = CHECKPOINTS / "tiny-r1"
    data = (folder / "model.safetensors").read_bytes()
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    assert weight_bytes(shape, Format("fp8", 2, 128)) == len(data) - 8 - int.from_bytes(data[:8], "little")


def test_deepseeks_checkpoint_has_the_tensors_that_its_readme_names() -> None:
    names = {tensor.name: tensor.shape for tensor in tensors(R1)}
    assert len(names) == len(list(tensors(R1)))
    assert names["model.layers.61.eh_proj.weight"] == (7168, 14336)
    assert names["model.layers.61.shared_head.head.weight"] == (129280, 7168)
    assert names["model.layers.60.mlp.gate.e_score_correction_bias"] == (256,)
    assert names["model.layers.60.mlp.experts.255.down_proj.weight"] == (7168, 2048)
    assert names["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"] == (576, 7168)
    assert names["model.layers.0.self_attn.q_b_proj.weight"] == (24576, 1536)
    assert "model.layers.2.mlp.gate_proj.weight" in names
    assert "model.layers.2.mlp.gate.weight" not in names


@given(architectures())
def test_the_closed_form_counts_every_tensor_of_the_list(shape: Architecture) -> None:
    everything = list(tensors(shape))
    assert len({tensor.name for tensor in everything}) == len(everything)
    assert parameters(shape, nextn=True) == sum(tensor.parameters for tensor in everything)
    assert parameters(shape) == sum(t.parameters for t in everything if layer_of(t) is None or layer_of(t) < shape.layers)  # type: ignore[operator]


def layer_of(tensor: Tensor) -> int | None:
    parts = tensor.name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def share(tensor: Tensor, a: Architecture, tp: int) -> tuple[int, ...]:
    """The part of a tensor that one device of a tensor parallel group holds, by its name alone: an independent second opinion."""
    name = tensor.name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
    first, *rest = tensor.shape
    if name in ("embed_tokens", "lm_head", "gate_proj", "up_proj"):
        return (ceil(first / tp), *rest)
    if name == "down_proj":
        return (first, ceil(rest[0] / tp))
    if name in ("q_proj", "q_b_proj", "kv_b_proj"):
        return (ceil(a.heads / tp) * (first // a.heads), *rest)
    if name in ("k_proj", "v_proj"):
        return (max(1, ceil(a.kv_heads / tp)) * a.head_dim, *rest)
    if name == "o_proj":
        return (first, ceil(a.heads / tp) * (rest[0] // a.heads))
    return tensor.shape


def size(tensor: Tensor, shape: tuple[int, ...], f: Format) -> int:
    """Bytes of a tensor of this shape."""
    if tensor.kind == "correction":
        return 4 * shape[0]
    if tensor.kind != "linear":
        number = 1
        for side in shape:
            number *= side
        return number * f.floating
    outputs, inputs = shape
    cache = 8 * outputs if f.precision == "w8a8c8" and tensor.name.split(".")[-2] in ("k_proj", "v_proj") else 0
    block = f.block or 128
    scales = {
        **{"fp8": 4 * ceil(outputs / block) * ceil(inputs / block), "w4a16": 2 * outputs * ceil(inputs / block)},
        **{"w8a16": 8 * outputs * (ceil(inputs / f.block) if f.block else 1)},
    }
    width = {"bf16": 2, "fp16": 2, "fp32": 4, "w4a16": 0.5}.get(f.precision, 1)
    extra = 0 if f.precision in ("bf16", "fp16", "fp32") else scales.get(f.precision, 8 * outputs)
    return ceil(outputs * inputs * width) + extra + cache


def summed(a: Architecture, f: Format, tp: int, pp: int) -> int:
    """Bytes of the fullest stage, tensor by tensor."""
    sizes = partition(a.layers, pp)
    stage_of = [stage for stage, layers in enumerate(sizes) for _ in range(layers)]
    totals = [0] * pp
    for tensor in tensors(a):
        number, count = layer_of(tensor), size(tensor, share(tensor, a, tp), f)
        if number is not None:
            if number < a.layers:
                totals[stage_of[number]] += count
        elif tensor.kind == "embedding":
            totals[0] += count
            if a.tied_embeddings and pp > 1:
                totals[-1] += count
        else:
            totals[-1] += count
    return max(totals)


@given(
    architectures(),
    st.sampled_from(PRECISIONS),
    st.sampled_from([2, 4]),
    st.none() | st.sampled_from([8, 32, 128]),
    st.integers(1, 20),
    st.integers(1, 12),
)
def test_the_weights_of_a_device_are_the_sum_of_its_parts_of_the_tensors(
    shape: Architecture, precision: Precision, floating: int, block: int | None, tp: int, pp: int
) -> None:
    f = Format(precision, floating, block)
    assert weight_bytes(shape, f, tp, pp) == summed(shape, f, tp, pp)


@given(architectures(), st.sampled_from(PRECISIONS), st.integers(1, 16), st.integers(1, 4))
def test_all_devices_together_hold_the_model_and_one_holds_no_more_than_all_of_it(
    shape: Architecture, precision: Precision, tp: int, pp: int
) -> None:
    f = Format(precision, 2)
    one = weight_bytes(shape, f, tp, pp)
    assert one <= weight_bytes(shape, f, 1, pp)
    # With tied embeddings two stages hold a copy each, and no more than that is added.
    copy = shape.vocabulary * shape.hidden * 2 if shape.tied_embeddings else 0
    assert one * tp * pp >= weight_bytes(shape, Format(precision, 2)) - copy or precision in ("fp8", "w4a16", "w8a16")


@given(st.integers(1, 200), st.integers(1, 64))
def test_stages_share_the_layers_evenly(layers: int, pp: int) -> None:
    sizes = partition(layers, pp)
    assert (len(sizes), sum(sizes)) == (pp, layers)
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)


@given(architectures(), st.integers(1, 64))
def test_each_device_keeps_at_least_one_head_of_keys_and_latent_attention_is_not_split(shape: Architecture, tp: int) -> None:
    one, many = kv_bytes(shape, 2), kv_bytes(shape, 2, tp)
    if shape.mla:
        assert many == one
    else:
        assert many == one // shape.kv_heads * max(1, ceil(shape.kv_heads / tp))


def test_a_sequence_of_deepseeks_takes_what_its_paper_says() -> None:
    assert kv_bytes(R1, 2) == 70_272
    assert kv_bytes(R1, 2, 16) == 70_272


def at(
    shape: Architecture, tp: int, memory: float, precision: Precision = "bf16", context: int = 32768, sequences: int = 8
) -> Any:
    return memory_of(Demand(shape, Format(precision, 2), context, sequences), tensor_parallel(tp), device_memory=memory)


def test_what_the_reference_reckons_by_hand_comes_out() -> None:
    assert at(QWQ, 8, 80).needed / GIB == pytest.approx(18.6, rel=0.005)
    assert at(QWEN3_32B, 4, 64).needed / GIB == pytest.approx(34.3, rel=0.005)
    assert at(QWEN2_72B, 8, 32).needed / GIB == pytest.approx(29.9, rel=0.005)
    # The reference divides all weights by 16; the key and value projections of 4 heads are there 16 times.
    assert at(QWEN3_235B, 16, 64).needed / GIB == pytest.approx(42.1, rel=0.01)
    assert at(QWEN3_32B, 4, 24, "fp16", 8192, 1).needed / GIB == pytest.approx(18.8, rel=0.005)


def test_what_fits_and_what_does_not() -> None:
    assert at(QWQ, 8, 96).full
    assert at(QWQ, 8, 80).full
    assert at(QWEN3_32B, 4, 64).full
    assert not at(QWEN3_32B, 4, 32).full
    assert at(QWEN3_32B, 4, 32, "w8a8").full
    assert not at(QWEN2_72B, 8, 32).full
    assert at(QWEN2_72B, 8, 64).full
    assert at(QWEN3_235B, 16, 64).full
    assert at(QWEN3_32B, 4, 24, "fp16", 8192, 1).full
    assert not at(R1, 16, 80).starts
    assert at(R1, 32, 80, sequences=1).starts


def test_starting_is_told_apart_from_full_concurrency() -> None:
    memory = at(QWEN3_32B, 4, 32)
    assert (memory.starts, memory.full, memory.sequences) == (True, False, 5)
    assert memory.tokens is not None
    assert memory.tokens // 32768 == 5
    assert at(QWEN3_32B, 1, 32).sequences == 0


def test_nothing_is_said_of_a_device_whose_memory_nobody_knows() -> None:
    memory = memory_of(Demand(QWQ, BF16, 32768, 8), tensor_parallel(8))
    assert (memory.budget, memory.starts, memory.full, memory.sequences, memory.tokens) == (None,) * 5
    assert memory.needed > 0
    assert memory_of(plan(at={"memory": {"unknown": "the vendor says nothing"}}), tensor_parallel(1)).starts is None


def test_a_plan_says_what_it_asks_for_in_any_engines_spelling() -> None:
    spelled = demand_of(plan(args={"max_model_len": 4096, "max_num_seqs": "3", "gpu_memory_utilization": 0.5}))
    assert (spelled.context, spelled.sequences, spelled.utilization, spelled.reserve) == (4096, 3, 0.5, 3 * GIB)
    silent = demand_of(plan(args={"max-model-len": "auto", "max-num-seqs": True}, env={"RESERVED_MEMORY_GB": "0"}))
    assert (silent.context, silent.sequences, silent.utilization, silent.reserve) == (32768, 8, 0.9, 0)


def test_what_an_engines_own_file_says_counts_as_an_argument() -> None:
    nested = {"BackendConfig": {"ModelDeployConfig": {"maxSeqLen": 2560}, "ScheduleConfig": {"maxBatchSize": 200}}}
    demand = demand_of(plan(engine_config=nested))
    assert (demand.context, demand.sequences) == (2560, 200)
    assert demand_of(plan(args={"max-model-len": 512}, engine_config=nested)).context == 512


def test_the_reserve_is_the_environments_where_it_says_one() -> None:
    assert demand_of(plan(env={"RESERVED_MEMORY_GB": "5.5"})).reserve == 5.5 * GIB
    assert demand_of(plan(env={"RESERVED_MEMORY_GB": "much"})).reserve == 3 * GIB


def test_a_cache_of_eight_bits_takes_half() -> None:
    assert demand_of(plan(args={"kv-cache-dtype": "fp8_e4m3"})).kv == 1
    assert demand_of(plan(precision="w8a8c8", on={"precisions": ["w8a8c8"]})).kv == 1
    assert demand_of(plan()).kv == 2
    assert demand_of(plan(precision="fp32", dtype="fp32", on={"precisions": ["fp32"]})).kv == 4


def test_the_side_of_a_block_is_the_cells_or_the_checkpoints() -> None:
    blocked = {"checkpoint": {"hub": {"repository": "a/b", "revision": "c" * 40}, "block": 64}}
    assert demand_of(plan(precision="fp8", of=blocked)).format.block == 64
    assert demand_of(plan(precision="w8a8", of=blocked)).format.block is None
    assert demand_of(plan(precision="w4a16", weights={"block": 32})).format.block == 32
