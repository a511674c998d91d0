"""Our own checkpoints: every file is the pinned one; the tensors, config.json and the model's facts agree; the one in FP8 is dequantised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
from shards import quiet, read

from release.builders.weights import convert, plan_conversion
from release.builders.weights.check import check
from release.builders.weights.proof import verify
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
    found = {key: (entry["dtype"], tuple(entry["shape"])) for key, entry in stored.items()}
    assert found == (
        blocks(model) if model.precision == "fp8" else {t.name: ("F32", t.shape) for t in tensors(model.architecture)}
    )


def blocks(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors of a checkpoint as DeepSeek stores one (its README_WEIGHTS.md): dtype and shape by name."""
    block = model.checkpoint.block
    assert block
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in tensors(model.architecture):
        found[tensor.name] = ({"linear": "F8_E4M3", "correction": "F32"}.get(tensor.kind, "BF16"), tensor.shape)
        if tensor.kind == "linear":
            found[f"{tensor.name}_scale_inv"] = ("F32", tuple(-(-size // block) for size in tensor.shape))
    return found


def test_the_config_of_the_checkpoint_in_fp8_says_what_deepseeks_does() -> None:
    model, folder = checkpoint("tiny-r1")
    config = json.loads((folder / "config.json").read_text())
    assert (model.precision, config["torch_dtype"]) == ("fp8", "bfloat16")
    assert "dtype" not in config
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [model.checkpoint.block] * 2,
    }


def test_the_checkpoint_in_fp8_uses_the_whole_range_of_its_blocks() -> None:
    _, folder = checkpoint("tiny-r1")
    arrays = read(folder / "model.safetensors")
    for name, scale in arrays.items():
        if name.endswith("_scale_inv"):
            codes = arrays[name.removesuffix("_scale_inv")].view(np.uint8) & 0x7F
            for row, column in np.ndindex(scale.shape):
                part = codes[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
                assert part.max() == 0x7E  # 448: the largest number of a block has the largest code, and 0x7f would be a NaN
            assert (scale > 0).all()


@pytest.mark.parametrize(("to", "dtype"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_the_checkpoint_in_fp8_becomes_bit_for_bit_what_float32_arithmetic_makes_of_it(
    to: str, dtype: str, tmp_path: Path
) -> None:
    _, folder = checkpoint("tiny-r1")
    source = read(folder / "model.safetensors")
    facts = convert(folder, tmp_path / "out", upstream="fp8", precision=to, line=quiet())
    made = read(tmp_path / "out" / "model.safetensors")
    assert set(made) == {name for name in source if not name.endswith("_scale_inv")}
    for name, array in made.items():
        wanted = source[name].astype(np.float32)
        if scale := [source[key] for key in (f"{name}_scale_inv",) if key in source]:
            rows, columns = wanted.shape
            wanted = wanted * np.repeat(np.repeat(scale[0], 128, 0), 128, 1)[:rows, :columns]
        own = array.dtype if name.endswith("e_score_correction_bias") else np.dtype(getattr(ml_dtypes, dtype, dtype))
        assert (array.dtype, array.tobytes()) == (own, wanted.astype(own).tobytes()), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == dtype
    assert "quantization_config" not in config
    assert facts["precision"] == to
    assert [finding for finding in check(tmp_path / "out") if finding.severity == "error"] == []
    verify(plan_conversion(folder, to), tmp_path / "out", quiet())


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
            **{"n_group": a.moe.groups, "topk_group": a.moe.groups_per_token},
            **{"scoring_func": a.moe.scoring, "routed_scaling_factor": a.moe.scaling},
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
