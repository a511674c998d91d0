"""What a new file of the matrix starts from: a model's facts out of its config.json and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from release.errors import UsageError
from release.oci import sha256_file

CONFIG_LIMIT: Final = 1 << 20
FLOATS: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
BIASED: Final = ("Qwen2",)
NORMED: Final = ("Qwen3",)
"""How the classes begin whose query, key and value projections have biases, and whose queries and keys are normalised; config.json does
not say it of them."""


def model_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a model's YAML file out of a checkpoint's folder: `architecture`, `precision`, and `files` with their digests.

    Raises UsageError where there is no config.json of a decoder-only model; a key that it lacks is named.
    """
    try:
        if (file := folder / "config.json").stat().st_size > CONFIG_LIMIT:
            raise UsageError(f"{file} is larger than {CONFIG_LIMIT} bytes")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise UsageError(
            f"{folder} has no config.json that can be read: {problem}", next_step="give a checkpoint's folder"
        ) from problem
    if not isinstance(config, dict):
        raise UsageError(f"{file} is no object")
    files = {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {"architecture": architecture(config, file), "precision": precision(config), "files": files}


def precision(config: dict[str, Any]) -> str:
    """Return the precision of the weights: of their quantisation if there is one, else of `torch_dtype` (or `dtype`)."""
    quantised = config.get("quantization_config")
    if isinstance(quantised, dict) and quantised.get("quant_method") == "fp8":
        return "fp8"
    return FLOATS.get(str(config.get("torch_dtype", config.get("dtype"))), "bf16")


def architecture(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the shapes in config.json under the names that a model's file has for them."""

    def value(*names: str) -> Any:
        for name in names:
            if config.get(name) is not None:
                return config[name]
        raise UsageError(
            f"{file} lacks {names[0]}", next_step="write the model's file by hand: release matrix schema names the keys"
        )

    kind = value("architectures")[0]
    facts = {
        "class": kind,
        "layers": value("num_hidden_layers"),
        "hidden": value("hidden_size"),
        "intermediate": value("intermediate_size"),
        "heads": value("num_attention_heads"),
        "kv-heads": config.get("num_key_value_heads") or value("num_attention_heads"),
        "head-dim": config.get("head_dim") or value("hidden_size") // value("num_attention_heads"),
        "vocabulary": value("vocab_size"),
        "context": value("max_position_embeddings"),
    }
    if config.get("tie_word_embeddings"):
        facts["tied-embeddings"] = True
    if kind.startswith(BIASED) or config.get("attention_bias"):
        facts["qkv-bias"] = True
    if kind.startswith(NORMED):
        facts["qk-norm"] = True
    if config.get("num_experts") or config.get("n_routed_experts"):
        facts["moe"] = {
            "experts": value("num_experts", "n_routed_experts"),
            "experts-per-token": value("num_experts_per_tok"),
            "intermediate": value("moe_intermediate_size"),
            "shared-experts": config.get("n_shared_experts") or 0,
            "dense-layers": config.get("first_k_dense_replace") or 0,
            "router-bias": config.get("topk_method") == "noaux_tc",
            **_routing(config),
        }
    if config.get("kv_lora_rank"):
        names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        facts["mla"] = {"q-lora-rank": config.get("q_lora_rank")} | {name.replace("_", "-"): value(name) for name in names}
        facts["head-dim"] = value("qk_nope_head_dim") + value("qk_rope_head_dim")
    if config.get("num_nextn_predict_layers"):
        facts["nextn-layers"] = config["num_nextn_predict_layers"]
    return facts


def _routing(config: dict[str, Any]) -> dict[str, Any]:
    """Return how a router chooses, where config.json says so; what it does not say is the type's own default."""
    told = {"scoring": config.get("scoring_func"), "scaling": config.get("routed_scaling_factor")}
    groups, kept = config.get("n_group") or 0, config.get("topk_group") or 0
    if groups > 1:  # one group is none
        told |= {"groups": groups, "groups-per-token": kept}
    return {name: value for name, value in told.items() if value is not None}
