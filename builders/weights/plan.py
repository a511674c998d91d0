"""A conversion as data: for every shard that will be written, its tensors in order, and what each is made from by which kernel.

A planner (`recipes.py`, or yours) turns a Catalogue into a Conversion. Nothing is read or written by planning, but the few small tensors
(scales) that a planner looks at. `stream.write_shard` then follows a shard; `run.run` all of them; `proof.verify` proves the result.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from release.builders.weights.header import WIDTH, Tensor, pack_header
from release.errors import StageError

METADATA: Final = {"format": "pt"}
"""Metadata of every file that is written: without it, transformers before 4.47.1 refuses to load."""
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * WIDTH[self.dtype]


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor, and what is made of it by a kernel of `kernels.KERNELS`.

    `source` is streamed, strip by strip; `aside` are small tensors that the kernel gets whole, as scales are. `outputs[0]` is streamed as
    `source` is: element by element, or row by row where the kernel works by rows. The other outputs are its sides: they have as many rows
    (first dimension) as the source, the kernel fills in those of the rows that it sees, and they are written once it has seen all. A step
    without a source writes a constant: kernel "constant", `data` repeated until the output is full.
    """

    kernel: str
    source: Tensor | None
    outputs: tuple[Output, ...]
    aside: tuple[Tensor, ...] = ()
    parameters: Mapping[str, Value] = field(default_factory=dict)
    data: bytes = b"\0"


@dataclass(frozen=True)
class Shard:
    """A file that will be written. `steps` in any order: `layout` decides where each output lies."""

    file: str
    steps: tuple[Step, ...]

    @cached_property
    def layout(self) -> tuple[tuple[Step, int], ...]:
        """The outputs in the order of their bytes, each as its step and its number there; every tensor aligned to its elements.

        First what is streamed and fills whole 8 bytes, as the steps stand; then all else from wide elements to narrow ones, and sides
        before streamed ones of the same width. A side is thus written after the tensor that it is found with.
        """
        outputs = [(step, number) for step in self.steps for number in range(len(step.outputs))]

        def place(entry: tuple[Step, int]) -> tuple[int, int, int]:
            step, number = entry
            output = step.outputs[number]
            early = number == 0 and output.size % 8 == 0
            return (0, 0, 0) if early else (1, -WIDTH[output.dtype], 0 if number else 1)

        return tuple(sorted(outputs, key=place))

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes."""
        found = [step.outputs[number] for step, number in self.layout]
        return pack_header(((output.name, output.dtype, output.shape) for output in found), METADATA)

    @property
    def tensors(self) -> dict[str, int]:
        """The size of every tensor in it, by name, in the order of their bytes."""
        return {step.outputs[number].name: step.outputs[number].size for step, number in self.layout}

    @property
    def size(self) -> int:
        """The file's bytes."""
        return len(self.header) + sum(self.tensors.values())

    @property
    def reads(self) -> int:
        """Bytes that are streamed in for it."""
        return sum(step.source.size for step in self.steps if step.source)

    @cached_property
    def digest(self) -> str:
        """What the file's content is a function of, beside the bytes of its sources: header, steps, kernels."""
        found = hashlib.sha256(self.header)
        for step, number in self.layout:
            source = [
                [t.name, t.file, t.dtype, t.shape, t.offset] for t in (*((step.source,) if step.source else ()), *step.aside)
            ]
            entry = [number, step.kernel, source, dict(step.parameters), step.data.hex()]
            found.update(json.dumps(entry, sort_keys=True).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Conversion:
    """Everything that `run` will write: shards, the index, the files beside them.

    `config` are edits of config.json's first level: a value to set, or None to remove the key. `files` are texts to write as they are,
    by name (a description of the tensors, say). `carried` are files of the source to copy. `refuse` names counts of the kernels that are
    errors when they are not zero, beside those that always are (`Kernel.fatal`). `recipe` names what was asked for, for people.
    """

    source: Path
    recipe: str
    shards: tuple[Shard, ...]
    dropped: tuple[Tensor, ...] = ()
    carried: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    refuse: frozenset[str] = frozenset()
    index: str = ""

    @property
    def size(self) -> int:
        """Bytes of the shards that will be written."""
        return sum(shard.size for shard in self.shards)

    @property
    def reads(self) -> int:
        """Bytes that will be streamed in."""
        return sum(shard.reads for shard in self.shards)

    def summary(self) -> dict[str, Any]:
        """Return what will be done, for people: tensors and bytes converted, kept, added and dropped, by dtype; shards; total sizes."""
        groups: dict[str, dict[str, dict[str, int]]] = {"converted": {}, "kept": {}, "added": {}}
        for step in (step for shard in self.shards for step in shard.steps):
            for number, output in enumerate(step.outputs):
                kind: Literal["converted", "kept", "added"] = "added"
                what = output.dtype
                if number == 0 and step.source is not None:
                    kind = "kept" if step.kernel == "copy" else "converted"
                    what = output.dtype if kind == "kept" else f"{step.source.dtype} → {output.dtype}"
                _count(groups[kind], what, output.size)
        dropped: dict[str, dict[str, int]] = {}
        for tensor in self.dropped:
            _count(dropped, tensor.dtype, tensor.size)
        counts = {"shards": len(self.shards), "reads": self.reads, "bytes": self.size}
        return {"recipe": self.recipe, **groups, "dropped": dropped, **counts, "config": dict(self.config)}


def _count(group: dict[str, dict[str, int]], what: str, size: int) -> None:
    entry = group.setdefault(what, {"tensors": 0, "bytes": 0})
    entry["tensors"] += 1
    entry["bytes"] += size


def copied(tensor: Tensor, name: str = "") -> Step:
    """Return the step that keeps a tensor as it is, under another name if one is given."""
    return Step("copy", tensor, (Output(name or tensor.name, tensor.dtype, tensor.shape),))


def check(conversion: Conversion) -> Conversion:
    """Return a conversion after it was found to be one that can be run: names once, kernels that fit. Raises StageError."""
    from release.builders.weights.kernels import KERNELS

    names: set[str] = set()
    files: set[str] = set()
    for shard in conversion.shards:
        if shard.file in files or not shard.steps:
            raise StageError(f"{conversion.recipe}: the shard {shard.file} is planned twice or is empty")
        files.add(shard.file)
        for step in shard.steps:
            if step.kernel not in KERNELS:
                raise StageError(f"{conversion.recipe}: there is no kernel {step.kernel!r}")
            KERNELS[step.kernel].check(step)
            for output in step.outputs:
                if output.name in names:
                    raise StageError(f"{conversion.recipe}: tensor {output.name} is planned twice")
                names.add(output.name)
    return conversion


def grouped(files: Iterable[str], steps: Mapping[str, list[Step]]) -> tuple[Shard, ...]:
    """Return the shards that have any steps, in the order of `files`, renumbered where one fell out (`…-00002-of-00003.safetensors`)."""
    left = [file for file in files if steps.get(file)]
    return tuple(Shard(name, tuple(steps[file])) for file, name in zip(left, _renumbered(left), strict=True))


def _renumbered(files: list[str]) -> list[str]:
    found = [re.fullmatch(r"(.*)-(\d{5,6})-of-(\d{5,6})\.safetensors", file) for file in files]
    sound = [match for match in found if match]
    if len(sound) != len(files) or len({match[1] for match in sound}) != 1 or int(sound[0][3]) == len(files):
        return files
    width, total = len(sound[0][2]), f"{len(files):0{len(sound[0][3])}d}"
    return [f"{sound[0][1]}-{number:0{width}d}-of-{total}.safetensors" for number in range(1, len(files) + 1)]
