"""What a layer finally holds, name by name: kept on disk, so that memory does not grow with the members of an archive."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from release.builders import tar
from release.builders.tar import Member
from release.errors import StageError

Drop = Callable[[str, Collection[str]], bool]
"""Says of a path without leading slash, given all paths of its layer, whether it stays out of the image."""

WHITEOUT: Final = b".wh."
CACHE: Final = 64 << 20
"""Bytes of the index that stay in memory: those of an ordinary layer, of which nothing comes to lie on the disk."""

SCHEMA: Final = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE nodes (offset INTEGER PRIMARY KEY, mode, uid, gid, size, link, major, minor, xattrs);
CREATE TABLE names (key BLOB PRIMARY KEY, turn INTEGER, type BLOB, offset INTEGER) WITHOUT ROWID;
CREATE INDEX unresolved ON names (turn) WHERE type = X'31';
CREATE TABLE shared (offset INTEGER PRIMARY KEY);
CREATE TABLE carriers (offset INTEGER PRIMARY KEY, carrier BLOB);
CREATE TABLE dropped (key BLOB PRIMARY KEY) WITHOUT ROWID;
BEGIN;
"""
"""A node is a member's metadata, found by where its content lies; hard links are names of one node, `shared` by them, and the first name
that stays is its carrier. Of a node that `unresolved` names have, the type is a hard link's ('1').
"""
ENTER: Final = """
INSERT INTO names VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET type = excluded.type, offset = excluded.offset
WHERE (type = X'35') = (excluded.type = X'35')
"""
LAST_UNRESOLVED: Final = """
SELECT names.key, turn, link FROM names JOIN nodes USING (offset) WHERE type = X'31' AND turn < ? ORDER BY turn DESC LIMIT 1
"""
CARRY: Final = """
INSERT OR IGNORE INTO carriers SELECT offset, key FROM names
WHERE offset IN (SELECT offset FROM shared) AND NOT EXISTS (SELECT 1 FROM dropped WHERE dropped.key = names.key) ORDER BY key
"""
STAYING: Final = """
SELECT names.key, type, carrier, offset, mode, uid, gid, size, link, major, minor,
       CASE WHEN carrier IS NULL OR carrier = names.key THEN xattrs ELSE X'' END
FROM names JOIN nodes USING (offset) LEFT JOIN carriers USING (offset)
WHERE NOT EXISTS (SELECT 1 FROM dropped WHERE dropped.key = names.key) ORDER BY names.key
"""


