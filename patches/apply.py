"""Applying a patch set to a tree, in a private git repository that sees neither the tree nor the user's configuration.

The tree is hashed here, file by file; git gets the list of hashes as its index, and the content of the files that the patches
touch. All patches are applied to that index. Only when every one of them fitted, and nothing but plain files came out, are the
changed files written into the tree, by us. So git never writes a path that a patch chose, attributes and ignore files in the tree
mean nothing, and a tree of any size costs one reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.errors import PatchError
from release.patches.git import CHUNK, FILE, LINK, NOTHING, PROGRAM, Entry, Repository, last_line
from release.patches.parse import Change, path_fault
from release.patches.read import Patch, PatchSet, verified

APPLY: Final = ("apply", "--cached", "--whitespace=nowarn", "-p1", "-")


@dataclass(frozen=True)
class Applied:
    """What applying did: git's id of the tree before and after (40 hex digits), and the paths that differ, sorted."""

    base_tree: str
    tree: str
    changed: tuple[str, ...]


def apply(tree: Path, patches: PatchSet, *, scratch: Path) -> Applied:
    """Apply every patch, in order and exactly, to the files under `tree`.

    `scratch` is a folder outside the tree for a git directory that is removed again. Files that change are replaced, never
    written in place, so hard links to a store stay as they are; they get mode 644 or 755. The ids are the same on every host:
    git's SHA-1 ids of the tree's files (permissions reduced to 644 and 755; empty folders do not count).
    Raises PatchError when a patch is no longer the one that was read, passes through a symbolic link, does not apply, or makes
    anything but a plain file. The tree is unchanged then.
    """
    tree, scratch = tree.resolve(), scratch.resolve()
    if not tree.is_dir():
        raise PatchError(f"there is no folder {tree} to patch", where=patches.name)
    if scratch.is_relative_to(tree):
        raise PatchError(f"the scratch folder {scratch} lies inside the tree {tree}", where=patches.name)
    entries = dict(entries_under(tree))
    for patch in patches.patches:
        _refuse_links(patch, entries, patches.name)
    with tempfile.TemporaryDirectory(prefix="patch-", dir=scratch) as folder:
        repository = Repository.create(Path(folder), patches.name)
        repository.load(entries)
        repository.keep(tree, {path: entries[path].id for path in patches.touched if path in entries})
        base = repository.tree()
        for patch in patches.patches:
            _apply(repository, patch)
        result = repository.tree()
        changes = repository.changes(base, result)
        _refuse_surprises(changes, patches)
        contents = repository.contents([entry.id for entry in changes.values() if entry.mode != NOTHING])
        _write(tree, changes, contents)
    return Applied(base, result, tuple(sorted(changes)))


def entries_under(tree: Path, below: str = "") -> Iterator[tuple[str, Entry]]:
    """Yield path and entry of every file under `tree`, links as links. Raises PatchError for a `.git`, and for what is no file."""
    with os.scandir(tree / below) as found:
        for item in found:
            path = below + item.name
            mode = item.stat(follow_symlinks=False).st_mode
            if item.name.casefold() == ".git":
                raise PatchError(f"the tree holds {path}: a checkout, not an exported source", where=str(tree))
            if stat.S_ISDIR(mode):
                yield from entries_under(tree, path + "/")
            elif stat.S_ISLNK(mode):
                target = os.fsencode(os.readlink(item.path))  # noqa: PTH115
                yield path, Entry(LINK, hashlib.sha1(b"blob %d\0" % len(target) + target, usedforsecurity=False).hexdigest())
            elif stat.S_ISREG(mode):
                yield path, Entry(PROGRAM if mode & stat.S_IXUSR else FILE, _blob_id(Path(item.path)))
            else:
                raise PatchError(f"{path} is neither a file nor a folder nor a link", where=str(tree))


def _blob_id(path: Path) -> str:
    """Return git's id of a file's content: the SHA-1 of `blob <size>`, a zero byte and the bytes (git's gitformat-pack)."""
    with path.open("rb", buffering=0) as stream:
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(stream.fileno()).st_size, usedforsecurity=False)
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_links(patch: Patch, entries: Mapping[str, Entry], name: str) -> None:
    for path in patch.touched:
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            above = "/".join(parts[:end])
            if above in entries and entries[above].mode == LINK:
                how = "is" if end == len(parts) else f"passes through {above},"
                raise PatchError(
                    f"path {path!r} {how} a symbolic link in the tree",
                    where=f"{name}/{patch.file}",
                    next_step="patch the file that the link leads to",
                )


def _refuse_surprises(changes: Mapping[str, Entry], patches: PatchSet) -> None:
    """Refuse what git made when it is not what was read in the patches: the last line of defence, not the first."""
    announced = set(patches.touched)
    for path, entry in changes.items():
        fault = path_fault(path) or ("" if path in announced else "is in none of the patches as they were read")
        if not fault and entry.mode not in (FILE, PROGRAM, NOTHING):
            fault = f"would have mode {entry.mode}"
        if fault:
            raise PatchError(f"git would change a path that {fault}: {path!r}", where=patches.name)


def _write(tree: Path, changes: Mapping[str, Entry], contents: Mapping[str, Path]) -> None:
    for path, entry in changes.items():
        if entry.mode == NOTHING:
            (tree / path).unlink()
            with contextlib.suppress(OSError):  # not empty
                for folder in itertools.takewhile(lambda above: above != tree, (tree / path).parents):
                    folder.rmdir()
    for path, entry in changes.items():
        if entry.mode != NOTHING:
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            number, temporary = tempfile.mkstemp(prefix=".patch-", dir=target.parent)
            try:
                with os.fdopen(number, "wb") as sink, contents[entry.id].open("rb") as source:
                    shutil.copyfileobj(source, sink, CHUNK)
                    os.fchmod(number, 0o755 if entry.mode == PROGRAM else 0o644)
                os.replace(temporary, target)
            finally:
                Path(temporary).unlink(missing_ok=True)


def _apply(repository: Repository, patch: Patch) -> None:
    """Apply one patch to the index, all of it or nothing. Raises PatchError with file and hunk."""
    content = verified(patch)
    status, _, complaint = repository.execute(*APPLY, given=content)
    if status:
        undone = repository.execute("apply", "--reverse", "--check", *APPLY[1:], given=content)[0] == 0
        raise PatchError(
            f"patch does not apply: {reason(patch.changes, complaint)}",
            where=f"{repository.name}/{patch.file}",
            next_step="the tree already holds this change: take the patch out of the series"
            if undone
            else "the source is not the one that the patch was made for: pin that one, or make the patch again from this one",
        )


def reason(changes: Sequence[Change], complaint: str) -> str:
    """Say which file and which hunk git stumbled over; git names the hunk by its first old line."""
    if match := re.search(r"^error: patch failed: (?P<path>.*):(?P<line>\d+)$", complaint, re.MULTILINE):
        for change in changes:
            hunks = change.hunks if match["path"] in (change.old, change.new) else ()
            for number, hunk in enumerate(hunks, 1):
                if re.match(rf"@@ -{match['line']}\b", hunk):
                    return f"{match['path']}, hunk {number} of {len(hunks)} ({hunk})"
        return f"{match['path']}, line {match['line']}"
    return last_line(complaint)
