"""What is wrong with a checkpoint, as data, and what all rules look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from release.builders.weights.formats import DESCRIPTION, FLOATS
from release.builders.weights.header import Tensor
from release.errors import StageError

CHUNK: Final = 4 << 20
"""Bytes that are looked at at a time."""
SMALL: Final = 64 << 20
"""Bytes of a tensor that may be held whole."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong: the rule that says so, where, and why. A warning is worth knowing and stops nothing."""

    rule: str
    file: str
    tensor: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {': '.join(word for word in (self.file, self.tensor) if word)}: {self.message}"


@dataclass(frozen=True)
class Module:
    """The tensors of one module by their last word: `weight`, `weight_scale`, `bias`."""

    name: str
    tensors: Mapping[str, Tensor]

    @property
    def word(self) -> str:
        """Its own name, without its parents': `q_proj`."""
        return self.name.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The module that it is a part of."""
        return self.name.rpartition(".")[0]

    @property
    def main(self) -> Tensor | None:
        """Its weight, packed or not."""
        return self.tensors.get("weight") or self.tensors.get("weight_packed")

    @property
    def quantised(self) -> bool:
        """Whether its weight is no floating-point number of two or more bytes."""
        return self.main is not None and self.main.dtype not in (*FLOATS, "F64")

    @property
    def linear(self) -> bool:
        """Whether it is a matrix that is multiplied with, as far as shapes and names can say: no embedding, no norm, no convolution."""
        if self.main is None or "embed" in self.word or self.word in ("wte", "wpe"):
            return False
        return self.quantised or len(self.main.shape) == 2

    @property
    def router(self) -> bool:
        """Whether it chooses experts: it has a dtype of its own by design."""
        return self.word in ("gate", "router", "shared_expert_gate")

    @property
    def rows(self) -> int | None:
        """Output channels: rows of the weight, or of its scales where the weight is packed."""
        for name in ("weight_scale", "deq_scale"):
            if self.quantised and name in self.tensors and self.tensors[name].shape and self.tensors[name].elements > 1:
                return self.tensors[name].shape[0]
        return self.main.shape[0] if self.main is not None and len(self.main.shape) == 2 else None

    @property
    def form(self) -> str:
        """How its weight is stored, in a word: `BF16`, `I8 static`, `I8 dynamic`, `F8_E4M3 block`, `packed`."""
        assert self.main is not None
        if not self.quantised:
            return self.main.dtype
        if "weight_packed" in self.tensors:
            return "packed"
        kind = "static" if "deq_scale" in self.tensors or "input_scale" in self.tensors else "dynamic"
        return f"{self.main.dtype} {'block' if 'weight_scale_inv' in self.tensors else kind}"


@dataclass(frozen=True)
class Checkpoint:
    """What the rules look at: headers, config.json and the description of a checkpoint. No tensor is held.

    `config` is empty and `description` None where there is none, or none that is sound (which is a finding by itself).
    """

    folder: Path
    files: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] | None = None
    description_file: str = DESCRIPTION

    @cached_property
    def modules(self) -> Mapping[str, Module]:
        """The modules by name."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            module, _, word = name.rpartition(".")
            found.setdefault(module, {})[word] = tensor
        return {name: Module(name, tensors) for name, tensors in found.items()}

    @cached_property
    def linears(self) -> tuple[Module, ...]:
        """The modules that are matrices, in the order of their names."""
        return tuple(module for _, module in sorted(self.modules.items()) if module.linear)

    @property
    def torch_dtype(self) -> str | None:
        """What config.json says it computes in."""
        return self.config.get("torch_dtype") or self.config.get("dtype")

    def read(self, tensor: Tensor) -> NDArray[Any]:
        """Return a small tensor as numbers: float64 for floats, int64 for whole numbers. Raises StageError for a large one."""
        if tensor.size > SMALL:
            raise StageError(f"tensor {tensor.name} has {tensor.size} bytes, more than {SMALL}")
        parts = [numbers(chunk, tensor.dtype) for chunk in self.chunks(tensor)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def chunks(self, tensor: Tensor, limit: int = CHUNK) -> Iterator[NDArray[np.uint8]]:
        """Yield a tensor's bytes, `limit` of them at a time, in one buffer that is used again and again."""
        buffer = np.empty(min(limit, tensor.size), dtype=np.uint8)
        left = tensor.size
        with (self.folder / tensor.file).open("rb", buffering=0) as stream:
            stream.seek(tensor.offset)
            while left:
                wanted = buffer[: min(left, len(buffer))]
                filled = 0
                while filled < len(wanted):
                    got = stream.readinto(wanted[filled:].data)
                    if not got:
                        raise StageError(f"{tensor.file} ends inside tensor {tensor.name}")
                    filled += got
                left -= filled
                yield wanted


PLAIN: Final[Mapping[str, str]] = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1"},
}


def numbers(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Return bytes as numbers, exactly: float64 for floats, int64 for whole numbers. FP8 is none of them."""
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype not in PLAIN:
        raise StageError(f"{dtype} cannot be read as numbers here")
    return data.view(PLAIN[dtype]).astype(np.float64 if dtype.startswith("F") else np.int64)
