"""Releases on their way to model hubs, and checkpoints on their way from them: what the commands `hub` and `weights` do."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from release.build import folder_of
from release.errors import UsageError
from release.house import House
from release.hubs import SITES, Place, Site
from release.progress import progress_for
from release.types import COMMIT, Unknown, split_cell
from release.types.model import Hub


def push(house: House, what: str, to: str, *, weights: bool, public: bool, dry_run: bool) -> list[str]:
    """Send the release of a cell (built into dist/, else pulled into pulled/) or in a folder to a hub; return what was done, a line each.

    Without a name after ORGANISATION/, the release's own name is taken. Raises UsageError, VerificationError, PublishError.
    """
    from release.publish.hub import name_for, pack, read_record
    from release.publish.hub import push as send
    from release.publish.huggingface import HuggingFace
    from release.publish.modelscope import ModelScope

    folder = _folder(what)
    place = Place.parse(to + name_for(read_record(folder)) if to.endswith("/") else to)
    parcel = pack(folder, _boards(house), weights=weights)
    hub = HuggingFace(place) if place.site.short == "hf" else ModelScope(place)
    return send(hub, place, parcel, public=public, dry_run=dry_run)


def _folder(what: str) -> Path:
    if Path(what).is_dir():
        return Path(what)
    try:
        split_cell(what)
    except ValueError:
        raise UsageError(
            f"{what} is neither a folder nor a cell", next_step="CHIP/MODEL@PRECISION, or a folder with a release"
        ) from None
    for root in ("dist", "pulled"):
        if (found := folder_of(what, Path(root))).is_dir():
            return found
    raise UsageError(f"{what} is neither in dist/ nor in pulled/", next_step="release build, or release pull")


def _boards(house: House) -> dict[str, tuple[str, str]]:
    """Return data set and task on the hub of each benchmark that has a board there."""
    known = (house.matrix.benchmark(name) for name in house.matrix.benchmarks())
    return {one.id: (one.board.dataset, one.board.task) for one in known if one.board}


def fetch(house: House, model: str, into: Path, *, pickles: bool) -> tuple[int, int]:
    """Bring the checkpoint of a model from its hub into a new folder; return how many files it has, and their bytes.

    Raises UsageError where it is not pinned, FetchError.
    """
    from release.builders.hubs import bring

    checkpoint = house.matrix.model(model).checkpoint
    if checkpoint.hub is None or not checkpoint.files or isinstance(checkpoint.hub.revision, Unknown):
        raise UsageError(
            f"the checkpoint of {model} is not pinned file by file at a hub", next_step=f"release weights pin {model}"
        )
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(f"{into} is not empty", next_step="name a folder that does not exist yet")
    into.mkdir(parents=True, exist_ok=True)
    hub, key = checkpoint.hub, f"fetch-{model}"
    progress = progress_for(sys.stderr)
    with house.store.locked(key):
        line = progress.line(model, "fetch")
        try:
            line.start()
            size = bring(
                hub.repository,
                str(hub.revision),
                hub.sites,
                checkpoint.files,
                store=house.store,
                partial=house.store.partial(key),
                out=into,
                line=line,
                pickles=pickles,
            )
            line.done(f"{len(checkpoint.files)} files, {size / 1e6:.1f} MB")
        finally:
            progress.close()
        house.store.settle(key)
    return len(checkpoint.files), size


def pin(house: House, what: str, revision: str | None) -> str:
    """Return the `checkpoint` of a model's file, as YAML, with the digest of every file that a hub has at a revision now.

    `what` is a model of the matrix or a place on a hub. Raises UsageError, FetchError.
    """
    from release.builders.hubs import pin

    site, repository, sites = _upstream(house, what)
    with tempfile.TemporaryDirectory(prefix="release-pin-") as scratch:
        commit, digests, left = pin(site, repository, revision or site.branch, Path(scratch))
    if not COMMIT.fullmatch(commit):
        raise UsageError(f"{site.name} tells no commit of {commit!r}", next_step="give one with --revision, all 40 digits of it")
    lines = [
        "checkpoint:",
        "  hub:",
        f"    repository: {repository}",
        f"    revision: {commit}",
        f"    sites: [{', '.join(sites)}]",
    ]
    lines += ["  files:", *(f"    {name}: {digest}" for name, digest in digests.items())]
    return "\n".join([*lines, *(f"  # left out: {name}" for name in left if "\n" not in name)]) + "\n"


def _upstream(house: House, what: str) -> tuple[Site, str, tuple[str, ...]]:
    if ":" in what:
        place = Place.parse(what)
        return place.site, place.repository, (place.site.name,)
    hub: Hub | None = house.matrix.model(what).checkpoint.hub
    if hub is None:
        raise UsageError(f"the checkpoint of {what} is in no hub", next_step="its files are pinned where its folder lies")
    return SITES[hub.sites[0]], hub.repository, tuple(hub.sites)
