"""The check of checkpoints finds every fault that it is for, in checkpoints that are otherwise sound, and nothing in sound ones."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from release.builders.weights.check import check, refuse
from release.builders.weights.findings import Finding
from release.errors import StageError

Tensors = dict[str, Any]
Change = Callable[[Tensors, dict[str, Any], dict[str, Any]], None]
ROOT = Path(__file__).parents[3]


def dense() -> tuple[Tensors, dict[str, Any]]:
    """Two layers in the architecture of Qwen2, and their config.json."""
    rng = np.random.default_rng(1)
    tensors: Tensors = {"model.embed_tokens.weight": rng.standard_normal((24, 16)), "model.norm.weight": np.ones(16)}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        tensors[f"{stem}.input_layernorm.weight"] = np.ones(16)
        shapes = {
            "self_attn.q_proj": (16, 16),
            "self_attn.k_proj": (8, 16),
            "self_attn.v_proj": (8, 16),
            "self_attn.o_proj": (16, 16),
        }
        shapes |= {"mlp.gate_proj": (40, 16), "mlp.up_proj": (40, 16), "mlp.down_proj": (16, 40)}
        tensors |= {f"{stem}.{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
        tensors |= {
            f"{stem}.self_attn.{name}.bias": rng.standard_normal(rows)
            for name, rows in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8))
        }
    config = {
        **{"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 24, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "tie_word_embeddings": True, "torch_dtype": "float16"},
    }
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}, config


def static() -> tuple[Tensors, dict[str, Any], dict[str, Any]]:
    """The same with its attention in static int8 and its mlp in dynamic int8, as msmodelslim writes them for a float16 model."""
    tensors, config = dense()
    rng = np.random.default_rng(2)
    description: dict[str, Any] = {"model_quant_type": "W8A8", "version": "1.0.0", "group_size": 0}
    for name in [name for name in tensors if "_proj.weight" in name]:
        module = name.removesuffix(".weight")
        rows, columns = tensors[name].shape
        codes = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
        tensors[name] = codes
        scale = rng.uniform(1e-4, 1e-3, (rows, 1)).astype(np.float32)
        if "mlp" in name:
            added: Tensors = {"weight_scale": scale, "weight_offset": np.zeros((rows, 1), np.float32)}
        else:
            given, offset = np.float32([0.03]), np.float32([-7])
            factor = (given * scale[:, 0]).astype(np.float32)
            bias = tensors.get(f"{module}.bias", np.zeros(rows)).astype(np.float64)
            shifted = np.rint(bias / factor - offset[0] * codes.sum(axis=1, dtype=np.int64)).astype(np.int32)
            deq = factor.view(np.int32).astype(np.int64)
            added = {"input_scale": given, "input_offset": offset, "quant_bias": shifted, "deq_scale": deq}
        tensors |= {f"{module}.{word}": value for word, value in added.items()}
        kind = "W8A8_DYNAMIC" if "mlp" in name else "W8A8"
        description |= {name: kind, **{f"{module}.{word}": kind for word in added}}
    description |= {name: "FLOAT" for name in tensors if name not in description}
    return tensors, config, description


def write(folder: Path, tensors: Tensors, config: dict[str, Any] | None, description: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if description is not None:
        (folder / "quant_model_description.json").write_text(json.dumps(description))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("Apache")
    return folder


def rules(found: list[Finding]) -> set[str]:
    return {finding.rule for finding in found if finding.severity == "error"}


def test_sound_checkpoints_have_no_findings(tmp_path: Path) -> None:
    assert check(write(tmp_path / "dense", *dense())) == []
    assert check(write(tmp_path / "static", *static())) == []


# A config.json of another model, as a vendor has shipped it


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("num_hidden_layers", 3, "num_hidden_layers is 3"),
        ("num_hidden_layers", 1, "num_hidden_layers is 1"),
        ("intermediate_size", 13696, "intermediate_size is 13696"),
        ("num_key_value_heads", 2, "num_key_value_heads × head_dim is 16"),
        ("num_attention_heads", 4, "num_key_value_heads × head_dim is 4"),
        ("head_dim", 4, "num_attention_heads × head_dim is 8"),
        ("vocab_size", 23, "vocab_size is 23"),
        ("hidden_size", 8, "hidden_size is 8"),
        ("tie_word_embeddings", False, "tie_word_embeddings is false"),
        ("num_nextn_predict_layers", 1, "num_nextn_predict_layers is 1"),
    ],
)
def test_a_config_of_another_model_is_found(key: str, value: Any, word: str, tmp_path: Path) -> None:
    tensors, config = dense()
    found = check(write(tmp_path / "x", tensors, {**config, key: value}))
    assert any(finding.rule == "config" and word in finding.message for finding in found), found


def test_the_very_config_that_a_vendor_shipped_is_found(tmp_path: Path) -> None:
    """40 layers, intermediate 13,696 and 40 key-value heads (Qwen1.5-14B) beside tensors of QwQ-32B: 64, 27,648 and 8; headers alone say so."""
    shapes = {"q_proj": (5120, 5120), "k_proj": (1024, 5120), "v_proj": (1024, 5120), "o_proj": (5120, 5120)}
    layer = {
        **{f"self_attn.{name}": shape for name, shape in shapes.items()},
        "mlp.gate_proj": (27648, 5120),
        "mlp.down_proj": (5120, 27648),
    }
    header, reached = {}, 0
    for number in range(64):
        for name, (rows, columns) in layer.items():
            header[f"model.layers.{number}.{name}.weight"] = {
                "dtype": "BF16",
                "shape": [rows, columns],
                "data_offsets": [reached, reached := reached + 2 * rows * columns],
            }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + reached)  # a hole: 60 GB that take no room
    theirs = {"hidden_size": 5120, "num_attention_heads": 40, "torch_dtype": "bfloat16"}
    theirs |= {"num_hidden_layers": 40, "intermediate_size": 13696, "num_key_value_heads": 40}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    (tmp_path / "tokenizer.json").write_text("{}")
    said = "\n".join(finding.message for finding in check(tmp_path, numbers=False) if finding.rule == "config")
    for word in ("num_hidden_layers is 40", "intermediate_size is 13696", "num_key_value_heads × head_dim is 5120"):
        assert word in said
    true = theirs | {"num_hidden_layers": 64, "intermediate_size": 27648, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(true))
    assert rules(check(tmp_path, numbers=False)) == set()


# Faults, one at a time, each with the rule that finds it


def dropped(name: str) -> Change:
    return lambda tensors, config, description: (tensors.pop(name), description.pop(name))[0]  # type: ignore[return-value]


Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def changed(name: str, made: Callable[[Any], Any]) -> Change:
    def change(tensors: Tensors, config: dict[str, Any], description: dict[str, Any]) -> None:
        tensors[name] = made(tensors[name])

    return change


def described(**entries: Any) -> Change:
    return lambda tensors, config, description: description.update(
        {name.replace("__", "."): kind for name, kind in entries.items()}
    )


def configured(**entries: Any) -> Change:
    return lambda tensors, config, description: config.update(entries)


def added(name: str, value: Any, kind: str | None = "FLOAT") -> Change:
    def change(tensors: Tensors, config: dict[str, Any], description: dict[str, Any]) -> None:
        tensors[name] = value
        if kind:
            description[name] = kind

    return change


FAULTS: dict[str, tuple[Change, str]] = {
    "a scale is missing": (dropped(f"{UP}.weight_scale"), "weight-without-scale"),
    "a scale is left over": (added("model.layers.0.mlp.old.weight_scale", np.ones((4, 1), np.float32)), "scale-without-weight"),
    "a scale has other rows": (changed(f"{UP}.weight_scale", lambda old: old[:-1]), "shape"),
    "a scale is flat": (changed(f"{UP}.weight_scale", lambda old: old[:, 0]), "type"),
    "a scale is float16": (changed(f"{UP}.weight_scale", lambda old: old.astype(np.float16)), "type"),
    "an offset is missing": (dropped(f"{UP}.weight_offset"), "type"),
    "an input scale is per token": (changed(f"{Q}.input_scale", lambda old: np.ones(16, np.float32)), "type"),
    "a bias is int64": (changed(f"{Q}.quant_bias", lambda old: old.astype(np.int64)), "type"),
    "a tensor has no entry": (added("model.extra.weight", np.ones(3, np.float16), None), "description"),
    "an entry has no tensor": (described(model__gone__weight="FLOAT"), "description"),
    "a quantised weight is called FLOAT": (described(**{f"{UP.replace('.', '__')}__weight": "FLOAT"}), "description"),
    "a scale has another type than its weight": (described(**{f"{UP.replace('.', '__')}__weight_scale": "W8A16"}), "description"),
    "one of three fused layers differs": (described(**{f"{Q.replace('.', '__')}__weight": "W8A8S"}), "fused-group"),
    "one of two fused layers is float": (changed(f"{UP}.weight", lambda old: old.astype(np.float16)), "fused-group"),
    "a layer is float32 among float16": (added("model.layers.0.mlp.odd.weight", np.ones((4, 4), np.float32)), "mixed-dtypes"),
    "deq_scale is float32 for float16": (
        changed(f"{Q}.deq_scale", lambda old: old.astype(np.int32).view(np.float32)),
        "deq-scale",
    ),
    "deq_scale is int64 for bfloat16": (configured(torch_dtype="bfloat16"), "deq-scale"),
    "deq_scale is negative": (changed(f"{Q}.deq_scale", lambda old: -old), "deq-scale"),
    "quant_bias is of another weight": (changed(f"{Q}.weight", lambda old: np.roll(old, 1, axis=0)), "quant-bias"),
    "quant_bias lacks the bias": (changed(f"{Q}.bias", lambda old: old + np.float16(1)), "quant-bias"),
    "a NaN": (changed("model.norm.weight", lambda old: np.where(np.arange(16) == 3, np.nan, old).astype(np.float16)), "finite"),
    "an infinity": (
        changed(f"{UP}.weight_scale", lambda old: np.where(old == old.max(), np.inf, old).astype(np.float32)),
        "finite",
    ),
}


def mixed() -> tuple[Tensors, dict[str, Any], dict[str, Any]]:
    """Like `static`, with one float matrix more, so that a dtype can be mixed."""
    tensors, config, description = static()
    tensors["model.layers.0.mlp.plain.weight"] = np.ones((4, 4), np.float16)
    description["model.layers.0.mlp.plain.weight"] = "FLOAT"
    tensors["model.layers.0.mlp.plainer.weight"] = np.ones((4, 4), np.float16)
    description["model.layers.0.mlp.plainer.weight"] = "FLOAT"
    return tensors, config, description


@pytest.mark.parametrize("what", FAULTS)
def test_is_found(what: str, tmp_path: Path) -> None:
    tensors, config, description = mixed()
    assert check(write(tmp_path / "sound", tensors, config, description)) == []
    change, rule = FAULTS[what]
    change(tensors, config, description)
    found = check(write(tmp_path / "x", tensors, config, description))
    assert rule in rules(found), found
    assert all(finding.message and finding.file for finding in found)


def test_an_fp8_weight_without_its_scale_is_an_error(tmp_path: Path) -> None:
    """The official conversion of DeepSeek's weights warns and leaves it so: a checkpoint of two dtypes."""
    header = {
        "model.layers.0.mlp.up_proj.weight": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]},
        "model.layers.0.mlp.gate_proj.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [4, 12]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes([1, 2, 0x7F, 4]) + bytes(8))
    (tmp_path / "config.json").write_text("{}")
    assert {"weight-without-scale", "mixed-dtypes", "fused-group", "finite"} <= rules(check(tmp_path))


