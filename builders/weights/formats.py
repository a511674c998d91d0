"""Planners of quantised checkpoints that need no calibration: int8, int4 and FP8 by rounding to the nearest, in the layouts that servers read.

Layouts: `compressed-tensors` (vLLM; compressed-tensors 0.17–0.20), `msmodelslim` (msmodelslim 26.1.0, `ascendv1.py`), and `rows`, an int8
weight with one scale a row, as per-channel operators of 16-bit activations take it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from release.builders.weights.catalogue import Catalogue
from release.builders.weights.config import automatic, difference, document, edited, read_config
from release.builders.weights.header import Tensor
from release.builders.weights.plan import Conversion, Output, Step, check, copied, grouped
from release.builders.weights.recipes import Options, prediction_layers
from release.errors import StageError

FLOATS: Final = ("BF16", "F16", "F32")
FUSED: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"))
"""Layers that servers join into one matrix: all parts of a group are quantised in the same way, or the server refuses them."""
DESCRIPTION: Final = "quant_model_description.json"
"""Where msmodelslim says the type of every tensor, FLOAT for what is not quantised."""
FLOAT: Final = "FLOAT"
KEPT: Final = (
    *("lm_head", "*embed*", "wte", "wpe", "shared_head.head", "eh_proj"),
    *("gate", "router", "shared_expert_gate", "score", "classifier"),
)
"""Modules that stay float whatever a recipe says: head, embeddings, routers of experts, the joint of a layer for multi-token prediction."""
DTYPES: Final = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
KERNELS: Final = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
"""How the names of kernels spell the dtypes of safetensors."""
GROUP: Final = 128
"""Elements that share a scale in int4, unless the recipe says another number: what GPTQ and AWQ checkpoints have."""
TOKEN: Final = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
CHANNEL: Final = {"num_bits": 8, "symmetric": True, "strategy": "channel", "dynamic": False}
STEM: Final = "quant_model_weights"


@dataclass(frozen=True)
class Layout:
    """One way to store a precision: the name of its type, and what vLLM's configuration says of weights and activations.

    `declared` is what config.json says of it otherwise."""

    kind: str
    format: str = ""
    weights: Mapping[str, Any] | None = None
    activations: Mapping[str, Any] | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)


LAYOUTS: Final[Mapping[tuple[str, str], Layout]] = {
    ("compressed-tensors", "w8a8"): Layout("int8", "int-quantized", {**CHANNEL, "type": "int"}, {**TOKEN, "type": "int"}),
    ("compressed-tensors", "fp8"): Layout("fp8", "float-quantized", {**CHANNEL, "type": "float"}, {**TOKEN, "type": "float"}),
    ("compressed-tensors", "w4a16"): Layout(
        "int4", "pack-quantized", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False}
    ),
    ("msmodelslim", "w8a8"): Layout("int8", "W8A8_DYNAMIC"),
    ("msmodelslim", "w8a16"): Layout("int8", "W8A16"),
    ("rows", "w8a16"): Layout("int8", declared={"quantize": "w8a16"}),
}
"""The layouts by name and precision."""


@dataclass(frozen=True)
class Choice:
    """What a recipe may say: layout, precision, dtype of all that stays float, modules to leave float, elements of a group.

    `exclude` are patterns (fnmatch) over a module's name, or its last words: `lm_head`, `*.down_proj`, `model.layers.0.*`. `config` is a merge
    patch over the result's config.json, `files` are texts to lie beside it; of `options`, `mtp` and `allow` mean here what they mean elsewhere.
    """

    layout: str
    precision: str
    dtype: str = "bf16"
    exclude: tuple[str, ...] = ()
    group: int = GROUP
    config: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None
    options: Options = field(default_factory=Options)


def quantised(catalogue: Catalogue, choice: Choice) -> Conversion:
    """Return the conversion of a float checkpoint into a quantised one. Raises StageError for what the layout has no place for.

    Every matrix that is not excluded is quantised, everything else that is in the matrices' dtype becomes `dtype`, all other tensors are kept
    (a router's float32 bias, say). Nothing is quantised twice: a checkpoint that is quantised already is refused.
    """
    layout = LAYOUTS.get((choice.layout, choice.precision))
    if layout is None:
        known = ", ".join(f"{precision} as {name}" for name, precision in LAYOUTS)
        raise StageError(f"{choice.precision} as {choice.layout} is no format of ours", next_step=f"there are: {known}")
    config = read_config(catalogue.folder)
    left_out = set() if choice.options.mtp else prediction_layers(catalogue, config)
    chosen = selected(catalogue, choice.exclude) - left_out
    if not chosen:
        raise StageError("every matrix is of a layer for multi-token prediction, and those are left out", next_step="keep them")
    _fused_alike(catalogue, chosen, choice.exclude)
    usual = _usual(catalogue, chosen)
    steps: dict[str, list[Step]] = {}
    for tensor in (tensor for name, tensor in catalogue.tensors.items() if name not in left_out):
        into = steps.setdefault(tensor.file, [])
        into += _quantised(tensor, layout, choice) if tensor.name in chosen else [_kept(tensor, usual, DTYPES[choice.dtype])]
    shards = grouped(sorted(catalogue.shards), steps)
    slim = choice.layout == "msmodelslim"
    if slim:
        shards = tuple(
            replace(shard, file=f"{STEM}-{n:05d}-of-{len(shards):05d}.safetensors") for n, shard in enumerate(shards, 1)
        )
    patches = (
        automatic(config, choice.dtype, drop_mtp=bool(left_out)),
        declaration(catalogue, layout, chosen | left_out, choice),
        choice.config or {},
    )
    described = {DESCRIPTION: document(_description(steps, layout))} if slim else {}
    return check(
        Conversion(
            source=catalogue.folder,
            recipe=f"{choice.precision} as {choice.layout}",
            shards=shards,
            dropped=tuple(catalogue.tensors[name] for name in sorted(left_out)),
            carried=catalogue.others,
            config=difference(config, edited(config, *patches)),
            files={**described, **(choice.files or {})},
            refuse=choice.options.refuse,
            index=f"{STEM}.safetensors.index.json" if slim else catalogue.index,
        )
    )


def selected(catalogue: Catalogue, exclude: Sequence[str]) -> frozenset[str]:
    """Return the names of the tensors to quantise: float matrices that no pattern excludes.

    Raises StageError for a checkpoint that is quantised already, for a pattern that fits nothing, for matrices that are not two-dimensional,
    and where nothing is left to quantise.
    """
    found: set[str] = set()
    used: set[str] = set()
    for name, tensor in catalogue.tensors.items():
        module, _, word = name.rpartition(".")
        if word != "weight" or len(tensor.shape) < 2:
            continue
        if tensor.dtype not in FLOATS:
            raise StageError(
                f"{name} is {tensor.dtype}: it is quantised already", next_step="convert the checkpoint to bf16 first"
            )
        matching = {pattern for pattern in exclude if excluded(module, (pattern,))}
        used |= matching
        if matching or excluded(module, KEPT):
            continue
        if len(tensor.shape) != 2:
            raise StageError(f"{name} is {list(tensor.shape)}: only matrices are quantised", next_step="exclude it in the recipe")
        found.add(name)
    if idle := [pattern for pattern in exclude if pattern not in used and not any(fnmatchcase(kept, pattern) for kept in KEPT)]:
        raise StageError(
            f"the recipe excludes {idle[0]!r}, and no matrix has such a name", next_step="mend weights.build.exclude"
        )
    if not found:
        raise StageError("the recipe excludes every matrix: nothing would be quantised", next_step="mend weights.build.exclude")
    return frozenset(found)


def excluded(module: str, patterns: Sequence[str]) -> bool:
    """Say whether a module's whole name, or its last words, fit one of the patterns."""
    return any(fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}") for pattern in patterns)


def _fused_alike(catalogue: Catalogue, chosen: frozenset[str], exclude: Sequence[str]) -> None:
    for name in sorted(chosen):
        parent, _, word = name.removesuffix(".weight").rpartition(".")
        for group in FUSED:
            others = [f"{parent}.{other}.weight" for other in group if word in group and other != word]
            if left := [other for other in others if other in catalogue.tensors and other not in chosen]:
                raise StageError(
                    f"{left[0]} is excluded and {name} is not, and servers fuse them into one matrix",
                    next_step=f"exclude all of {', '.join(group)} there, or none: now it is {', '.join(exclude)}",
                )


def _usual(catalogue: Catalogue, chosen: frozenset[str]) -> str:
    """Return the dtype of the matrices. Raises StageError if they have several: rounding two kinds at once hides a damaged checkpoint."""
    dtypes = {catalogue.tensors[name].dtype for name in chosen}
    if len(dtypes) > 1:
        raise StageError(
            f"the matrices are {' and '.join(sorted(dtypes))}", next_step="convert the checkpoint to one of them first"
        )
    return dtypes.pop()


def _kept(tensor: Tensor, usual: str, dtype: str) -> Step:
    if tensor.dtype != usual or usual == dtype:
        return copied(tensor)
    if dtype == "F32":
        raise StageError(f"{tensor.name} is {usual}: nothing is gained by making it F32", next_step="say dtype bf16 or fp16")
    return Step(f"{KERNELS[usual]}-to-{KERNELS[dtype]}", tensor, (Output(tensor.name, dtype, tensor.shape),))


def _quantised(tensor: Tensor, layout: Layout, choice: Choice) -> list[Step]:
    rows, columns = tensor.shape
    module, read = tensor.name.removesuffix(".weight"), KERNELS[tensor.dtype]
    scale = Output(f"{module}.weight_scale", "F32", (rows,) if choice.layout == "rows" else (rows, 1))
    if layout.kind == "int4":
        group = choice.group
        if group < 8 or group % 8 or columns % group:
            raise StageError(
                f"{tensor.name} has {columns} columns, which groups of {group} do not fill",
                next_step="choose weights.block so that it divides them and 8 divides it, or exclude the matrix",
            )
        own = DTYPES[choice.dtype]
        packed = Output(f"{module}.weight_packed", "I32", (rows, columns // 8))
        scales = Output(f"{module}.weight_scale", own, (rows, columns // group))
        suffix = "" if own == "F32" else f"-scale-{KERNELS[own]}"
        size = Output(f"{module}.weight_shape", "I64", (2,))
        return [
            Step(f"{read}-to-int4{suffix}", tensor, (packed, scales)),
            Step("constant", None, (size,), data=struct.pack("<qq", rows, columns)),
        ]
    made = Output(tensor.name, "F8_E4M3" if layout.kind == "fp8" else "I8", tensor.shape)
    found = [Step(f"{read}-to-{layout.kind}", tensor, (made, scale))]
    if choice.layout == "msmodelslim":
        found.append(Step("constant", None, (Output(f"{module}.weight_offset", "F32", scale.shape),), data=bytes(4)))
    return found


def declaration(catalogue: Catalogue, layout: Layout, chosen: frozenset[str], choice: Choice) -> dict[str, Any]:
    """Return the merge patch by which config.json declares the format to vLLM; empty where another file does.

    `ignore` names every matrix that stayed float, and lm_head also where it is tied to the embeddings and has no tensor.
    """
    if layout.weights is None:
        return dict(layout.declared)
    weights = dict(layout.weights) | ({"group_size": choice.group} if layout.kind == "int4" else {})
    kept = {
        name.removesuffix(".weight")
        for name, tensor in catalogue.tensors.items()
        if name.endswith(".weight")
        and len(tensor.shape) == 2
        and name not in chosen
        and not excluded(name.removesuffix(".weight"), ("*embed*",))
    }
    group = {"targets": ["Linear"], "weights": weights} | (
        {"input_activations": dict(layout.activations)} if layout.activations else {}
    )
    said = {
        "quant_method": "compressed-tensors",
        "format": layout.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(kept | {"lm_head"}),
    }
    return {"quantization_config": said}


def _description(steps: Mapping[str, list[Step]], layout: Layout) -> dict[str, Any]:
    """Return msmodelslim's description: the type of every tensor by name, and the keys of its top level."""
    types: dict[str, str] = {}
    for step in (step for shard in steps.values() for step in shard):
        made = step.kernel == "constant" or step.kernel.endswith("-to-int8")
        types |= {output.name: layout.format if made else FLOAT for output in step.outputs}
    head = {"model_quant_type": layout.format, "version": "1.0.0", "group_size": 0, "metadata": {}, "optional": {}}
    return {**head, **dict(sorted(types.items()))}
