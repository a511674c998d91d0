"""Rules about the matrices of a checkpoint: scales with their weights, one dtype among equals, fused groups, one entry a tensor.

Types of a description and what each has for a linear layer of N output and K input channels: msmodelslim 26.1.0, `ascendv1.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from release.builders.weights.findings import Checkpoint, Finding, Module
from release.builders.weights.formats import FLOAT, FLOATS, FUSED
from release.builders.weights.header import Tensor

SCALES: Final = (
    "weight_scale",
    "weight_scale_inv",
    "weight_offset",
    "weight_zero_point",
    "weight_shape",
    "deq_scale",
    "quant_bias",
)
NOT_TENSORS: Final = re.compile(
    r"model_quant_type|version|group_size|metadata|optional|kv_cache_type|kv_quant_type|fa_quant_type|quantization_config"
    r"|.*\.(quant_type|indexer\.quant_type)"
)
"""Keys of a description that name no tensor."""

Rule = tuple[tuple[str, ...], str]
SHAPES: Final[Mapping[str, Callable[[int, int], tuple[tuple[int, ...], ...]]]] = {
    "one": lambda n, k: ((1,),),
    "rows": lambda n, k: ((n,),),
    "column": lambda n, k: ((n, 1),),
    "groups": lambda n, k: tuple((n, k // size) for size in range(k, 0, -1) if k % size == 0),
    "matrix": lambda n, k: ((n, k),),
    "info": lambda n, k: ((5,),),
    "any": lambda n, k: (),
}
"""Shapes that a tensor may have, the usual one first; none: any."""
STATIC: Final[dict[str, Rule]] = {
    "input_scale": (("F32",), "one"),
    "input_offset": (("F32",), "one"),
    "quant_bias": (("I32",), "rows"),
    "deq_scale": (("F32", "I64"), "rows"),
}
DYNAMIC: Final[dict[str, Rule]] = {"weight_scale": (("F32",), "column"), "weight_offset": (("F32",), "column")}
GROUPED: Final[dict[str, Rule]] = {"weight_scale": (FLOATS, "groups"), "weight_offset": (FLOATS, "groups")}
PACKED: Final[dict[str, Rule]] = {"weight_scale": (FLOATS, "any"), "weight_offset": (FLOATS, "any")}
INT8: Final[dict[str, Rule]] = {"weight": (("I8",), "matrix")}
TYPES: Final[Mapping[str, Mapping[str, Rule]]] = {
    "W8A8": INT8 | STATIC,
    "W8A8_DYNAMIC": INT8 | DYNAMIC,
    "W8A8_MIX": INT8 | STATIC | DYNAMIC,
    "W8A16": INT8 | GROUPED,
    "W4A16": {"weight": (("I8",), "any")} | PACKED,
    "W4A8_DYNAMIC": {"weight": (("I8", "I32"), "any")} | PACKED,
    "W8A8S": INT8 | STATIC,
    "W8A8SC": {"weight": (("I8",), "any"), "index": (("I8",), "any"), "info": (("I64",), "info")} | STATIC,
}
"""What a linear layer of a type has: by name, the dtypes and the shapes of each tensor that must be there."""


def scales(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A quantised weight has a scale of a fitting shape, and no scale is without its weight."""
    block = _block(checkpoint)
    for module in sorted(checkpoint.modules.values(), key=lambda one: one.name):
        words = [word for word in SCALES if word in module.tensors]
        if module.main is None:
            for word in words:
                yield _finding("scale-without-weight", module.tensors[word], "no weight stands beside it")
            continue
        if not module.quantised or (module.main.dtype in ("I64", "I32", "BOOL") and "weight_packed" not in module.tensors):
            continue
        needed = ("weight_scale", "weight_shape") if "weight_packed" in module.tensors else ()
        if missing := [word for word in needed if word not in module.tensors]:
            yield _finding("weight-without-scale", module.main, f"its {' and '.join(missing)} is missing")
        elif not {"weight_scale", "weight_scale_inv", "deq_scale"} & module.tensors.keys():
            yield _finding(
                "weight-without-scale", module.main, f"is {module.main.dtype} and has no scale: its numbers mean nothing"
            )
        yield from _scale_shapes(module, block)


