"""Planners: from what a checkpoint has to a Conversion. One entry of RECIPES a pair of precisions; other rooms of this package add theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from release.builders.weights.catalogue import INDEX, Catalogue, read_catalogue
from release.builders.weights.header import Tensor, parse
from release.builders.weights.plan import Conversion, Output, Step, check, copied, grouped
from release.errors import StageError

DTYPES: Final = {"bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16"), "fp32": ("F32", "float32")}
"""Precisions that are a dtype: its name in safetensors, and in config.json."""
SCALE: Final = "_scale_inv"
"""Suffix of the tensor of an FP8 weight's block scales. It multiplies (DeepSeek-V3, README_WEIGHTS.md)."""
BLOCK: Final = 128
CONFIG_LIMIT: Final = 16 << 20
EIGHT: Final = ("F8_E4M3", "F8_E5M2", "F8_E8M0")
"""Dtypes that a checkpoint in a wider precision has none of. int8, uint8 and bool are as wide, and mean something else."""


@dataclass(frozen=True)
class Options:
    """What a user may say of a conversion.

    `mtp`: whether the layers for multi-token prediction stay. `exclude`: patterns (regular expressions, whole names) of tensors to keep as
    they are, for recipes that quantise. `allow`: counts that are no errors here ("overflow", "infinite": see kernels.KERNELS).
    """

    mtp: bool = True
    exclude: tuple[str, ...] = ()
    allow: frozenset[str] = frozenset()

    @property
    def refuse(self) -> frozenset[str]:
        """Counts that are errors."""
        return frozenset({"overflow", "infinite"}) - self.allow


Planner = Callable[[Catalogue, Options], Conversion]


def plan_conversion(source: Path, to: str, *, upstream: str | None = None, options: Options | None = None) -> Conversion:
    """Return how the checkpoint in `source` is brought from the precision `upstream` (by its tensors, unless given) to `to`.

    Only headers, the index and config.json are read. Raises StageError where no recipe knows the pair, or the checkpoint is not sound.
    """
    if upstream is not None and upstream != to and (upstream, to) not in RECIPES:
        raise StageError(f"no conversion from {upstream} to {to} is known")
    catalogue = read_catalogue(source)
    found = upstream or precision_of(catalogue)
    if found == to:
        shards = (*catalogue.shards, *((catalogue.index,) if catalogue.index else ()))
        return Conversion(source, f"{to} as it is", (), carried=(*shards, *catalogue.others))
    if (found, to) not in RECIPES:
        raise StageError(f"no conversion from {found} to {to} is known")
    return check(RECIPES[found, to](catalogue, options or Options()))


def precision_of(catalogue: Catalogue) -> str:
    """Return the precision of a checkpoint: fp8 if any weight is, else the float type that most bytes are of."""
    sizes: dict[str, int] = {}
    for tensor in catalogue.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    if "F8_E4M3" in sizes:
        return "fp8"
    floats = {sizes.get(dtype, 0): precision for precision, (dtype, _) in DTYPES.items()}
    if not max(floats):
        raise StageError(f"{catalogue.folder} has no float tensors: {', '.join(sorted(sizes))}")
    return floats[max(floats)]


def read_config(catalogue: Catalogue) -> dict[str, Any]:
    """Return config.json, or nothing where there is none. Raises StageError for one that is not sound."""
    if "config.json" not in catalogue.others:
        return {}
    path = catalogue.folder / "config.json"
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        config: dict[str, Any] = parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise StageError(f"config.json is not sound: {problem}") from problem
    return config


def prediction_layers(catalogue: Catalogue, config: Mapping[str, Any]) -> set[str]:
    """Return the tensors of the layers for multi-token prediction: those numbered from `num_hidden_layers` on, and those named mtp."""
    layers = config.get("num_hidden_layers")
    found = set()
    for name in catalogue.tensors:
        numbered = re.match(r"(?:model\.)?layers\.(\d{1,6})\.", name)
        beyond = numbered is not None and type(layers) is int and int(numbered[1]) >= layers
        if beyond or re.match(r"(?:model\.)?mtp\.", name):
            found.add(name)
    return found


def floats(dtypes: Mapping[str, str], to: str) -> Planner:
    """Return the planner that runs every tensor of a dtype through its kernel and keeps all others."""

    def plan(catalogue: Catalogue, options: Options) -> Conversion:
        def step(tensor: Tensor) -> Step | None:
            kernel = dtypes.get(tensor.dtype)
            if tensor.dtype in EIGHT:
                raise StageError(f"tensor {tensor.name} is {tensor.dtype}: this is no conversion of it")
            return Step(kernel, tensor, (Output(tensor.name, DTYPES[to][0], tensor.shape),)) if kernel else copied(tensor)

        return assemble(catalogue, options, to, step)

    return plan


def fp8_to_bf16(catalogue: Catalogue, options: Options) -> Conversion:
    """Plan e4m3 weights with block scales as bfloat16; all else is kept."""
    return _fp8_blocks(catalogue, options, "bf16", copied)


