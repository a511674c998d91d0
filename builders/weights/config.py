"""config.json of a checkpoint, edited as data: a merge patch is laid over what is there, and what it does not name stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from release.builders.weights.header import parse
from release.errors import StageError

NAME: Final = "config.json"
LIMIT: Final = 16 << 20
"""Bytes of a config.json."""
TORCH_DTYPES: Final[Mapping[str, str]] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DTYPE_KEYS: Final = ("torch_dtype", "dtype")
"""How config.json says what it computes in: transformers before 5 writes the first, later ones the second; engines read either."""
QUANTISATION: Final = ("quantization_config", "compression_config")
"""Where a checkpoint says how it is quantised: it must not survive the quantisation's end."""
MTP: Final = "num_nextn_predict_layers"


def merged(document: Any, patch: Any) -> Any:
    """Return `document` after the merge patch (RFC 7396, section 2): null removes, objects are merged, all else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    found = dict(document) if isinstance(document, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the edits of the first level that make `after` of `before`: values to set, None for keys to remove.

    Raises StageError where `after` has null for a value that was another: no edit can say that.
    """
    found: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if key not in before or not same(before[key], value):
            if value is None:
                raise StageError(f"{NAME}: {key}: null cannot be set, only removed")
            found[key] = value
    return found


def same(left: Any, right: Any) -> bool:
    """Say whether two values are the same JSON: 1, 1.0 and true are three."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint. Raises StageError for one that is missing, too large or no sound JSON object."""
    path = folder / NAME
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {LIMIT}")
        found: dict[str, Any] = parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise StageError(f"{path} is not a sound {NAME}: {problem}", next_step="fetch the checkpoint again") from problem
    return found


def automatic(config: Mapping[str, Any], dtype: str, *, drop_mtp: bool = False) -> dict[str, Any]:
    """Return the merge patch that follows from a conversion: `dtype` (bf16, fp16, fp32) is what is not quantised from then on.

    Every key that says a dtype says the new one (`torch_dtype` where none did), what the source says of its own quantisation goes, and
    with the layers of multi-token prediction dropped there are 0 of them.
    """
    patch: dict[str, Any] = {key: TORCH_DTYPES[dtype] for key in DTYPE_KEYS if key in config}
    patch = patch or {DTYPE_KEYS[0]: TORCH_DTYPES[dtype]}
    patch |= {key: None for key in QUANTISATION if key in config}
    return patch | ({MTP: 0} if drop_mtp and MTP in config else {})


def edited(config: Mapping[str, Any], *patches: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` after `patches`, one after the other; both spellings of the dtype agree afterwards, where both are there.

    Raises StageError where patches say two dtypes.
    """
    found: dict[str, Any] = dict(config)
    said: dict[str, Any] = {}
    for patch in patches:
        found = merged(found, patch)
        said |= {key: patch[key] for key in DTYPE_KEYS if patch.get(key) is not None}
    if len(set(map(str, said.values()))) > 1:
        raise StageError(f"{NAME}: {' and '.join(f'{key} {value}' for key, value in said.items())}: two dtypes are asked for")
    for key in DTYPE_KEYS:
        if said and key in found:
            found[key] = next(iter(said.values()))
    return found


def yarn(factor: float, original: int) -> dict[str, Any]:
    """Return the merge patch that stretches the context by YaRN (arXiv 2309.00071), as transformers spells it.

    `original` are the tokens that the model was trained for; `factor` × `original` are those that it takes from then on.
    """
    if factor < 1 or original < 1:
        raise StageError(f"{NAME}: rope_scaling: a factor of {factor} over {original} tokens is no stretching")
    return {"rope_scaling": {"factor": float(factor), "original_max_position_embeddings": original, "type": "yarn"}}


def document(value: Any) -> str:
    """Return JSON as the files of a checkpoint are written: indented, keys in the order in which they stand, UTF-8."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
