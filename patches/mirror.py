"""Mirrors of source repositories: one a repository in the store, shared by all cells, filled as commits are asked for."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from release.errors import PatchError, RequestError
from release.patches.git import SUBMODULE, Entry, Repository, last_line
from release.store import Store

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
SHORT: Final = re.compile(r"[0-9a-f]{7,39}")
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
SCP: Final = re.compile(r"(?P<user>[A-Za-z0-9._-]+@)?(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(?P<path>[^:].*)")
ADDRESS: Final = re.compile(r"[!-~]{1,2000}")
PORTS: Final = {"https": 443, "ssh": 22}
EVERYTHING: Final = ("--force", "--prune", "--update-head-ok", "origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
FETCH: Final = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-shallow", "--filter=blob:none")
PARTIAL: Final = """\
[core]
\trepositoryformatversion = 1
[extensions]
\tpartialClone = origin
[fetch]
\tunpackLimit = 1
[remote "origin"]
\turl = "{address}"
\tpromisor = true
\tpartialCloneFilter = blob:none
"""
"""What a mirror has besides the configuration of every repository of ours. Servers that cannot leave out files send them all."""
ONLINE: Final = "build once with the network, or name a commit that was used here before"


def spoken(address: str) -> str:
    """Return an address as git is told it: a local folder as `file://…`, all else unchanged.

    Raises PatchError for what is not https, ssh or a local folder, for a password in it, and for what git could take for an option.
    """
    if address and (folder := Path(address).expanduser()).is_dir():
        return "file://" + quote(str(folder.resolve()))
    if not ADDRESS.fullmatch(address) or address.startswith("-") or set(address) & set('"\\#;'):
        raise RequestError(
            f"{address[:200]!r} is not the address of a repository",
            next_step="name it by https://, ssh://, file:// or a local folder",
        )
    if "://" not in address and "::" not in address and SCP.fullmatch(address):
        return address
    scheme = address.partition("::")[0] if "::" in address.partition("://")[0] else urlsplit(address).scheme
    if scheme not in ("https", "ssh", "file") or "::" in address.partition("://")[0]:
        raise RequestError(
            f"{without_password(address)}: {scheme or 'a path that is no folder'} is not a way to a repository that is taken",
            next_step="name it by https://, ssh://, file:// or a local folder",
        )
    if urlsplit(address).password is not None:
        raise RequestError(
            f"{without_password(address)}: an address holds no password",
            next_step="keep it in a git credential helper; the user's own are asked",
        )
    if scheme != "file" and not urlsplit(address).hostname:
        raise RequestError(f"{address!r} names no server")
    return address


def without_password(address: str) -> str:
    """Return an address that can be shown: without user name and password."""
    return re.sub(r"://[^/@]*@", "://", address)


def normal(address: str) -> str:
    """Return the one spelling of an address: no `.git`, slash, default port or user at its end, host in small letters, scp as ssh."""
    address = spoken(address)
    if "://" not in address and (match := SCP.fullmatch(address)):
        address = f"ssh://{match['host']}/{match['path'].lstrip('/')}"
    parts = urlsplit(address)
    try:
        port = "" if parts.port in (None, PORTS.get(parts.scheme)) else f":{parts.port}"
    except ValueError as problem:
        raise RequestError(f"{without_password(address)}: {problem}") from problem
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    if parts.scheme != "file":  # two folders, x and x.git, are two repositories
        path = path.removesuffix(".git").rstrip("/")
    return f"{parts.scheme}://{(parts.hostname or '').lower()}{port}{path}"


class Mirror:
    """A mirror, bare and without files until somebody needs them. Nothing is ever removed from it, so what is pinned stays.

    Two builds may use it at once: it is read without a lock and fetched into by one at a time. `address` is where it is fetched
    from, by way of the user's own `insteadOf`, credential helpers, proxy and ssh. With `offline`, it is not.
    """

    def __init__(self, store: Store, address: str, *, offline: bool = False) -> None:
        self._store, self._offline = store, offline
        self.address = spoken(address)
        self.name = without_password(self.address)
        self._digest = hashlib.sha256(normal(address).encode()).hexdigest()
        self.folder = store.path / "mirrors" / self._digest
        self._opened: Repository | None = None

    @property
    def repository(self) -> Repository:
        """Return the mirror's repository, for reading; it is made where there is none yet."""
        if self._opened is None:
            if not self.folder.is_dir():
                with self._alone():
                    pass
            self._opened = Repository(self.folder, self.name)
        return self._opened

    @property
    def directory(self) -> Path:
        """Return its git directory, for who looks into it as into any repository; branches and tags have their own names."""
        return self.repository.own

    @property
    def objects(self) -> Path:
        """Return the folder of its objects, for repositories that read from it."""
        return self.repository.own / "objects"

    def commit(self, revision: str = "HEAD", *, pinned: str = "") -> str:
        """Return the full commit that a revision means: a commit, the beginning of one (7 digits or more), a tag or a branch.

        A name is asked of the server; where that cannot be reached, what it meant the last time stands. A tag that has moved,
        from `pinned` or from what it meant when it was first asked for, raises PatchError with both commits. A branch may move,
        and means `pinned` where that is given.
        """
        if COMMIT.fullmatch(revision):
            self._fetch_commit(revision)
            return revision
        if not NAME.fullmatch(revision) or ".." in revision or revision.endswith((".lock", "/", ".")) or "//" in revision:
            raise RequestError(f"{revision!r} is not a commit, tag or branch", where=self.name)
        if SHORT.fullmatch(revision) and (found := self._unfolded(revision)):
            return found
        known = pinned or self._remembered(revision)
        tag, found = self._asked(revision, known)
        if tag and known and found != known:
            raise PatchError(
                f"tag {revision} was {known}, it is {found} now",
                where=self.name,
                next_step="find out why it was moved; if the new commit is meant, name it in full instead of the tag",
            )
        found = found if tag else pinned or found
        self._fetch_commit(found)
        self.repository.run("update-ref", f"refs/resolved/{revision}", found)
        return found

    def bring(self, commit: str, paths: Sequence[str] = ()) -> None:
        """See that the files of a commit are in the mirror: all of them, or those under `paths` (folders or files).

        Raises PatchError when the server does not have them, or the mirror does not and must not ask.
        """
        self._fetch_commit(commit)
        mark = self.folder / "complete" / commit
        if mark.exists() or not (missing := self._missing(commit, paths)):
            if not paths:
                mark.touch()
            return
        if self._offline:
            raise PatchError(f"{len(missing)} files of commit {commit} are not in the mirror", where=self.name, next_step=ONLINE)
        with self._alone():
            if missing := self._missing(commit, paths):
                self._fetch_files(missing)
            if missing := self._missing(commit, paths):
                raise PatchError(f"the server does not give {len(missing)} files of commit {commit}", where=self.name)
        if not paths:
            mark.touch()

    def refresh(self) -> None:
        """Fetch every branch and tag, with their histories: for who looks for a commit rather than naming one."""
        with self._alone():
            self._fetch_everything()

    def tree(self, commit: str) -> str:
        """Return the id of a commit's tree."""
        return self.repository.run("rev-parse", "--verify", f"{commit}^{{tree}}").strip()

    def entries(self, commit: str, under: str = "") -> dict[str, Entry]:
        """Return the files, links and submodules of a commit, by path; only those below the folder `under` where one is named."""
        return self.repository.entries(commit, under)

    def submodules(self, commit: str) -> dict[str, str]:
        """Return path → commit of every submodule that the tree of a commit announces."""
        return {path: entry.id for path, entry in self.entries(commit).items() if entry.mode == SUBMODULE}

    def newest(self, commits: Sequence[str]) -> str:
        """Return the commit of several that descends from the others: the first in topological order."""
        return self.repository.run("rev-list", "--topo-order", "--max-count=1", *commits).strip()

    def blobs(self, ids: Collection[str], limit: int) -> dict[str, bytes]:
        """Return the content of files that were brought, by id. Raises PatchError when together they have more bytes than `limit`."""
        return self.repository.blobs(ids, limit)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the mirror for fetching; make it, or clear away what a fetch that was killed left. Not to be entered twice."""
        with self._store.locked(f"mirror-{self._digest}"):
            if not self.folder.is_dir():
                self._make()
            for pattern in ("objects/pack/tmp_*", "*.lock", "refs/**/*.lock", "objects/pack/*.lock"):
                for leftover in (self.folder / "git").glob(pattern):
                    leftover.unlink(missing_ok=True)
            yield

    def _make(self) -> None:
        temporary = self.folder.with_name(f".{self._digest}-{uuid.uuid4().hex[:12]}")
        try:
            temporary.mkdir(parents=True)
            (temporary / "complete").mkdir()
            (temporary / "address").write_text(normal(self.address) + "\n")
            Repository.create(temporary, self.name, configuration=PARTIAL.format(address=self.address))
            temporary.rename(self.folder)
        except OSError as problem:
            raise PatchError(
                f"{self.folder} cannot be made: {problem.strerror}",
                where=self.name,
                next_step="set RELEASE_STORE to another folder",
            ) from problem
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _has(self, commit: str) -> bool:
        return self.repository.execute("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")[1].decode().strip() == commit

    def _fetch_commit(self, commit: str) -> None:
        """See that a commit, its history and its trees are here."""
        if (self.folder / "complete" / commit).exists() or self._has(commit):
            return
        if self._offline:
            raise PatchError(f"commit {commit} is not in the mirror", where=self.name, next_step=ONLINE)
        with self._alone():
            if self._has(commit):
                return
            kept = f"refs/kept/{commit}"
            status, _, complaint = self.repository.try_to_reach(*FETCH, "origin", f"{commit}:{kept}")
            if status:  # a server that gives only what a branch or a tag leads to, or one that cannot be reached
                self._fetch_everything(complaint)
            if not self._has(commit):
                self.repository.execute("update-ref", "-d", kept)
                raise PatchError(
                    f"there is no commit {commit}{': ' + last_line(complaint) if status else ''}",
                    where=self.name,
                    next_step="compare the commit with the vendor's; a commit that no branch holds any more cannot be fetched",
                )
            self.repository.run("update-ref", kept, commit)

    def _fetch_everything(self, earlier: str = "") -> None:
        status, _, complaint = self.repository.try_to_reach(*FETCH, *EVERYTHING)
        if status:
            raise self._unreachable(complaint or earlier)

    def _fetch_files(self, ids: Sequence[str]) -> None:
        """Fetch files by their ids, as git itself does in a partial clone; everything, from a server that does not let us name them."""
        given = "".join(f"{id}\n" for id in ids).encode()
        status, _, complaint = self.repository.try_to_reach(
            "-c", "fetch.negotiationAlgorithm=noop", *FETCH, "--stdin", "origin", given=given
        )
        if status:
            again = ("--refetch", "--no-filter")
            status, _, complaint = self.repository.try_to_reach(*FETCH[:-1], *again, *EVERYTHING)
        if status:
            raise self._unreachable(complaint)

    def _missing(self, commit: str, paths: Sequence[str]) -> list[str]:
        """Return the ids of the files of a commit that are not in the mirror."""
        which = ("--", *(f":(literal,top){path}" for path in paths)) if paths else ()
        lines = self.repository.run("rev-list", "--objects", "--missing=print", f"{commit}^{{tree}}", *which).splitlines()
        return [line[1:] for line in lines if line.startswith("?")]

    def _unfolded(self, short: str) -> str:
        """Return the commit that begins with these digits, or an empty string. Everything is fetched to see, names mean nothing."""
        found = self._commits_like(short)
        if not found and not self._offline:
            self.refresh()
            found = self._commits_like(short)
        if len(found) > 1:
            raise RequestError(f"more than one commit begins with {short}", where=self.name, next_step="write more of its digits")
        return next(iter(found), "")

    def _commits_like(self, short: str) -> list[str]:
        ids = self.repository.run("rev-parse", f"--disambiguate={short}")
        lines = self.repository.run("cat-file", "--batch-check", given=ids.encode()).splitlines() if ids else []
        return [line.split()[0] for line in lines if line.split()[1] == "commit"]

    def _asked(self, name: str, known: str) -> tuple[bool, str]:
        """Return whether a name is a tag, and the commit that it means on the server, or what is known where that is silent."""
        status, printed, complaint = (1, b"", "the network is not to be used") if self._offline else self._listed(name)
        if status:
            if known:
                return False, known
            raise (
                self._unreachable(complaint)
                if not self._offline
                else PatchError(
                    f"{name} was never asked for here, and the network is not to be used", where=self.name, next_step=ONLINE
                )
            )
        told = {ref: id for id, _, ref in (line.partition("\t") for line in printed.decode().splitlines())}
        tag = f"refs/tags/{name}"
        if found := told.get(tag + "^{}") or told.get(tag, ""):
            return True, found
        if found := told.get(name if name == "HEAD" else f"refs/heads/{name}", ""):
            return False, found
        raise RequestError(f"there is no tag, branch or commit {name}", where=self.name)

    def _listed(self, name: str) -> tuple[int, bytes, str]:
        refs = ("HEAD",) if name == "HEAD" else (f"refs/tags/{name}", f"refs/tags/{name}^{{}}", f"refs/heads/{name}")
        return self.repository.try_to_reach("ls-remote", "--quiet", "origin", *refs)

    def _remembered(self, name: str) -> str:
        status, printed, _ = self.repository.execute("rev-parse", "--verify", "--quiet", f"refs/resolved/{name}^{{commit}}")
        return "" if status else printed.decode().strip()

    def _unreachable(self, complaint: str) -> PatchError:
        return PatchError(
            f"the repository cannot be fetched: {last_line(complaint)}",
            where=self.name,
            next_step="look whether `git ls-remote` reaches it from here; your insteadOf, credential helpers, proxy and ssh are used",
        )
