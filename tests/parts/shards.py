"""Checkpoints made on the spot: safetensors files of arrays, an FP8 checkpoint in DeepSeek's layout, and what torch would make of it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from release.progress import Line, Plain

DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int8": "I8",
    "uint8": "U8",
    "int64": "I64",
    "bool": "BOOL",
}
E4M3, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
Arrays = Mapping[str, Any]


def quiet() -> Line:
    return Plain(io.StringIO()).line("cell", "weights")


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; the arrays lie in the order in which they come, aligned or not."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name, array in arrays.items():
        end = reached + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


def read(path: Path) -> dict[str, Any]:
    """Return the arrays of a safetensors file, in the order of their bytes; bounds are trusted."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    numpy_of = {dtype: np.dtype(getattr(ml_dtypes, name, name)) for name, dtype in DTYPES.items()}
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(data[begin:end], numpy_of[entry["dtype"]]).reshape(entry["shape"])
    return found


def read_all(folder: Path) -> dict[str, Any]:
    """Return the arrays of all shards of a folder."""
    return {name: array for path in sorted(folder.glob("*.safetensors")) for name, array in read(path).items()}


def checkpoint(folder: Path, shards: Mapping[str, Arrays], config: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint: its shards, an index if there are several, config.json, a tokenizer, a licence."""
    folder.mkdir(parents=True)
    for file, arrays in shards.items():
        write(folder / file, arrays, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, arrays in shards.items() for name in arrays}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config if config is not None else {"torch_dtype": "bfloat16"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE", "chat_template.jinja", "modeling_deepseek.py"):
        (folder / name).write_text(f"{name} of the source")
    return folder


def codes(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Return random e4m3 numbers, no NaN among them."""
    found = rng.integers(0, 254, shape, dtype=np.uint8)
    return (found + (found >= 0x7F)).astype(np.uint8).view(E4M3)


def scales(rng: np.random.Generator, shape: tuple[int, ...], block: int = 128) -> Any:
    """Return the block scales of a matrix, of very different sizes."""
    return np.exp2(rng.uniform(-20, 4, (-(-shape[0] // block), -(-shape[1] // block)))).astype(np.float32)


def dequantised(weight: Any, scale: Any, block: int = 128, kept: Any = BF16) -> Any:
    """Return what DeepSeek's README says: float32(weight) * scale of the block, rounded once to the type that is kept."""
    rows, columns = weight.shape
    wide = np.repeat(np.repeat(scale, block, 0), block, 1)[:rows, :columns]
    return (weight.astype(np.float32) * wide).astype(kept)


CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}


def deepseek(folder: Path, seed: int = 3) -> tuple[Path, dict[str, Any]]:
    """Write a small FP8 checkpoint in DeepSeek-V3's layout and return it and all its arrays.

    Three shards; the scale of one weight lies in another shard than the weight; layer 2 is the one for multi-token prediction;
    a router's bias is float32, an int8, a uint8 and a bool tensor stand among the weights; sides are no multiples of 128.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "model.layers.0.mlp.up_proj.weight": (300, 513),
        "model.layers.1.mlp.experts.0.up_proj.weight": (128, 256),
        "model.layers.1.self_attn.o_proj.weight": (1, 7),
        "model.layers.2.mlp.up_proj.weight": (130, 129),
    }
    arrays: dict[str, Any] = {}
    for name, shape in weights.items():
        arrays[name] = codes(rng, shape)
        arrays[name + "_scale_inv"] = scales(rng, shape)
    arrays["model.embed_tokens.weight"] = rng.standard_normal((64, 33)).astype(BF16)
    arrays["model.layers.1.mlp.gate.e_score_correction_bias"] = rng.standard_normal(8).astype(np.float32)
    arrays["model.layers.0.input_layernorm.weight"] = rng.standard_normal(33).astype(BF16)
    arrays["model.layers.0.codes"] = rng.integers(-128, 127, (5, 3), dtype=np.int8)
    arrays["model.layers.0.bytes"] = rng.integers(0, 255, (7,), dtype=np.uint8)
    arrays["model.layers.0.mask"] = rng.integers(0, 2, (3,)).astype(bool)
    arrays["model.layers.2.eh_proj.weight"] = rng.standard_normal((16, 8)).astype(BF16)
    files: dict[str, dict[str, Any]] = {f"model-{number:05d}-of-000003.safetensors": {} for number in (1, 2, 3)}
    crossed = "model.layers.1.mlp.experts.0.up_proj.weight_scale_inv"
    for name, array in arrays.items():
        place = 2 if ".layers.2." in name or name == crossed else 1 if ".layers.1." in name else 0
        files[list(files)[place]][name] = array
    return checkpoint(folder, files, CONFIG), arrays
