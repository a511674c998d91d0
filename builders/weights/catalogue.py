"""A checkpoint as a folder: every tensor of every shard by name, the index against the shards, and the files beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from release.builders.weights.header import Header, Tensor, parse, read_file
from release.errors import StageError

INDEX: Final = "model.safetensors.index.json"
INDEX_SUFFIX: Final = ".safetensors.index.json"
INDEX_LIMIT: Final = 64 << 20
"""Bytes that an index may have; DeepSeek-R1's has 9 million."""
MOST_TENSORS: Final = 1 << 18
"""Tensors that a checkpoint may have."""
SHARD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}\.safetensors")
"""What a shard's name looks like: a plain file beside its index."""
PICKLES: Final = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".joblib", ".dill", ".npy", ".npz")
"""Suffixes of formats that can run code when they are read."""
PICKLE_STARTS: Final = tuple(b"\x80" + bytes([version]) for version in range(2, 6))


@dataclass(frozen=True)
class Catalogue:
    """The tensors of a checkpoint by name and its shards by file name; `others` are all other files, relative to `folder`.

    `index` is the name of its index, empty for a checkpoint in one file.
    """

    folder: Path
    shards: Mapping[str, Header]
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...]
    index: str = ""

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


def read_catalogue(folder: Path) -> Catalogue:
    """Return what the checkpoint in `folder` has; only headers and the index are read.

    Every tensor of the index is in the shard that it says, no shard has one more, no tensor is in two shards, no safetensors file
    lies beside the index unnamed, no shard's name is a path. Raises StageError for anything else, and for a pickle file.
    """
    if not folder.is_dir():
        raise StageError(f"there is no checkpoint folder {folder}")
    files = sorted(_files(folder))
    refuse_pickles(folder, files)
    indexes = [name for name in files if name.endswith(INDEX_SUFFIX)]
    shards = [name for name in files if name.endswith(".safetensors")]
    if len(indexes) > 1 or (not indexes and len(shards) > 1):
        raise StageError(
            f"{folder} has {len(shards)} safetensors files and {len(indexes)} indexes",
            next_step="a checkpoint is one safetensors file, or several and one index of them: remove what does not belong to it",
        )
    named = read_index(folder / indexes[0]) if indexes else dict.fromkeys(shards, frozenset[str]())
    if missing := sorted(set(named) - set(shards)):
        raise StageError(f"{indexes[0]} names {missing[0]}, which is not there", next_step="fetch the checkpoint again")
    if surplus := sorted(set(shards) - set(named)):
        raise StageError(f"{surplus[0]} is in no index", next_step="remove it, or bring the index that names it")
    headers: dict[str, Header] = {}
    tensors: dict[str, Tensor] = {}
    for shard in sorted(named):
        headers[shard] = header = read_file(folder / shard, shard)
        if indexes:
            _agree(indexes[0], named[shard], header)
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise StageError(f"tensor {tensor.name} is in {tensors[tensor.name].file} and in {shard}")
            tensors[tensor.name] = tensor
        if len(tensors) > MOST_TENSORS:
            raise StageError(f"{folder} has more than {MOST_TENSORS} tensors")
    others = tuple(name for name in files if name not in headers and name not in indexes)
    return Catalogue(folder, headers, tensors, others, indexes[0] if indexes else "")


def read_index(path: Path) -> dict[str, frozenset[str]]:
    """Return the tensors that an index says of each shard. Raises StageError for one that is not sound."""
    try:
        if path.stat().st_size > INDEX_LIMIT:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {INDEX_LIMIT}")
        weight_map = parse(path.read_bytes())["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("its weight_map is no object, or empty")
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not SHARD.fullmatch(shard):
                raise ValueError(
                    f"tensor {name[:200]!r} lies in {str(shard)[:200]!r}, which is no plain name of a safetensors file"
                )
            shards.setdefault(shard, set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise StageError(f"{path.name} is not a sound index: {problem}", next_step="fetch the checkpoint again") from problem
    return {shard: frozenset(names) for shard, names in shards.items()}


def refuse_pickles(folder: Path, files: list[str]) -> None:
    """Raise StageError for a file that is a pickle by its name or its first bytes: reading one can run any code."""
    for name in files:
        suspect = name.lower().endswith(PICKLES)
        if not suspect and not name.endswith(".safetensors"):
            with (folder / name).open("rb") as stream:
                suspect = stream.read(2) in PICKLE_STARTS
        if suspect:
            raise StageError(
                f"{name} is a pickle, or a format that may hold one", next_step="remove it: safetensors files replace it"
            )


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder, relative to it; hidden ones (a hub's cache, a file being written) are no part of a checkpoint."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file():
            yield relative.as_posix()


def _agree(index: str, named: frozenset[str], header: Header) -> None:
    there = {tensor.name for tensor in header.tensors}
    for names, what in (
        (named - there, "names {} in {}, which has no such tensor"),
        (there - named, "does not name {}, which is in {}"),
    ):
        if names:
            raise StageError(f"{index} {what.format(min(names), header.file)}", next_step="fetch the checkpoint again")


def index_of(shards: Mapping[str, Mapping[str, int]], metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the index of a checkpoint: `shards` are the sizes in bytes of every shard's tensors by name."""
    total = sum(size for tensors in shards.values() for size in tensors.values())
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    return {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
