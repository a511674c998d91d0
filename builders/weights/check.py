"""Checking a checkpoint before anyone serves it: every rule looks at the same headers, and says all that it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from release.builders.weights.catalogue import INDEX_SUFFIX, SHARD, read_index, refuse_pickles
from release.builders.weights.config import NAME, read_config
from release.builders.weights.findings import Checkpoint, Finding
from release.builders.weights.header import Tensor, parse, read_file
from release.builders.weights.linears import declared, description, fused_groups, one_dtype, scales
from release.builders.weights.shapes import shapes
from release.builders.weights.sums import finite, static_layers
from release.errors import StageError
from release.progress import Line

RULES: Final = (scales, one_dtype, fused_groups, description, declared, static_layers, shapes)
"""What is asked of every checkpoint, beside what `gather` says of its files and `finite` of its numbers."""
TOKENIZERS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tiktoken.model",
    "*.tiktoken",
    "spiece.model",
    "tekken.json",
)
"""Files of which one has to be there for texts to become tokens."""
LICENCES: Final = ("license*", "licence*", "copying*", "notice*")
DESCRIPTIONS: Final = ("quant_model_description.json", "quant_model_description_*.json")
"""The description of msmodelslim, and its older name with the type in it."""
LIMIT: Final = 256 << 20
"""Bytes that a description may have."""


def check(folder: Path, *, line: Line | None = None, numbers: bool = True, whole: bool = True) -> list[Finding]:
    """Return what is wrong with the checkpoint in `folder`, errors first; nothing is written, and memory stays below half a gigabyte.

    `numbers` says whether every byte is read in search of NaN and infinities; without it only headers and small tensors are. `whole` is
    false for one device's part of a checkpoint that was cut: its matrices are smaller than config.json says, and it has no tokenizer.
    Raises StageError only if `folder` is no folder.
    """
    if not folder.is_dir():
        raise StageError(f"there is no checkpoint folder {folder}")
    checkpoint, found = gather(folder)
    for rule in RULES:
        found += rule(checkpoint) if whole or rule is not shapes else ()
    if not whole:
        found = [finding for finding in found if finding.rule not in ("config", "tokenizer", "licence")]
    if numbers:
        if line:
            line.expect(sum(tensor.size for tensor in checkpoint.tensors.values()), "bytes")
        found += finite(checkpoint, line.advance if line else lambda count: None)
    return sorted(found, key=lambda one: (one.severity != "error", one))


def refuse(folder: Path, what: str, *, line: Line | None = None, numbers: bool = True, whole: bool = True) -> list[Finding]:
    """Return the warnings of a check. Raises StageError with the errors, if there are any; `what` names whose result this is."""
    found = check(folder, line=line, numbers=numbers, whole=whole)
    errors = [str(finding) for finding in found if finding.severity == "error"]
    if errors:
        more = f"\nand {len(errors) - 10} more" if len(errors) > 10 else ""
        raise StageError(f"{what}: {len(errors)} findings: {errors[0]}", next_step="\n".join(errors[:10]) + more)
    return found


def gather(folder: Path) -> tuple[Checkpoint, list[Finding]]:
    """Return what the rules look at, and what is wrong with the files themselves: headers, index, pickles, what is not there."""
    names = sorted(_files(folder))
    found: list[Finding] = []
    for name in names:
        try:
            refuse_pickles(folder, [name])
        except (StageError, OSError) as problem:
            found.append(Finding("pickle", name, "", str(problem)))
    tensors: dict[str, Tensor] = {}
    for name in (name for name in names if name.endswith(".safetensors")):
        try:
            header = read_file(folder / name, name)
        except StageError as problem:
            found.append(Finding("header", name, "", problem.message))
            continue
        for tensor in header.tensors:
            if tensor.name in tensors:
                found.append(Finding("twice", name, tensor.name, f"is in {tensors[tensor.name].file} too"))
            tensors[tensor.name] = tensor
    if not any(name.endswith(".safetensors") for name in names):
        found.append(Finding("header", "", "", "there is no safetensors file"))
    found += _index(folder, names, tensors)
    config = _document(folder, NAME, names, found)
    described = next((name for pattern in DESCRIPTIONS for name in names if fnmatch(name, pattern)), None)
    details = _document(folder, described, names, found) if described else None
    found += _beside(names)
    return Checkpoint(folder, tuple(names), tensors, config or {}, details, described or DESCRIPTIONS[0]), found


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file():
            yield relative.as_posix()


def _index(folder: Path, names: list[str], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Yield where the index and the shards disagree."""
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    shards = {name for name in names if name.endswith(".safetensors")}
    if len(indexes) > 1 or (not indexes and len(shards) > 1):
        yield Finding("index", indexes[-1] if indexes else "", "", f"{len(indexes)} indexes for {len(shards)} safetensors files")
    for index in indexes:
        try:
            said = read_index(folder / index)
        except StageError as problem:
            yield Finding("index", index, "", problem.message)
            continue
        named = {name: shard for shard, inside in said.items() for name in inside}
        for shard in sorted(said.keys() - shards):
            yield Finding("index", index, "", f"names {shard}, which is not there")
        for shard in sorted(shards - said.keys()):
            yield Finding("index", index, "", f"does not name {shard}, which is there")
        for name, shard in sorted(named.items()):
            if shard in shards and (name not in tensors or tensors[name].file != shard):
                where = f"lies in {tensors[name].file}" if name in tensors else "is nowhere"
                yield Finding("index", index, name, f"is said to lie in {shard}, and {where}")
        for name in sorted(tensors.keys() - named.keys()):
            yield Finding("index", index, name, f"is not named, and lies in {tensors[name].file}")
    for shard in sorted(shards):
        if not SHARD.fullmatch(shard):
            yield Finding("index", shard, "", "is no plain name of a shard", "warning")


def _document(folder: Path, name: str, names: list[str], found: list[Finding]) -> dict[str, Any] | None:
    try:
        if name == NAME:
            return read_config(folder)
        if (folder / name).stat().st_size > LIMIT:
            raise ValueError(f"it has more than {LIMIT} bytes")
        document: dict[str, Any] = parse((folder / name).read_bytes())
    except StageError as problem:
        found.append(Finding("config", name, "", "is missing" if name not in names else problem.message))
    except (OSError, ValueError, RecursionError) as problem:
        found.append(Finding("description", name, "", f"is not a sound description: {problem}"))
    else:
        return document
    return None


def _beside(names: list[str]) -> Iterator[Finding]:
    """Yield what ought to lie beside the tensors and does not."""
    if not any(fnmatch(name, pattern) for name in names for pattern in TOKENIZERS):
        yield Finding("tokenizer", "", "", f"there is none of {', '.join(TOKENIZERS)}")
    if not any(fnmatch(name.lower(), pattern) for name in names for pattern in LICENCES):
        yield Finding("licence", "", "", "no licence file lies beside the weights", "warning")
