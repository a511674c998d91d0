"""Checkpoints that are broken in one way each, to see which layer of a consistency check notices: used by benchmarks/consistency.py."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TEMPLATE, TOKENIZER, GENERATION = "chat_template.jinja", "tokenizer.json", "generation_config.json"


@dataclass(frozen=True)
class Damage:
    """One way to break a checkpoint or its serving: what is done to the folder, and how long a context is served (tokens)."""

    name: str
    break_folder: Callable[[Path], None]
    dtype: str = "bfloat16"
    context: int = 1024


def nothing(folder: Path) -> None:
    """Leave everything as it is."""


def scale_layer(folder: Path, layer: int = 0, factor: float = 1.05) -> None:
    """Multiply every weight matrix of one layer."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    changed = 0
    for name, entry in header.items():
        if name.startswith(f"model.layers.{layer}.") and len(entry["shape"]) == 2:
            assert entry["dtype"] == "F32", entry["dtype"]
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[start:end], "<f4") * np.float32(factor)
            data[start:end] = values.astype("<f4").tobytes()
            changed += 1
    assert changed, f"layer {layer} has no matrix"
    path.write_bytes(data)


def lose_newline(folder: Path) -> None:
    """Take the newline out behind the assistant's role."""
    replace(folder / TEMPLATE, "assistant\\n", "assistant")


def exchange_tokens(folder: Path, one: str = "1", other: str = "2") -> None:
    """Exchange the ids of two tokens: every prompt keeps its length."""
    document = json.loads((folder / TOKENIZER).read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / TOKENIZER).write_text(json.dumps(document))


def set_generation(folder: Path, **defaults: float) -> None:
    """Give the server other defaults of sampling."""
    document = json.loads((folder / GENERATION).read_text())
    (folder / GENERATION).write_text(json.dumps(document | defaults))


def replace(path: Path, old: str, new: str) -> None:
    """Replace what must stand in a file exactly once."""
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} holds {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new))


DAMAGES = (
    Damage("the reference itself", nothing, dtype="float32"),
    Damage("bf16, undamaged", nothing),
    Damage("one layer's weights × 1.05", scale_layer),
    Damage("chat template without one newline", lose_newline),
    Damage("context cut to 512", nothing, context=512),
    Damage("tokenizer with two digits exchanged", exchange_tokens),
    Damage("repetition penalty of 1.3 by default", lambda folder: set_generation(folder, repetition_penalty=1.3)),
    Damage("top-k of 2 by default", lambda folder: set_generation(folder, top_k=2)),
)


def damaged(damage: Damage, source: Path, target: Path) -> Path:
    """Return a copy of a checkpoint with a damage done to it."""
    shutil.copytree(source, target)
    damage.break_folder(target)
    return target
