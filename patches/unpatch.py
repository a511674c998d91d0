"""Restoring a vendor's tree: its patches on their base, bit for bit, in git objects alone; then one folder with plain files.

Everything happens in the index of a private repository that reads the objects of the mirrors. No file of the base is written before
all patches fitted and the tree that came out was looked at, and nobody's checkout is touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.errors import PatchError, RequestError
from release.oci import link_or_copy, sha256
from release.patches import mailbox
from release.patches.apply import reason
from release.patches.delivery import MAILBOX, SERIES, Delivery, Found, Root
from release.patches.git import FILE, LINK, NOTHING, PROGRAM, SUBMODULE, Entry, Repository, no_space
from release.patches.links import way_out
from release.patches.parse import Change, changes_in, path_fault
from release.patches.read import PATCH_LIMIT, Decrypt

EXACT: Final = "exact"
FIXED: Final = "whitespace-fixed"
"""How a patch was applied: as it is, or only after git had changed whitespace in it, which is not the tree that the vendor had."""
AS_IT_IS: Final = "--whitespace=nowarn"
MENDED: Final = "--whitespace=fix"
TARGETS_LIMIT: Final = 64 << 20
"""Bytes that all links of a tree may have together."""
BROKEN: Final = re.compile(rb"^diff --git .*\r$", re.MULTILINE)
"""What is in a patch that was itself turned into lines with carriage returns."""


@dataclass(frozen=True)
class Applied:
    """A patch that was applied: where it was found, the sha256 of the file and of its plaintext, and how: `exact` or `whitespace-fixed`."""

    path: str
    sha256: str
    plaintext: str
    encrypted: bool
    how: str


@dataclass(frozen=True)
class Unpatched:
    """A restored tree: full commit and tree id of the base, tree id of the result, and what it was made of.

    `source` is the commit of the repository that keeps the patches, empty for a series. `submodules` has path → commit of all
    that the result announces; those whose content was not asked for are empty folders and count as their commit, the others as
    their files. `changed` has the paths at which the result differs from its base and its submodules' commits, sorted.
    """

    base: str
    base_tree: str
    tree: str
    source: str
    submodules: Mapping[str, str]
    patches: tuple[Applied, ...]
    changed: tuple[str, ...]


def unpatch(
    delivery: Delivery,
    *,
    into: Path,
    scratch: Path,
    decrypt: Decrypt | None = None,
    pins: Mapping[str, str] | None = None,
    fix_whitespace: bool = True,
) -> Unpatched:
    """Apply the patches of a delivery to their base and write the result into the folder `into`, which is empty or not there.

    `scratch` is a folder for private files, the plaintext of encrypted patches among them, that are removed again however this
    ends. `decrypt` opens encrypted patches. `pins` is what a cell says: path → sha256 of every patch. Where a patch fits only
    after git has changed whitespace, that is done and recorded, or refused without `fix_whitespace`. Modes are 644 and 755.
    Raises PatchError when a patch is not the pinned one, is unsafe, cannot be opened, or does not apply; nothing is written then.
    """
    _compare(delivery, pins)
    refuse_taken(into, delivery.name)
    with tempfile.TemporaryDirectory(prefix="unpatch-", dir=scratch) as folder:
        objects = list(dict.fromkeys(root.mirror.objects for root in delivery.roots))
        work = _Work(Repository.create(Path(folder), delivery.name, objects=objects), delivery, decrypt, fix_whitespace)
        result = work.result()
        _write(work.repository, result.tree, into)
    return result


def refuse_taken(into: Path, where: str) -> None:
    """Refuse a place that is neither free nor an empty folder."""
    if into.is_symlink() or (into.exists() and (not into.is_dir() or any(into.iterdir()))):
        raise RequestError(f"{into} is not an empty folder", where=where, next_step="name a folder that is not there yet")


class _Work:
    """One delivery in one private repository, whose index is the tree that is being worked on."""

    def __init__(self, repository: Repository, delivery: Delivery, decrypt: Decrypt | None, fix: bool) -> None:
        self.repository, self._delivery, self._decrypt, self._fix = repository, delivery, decrypt, fix
        self._announced = {root.path: root.commit for root in delivery.roots[1:]}
        self._applied: list[Applied] = []
        self._changed: set[str] = set()

    def result(self) -> Unpatched:
        """Apply everything, leave the whole tree in the index, and say what it is."""
        own, *others = self._delivery.roots
        base_tree, tree, changes = self._patched(own)
        grafts = {}
        for root in others:
            if root.path in changes:
                if changes[root.path].mode != SUBMODULE:
                    raise PatchError(
                        f"the patches take away the submodule {root.path}, which was announced", where=self.repository.name
                    )
                self._announced[root.path] = changes[root.path].id
                root.mirror.bring(changes[root.path].id)
            grafts[root.path] = self._patched(Root(root.path, root.mirror, self._announced[root.path], root.patches))[1]
        if grafts:
            tree = self._grafted(tree, grafts)
        entries = self.repository.entries(tree)
        self._refuse_ways_out(entries)
        submodules = {path: entry.id for path, entry in entries.items() if entry.mode == SUBMODULE} | self._announced
        return Unpatched(
            own.commit, base_tree, tree, self._delivery.source, dict(sorted(submodules.items())), tuple(self._applied),
            tuple(sorted(self._changed)),
        )  # fmt: skip

    def _patched(self, root: Root) -> tuple[str, str, dict[str, Entry]]:
        """Make the index a root's tree with its patches; return the ids of the tree before and after, and what differs."""
        self.repository.run("read-tree", f"{root.commit}^{{tree}}")
        before = root.mirror.tree(root.commit)
        if not root.patches:
            return before, before, {}
        plain = [self._opened(patch) for patch in root.patches]
        touched, how = self._apply_all(root, plain)
        after = self.repository.tree()
        changes = self.repository.changes(before, after)
        self._refuse_surprises(changes, touched)
        self._applied += [
            Applied(patch.path, patch.sha256, sha256(text), patch.encrypted, way)
            for patch, text, way in zip(root.patches, plain, how, strict=True)
        ]
        self._changed |= {f"{root.path}/{path}" if root.path else path for path in changes}
        return before, after, changes

    def _opened(self, patch: Found) -> bytes:
        where = self._where(patch)
        if not patch.encrypted:
            text = patch.content
        elif self._decrypt is None:
            raise PatchError(
                "the patch is encrypted, and no key is at hand",
                where=where,
                next_step="name the private key for it with --key FILE",
            )
        else:
            text = self._decrypt(patch.content, where)
        if len(text) > PATCH_LIMIT:
            raise PatchError(f"the patch has {len(text)} bytes; at most {PATCH_LIMIT} are read", where=where)
        return text

    def _apply_all(self, root: Root, plain: Sequence[bytes]) -> tuple[set[str], list[str]]:
        """Apply the patches of a root; return every path that they name, and how each was applied.

        Several patches of one generation are one diff that was cut into pieces: it is put together again, since a rename and a
        new file in its place must be seen at once. Only where that does not fit is each piece tried for itself.
        """
        patches = root.patches
        if self._delivery.format != SERIES and len(plain) > 1:
            for patch, text in zip(patches, plain, strict=True):
                self._changes(text, self._where(patch))
            whole = b"".join(text if text.endswith(b"\n") else text + b"\n" for text in plain)
            touched, complaint = self._try([whole], AS_IT_IS, self._delivery.name)
            if not complaint:
                return touched, [EXACT] * len(plain)
        touched, how = set(), []
        for patch, text in zip(patches, plain, strict=True):
            paths, way = self._apply(text, self._where(patch))
            touched |= paths
            how.append(way)
        return touched, how

    def _apply(self, text: bytes, where: str) -> tuple[set[str], str]:
        """Apply one patch as it is, or else with its whitespace mended, and return the paths that it names, and how."""
        mails = self._delivery.format == MAILBOX and text.startswith(mailbox.START)
        complaint = "every line ends in a carriage return, those of the mail too"
        if not (mails and BROKEN.search(text)):
            pieces = mailbox.diffs(self.repository, text, where, keep_cr=True) if mails else [text]
            touched, complaint = self._try(pieces, AS_IT_IS, where)
            if not complaint:
                return touched, EXACT
        pieces = mailbox.diffs(self.repository, text, where, keep_cr=False) if mails else [text]
        touched, still = self._try(pieces, MENDED, where)
        if still:
            raise PatchError(
                f"patch does not apply: {complaint}", where=where,
                next_step="the base is not the one that it was made for, or the patch is damaged: compare both with the vendor's",
            )  # fmt: skip
        if not self._fix:
            raise PatchError(
                f"patch applies only after its whitespace is changed: {complaint}", where=where,
                next_step="ask the vendor for a patch that fits, or allow whitespace to be fixed: the tree is not the vendor's own then",
            )  # fmt: skip
        return touched, FIXED

    def _try(self, pieces: Sequence[bytes], whitespace: str, where: str) -> tuple[set[str], str]:
        """Apply diffs to the index, one after the other; return the paths that they name, or leave the index and say what is wrong."""
        read = [self._changes(piece, where) for piece in pieces]
        if not read:
            raise PatchError("the mailbox holds no change", where=where)
        index = self.repository.own / "index"
        shutil.copyfile(index, saved := index.with_name("index.saved"))
        for number, (piece, changes) in enumerate(zip(pieces, read, strict=True), 1):
            status, _, complaint = self.repository.execute("apply", "--cached", whitespace, "-p1", "-", given=piece)
            if "beyond a symbolic link" in complaint:
                raise PatchError(f"patch refused: {reason(changes, complaint)}", where=where, next_step="do not use it")
            if status:
                os.replace(saved, index)
                return set(), (f"mail {number} of {len(pieces)}: " if len(pieces) > 1 else "") + reason(changes, complaint)
        return {path for changes in read for change in changes for path in (change.old, change.new) if path}, ""

    def _changes(self, piece: bytes, where: str) -> tuple[Change, ...]:
        return changes_in(piece, where, vendor=self._delivery.format != SERIES, submodules=self._announced)

    def _refuse_surprises(self, changes: Mapping[str, Entry], touched: Collection[str]) -> None:
        """Refuse what git made when it is not what was read in the patches: the last line of defence, not the first."""
        modes = (FILE, PROGRAM, NOTHING) if self._delivery.format == SERIES else (FILE, PROGRAM, NOTHING, LINK)
        for path, entry in changes.items():
            fault = path_fault(path) or ("" if path in touched else "is in none of the patches as they were read")
            if not fault and entry.mode not in modes and not (entry.mode == SUBMODULE and path in self._announced):
                fault = f"would have mode {entry.mode}"
            if fault:
                raise PatchError(f"git would change a path that {fault}: {path!r}", where=self.repository.name)

    def _refuse_ways_out(self, entries: Mapping[str, Entry]) -> None:
        """Refuse a tree with a link that leads out of it, the base's own links among them."""
        links = {path: entry.id for path, entry in entries.items() if entry.mode == LINK}
        targets = self.repository.blobs(links.values(), TARGETS_LIMIT)
        if found := way_out({path: os.fsdecode(targets[id]) for path, id in links.items()}):
            path, target = found
            raise PatchError(
                f"the symbolic link {path!r} leads out of the tree, to {target[:200]!r}", where=self.repository.name,
                next_step="do not use the tree: ask the vendor what the link is for",
            )  # fmt: skip

    def _grafted(self, tree: str, grafts: Mapping[str, str]) -> str:
        """Make the index a tree whose submodules at these paths are replaced by their files, and return its id."""
        self.repository.run("read-tree", tree)
        for path, graft in grafts.items():
            self.repository.run("update-index", "-z", "--index-info", given=os.fsencode(f"0 {'0' * 40}\t{path}\0"))
            self.repository.run("read-tree", f"--prefix={path}/", graft)
        return self.repository.tree()

    def _where(self, patch: Found) -> str:
        return f"{self.repository.name}{'/' if self._delivery.format == SERIES else ': '}{patch.path}"


