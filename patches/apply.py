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
from typing import IO, TYPE_CHECKING, Any, Final

from release.errors import PatchError
from release.patches.parse import path_fault
from release.patches.read import Patch, PatchSet, verified

if TYPE_CHECKING:
    from git import Git

FILE: Final = "100644"
PROGRAM: Final = "100755"
LINK: Final = "120000"
NOTHING: Final = "000000"
CHUNK: Final = 1 << 20
EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
INSTALL: Final = "install git (Debian: apt-get install git), or name it in GIT_PYTHON_GIT_EXECUTABLE"
CONFIGURATION: Final = """\
[core]
\trepositoryformatversion = 0
\tbare = false
\tautocrlf = false
\tcompression = 0
\tfileMode = true
\thooksPath = /dev/null
\tignoreCase = false
\tprecomposeUnicode = false
\tprotectHFS = false
\tprotectNTFS = false
"""


@dataclass(frozen=True)
class Applied:
    """What applying did: git's id of the tree before and after (40 hex digits), and the paths that differ, sorted."""

    base_tree: str
    tree: str
    changed: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """A file of a tree as git knows it: mode and id of its content."""

    mode: str
    id: str


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
    entries = dict(_entries(tree, ""))
    for patch in patches.patches:
        _refuse_links(patch, entries, patches.name)
    with tempfile.TemporaryDirectory(prefix="patch-", dir=scratch) as folder:
        repository = _Repository(Path(folder), patches.name)
        repository.load(entries)
        repository.keep(tree, {path: entries[path].id for path in patches.touched if path in entries})
        base = repository.tree()
        for patch in patches.patches:
            repository.apply(patch)
        result = repository.tree()
        changes = repository.changes(base, result)
        _refuse_surprises(changes, patches)
        contents = repository.contents([entry.id for entry in changes.values() if entry.mode != NOTHING])
        _write(tree, changes, contents)
    return Applied(base, result, tuple(sorted(changes)))


def _entries(tree: Path, below: str) -> Iterator[tuple[str, _Entry]]:
    """Yield path and entry of every file under `tree`, links as links."""
    with os.scandir(tree / below) as found:
        for item in found:
            path = below + item.name
            mode = item.stat(follow_symlinks=False).st_mode
            if item.name.casefold() == ".git":
                raise PatchError(f"the tree holds {path}: a checkout, not an exported source", where=str(tree))
            if stat.S_ISDIR(mode):
                yield from _entries(tree, path + "/")
            elif stat.S_ISLNK(mode):
                target = os.fsencode(os.readlink(item.path))  # noqa: PTH115
                yield path, _Entry(LINK, hashlib.sha1(b"blob %d\0" % len(target) + target, usedforsecurity=False).hexdigest())
            elif stat.S_ISREG(mode):
                yield path, _Entry(PROGRAM if mode & stat.S_IXUSR else FILE, _blob_id(Path(item.path)))
            else:
                raise PatchError(f"{path} is neither a file nor a folder nor a link", where=str(tree))


def _blob_id(path: Path) -> str:
    """Return git's id of a file's content: the SHA-1 of `blob <size>`, a zero byte and the bytes (git's gitformat-pack)."""
    with path.open("rb", buffering=0) as stream:
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(stream.fileno()).st_size, usedforsecurity=False)
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_links(patch: Patch, entries: Mapping[str, _Entry], name: str) -> None:
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


def _refuse_surprises(changes: Mapping[str, _Entry], patches: PatchSet) -> None:
    """Refuse what git made when it is not what was read in the patches: the last line of defence, not the first."""
    announced = set(patches.touched)
    for path, entry in changes.items():
        fault = path_fault(path) or ("" if path in announced else "is in none of the patches as they were read")
        if not fault and entry.mode not in (FILE, PROGRAM, NOTHING):
            fault = f"would have mode {entry.mode}"
        if fault:
            raise PatchError(f"git would change a path that {fault}: {path!r}", where=patches.name)


def _write(tree: Path, changes: Mapping[str, _Entry], contents: Mapping[str, Path]) -> None:
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


def _git() -> type[Git]:
    """Import GitPython, which runs git as it is imported: late, and with an answer where there is no git."""
    try:
        from git import Git
    except ModuleNotFoundError as problem:
        raise PatchError("GitPython is not installed", next_step="pip install gitpython") from problem
    except ImportError as problem:
        raise PatchError("git is not installed, or cannot be started", next_step=INSTALL) from problem
    return Git


