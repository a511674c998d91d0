"""Which implementations an operator has, and which of them the environment asks for: ours, FlagGems' or the engine's own."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

SWITCH: Final = "RELEASE_OPERATORS"
INCLUDE: Final = "RELEASE_OPERATORS_INCLUDE"
EXCLUDE: Final = "RELEASE_OPERATORS_EXCLUDE"
CHIP: Final = "RELEASE_KERNELS_CHIP"
"""Environment variables: whose operators, only these, not these (by comma), and the chip that they run on."""
NATIVE: Final = "native"
LIBRARIES: Final = ("ours", "flaggems", NATIVE)
EVERY: Final = "*"
MOST_NAMED: Final = 20
TOGETHER: Final = ("int8-per-token", "w8a8-matmul")
"""Operators of one layer, which are replaced together or not at all."""
UNREACHED: Final = "no layer took it: this engine has none, or another plugin's stands there"


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an operator: the modules it needs, the chips and dtypes it is for (`*`: all)."""

    needs: tuple[str, ...]
    chips: tuple[str, ...]
    dtypes: tuple[str, ...]

    def takes(self, dtype: str) -> bool:
        """Say whether it computes in a dtype, named as torch names it."""
        return EVERY in self.dtypes or dtype in self.dtypes


@dataclass(frozen=True, slots=True)
class Choice:
    """What an operator gets: a library, and why, where that is not the one asked for, or how it runs."""

    operator: str
    library: str
    reason: str = ""


@cache
def registry() -> Mapping[str, Mapping[str, Implementation]]:
    """Return the implementations of each operator that an engine's layers are replaced by, by library."""
    return {
        operator: {
            library: Implementation(**{name: tuple(values) for name, values in facts.items()})
            for library, facts in row["libraries"].items()
        }
        for operator, row in _table().items()
        if "libraries" in row
    }


@cache
def seams() -> Mapping[str, str]:
    """Return by operator the place of the engine at which another one can stand in: `vLLM 0.32`'s own name of it."""
    return {operator: str(row["seam"]) for operator, row in _table().items() if "seam" in row}


@cache
def beyond() -> Mapping[str, str]:
    """Return the operators of the room that the switch does not reach in the engine, each with the reason."""
    return {operator: str(row["why"]) for operator, row in _table().items() if "why" in row}


@cache
def _functions() -> Mapping[str, tuple[str, ...]]:
    """Return by operator FlagGems' functions that serve it through ATen, where it has any and no layer is needed."""
    return {operator: tuple(row.get("flaggems", ())) for operator, row in _table().items()}


def overrides(environment: Mapping[str, str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return which functions of FlagGems may serve ATen's operators: only the first (None: all that there are), and none of the second.

    An operator of ours stands for the functions that compute it; any other name is a function's, as FlagGems spells it.
    """
    include, exclude = (
        {function for name in _listed(environment, variable) for function in _functions().get(name.replace("_", "-"), (name,))}
        for variable in (INCLUDE, EXCLUDE)
    )
    return (tuple(sorted(include - exclude)) if _listed(environment, INCLUDE) else None), tuple(sorted(exclude))


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("registry.json").read_bytes())
    return table


def choices(environment: Mapping[str, str], missing: Mapping[str, str]) -> tuple[Choice, ...]:
    """Return what every operator of the registry gets.

    `missing` maps a module (`triton`, `flag_gems`) to the reason why it cannot be used here. Nothing asked for is native. An operator that
    cannot have what is asked for is native, with the reason. Raises ValueError for a library or an operator that does not exist.
    """
    library = environment.get(SWITCH, NATIVE).strip().lower() or NATIVE
    if library not in LIBRARIES:
        raise ValueError(f"{SWITCH}={library!r}: {meant(library, LIBRARIES)}")
    include, exclude = (_named(environment, variable, library) for variable in (INCLUDE, EXCLUDE))
    found = [_choice(operator, library, include, exclude, environment.get(CHIP, ""), missing) for operator in registry()]
    apart = next((choice.operator for choice in found if choice.operator in TOGETHER and choice.library == NATIVE), "")
    return tuple(_native(one, f"goes with {apart}") if apart and one.operator in TOGETHER else one for one in found)


def reached(chosen: Iterable[Choice], layers: Collection[str]) -> tuple[Choice, ...]:
    """Return what operators get of which `layers` lists those whose layer was replaced: all others are native, whatever was chosen."""
    return tuple(one if one.operator in layers else _native(one, UNREACHED) for one in chosen)


def _native(choice: Choice, reason: str) -> Choice:
    """Return the engine's own in place of what was chosen; what is native already keeps its reason."""
    return choice if choice.library == NATIVE else Choice(choice.operator, NATIVE, reason)


def _choice(operator: str, library: str, include: set[str], exclude: set[str], chip: str, missing: Mapping[str, str]) -> Choice:
    found = registry()[operator].get(library)
    if library == NATIVE:
        return Choice(operator, NATIVE)
    if operator in exclude or (include and operator not in include):
        return Choice(operator, NATIVE, "excluded" if operator in exclude else "not included")
    if found is None:
        return Choice(operator, NATIVE, f"none of {library} is bound here")
    if chip and EVERY not in found.chips and chip not in found.chips:
        return Choice(operator, NATIVE, f"{library}'s is not for {chip}")
    lacking = next((missing[module] for module in found.needs if module in missing), "")
    return Choice(operator, NATIVE, lacking) if lacking else Choice(operator, library)


def _listed(environment: Mapping[str, str], variable: str) -> list[str]:
    return [name.strip() for name in environment.get(variable, "").split(",") if name.strip()]


def _named(environment: Mapping[str, str], variable: str, library: str) -> set[str]:
    """Return the operators of layers that a variable names; FlagGems' spelling with `_` is as good as ours.

    Of FlagGems it may name others too, which serve ATen's operators: `overrides` has them.
    """
    names = {name.replace("_", "-") for name in _listed(environment, variable)}
    for name in sorted(names - set(registry())):
        if library == "flaggems" and (name not in beyond() or _functions()[name]):
            continue
        if name in beyond():
            raise ValueError(f"{variable}: the switch does not reach {name}: {beyond()[name]}")
        raise ValueError(f"{variable}: there is no operator {name!r}; {meant(name, tuple(registry()))}")
    return names


def meant(name: str, known: tuple[str, ...]) -> str:
    """Return what was probably meant by a name that is not known, or the first of those that are."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known[:MOST_NAMED])}"
