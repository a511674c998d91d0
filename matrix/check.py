"""From a cell to a plan: defaults filled in, a layout over devices chosen, then frozen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from release.errors import MatrixError, ReleaseError, UsageError
from release.matrix import parse
from release.matrix.arguments import check_arguments, check_asked
from release.matrix.load import Matrix, split
from release.matrix.memory import plain
from release.types import Argument, Arm, CellFile, Chip, Device, Dtype, Parallel, Plan, Serve, Source, split_cell
from release.types.cell import Operators
from release.types.chip import MOST_MEMORY

FLOATS: Final[dict[str, Dtype]] = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}

SHARED: Final = ("adapters", "consistency", "accuracy", "benchmarks", "documents")
"""What all precisions of a cell file have alike."""
SWITCH: Final = "RELEASE_OPERATORS"
PLUGIN_CHIP: Final = "RELEASE_KERNELS_CHIP"
SWITCHED_TO: Final = ("ours", "flaggems", "native")
"""What the plugin release-kernels reads: whose operators, and the chip that they run on."""
EAGER: Final = "enforceeager"
COMPILED: Final = "a model that is compiled calls few of ATen's operators, which FlagGems is to serve, and nobody showed its wrappers in a graph"
EAGER_STEP: Final = "write serve.args: {enforce-eager: true}"
MOST_DEVICES: Final = 16384
"""Devices beyond which an option is a slip."""

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What a command line asks for beside the cell: another device, a number of them, a layout, other serving arguments."""

    device: str | None = None
    memory: float | None = None
    devices: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    args: dict[str, Argument] = field(default_factory=dict)


def plan_of(matrix: Matrix, cell: str, asked: Asked | None = None) -> Plan:
    """Return the plan of a cell id. Raises UsageError where the cell does not exist and MatrixError where a file is wrong.

    Whether the plan can work is for the rules to say.
    """
    asked = asked or Asked()
    chip_id, model_id, arm_name = split(cell)
    file, path = matrix.cell_file(chip_id, model_id)
    chip, model = matrix.chip(chip_id), matrix.model(model_id)
    if arm_name not in file.cells:
        raise UsageError(
            f"there is no cell {cell}{parse.near(arm_name, file.cells)}",
            next_step=f"{chip_id}/{model_id} is offered as {', '.join(file.cells)}",
        )
    arm = file.cells[arm_name]
    name, _, variant = arm_name.partition("~")
    if name not in chip.precisions:
        raise MatrixError(
            f"{parse.locate(path, 'cells', arm_name)}: chip {chip.id} does not compute in {name}",
            next_step=f"chip {chip.id} offers {', '.join(chip.precisions)}",
        )
    base = arm.base or file.base or chip.base
    if base is None:
        raise MatrixError(f"{path}:1: base: neither the cell nor chip {chip.id} says it")
    wheels = arm.wheels or file.wheels
    if wheels is not None and chip.python is None:
        raise MatrixError(f"{path}:1: python: neither the cell nor chip {chip.id} says it")
    _check(matrix, cell, file, path, asked)
    return Plan(
        cell=cell,
        chip=chip,
        device=_device(chip, asked, arm.device or file.device, path),
        model=model,
        precision=chip.precisions[chip.precisions.index(name)],
        dtype=arm.dtype or FLOATS.get(name, chip.dtypes[0]),
        variant=variant or None,
        engine=arm.engine or file.engine,
        base=base,
        python=chip.python,
        container=arm.container or file.container or chip.container,
        sources=file.sources if arm.sources is None else arm.sources,
        wheels=wheels,
        wheels_sha256=digest_of(matrix, wheels, path, "wheels") if wheels else None,
        packages={**file.packages, **arm.packages},
        serve=_switched(_serve(file.serve, arm.serve, asked), arm.operators or file.operators, chip.id),
        parallel=_parallel(arm.parallel or file.parallel, asked),
        world_sizes=file.world_sizes if arm.world_sizes is None else arm.world_sizes,
        engine_config={**file.engine_config, **arm.engine_config},
        features=(*file.features, *(feature for feature in arm.features if feature not in file.features)),
        weights=arm.weights or file.weights,
        trials=file.trials if arm.trials is None else arm.trials,
        reported=file.reported if arm.reported is None else arm.reported,
        conflicts=(*file.conflicts, *arm.conflicts),
        note="\n".join(note for note in (file.note, arm.note) if note),
        reference=arm.reference,
        **{name: getattr(file, name) for name in SHARED},
        waivers=(*file.waivers, *arm.waivers),
        performance=arm.performance or file.performance,
        operators=arm.operators or file.operators,
    )