class Names(Collection[str]):
    """The paths of a layer."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __contains__(self, name: object) -> bool:
        found = self._database.execute("SELECT 1 FROM names WHERE key = ?", (order(str(name)),))
        return found.fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        return (name_of(key) for (key,) in self._database.execute("SELECT key FROM names ORDER BY key"))

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM names").fetchone()[0])


class Inventory:
    """What each name of a layer finally is. Of members of one name the last wins; names of one hard link set share one node."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self._turn = database, 0
        self.names = Names(database)

    def add(self, member: Member) -> None:
        """Take the next member. Raises StageError where it contradicts an earlier one or leads out of the layer."""
        name = inside(member.name)
        key, kind, offset, link = order(name), member.type, member.offset, member.link
        if kind == tar.LINK:
            link = inside(link)
            if found := self._find(order(link)):
                if order(link) == key:
                    return
                kind, offset = self._share(name, link, found)
        if offset == member.offset:
            facts = (member.mode, member.uid, member.gid, member.size, tar.raw(link), member.major, member.minor)
            self._database.execute(
                "INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (offset, *facts, tar.records(dict(member.xattrs)))
            )
        self._turn += 1
        entered = self._database.execute(ENTER, (key, self._turn, kind, offset)).rowcount
        if not entered or (not name and kind != tar.DIRECTORY):
            raise StageError(f"the layer has {name or '/'!r} both as a directory and as something else")

    def resolve(self) -> None:
        """Make the hard links that stood before their targets what those are; a link into a lower layer stays one.

        Raises StageError where hard links lead to one another. Goes backwards, so that the target of a link is resolved before it.
        """
        turn = self._turn + 1
        while row := self._database.execute(LAST_UNRESOLVED, (turn,)).fetchone():
            key, turn, link = row
            if found := self._find(order(tar.text(link))):
                if found[0] == tar.LINK and self._find(order(self._link(found[1]))):
                    raise StageError(f"the hard links {name_of(key)!r} and {tar.text(link)!r} of the layer lead to one another")
                kind, offset = self._share(name_of(key), tar.text(link), found)
                self._database.execute("UPDATE names SET type = ?, offset = ? WHERE key = ?", (kind, offset, key))

    def settle(self, drop: Drop) -> tuple[int, int]:
        """Decide which names stay, and return how many do and how many do not: what `drop` leaves, all whiteouts, and the directories above.

        Raises StageError where something that is no directory has names under it.
        """
        total = dropped = 0
        above: list[list[Any]] = []  # each key that the present one begins with, whether it is a directory, whether it stays
        for key, kind in self._database.execute("SELECT key, type FROM names ORDER BY key"):
            while above and not key.startswith(above[-1][0]):
                above.pop()
            parents = (each for each in reversed(above) if key[len(each[0])] == ord("/"))
            parent = next(parents, None)
            if parent and not parent[1]:
                raise StageError(f"the layer has {name_of(key)!r}, but {name_of(parent[0])!r} is no directory")
            stays = key.rpartition(b"/")[2].startswith(b"\0") or not drop(name_of(key), self.names)
            if not stays:
                self._database.execute("INSERT INTO dropped VALUES (?)", (key,))
            while stays and parent and not parent[2]:
                self._database.execute("DELETE FROM dropped WHERE key = ?", (parent[0],))
                parent[2], dropped = True, dropped - 1
                parent = next(parents, None)
            above.append([key, kind == tar.DIRECTORY, stays])
            total, dropped = total + 1, dropped + (not stays)
        return total - dropped, dropped

    def staying(self) -> Iterator[tuple[str, Member]]:
        """Yield the names that stay and what they are, in the order of writing: a later name of a node as a hard link to its first."""
        self._database.execute(CARRY)
        for key, kind, carrier, offset, mode, uid, gid, size, link, major, minor, xattrs in self._database.execute(STAYING):
            node = Member(name_of(key), kind, mode, uid, gid, size, offset, tar.text(link), major, minor, tar.xattrs(xattrs))
            if carrier not in (None, key):
                node = replace(node, type=tar.LINK, link=name_of(carrier), size=0)
            yield node.name, node

    def _find(self, key: bytes) -> tuple[bytes, int] | None:
        rows = self._database.execute("SELECT type, offset FROM names WHERE key = ?", (key,))
        found: tuple[bytes, int] | None = rows.fetchone()
        return found

    def _link(self, offset: int) -> str:
        return tar.text(self._database.execute("SELECT link FROM nodes WHERE offset = ?", (offset,)).fetchone()[0])

    def _share(self, name: str, link: str, found: tuple[bytes, int]) -> tuple[bytes, int]:
        if found[0] == tar.DIRECTORY:
            raise StageError(f"the layer has {name!r} as a hard link to the directory {link!r}")
        self._database.execute("INSERT OR IGNORE INTO shared VALUES (?)", (found[1],))
        return found


@contextmanager
def inventory() -> Iterator[Inventory]:
    """Give an empty inventory, in a file without a name that is gone afterwards. Raises StageError where the disk has no room for it."""
    database = sqlite3.connect("", isolation_level=None)
    try:
        database.executescript(f"PRAGMA cache_size = -{CACHE >> 10};{SCHEMA}")
        yield Inventory(database)
    except sqlite3.Error as problem:
        raise StageError(
            f"the index of a layer cannot be kept: {problem}", next_step="make room where TMPDIR is, or name another folder"
        ) from problem
    finally:
        database.close()


def inside(name: str) -> str:
    """Return a path of an archive without leading slash, `.` and doubled slashes; the root is the empty string.

    Raises StageError where a part of it is `..`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise StageError(f"the archive has the path {name!r}, which leads out of it")
    return "/".join(parts)


def order(name: str) -> bytes:
    """Return what names are sorted by and found under: their bytes, a whiteout before its siblings. No name of an archive has a zero byte."""
    return tar.raw(f"/{name}").replace(b"/" + WHITEOUT, b"/\0" + WHITEOUT)


def name_of(key: bytes) -> str:
    """Return the name that `order` made `key` of."""
    return tar.text(key.replace(b"/\0", b"/")[1:])
