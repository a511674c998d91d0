"""A release in a folder, with all that speaks of it: an OCI layout that can be read as a registry's repository is, without a network.

The folder's index names what a repository names by tags: the release, its signatures (`sha256-<hex>.sig`, as cosign has them) and its lists
of referrers (`sha256-<hex>`, the fallback of distribution-spec 1.1). Nothing in it is trusted: digests are checked as they are read.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from release.errors import UsageError, VerificationError
from release.oci import (
    IMAGE_INDEX,
    METADATA_LIMIT,
    REF_NAME,
    Descriptor,
    Layout,
    children,
    parse_verified,
    sha256_file,
)
from release.publish.distribution import MANIFESTS, Registry, check_shape, entries_of
from release.publish.reference import Reference
from release.publish.registry import pull, push, referrer
from release.publish.signature import put, put_simple

SIDE: Final = re.compile(r"sha256-[0-9a-f]{64}(\.sig)?")
"""Names of what speaks of a release, and is none."""
MOST: Final = 10_000
"""Entries that a folder's index may have."""
COSIGN: Final = "dev.cosignproject.cosign/"
"""Before `imageIndex` and `sigs`: what `cosign verify --local-image` tells the parts of a folder by, in the annotation `kind` (cosign,
pkg/oci/layout).
"""


class Source(Protocol):
    """What can be asked of a repository, wherever it is: the reading half of a registry."""

    where: str

    def find_manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes] | None:
        """Return a manifest, checked, or None."""
        ...

    def get_manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes]:
        """Return a manifest, checked, or raise."""
        ...

    def get_blob(self, descriptor: Descriptor, layout: Layout) -> None:
        """Bring a blob into a layout, checked."""
        ...

    def referrers(self, subject: str) -> list[Descriptor]:
        """Return what says that it refers to a manifest."""
        ...


class Folder:
    """The reading half of a registry over an OCI layout."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout.open(path)
        self.where = str(path)
        entries = self.layout.index()
        if len(entries) > MOST:
            raise VerificationError(f"{path} names more than {MOST} manifests")
        self.named = {entry.annotations.get(REF_NAME, entry.digest): entry for entry in entries}

    @property
    def release(self) -> str:
        """The name of the one release in the folder. Raises VerificationError where there is none, or more than one."""
        found = [name for name in self.named if not SIDE.fullmatch(name)]
        if len(found) != 1:
            raise VerificationError(f"it holds {len(found)} releases in its index, not one", where=self.where)
        return found[0]

    def held_to(self, expected: str) -> Descriptor:
        """Return the one release in the folder. Raises VerificationError where it is another digest than `expected`, if that is given."""
        found = self.named[self.release]
        if expected and found.digest != expected:
            raise VerificationError(f"it holds {found.digest}, and {expected} was verified", where=self.where)
        return found

    def find_manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes] | None:
        """Return a manifest by name or digest; None where the folder has none. Raises VerificationError where it is not its digest."""
        known = self.named.get(tag_or_digest)
        if known is None and not tag_or_digest.startswith("sha256:"):
            return None
        path = self.layout.blob(known.digest if known else tag_or_digest)
        if path.is_symlink() or not path.is_file():
            return None
        if path.stat().st_size > METADATA_LIMIT:
            raise VerificationError(f"{path.name} is larger than a manifest may be", where=self.where)
        data = path.read_bytes()
        digest = f"sha256:{path.name}"
        document = parse_verified(data, Descriptor("", digest, len(data)))
        kind = document.get("mediaType") if isinstance(document, dict) else None
        if kind not in MANIFESTS or (known and known.media_type != kind):
            raise VerificationError(f"{digest} is {kind!r:.80}, not a manifest or an index", where=self.where)
        descriptor = Descriptor(kind, digest, len(data))
        check_shape(descriptor, document)
        return descriptor, data

    def get_manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes]:
        """Return a manifest as `find_manifest` does. Raises VerificationError where there is none."""
        found = self.find_manifest(tag_or_digest)
        if found is None:
            raise VerificationError(f"it has no {tag_or_digest}", where=self.where)
        return found

    def get_blob(self, descriptor: Descriptor, layout: Layout) -> None:
        """Copy a blob into another layout. Raises VerificationError where it is not what its descriptor says."""
        path = self.layout.blob(descriptor.digest)
        if path.is_symlink() or not path.is_file() or path.stat().st_size != descriptor.size:
            raise VerificationError(f"it has no {descriptor.digest} of {descriptor.size} bytes", where=self.where)
        with layout.incoming() as stream, path.open("rb") as source:
            shutil.copyfileobj(source, stream)
            stream.flush()
            if sha256_file(Path(stream.name)) != descriptor.digest:
                raise VerificationError(f"blob {descriptor.digest} has other content", where=self.where)
            layout.adopt(stream, descriptor.digest)

    def referrers(self, subject: str) -> list[Descriptor]:
        """Return what the folder's list says refers to a manifest."""
        found = self.find_manifest(subject.replace(":", "-"))
        if found is None:
            return []
        return [Descriptor.from_json(entry) for entry in entries_of(parse_verified(found[1], found[0]))]