def _scale_shapes(module: Module, block: tuple[int, int]) -> Iterator[Finding]:
    weight = module.tensors.get("weight")
    if weight is None or len(weight.shape) != 2:
        return
    rows, columns = weight.shape
    inverse, scale = module.tensors.get("weight_scale_inv"), module.tensors.get("weight_scale")
    wanted = (-(-rows // block[0]), -(-columns // block[1]))
    if inverse is not None and inverse.shape != wanted:
        yield _finding(
            "shape",
            inverse,
            f"is {list(inverse.shape)}; blocks of {block[0]} × {block[1]} in {rows} × {columns} are {list(wanted)}",
        )
    if scale is not None and scale.elements != 1 and (not scale.shape or scale.shape[0] != rows or len(scale.shape) > 2):
        yield _finding("shape", scale, f"is {list(scale.shape)}, and the weight has {rows} output channels")


def _block(checkpoint: Checkpoint) -> tuple[int, int]:
    said = checkpoint.config.get("quantization_config")
    size = said.get("weight_block_size") if isinstance(said, dict) else None
    sound = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    return (size[0], size[1]) if sound and size is not None else (128, 128)


def one_dtype(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Float matrices share one dtype, and a matrix is quantised only where config.json or a description says that some are."""
    plain = [module for module in checkpoint.linears if not module.quantised and not module.router]
    counts = Counter(module.form for module in plain)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        for module in plain:
            if module.form != usual and module.main is not None:
                yield _finding("mixed-dtypes", module.main, f"is {module.form}, and {counts[usual]} other matrices are {usual}")
    said = any(checkpoint.config.get(key) for key in ("quantization_config", "quantize", "quant_type"))
    if not said and checkpoint.description is None:
        for module in checkpoint.linears:
            if module.quantised and module.main is not None:
                yield _finding(
                    "mixed-dtypes", module.main, f"is {module.main.dtype}, and nothing says that the checkpoint is quantised"
                )


def fused_groups(checkpoint: Checkpoint) -> Iterator[Finding]:
    """The parts of a matrix that servers fuse are stored in the same way."""
    by_parent: dict[str, dict[str, Module]] = {}
    for module in checkpoint.linears:
        by_parent.setdefault(module.parent, {})[module.word] = module
    for parent, parts in sorted(by_parent.items()):
        for group in FUSED:
            there = [parts[word] for word in group if word in parts]
            forms = {module.word: _type(checkpoint, module) for module in there}
            if len(set(forms.values())) > 1 and there[0].main is not None:
                said = ", ".join(f"{word} is {form}" for word, form in forms.items())
                yield _finding("fused-group", there[0].main, f"{said}: servers fuse them into one matrix", parent)


def _type(checkpoint: Checkpoint, module: Module) -> str:
    described = (checkpoint.description or {}).get(f"{module.name}.weight")
    return f"{described} ({module.form})" if isinstance(described, str) else module.form


def description(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Every tensor has exactly one entry of a known type, and every entry its tensor; each linear layer has what its type asks for."""
    if checkpoint.description is None:
        return
    file = checkpoint.description_file
    entries = {name: kind for name, kind in checkpoint.description.items() if not NOT_TENSORS.fullmatch(name)}
    for name in sorted(checkpoint.tensors.keys() - entries.keys()):
        yield _finding("description", checkpoint.tensors[name], f"has no entry in {file}")
    for name in sorted(entries.keys() - checkpoint.tensors.keys()):
        yield Finding("description", file, name, "is no tensor of the checkpoint")
    for name, kind in sorted(entries.items(), key=lambda entry: entry[0]):
        known = (FLOAT, *TYPES, "C8", "FAKQuant", "FAQuant")
        if not isinstance(kind, str) or kind not in known:
            yield Finding("description", file, name, f"has the type {str(kind)[:40]!r}, which nobody knows", "warning")
    for module in sorted(checkpoint.modules.values(), key=lambda one: one.name):
        kind = entries.get(f"{module.name}.weight")
        if isinstance(kind, str) and kind in TYPES:
            yield from _as_type(module, kind, entries)
        elif kind == FLOAT and module.quantised and module.main is not None:
            yield _finding("description", module.main, f"is {module.main.dtype}, and {file} says {FLOAT}")


def _as_type(module: Module, kind: str, entries: Mapping[str, object]) -> Iterator[Finding]:
    weight = module.tensors.get("weight")
    if weight is None:
        return
    rows, columns = weight.shape if len(weight.shape) == 2 else (module.rows or 0, 0)
    for word, (dtypes, shape) in TYPES[kind].items():
        tensor = module.tensors.get(word)
        if tensor is None:
            yield _finding("type", weight, f"is {kind} and has no {word}")
            continue
        if tensor.dtype not in dtypes:
            yield _finding("type", tensor, f"is {tensor.dtype}, and {word} of {kind} is {' or '.join(dtypes)}")
        wanted = SHAPES[shape](rows, columns)
        if wanted and tensor.shape not in wanted:
            yield _finding("type", tensor, f"is {list(tensor.shape)}, and {word} of {kind} is {list(wanted[0])} here")
        if entries.get(tensor.name) not in (kind, None):
            yield _finding("description", tensor, f"is described as {str(entries[tensor.name])[:40]}, and its weight as {kind}")


def declared(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What config.json says of compressed-tensors is so: a matrix that it ignores is float, one that it does not is quantised."""
    said = checkpoint.config.get("quantization_config")
    if not isinstance(said, dict) or said.get("quant_method") != "compressed-tensors":
        return
    ignore = [entry for entry in said.get("ignore") or () if isinstance(entry, str)]
    for module in checkpoint.linears:
        if module.main is None or module.router:
            continue
        ignored = _ignored(module.name, ignore)
        if module.quantised and ignored:
            yield _finding("declared", module.main, f"is {module.form}, and quantization_config ignores it")
        elif (
            not module.quantised
            and not ignored
            and module.word in ("lm_head", *(word for group in FUSED for word in group), "o_proj", "down_proj")
        ):
            yield _finding("declared", module.main, f"is {module.form}, and quantization_config does not ignore it")


def _ignored(name: str, ignore: Iterable[str]) -> bool:
    for entry in ignore:
        if entry.startswith("re:"):
            try:
                if re.match(entry[3:], name):
                    return True
            except re.error:
                continue
        elif entry == name:
            return True
    return False


def _finding(rule: str, tensor: Tensor, message: str, name: str = "") -> Finding:
    return Finding(rule, tensor.file, name or tensor.name, message)
