"""A source that a release changes: the upstream wheel unpacked, checked against its own record, patched and packed again."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Final

from release.errors import FetchError, PatchError
from release.oci import canonical, sha256_file
from release.patches.apply import Applied, apply
from release.patches.parse import path_fault
from release.patches.read import Patch, PatchSet

UNPACKED_LIMIT: Final = 4 << 30
"""Bytes that the files of a wheel may have together; below it, neither reading nor writing needs the zip64 form."""
MEMBERS_LIMIT: Final = 65_000
RECORD_LIMIT: Final = 64 << 20
PATCHES: Final = "release-patches.json"
"""In the dist-info folder of a patched wheel: what it was made from. An installed copy so says that it is patched."""
UNRECORDED: Final = ("RECORD", "RECORD.jws", "RECORD.p7s")
ALGORITHMS: Final = ("sha256", "sha384", "sha512")
CHUNK: Final = 1 << 20
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
LOCAL: Final = struct.Struct("<4s5H3L2H")
CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
END: Final = struct.Struct("<4s4H2LH")
UTF8: Final = 0x800
UNIX: Final = 3

Rows = dict[str, tuple[str, str]]
"""The RECORD of a wheel, in its order: path → hash (`sha256=<urlsafe base64>`) and size in bytes, both as text."""


@dataclass(frozen=True)
class PatchedWheel:
    """A wheel that was made from an upstream wheel and patches.

    `sha256` is the digest `sha256:<hex>` of `file`. `base_tree` and `tree` are git's ids of the unpacked upstream wheel before
    and after the patches; RECORD is the upstream one in both. `changed` are the paths in which they differ, sorted.
    """

    file: Path
    sha256: str
    base_tree: str
    tree: str
    changed: tuple[str, ...]
    patches: tuple[Patch, ...]


def patch_wheel(wheel: Path, patches: PatchSet, out: Path, scratch: Path) -> PatchedWheel:
    """Apply patches to a wheel and write the result under the same file name into the folder `out`.

    The same wheel and patches give the same bytes on every host: members that no patch changes are copied as they are compressed;
    the others are stored without compression, dated 1980-01-01. RECORD is made anew, a signature of the old one and members
    that are folders are left out, and `release-patches.json` in the dist-info folder names the upstream wheel, the patches and
    the tree ids.
    Needs free space in `scratch` for the unpacked wheel; it is left empty. `wheel` is only read.
    Raises FetchError for a wheel that is damaged, hostile or not what its RECORD says, PatchError for the patches. Formats: PyPA
    binary distribution format, PKWARE APPNOTE 6.3.3.
    """
    if not wheel.is_file():
        raise FetchError(f"there is no wheel {wheel}", next_step="fetch it first")
    if (target := out / wheel.name).exists() and target.samefile(wheel):
        raise PatchError(f"the patched wheel would replace the upstream wheel {wheel}", next_step="choose another folder")
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=scratch) as folder, wheel.open("rb") as stream:
        base = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        (tree := Path(folder) / "tree").mkdir()
        with _reading(wheel):
            upstream = _upstream(wheel, stream)
            _refuse_special(patches, upstream.info)
            _unpack(upstream, tree)
        applied = apply(tree, patches, scratch=Path(folder))
        document = canonical(_document(wheel.name, base, applied, patches)) + b"\n"
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f".{wheel.name}.{os.getpid()}"
        try:
            with temporary.open("xb") as sink:
                _pack(sink, upstream, tree, applied.changed, document)
            digest = sha256_file(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return PatchedWheel(target, digest, applied.base_tree, applied.tree, applied.changed, patches.patches)


def _document(name: str, base: str, applied: Applied, patches: PatchSet) -> dict[str, object]:
    return {
        "wheel": {"file": name, "sha256": base},
        "patches": [{"file": patch.file, "sha256": patch.sha256} for patch in patches.patches],
        "base-tree": applied.base_tree,
        "tree": applied.tree,
        "changed": list(applied.changed),
    }


@dataclass(frozen=True)
class _Upstream:
    """A wheel whose list of members is safe to follow: its bytes, the archive in them, its dist-info folder, its RECORD."""

    name: str
    stream: BufferedReader
    archive: zipfile.ZipFile
    info: str
    rows: Rows

    @property
    def free(self) -> set[str]:
        """The paths for which RECORD has no hash."""
        return {f"{self.info}/{name}" for name in UNRECORDED}


@contextmanager
def _reading(wheel: Path) -> Iterator[None]:
    """Turn what zipfile raises for a broken archive into a FetchError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError) as problem:
        raise FetchError(f"{wheel.name} is not a sound zip archive: {problem}", next_step="fetch it again") from problem


def _upstream(wheel: Path, stream: BufferedReader) -> _Upstream:
    archive = zipfile.ZipFile(stream)
    _refuse_hostile(archive, wheel)
    info = _dist_info(archive, wheel)
    return _Upstream(wheel.name, stream, archive, info, _record(archive.read(f"{info}/RECORD"), wheel.name))


