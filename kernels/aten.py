"""FlagGems in the place of ATen's operators: its own switch, `flag_gems.enable`, with our lists, and the record that it keeps of its calls.

FlagGems (5.0.2) registers its functions for ATen's operators on the device, and with `record` writes a line where one is called:
`[DEBUG] flag_gems.ops.softmax.softmax: GEMS SOFTMAX`, once for each place in its code (`once`). That it is registered says nothing.

The line names a logger and a function. A chip's own functions are imported under another name than their logger has (`hopper.ops.mm`
logs as `flag_gems.runtime.backend.VENDOR.hopper.ops.mm`), and loggers outside of `flag_gems` reach no record at all: so the process that
registers a function writes down as what its calls would be recorded, and where they would not be, nobody can say whether it served.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from .registry import meant, overrides

SCHEMA: Final = "release-flaggems-registered/2"
LINE: Final = re.compile(r"\[DEBUG\] (flag_gems(?:\.\w{1,80}){1,12}): ")
NAME: Final = re.compile(r"[A-Za-z_][\w.]{0,200}")
MOST_BYTES: Final = 16 << 20
"""Bytes that are read of a record or a table; one line for each place in FlagGems' code is a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Served:
    """What FlagGems' records say of ATen's operators, by the names that a profile has for them: `aten::mm` for `mm` and `mm.out`.

    `operators` were served at least once; of `unrecorded` no call can be recorded; `lost` are processes whose record is not there.
    """

    operators: frozenset[str]
    unrecorded: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()


def enable(environment: Mapping[str, str], folder: Path | None) -> int:
    """Let FlagGems serve ATen's operators in this process, and return how many it took of those that this torch has.

    `folder` gets `flaggems-PID.txt`, its own record, and `flaggems-PID.json`, as what a call of each of ATen's operators is recorded there.
    Raises ValueError for a function that FlagGems does not have, and what FlagGems itself raises where it cannot run.
    """
    import flag_gems

    include, exclude = overrides(environment)
    known = flag_gems.FULL_CONFIG_BY_FUNC
    for name in sorted({*(include or ()), *exclude} - set(known)):
        raise ValueError(
            f"neither we nor FlagGems {flag_gems.__version__} have an operator {name!r}; {meant(name, tuple(known))}"
        )
    if include is not None and not include:
        return 0
    kept: dict[str, Any] = {}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / f"flaggems-{os.getpid()}.json"
        for path in (table, table.with_suffix(".txt")):
            path.open("a").close()  # what cannot be recorded raises before anything is registered, and not behind it
        kept = {"record": True, "once": True, "path": str(table.with_suffix(".txt"))}
    if include is None:
        flag_gems.enable(unused=list(exclude), **kept)
    else:
        flag_gems.only_enable(include=list(include), **kept)
    taken = set(flag_gems.all_registered_keys())
    functions = {key: logged_as(one) for key, one in flag_gems.current_work_registrar.config if key in taken and _exists(key)}
    if folder:
        document = {"schema": SCHEMA, "version": flag_gems.__version__, "functions": functions}
        table.write_text(json.dumps(document), encoding="utf-8")
    return len(functions)


def logged_as(function: Callable[..., Any]) -> str | None:
    """Return the name that a record has for calls of a function of FlagGems; None where we cannot tell its calls in one.

    That is so where its module's logger is no child of `flag_gems`, and where no function in its module logs that it comes to: some of
    FlagGems' log in a class of autograd's or in another module.
    """
    inner = inspect.unwrap(function)
    logger = getattr(inner, "__globals__", {}).get("logger")
    if not isinstance(logger, logging.Logger) or not logger.name.startswith("flag_gems.") or not _logs(inner, set()):
        return None
    return f"{logger.name}.{inner.__name__}"


def _logs(function: FunctionType, seen: set[str]) -> bool:
    names = set(function.__code__.co_names)
    inside = [found for name in names - seen if isinstance(found := function.__globals__.get(name), FunctionType)]
    seen |= names
    return "logger" in names or any(_logs(one, seen) for one in inside if one.__globals__ is function.__globals__)


def _exists(key: str) -> bool:
    """Return whether this torch has ATen's operator `mm` or `mm.out`: one that it lacks can be registered, and is never called."""
    import torch

    name, _, overload = key.partition(".")
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and (overload or "default") in packet.overloads()


def read_served(folder: Path) -> Served | None:
    """Return what FlagGems recorded in all processes of a server; None where it was not enabled.

    Raises ValueError for a file that is no such record.
    """
    processes = [_of_process(table) for table in sorted(folder.glob("flaggems-*.json"))]
    return together(processes) if processes else None


def _of_process(table: Path) -> Served:
    functions, record = _functions(table), table.with_suffix(".txt")
    called = set(LINE.findall(_text(record))) if record.is_file() else set()
    return Served(
        frozenset(map(_named, covered(functions, called))),
        frozenset(_named(key) for key, logged in functions.items() if logged is None),
        () if record.is_file() else (record.name,),
    )


def together(several: Iterable[Served]) -> Served:
    """Return what several records say, of processes or of folders: what one of them served is no longer unrecorded."""
    found = tuple(several)
    operators = frozenset[str]().union(*(one.operators for one in found))
    unrecorded = frozenset[str]().union(*(one.unrecorded for one in found))
    return Served(operators, unrecorded - operators, tuple(name for one in found for name in one.lost))


def covered(functions: Mapping[str, str | None], called: Collection[str]) -> set[str]:
    """Return the operators whose function was called, or a helper in its module that stands for no operator (`mm`'s `general_mm`).

    A helper counts where all operators of its module have one name in a profile: else nobody can say for which of them it was called.
    """
    served = {key for key, logged in functions.items() if logged in called}
    modules: dict[str, set[str]] = defaultdict(set)
    for key, logged in functions.items():
        if logged:
            modules[logged.rpartition(".")[0]].add(key)
    for helper in set(called) - set(functions.values()):
        keys = modules.get(helper.rpartition(".")[0], set())
        if len({_named(key) for key in keys}) == 1:
            served |= keys
    return served


def _named(key: str) -> str:
    """Return the name that a profile has for an operator, whatever its overload."""
    return f"aten::{key.partition('.')[0]}"


def _functions(table: Path) -> dict[str, str | None]:
    try:
        document = json.loads(_text(table))
        functions = document["functions"] if isinstance(document, dict) and document.get("schema") == SCHEMA else None
        if not isinstance(functions, dict) or not all(
            NAME.fullmatch(key) and (logged is None or NAME.fullmatch(str(logged))) for key, logged in functions.items()
        ):
            raise ValueError(f"its schema is not {SCHEMA}")
    except (KeyError, RecursionError, ValueError) as problem:
        raise ValueError(f"{table.name} is no table of FlagGems' functions: {problem!s:.200}") from problem
    return functions


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has more than {MOST_BYTES >> 20} MiB")
    return path.read_text(encoding="utf-8", errors="replace")