def precision_for(matrix: Matrix, chip: str, model: str, asked: str | None) -> str:
    """Return the cell id for chip × model: the precision asked for, else the first one in the file."""
    file, _ = matrix.cell_file(chip, model)
    return f"{chip}/{model}@{asked or next(iter(file.cells))}"


def problems(matrix: Matrix) -> list[ReleaseError]:
    """Return every error of the whole matrix: all files, all cells, each once."""
    found: dict[str, ReleaseError] = {}

    def tried(read: Callable[..., T], *words: str) -> T | None:
        try:
            return read(*words)
        except ReleaseError as problem:
            found[str(problem)] = problem
            return None

    for name in matrix.chips():
        tried(matrix.chip, name)
    for name in matrix.models():
        tried(matrix.model, name)
    for name in matrix.cell_files():
        for arm in file[0].cells if (file := tried(matrix.cell_file, *name.split("/"))) else ():
            tried(partial(plan_of, matrix), f"{name}@{arm}")
    return list(found.values())


def _device(chip: Chip, asked: Asked, said: str | None, path: Path) -> Device | None:
    """Return the device that is asked for, else the cell's, else the chip's first, with the memory that is asked for; None of a host."""
    if asked.memory is not None and not (math.isfinite(asked.memory) and 0 < asked.memory <= MOST_MEMORY):
        raise UsageError(
            f"--device-memory {asked.memory:g}: no device has that", next_step="give GiB of one device, as its own tool prints it"
        )
    if not chip.devices:
        return None
    name = asked.device or said or next(iter(chip.devices))
    if name not in chip.devices:
        known = f"chip {chip.id} has {', '.join(chip.devices)}"
        if asked.device:
            raise UsageError(f"chip {chip.id} has no device {name!r}{parse.near(name, chip.devices)}", next_step=known)
        raise MatrixError(f"{parse.locate(path, 'device')}: chip {chip.id} has no device {name!r}", next_step=known)
    device = chip.devices[name]
    if asked.memory is None:
        return device
    return device.model_copy(update={"memory": asked.memory})


