"""Reading a vendor patch set: its series, each patch by digest, and what each patch says that it touches.

A patch set is a folder with `*.patch` files as `git format-patch --binary` or `git diff --binary` writes them, and a file
`series` that names each of them on a line of its own, in order: `<file> sha256:<64 hex digits>`. Lines that begin with # are
comments. Patches are foreign files: what could reach outside the tree is refused before git sees it.

`*.patch.encrypted` is a patch in a container (see `cipher`); its digest is that of the file as it lies there. The keys are not
known here: whoever reads such a set brings the function that decrypts.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from release.errors import PatchError
from release.oci import sha256
from release.patches.parse import Change, changes_in

SERIES: Final = "series"
SERIES_LIMIT: Final = 1 << 20
PATCH_LIMIT: Final = 64 << 20
"""Bytes that one patch file may have."""

LINE: Final = re.compile(r"(?P<file>\S+)(?:\s+(?P<sha256>\S+))?")
FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\.patch(?:\.encrypted)?")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
ENCRYPTED: Final = ".patch.encrypted"

Decrypt = Callable[[bytes, str], bytes]
"""Returns the plaintext of an encrypted patch, given its content and where it lies. Raises PatchError."""


@dataclass(frozen=True)
class Patch:
    """One patch file that was checked: its name in the series, where it lies, its digest `sha256:<hex>`, its changes.

    `decrypt` is there where the file is encrypted; the digest is that of the file all the same.
    """

    file: str
    path: Path
    sha256: str
    changes: tuple[Change, ...]
    decrypt: Decrypt | None = field(default=None, compare=False, repr=False)

    @property
    def touched(self) -> tuple[str, ...]:
        """Every path that the patch reads, writes or removes, sorted."""
        return tuple(sorted({path for change in self.changes for path in (change.old, change.new) if path}))


@dataclass(frozen=True)
class PatchSet:
    """The patches of one source, in the order in which they are applied. `name` is `<distribution>/<version>`."""

    name: str
    patches: tuple[Patch, ...]

    @property
    def touched(self) -> tuple[str, ...]:
        """Every path that any of the patches touches, sorted."""
        return tuple(sorted({path for patch in self.patches for path in patch.touched}))


def patch_set(folder: Path, decrypt: Decrypt | None = None) -> PatchSet:
    """Read and check the patch set in `folder`; nothing is written. `decrypt` opens the patches that are encrypted.

    Raises PatchError when the series is missing, empty or malformed, when a patch is missing, lies there unlisted, or is not the
    one with the digest in the series, when it is encrypted and cannot be opened, and when it is not a git patch or is unsafe (see
    `changes_in`).
    """
    folder = folder.absolute()
    name = f"{folder.parent.name}/{folder.name}"
    pins = _pins(folder, f"{name}/{SERIES}")
    for other in sorted(folder.iterdir()):
        if other.name.lower().endswith((".patch", ENCRYPTED)) and other.name not in pins:
            raise PatchError(
                f"{other.name} lies in the folder but is not in the series",
                where=name,
                next_step=f"add the line `{other.name} sha256:…` to {folder / SERIES}, or remove the file",
            )
    return PatchSet(name, tuple(_patch(folder, file, digest, name, decrypt) for file, digest in pins.items()))


def digests(folder: Path) -> list[str]:
    """Return the digest of every patch in the order of the series, each checked against its file; encrypted ones stay closed."""
    name = f"{folder.parent.name}/{folder.name}"
    pins = _pins(folder, f"{name}/{SERIES}")
    for file, digest in pins.items():
        _checked(folder, file, digest, f"{name}/{file}")
    return list(pins.values())


def _pins(folder: Path, where: str) -> dict[str, str]:
    """Return file name → digest in the order of the series."""
    pins: dict[str, str] = {}
    for number, line in enumerate(read_whole(folder / SERIES, SERIES_LIMIT, where).decode("utf-8", "replace").splitlines(), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        here, match = f"{where}:{number}", LINE.fullmatch(line)
        if not match or not FILE.fullmatch(match["file"]):
            raise PatchError(f"{line!r} does not begin with the name of a patch file in this folder", where=here)
        if not match["sha256"]:
            raise PatchError(f"{match['file']} has no digest", where=here, next_step="write `<file> sha256:<64 hex digits>`")
        if not DIGEST.fullmatch(match["sha256"]):
            raise PatchError(f"{match['sha256']!r} is not a digest of the form sha256:<64 hex digits>", where=here)
        if match["file"] in pins:
            raise PatchError(f"{match['file']} is listed twice", where=here)
        pins[match["file"]] = match["sha256"]
    if not pins:
        raise PatchError("the series lists no patch", where=where, next_step="list its patches, or name no patch set in the cell")
    return pins


def _patch(folder: Path, file: str, digest: str, name: str, decrypt: Decrypt | None) -> Patch:
    where = f"{name}/{file}"
    content = _checked(folder, file, digest, where)
    if file.endswith(ENCRYPTED):
        if not decrypt:
            raise PatchError(
                "the patch is encrypted, and no key is at hand",
                where=where,
                next_step="name the private key for it with --key FILE",
            )
        return Patch(file, folder / file, digest, changes_in(_opened(content, decrypt, where), where), decrypt)
    return Patch(file, folder / file, digest, changes_in(content, where))


def _checked(folder: Path, file: str, digest: str, where: str) -> bytes:
    content = read_whole(folder / file, PATCH_LIMIT, where)
    if (found := sha256(content)) != digest:
        raise PatchError(
            f"patch sha256 is {_short(found)}, the series says {_short(digest)}",
            where=where,
            next_step="look at what changed in the patch; if the change is meant, put the new digest into the series",
        )
    return content


def verified(patch: Patch) -> bytes:
    """Return the content of a patch, decrypted where it is encrypted.

    Raises PatchError when the file is no longer the one that was checked. An encrypted patch is in memory now, and whoever writes
    it to a disk does so in a private temporary folder.
    """
    content = read_whole(patch.path, PATCH_LIMIT, patch.file)
    if (found := sha256(content)) != patch.sha256:
        raise PatchError(f"patch sha256 is {_short(found)}, it was {_short(patch.sha256)} when it was read", where=patch.file)
    return _opened(content, patch.decrypt, patch.file) if patch.decrypt else content


def _opened(content: bytes, decrypt: Decrypt, where: str) -> bytes:
    if len(plaintext := decrypt(content, where)) > PATCH_LIMIT:
        raise PatchError(f"the patch has {len(plaintext)} bytes; at most {PATCH_LIMIT} are read", where=where)
    return plaintext


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:8] + "…"


def read_whole(path: Path, limit: int, where: str) -> bytes:
    """Return the content of a plain file. Raises PatchError for a link, a folder, more than `limit` bytes, and what cannot be read."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise PatchError(f"{path} is not a plain file", where=where)
        if status.st_size > limit:
            raise PatchError(f"{path.name} has {status.st_size} bytes; at most {limit} are read", where=where)
        return path.read_bytes()
    except OSError as problem:
        raise PatchError(f"{path} cannot be read: {problem.strerror}", where=where) from problem
