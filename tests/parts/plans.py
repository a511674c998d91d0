"""Architectures as published, random ones, and plans of invented chips and models, for the tests of the matrix's rules."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from release.types import Architecture, Chip, Device, Model, Plan, tuples


def architecture(**facts: Any) -> Architecture:
    return Architecture.model_validate({"class": "PebbleForCausalLM", "context": 32768, "head-dim": 128, **kebab(facts)})


def kebab(facts: dict[str, Any]) -> dict[str, Any]:
    """The spelling of the YAML files for keys that Python could not spell so; what is data (settings, variables) keeps its own."""
    own = ("args", "env", "engine_config", "build", "packages", "adapters", "compute", "devices", "requires", "multiples")
    return {
        key.replace("_", "-"): kebab(value) if isinstance(value, dict) and key not in own else value
        for key, value in facts.items()
    }


def qwen2(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, **more: Any) -> Architecture:
    return architecture(
        **{"class": "Qwen2ForCausalLM", "qkv_bias": True, "layers": layers, "hidden": hidden, "intermediate": intermediate},
        **{"heads": heads, "kv_heads": kv_heads, "vocabulary": vocabulary, **more},
    )


def qwen3(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, **more: Any) -> Architecture:
    return architecture(
        **{"class": "Qwen3ForCausalLM", "qk_norm": True, "layers": layers, "hidden": hidden, "intermediate": intermediate},
        **{"heads": heads, "kv_heads": kv_heads, "vocabulary": 151936, **more},
    )


def experts(intermediate: int) -> dict[str, int]:
    return {"experts": 128, "experts-per-token": 8, "intermediate": intermediate}


QWQ: Final = qwen2(64, 5120, 27648, 40, 8, 152064)
QWEN2_7B: Final = qwen2(28, 3584, 18944, 28, 4, 152064)
QWEN2_72B: Final = qwen2(80, 8192, 29568, 64, 8, 152064)
QWEN2_HALF: Final = qwen2(24, 896, 4864, 14, 2, 151936, tied_embeddings=True, head_dim=64)
QWEN3_8B: Final = qwen3(36, 4096, 12288, 32, 8)
QWEN3_32B: Final = qwen3(64, 5120, 25600, 64, 8)
QWEN3_30B: Final = qwen3(48, 2048, 6144, 32, 4, moe=experts(768))
QWEN3_235B: Final = qwen3(94, 4096, 12288, 64, 4, moe=experts(1536))
R1: Final = architecture(
    **{"class": "DeepseekV3ForCausalLM", "layers": 61, "hidden": 7168, "intermediate": 18432, "heads": 128, "kv_heads": 128},
    **{"vocabulary": 129280, "nextn_layers": 1},
    mla={"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    moe={
        **{"experts": 256, "experts_per_token": 8, "intermediate": 2048, "shared_experts": 1, "dense_layers": 3},
        "router_bias": True,
    },
)

PUBLISHED: Final = {
    "Qwen2.5-0.5B": (QWEN2_HALF, 0.494, 0.9, 12, 0.38),
    "Qwen2.5-1.5B": (qwen2(28, 1536, 8960, 12, 2, 151936, tied_embeddings=True), 1.544, 2.9, 28, 0.88),
    "Qwen2.5-3B": (qwen2(36, 2048, 11008, 16, 2, 151936, tied_embeddings=True), 3.086, 5.7, 36, 1.12),
    "Qwen2.5-7B": (QWEN2_7B, 7.616, 14.2, 56, 1.75),
    "Qwen2.5-14B": (qwen2(48, 5120, 13824, 40, 8, 152064), 14.770, 27.5, 192, 6.00),
    "QwQ-32B": (QWQ, 32.764, 61.0, 256, 8.00),
    "Qwen2.5-72B": (QWEN2_72B, 72.706, 135.4, 320, 10.00),
    "Qwen3-4B": (qwen3(36, 2560, 9728, 32, 8, tied_embeddings=True), 4.022, 7.5, 144, 4.50),
    "Qwen3-8B": (QWEN3_8B, 8.191, 15.3, 144, 4.50),
    "Qwen3-14B": (qwen3(40, 5120, 17408, 40, 8), 14.768, 27.5, 160, 5.00),
    "Qwen3-32B": (QWEN3_32B, 32.762, 61.0, 256, 8.00),
    "Qwen3-30B-A3B": (QWEN3_30B, 30.532, 56.9, 96, 3.00),
    "Qwen3-235B-A22B": (QWEN3_235B, 235.094, 437.9, 188, 5.88),
    "DeepSeek-R1": (R1, 671.026, 1250.0, 68.6, 2.14),
}
"""Parameters in 10^9, GiB in bf16, KiB of cache a token, GiB of cache for 32,768 tokens: as computed from the published config.json."""


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Random small architectures of all kinds that the types can say."""
    few = st.integers(1, 9)
    layers, kv_heads = draw(few), draw(few)
    facts: dict[str, Any] = {
        **{"layers": layers, "hidden": 8 * draw(few), "intermediate": 8 * draw(few), "kv_heads": kv_heads},
        **{"heads": kv_heads * draw(few), "head_dim": 4 * draw(few), "vocabulary": draw(st.integers(1, 700))},
        **{"tied_embeddings": draw(st.booleans()), "nextn_layers": draw(st.integers(0, 2))},
        **{"qkv_bias": draw(st.booleans()), "qk_norm": draw(st.booleans())},
    }
    if draw(st.booleans()):
        routed = draw(few)
        facts["moe"] = {
            **{"experts": routed, "experts_per_token": draw(st.integers(1, routed)), "intermediate": 4 * draw(few)},
            **{"shared_experts": draw(st.integers(0, 2)), "dense_layers": draw(st.integers(0, layers + 1))},
            "router_bias": draw(st.booleans()),
        }
    if draw(st.booleans()):
        facts["mla"] = {
            **{"q_lora_rank": draw(st.none() | few), "kv_lora_rank": draw(few), "v_head_dim": 4 * draw(few)},
            **{"qk_nope_head_dim": 4 * draw(few), "qk_rope_head_dim": 4 * draw(few)},
        }
    return architecture(**facts)


