"""A model's file out of its config.json: the families that the matrix knows, and what is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from release.errors import UsageError
from release.matrix.load import OURS, Matrix
from release.matrix.scaffold import model_facts
from release.types import Architecture

QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 64,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}


def facts(tmp_path: Path, config: object) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return model_facts(tmp_path)


def test_the_tiny_model_of_ours_gives_the_architecture_that_its_file_has() -> None:
    found = model_facts(OURS / "checkpoints" / "tiny-qwq")
    model = Matrix().model("tiny-qwq")
    assert Architecture.model_validate(found["architecture"]) == model.architecture
    assert found["precision"] == model.precision
    assert {name: digest for name, digest in found["files"].items() if name in model.checkpoint.files} == model.checkpoint.files


def test_head_dimensions_are_read_where_they_stand_and_divided_where_they_do_not(tmp_path: Path) -> None:
    assert facts(tmp_path, QWEN2)["architecture"]["head-dim"] == 128
    assert facts(tmp_path, {**QWEN2, "head_dim": 80})["architecture"]["head-dim"] == 80


def test_a_mixture_of_experts_with_latent_attention_is_read(tmp_path: Path) -> None:
    config = {
        **QWEN2,
        "architectures": ["DeepseekV3ForCausalLM"],
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "topk_method": "noaux_tc",
        **{"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid"},
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8"},
    }
    found = facts(tmp_path, config)
    made = Architecture.model_validate(found["architecture"])
    assert found["precision"] == "fp8"
    assert made.moe is not None and (made.moe.experts, made.moe.dense_layers, made.moe.router_bias) == (256, 3, True)
    assert (made.moe.scoring, made.moe.scaling, made.moe.groups, made.moe.groups_per_token) == ("sigmoid", 2.5, 8, 4)
    assert made.mla is not None and (made.mla.q_lora_rank, made.mla.kv_lora_rank, made.head_dim) == (1536, 512, 192)
    assert (made.qkv_bias, made.nextn_layers) == (False, 1)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("{", "no config.json that can be read"),
        ("[]", "is no object"),
        ("[" * 100_000, "no config.json that can be read"),
        ({}, "lacks architectures"),
        ({**QWEN2, "hidden_size": None}, "lacks hidden_size"),
        (" " * (2 << 20), "is larger than"),
    ],
    ids=["cut", "list", "deep", "empty", "a figure short", "huge"],
)
def test_what_is_no_config_is_refused(config: object, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=wanted):
        facts(tmp_path, config)


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        model_facts(tmp_path)
