"""Upstream checkpoints from model hubs: every file by its digest, several at a time, and none that can run code when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.builders.weights.catalogue import PICKLES, refuse_pickles
from release.errors import FetchError, StageError
from release.hubs import SITES, Site, answering, hugging_face, model_scope
from release.oci import DIGEST, link_or_copy, sha256_file
from release.progress import Line
from release.store import Store
from release.types import RELATIVE

AT_ONCE: Final = 4
"""Files that are brought side by side."""
UNSUMMED: Final = 64 << 20
"""Bytes that a file may have of which the hub says no sha256: such a one is downloaded to be pinned."""
MOST: Final = 10_000


@dataclass(frozen=True)
class Listed:
    """A file on a hub: its path there, its bytes, and its `sha256:<hex>` where the hub says it (of large files)."""

    path: str
    size: int
    sha256: str | None


def bring(
    repository: str,
    revision: str,
    sites: Sequence[str],
    files: Mapping[str, str],
    *,
    store: Store,
    partial: Path,
    out: Path,
    line: Line,
    pickles: bool = False,
) -> int:
    """Put every file (path → digest) of a repository at a commit into `out`, and return their bytes.

    The sites are asked in their order; the commit is the first one's, others are asked for their main branch: the digests decide. What the
    store has is not asked for; what came of a file before a kill is in `partial`, and goes on. Raises FetchError where a file is not had or
    not what is pinned, StageError for a pickle unless `pickles`.
    """
    for name in files:
        if not _is_plain(name):
            raise FetchError(f"the checkpoint names a file {name!r:.100}", next_step="its name must be a plain relative path")
        if name.lower().endswith(PICKLES) and not pickles:
            raise StageError(
                f"{name} is a pickle, or a format that may hold one", next_step="pin safetensors files, and not this one"
            )
    missing = {name: digest for name, digest in files.items() if not _kept(store, digest)}
    problems: list[FetchError] = []
    for number, site in enumerate([SITES[name] for name in sites] if missing else ()):
        if len(problems) < number:
            break
        try:
            _bring(site, repository, site.branch if number else revision, missing, store, partial / site.short, line)
        except FetchError as problem:
            problems.append(problem)
    if missing and len(problems) == len(sites):
        raise problems[0]
    for name, digest in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(store.blob(digest), out / name)
    if not pickles:
        refuse_pickles(out, list(files))
    return sum((out / name).stat().st_size for name in files)


def _bring(site: Site, repository: str, revision: str, files: Mapping[str, str], store: Store, partial: Path, line: Line) -> None:
    """Take the files of one site into the store. Raises FetchError with the first that fails, after the others have ended."""
    line.note(f"{len(files)} files of {repository} from {site.name}")
    line.expect(len(files), "files")

    def one(name: str) -> None:
        if not _kept(store, files[name]):
            path = _download(site, repository, revision, name, partial)
            found = sha256_file(path)
            if found != files[name]:
                path.unlink()
                raise FetchError(
                    f"{name} has {found}, the model's YAML says {files[name]}",
                    where=f"{site.short}:{repository}",
                    next_step="somebody changed it, or the pin is of another revision: `release weights pin` says what is there now",
                )
            store.keep_blob(path, files[name])
            path.unlink()
        line.advance()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(one, name) for name in files]:
            done.result()


def _download(site: Site, repository: str, revision: str, name: str, into: Path) -> Path:
    """Bring one file below `into` by the hub's own library, which goes on where it broke off; return where it is."""
    into.mkdir(parents=True, exist_ok=True)
    with answering(site, f"{site.short}:{repository}: {name}", FetchError):
        if site.short == "hf":
            found = Path(hugging_face().hf_hub_download(repository, name, revision=revision, local_dir=into))
        else:
            found = Path(model_scope().download_file(repository, "model", name, revision=revision, local_dir=into))
    if found.is_symlink() or not found.resolve().is_relative_to(into.resolve()):
        raise FetchError(f"{name} came to lie outside its folder", where=f"{site.short}:{repository}")
    return found


def pin(site: Site, repository: str, revision: str, scratch: Path) -> tuple[str, dict[str, str], list[str]]:
    """Return the commit that a revision is now, the digest of every file at it, and what is left out: hidden files, odd names, pickles.

    The hub says the sha256 of large files; small ones are downloaded and hashed. Raises FetchError.
    """
    commit = commit_of(site, repository, revision)
    digests, left = {}, []
    for file in listing(site, repository, commit):
        if not _is_plain(file.path) or file.path.lower().endswith(PICKLES):
            left.append(file.path)
            continue
        if file.sha256 is None and file.size > UNSUMMED:
            raise FetchError(
                f"the hub says no sha256 of {file.path}, which has {file.size} bytes", where=f"{site.short}:{repository}"
            )
        digests[file.path] = file.sha256 or sha256_file(_download(site, repository, commit, file.path, scratch))
    return commit, dict(sorted(digests.items())), sorted(left)


def commit_of(site: Site, repository: str, revision: str) -> str:
    """Return the commit of a revision. ModelScope's library tells none of a tag or a branch: there, what is asked for is returned."""
    if site.short != "hf":
        return revision
    with answering(site, f"{site.short}:{repository}", FetchError):
        return str(hugging_face().model_info(repository, revision=revision).sha)


def listing(site: Site, repository: str, revision: str) -> list[Listed]:
    """Return every file of a repository at a revision. Raises FetchError for sizes and digests that are none."""
    found: list[Listed] = []
    with answering(site, f"{site.short}:{repository}", FetchError):
        for path, size, digest in _tree(site, repository, revision):
            told = f"sha256:{digest}" if digest else None
            if (
                not isinstance(size, int)
                or not 0 <= size < 1 << 50
                or (told is not None and not DIGEST.fullmatch(told))
                or len(found) >= MOST
            ):
                raise FetchError(f"the hub's list of files makes no sense at {path!r:.100}", where=f"{site.short}:{repository}")
            found.append(Listed(path, size, told))
    return found


def _tree(site: Site, repository: str, revision: str) -> Iterator[tuple[str, int, str | None]]:
    if site.short == "hf":
        from huggingface_hub.hf_api import RepoFile

        for entry in hugging_face().list_repo_tree(repository, recursive=True, revision=revision):
            if isinstance(entry, RepoFile):
                yield entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None
    else:
        for file in model_scope().list_repo_files(repository, "model", revision=revision):
            if file.type != "tree":
                yield file.path, file.size, file.sha256


def _kept(store: Store, digest: str) -> bool:
    """Say whether the store has a file, whole; a damaged one is thrown away."""
    blob = store.blob(digest)
    if blob.is_file() and sha256_file(blob) != digest:
        blob.unlink()
    return blob.is_file()


def _is_plain(name: str) -> bool:
    """Say whether a name is a relative path of which no part is hidden: hubs' libraries keep their own notes in such."""
    return RELATIVE.fullmatch(name) is not None and not any(part.startswith(".") or not part for part in name.split("/"))
