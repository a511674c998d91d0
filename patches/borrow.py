"""Looking into somebody's repository without working in it: its objects are read, its names copied, its configuration never asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from release.errors import RequestError
from release.patches.git import Repository

POINTER: Final = "gitdir: "
POINTER_LIMIT: Final = 8 << 10
WHICH: Final = "name a checkout, a bare repository, or the mirror of one"

Bring = Callable[[str, Sequence[str]], None]
"""Sees that the files of a commit under some paths are in a repository that may lack them: `Mirror.bring`."""


def borrowed(folder: Path, place: Path, name: str) -> Repository:
    """Make a repository of our own in `folder`, empty and ours alone, that reads the objects of the one at `place`.

    It has the branches, tags and HEAD of that one under the same names. At `place` nothing is written, and no hook, filter or
    configuration of it runs; git's own `upload-pack` tells its names. Raises PatchError where there is no repository.
    """
    directory = git_directory(place, name)
    repository = Repository.create(folder, name, objects=[directory / "objects"])
    if (shallow := directory / "shallow").is_file():
        shutil.copyfile(shallow, repository.own / "shallow")
    orders = []
    for line in repository.reach("ls-remote", "--quiet", str(git_directory(place, name, shared=False))).splitlines():
        id, _, ref = line.partition("\t")
        if ref == "HEAD":
            (repository.own / "HEAD").write_text(f"{id}\n")
        elif ref.startswith("refs/") and not ref.endswith("^{}"):
            orders.append(f"create {ref} {id}\n")
    repository.run("update-ref", "--stdin", given="".join(orders).encode("utf-8", "surrogateescape"))
    return repository


def commit_id(repository: Repository, revision: str) -> str:
    """Return the full id of the commit that `revision` names (a branch, a tag, an id, its beginning, `main~3`)."""
    status, printed = 1, b""
    if revision and "\0" not in revision:
        status, printed, _ = repository.execute("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    if status:
        raise RequestError(
            f"there is no commit {revision!r} in the repository", where=repository.name, next_step="fetch it, or name another one"
        )
    return printed.decode().strip()


def git_directory(place: Path, name: str, *, shared: bool = True) -> Path:
    """Return the git directory of a checkout, a bare repository or a mirror; of a further worktree, with `shared`, the first one's."""
    found = next((path for path in (place / ".git", place / "git", place) if _holds_head(path)), None)
    if not found and (place / ".git").is_file():
        found = _pointed(place, place / ".git", POINTER, name)
    if not found or not _holds_head(found):
        raise RequestError(f"there is no git repository at {place}", where=name, next_step=WHICH)
    if shared and (found / "commondir").is_file():
        found = _pointed(found, found / "commondir", "", name)
    return found.resolve()


def is_repository(place: Path) -> bool:
    """Say whether there is a checkout or a bare repository at `place`."""
    return (place / ".git").exists() or ((place / "objects").is_dir() and _holds_head(place))


def _holds_head(path: Path) -> bool:
    return path.is_dir() and (path / "HEAD").is_file()


def _pointed(base: Path, file: Path, mark: str, name: str) -> Path:
    """Follow a file that names a folder, relative to `base`."""
    with file.open("rb") as stream:
        text = stream.read(POINTER_LIMIT).decode("utf-8", "surrogateescape").rstrip("\n")
    if not text.startswith(mark) or "\0" in text:
        raise RequestError(f"{file} does not name a git directory", where=name, next_step=WHICH)
    return base / text.removeprefix(mark)
