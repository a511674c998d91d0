"""The tar format: members of foreign archives read header by header, and headers written in one fixed form.

Formats: POSIX.1-2017 pax, "Extended Header Format"; GNU tar 1.34 manual, appendix "Basic Tar Format". Python's tarfile is not
used for reading because it takes a damaged header for the end of the archive, and keeps a megabyte per thousand members.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, NoReturn, Protocol

from release.errors import StageError

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)
END: Final = bytes(2 * BLOCK)
CHUNK: Final = 1 << 20

FILE, LINK, SYMLINK, CHARACTER, BLOCKS, DIRECTORY, FIFO = (str(n).encode() for n in range(7))
OLD_FILE, CONTIGUOUS = b"\0", b"7"
KNOWN: Final = frozenset((OLD_FILE, FILE, LINK, SYMLINK, CHARACTER, BLOCKS, DIRECTORY, FIFO, CONTIGUOUS))
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
EXTENSIONS: Final = frozenset((LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL))

EXTENSION_LIMIT: Final = 1 << 20
"""Bytes that one long name or PAX header may have; Go's archive/tar, which the engines use, has the same limit."""
NAME_LIMIT: Final = 4096
MEMBER_LIMIT: Final = 1_000_000
INDEX_LIMIT: Final = 256 << 20
"""Bytes of names, link targets and extended attributes of one archive: what an index of it may take of the disk."""

XATTR: Final = b"SCHILY.xattr."
FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
GNU_MAGIC, PAX_MAGIC = b"ustar  \0", b"ustar\x0000"


