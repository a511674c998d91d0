"""The catalogue of what was released: records from registries, folders and the matrix, laid out as a site of plain files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from release.errors import MatrixError, UsageError, VerificationError

if TYPE_CHECKING:
    from release.house import House
    from release.publish.catalogue import Entry, Found
    from release.publish.keys import Public
    from release.publish.site import Picture, Site

DEEPEST: Final = 6
"""Folders below a folder that is looked through for releases."""
LARGEST: Final = 4 << 20
"""Bytes of a record, of a list of references, or of an old catalogue, beyond which it is none."""
CATALOGUE: Final = "catalogue.json"
INSIDE: Final = ("blobs", "evidence", "weights", "model")
"""Folders of a release that hold no other release."""

LeftOut = tuple[str, str]


@dataclass(frozen=True)
class Laid:
    """What was written: the folder, how many releases it shows and of how many cells, its bytes, and what was left out, and why."""

    folder: Path
    releases: int
    cells: int
    files: int
    bytes: int
    left_out: tuple[LeftOut, ...]


def lay_site(
    places: Sequence[str],
    to: Path,
    site: Site,
    *,
    house: House,
    keys: Sequence[Path] = (),
    day: date | None = None,
    planned: bool = False,
) -> Laid:
    """Write the site of the releases at `places` into a folder: references, repositories, folders, files that list such, and
    `HOST/NAMESPACE/*` for the repositories of all cells of the matrix.

    With `planned`, cells of the matrix which no record speaks of are shown as planned. With `keys`, what is published is looked at as
    `release verify` does. Raises UsageError for a folder that holds something else or a place that is none, VerificationError where something
    is not what its digest or signature says; then nothing is written.
    """
    from release.publish.catalogue import catalogue, entry_of
    from release.publish.keys import read_public
    from release.publish.site import render_site

    old = _known_files(to)
    public = [read_public(path) for path in keys]
    found: list[Found] = []
    left_out: list[LeftOut] = []
    with tempfile.TemporaryDirectory(prefix="release-site-") as scratch:
        for number, place in enumerate(_places(places, house)):
            for where, one in _found(place, public, day or date.today(), Path(scratch) / str(number)):
                try:
                    if one is None:
                        raise VerificationError("it is no release")
                    entry_of(one)
                    found.append(one)
                except VerificationError as problem:
                    left_out.append((where, str(problem)))
    if planned:
        found += _planned(house, {one.record["cell"] for one in found})
    entries = catalogue(found, day)
    files = render_site(entries, _pictures(entries), sorted(set(left_out)), site)
    _write(to, files, old)
    document = json.loads(files[CATALOGUE])
    told = tuple((one["place"], one["reason"]) for one in document["left-out"])
    shown = document["releases"]
    cells = sum(one["newest"] for one in shown)
    return Laid(to, len(shown), cells, len(files), sum(map(len, files.values())), told)


def address_of(text: str) -> str:
    """Return the address that a site will have, with a slash at its end. Raises UsageError for anything but http and https."""
    try:
        parts = urlsplit(text)
        sound = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:
        sound = False
    if text and (not sound or any(sign.isspace() or not sign.isprintable() for sign in text)):
        raise UsageError(f"{text!r:.200} is no address of a site", next_step="write https://HOST/FOLDER/")
    return text and text.rstrip("/") + "/"


@dataclass(frozen=True)
class Place:
    """One place to look at; one that was not named itself, but by a star, may be missing."""

    name: str
    may_lack: bool = False


def _places(places: Sequence[str], house: House) -> Iterator[Place]:
    """Yield places one by one: a file among them lists others, a line each, and a star stands for what the matrix has."""
    for place in places:
        if place.endswith("/*"):
            yield from (Place(place[:-1] + cell, may_lack=True) for cell in sorted(house.matrix.cell_files()))
            continue
        if not Path(place).is_file():
            yield Place(place)
            continue
        with Path(place).open("rb") as stream:
            text = stream.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UsageError(f"{place} is too long for a list of references")
        lines = (line.strip() for line in text.decode("utf-8", "replace").splitlines())
        for line in (line for line in lines if line and not line.startswith("#")):
            yield from (
                (Place(line),) if Path(line).is_file() else _places([line], house)
            )  # no list in a list: one could name itself


def _found(place: Place, keys: Sequence[Public], today: date, scratch: Path) -> Iterator[tuple[str, Found | None]]:
    from release.publish.listing import published
    from release.publish.reference import Reference

    if Path(place.name).is_dir():
        yield from _in_folder(Path(place.name), bool(keys))
        return
    try:
        where = Reference.parse(place.name)
    except UsageError as problem:
        raise UsageError(f"{place.name!r:.200} is neither a folder nor a reference", next_step=problem.next_step) from problem
    scratch.mkdir(parents=True)
    yield from published(where, keys, today, scratch, may_lack=place.may_lack)


def _in_folder(folder: Path, keys: bool) -> Iterator[tuple[str, Found | None]]:
    """Yield the releases below a folder: release.json files and OCI layouts, links not followed. What lies there carries no signature."""
    from release.oci import Layout
    from release.publish.catalogue import Found, Signature
    from release.publish.listing import laid_out

    signature = Signature.UNSIGNED if keys else None
    for where, below, names in os.walk(folder):
        inside = Path(where).relative_to(folder)
        below[:] = sorted(
            name for name in below if not name.startswith(".") and name not in INSIDE and len(inside.parts) < DEEPEST
        )
        path = Path(where) / "release.json"
        if path.name in names and path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                data = stream.read(LARGEST + 1)
            yield str(inside / path.name), Found(data, "", signature)
        if "oci-layout" in names:
            for digest, one in laid_out(Layout.open(Path(where))):
                yield str(inside / digest), one and Found(one.data, "", signature)


def _planned(house: House, known: set[str]) -> Iterator[Found]:
    """Yield the records of cells that no other record speaks of, as they are planned; a cell that has no plan has none."""
    from release.cards import planned_record
    from release.oci import canonical
    from release.publish.catalogue import Found

    for cell, _ in house.matrix.cells():
        if cell not in known:
            try:
                yield Found(canonical(planned_record(house.study(cell))))
            except (MatrixError, UsageError):
                continue


def _pictures(entries: Sequence[Entry]) -> dict[str, dict[str, Picture]]:
    """Return the pictures of each release by its path, drawn anew from its record; none without the extra `report`."""
    from release.publish.pictures import draw, facts_of, night, pictures_of, renderer
    from release.publish.site import BROKEN, Picture

    made: dict[str, dict[str, Picture]] = {}
    if renderer() is None:
        return made
    for entry in entries:
        try:
            specs = pictures_of(entry.record)
            said = facts_of(specs)
            made[entry.path] = {name: Picture(svg, night(svg), said[name]) for name, svg in draw(specs).items()}
        except BROKEN:
            continue  # a record of which no picture can be drawn has a page without
    return made


def _known_files(to: Path) -> list[str]:
    """Return the files of the site that lies in a folder already. Raises UsageError for a folder with anything else in it."""
    from release.publish.catalogue import SCHEMA
    from release.types import RELATIVE

    if not to.exists() and not to.is_symlink():
        return []
    if to.is_symlink() or not to.is_dir():
        raise UsageError(f"{to} is no folder", next_step="name a folder that does not exist yet")
    if not any(to.iterdir()):
        return []
    try:
        with (to / CATALOGUE).open("rb") as stream:
            document = json.loads(stream.read(LARGEST))
        if document["schema"] != SCHEMA:
            raise ValueError("it is another's")
        return [name for name in document["files"] if RELATIVE.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UsageError(
            f"{to} is not empty and holds no catalogue", next_step="name a folder that does not exist yet"
        ) from problem


def _write(to: Path, files: Mapping[str, bytes], old: Sequence[str]) -> None:
    """Write a site over an older one; `catalogue.json`, which says what belongs to it, comes last. Other files in the folder stay."""
    root = to.resolve()
    for name in (*sorted(files.keys() - {CATALOGUE}), CATALOGUE):
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(root):
            raise UsageError(f"{path.parent} leads out of {to}")
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        temporary.write_bytes(files[name])
        temporary.replace(path)
    for name in sorted(set(old) - files.keys()):
        if (to / name).parent.resolve().is_relative_to(root):
            (to / name).unlink(missing_ok=True)
