"""Making a patch set from a vendor's tree: every difference from the base, exactly, proven by applying it before it is kept."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.errors import PatchError, RequestError
from release.oci import sha256
from release.patches.apply import APPLY, entries_under
from release.patches.borrow import Bring, borrowed, commit_id, git_directory, is_repository
from release.patches.cipher import encrypt
from release.patches.git import FILE, LINK, NOTHING, PROGRAM, SUBMODULE, Entry, Repository, last_line
from release.patches.keys import PublicKey
from release.patches.parse import GIT_HEADER, HEADER_LIMIT, path_fault
from release.patches.read import ENCRYPTED, PATCH_LIMIT, SERIES, patch_set

DIFF: Final = (
    *("diff-tree", "-r", "-p", "--binary", "--full-index", "--unified=3", "--diff-algorithm=myers", "--no-indent-heuristic"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/"),
)
"""The same difference is the same bytes, whatever is configured."""
MAIL: Final = (
    *("format-patch", "-1", "--stdout", "--binary", "--full-index", "--unified=3", "--diff-algorithm=myers"),
    *(
        "--no-indent-heuristic",
        "--find-renames",
        "--zero-commit",
        "--no-signature",
        "--no-ext-diff",
        "--no-textconv",
        "--no-base",
    ),
    *("--src-prefix=a/", "--dst-prefix=b/", "--no-attach", "--no-thread", "--encode-email-headers"),
)
ROOM: Final = 64 << 10
"""Bytes of a patch file that are left for the container around it."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
APART: Final = "take the largest files out of the tree, and bring them another way"
WHOLE: Final = "make one patch of all; a commit message that holds a diff is read as one"
KINDS: Final = {LINK: "a symbolic link", SUBMODULE: "a submodule"}


@dataclass(frozen=True)
class MadePatch:
    """One file of the set: its name, its digest `sha256:<hex>` as it lies there, and that of the patch inside where it is encrypted."""

    file: str
    sha256: str
    plaintext_sha256: str = ""


@dataclass(frozen=True)
class Made:
    """A patch set that was made and proven: applied in order to `base_tree`, the patches give `tree` (git's ids).

    `base` and `commit` are the commits that were compared, empty for plain folders. `changed` are the paths that differ.
    `left_out` are files of a checkout that are changed or new and in no commit, and so not in the patches either.
    """

    folder: Path
    base: str
    base_tree: str
    commit: str
    tree: str
    patches: tuple[MadePatch, ...]
    changed: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Side:
    """One of the two trees that are compared: its files by path, where they lie unless git holds them, its commit if it is one."""

    entries: Mapping[str, Entry]
    files: Path | None = None
    commit: str = ""
    objects: Path | None = None
    left_out: tuple[str, ...] = ()


def make(
    tree: Path,
    base: Path | str,
    out: Path,
    *,
    commit: str = "HEAD",
    repository: Path | None = None,
    each_commit: bool = False,
    recipients: Sequence[PublicKey] = (),
    bring: Bring | None = None,
    scratch: Path | None = None,
) -> Made:
    """Write the patch set that turns `base` into `tree` to the folder `out`, `<somewhere>/<source>/<base>`, which must not be there.

    `tree` is a plain folder, or a checkout or bare repository, of which `commit` is taken. `base` is a plain folder, or a commit of
    `repository` (where that is not given: of `tree` itself). The set is one patch, more where that is larger than a reader takes;
    with `each_commit`, one for each commit from the base, messages and authors included, which takes a straight history. With
    `recipients` the patches are encrypted for these keys, in a container of ours, and no plaintext is written but in a private folder
    under `scratch` (default: the system's), which is removed. `bring` is asked for the files of the base that differ.
    Raises PatchError when there is nothing to patch, when a link or submodule differs (a patch set cannot hold it), and when
    applying the set to the base does not give exactly `tree`; `out` is not made then.
    """
    name = f"{out.parent.name}/{out.name}"
    if not NAME.fullmatch(out.name) or not NAME.fullmatch(out.absolute().parent.name):
        raise RequestError(
            "a patch set lies in `<source>/<base>`, two plain names", where=str(out), next_step="choose such a folder"
        )
    if os.path.lexists(out):
        raise RequestError("the folder is there already", where=str(out), next_step="remove it, or choose another one")
    with tempfile.TemporaryDirectory(prefix="patch-", dir=scratch) as folder:
        private = Path(folder)
        old = _side(private / "base", repository or tree, base, name) if isinstance(base, str) else _plain(base, name)
        new = _side(private / "tree", tree, commit, name, look=True) if is_repository(tree) else _plain(tree, name)
        (private / "work").mkdir()
        work = Repository.create(
            private / "work", name, objects=sorted({side.objects for side in (old, new) if side.objects is not None})
        )
        base_tree, result = _tree(work, old), _tree(work, new)
        changes = work.changes(base_tree, result)
        _refuse_what_no_patch_holds(changes, old.entries, name)
        if bring and old.commit:
            bring(old.commit, sorted(path for path in changes if path in old.entries))
        for side in (old, new):
            _keep(work, side, changes)
        texts = _mails(work, old, new, name) if each_commit else dict(_numbered(_diffs(work, base_tree, result)))
        _prove(work, base_tree, result, texts)
        patches = _write(out, texts, recipients, f"base {old.commit or 'tree ' + base_tree}, result tree {result}")
    return Made(out, old.commit, base_tree, new.commit, result, patches, tuple(sorted(changes)), new.left_out)


