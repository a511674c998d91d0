"""From a cell to a plan: defaults filled in, every rule checked, then frozen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from release.errors import MatrixError, ReleaseError, UsageError
from release.matrix import parse
from release.matrix.load import Matrix, split
from release.types import Plan, Serve

SECRET_ARGUMENT: Final = re.compile(r"(^|[-_])(api[-_]?key|token|secret|password|credentials?)$", re.IGNORECASE)
"""Arguments of engines that carry a secret (`api-key`, `hf-token`); `max-num-batched-tokens` carries none."""
RESERVED_ARGUMENTS: Final = ("host", "port")

T = TypeVar("T")


def plan_of(matrix: Matrix, cell: str) -> Plan:
    """Return the plan of a cell id. Raises UsageError where the cell does not exist and MatrixError where a rule is broken."""
    chip_id, model_id, arm_name = split(cell)
    file, path = matrix.cell_file(chip_id, model_id)
    chip, model = matrix.chip(chip_id), matrix.model(model_id)
    if arm_name not in file.cells:
        raise UsageError(
            f"there is no cell {cell}{parse.near(arm_name, file.cells)}",
            next_step=f"{chip_id}/{model_id} is offered as {', '.join(file.cells)}",
        )
    arm = file.cells[arm_name]
    precision, _, variant = arm_name.partition("~")
    if precision not in chip.precisions:
        raise MatrixError(
            f"{parse.locate(path, 'cells', arm_name)}: chip {chip.id} does not compute in {precision}",
            next_step=f"chip {chip.id} offers {', '.join(chip.precisions)}",
        )
    base, python = file.base or chip.base, chip.python
    if base is None or python is None:
        missing = "base" if base is None else "python"
        raise MatrixError(f"{path}:1: {missing}: neither the cell nor chip {chip.id} says it")
    reference = arm.reference
    if reference is not None:
        if reference == cell:
            raise MatrixError(f"{parse.locate(path, 'cells', arm_name, 'reference')}: a cell cannot be its own reference")
        _exists(matrix, reference, path, arm_name)
    serve = _serve(file.serve, arm.serve)
    for name in serve.args:
        if name in RESERVED_ARGUMENTS:
            raise MatrixError(f"{path}: serve.args.{name}: is set by the pipeline", next_step="the port is serve.port")
        if SECRET_ARGUMENT.search(name):
            place = ("cells", arm_name, "serve", "args", name) if name in arm.serve.args else ("serve", "args", name)
            raise MatrixError(
                f"{parse.locate(path, *place)}: looks like a secret: secrets come from the environment, never from YAML"
            )
    return Plan(
        cell=cell,
        chip=chip,
        model=model,
        precision=chip.precisions[chip.precisions.index(precision)],
        variant=variant or None,
        engine=file.engine,
        base=base,
        python=python,
        sources=file.sources,
        wheels=file.wheels,
        wheels_sha256=_digest(matrix, file.wheels, path),
        serve=serve,
        accuracy=file.accuracy,
        reference=reference,
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


def _digest(matrix: Matrix, relative: str, path: Path) -> str:
    try:
        return "sha256:" + hashlib.sha256(matrix.file(relative).read_bytes()).hexdigest()
    except MatrixError as problem:
        raise MatrixError(f"{parse.locate(path, 'wheels')}: {problem.message}", next_step=problem.next_step) from problem
    except OSError as problem:
        raise MatrixError(f"{parse.locate(path, 'wheels')}: {relative} cannot be read: {problem.strerror}") from problem


def _serve(shared: Serve, arm: Serve) -> Serve:
    """Return what all precisions share with what this one says laid over it, key by key."""
    said = arm.model_dump(exclude_unset=True)
    merged = {**shared.model_dump(exclude_unset=True), **said}
    merged["args"] = {**shared.args, **arm.args}
    merged["env"] = {**shared.env, **arm.env}
    return Serve.model_validate(merged)


def _exists(matrix: Matrix, cell: str, path: Path, arm_name: str) -> None:
    place = ("cells", arm_name, "reference")
    try:
        chip, model, arm = split(cell)
        file, _ = matrix.cell_file(chip, model)
    except UsageError as problem:
        raise MatrixError(f"{parse.locate(path, *place)}: {problem.message}", next_step=problem.next_step) from problem
    if arm not in file.cells:
        raise MatrixError(
            f"{parse.locate(path, *place)}: there is no cell {cell}{parse.near(arm, file.cells)}",
            next_step=f"{chip}/{model} is offered as {', '.join(file.cells)}",
        )
