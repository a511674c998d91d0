"""How kernels are cut: block sizes, warps and stages by operator and chip, read from data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("configurations.json")
CHIP: Final = "RELEASE_KERNELS_CHIP"
"""Environment variable that names the chip whose configurations hold."""


@cache
def table() -> dict[str, dict[str, Any]]:
    """Return the file: for each operator its `default`, what is worth `trying`, and under `chips` what a chip has instead."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def configuration(operator: str, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the configuration of an operator: its default, over it the chip's that RELEASE_KERNELS_CHIP names, over it what is given."""
    entry = table()[operator]
    return {**entry["default"], **entry.get("chips", {}).get(os.environ.get(CHIP, ""), {}), **(given or {})}


def candidates(operator: str) -> list[dict[str, int]]:
    """Return the configurations worth trying on a device, the one that holds now first."""
    now = configuration(operator)
    return [now, *({**now, **other} for other in table()[operator].get("trying", []) if {**now, **other} != now)]