def _refuse_hostile(archive: zipfile.ZipFile, wheel: Path) -> None:
    """Raise FetchError for an archive that could write outside its folder, fill the disk, or be read in two ways."""
    members, size = archive.infolist(), wheel.stat().st_size
    names = {member.filename.rstrip("/") for member in members}
    files = {member.filename for member in members if not member.is_dir()}
    if len(members) > MEMBERS_LIMIT or sum(member.file_size for member in members) > UNPACKED_LIMIT:
        raise FetchError(f"{wheel.name} unpacks to more than {UNPACKED_LIMIT} bytes or {MEMBERS_LIMIT} files")
    if sum(member.compress_size for member in members) > size:
        raise FetchError(f"{wheel.name}: its members overlap")
    if len(names) < len(members):
        raise FetchError(f"{wheel.name} holds two members of one name")
    for member in members:
        path = member.orig_filename.removesuffix("/")
        kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == UNIX else 0
        fault = path_fault(path)
        if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
            fault = "is a symbolic link" if kind == stat.S_IFLNK else "is not a plain file"
        elif member.flag_bits & 1:
            fault = "is encrypted"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fault = f"is compressed by method {member.compress_type}; wheels use 0 and 8"
        elif member.is_dir() and member.file_size:
            fault = "is a folder with content"
        elif any(str(above) in files for above in Path(path).parents):
            fault = "lies below a file"
        elif not 0 <= member.header_offset < size:
            fault = "lies outside the archive"
        if fault:
            raise FetchError(f"{wheel.name}: member {member.orig_filename!r} {fault}")


def _dist_info(archive: zipfile.ZipFile, wheel: Path) -> str:
    """Return the name of the one dist-info folder."""
    names = set(archive.namelist())
    found = sorted({top for top in (name.split("/", 1)[0] for name in names if "/" in name) if top.endswith(".dist-info")})
    if len(found) != 1 or f"{found[0]}/RECORD" not in names:
        raise FetchError(f"{wheel.name} is not a wheel: it needs one .dist-info folder with a RECORD, and has {found or 'none'}")
    if archive.getinfo(f"{found[0]}/RECORD").file_size > RECORD_LIMIT:
        raise FetchError(f"{wheel.name}: RECORD has more than {RECORD_LIMIT} bytes")
    if f"{found[0]}/{PATCHES}" in names:
        raise FetchError(f"{wheel.name} is already patched", next_step="name the upstream wheel in the cell's sources")
    return found[0]


def _refuse_special(patches: PatchSet, info: str) -> None:
    """Refuse patches to what is made here."""
    special = {f"{info}/{name}" for name in (*UNRECORDED, PATCHES)}
    for patch in patches.patches:
        if found := special.intersection(patch.touched):
            raise PatchError(
                f"it changes {min(found)}, which is made anew for a patched wheel",
                where=f"{patches.name}/{patch.file}",
                next_step="take this file out of the patch",
            )


def _unpack(upstream: _Upstream, tree: Path) -> None:
    """Unpack every file into `tree`, checking each against its row in RECORD."""
    files = {member.filename: member for member in upstream.archive.infolist() if not member.is_dir()}
    if missing := sorted(set(upstream.rows) - set(files) - upstream.free):
        raise FetchError(f"{upstream.name}: RECORD lists {missing[0]}, which is not in the wheel")
    for path, member in files.items():
        algorithm, _, wanted = upstream.rows.get(path, ("", ""))[0].partition("=")
        if path in upstream.free:
            algorithm = ALGORITHMS[0]
        elif algorithm not in ALGORITHMS:
            raise FetchError(f"{upstream.name}: RECORD has no sha256 for {path}", next_step="fetch the wheel again")
        digest, size = hashlib.new(algorithm), 0
        (place := tree / path).parent.mkdir(parents=True, exist_ok=True)
        with upstream.archive.open(member) as source, place.open("xb") as sink:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += sink.write(chunk)
        place.chmod(0o755 if _is_program(member) else 0o644)
        if size != member.file_size:
            raise FetchError(f"{upstream.name}: {path} has {size} bytes, the archive says {member.file_size}")
        if path not in upstream.free and _spelled(digest.digest()) != wanted.rstrip("="):
            raise FetchError(
                f"{upstream.name}: {path} has {algorithm} {_spelled(digest.digest())}, RECORD says {wanted}",
                next_step="fetch the wheel again; if it stays so, do not trust it",
            )


def _is_program(member: zipfile.ZipInfo) -> bool:
    """Say whether an installer makes the file executable, as pip decides it: any of the three bits."""
    return bool(member.create_system == UNIX and member.external_attr >> 16 & 0o111)


