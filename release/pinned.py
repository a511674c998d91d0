"""What an earlier release of a cell was pinned to: read from its record or its lock, in a file, a folder, an OCI layout or a registry."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from release.errors import ReleaseError, UsageError
from release.house import House
from release.pins import Pin, Pins, pins_of
from release.supply import matrix_patches
from release.types import JSON, Plan, dump, tuples

FIELDS: Final = ("base", "sources", "packages", "weights")
"""What pins are read from, beside the model's checkpoint and the wheels."""
LARGEST: Final = 64 << 20
"""Bytes of a record or a lock beyond which it is none."""


def earlier_pins(house: House, plan: Plan, place: str) -> Pins:
    """Return the pins of the release of the plan's cell at `place`: a release.json or lock.json, a folder with one, a layout, a reference.

    A lock's wheels are those of the record beside it, else of the matrix, if the file is still the one that it names. Raises UsageError for
    what is no release of the cell, and where the patches that it was made with lie here no more.
    """
    record, lock = _documents(place)
    try:
        plan_then, patches = _from_lock(plan.cell, lock) if lock else _from_record(plan.cell, record or {})
        document = {**dump(plan), **{name: plan_then[name] for name in FIELDS}}
        document["model"] = {**document["model"], "checkpoint": plan_then["model"]["checkpoint"]}
        document |= {name: plan_then[name] for name in ("wheels", "wheels-sha256") if name in plan_then}
        then = Plan.model_validate(tuples(document))
        _check_patches(house, then, patches, place)
        if record is not None and isinstance(record["pins"]["wheels"], list):
            return dict(pins_of(then.model_copy(update={"wheels": None}), house.matrix)) | _wheels(record)
    except (KeyError, TypeError, AttributeError, ValidationError) as problem:
        raise UsageError(
            f"{place} is no release of {plan.cell}: {_brief(problem)}", next_step="give its release.json"
        ) from problem
    if then.wheels and then.wheels_sha256 != _now(house, then.wheels):
        raise UsageError(
            f"{place} names the wheels of {then.wheels} as they were once, and the file is another now",
            next_step="put the release.json of that release beside its lock: it names each wheel",
        )
    return pins_of(then, house.matrix)


def _now(house: House, path: str) -> str | None:
    from release.oci import sha256_file

    try:
        return sha256_file(house.matrix.file(path))
    except ReleaseError:
        return None


def _documents(place: str) -> tuple[JSON | None, JSON | None]:
    """Return record and lock at a place, what there is of them."""
    path = Path(place)
    if not path.exists():
        return _published(place), None
    if path.is_dir() and (path / "oci-layout").is_file():
        from release.oci import Layout
        from release.publish.listing import laid_out

        return _one(place, [found for _, found in laid_out(Layout.open(path))]), None
    folder = path if path.is_dir() else path.parent
    record, lock = (_read(folder / name) for name in ("release.json", "lock.json"))
    if path.is_file():
        document = _read(path)
        is_lock = isinstance(document, dict) and "stages" in document and "schema" not in document
        record, lock = (record, document) if is_lock else (document, lock if path.name == "release.json" else None)
    if record is None and lock is None:
        raise UsageError(f"{place} holds no release", next_step="give a release.json or lock.json, or a folder that holds one")
    cells = {str(each.get("cell")) for each in (record, lock) if each is not None}
    if len(cells) > 1:
        raise UsageError(f"{place}: record and lock are of different cells: {' and '.join(sorted(cells))}")
    return record, lock


def _published(place: str) -> JSON:
    from release.publish.listing import published
    from release.publish.reference import Reference

    with tempfile.TemporaryDirectory(prefix="release-pins-") as scratch:
        return _one(place, [found for _, found in published(Reference.parse(place), (), date.today(), Path(scratch))])


def _one(place: str, found: list[Any]) -> JSON:
    records: list[JSON] = [each.record for each in found if each is not None]
    if len(records) != 1:
        raise UsageError(f"{place} holds {len(records)} releases, not one", next_step="name one by its tag or digest")
    return records[0]


def _read(path: Path) -> JSON | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST} bytes")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise UsageError(f"{path} cannot be read: {_brief(problem)}") from problem
    if not isinstance(document, dict):
        raise UsageError(f"{path} is neither a record nor a lock")
    return document


def _from_lock(cell: str, lock: JSON) -> tuple[JSON, Mapping[str, list[str]]]:
    _same_cell(cell, lock)
    stages = lock["stages"]
    return stages[f"{cell}: card"]["reads"]["plan"], stages[f"{cell}: unpatch"]["reads"]["patches"]


def _from_record(cell: str, record: JSON) -> tuple[JSON, Mapping[str, list[str]]]:
    _same_cell(cell, record)
    sources = {source["wheel"].split("==")[0]: source["patches"] for source in record["plan"]["sources"] if source.get("wheel")}
    patched = {one["name"]: [patch["sha256"] for patch in one["patches"]] for one in record["pins"]["sources"] or ()}
    patches = {path: patched[name] for name, path in sources.items() if path and name in patched}
    return {**record["plan"], "model": record["model"]}, patches


def _same_cell(cell: str, document: JSON) -> None:
    if document["cell"] != cell:
        raise UsageError(f"that is a release of {str(document['cell'])[:200]}, not of {cell}")


def _wheels(record: JSON) -> dict[Pin, str]:
    from release.builders.wheels import normalised

    return {
        Pin("wheel", normalised(wheel["name"])): f"{wheel['version']} {wheel['sha256']}" for wheel in record["pins"]["wheels"]
    }


def _check_patches(house: House, plan: Plan, then: Mapping[str, list[str]], place: str) -> None:
    """Raise UsageError unless the patch sets lie here as they were: of another state no build can be made again."""
    from release.patches.read import digests

    for source in plan.sources:
        if (path := source.patches) is None:
            continue
        folder = matrix_patches(house.matrix, path)
        if not folder.is_dir() or (path in then and sorted(digests(folder)) != sorted(then[path])):
            raise UsageError(
                f"{place} was made with a patch set {path} that is not the one here",
                next_step="put that one under another name into a matrix folder of yours, and give --matrix",
            )


def _brief(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        first = problem.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
    return f"it has no {problem}" if isinstance(problem, KeyError) else str(problem)[:200]
