"""Pythons for the kernels that lack something, made of the one that runs the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

LACKING: Final = [("-S", "", "torch cannot be imported"), ("", "2.1.0", "triton is 2.1.0, and these kernels need 3.2")]
"""A flag of Python, the version of a triton that stands before the real one, and what is said of the Python with both."""


def lacking(folder: Path, flag: str, version: str) -> Path:
    """Write a Python into a folder that starts with a flag and finds a triton of a version first, and return it."""
    (folder / "triton").mkdir()
    (folder / "triton" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}:$PYTHONPATH" exec {sys.executable} {flag} "$@"\n')
    python.chmod(0o755)
    return python
