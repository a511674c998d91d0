"""Checkpoints of any size to measure with: FP8 weights with block scales in the shape of DeepSeek-R1's, sparse files, many tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIGH, WIDE, BLOCK = 2048, 7168, 128


def header(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """Return a safetensors header for tensors (dtype, shape, bytes) one after the other."""
    reached, entries = 0, {}
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + size]}
        reached += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def codes(rng: np.random.Generator, count: int) -> np.ndarray:  # type: ignore[type-arg]
    """Return e4m3 codes, each of the 254 numbers as likely as any other; none is a NaN."""
    found = rng.integers(0, 254, count, dtype=np.uint8)
    return found + (found >= 0x7F)


def fp8_checkpoint(folder: Path, megabytes: int, shards: int, *, crossed: bool = True) -> int:
    """Write an FP8 checkpoint of about so many MB with random codes and scales; return its bytes.

    Each shard's last scale lies in the next shard if `crossed`, as one of DeepSeek-V3's does.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    each = max(1, round(megabytes * 1e6 / shards / (HIGH * WIDE)))
    names = [[f"model.layers.{shard}.mlp.experts.{number}.up_proj.weight" for number in range(each)] for shard in range(shards)]
    weight_map, total = {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:06d}.safetensors"
        scales = list(names[shard])
        if crossed and shards > 1:
            scales = [*scales[:-1], names[shard - 1][-1]]
        across = [HIGH // BLOCK, WIDE // BLOCK]
        tensors = {f"{name}_scale_inv": ("F32", across, across[0] * across[1] * 4) for name in scales}
        tensors[f"model.layers.{shard}.input_layernorm.weight"] = ("BF16", [WIDE], 2 * WIDE)
        tensors.update({name: ("F8_E4M3", [HIGH, WIDE], HIGH * WIDE) for name in names[shard]})
        with (folder / file).open("wb") as stream:
            stream.write(header(tensors))
            for dtype, _, size in tensors.values():
                if dtype == "F32":
                    stream.write((rng.random(size // 4, dtype=np.float32) * np.float32(2e-3) + np.float32(1e-5)).tobytes())
                elif dtype == "BF16":
                    stream.write(np.full(size // 2, 0x3F80, np.uint16).tobytes())
                else:
                    stream.write(codes(rng, size).tobytes())
            total += stream.tell()
        weight_map.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return total


CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
}


def sparse_checkpoint(folder: Path, tensors: list[tuple[str, str, list[int], int]]) -> None:
    """Write a checkpoint whose data are holes: tensors as name, dtype, shape, bytes."""
    folder.mkdir(parents=True)
    text = header({name: (dtype, shape, size) for name, dtype, shape, size in tensors})
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(text)
        stream.truncate(len(text) + sum(size for *_, size in tensors))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def files(folder: Path) -> Iterator[Path]:
    """Yield the shards of a folder."""
    yield from sorted(folder.glob("*.safetensors"))