def _plain(files: Path, name: str) -> _Side:
    if not files.is_dir():
        raise PatchError(f"there is no folder {files}", where=name)
    return _Side(dict(entries_under(files.resolve())), files=files.resolve())


def _side(folder: Path, place: Path, revision: str, name: str, *, look: bool = False) -> _Side:
    """Read a commit of somebody's repository, and with `look`, see what its work tree has besides."""
    folder.mkdir()
    repository = borrowed(folder, place, name)
    commit = commit_id(repository, revision)
    left_out: tuple[str, ...] = ()
    if look and (place / ".git").exists():
        status, head, _ = repository.execute("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        repository.run("read-tree", commit if status else head.decode().strip())
        seen = repository.run(
            *(f"--work-tree={place.resolve()}", "ls-files", "-z", "--modified", "--deleted", "--others"),
            *("--exclude-standard", "--directory", "--no-empty-directory"),
        )
        left_out = tuple(sorted(set(seen.split("\0")[:-1])))
    return _Side(repository.entries(commit), commit=commit, objects=git_directory(place, name) / "objects", left_out=left_out)


def _tree(work: Repository, side: _Side) -> str:
    if side.commit:
        return work.run("rev-parse", "--verify", side.commit + "^{tree}").strip()
    work.run("read-tree", "--empty")
    work.load(side.entries)
    return work.tree()


def _keep(work: Repository, side: _Side, changes: Mapping[str, Entry]) -> None:
    if side.files is not None:
        work.keep(side.files, {path: side.entries[path].id for path in changes if path in side.entries})


def _refuse_what_no_patch_holds(changes: Mapping[str, Entry], before: Mapping[str, Entry], name: str) -> None:
    if not changes:
        raise PatchError("the tree does not differ from its base", where=name, next_step="there is nothing to make a patch of")
    for path, entry in changes.items():
        shown, fault = os.fsencode(path).decode("utf-8", "backslashreplace"), path_fault(path)
        if not fault and any("\udc80" <= char <= "\udcff" for char in path):
            fault = "is not UTF-8"
        modes = [entry.mode, before[path].mode if path in before else NOTHING]
        if not fault and (odd := [mode for mode in modes if mode not in (FILE, PROGRAM, NOTHING)]):
            fault = f"is {KINDS.get(odd[0], f'of mode {odd[0]}')}"
        if fault:
            raise PatchError(
                f"{shown!r} differs, and a patch set cannot hold it: the path {fault}",
                where=name,
                next_step="have plain files in its place, or the same in the base and in the tree",
            )


def _diffs(work: Repository, base: str, tree: str) -> list[bytes]:
    """Return the difference as one patch, or as several that a reader takes, without renames then, deletions first."""
    if len(whole := _printed(work, *DIFF, "--find-renames", base, tree)) <= PATCH_LIMIT - ROOM:
        return [whole]
    sections = re.split(rb"^(?=%s)" % GIT_HEADER, _printed(work, *DIFF, "--no-renames", base, tree), flags=re.MULTILINE)[1:]
    sections.sort(key=lambda section: b"\ndeleted file mode " not in section[:HEADER_LIMIT])
    texts: list[bytes] = []
    for section in sections:
        if texts and len(texts[-1]) + len(section) <= PATCH_LIMIT - ROOM:
            texts[-1] += section
        else:
            texts.append(section)
    return texts


def _numbered(texts: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((f"{number:04}", text) for number, text in enumerate(texts, 1))


def _mails(work: Repository, old: _Side, new: _Side, name: str) -> dict[str, bytes]:
    """Return one mail for each commit from the base on, oldest first, by number and subject."""
    if not old.commit or not new.commit or old.objects != new.objects:
        raise PatchError("one patch for each commit takes two commits of one repository", where=name)
    commits = work.run("rev-list", "--reverse", "--parents", f"{old.commit}..{new.commit}").splitlines()
    above = old.commit
    for line in commits:
        commit, *parents = line.split()
        if parents != [above]:
            raise PatchError(
                f"the history from the base is no straight line: {commit[:8]} has the parents {[id[:8] for id in parents]}",
                where=name,
                next_step="make one patch of all, or rebase",
            )
        above = commit
    if above != new.commit:
        raise PatchError(f"the base {old.commit[:8]} is no ancestor of {new.commit[:8]}", where=name)
    mails: dict[str, bytes] = {}
    for line in commits:
        if mail := _printed(work, *MAIL, commit := line.split()[0]):  # none where a commit changes nothing
            words = re.findall(r"[A-Za-z0-9]+", work.run("show", "--no-patch", "--format=%f", commit))
            mails["-".join([f"{len(mails) + 1:04}", *words])[:60].rstrip("-")] = mail
    return mails


def _printed(work: Repository, *arguments: str) -> bytes:
    """Run git and return what it prints, to the byte."""
    status, printed, complaint = work.execute(*arguments)
    if status:
        raise PatchError(f"git {arguments[0]} ended with status {status}: {last_line(complaint)}", where=work.name)
    return printed


def _prove(work: Repository, base: str, tree: str, texts: Mapping[str, bytes]) -> None:
    """Apply the patches to the base, and see that the tree comes out, bit for bit."""
    work.run("read-tree", base)
    for number, text in enumerate(texts.values(), 1):
        if len(text) > PATCH_LIMIT - ROOM:
            raise PatchError(f"patch {number} has {len(text)} bytes, more than a reader takes", where=work.name, next_step=APART)
        status, _, complaint = work.execute(*APPLY, given=text)
        if status:
            raise PatchError(
                f"patch {number} does not apply to the base: {last_line(complaint)}", where=work.name, next_step=WHOLE
            )
    if (found := work.tree()) != tree:
        raise PatchError(f"applied to the base, the patches give the tree {found}, not {tree}", where=work.name, next_step=WHOLE)


def _write(out: Path, texts: Mapping[str, bytes], recipients: Sequence[PublicKey], about: str) -> tuple[MadePatch, ...]:
    """Write the set beside its place, read it as everybody will, and rename it to its place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    plain: dict[str, bytes] = {}
    try:
        (place := hidden / out.parent.name / out.name).mkdir(parents=True)
        patches = []
        for number, (file, text) in enumerate(texts.items(), 1):
            content = encrypt(text, recipients) if recipients else text
            plain[digest := sha256(content)] = text
            made = (
                MadePatch(f"{number:04}{ENCRYPTED}", digest, sha256(text)) if recipients else MadePatch(file + ".patch", digest)
            )
            (place / made.file).write_bytes(content)
            patches.append(made)
        lines = [f"# {about}\n", *(f"{made.file} {made.sha256}\n" for made in patches)]
        (place / SERIES).write_text("".join(lines))
        patch_set(place, lambda content, _: plain[sha256(content)])
        try:
            place.rename(out)
        except OSError as problem:
            raise PatchError(f"the set cannot be put in its place: {problem.strerror}", where=str(out)) from problem
    finally:
        shutil.rmtree(hidden)
    return tuple(patches)
