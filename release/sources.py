"""Sources that are repositories: brought into the store's mirrors at their pinned commits, and their vendors' trees restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from release.errors import StageError, UsageError
from release.matrix.parse import plain
from release.oci import canonical, sha256
from release.store import Store
from release.types import JSON, GitSource, Unknown

if TYPE_CHECKING:
    from release.patches.delivery import Delivery
    from release.patches.doctor import Diagnosis
    from release.patches.read import Decrypt, PatchSet
    from release.patches.unpatch import Unpatched


def deliver(store: Store, source: GitSource, patches: PatchSet | None, *, offline: bool) -> Delivery:
    """Return a source's base and patches; all that it needs is brought into the store's mirrors unless `offline`.

    Raises StageError where the source's commit is not known, and PatchError where it, its tag or its patches are not what is pinned.
    """
    from release.patches.delivery import series
    from release.patches.flagscale import Wanted, delivery
    from release.patches.mirror import Mirror

    mirror = Mirror(store, source.repository, offline=offline)
    if isinstance(source.commit, Unknown):
        raise StageError(
            f"the commit of {source.name} is unknown: {source.commit.unknown}",
            next_step="find out which commit the vendor means, and write it into the cell's sources",
        )
    if source.tag and not offline:
        mirror.commit(source.tag, pinned=source.commit)
    submodules = {path: Mirror(store, each.repository, offline=offline) for path, each in source.submodules.items()}
    vendor = source.vendor_patch
    if vendor is None:
        found = series(mirror, source.commit, patches, submodules=submodules)
    else:
        wanted = Wanted(vendor.device_type, vendor.commit_id or "", vendor.backends, vendor.task or "")
        read = partial(plain, name=f"{source.name}: its YAML files")
        found = delivery(mirror, wanted, revision=source.commit, submodules=submodules, read_yaml=read)
    for root in found.roots[1:]:
        pinned = source.submodules[root.path].commit
        if pinned and pinned != root.commit:
            raise StageError(f"the submodule {root.path} of {source.name} is at {root.commit}, the matrix says {pinned}")
    return found


def digest_of(delivery: Delivery) -> str | None:
    """Return the digest that pins a delivery: its only patch's, else that of the names and digests of all; None where there is none."""
    found = {patch.path: patch.sha256 for root in delivery.roots for patch in root.patches}
    return next(iter(found.values())) if len(found) == 1 else sha256(canonical(found)) if found else None


def restore(delivery: Delivery, source: GitSource, into: Path, scratch: Path, key: Path | None = None) -> JSON:
    """Write the restored tree of a source into `into` and return what it is. Raises PatchError where a pin does not hold.

    Encrypted patches are opened with the private key in the file `key`, or else with the one that RELEASE_PATCH_KEY holds.
    """
    from release.patches.unpatch import unpatch

    found = digest_of(delivery)
    pinned = source.vendor_patch.sha256 if source.vendor_patch else None
    paths = [patch.path for root in delivery.roots for patch in root.patches]
    pins = {paths[0]: pinned} if isinstance(pinned, str) and len(paths) == 1 else None
    if isinstance(pinned, str) and pins is None and pinned != found:
        raise StageError(
            f"the {len(paths)} patches of {source.name} have sha256 {str(found)[7:15]}… together, the matrix says {pinned[7:15]}…",
            next_step="one was replaced in place: find out what changed; if it is meant, write "
            f"{found} into the cell's YAML, as sha256 of the source's vendor-patch",
        )
    result = unpatch(delivery, into=into, scratch=scratch, decrypt=opener(key), pins=pins)
    if source.tree and source.tree != result.tree:
        raise StageError(f"the restored tree of {source.name} is {result.tree}, the matrix says {source.tree}")
    return {"name": source.name, "repository": delivery.roots[0].mirror.name, "delivery": found, **facts_of(result)}


def facts_of(result: Unpatched) -> JSON:
    """Return a restored tree's facts as JSON: base, tree id, every patch with its digests and how it was applied."""
    facts = asdict(result) | {"submodules": dict(result.submodules), "changed": list(result.changed)}
    return {name.replace("_", "-"): value for name, value in facts.items()} | {
        "patches": [asdict(patch) for patch in result.patches]
    }


def opener(key: Path | None = None) -> Decrypt:
    """Return what opens encrypted patches; the key is only looked for when there is one to open."""
    from release.patches.cipher import decrypting
    from release.patches.keys import private_key

    return decrypting(lambda: private_key(key))


