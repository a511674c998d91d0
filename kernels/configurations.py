"""How kernels are cut: block sizes, warps and stages by operator, chip, dtype and number of rows, read from data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from .interpreter import interpreted

FILE: Final = Path(__file__).with_name("configurations.json")
CHIP: Final = "RELEASE_KERNELS_CHIP"
"""Environment variable that names the chip whose configurations hold."""
ANYWHERE: Final = "*"
"""The place of configurations for chips and architectures that have none of their own."""


@cache
def table() -> dict[str, dict[str, Any]]:
    """Return the file: for each operator its `default`, what is worth `trying`, and what holds `on` a place instead.

    A place is a chip of the matrix, an architecture as Triton names it (`architecture`), or ANYWHERE. It has a list, of which the first
    entry holds that fits: `rows` is the most rows that it is for, `dtypes` those that it is for, `cut` what it replaces of the default, and
    `tuned` on what that was measured, null where it is a starting point that nobody has measured.
    """
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def configuration(operator: str, given: Mapping[str, int] | None = None, *, rows: int, dtype: object) -> dict[str, int]:
    """Return the configuration of an operator for so many rows of a dtype: its default, over it the place's, over it what is given.

    The chip that RELEASE_KERNELS_CHIP names goes before the architecture of the device, and that before ANYWHERE.
    """
    entry = table()[operator]
    places = entry.get("on", {})
    own = next((places[place] for place in (os.environ.get(CHIP, ""), architecture(), ANYWHERE) if place in places), ())
    name = str(dtype).removeprefix("torch.")
    cut: Mapping[str, int] = next(
        (one["cut"] for one in own if rows <= one.get("rows", rows) and name in one.get("dtypes", (name,))), {}
    )
    return {**entry["default"], **cut, **(given or {})}


def candidates(operator: str, *, rows: int, dtype: object) -> list[dict[str, int]]:
    """Return the configurations worth trying on a device for so many rows of a dtype, the one that holds now first."""
    now = configuration(operator, rows=rows, dtype=dtype)
    others = [{**now, **other} for other in table()[operator].get("trying", [])]
    return [now, *(other for number, other in enumerate(others) if other not in (now, *others[:number]))]


@cache
def architecture() -> str:
    """Return the backend and the architecture of the device as Triton compiles for it, as in `cuda-90`; nothing where there is none."""
    from triton.runtime import driver

    try:
        target = driver.active.get_current_target()
    except RuntimeError:  # no driver is active
        return ""
    return "" if interpreted() else f"{target.backend}-{target.arch}"
