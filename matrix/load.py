"""The matrix of one user: our folder, overlaid by theirs; chips, models, benchmarks and cells by id, and data files by path."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Final, TypeVar

from release.errors import MatrixError, UsageError
from release.matrix import parse
from release.types import PRECISIONS, Benchmark, CellFile, Chip, Frozen, Model, Precision, split_cell
from release.types.consistency import Limits, Tolerances

OURS: Final = Path(__file__).parent

F = TypeVar("F", bound=Frozen)


class Matrix:
    """Chips, models and cells from a list of folders; a file in a later folder replaces one of the same name in an earlier one."""

    def __init__(self, overlays: tuple[Path, ...] = ()) -> None:
        for overlay in overlays:
            if not overlay.is_dir():
                raise UsageError(f"the matrix folder {overlay} does not exist")
        self.folders = (*reversed(overlays), OURS)

    def chips(self) -> dict[str, Path]:
        """Return the files of all chips by id, as they were when they were first asked for."""
        return self._chips

    def models(self) -> dict[str, Path]:
        """Return the files of all models by id, as they were when they were first asked for."""
        return self._models

    def cell_files(self) -> dict[str, Path]:
        """Return the files of all cells by `chip/model`, as they were when they were first asked for."""
        return self._cell_files

    def benchmarks(self) -> dict[str, Path]:
        """Return the files of all benchmarks by id, as they were when they were first asked for."""
        return self._benchmarks

    @cached_property
    def _chips(self) -> dict[str, Path]:
        return self._named("chips")

    @cached_property
    def _models(self) -> dict[str, Path]:
        return self._named("models")

    @cached_property
    def _benchmarks(self) -> dict[str, Path]:
        return self._named("benchmarks")

    @cached_property
    def _cell_files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in reversed(self.folders):
            for path in sorted((folder / "cells").glob("*/*.yaml")):
                found[f"{path.parent.name}/{path.stem}"] = path
        return found

    def chip(self, name: str) -> Chip:
        """Return a chip. Raises UsageError naming the near misses."""
        chip = _read(self._one("chip", name, self.chips()), Chip)
        self._same_id(chip.id, name, self.chips()[name])
        return chip

    def model(self, name: str) -> Model:
        """Return a model. Raises UsageError naming the near misses."""
        model = _read(self._one("model", name, self.models()), Model)
        self._same_id(model.id, name, self.models()[name])
        return model

    def benchmark(self, name: str) -> Benchmark:
        """Return a benchmark. Raises UsageError naming the near misses."""
        benchmark = _read(self._one("benchmark", name, self.benchmarks()), Benchmark)
        self._same_id(benchmark.id, name, self.benchmarks()[name])
        return benchmark

    def cell_file(self, chip: str, model: str) -> tuple[CellFile, Path]:
        """Return the cell file of chip × model and its path. Raises UsageError where there is none, naming what there is."""
        files = self.cell_files()
        name = f"{chip}/{model}"
        if name not in files:
            self.chip(chip), self.model(model)
            offered = [cell for cell in files if cell.split("/")[0] == chip] or list(files)
            raise UsageError(
                f"there is no cell {name}{parse.near(name, files)}",
                next_step=f"there are: {', '.join(sorted(offered))}; or add matrix/cells/{name}.yaml",
            )
        cell = _read(files[name], CellFile)
        if (cell.chip, cell.model) != (chip, model):
            raise MatrixError(
                f"{parse.locate(files[name], 'model' if cell.chip == chip else 'chip')}: "
                f"the file says {cell.chip}/{cell.model}, its place says {name}"
            )
        for arm in cell.cells:
            if not is_cell(f"{name}@{arm}"):
                raise MatrixError(
                    f"{parse.locate(files[name], 'cells', arm)}: is neither a precision nor precision~variant",
                    next_step=f"the precisions are {', '.join(PRECISIONS)}",
                )
        return cell, files[name]

    def cells(self) -> Iterator[tuple[str, CellFile]]:
        """Yield every cell id with the file that it stands in."""
        for name in self.cell_files():
            chip, _, model = name.partition("/")
            cell, _ = self.cell_file(chip, model)
            for arm in cell.cells:
                yield f"{name}@{arm}", cell

    def limits(self, precision: Precision) -> Limits:
        """Return how far a candidate of a precision may be from its reference. Raises MatrixError where the file does not say."""
        path = self.file("consistency.yaml")
        found = _read(path, Tolerances).precisions
        if precision not in found:
            raise MatrixError(f"{path}: precisions: does not say {precision}", next_step="say it there, or in the cell's limits")
        return found[precision]

    def file(self, relative: str) -> Path:
        """Return a data file (questions, checkpoint, pins). Raises MatrixError where no folder has it."""
        for folder in self.folders:
            if (folder / relative).exists():
                return folder / relative
        raise MatrixError(f"matrix file {relative} does not exist", next_step=f"looked in {', '.join(map(str, self.folders))}")

    def _named(self, kind: str) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in reversed(self.folders):
            for path in sorted((folder / kind).glob("*.yaml")):
                found[path.stem] = path
        return found

    @staticmethod
    def _one(kind: str, name: str, known: dict[str, Path]) -> Path:
        if name not in known:
            raise UsageError(
                f"there is no {kind} {name!r}{parse.near(name, known)}",
                next_step=f"there are: {', '.join(sorted(known)) or 'none'}",
            )
        return known[name]

    @staticmethod
    def _same_id(said: str, name: str, path: Path) -> None:
        if said != name:
            raise MatrixError(f"{parse.locate(path, 'id')}: is {said!r}, the file's name says {name!r}")


def _read(path: Path, kind: type[F]) -> F:
    """Return the file as a `kind`, parsed once for each state of the file."""
    try:
        facts = path.stat()
    except OSError as problem:
        raise MatrixError(f"{path}: cannot be read: {problem.strerror}") from problem
    found = _read_once(path, kind, (facts.st_mtime_ns, facts.st_size))
    assert isinstance(found, kind)
    return found


@cache
def _read_once(path: Path, kind: type[Frozen], stamp: tuple[int, int]) -> Frozen:
    return parse.read(path, kind)


def is_cell(name: str) -> bool:
    """Say whether `name` has the form of a cell id."""
    try:
        split_cell(name)
    except ValueError:
        return False
    return True


def split(cell: str) -> tuple[str, str, str]:
    """Return chip, model and arm (`bf16`, `bf16~native`) of a cell id. Raises UsageError for anything else."""
    try:
        return split_cell(cell)
    except ValueError as problem:
        raise UsageError(str(problem), next_step="write chip/model@precision~variant, as in cpu/tiny-qwq@bf16") from problem
