"""New files of a matrix to start from: a chip's from what the host's own tool says, a model's from its config.json, a cell's from both."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Final

from release.errors import UsageError
from release.hardware import Found, probe
from release.matrix.load import Matrix
from release.matrix.scaffold import model_facts
from release.store import write_whole
from release.templates.render import render
from release.types import PRECISIONS, SLUG, Tool

MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def new_chip(matrix: Matrix, name: str, into: Path, *, force: bool = False) -> tuple[Path, str]:
    """Write chips/NAME.yaml and return it with what was found: the first tool of a known chip that answers on this host fills it in."""
    _stands_alone(matrix.chips(), name, into / f"chips/{name}.yaml", force=force)
    found, tool, vendor = _here(matrix)
    values: dict[str, Any] = {
        "device": found.devices[0] if found and found.devices else None,
        "memory": found.gib if found else None,
        "count": len(found.devices) if found else None,
        "driver": found.driver if found else None,
        "vendor": vendor,
        "tool": list(tool.command) if tool else [],
        "patterns": {part: getattr(tool, part) for part in ("driver", "device", "memory")} if tool else {},
        "architecture": MACHINES.get(platform.machine(), "amd64"),
        "precisions": PRECISIONS,
    }
    said = f"{found.tool} shows {len(found.devices)} devices" if found else "no tool of a known chip answered here"
    return _write(into, f"chips/{name}.yaml", "new/chip.yaml.j2", name, values), said


def new_model(matrix: Matrix, name: str, folder: Path | None, into: Path, *, force: bool = False) -> tuple[Path, str]:
    """Write models/NAME.yaml and return it with what was found: the architecture of config.json in `folder`, and every file's digest."""
    _stands_alone(matrix.models(), name, into / f"models/{name}.yaml", force=force)
    facts = model_facts(folder) if folder else {"architecture": _blank(), "precision": "bf16", "files": {}}
    values = {**facts, "title": name, "blank": folder is None, "family": name.split("-", maxsplit=1)[0]}
    said = (
        f"{len(facts['files'])} files of {folder}"
        if folder
        else "every figure is to be written: give --from FOLDER for its config.json"
    )
    return _write(into, f"models/{name}.yaml", "new/model.yaml.j2", name, values), said


def new_cell(matrix: Matrix, name: str, into: Path, *, force: bool = False) -> tuple[Path, str]:
    """Write cells/CHIP/MODEL.yaml for `name`, which is CHIP/MODEL, and return it with the precisions that it offers."""
    from release.builders.engines import ENGINES

    chip_id, _, model_id = name.partition("/")
    if not chip_id or not model_id or "/" in model_id:
        raise UsageError(f"{name!r} is not CHIP/MODEL", next_step="as in: release new cell cpu/tiny-qwq")
    _stands_alone(matrix.cell_files(), name, into / f"cells/{name}.yaml", force=force)
    chip, model = matrix.chip(chip_id), matrix.model(model_id)
    wanted = [precision for precision in chip.precisions if precision == model.precision] or [chip.precisions[0]]
    values = {"chip": chip.id, "model": model.id, "engines": list(ENGINES), "precisions": wanted}
    return _write(into, f"cells/{chip.id}/{model.id}.yaml", "new/cell.yaml.j2", model.id, values), f"offers {', '.join(wanted)}"


def _here(matrix: Matrix) -> tuple[Found | None, Tool | None, str]:
    for known in matrix.chips():
        chip = matrix.chip(known)
        if chip.host.tool and (found := probe(chip.host.tool)) and found.devices:
            return found, chip.host.tool, chip.vendor
    return None, None, "unknown"


def _blank() -> dict[str, Any]:
    names = ("layers", "hidden", "intermediate", "heads", "kv-heads", "head-dim", "vocabulary", "context")
    return {"class": "", **dict.fromkeys(names, 0)}


def _stands_alone(known: dict[str, Path], name: str, path: Path, *, force: bool) -> None:
    """Raise UsageError where a new file would go before another of the same name, unless that is wanted."""
    if not force and name in known and known[name].resolve() != path.resolve():
        raise UsageError(
            f"{name} is there already: {known[name]}, and {path} would go before it",
            next_step="take another name, or --force to replace it in your matrix",
        )


def _write(into: Path, relative: str, template: str, name: str, values: dict[str, Any]) -> Path:
    if not SLUG.fullmatch(name):
        raise UsageError(f"{name!r} is no id", next_step="ids are lower case: letters, digits, and - . _ between them")
    path = into / relative
    if path.exists():
        raise UsageError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(template, {"name": name, **values}))
    return path