def _compare(delivery: Delivery, pins: Mapping[str, str] | None) -> None:
    """Refuse patches that are not those that are pinned, saying which are others, and what changed them."""
    if pins is None:
        return
    found = {patch.path: patch for root in delivery.roots for patch in root.patches}
    for path, patch in found.items():
        if path in pins and patch.sha256 != pins[path]:
            raise PatchError(
                f"patch sha256 is {_short(patch.sha256)}, the matrix says {_short(pins[path])}",
                where=f"{delivery.name}: {path}",
                next_step=f"it was replaced in place{last_change(delivery, path)}: look at what changed; if it is meant, write "
                f"{patch.sha256} into the cell's YAML, as sha256 of the source's vendor-patch",
            )
    others = [
        *(f"{path} is new" for path in found if path not in pins),
        *(f"{path} is gone" for path in pins if path not in found),
    ]
    if others:
        raise PatchError(
            f"the patches are not those of the matrix: {', '.join(others[:5])}{'…' if len(others) > 5 else ''}",
            where=delivery.name,
            next_step="look at what changed; if it is meant, pin them in the cell's YAML",
        )


def last_change(delivery: Delivery, path: str) -> str:
    """Return which commit changed a patch in the repository that keeps it, where one does."""
    if not delivery.source:
        return ""
    repository = delivery.roots[0].mirror.repository
    _, told, _ = repository.execute("log", "-1", "--format=%h of %as, %s", delivery.source, "--", f":(literal,top){path}")
    return f" by commit {text[:200]!r}" if (text := told.decode("utf-8", "replace").strip()) else ""


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:8] + "…"