def test_what_vllm_is_told_is_compared_with_the_tensors(tmp_path: Path) -> None:
    tensors, config = dense()
    name = "model.layers.0.mlp.down_proj"
    tensors[f"{name}.weight"] = np.ones((16, 40), np.int8)
    tensors[f"{name}.weight_scale"] = np.ones((16, 1), np.float32)
    said = {"quant_method": "compressed-tensors", "ignore": ["lm_head", name]}
    found = [
        finding
        for finding in check(write(tmp_path / "x", tensors, {**config, "quantization_config": said}))
        if finding.rule == "declared"
    ]
    assert {finding.tensor for finding in found} >= {f"{name}.weight", "model.layers.1.mlp.down_proj.weight"}
    said["ignore"] = ["lm_head", r"re:.*layers\.1\..*", r"re:.*self_attn.*", r"re:.*(gate|up)_proj", "re:(broken"]
    assert rules(check(write(tmp_path / "y", tensors, {**config, "quantization_config": said}))) == set()


# Files


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", *dense())
    for name in ("tokenizer.json", "LICENSE", "config.json"):
        (folder / name).unlink()
    found = check(folder)
    assert rules(found) == {"tokenizer", "config"}
    assert [finding.rule for finding in found if finding.severity == "warning"] == ["licence"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "state.pkl", "notes.txt"])
