"""Whether what the matrix names is there: questions, checkpoints, and no file where nothing looks for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from folders import CELL, write

from release.matrix.load import Matrix
from release.matrix.sound import unsound

QUESTIONS = "{}\n"


def whole(tmp_path: Path, **more: str) -> Path:
    """Write a matrix that lacks nothing; `more` are further files by path."""
    cell = CELL.replace("c" * 64, hashlib.sha256(QUESTIONS.encode()).hexdigest())
    files = {"cells/abacus/pebble-7b.yaml": cell, "questions/few.jsonl": QUESTIONS, "checkpoints/pebble/model.safetensors": ""}
    return write(tmp_path, {**files, **more})


def said(folder: Path) -> list[str]:
    return [f"{each} → {each.next_step}" for each in unsound(Matrix((folder,)))]


def test_our_own_matrix_names_nothing_that_is_not_there() -> None:
    assert list(unsound(Matrix())) == []


def test_a_matrix_that_lacks_nothing_is_sound(tmp_path: Path) -> None:
    assert said(whole(tmp_path)) == []


def test_questions_that_are_not_there_or_not_the_pinned_ones_are_told_with_their_line(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    (folder / "questions/few.jsonl").write_text("{}\n{}\n")
    (problem,) = said(folder)
    assert "pebble-7b.yaml:11: accuracy.sha256: questions/few.jsonl is sha256:" in problem
    (folder / "questions/few.jsonl").unlink()
    (problem,) = said(folder)
    assert "pebble-7b.yaml:10: accuracy.questions: matrix file questions/few.jsonl does not exist" in problem


def test_a_checkpoint_that_is_not_there_is_told_with_the_folder_to_put_there(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    (folder / "checkpoints/pebble/model.safetensors").unlink()
    (problem,) = said(folder)
    assert "pebble-7b.yaml:22: checkpoint.files.model.safetensors: is not in" in problem
    (folder / "checkpoints/pebble").rmdir()
    (problem,) = said(folder)
    assert "pebble-7b.yaml:20: checkpoint.path: checkpoints/pebble does not exist" in problem
    assert problem.endswith(f"put the folder there: {folder / 'checkpoints/pebble'}")


def test_files_in_places_where_nothing_looks_for_them_are_named(tmp_path: Path) -> None:
    strays = (
        "cells/stray.yaml",
        "cells/abacus/deep/stray.yaml",
        "cells/abacus/pebble-7b.yml",
        "chips/abacus.yml",
        "models/a/b.yaml",
    )
    folder = whole(tmp_path, **dict.fromkeys(strays, "a: b\n"), **{"chips/README.md": "words"})
    assert sorted(problem.partition(": ")[0] for problem in said(folder)) == sorted(str(folder / stray) for stray in strays)
    assert all("such a file lies at " in problem for problem in said(folder))
