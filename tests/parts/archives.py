"""Small tar archives made on the spot for the tests of layers and images, written and read by Python's own tarfile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from release.builders.layer import rewrite_tar

EPOCH: Final = 1700000000
Entry = tuple[tarfile.TarInfo, bytes]


def nothing(name: str, layer: Collection[str]) -> bool:
    return False


def entry(name: str, data: bytes | None = None, kind: bytes = tarfile.REGTYPE, link: str = "", **facts: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data or b"")
    info.mode = facts.pop("mode", 0o755 if kind == tarfile.DIRTYPE else 0o644)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data or b""


def folder(name: str, **facts: Any) -> Entry:
    return entry(name, None, tarfile.DIRTYPE, **facts)


def hard(name: str, link: str) -> Entry:
    return entry(name, None, tarfile.LNKTYPE, link)


def make(*members: Entry, format: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, errors="surrogateescape") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def rewrite(layer: bytes, drop: Callable[[str, Collection[str]], bool] = nothing) -> bytes:
    target = io.BytesIO()
    rewrite_tar(io.BytesIO(layer), target, epoch=EPOCH, drop=drop)
    return target.getvalue()


def members(layer: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape") as archive:
        return {info.name: info for info in archive.getmembers()}


def names(layer: bytes) -> list[str]:
    return list(members(layer))


def contents(layer: bytes) -> dict[str, bytes]:
    """Return what tarfile finds under each name that is a file, by itself or by hard links that lead to one."""
    with tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape") as archive:
        found: dict[str, bytes] = {}
        for info in archive.getmembers():
            with suppress(KeyError, RecursionError):  # a symbolic link to itself, by whatever name, leads tarfile in circles
                stream = archive.extractfile(info) if info.isreg() or info.islnk() else None
                found |= {info.name: stream.read()} if stream else {}
        return found


SAMPLE: Final = (
    folder("opt"),
    entry("opt/b", b"b" * 700),
    entry("opt/a", b"a", mode=0o4755, uid=10001, gid=10002),
    entry("opt/link", None, tarfile.SYMTYPE, "../etc/x"),
    folder("opt/z"),
    entry("opt/z/empty"),
)