class Sink(Protocol):
    """Anything that takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take `data`, all of it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its metadata, and where its `size` bytes of content lie in the archive.

    `name` and `link` are decoded as UTF-8 with surrogate escapes, so that any bytes come back unchanged.
    """

    name: str
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    offset: int
    link: str
    major: int
    minor: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Section(io.RawIOBase):
    """A part of a seekable file as a seekable file of its own."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._stream, self._offset, self._size, self._at = stream, offset, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as a file does, and return the new position."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill `buffer` as far as the section goes, and return the number of bytes."""
        self._stream.seek(self._offset + self._at)
        data = self._stream.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Blocks:
    """A sink before a sink that hands on blocks of exactly CHUNK bytes, whatever was written how, and the rest on `flush`."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._held = sink, bytearray()

    def write(self, data: bytes, /) -> None:
        """Take `data`, all of it."""
        self._held += data
        while len(self._held) >= CHUNK:
            self._sink.write(bytes(self._held[:CHUNK]))
            del self._held[:CHUNK]

    def flush(self) -> None:
        """Hand on what is left."""
        if self._held:
            self._sink.write(bytes(self._held))
            self._held.clear()


def section(stream: BinaryIO, member: Member) -> BinaryIO:
    """Return the content of `member` of the archive `stream` as a seekable file."""
    return io.BufferedReader(Section(stream, member.offset, member.size), 1 << 16)


def copy(stream: BinaryIO, offset: int, size: int, target: Sink, on_bytes: Callable[[int], None] | None = None) -> None:
    """Write `size` bytes of `stream` from `offset` to `target`, in chunks. Raises StageError where the stream is shorter."""
    stream.seek(offset)
    left = size
    while left:
        chunk = stream.read(min(left, CHUNK))
        if not chunk:
            raise StageError(f"the archive ends {left} bytes too early: it was cut off while it was read")
        target.write(chunk)
        left -= len(chunk)
        if on_bytes:
            on_bytes(len(chunk))


def padding(size: int) -> bytes:
    """Return the zero bytes that fill the last block of `size` bytes of content."""
    return bytes(-size % BLOCK)


def read_members(stream: BinaryIO, *, most: int | None = None, weight: int | None = None) -> Iterator[Member]:
    """Yield the members of a seekable tar in their order, reading headers only.

    Understands v7, ustar, GNU and PAX headers; of the latter path, linkpath, size, uid, gid and SCHILY.xattr.*. As in Go's
    archive/tar, only regular files have content, and global PAX headers are passed over. Raises StageError for a damaged or
    truncated archive, sparse files, unknown types, impossible sizes, and more than `most` members or `weight` bytes of names,
    which are MEMBER_LIMIT and INDEX_LIMIT unless given.
    """
    most, weight = MEMBER_LIMIT if most is None else most, INDEX_LIMIT if weight is None else weight
    length, at, count, taken, extended = stream.seek(0, io.SEEK_END), 0, 0, 0, 0
    extensions: dict[bytes, bytes] = {}
    while True:
        block = _bytes_at(stream, at, BLOCK, length)
        if block == ZEROS:
            if at + BLOCK < length and _bytes_at(stream, at + BLOCK, BLOCK, length) != ZEROS:
                _damaged(at, "a lone block of zeros stands between members")
            if extensions:
                _damaged(at, "an extension header has no member after it")
            return
        member = _parse(block, at)
        at += BLOCK
        if member.type in EXTENSIONS:
            extended += member.size
            if extended > EXTENSION_LIMIT:
                _damaged(at - BLOCK, f"extension headers claim {extended} bytes, the limit is {EXTENSION_LIMIT}")
            data = _bytes_at(stream, at, member.size, length)
            extensions |= _extension(member.type, data, at)
            at += member.size + -member.size % BLOCK
            continue
        member, extensions, extended = _extended(member, extensions, at), {}, 0
        if max(member.uid, member.gid, member.major, member.minor) >= 1 << 32:
            _damaged(at, f"{member.name!r} has an owner or a device number of more than 32 bits")
        if member.size > length - at:
            _damaged(at, f"{member.name!r} claims {member.size} bytes, the archive has {length - at} left")
        count, taken = count + 1, taken + len(member.name) + len(member.link) + sum(len(k) + len(v) for k, v in member.xattrs)
        if count > most or taken > weight:
            raise StageError(f"the archive has more than {most} members or {weight} bytes of names")
        yield member
        at += member.size + -member.size % BLOCK


def _damaged(at: int, problem: str) -> NoReturn:
    raise StageError(
        f"the tar archive is damaged or cut off at byte {at}: {problem}",
        next_step="save the image again; if it comes back, the disk or the engine's store is damaged",
    )


def _bytes_at(stream: BinaryIO, at: int, size: int, length: int) -> bytes:
    if at + size > length:
        _damaged(at, "it ends without its end marker" if at == length else "it ends inside a header")
    stream.seek(at)
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    if len(data) < size:
        _damaged(at, "it became shorter while it was read")
    return data


def _parse(block: bytes, at: int) -> Member:
    """Return what one header block describes by itself: its type may be an extension's, or OLD_FILE."""
    name, mode, uid, gid, size, _, checksum, kind, link, magic, _, _, major, minor, prefix = FIELDS.unpack(block)
    if checksum.strip(b" \0").lstrip(b"0") != b"%o" % (sum(block) - sum(checksum) + 8 * 0x20):
        _damaged(at, "the checksum of a header is wrong")
    name = name.partition(b"\0")[0]
    if magic[:6] == b"ustar\0" and (prefix := prefix.partition(b"\0")[0]):
        name = prefix + b"/" + name
    if kind not in KNOWN and kind not in EXTENSIONS:
        what = "a sparse file" if kind == b"S" else f"a member of the unknown type {kind!r}"
        raise StageError(f"{text(name)!r} is {what}, which no engine writes into a layer")
    if kind == CONTIGUOUS:
        kind = FILE
    device = kind in (CHARACTER, BLOCKS)
    return Member(
        name=text(name),
        type=kind,
        mode=_number(mode, at) & 0o7777,
        uid=_number(uid, at),
        gid=_number(gid, at),
        size=_number(size, at) if kind in (OLD_FILE, FILE) or kind in EXTENSIONS else 0,
        offset=at + BLOCK,
        link=text(link.partition(b"\0")[0]) if kind in (LINK, SYMLINK) else "",
        major=_number(major, at) if device else 0,
        minor=_number(minor, at) if device else 0,
    )


