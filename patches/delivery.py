"""What a vendor handed over: a base commit, submodules with theirs, and the patches for each, wherever they were kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from release.errors import PatchError, RequestError
from release.oci import sha256
from release.patches.git import SUBMODULE
from release.patches.mirror import Mirror
from release.patches.read import ENCRYPTED, PatchSet

SERIES: Final = "series"
"""The format of our own patch sets."""
MAILBOX: Final = "A"
"""The format whose patch is a mailbox of commits; in the others it is one diff."""


@dataclass(frozen=True)
class Found:
    """A patch as it was found: where (a path in the repository that keeps it, or the name in a series), and its bytes."""

    path: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Return the digest of the file as it was found, `sha256:<hex>`."""
        return sha256(self.content)

    @property
    def encrypted(self) -> bool:
        """Say whether it must be decrypted before it can be applied."""
        return self.path.endswith(ENCRYPTED)


@dataclass(frozen=True)
class Root:
    """One tree that patches are applied to: the source's own (path ``) or a submodule's, at a full commit that its mirror has."""

    path: str
    mirror: Mirror
    commit: str
    patches: tuple[Found, ...]


@dataclass(frozen=True)
class Delivery:
    """A base and its patches. `roots` begins with the source's own tree, the others are the submodules that were announced.

    `format` is SERIES or the generation of FlagScale's (A, transitional, B, C). `source` is the commit of the repository that
    keeps the patches, empty for a series.
    """

    name: str
    format: str
    source: str
    roots: tuple[Root, ...]


def series(mirror: Mirror, commit: str, patches: PatchSet | None, *, submodules: Mapping[str, Mirror] | None = None) -> Delivery:
    """Return a source at a full commit with a patch set of ours, or none; what it needs is brought into the mirrors.

    `submodules` announces path → mirror of the submodules whose content is wanted. Raises PatchError when the source has no such
    commit or submodule, or a patch is no longer the one that was read.
    """
    mirror.bring(commit)
    found = []
    for patch in patches.patches if patches else ():
        where = f"{patches.name if patches else ''}/{patch.file}"
        try:
            content = patch.path.read_bytes()
        except OSError as problem:
            raise PatchError(f"{patch.path} cannot be read: {problem.strerror}", where=where) from problem
        if sha256(content) != patch.sha256:
            raise PatchError("the patch changed after it was read", where=where, next_step="start again")
        found.append(Found(patch.file, content))
    own = Root("", mirror, commit, tuple(found))
    return Delivery(patches.name if patches else mirror.name, SERIES, "", (own, *announced(own, submodules or {}, {})))


def announced(
    own: Root, submodules: Mapping[str, Mirror], patched: Mapping[str, tuple[str, tuple[Found, ...]]]
) -> tuple[Root, ...]:
    """Return one root for every submodule that was announced (path → mirror), and bring what it needs into its mirror.

    `patched` holds commit and patches for those that have some; an empty commit means the one that the tree announces. Raises
    PatchError when one has patches but was not announced, or was announced but is no submodule of the tree.
    """
    links = {path: entry.id for path, entry in own.mirror.entries(own.commit).items() if entry.mode == SUBMODULE}
    for path in patched:
        if path not in submodules:
            raise RequestError(
                f"the patches are for the submodule {path}, which was not announced",
                where=own.mirror.name,
                next_step=f"announce its repository{_told(own, path)}",
            )
    roots = []
    for path, mirror in sorted(submodules.items()):
        if path not in links:
            raise RequestError(f"{path} was announced, but is no submodule of commit {own.commit}", where=own.mirror.name)
        named, patches = patched.get(path, ("", ()))
        commit = mirror.commit(named or links[path])
        mirror.bring(commit)
        roots.append(Root(path, mirror, commit, patches))
    return tuple(roots)


def _told(own: Root, path: str) -> str:
    """Return what the tree's own .gitmodules says of a submodule, as a hint for people; it is never followed."""
    what = ("config", "--blob", f"{own.commit}:.gitmodules", "--get-regexp", r"^submodule\..*\.(path|url)$")
    lines = own.mirror.repository.execute(*what)[1].decode("utf-8", "replace").splitlines()
    told = dict(line.split(" ", 1) for line in lines if " " in line)
    key = next((key.removesuffix("path") for key, value in told.items() if key.endswith(".path") and value == path), None)
    return f"; the tree's .gitmodules says {told[key + 'url'][:200]!r}" if key and key + "url" in told else ""
