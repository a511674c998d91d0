"""FlagGems in the place of ATen's operators: its own switch, `flag_gems.enable`, with our lists, and the record that it keeps of its calls.

FlagGems (5.0.2) registers its functions for ATen's operators on the device, and with `record` writes a line where one is called:
`[DEBUG] flag_gems.ops.softmax.softmax: GEMS SOFTMAX`, once for each place in its code (`once`). That it is registered says nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from .registry import meant, overrides

SCHEMA: Final = "release-flaggems-registered/1"
LINE: Final = re.compile(r"\[DEBUG\] (flag_gems(?:\.\w{1,80}){1,12}): ")
NAME: Final = re.compile(r"[A-Za-z_][\w.]{0,200}")
MOST_BYTES: Final = 16 << 20
"""Bytes that are read of a record or a table; one line for each place in FlagGems' code is a hundredth of it."""


def enable(environment: Mapping[str, str], folder: Path | None) -> int:
    """Let FlagGems serve ATen's operators in this process, and return how many of them it took.

    `folder` gets `flaggems-PID.txt`, its own record, and `flaggems-PID.json`, which of ATen's operators it registered which function for.
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
        kept = {"record": True, "once": True, "path": str(folder / f"flaggems-{os.getpid()}.txt")}
    if include is None:
        flag_gems.enable(unused=list(exclude), **kept)
    else:
        flag_gems.only_enable(include=list(include), **kept)
    taken = set(flag_gems.all_registered_keys())
    functions = {key: f"{one.__module__}.{one.__name__}" for key, one in flag_gems.current_work_registrar.config if key in taken}
    if folder:
        document = {"schema": SCHEMA, "version": flag_gems.__version__, "functions": functions}
        (folder / f"flaggems-{os.getpid()}.json").write_text(json.dumps(document), encoding="utf-8")
    return len(functions)


def read_served(folder: Path) -> frozenset[str] | None:
    """Return ATen's operators, as a profile names them (`aten::mm`), that FlagGems recorded to have served in any process of a server.

    None where it was not enabled. Raises ValueError for a file that is no such record.
    """
    tables = sorted(folder.glob("flaggems-*.json"))
    served: set[str] = set()
    for table in tables:
        record = table.with_suffix(".txt")
        called = set(LINE.findall(_text(record))) if record.is_file() else set()
        served |= {f"aten::{key.partition('.')[0]}" for key in covered(_functions(table), called)}
    return frozenset(served) if tables else None


def covered(functions: Mapping[str, str], called: Collection[str]) -> Iterable[str]:
    """Yield the operators whose registered function was called, or a helper in its module, registered for none (`mm`'s `general_mm`)."""
    helpers = {one.rpartition(".")[0] for one in called if one not in set(functions.values())}
    return (key for key, function in functions.items() if function in called or function.rpartition(".")[0] in helpers)


def _functions(table: Path) -> dict[str, str]:
    try:
        document = json.loads(_text(table))
        functions = document["functions"] if isinstance(document, dict) and document.get("schema") == SCHEMA else None
        if not isinstance(functions, dict) or not all(NAME.fullmatch(str(word)) for pair in functions.items() for word in pair):
            raise ValueError(f"its schema is not {SCHEMA}")
    except (KeyError, RecursionError, ValueError) as problem:
        raise ValueError(f"{table.name} is no table of FlagGems' functions: {problem!s:.200}") from problem
    return functions


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has more than {MOST_BYTES >> 20} MiB")
    return path.read_text(encoding="utf-8", errors="replace")
