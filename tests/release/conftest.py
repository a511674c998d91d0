"""What tests of the command line share: a user's own matrix folder, and the real registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from distribution import registry  # noqa: F401

from release.matrix.load import OURS


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """A matrix folder of a user's own, with copies of our chip, model and cell to change."""
    folder = tmp_path / "matrix"
    for name in ("chips/cpu.yaml", "models/tiny-qwq.yaml", "cells/cpu/tiny-qwq.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(OURS / name, folder / name)
    return folder