@dataclass(frozen=True)
class Wanted:
    """A source that no cell names, as a command line describes it."""

    revision: str
    form: str
    device_type: str | None
    commit_id: str
    backends: tuple[str, ...]
    task: str
    patches: Path | None
    submodules: Mapping[str, str]


def unpatch_source(
    store: Store,
    address: str,
    wanted: Wanted,
    key: Path | None,
    into: Path | None,
    *,
    offline: bool,
    fix: bool,
    accept_changed: bool = False,
) -> JSON:
    """Restore a source by its address into `into` (by default a folder with the repository's name) and return what it is.

    Raises PatchError where a patch that was restored before was replaced in place, unless that is accepted; RequestError for what is
    not there, and for a folder that is taken.
    """
    from release.patches.memory import compare, remember
    from release.patches.unpatch import refuse_taken, unpatch

    folder = (into or Path(PurePosixPath(address.rstrip("/")).name.removesuffix(".git"))).absolute()
    refuse_taken(folder, address)
    found = _delivery(store, address, wanted, key, offline=offline)
    if not accept_changed:
        compare(found)
    with store.in_use():  # or a build that begins takes the scratch for a dead one's
        result = unpatch(found, into=folder, scratch=store.scratch(), decrypt=opener(key), fix_whitespace=fix)
    remember(store, found)
    return {
        "name": found.name,
        "repository": found.roots[0].mirror.name,
        "folder": str(folder),
        "delivery": digest_of(found),
        **facts_of(result),
    }


def _delivery(store: Store, address: str, wanted: Wanted, key: Path | None, *, offline: bool) -> Delivery:
    """Return the base and the patches of a source that no cell names."""
    from release.patches.delivery import series
    from release.patches.flagscale import Wanted as Patches
    from release.patches.flagscale import delivery
    from release.patches.mirror import Mirror
    from release.patches.read import patch_set

    _refuse_no_repository(address, *wanted.submodules.values())
    mirror = Mirror(store, address, offline=offline)
    submodules = {path: Mirror(store, url, offline=offline) for path, url in wanted.submodules.items()}
    if wanted.form == "series":
        patches = patch_set(wanted.patches, decrypt=opener(key)) if wanted.patches else None
        return series(mirror, mirror.commit(wanted.revision), patches, submodules=submodules)
    if not wanted.device_type:
        raise UsageError("FlagScale's patches lie below a device type", next_step="give it with --device-type Vendor_Model")
    what = Patches(wanted.device_type, wanted.commit_id, wanted.backends, wanted.task)
    read = partial(plain, name=f"{mirror.name}: its YAML files")
    return delivery(mirror, what, revision=wanted.revision, submodules=submodules, read_yaml=read)


def _refuse_no_repository(*addresses: str) -> None:
    """Refuse local folders that are no repositories before anything is made for them; of servers, git itself says it."""
    from release.patches.borrow import git_directory
    from release.patches.mirror import spoken

    for address in addresses:
        parts = urlsplit(spoken(address))
        place = Path(unquote(parts.path))
        if parts.scheme == "file" and not parts.netloc and not place.is_file():  # a file may be a bundle
            git_directory(place, address)


def diagnose_patches(
    store: Store,
    patches: Path,
    commits: tuple[str, ...],
    repository: str,
    *,
    branch: str,
    since: str,
    scan: bool,
    accept: str,
    jobs: int,
    key: Path | None,
    offline: bool,
) -> Diagnosis:
    """Try a patch set, mailbox or diff on commits of a repository: a folder as it is, anything else by way of the store's mirror."""
    from release.patches.doctor import BISECT, SCAN, diagnose
    from release.patches.fit import pieces_of
    from release.patches.mirror import Mirror

    with store.in_use():  # or a build that begins takes the scratch for a dead one's
        scratch = store.scratch()
        pieces = pieces_of(patches, opener(key), scratch=scratch)
        place, bring = Path(repository), None
        if not place.is_dir():
            _refuse_no_repository(repository)
            mirror = Mirror(store, repository, offline=offline)
            if not offline:
                mirror.refresh()
            place, bring = mirror.directory, mirror.bring
        return diagnose(
            pieces,
            place,
            commits,
            branch=branch,
            since=since,
            search=SCAN if scan else BISECT,
            accept=accept,
            workers=jobs,
            bring=bring,
            scratch=scratch,
        )
