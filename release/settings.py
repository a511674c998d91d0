"""What a user writes into `release.toml`, once, instead of options on every command line."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.errors import UsageError

NAME: Final = "release.toml"
KEYS: Final = ("matrix", "store", "engine", "hosts")


@dataclass(frozen=True)
class Settings:
    """Matrix folders (the first goes before the others), store, kind of container engine, file of hosts; None where nothing is said."""

    matrix: tuple[Path, ...] = ()
    store: Path | None = None
    engine: str | None = None
    hosts: Path | None = None


def settings(start: Path) -> Settings:
    """Return what the nearest release.toml in `start` or above it says; paths in it are relative to it. Raises UsageError for a wrong one."""
    for folder in (start, *start.parents):
        if (file := folder / NAME).is_file():
            return _read(file)
    return Settings()


def _read(file: Path) -> Settings:
    try:
        said = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise UsageError(f"{file}: {problem}") from problem
    for key in said:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(f"{file}: {key}: unknown key{hint}", next_step=f"the keys are {', '.join(KEYS)}")
    folders = said.get("matrix", [])
    folders = [folders] if isinstance(folders, str) else folders
    store, engine, hosts = said.get("store"), said.get("engine"), said.get("hosts")
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UsageError(f"{file}: matrix: is neither a folder nor a list of folders")
    if not isinstance(hosts, str | None):
        raise UsageError(f"{file}: hosts is a file")
    if not isinstance(store, str | None) or engine not in (None, "auto", "docker", "podman"):
        raise UsageError(f"{file}: store is a folder; engine is auto, docker or podman")
    return Settings(
        tuple(file.parent / folder for folder in folders),
        file.parent / store if store else None,
        engine,
        file.parent / hosts if hosts else None,
    )