CHIP: Final[dict[str, Any]] = {
    **{"id": "abacus", "name": "Abacus 9", "vendor": "Invented", "architecture": "arm64"},
    "precisions": ("bf16", "fp16", "fp8", "w8a8", "w8a16", "w4a16", "w8a8s", "w8a8sc"),
    "dtypes": ("bf16", "fp16"),
    "base": {"image": "registry.example.org/abacus@sha256:" + "a" * 64},
    "python": {"version": "3.11", "glibc": "2.36"},
}
DEVICE: Final[dict[str, Any]] = {"name": "Abacus 9", "memory": 64.0, "bandwidth": 1600.0, "per-host": 8, "source": "its box"}
MODEL: Final[dict[str, Any]] = {
    **{"id": "pebble-7b", "name": "Pebble 7B", "family": "pebble", "vendor": "Invented", "license": "mit"},
    **{"description": "Counts.", "example": "How many?", "precision": "bf16"},
    "checkpoint": {"hub": {"repository": "invented/pebble", "revision": "c" * 40}},
}
PLAN: Final[dict[str, Any]] = {
    **{"precision": "bf16", "dtype": "bf16", "variant": None, "engine": "vllm", "wheels": None, "wheels-sha256": None},
    **{"container": {}, "sources": (), "packages": {}, "serve": {}, "parallel": None, "world-sizes": (), "features": ()},
    "engine-config": {},
    **{"adapters": {}, "weights": None, "accuracy": None, "trials": (), "reported": (), "conflicts": (), "documents": ()},
    **{"note": "", "reference": None},
}


def device(**changes: Any) -> Device:
    return Device.model_validate({**DEVICE, **kebab(changes)})


def chip(**changes: Any) -> Chip:
    return Chip.model_validate(tuples({**CHIP, **kebab(changes)}))


def model(shape: Architecture = QWEN2_7B, **changes: Any) -> Model:
    return Model.model_validate({**MODEL, "architecture": shape, **kebab(changes)})


def plan(
    shape: Architecture = QWEN2_7B,
    *,
    on: dict[str, Any] | None = None,
    of: dict[str, Any] | None = None,
    at: dict[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    """A plan of an invented model of this shape on an invented chip: `on` changes the chip, `of` the model, `at` the device."""
    the_chip, the_model = chip(**(on or {})), model(shape, **(of or {}))
    facts = {**PLAN, **kebab(changes)}
    arm = facts["precision"] + (f"~{facts['variant']}" if facts["variant"] else "")
    defaults = {
        **{"cell": f"{the_chip.id}/{the_model.id}@{arm}", "chip": the_chip, "model": the_model, "device": device(**(at or {}))},
        **{"base": the_chip.base, "python": the_chip.python},
    }
    if "args" in changes or "env" in changes:
        facts["serve"] = {"args": facts.pop("args", {}), "env": facts.pop("env", {})}
    if isinstance(facts["parallel"], tuple):
        names = ("tensor-parallel-size", "pipeline-parallel-size", "replicas")
        facts["parallel"] = dict(zip(names, facts["parallel"], strict=False))
    return Plan.model_validate(tuples({**defaults, **facts}))