class _Repository:
    """A git directory and an empty work tree under `folder`, with nothing of the user's: no configuration, hooks, attributes."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        (nowhere := folder / "nowhere").mkdir()
        self._git = _git()(nowhere)
        own = folder / "git"
        self._environment = {
            "GIT_DIR": str(own),
            "GIT_COMMON_DIR": str(own),
            "GIT_WORK_TREE": str(nowhere),
            "GIT_INDEX_FILE": str(own / "index"),
            "GIT_OBJECT_DIRECTORY": str(own / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_PARAMETERS": "",
            "GIT_CONFIG_COUNT": "0",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_DEFAULT_HASH": "sha1",
            "GIT_TEMPLATE_DIR": str(nowhere),
            "HOME": str(nowhere),
            "XDG_CONFIG_HOME": str(nowhere),
        }
        if "GIT_ATTR_SOURCE" in os.environ:
            self._environment["GIT_ATTR_SOURCE"] = EMPTY_TREE
        self._run("init", "--quiet")
        (own / "config").write_text(CONFIGURATION)

    def load(self, entries: Mapping[str, _Entry]) -> None:
        """Make `entries` the index."""
        lines = (f"{entry.mode} {entry.id}\t{path}\0" for path, entry in sorted(entries.items()))
        self._run("update-index", "-z", "--index-info", given=b"".join(map(os.fsencode, lines)))

    def keep(self, tree: Path, wanted: Mapping[str, str]) -> None:
        """Take the content of the files at these paths, whose ids are given, into the repository."""
        if not wanted:
            return
        if "\n" in str(tree):
            raise PatchError(f"the path of the tree has a line break: {str(tree)!r}", where=self._name)
        given = os.fsencode("".join(f"{tree / path}\n" for path in wanted))
        if self._run("hash-object", "-w", "--no-filters", "--stdin-paths", given=given).split() != list(wanted.values()):
            raise PatchError(f"the tree {tree} changed while it was read", where=self._name, next_step="start again")

    def tree(self) -> str:
        """Return the id of the tree that the index holds. The files that no patch touches need not be in the repository."""
        return self._run("write-tree", "--missing-ok").strip()

    def apply(self, patch: Patch) -> None:
        """Apply one patch to the index, all of it or nothing. Raises PatchError with file and hunk."""
        (place := self._folder / "patch").write_bytes(verified(patch))
        arguments = ("apply", "--cached", "--whitespace=nowarn", "-p1", str(place))
        status, _, complaint = self._execute(*arguments)
        if status:
            undone = self._execute("apply", "--reverse", "--check", *arguments[1:])[0] == 0
            raise PatchError(
                f"patch does not apply: {_reason(patch, complaint)}",
                where=f"{self._name}/{patch.file}",
                next_step="the tree already holds this change: take the patch out of the series"
                if undone
                else "the source is not the one that the patch was made for: pin that one, or make the patch again from this one",
            )

    def changes(self, before: str, after: str) -> dict[str, _Entry]:
        """Return the entries that differ between two trees, as they are in the second; a deleted one has the mode NOTHING."""
        fields = self._run("diff-tree", "-r", "-z", "--no-renames", "--no-ext-diff", before, after).split("\0")[:-1]
        pairs = zip(fields[0::2], fields[1::2], strict=True)
        return {path: _Entry(mode=head.split()[1], id=head.split()[3]) for head, path in pairs}

    def contents(self, ids: Sequence[str]) -> dict[str, Path]:
        """Write each blob into a file of its own under the repository's folder, and return where they are."""
        (where := self._folder / "contents").mkdir()
        if not ids:
            return {}
        with (self._folder / "batch").open("w+b") as stream:
            self._run("cat-file", "--batch", given="".join(f"{id}\n" for id in sorted(set(ids))).encode(), output=stream)
            stream.seek(0)
            while header := stream.readline():
                id, kind, size = header.decode().split()
                assert kind == "blob"
                with (where / id).open("wb") as sink:
                    for at in range(0, int(size), CHUNK):
                        sink.write(stream.read(min(CHUNK, int(size) - at)))
                stream.readline()
        return {id: where / id for id in ids}

    def _run(self, *arguments: str, given: bytes = b"", output: IO[bytes] | None = None) -> str:
        """Run git and return what it prints, undecodable bytes as surrogates. Raises PatchError when it fails."""
        status, printed, complaint = self._execute(*arguments, given=given, output=output)
        if status:
            raise PatchError(f"git {arguments[0]} ended with status {status}: {_last(complaint)}", where=self._name)
        return os.fsdecode(printed) if isinstance(printed, bytes) else ""

    def _execute(self, *arguments: str, given: bytes = b"", output: IO[bytes] | None = None) -> tuple[int, Any, str]:
        from git.exc import GitError

        (stdin := self._folder / "stdin").write_bytes(given)
        try:
            with stdin.open("rb") as stream:
                status, printed, complaint = self._git.execute(
                    [str(self._git.GIT_PYTHON_GIT_EXECUTABLE or "git"), *arguments],
                    istream=stream, output_stream=output, env=self._environment, stdout_as_string=False,
                    with_extended_output=True, with_exceptions=False, strip_newline_in_stdout=False,
                )  # fmt: skip
        except (GitError, OSError) as problem:
            raise PatchError("git is not installed, or cannot be started", where=self._name, next_step=INSTALL) from problem
        return status, printed, complaint


def _reason(patch: Patch, complaint: str) -> str:
    """Say which file and which hunk git stumbled over; git names the hunk by its first old line."""
    if match := re.search(r"^error: patch failed: (?P<path>.*):(?P<line>\d+)$", complaint, re.MULTILINE):
        for change in patch.changes:
            hunks = change.hunks if match["path"] in (change.old, change.new) else ()
            for number, hunk in enumerate(hunks, 1):
                if re.match(rf"@@ -{match['line']}\b", hunk):
                    return f"{match['path']}, hunk {number} of {len(hunks)} ({hunk})"
        return f"{match['path']}, line {match['line']}"
    return _last(complaint)


def _last(complaint: str) -> str:
    lines = [line.removeprefix("error: ").removeprefix("fatal: ") for line in complaint.splitlines() if line.strip()]
    return lines[-1] if lines else "git does not say why"
