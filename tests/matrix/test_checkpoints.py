"""Our own checkpoints: every file is the pinned one, and the tensors, config.json and the model's facts agree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest

from release.matrix.load import Matrix
from release.matrix.tensors import tensors
from release.types import Model

OURS: Final = ("tiny-qwq", "tiny-qwen3", "tiny-r1")
LARGEST: Final = 12 << 20
"""They live in the repository and in the wheel."""


def checkpoint(name: str) -> tuple[Model, Path]:
    matrix = Matrix()
    model = matrix.model(name)
    assert model.checkpoint.path
    return model, matrix.file(model.checkpoint.path)


def header(path: Path) -> dict[str, Any]:
    """Return a safetensors header: eight bytes of length, little-endian, then as many bytes of JSON."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    found: dict[str, Any] = json.loads(raw[8:end])
    found.pop("__metadata__", None)
    assert max(entry["data_offsets"][1] for entry in found.values()) == len(raw) - end
    return found


@pytest.mark.parametrize("name", OURS)
def test_the_files_of_a_checkpoint_of_ours_are_the_pinned_ones_and_no_others(name: str) -> None:
    model, folder = checkpoint(name)
    others = [path for path in folder.iterdir() if path.is_file() and path.name != "recipe.py"]
    found = {path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
    assert found == model.checkpoint.files
    assert model.checkpoint.recipe
    assert Matrix().file(model.checkpoint.recipe).parent == folder
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < LARGEST


@pytest.mark.parametrize("name", OURS)
def test_the_tensors_of_a_checkpoint_of_ours_are_those_of_its_architecture(name: str) -> None:
    model, folder = checkpoint(name)
    stored = header(folder / "model.safetensors")
    assert {key: tuple(entry["shape"]) for key, entry in stored.items()} == {t.name: t.shape for t in tensors(model.architecture)}
    assert {entry["dtype"] for entry in stored.values()} == {"F32"}


@pytest.mark.parametrize("name", OURS)
def test_the_facts_of_a_model_of_ours_are_those_of_its_config(name: str) -> None:
    model, folder = checkpoint(name)
    config, a = json.loads((folder / "config.json").read_text()), model.architecture
    wanted: dict[str, object] = {
        "architectures": [a.class_],
        "num_hidden_layers": a.layers,
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "vocab_size": a.vocabulary,
        "max_position_embeddings": a.context,
        "tie_word_embeddings": a.tied_embeddings,
    }
    if a.moe:
        wanted |= {
            "n_routed_experts": a.moe.experts,
            "num_experts_per_tok": a.moe.experts_per_token,
            "moe_intermediate_size": a.moe.intermediate,
            "n_shared_experts": a.moe.shared_experts,
            "first_k_dense_replace": a.moe.dense_layers,
            "topk_method": "noaux_tc" if a.moe.router_bias else None,  # vLLM reads the bias only under this name
            "num_nextn_predict_layers": a.nextn_layers,
        }
    if a.mla:
        wanted |= {
            "q_lora_rank": a.mla.q_lora_rank,
            "kv_lora_rank": a.mla.kv_lora_rank,
            "qk_nope_head_dim": a.mla.qk_nope_head_dim,
            "qk_rope_head_dim": a.mla.qk_rope_head_dim,
            "v_head_dim": a.mla.v_head_dim,
        }
    assert {key: config.get(key) for key in wanted} == wanted
    assert config.get("head_dim", a.hidden // a.heads) == a.head_dim