def source_at(place: str) -> tuple[Source, str]:
    """Return what can be asked of a place, the folder of a layout or bundle or a reference in a registry, and the release's name there.

    Raises UsageError for a reference to a repository alone, VerificationError for a folder that holds not one release.
    """
    if Path(place).is_dir():
        folder = Folder(Path(place))
        return folder, folder.release
    where = Reference.parse(place)
    if not where.tag and not where.digest:
        raise UsageError(f"{place} names neither a tag nor a digest", next_step="add :TAG or @sha256:…")
    return Registry.at(where), where.digest or where.tag


def export(reference: Reference, target: Path) -> Descriptor:
    """Bring a release and all that speaks of it into a new folder; it appears there whole, or not at all.

    Every digest is checked. Raises UsageError where `target` is there already, PublishError, VerificationError.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already", next_step="name a folder that does not exist yet")
    registry = Registry.at(reference)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        layout = Layout.create(temporary)
        root = pull(reference, layout, registry=registry)
        kind = "imageIndex" if root.media_type == IMAGE_INDEX else "image"
        entries = [_of_kind(kind, root.named(reference.tag or "release"))]
        for subject in (root, *children(root, layout)):
            entries += _beside(registry, reference, subject.digest, layout)
        signed = f"{root.digest.replace(':', '-')}.sig"
        layout.set_index([_of_kind("sigs", each) if each.annotations[REF_NAME] == signed else each for each in entries])
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _of_kind(kind: str, entry: Descriptor) -> Descriptor:
    """Return the entry as cosign looks for it, which takes one image or index of a folder, and its signatures."""
    return replace(entry, annotations={**entry.annotations, "kind": f"{COSIGN}{kind}"})


def _beside(registry: Registry, reference: Reference, subject: str, layout: Layout) -> Iterator[Descriptor]:
    """Bring what speaks of a manifest into the layout; yield the entries that name it."""
    listed = []
    for entry in registry.referrers(subject):
        found = pull(replace(reference, tag="", digest=entry.digest), layout, registry=registry)
        listed.append(referrer(found, layout.read(found)).to_json())
    name = subject.replace(":", "-")
    if listed:
        yield layout.put_json(IMAGE_INDEX, {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed}).named(name)
    if registry.find_manifest(f"{name}.sig"):
        yield pull(replace(reference, tag=f"{name}.sig", digest=""), layout, registry=registry).named(f"{name}.sig")


def publish_folder(
    folder: Path, target: Reference, *, expected: str = "", neighbours: Callable[[str], str] = lambda digest: ""
) -> str:
    """Push the release in a folder, and all that speaks of it, before its tag; return its digest.

    Only what the folder names for the release itself and its parts goes, and joins what the registry has of them: nothing of another release is
    touched. Where the tag is this release already, signatures are added. Raises VerificationError where the release is not the `expected`
    digest, and as `push` does.
    """
    source = Folder(folder)
    root = source.held_to(expected)
    layout, registry = source.layout, Registry.at(target)
    done = []

    def finish() -> None:
        for subject in (root, *children(root, layout)):
            _publish_beside(registry, source, subject.digest)
        done.append(True)

    digest = push(layout, root, target, registry=registry, neighbours=neighbours, finish=finish)
    if not done:
        finish()
    return digest


def _publish_beside(registry: Registry, source: Folder, subject: str) -> None:
    """Put what a folder says of a manifest into the registry, every blob of it checked first."""
    with tempfile.TemporaryDirectory(prefix="release-import-") as scratch:
        layout = Layout.create(Path(scratch))

        def bring(manifest: Descriptor) -> Descriptor:
            source.get_blob(manifest, layout)
            for blob in children(manifest, layout):
                source.get_blob(blob, layout)
            return manifest

        if found := source.find_manifest(f"{subject.replace(':', '-')}.sig"):
            put_simple(registry, layout, subject, bring(found[0]))
        referring = []
        for each in source.referrers(subject):
            found = source.get_manifest(each.digest)
            said = parse_verified(found[1], found[0]).get("subject")
            if not isinstance(said, dict) or said.get("digest") != subject:
                raise VerificationError(f"{each.digest} is listed as a referrer of {subject}, and is none", where=source.where)
            referring.append(bring(found[0]))
        put(registry, layout, subject, *referring)
