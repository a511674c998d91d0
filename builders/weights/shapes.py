"""Rules about config.json: what it says of layers, heads and sizes is what the tensors have. A vendor has shipped another model's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from release.builders.weights.findings import Checkpoint, Finding, Module

FILE: Final = "config.json"
LAYER: Final = re.compile(r"(?:model\.|language_model\.|transformer\.)*layers\.(\d+)\.(.+)")
DEPTH: Final = 2
"""How deep a text model's part of config.json may lie: `text_config` of models that see."""


def shapes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Layers, hidden and intermediate sizes, heads, key-value heads, experts and vocabulary of config.json are those of the tensors."""
    config = _text(checkpoint.config)
    if not checkpoint.config:
        return
    by_layer = _by_layer(checkpoint)
    if not by_layer:
        if "num_hidden_layers" in config:
            yield Finding("config", FILE, "", "no tensor bears the name of a layer: the sizes cannot be compared", "warning")
        return
    yield from _layers(config, set(by_layer))
    yield from _vocabulary(checkpoint, config)
    first = {(number, name): module for number, modules in sorted(by_layer.items()) for name, module in modules.items()}
    said: set[str] = set()
    for (number, name), module in sorted(first.items()):
        if number >= (_number(config, "num_hidden_layers") or number + 1):
            continue  # a layer for multi-token prediction
        for key, wanted, found in _sizes(config, name, module):
            if found is not None and wanted is not None and found != wanted and key not in said:
                said.add(key)
                yield _wrong(module, f"{key} is {wanted} in {FILE}, and {found} here")


def _sizes(config: dict[str, Any], name: str, module: Module) -> Iterator[tuple[str, int | None, int | None]]:
    """Yield key, what config.json makes of it, and what the tensor has."""
    word, hidden = module.word, _number(config, "hidden_size")
    heads, latent = _number(config, "num_attention_heads"), _number(config, "kv_lora_rank")
    if latent is None and ".cross" not in name:
        head = _number(config, "head_dim") or (hidden // heads if hidden and heads else None)
        groups = _number(config, "num_key_value_heads") or heads
        gated = 2 if config.get("attn_output_gate") is True else 1
        if word == "q_proj" and heads and head:
            yield "num_attention_heads × head_dim", heads * head * gated, module.rows
        if word in ("k_proj", "v_proj") and groups and head:
            yield "num_key_value_heads × head_dim", groups * head, module.rows
    elif latent is not None:
        yield from _latent(config, word, module, latent)
    if word in ("gate_proj", "up_proj") and ".experts." not in name and "shared_expert" not in name:
        yield "intermediate_size", _number(config, "intermediate_size"), module.rows
    if word in ("gate_proj", "up_proj") and ".experts." in name:
        yield "moe_intermediate_size", _number(config, "moe_intermediate_size"), module.rows
    if word in ("o_proj", "down_proj"):
        yield "hidden_size", hidden, module.rows
    if word in ("input_layernorm", "post_attention_layernorm") and module.main is not None:
        yield "hidden_size", hidden, module.main.elements
    if word == "gate" and module.main is not None and len(module.main.shape) == 2:
        counts = [_number(config, key) for key in ("n_routed_experts", "num_experts", "num_local_experts")]
        yield "experts", next((count for count in counts if count), None), module.main.shape[0]


def _latent(config: dict[str, Any], word: str, module: Module, latent: int) -> Iterator[tuple[str, int | None, int | None]]:
    """The sizes of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    heads, rope = _number(config, "num_attention_heads"), _number(config, "qk_rope_head_dim")
    plain, value = _number(config, "qk_nope_head_dim"), _number(config, "v_head_dim")
    if rope is None or plain is None or value is None or heads is None:
        return
    if word == "kv_a_proj_with_mqa":
        yield "kv_lora_rank + qk_rope_head_dim", latent + rope, module.rows
    if word == "kv_b_proj":
        yield "num_attention_heads × (qk_nope_head_dim + v_head_dim)", heads * (plain + value), module.rows
    if word == "q_a_proj":
        yield "q_lora_rank", _number(config, "q_lora_rank"), module.rows
    if word in ("q_b_proj", "q_proj"):
        yield "num_attention_heads × (qk_nope_head_dim + qk_rope_head_dim)", heads * (plain + rope), module.rows


def _layers(config: dict[str, Any], numbers: set[int]) -> Iterator[Finding]:
    said = _number(config, "num_hidden_layers")
    extra = _number(config, "num_nextn_predict_layers") or 0
    if said is None:
        return
    count = max(numbers) + 1
    if missing := sorted(set(range(count)) - numbers):
        yield Finding("config", FILE, "", f"layer {missing[0]} has no tensors, and layer {count - 1} has")
    if count not in (said, said + extra):
        with_mtp = f" + {extra} of num_nextn_predict_layers" if extra else ""
        yield Finding("config", FILE, "", f"num_hidden_layers is {said}{with_mtp}, and the tensors have {count} layers")
    elif extra and count == said:
        yield Finding("config", FILE, "", f"num_nextn_predict_layers is {extra}, and the tensors have no such layer")


def _vocabulary(checkpoint: Checkpoint, config: dict[str, Any]) -> Iterator[Finding]:
    said, hidden = _number(config, "vocab_size"), _number(config, "hidden_size")
    for name, tensor in sorted(checkpoint.tensors.items()):
        if not name.endswith(("embed_tokens.weight", "lm_head.weight")) or len(tensor.shape) != 2 or LAYER.match(name):
            continue
        module = checkpoint.modules[name.rpartition(".")[0]]
        if said is not None and tensor.shape[0] != said:
            yield _wrong(module, f"vocab_size is {said} in {FILE}, and {tensor.shape[0]} here")
        if hidden is not None and tensor.shape[1] != hidden and not module.quantised:
            yield _wrong(module, f"hidden_size is {hidden} in {FILE}, and {tensor.shape[1]} here")
    tied = config.get("tie_word_embeddings")
    if tied is False and not any(
        name.endswith(("lm_head.weight", "lm_head.weight_packed", "output.weight")) for name in checkpoint.tensors
    ):
        yield Finding("config", FILE, "lm_head.weight", "tie_word_embeddings is false, and there is no such tensor")


def _by_layer(checkpoint: Checkpoint) -> dict[int, dict[str, Module]]:
    found: dict[int, dict[str, Module]] = {}
    for name, module in checkpoint.modules.items():
        if match := LAYER.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = module
    return found


def _text(config: Any) -> dict[str, Any]:
    for _ in range(DEPTH):
        inner = config.get("text_config") or config.get("llm_config")
        if "num_hidden_layers" in config or not isinstance(inner, dict):
            break
        config = inner
    return dict(config)


def _number(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and value > 0 else None


def _wrong(module: Module, message: str) -> Finding:
    tensor = module.main or next(iter(module.tensors.values()))
    return Finding("config", FILE, tensor.name, message)
