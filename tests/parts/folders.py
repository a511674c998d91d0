"""A small matrix of an invented chip and model, written on the spot as the overlay that a user would write."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHIP: Final = """\
id: abacus
name: Abacus 9
vendor: Invented
architecture: arm64
precisions: [bf16, w8a8]
base:
  image: registry.example.org/abacus@sha256:{digest}
python:
  version: "3.11"
  glibc: "2.36"
container:
  devices: [/dev/abacus0]
  shm-size: 2g
""".format(digest="a" * 64)

MODEL: Final = """\
id: pebble-7b
name: Pebble 7B
family: pebble
vendor: Invented
license: mit
description: Counts.
example: How many?
precision: bf16
architecture:
  class: PebbleForCausalLM
  layers: 2
  hidden: 8
  intermediate: 16
  heads: 2
  kv-heads: 1
  head-dim: 4
  vocabulary: 32
  context: 64
checkpoint:
  path: checkpoints/pebble
  files:
    model.safetensors: sha256:{digest}
""".format(digest="b" * 64)

CELL: Final = """\
chip: abacus
model: pebble-7b
engine: vllm
wheels: wheels/abacus.txt
serve:
  port: 9000
  args: {max-model-len: 64, dtype: auto}
  env: {A: "1"}
accuracy:
  questions: questions/few.jsonl
  sha256: sha256:%s
  grader: final-integer
  margin: 0.02
  max-tokens: 16
cells:
  w8a8:
    reference: abacus/pebble-7b@bf16
    serve:
      args: {dtype: int8}
  bf16: {}
  bf16~native:
    reference: abacus/pebble-7b@bf16
    serve:
      port: 9001
      env: {B: "2"}
""" % ("c" * 64)

PINS: Final = "abacus-runtime==1.0 --hash=sha256:" + "d" * 64 + "\n"

FILES: Final = {
    "chips/abacus.yaml": CHIP,
    "models/pebble-7b.yaml": MODEL,
    "cells/abacus/pebble-7b.yaml": CELL,
    "wheels/abacus.txt": PINS,
}


def write(folder: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Write the invented matrix into `folder`, some of its files changed or (None) left out; return the folder."""
    for name, text in {**FILES, **(changes or {})}.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return folder
