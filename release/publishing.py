"""Publishing what was built: all of it first, what is said of it beside it, and the tag last."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from release.errors import PublishError, VerificationError
from release.types import JSON
from release.types.verdict import State

if TYPE_CHECKING:
    from release.oci import Descriptor
    from release.publish.distribution import Registry
    from release.publish.reference import Reference
    from release.publish.registry import Progress

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
IN_TOTO: Final = "application/vnd.in-toto+json"
PREDICATE: Final = "in-toto.io/predicate-type"
"""The annotation under which in-toto artifacts name what they are (in-toto attestation, "storage in OCI registries")."""


@dataclass(frozen=True)
class Published:
    """Where a release is, by digest; how many bytes its blobs have, how many of them travelled (or would), and what was signed."""

    reference: str
    size: int
    sent: int
    signed: tuple[str, ...] = ()


def publish_release(
    folder: Path,
    target: Reference,
    memory: Path,
    *,
    key: Path | None = None,
    dry_run: bool = False,
    validated: bool = False,
    progress: Progress = lambda descriptor, size: None,
) -> Published:
    """Push the release that is laid out in `folder`, with its bill of materials, provenance and verdict as referrers of its image; with
    `key`, sign all of it before the tag is set. With `dry_run`, ask the registry only what it has.

    Raises PublishError for a blocked release, and with `validated` for one that is less; VerificationError where the tag is another release.
    """
    from release.publish.distribution import MANIFESTS, Registry
    from release.publish.folder import Folder
    from release.publish.neighbours import Neighbours
    from release.publish.registry import is_published, push, walk
    from release.publish.signature import refuse_full
    from release.publish.verify import image_of, record_of, released
    from release.signing import predicates_of, sign_release

    source = Folder(folder / "oci")
    layout, (index, entries) = source.layout, released(source, folder.name)
    with tempfile.TemporaryDirectory(prefix="release-publish-") as scratch:
        record, record_digest = record_of(source, entries, Path(scratch))
    state = str(record["state"])
    if state == State.BLOCKED or (validated and state != State.VALIDATED):
        raise PublishError(f"{record['cell']} is {state}", next_step="release card shows its verdicts")
    registry = Registry.at(target)
    blobs = [each for each in walk(layout, index) if each.media_type not in MANIFESTS]
    total = sum(blob.size for blob in blobs)
    where = f"{target}@{index.digest}"
    if dry_run:
        there = is_published(registry, target.tag, index.digest, move=False)
        return Published(where, total, 0 if there else sum(blob.size for blob in blobs if not registry.has_blob(blob)))
    signed: list[str] = []
    sent: list[int] = []

    def start() -> None:
        if image is not None:
            refuse_full(registry, image.digest)

    def finish() -> None:
        sent.extend(registry.sent)
        describe(registry, image, predicates_of(record, record_digest))
        if key is not None:
            signed.extend(sign_release(f"{target.host}/{target.name}@{index.digest}", key))

    image = image_of(entries)
    neighbours = Neighbours(memory, target.host, target.name)
    push(layout, index, target, progress, registry=registry, neighbours=neighbours, start=start, finish=finish)
    neighbours.remember(blob.digest for blob in blobs)
    return Published(where, total, sum(sent), tuple(signed))


def describe(registry: Registry, image: Descriptor | None, said: dict[str, JSON]) -> None:
    """Put what is said of an image, by predicate type, beside it as referrers, unsigned and readable by anybody: `release sign` puts the signed
    forms beside them. Raises VerificationError where there is no image.
    """
    from release.oci import TITLE, Layout, put_artifact
    from release.publish.dsse import statement
    from release.publish.provenance import BILL, VERDICT
    from release.publish.provenance import PREDICATE as PROVENANCE
    from release.publish.signature import put

    if image is None:
        raise VerificationError("the release has no image", where=registry.where)
    with tempfile.TemporaryDirectory(prefix="release-publish-") as scratch:
        beside = Layout.create(Path(scratch))
        bill = beside.put_json(CYCLONEDX, said[BILL], {TITLE: "sbom.cdx.json"})
        made = [put_artifact(beside, CYCLONEDX, [bill], subject=image)]
        for kind, name in ((PROVENANCE, "provenance.intoto.json"), (VERDICT, "verdict.intoto.json")):
            layer = beside.put(IN_TOTO, statement(image.digest, kind, said[kind]), {TITLE: name})
            made.append(put_artifact(beside, IN_TOTO, [layer], subject=image, annotations={PREDICATE: kind}))
        put(registry, beside, image.digest, *made)
