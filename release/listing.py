"""What a shared entry consists of: its facts and its files, as one document that names everything by digest, and back into a folder."""

from __future__ import annotations

import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from release.errors import VerificationError
from release.oci import DIGEST, METADATA_LIMIT, Descriptor, Layout, canonical, link_or_copy
from release.store import ENTRY
from release.types import JSON

LISTING_TYPE: Final = "application/vnd.release.entry.listing.v1+json"
RAW: Final = "application/octet-stream"
SCHEMA: Final = 1
SMALL: Final = 1 << 20
"""Bytes up to which files travel together in one blob, the pack."""
LARGEST_PACK: Final = 256 << 20
"""Bytes of small files up to which they do; beyond, each travels alone."""
MOST: Final = 100_000
"""Files, folders and links of one entry."""


@dataclass(frozen=True)
class Item:
    """A file (its mode, size, and the digest of its blob, which is empty in the pack), a link (`target`), or a folder (neither)."""

    path: str
    mode: int = 0
    size: int = 0
    digest: str = ""
    target: str = ""
    kind: str = "file"

    def row(self) -> list[Any]:
        """Return the item as it stands in the listing."""
        if self.kind == "file":
            return [self.path, "file", self.mode, self.size, self.digest]
        return [self.path, self.kind, self.target] if self.kind == "link" else [self.path, self.kind]


@dataclass(frozen=True)
class Listing:
    """An entry: under which key, what `put` was told, and its items in order of their paths. `pack` is the blob of the small files."""

    key: str
    facts: JSON
    items: tuple[Item, ...]
    pack: Descriptor

    @property
    def data(self) -> bytes:
        """The document. Raises VerificationError for one that nobody would read."""
        document = {
            **{"schema": SCHEMA, "key": self.key, "facts": self.facts, "pack": self.pack.to_json()},
            "items": [item.row() for item in self.items],
        }
        data = canonical(document)
        if len(data) > METADATA_LIMIT or len(self.items) > MOST:
            raise VerificationError(f"{len(self.items)} files are more than one entry can list")
        return data

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The pack, and the blob of each large file, each once."""
        found = {item.digest: Descriptor(RAW, item.digest, item.size) for item in self.items if item.digest}
        return (self.pack, *found.values())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)


def listing_of(key: str, facts: JSON, folder: Path, layout: Layout) -> Listing:
    """Put the files of an entry into a layout, and return the listing. Raises VerificationError for what no other machine could have.

    Such are links out of the entry, and files that are neither regular nor links.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path != folder / ENTRY]
    together = sum(path.lstat().st_size for path in paths if path.is_file() and path.lstat().st_size <= SMALL) <= LARGEST_PACK
    items, pack = [], bytearray()
    for path in paths:
        name, found = path.relative_to(folder).as_posix(), path.lstat()
        if stat.S_ISLNK(found.st_mode):
            items.append(Item(name, target=str(path.readlink()), kind="link"))
        elif stat.S_ISDIR(found.st_mode):
            items.append(Item(name, kind="folder"))
        elif not stat.S_ISREG(found.st_mode):
            raise VerificationError(f"{name} is neither a file nor a link")
        elif together and found.st_size <= SMALL:
            data = path.read_bytes()
            pack += data
            items.append(Item(name, stat.S_IMODE(found.st_mode) & 0o777, len(data)))
        else:
            blob = layout.put_file(RAW, path)
            items.append(Item(name, stat.S_IMODE(found.st_mode) & 0o777, blob.size, blob.digest))
    listing = Listing(key, facts, tuple(items), layout.put(RAW, bytes(pack)))
    check(listing)
    return listing


def read_listing(data: bytes) -> Listing:
    """Read a listing that a stranger wrote. Raises VerificationError for anything but a sound one."""
    from release.publish.dsse import strict

    document = strict(data, "a listing")
    key, facts, rows = (document.get(name) for name in ("key", "facts", "items"))
    if document.get("schema") != SCHEMA or not isinstance(key, str) or not isinstance(facts, dict) or not isinstance(rows, list):
        raise VerificationError("a listing lacks what it must have")
    if len(rows) > MOST:
        raise VerificationError(f"a listing of {len(rows)} files")
    listing = Listing(key, facts, tuple(_item(row) for row in rows), Descriptor.from_json(document.get("pack")))
    check(listing)
    return listing


def _item(row: object) -> Item:
    """Read a row. Raises VerificationError for one of another form."""
    match row:
        case [str(path), "file", int(mode), int(size), str(digest)]:
            if isinstance(mode, bool) or isinstance(size, bool) or not 0 <= mode <= 0o777 or not 0 <= size < 1 << 50:
                raise VerificationError(f"{path!r:.100} has mode {mode!r:.30} and size {size!r:.30}")
            if digest and not DIGEST.fullmatch(digest):
                raise VerificationError(f"{path!r:.100} has no sound digest")
            return Item(path, mode, size, digest)
        case [str(path), "link", str(target)]:
            return Item(path, target=target, kind="link")
        case [str(path), "folder"]:
            return Item(path, kind="folder")
    raise VerificationError(f"a listing with the row {row!r:.100}")


def check(listing: Listing) -> None:
    """Raise VerificationError where a path or a link would lead out of the entry, stands twice, or goes through what is no folder."""
    kinds: dict[str, str] = {}
    for item in listing.items:
        parts = item.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in item.path or item.path == ENTRY:
            raise VerificationError(f"{item.path!r:.100} is no path of an entry")
        if item.path in kinds:
            raise VerificationError(f"{item.path!r:.100} stands twice")
        if len(parts) > 1 and kinds.get("/".join(parts[:-1])) != "folder":
            raise VerificationError(f"{item.path!r:.100} lies in no folder of the entry")
        kinds[item.path] = item.kind
        if item.kind == "link" and (not item.target or leads_out(item)):
            raise VerificationError(f"the link {item.path!r:.100} leads out of the entry")
    together = sum(item.size for item in listing.items if item.kind == "file" and not item.digest)
    if together != listing.pack.size or together > LARGEST_PACK:
        raise VerificationError(f"the small files come to {together} bytes, and their blob has {listing.pack.size}")
    sizes: dict[str, int] = {}
    for item in listing.items:
        if item.digest and sizes.setdefault(item.digest, item.size) != item.size:
            raise VerificationError(f"{item.digest} stands there with two sizes")


def leads_out(item: Item) -> bool:
    """Say whether a link leads out of the entry, or might by way of another link: `..` is for the beginning of its target only."""
    parts = [part for part in item.target.split("/") if part not in ("", ".")]
    above = next((count for count, part in enumerate(parts) if part != ".."), len(parts))
    return item.target.startswith("/") or "\0" in item.target or ".." in parts[above:] or above > item.path.count("/")


def lay_out(listing: Listing, layout: Layout, out: Path) -> None:
    """Write the items of a checked listing into an empty folder; the layout has all blobs. Links come last: nothing is written through one."""
    with layout.blob(listing.pack.digest).open("rb") as pack:
        for item in sorted(listing.items, key=lambda item: item.kind == "link"):
            path = out / item.path
            if item.kind == "folder":
                path.mkdir()
            elif item.kind == "link":
                path.symlink_to(item.target)
            else:
                if not item.digest:
                    path.write_bytes(pack.read(item.size))
                elif item.mode & 0o222:
                    shutil.copyfile(layout.blob(item.digest), path)
                else:  # nobody will change it: the blob itself can stand there
                    link_or_copy(layout.blob(item.digest), path)
                path.chmod(item.mode)
