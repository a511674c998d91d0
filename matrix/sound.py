"""Whether what the matrix names is there: questions with their digest, checkpoints, and no file in a place where nothing reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from release.errors import MatrixError, ReleaseError
from release.matrix import parse
from release.matrix.check import digest_of
from release.matrix.load import Matrix
from release.types import CellFile, Model, QuestionSet

PLACES: Final = {
    "chips": "chips/CHIP.yaml",
    "models": "models/MODEL.yaml",
    "benchmarks": "benchmarks/BENCHMARK.yaml",
    "cells": "cells/CHIP/MODEL.yaml",
}
"""Where a file of each kind lies in a matrix folder."""


def unsound(matrix: Matrix) -> Iterator[MatrixError]:
    """Yield an error for everything that a file names and that is not there or not as it says; files that cannot be read are not looked at."""
    yield from strays(matrix)
    for name, path in matrix.models().items():
        try:
            yield from checkpoint_of(matrix, matrix.model(name), path)
        except ReleaseError:
            continue
    for name, path in matrix.cell_files().items():
        try:
            file, _ = matrix.cell_file(*name.split("/"))
        except ReleaseError:
            continue
        yield from questions_of(matrix, file, path)


def strays(matrix: Matrix) -> Iterator[MatrixError]:
    """Yield an error for every YAML file in a folder of the matrix that has a name or a place under which nothing is looked for."""
    for folder in matrix.folders:
        for kind, place in PLACES.items():
            for path in sorted((folder / kind).rglob("*")):
                depth = 2 if kind == "cells" else 1
                lies = path.suffix == ".yaml" and len(path.relative_to(folder / kind).parts) == depth
                if path.suffix.lower() in (".yaml", ".yml") and path.is_file() and not lies:
                    yield MatrixError(f"{path}: is read by nobody", next_step=f"such a file lies at {place}")


def checkpoint_of(matrix: Matrix, model: Model, path: Path) -> Iterator[MatrixError]:
    """Yield an error where the folder of a checkpoint, or a file that the model names in it, is not there."""
    said = model.checkpoint.path
    if said is None:
        return
    where = parse.locate(path, "checkpoint", "path")
    folder = next((each / said for each in matrix.folders if (each / said).is_dir()), None)
    if folder is None:
        yield MatrixError(f"{where}: {said} does not exist", next_step=f"put the folder there: {matrix.folders[0] / said}")
        return
    for name in model.checkpoint.files:
        if not (folder / name).is_file():
            here = parse.locate(path, "checkpoint", "files", name)
            yield MatrixError(f"{here}: is not in {folder}", next_step="put it there, or leave it out of the list")


def questions_of(matrix: Matrix, file: CellFile, path: Path) -> Iterator[MatrixError]:
    """Yield an error where the questions or prompts of a cell are not there, or have another digest than the cell says."""
    asked: list[tuple[str, str, str, str]] = []
    if file.accuracy:
        asked.append(("accuracy", "questions", file.accuracy.questions, file.accuracy.sha256))
    asked += [
        ("benchmarks", "questions", each.questions, each.sha256) for each in file.benchmarks if isinstance(each, QuestionSet)
    ]
    if file.consistency:
        asked.append(("consistency", "prompts", file.consistency.prompts, file.consistency.sha256))
    for block, key, name, said in asked:
        try:
            found = digest_of(matrix, name, path, block, key)
        except MatrixError as problem:
            yield problem
            continue
        if found != said:
            here = parse.locate(path, block, "sha256")
            yield MatrixError(f"{here}: {name} is {found}", next_step="look at what changed in it, then write its digest here")