def _number(field: bytes, at: int) -> int:
    """Return a number field: octal digits, or GNU base-256 where the highest bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    try:
        number = int(digits, 8) if digits.isdigit() else -1
    except ValueError:
        number = -1
    if number < 0:
        _damaged(at, f"{field!r} is not a number")
    return number


def text(raw: bytes) -> str:
    """Return a name of an archive as text that `raw` turns back into the same bytes."""
    return raw.decode("utf-8", "surrogateescape")


def raw(text: str) -> bytes:
    """Return the bytes of a name as they stand in an archive."""
    return text.encode("utf-8", "surrogateescape")


def _extension(kind: bytes, data: bytes, at: int) -> dict[bytes, bytes]:
    if kind == PAX_GLOBAL:
        return {}
    if kind != PAX:
        return {b"path" if kind == LONG_NAME else b"linkpath": data.partition(b"\0")[0]}
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        digits, _, _ = data[start : start + 9].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[start + len(digits) + 1 : start + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or start + length > len(data):
            _damaged(at, "a PAX header is malformed")
        if key.startswith(b"GNU.sparse."):
            raise StageError("the archive has a sparse file, which no engine writes into a layer")
        if len(value) > 1 or key.startswith(XATTR):
            records[key] = value[:-1]
        start += length
    return records


def _extended(member: Member, records: dict[bytes, bytes], at: int) -> Member:
    """Return `member` with what its extension headers say instead.

    Only then its whole name is known, and with it whether an OLD_FILE is a directory: v7 had no other sign of one than the slash.
    """

    def number(key: bytes, otherwise: int) -> int:
        digits = records.get(key)
        if digits is None:
            return otherwise
        if not digits.isdigit() or len(digits) > 18:
            _damaged(at, f"{digits[:40]!r} is not a {key.decode()}")
        return int(digits)

    if not records and member.type != OLD_FILE:
        return member
    name, link = records.get(b"path"), records.get(b"linkpath")
    for value in (name, link):
        if value is not None and (b"\0" in value or len(value) > NAME_LIMIT):
            _damaged(at, "a name has a zero byte in it" if b"\0" in value else f"a name has {len(value)} bytes")
    full = text(name) if name is not None else member.name
    kind = member.type
    if kind == OLD_FILE:
        kind = DIRECTORY if full.endswith("/") else FILE
    return Member(
        name=full,
        type=kind,
        mode=member.mode,
        uid=number(b"uid", member.uid),
        gid=number(b"gid", member.gid),
        size=number(b"size", member.size) if kind == FILE else 0,
        offset=at,
        link=text(link) if link is not None and kind in (LINK, SYMLINK) else member.link,
        major=member.major,
        minor=member.minor,
        xattrs=tuple(sorted((k, v) for k, v in records.items() if k.startswith(XATTR))),
    )


def header(member: Member, mtime: int) -> bytes:
    """Return the header blocks of `member`: GNU format, or PAX where it has extended attributes, which GNU cannot express.

    User and group names are empty, access and change times absent, so that equal members give equal bytes.
    """
    name, link = raw(member.name), raw(member.link)
    if not member.xattrs:
        return (
            (_long(name, LONG_NAME) if len(name) > 100 else b"")
            + (_long(link, LONG_LINK) if len(link) > 100 else b"")
            + _block(name, member, link, mtime, GNU_MAGIC)
        )
    extended = dict(member.xattrs)
    for key, value in ((b"path", name), (b"linkpath", link)):
        if len(value) > 100:
            extended[key] = value
    for key, number, digits in ((b"uid", member.uid, 7), (b"gid", member.gid, 7), (b"size", member.size, 11)):
        if number >= 8**digits:
            extended[key] = b"%d" % number
    data = records(extended)
    outer = Member("././@PaxHeader", PAX, 0o644, 0, 0, len(data), 0, "", 0, 0)
    extension = _block(raw(outer.name), outer, b"", mtime, PAX_MAGIC) + data + padding(len(data))
    return extension + _block(name, member, link, mtime, PAX_MAGIC)


def _long(name: bytes, kind: bytes) -> bytes:
    outer = Member("././@LongLink", kind, 0o644, 0, 0, len(name) + 1, 0, "", 0, 0)
    return _block(raw(outer.name), outer, b"", 0, GNU_MAGIC) + name + b"\0" + padding(len(name) + 1)


def records(pairs: Mapping[bytes, bytes]) -> bytes:
    """Return the content of a PAX header, in the order of its keys."""
    return b"".join(_record(key, value) for key, value in sorted(pairs.items()))


def xattrs(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the extended attributes that `records` wrote."""
    return tuple(sorted(_extension(PAX, data, 0).items()))


def _record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, member: Member, link: bytes, mtime: int, magic: bytes) -> bytes:
    device = member.type in (CHARACTER, BLOCKS)
    block = FIELDS.pack(
        name[:100],
        _field(member.mode, 8),
        _field(member.uid, 8),
        _field(member.gid, 8),
        _field(member.size, 12),
        _field(mtime, 12),
        b" " * 8,
        member.type,
        link[:100],
        magic,
        b"",
        b"",
        _field(member.major, 8) if device else b"",
        _field(member.minor, 8) if device else b"",
        b"",
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _field(number: int, width: int) -> bytes:
    """Return `number` in octal, or in GNU base-256 where the field is too short for it."""
    if number < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, number)
    return b"\x80" + number.to_bytes(width - 1, "big")