def fp8_to_fp32(catalogue: Catalogue, options: Options) -> Conversion:
    """Plan e4m3 weights with block scales as float32, and bfloat16 tensors too, which loses nothing; all else is kept."""

    def wider(tensor: Tensor) -> Step:
        if tensor.dtype != "BF16":
            return copied(tensor)
        return Step("bf16-to-fp32", tensor, (Output(tensor.name, "F32", tensor.shape),))

    return _fp8_blocks(catalogue, options, "fp32", wider)


def _fp8_blocks(catalogue: Catalogue, options: Options, to: str, rest: Callable[[Tensor], Step]) -> Conversion:
    """Plan e4m3 weights with block scales in a float type. A weight without its scales, or the other way round, is an error.

    The scales may be in any shard. The block's sides are those of config.json's `weight_block_size`, else 128. `rest` plans what is not FP8.
    """
    config = read_config(catalogue)
    high, wide = _block(config)
    scales = {name for name in catalogue.tensors if name.endswith(SCALE)}
    used: set[str] = set()

    def step(tensor: Tensor) -> Step | None:
        if tensor.name in scales:
            return None
        if tensor.dtype != "F8_E4M3":
            if tensor.dtype in EIGHT:
                raise StageError(f"tensor {tensor.name} is {tensor.dtype}, which nothing here can read")
            return rest(tensor)
        scale = catalogue.tensors.get(tensor.name + SCALE)
        if scale is None:
            raise StageError(
                f"the FP8 tensor {tensor.name} has no {tensor.name}{SCALE} in any shard",
                next_step="the checkpoint is not complete, or its scales are of another kind: nothing was written",
            )
        wanted = tuple(-(-size // side) for size, side in zip(tensor.shape, (high, wide), strict=False))
        if len(tensor.shape) != 2 or scale.dtype != "F32" or scale.shape != wanted:
            raise StageError(
                f"{scale.name} is {scale.dtype} {list(scale.shape)}; blocks of {high} × {wide} of {list(tensor.shape)} need F32 {list(wanted)}"
            )
        used.add(scale.name)
        made = Output(tensor.name, DTYPES[to][0], tensor.shape)
        return Step(f"fp8-block-to-{to}", tensor, (made,), (scale,), {"high": high, "wide": wide})

    conversion = assemble(catalogue, options, to, step)
    left_out = prediction_layers(catalogue, config) if not options.mtp else set()
    if surplus := scales - used - left_out:
        raise StageError(
            f"{min(surplus)} belongs to no FP8 tensor", next_step="the checkpoint is damaged, or was converted by half"
        )
    return conversion


def _block(config: Mapping[str, Any]) -> tuple[int, int]:
    said = config.get("quantization_config")
    block = said.get("weight_block_size") if isinstance(said, dict) else None
    if block is None:
        return BLOCK, BLOCK
    if not isinstance(block, list) or len(block) != 2 or not all(type(side) is int and 0 < side < 1 << 20 for side in block):
        raise StageError(f"config.json has the weight_block_size {block!r}")
    return block[0], block[1]


def assemble(catalogue: Catalogue, options: Options, to: str, step: Callable[[Tensor], Step | None]) -> Conversion:
    """Return the conversion whose shards are those of the source, with the step of each tensor; None drops it.

    config.json says `to` as its dtype and no quantization any more.
    """
    config = read_config(catalogue)
    left_out = set() if options.mtp else prediction_layers(catalogue, config)
    steps: dict[str, list[Step]] = {}
    dropped = []
    for tensor in catalogue.tensors.values():
        made = None if tensor.name in left_out else step(tensor)
        if made is None:
            dropped.append(tensor)
        else:
            steps.setdefault(tensor.file, []).append(made)
    edits: dict[str, Any] = {}
    if config:
        edits = {key: DTYPES[to][1] for key in ("torch_dtype", "dtype") if key in config} or {"torch_dtype": DTYPES[to][1]}
        if "quantization_config" in config:
            edits["quantization_config"] = None
        if left_out and "num_nextn_predict_layers" in config:
            edits["num_nextn_predict_layers"] = 0
    shards = grouped(catalogue.shards, steps)
    index = (catalogue.index or INDEX) if catalogue.index or len(shards) > 1 else ""
    return Conversion(catalogue.folder, to, shards, tuple(dropped), catalogue.others, edits, refuse=options.refuse, index=index)


RECIPES: Final[dict[tuple[str, str], Planner]] = {
    ("fp32", "bf16"): floats({"F32": "fp32-to-bf16", "F16": "fp16-to-bf16"}, "bf16"),
    ("fp16", "bf16"): floats({"F16": "fp16-to-bf16"}, "bf16"),
    ("fp32", "fp16"): floats({"F32": "fp32-to-fp16", "BF16": "bf16-to-fp16"}, "fp16"),
    ("bf16", "fp16"): floats({"BF16": "bf16-to-fp16"}, "fp16"),
    ("fp8", "bf16"): fp8_to_bf16,
    ("fp8", "fp32"): fp8_to_fp32,
}
"""What turns a precision into another."""