def _parallel(said: Parallel | None, asked: Asked) -> Parallel | None:
    """Return the layout that was asked for, as many replicas of it as the devices hold; None where one is to be chosen."""
    if asked.tensor_parallel_size is None and asked.pipeline_parallel_size is None:
        return None if asked.devices else said
    tp, pp = asked.tensor_parallel_size or 1, asked.pipeline_parallel_size or 1
    if not (0 < tp <= MOST_DEVICES and 0 < pp <= MOST_DEVICES and 0 <= (asked.devices or 0) <= MOST_DEVICES):
        raise UsageError(f"TP {tp} × PP {pp}: nobody has so many devices", next_step=f"give sizes from 1 to {MOST_DEVICES}")
    replicas = max(1, (asked.devices or 0) // (tp * pp))
    return Parallel(tensor_parallel_size=tp, pipeline_parallel_size=pp, replicas=replicas)


def digest_of(matrix: Matrix, relative: str, path: Path, *place: str) -> str:
    """Return the digest of a data file that the file at `path` names in `place`, read once for each state of it. Raises MatrixError."""
    try:
        file = matrix.file(relative)
        facts = file.stat()
        return _digest_once(file, (facts.st_mtime_ns, facts.st_size))
    except MatrixError as problem:
        raise MatrixError(f"{parse.locate(path, *place)}: {problem.message}", next_step=problem.next_step) from problem
    except OSError as problem:
        raise MatrixError(f"{parse.locate(path, *place)}: {relative} cannot be read: {problem.strerror}") from problem


@cache
def _digest_once(path: Path, stamp: tuple[int, int]) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _serve(shared: Serve, arm: Serve, asked: Asked) -> Serve:
    """Return what all precisions share with what this one says laid over it, key by key, and what was asked for over both."""
    if not arm.model_fields_set and not asked.args:
        return shared
    merged: dict[str, Any] = {name: getattr(shared, name) for name in shared.model_fields_set}
    merged |= {name: getattr(arm, name) for name in arm.model_fields_set}
    args = {**shared.args, **arm.args}
    spelled = {plain(name): name for name in args}
    merged["args"] = args | {spelled.get(plain(name), name): value for name, value in asked.args.items()}
    merged["env"] = {**shared.env, **arm.env}
    try:
        return Serve(**merged)
    except ValidationError as problem:  # the files' own values were valid
        raise UsageError(
            f"--set: {str(problem.errors(include_url=False)[0]['msg'])[:100]}",
            next_step="write NAME=VALUE, as max-model-len=8192",
        ) from problem


def _switched(serve: Serve, operators: Operators | None, chip: str) -> Serve:
    """Return how a server is started whose image has our plugin: with the switch, and the chip that its operators are chosen for."""
    if operators is None or not operators.plugin:
        return serve
    return serve.model_copy(update={"env": {**serve.env, PLUGIN_CHIP: chip, **operators.env}})


def _check_plugin(file: CellFile, arm: Arm, path: Path, arm_name: str, asked: Asked) -> None:
    """Raise MatrixError unless a plugin that is asked for can be installed, is switched to a library that it knows, and can do its work."""
    operators, place = (file.operators, ()) if arm.operators is None else (arm.operators, ("cells", arm_name))
    if operators is None or not operators.plugin:
        return
    here = (*place, "operators")
    if (arm.wheels or file.wheels) is None:
        raise MatrixError(
            f"{parse.locate(path, *here, 'plugin')}: the image installs no wheels, so no plugin either",
            next_step="name the pins of its wheels, or leave out 'plugin'",
        )
    said = operators.env.get(SWITCH)
    if said not in SWITCHED_TO:
        missing = "is not set" if said is None else f"is {said!r}{parse.near(said, SWITCHED_TO)}"
        raise MatrixError(
            f"{parse.locate(path, *here, 'env')}: {SWITCH}, which the plugin reads, {missing}",
            next_step=f"set it to one of {', '.join(SWITCHED_TO)}",
        )
    other = {**file.serve.env, **arm.serve.env}.get(SWITCH, said)
    if other != said:
        raise MatrixError(
            f"{parse.locate(path, *here, 'env')}: {SWITCH} is {said!r} here, and {other!r} in the server's environment",
            next_step="leave it out of 'serve'",
        )
    if said != "flaggems":
        return
    if not _eager({**file.serve.args, **arm.serve.args}):
        raise MatrixError(f"{parse.locate(path, *here, 'plugin')}: {COMPILED}", next_step=f"{EAGER_STEP}, or leave out 'plugin'")
    if not _eager(asked.args, unsaid=True):
        raise UsageError(f"--set enforce-eager: {COMPILED}", next_step="leave it out: the cell's FlagGems needs it to be true")


def _eager(args: Mapping[str, Argument], *, unsaid: bool = False) -> bool:
    """Say whether arguments let an engine call Python for every layer and every token; `unsaid` where they do not say."""
    said = [
        value is True and not plain(name).startswith("no")
        for name, value in args.items()
        if plain(name).removeprefix("no") == EAGER
    ]
    return all(said) if said else unsaid


def _check(matrix: Matrix, cell: str, file: CellFile, path: Path, asked: Asked) -> None:
    """Raise for what no type can see: references, sources and arguments of a cell, and the arguments that were asked for."""
    arm_name = split_cell(cell)[2]
    arm = file.cells[arm_name]
    _check_reference(matrix, cell, arm, path, arm_name)
    _check_sources(arm, file.sources, path, arm_name)
    _check_plugin(file, arm, path, arm_name, asked)
    check_arguments(file, arm, path, arm_name)
    check_asked(asked.args)


def _check_reference(matrix: Matrix, cell: str, arm: Arm, path: Path, arm_name: str) -> None:
    """Raise MatrixError unless the reference, and what it is compared with itself, are other cells of the same model that exist."""
    if arm.reference is None:
        return

    def here() -> str:  # only a complaint needs it, and it takes the file anew
        return parse.locate(path, "cells", arm_name, "reference")

    if arm.reference == cell:
        raise MatrixError(f"{here()}: a cell cannot be its own reference", next_step="name another cell of this model, or none")
    following, seen = arm.reference, [cell]
    while following:
        try:
            chip, model, other = split(following)
            file, _ = matrix.cell_file(chip, model)
        except UsageError as problem:
            raise MatrixError(f"{here()}: {problem.message}", next_step=problem.next_step) from problem
        if other not in file.cells:
            raise MatrixError(
                f"{here()}: there is no cell {following}{parse.near(other, file.cells)}",
                next_step=f"{chip}/{model} is offered as {', '.join(file.cells)}",
            )
        if model != split_cell(cell)[1]:
            raise MatrixError(
                f"{here()}: {following} is a cell of {model}: a cell is compared with the same model",
                next_step=f"name a cell of {split_cell(cell)[1]}",
            )
        seen.append(following)
        if seen.count(following) > 1:
            raise MatrixError(f"{here()}: references go round in a circle: {' → '.join(seen)}", next_step="leave one of them out")
        following = file.cells[other].reference or ""


def _check_sources(arm: Arm, shared: tuple[Source, ...], path: Path, arm_name: str) -> None:
    sources, prefix = (shared, ()) if arm.sources is None else (arm.sources, ("cells", arm_name))
    seen: set[str] = set()
    for number, source in enumerate(sources):
        if source.name in seen:
            raise MatrixError(
                f"{parse.locate(path, *prefix, 'sources', number)}: there are two sources called {source.name}",
                next_step="give each a name of its own",
            )
        seen.add(source.name)