def _spelled(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _record(content: bytes, name: str) -> Rows:
    try:
        lines = list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise FetchError(f"{name}: RECORD cannot be read: {problem}") from problem
    rows: Rows = {}
    for number, line in enumerate(lines, 1):
        if len(line) != 3 or line[0] in rows:
            raise FetchError(f"{name}: line {number} of RECORD is not a new path with its hash and size")
        rows[line[0]] = (line[1], line[2])
    return rows


@dataclass(frozen=True)
class _Member:
    """What the headers of a zip archive say of a file, and where its bytes are, compressed by `method` as they will lie there."""

    name: str
    method: int
    date: tuple[int, int, int, int, int, int]
    crc: int
    packed: int
    size: int
    system: int
    attributes: int
    read: Callable[[], Iterable[bytes]]


def _pack(sink: IO[bytes], upstream: _Upstream, tree: Path, changed: Iterable[str], document: bytes) -> None:
    """Write the patched wheel: what stayed, in its order, then what is new, then RECORD."""
    own, note = f"{upstream.info}/RECORD", f"{upstream.info}/{PATCHES}"
    before = {member.filename: member for member in upstream.archive.infolist() if not member.is_dir()}
    new = {path: _from_file(path, tree / path) for path in changed if (tree / path).is_file()}
    new[note] = _from_bytes(note, document)
    gone = (set(changed) - set(new)) | upstream.free
    members = [new.get(name) or _as_it_was(upstream.stream, member) for name, member in before.items() if name not in gone]
    members += [new[name] for name in sorted(set(new) - set(before))]
    _write_zip(sink, [*members, _from_bytes(own, _new_record(upstream.rows, new, gone, own))])


def _new_record(rows: Rows, new: Mapping[str, _Member], gone: set[str], own: str) -> bytes:
    """Return RECORD with the rows in their order, the added ones before its own."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for path in [*(path for path in rows if path not in gone), *sorted(set(new) - set(rows))]:
        if path in new:
            digest = hashlib.sha256()
            for chunk in new[path].read():
                digest.update(chunk)
            writer.writerow((path, f"sha256={_spelled(digest.digest())}", new[path].size))
        else:
            writer.writerow((path, *rows[path]))
    writer.writerow((own, "", ""))
    return text.getvalue().encode()


def _as_it_was(stream: BufferedReader, member: zipfile.ZipInfo) -> _Member:
    """Return a member of the upstream wheel whose compressed bytes are copied."""

    def read() -> Iterator[bytes]:
        stream.seek(member.header_offset)
        header = LOCAL.unpack(stream.read(LOCAL.size))
        stream.seek(header[9] + header[10], os.SEEK_CUR)
        left = member.compress_size
        while left:
            if not (chunk := stream.read(min(CHUNK, left))):
                raise EOFError(f"{member.filename} ends early")
            left -= len(chunk)
            yield chunk

    return _Member(
        member.filename, member.compress_type, member.date_time, member.CRC, member.compress_size, member.file_size,
        member.create_system, member.external_attr, read,
    )  # fmt: skip


def _from_file(name: str, path: Path) -> _Member:
    def read() -> Iterator[bytes]:
        with path.open("rb") as source:
            while chunk := source.read(CHUNK):
                yield chunk

    return _stored(name, path.stat().st_mode & 0o111 != 0, read)


def _from_bytes(name: str, content: bytes) -> _Member:
    return _stored(name, False, lambda: [content])


def _stored(name: str, program: bool, read: Callable[[], Iterable[bytes]]) -> _Member:
    crc = size = 0
    for chunk in read():
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    mode = stat.S_IFREG | (0o755 if program else 0o644)
    return _Member(name, zipfile.ZIP_STORED, EPOCH, crc, size, size, UNIX, mode << 16, read)


def _write_zip(sink: IO[bytes], members: Iterable[_Member]) -> None:
    """Write a zip archive without extra fields, data descriptors and comments: its bytes follow from the members alone."""
    directory = io.BytesIO()
    count = 0
    for count, member in enumerate(members, 1):  # noqa: B007
        name = member.name.encode()
        year, month, day, hour, minute, second = member.date
        common = (
            UTF8 if not member.name.isascii() else 0,
            member.method,
            hour << 11 | minute << 5 | second // 2,
            year - 1980 << 9 | month << 5 | day,
            member.crc,
            member.packed,
            member.size,
            len(name),
            0,
        )
        offset = sink.tell()
        if offset + member.packed > 0xFFFF_FFFF - (1 << 26):
            raise PatchError("the patched wheel would be larger than 4 GiB")
        sink.write(LOCAL.pack(b"PK\3\4", 20, *common) + name)
        for chunk in member.read():
            sink.write(chunk)
        directory.write(CENTRAL.pack(b"PK\1\2", member.system << 8 | 20, 20, *common, 0, 0, 0, member.attributes, offset) + name)
    start = sink.tell()
    sink.write(directory.getvalue())
    sink.write(END.pack(b"PK\5\6", 0, 0, count, count, len(directory.getvalue()), start, 0))
