"""To the registry and back: push a release from an OCI layout, pull it into one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, Final

from release.errors import UsageError, VerificationError
from release.oci import IMAGE_INDEX, METADATA_LIMIT, REF_NAME, Descriptor, Layout, children, sha256_file
from release.publish.credentials import Credentials, stored_credentials
from release.publish.distribution import DOCKER_MANIFESTS, MANIFESTS, Registry, check_shape
from release.publish.reference import Reference

__all__ = ["Credentials", "Progress", "Reference", "Registry", "pull", "push", "stored_credentials", "walk"]

DEPTH_LIMIT: Final = 3
"""An index in an index in an index."""
ENTRIES_LIMIT: Final = 10_000
"""Blobs and manifests that one release may have."""

LANES: Final = 4
"""Blobs on their way at once: a registry that hashes what it gets keeps one core busy with each."""

Progress = Callable[[Descriptor, int], None]
"""Hears that n more bytes of a blob or manifest are where they should be, all at once where they already were. Where a
transfer has to start again, n is negative."""


def silent(descriptor: Descriptor, size: int) -> None:
    """Be told of progress and say nothing."""


def everything(descriptor: Descriptor) -> bool:
    """Want all of a release."""
    return True


def push(
    layout: Layout,
    index_descriptor: Descriptor,
    reference: Reference,
    progress: Progress = silent,
    *,
    move: bool = False,
    registry: Registry | None = None,
    neighbours: Callable[[str], str] = lambda digest: "",
    start: Callable[[], None] = lambda: None,
    finish: Callable[[], None] = lambda: None,
) -> str:
    """Publish an index and all below it under the tag of `reference`; return its digest.

    Whatever is named goes up before what names it, and the tag comes last: who sees the tag can pull all of it. What has a
    `subject` is listed among the referrers of that. `neighbours(digest)` may name another repository of the registry that a blob can be
    taken over from; `start` is called before anything is sent, `finish` when all is there but the tag. Where the tag already is this
    index, nothing is sent and neither is called. Raises VerificationError where the tag is something else (unless `move`), or where the
    layout is not what its digests say.
    """
    digest = index_descriptor.digest
    if not reference.tag or reference.digest not in ("", digest):
        raise UsageError(f"{reference} is not where {digest} can be published", next_step="name a tag, and no other digest")
    target = registry or Registry.at(reference)
    if is_published(target, reference.tag, digest, move):
        return digest
    start()
    order = list(walk(layout, index_descriptor))
    for descriptor in order:
        path = layout.blob(descriptor.digest)
        if not path.is_file() or path.stat().st_size != descriptor.size:
            raise VerificationError(f"{descriptor.digest} is not in {layout.path} with {descriptor.size} bytes")

    def send(blob: Descriptor, tell: Callable[[int], None]) -> None:
        target.put_blob(blob, layout.blob(blob.digest), tell, neighbour=neighbours(blob.digest))

    side_by_side(send, (blob for blob in order if blob.media_type not in MANIFESTS), progress)
    referring: dict[str, list[Descriptor]] = {}
    for descriptor in order:
        if descriptor.media_type not in MANIFESTS:
            continue
        document = layout.read(descriptor)
        listed = target.put_manifest(descriptor.digest, descriptor.media_type, layout.blob(descriptor.digest).read_bytes())
        if document.get("subject") is not None and not listed:
            subject = Descriptor.from_json(document["subject"])
            referring.setdefault(subject.digest, []).append(referrer(descriptor, document))
        progress(descriptor, descriptor.size)
    for subject_digest, entries in referring.items():
        target.attach(subject_digest, entries)
    finish()
    if not is_published(target, reference.tag, digest, move):
        target.put_manifest(reference.tag, index_descriptor.media_type, layout.blob(digest).read_bytes())
        is_published(target, reference.tag, digest, move=False)
    return digest


def pull(
    reference: Reference,
    layout: Layout,
    progress: Progress = silent,
    want: Callable[[Descriptor], bool] = everything,
    *,
    registry: Registry | None = None,
) -> Descriptor:
    """Fetch an index or a manifest and all below it into `layout`, under the tag of `reference`; return its descriptor.

    Every size and digest is checked. What the layout already has, verified, is not fetched again. What is not wanted is
    left out with all below it, so that such a layout is not whole. With a digest, the tag is only the name in the layout.
    Raises VerificationError for anything but OCI manifests and indexes of sane depth and number, and where the layout has
    another digest under the tag.
    """
    if not reference.tag and not reference.digest:
        raise UsageError(f"{reference} names neither a tag nor a digest", next_step="add :TAG or @sha256:…")
    target = registry or Registry.at(reference)
    root, data = target.get_manifest(reference.digest or reference.tag)
    for entry in layout.index():
        if reference.tag and entry.annotations.get(REF_NAME) == reference.tag and entry.digest != root.digest:
            raise VerificationError(
                f"tag {reference.tag} is {entry.digest} in {layout.path}, and {root.digest} in the registry",
                where=target.where,
                next_step="a published tag never moves: ask who moved it, or pull the digest you want into an empty folder",
            )

    keep(layout, root.digest, data)

    def fetch(descriptor: Descriptor) -> None:
        fetch_manifest(target, layout, descriptor)
        progress(descriptor, descriptor.size)

    def bring(blob: Descriptor, tell: Callable[[int], None]) -> None:
        if is_kept(layout, blob):
            tell(blob.size)
        else:
            target.get_blob(blob, layout, tell)

    side_by_side(bring, [each for each in walk(layout, root, fetch, want) if each.media_type not in MANIFESTS], progress)
    enter(layout, root, reference.tag)
    return root


class Stopped(Exception):
    """Another blob failed: this one need not go on."""


def side_by_side(
    act: Callable[[Descriptor, Callable[[int], None]], object], blobs: Iterable[Descriptor], progress: Progress
) -> None:
    """Act on LANES blobs at a time, the largest first; what `act` tells goes to `progress`, one after the other.

    The first failure, and a Ctrl-C, ends the others at their next block, and is raised.
    """
    stop, turn = threading.Event(), threading.Lock()

    def tell(blob: Descriptor, size: int) -> None:
        with turn:
            if stop.is_set():
                raise Stopped
            progress(blob, size)

    with ThreadPoolExecutor(LANES, thread_name_prefix="blob") as lanes:
        going = [lanes.submit(act, blob, partial(tell, blob)) for blob in sorted(blobs, key=lambda blob: -blob.size)]
        try:
            for each in as_completed(going):
                each.result()
        except BaseException:
            stop.set()
            lanes.shutdown(wait=False, cancel_futures=True)
            raise


def walk(
    layout: Layout,
    root: Descriptor,
    fetch: Callable[[Descriptor], None] = lambda descriptor: None,
    want: Callable[[Descriptor], bool] = everything,
) -> Iterator[Descriptor]:
    """Yield all blobs and manifests of `root`, each once, before what names them; `root` comes last.

    `fetch` is called with a manifest before it is read from the layout. Raises VerificationError for an index nested deeper than
    DEPTH_LIMIT, more than ENTRIES_LIMIT descriptors, an entry that is no OCI manifest, or a manifest where a blob should be.
    """
    seen: dict[str, tuple[int, bool]] = {}

    def is_new(descriptor: Descriptor, is_manifest: bool) -> bool:
        if descriptor.digest in seen and seen[descriptor.digest] != (descriptor.size, is_manifest):
            raise VerificationError(f"{descriptor.digest} is named with two sizes, or as a manifest and as a blob")
        if descriptor.digest not in seen and len(seen) >= ENTRIES_LIMIT:
            raise VerificationError(f"{root.digest} names more than {ENTRIES_LIMIT} blobs and manifests")
        known = descriptor.digest in seen
        seen[descriptor.digest] = descriptor.size, is_manifest
        return not known

    def visit(descriptor: Descriptor, depth: int) -> Iterator[Descriptor]:
        if descriptor.media_type not in MANIFESTS:
            raise VerificationError(f"{descriptor.digest} is {descriptor.media_type[:100]!r}, not an OCI manifest or index")
        is_index = descriptor.media_type == IMAGE_INDEX
        if is_index and depth > DEPTH_LIMIT:
            raise VerificationError(f"{root.digest} is nested deeper than {DEPTH_LIMIT} indexes")
        fetch(descriptor)
        check_shape(descriptor, layout.read(descriptor))
        for child in children(descriptor, layout):
            if not is_index and child.media_type in MANIFESTS + DOCKER_MANIFESTS:
                raise VerificationError(f"{descriptor.digest} names the manifest {child.digest} where a blob should be")
            if want(child) and is_new(child, is_index):
                yield from visit(child, depth + 1) if is_index else (child,)
        yield descriptor

    is_new(root, True)
    return visit(root, 1)


def is_published(target: Registry, tag: str, digest: str, move: bool) -> bool:
    """Say whether `tag` is `digest` in the registry. Raises VerificationError where it is something else, unless it may move."""
    found = target.digest_of(tag)
    if found not in (None, digest) and not move:
        raise VerificationError(
            f"tag {tag} is already published as {found}, and this is {digest}: a published tag never moves",
            where=target.where,
            next_step="publish under a new tag",
        )
    return found == digest


def referrer(descriptor: Descriptor, document: dict[str, Any]) -> Descriptor:
    """Return the entry for a manifest in a list of referrers: its own artifact type and annotations (distribution-spec 1.1)."""
    config = document.get("config")
    artifact_type = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    entry = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size).to_json()
    return Descriptor.from_json({**entry, "artifactType": artifact_type, "annotations": document.get("annotations")})


def fetch_manifest(target: Registry, layout: Layout, descriptor: Descriptor) -> None:
    """Bring a manifest into the layout unless it is there. Raises VerificationError where it is not what `descriptor` says."""
    if descriptor.size > METADATA_LIMIT:
        raise VerificationError(f"{descriptor.digest} claims {descriptor.size} bytes, a manifest has {METADATA_LIMIT} at most")
    if is_kept(layout, descriptor):
        return
    found, data = target.get_manifest(descriptor.digest)
    if (found.media_type, found.size) != (descriptor.media_type, descriptor.size):
        raise VerificationError(f"{descriptor.digest} has another media type or size than what names it says", where=target.where)
    keep(layout, descriptor.digest, data)


def keep(layout: Layout, digest: str, data: bytes) -> None:
    """Write bytes, whose digest was checked, into the layout, also over a damaged blob."""
    with layout.incoming() as stream:
        stream.write(data)
        layout.adopt(stream, digest)


def is_kept(layout: Layout, descriptor: Descriptor) -> bool:
    """Say whether the layout has the blob, whole and unchanged."""
    path = layout.blob(descriptor.digest)
    return path.is_file() and path.stat().st_size == descriptor.size and sha256_file(path) == descriptor.digest


def enter(layout: Layout, root: Descriptor, tag: str) -> None:
    """Write `root` into index.json under `tag`, or without a name where there is none and it is not there yet."""
    entries = layout.index()
    if tag:
        layout.set_index([entry for entry in entries if entry.annotations.get(REF_NAME) != tag] + [root.named(tag)])
    elif all(entry.digest != root.digest for entry in entries):
        layout.set_index([*entries, root])
