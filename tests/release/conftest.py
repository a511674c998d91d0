"""What tests of the command line share: a user's own matrix folder, the real registry, and one real build for all that look at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import CELL, Answer, release
from distribution import registry  # noqa: F401

from release.containers import Engine, connect
from release.matrix.load import OURS


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """A matrix folder of a user's own, with copies of our chip, model and cell to change."""
    folder = tmp_path / "matrix"
    for name in ("chips/cpu.yaml", "models/tiny-qwq.yaml", "cells/cpu/tiny-qwq.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(OURS / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nobody has used."""
    return Path(os.environ.get("RELEASE_TEST_STORE") or tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="session")
def built(store: Path, place: Path) -> Answer:
    """The cell, built once for all tests."""
    answer = release("--engine", "docker", "build", *CELL, "--json", store=store, cwd=place)
    assert answer.status == 0, answer.err
    return answer


@pytest.fixture(scope="session")
def folder(built: Answer, place: Path) -> Path:
    return place / "dist" / "cpu" / "tiny-qwq" / "bf16"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with connect("docker") as answering:
        yield answering