def test_a_pickle_is_found_by_its_name_or_its_first_bytes(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", *dense())
    (folder / name).write_bytes(b"\x80\x04\x95")
    assert "pickle" in rules(check(folder))


def sharded(folder: Path) -> tuple[Path, dict[str, str]]:
    write(folder, *dense())
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / shard)
    return folder, {name: shard for shard, inside in shards.items() for name in inside}


def test_the_index_is_compared_with_the_shards(tmp_path: Path) -> None:
    folder, weight_map = sharded(tmp_path / "x")
    assert rules(check(folder)) == {"index"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert check(folder) == []
    first = min(weight_map)
    for broken in (
        {**weight_map, first: "b.safetensors"},
        {**weight_map, "model.ghost": "a.safetensors"},
        {name: shard for name, shard in weight_map.items() if name != first},
        {**weight_map, first: "c.safetensors"},
        {**weight_map, first: "../a.safetensors"},
    ):
        index.write_text(json.dumps({"weight_map": broken}))
        assert rules(check(folder)) == {"index"}, broken
    save_file({first: np.ones(3, np.float16)}, folder / "c.safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert {"index", "twice"} <= rules(check(folder))


@pytest.mark.parametrize("text", ["", "[]", '{"a": "FLOAT", "a": "W8A8"}', '{"a": NaN}', "{"])
def test_a_description_that_is_not_sound_is_found(text: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", *dense())
    (folder / "quant_model_description_w8a8.json").write_text(text)
    assert "description" in rules(check(folder))


def test_a_broken_header_hides_no_other_finding(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", *dense())
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    (folder / "x.bin").write_bytes(b"")
    (folder / "tokenizer.json").unlink()
    assert {"header", "pickle", "tokenizer", "index"} <= rules(check(folder))


def test_a_result_with_errors_is_refused_with_all_of_them_at_hand(tmp_path: Path) -> None:
    tensors, config = dense()
    folder = write(tmp_path / "x", tensors, {**config, "num_hidden_layers": 7, "vocab_size": 9})
    with pytest.raises(StageError, match="what a tool made: 2 findings") as caught:
        refuse(folder, "what a tool made")
    assert "vocab_size is 9" in caught.value.next_step
    assert refuse(folder, "a part", whole=False) == []


def test_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no checkpoint folder"):
        check(tmp_path / "nowhere")


# Memory


@pytest.mark.integration
def test_two_gigabytes_are_read_in_far_less_than_half_of_one(tmp_path: Path) -> None:
    header = {"model.layers.0.mlp.down_proj.weight": {"dtype": "BF16", "shape": [1 << 15, 1 << 15], "data_offsets": [0, 1 << 31]}}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + (1 << 31))
    (tmp_path / "config.json").write_text("{}")
    script = (
        "import sys; from pathlib import Path; from release.builders.weights.check import check; check(Path(sys.argv[1]));"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    said = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(said.stdout) < 150_000, "kB"