def _write(repository: Repository, tree_id: str, into: Path) -> None:
    """Write what the index holds, the tree `tree_id`, into a folder of its own, and make that `into` by one rename."""
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as folder:
        (tree := Path(folder) / "tree").mkdir()
        tree.chmod(0o755)
        try:
            repository.run("checkout-index", "--all", f"--prefix={tree}/", umask=0o022)
        except PatchError as problem:
            if _is_short(repository, tree_id, tree):
                raise no_space(into.parent, repository.name) from problem
            raise
        os.replace(tree, into)


def _is_short(repository: Repository, tree_id: str, tree: Path) -> bool:
    """Say whether a disk cannot hold what is not in the folder `tree` yet: where it cannot write a file, git does not say why."""
    sizes = repository.sizes(tree_id)
    here = {path for path, size in sizes.items() if os.path.lexists(tree / path) and (tree / path).lstat().st_size == size}
    disk = os.statvfs(tree)
    wanted = sum(-(-size // disk.f_frsize) for path, size in sizes.items() if path not in here)
    return wanted > disk.f_bavail or bool(disk.f_files and not disk.f_favail)


def pass_through(file: Path, digest: str, into: Path) -> Path:
    """Take a plugin as it was released, a wheel or a source archive, into the folder `into`, and return where it lies.

    Raises PatchError when it is not the file with this digest (`sha256:<hex>`).
    """
    with file.open("rb") as stream:
        found = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        raise PatchError(
            f"plugin sha256 is {_short(found)}, the matrix says {_short(digest)}",
            where=file.name,
            next_step="fetch the pinned one",
        )
    link_or_copy(file, kept := into / file.name)
    return kept
