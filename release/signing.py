"""Signing what is published, and verifying it: the registry, the keys, and the policy of whoever asks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from release.errors import UnsignedError
from release.types import JSON
from release.types.policy import Policy

if TYPE_CHECKING:
    from release.publish.verify import Check


def sign_release(reference: str, key: Path) -> list[str]:
    """Sign the index and the image of a published release, in both forms, and attest of the image its bill of materials, its provenance and
    its verdict; return what was signed, a line each.

    Raises UsageError for a key that is none, PublishError and VerificationError for the registry's answers.
    """
    from release.oci import Layout
    from release.publish.distribution import Registry
    from release.publish.dsse import statement
    from release.publish.keys import read_private
    from release.publish.reference import Reference
    from release.publish.signature import attest, publish, put, sign
    from release.publish.verify import record_of, released

    private, where = read_private(key), Reference.parse(reference)
    registry = Registry.at(where)
    index, entries = released(registry, where.digest or where.tag)
    signed = []
    with tempfile.TemporaryDirectory(prefix="release-sign-") as scratch:
        layout = Layout.create(Path(scratch))
        for subject in (index, *(entry for entry in entries if entry.platform.get("os") == "linux")):
            name = f"{where.host}/{where.name}"
            publish(registry, layout, subject.digest, *sign(layout, subject, private, name))
            signed.append(f"signed {subject.digest}")
        image = next((entry for entry in entries if entry.platform.get("os") == "linux"), None)
        if image is not None:
            record, digest = record_of(registry, entries, Path(scratch) / "record")
            for kind, predicate in predicates_of(record, digest).items():
                made = attest(layout, image, statement(image.digest, kind, predicate), kind, private)
                put(registry, layout, image.digest, made)
                signed.append(f"attested {kind} of {image.digest}")
    return signed


def predicates_of(record: JSON, digest: str) -> dict[str, JSON]:
    """Return what is attested of a release's image, by predicate type: bill of materials, provenance and verdict, all from its record."""
    from release.publish.provenance import BILL, PREDICATE, VERDICT, provenance, verdict
    from release.publish.sbom import sbom

    return {BILL: sbom(record), PREDICATE: provenance(record, digest), VERDICT: verdict(record, digest)}


def verify_release(
    reference: str, keys: Sequence[Path], policy: Path | None, today: date | None = None
) -> tuple[str, list[Check]]:
    """Verify a release in a registry, or in the folder of a bundle; return its digest and what was looked at.

    Raises as `publish.verify.verify`, MatrixError for a policy file.
    """
    from release.matrix import parse
    from release.publish.folder import Folder, source_at
    from release.publish.keys import read_public
    from release.publish.verify import verify

    source, name = source_at(reference)
    if isinstance(source, Folder):  # a registry is asked again when it is pulled from; a folder is all there is
        source.get_manifest(name)
        source.layout.verify(source.named[name])
    rules = parse.read(policy, Policy) if policy else Policy()
    public = [read_public(path) for path in keys]
    with tempfile.TemporaryDirectory(prefix="release-verify-") as scratch:
        return verify(source, name, public, rules, today or date.today(), Path(scratch))


def rotate(old: Path, new: Path, references: Sequence[str]) -> list[str]:
    """Sign with the key `new` what the key `old` has signed, both in files; return what was signed, a line each. No signature is taken away.

    Raises UnsignedError, and signs nothing, where `old` has not signed one of the releases: a rotation vouches for nothing new.
    """
    from release.publish.distribution import Registry
    from release.publish.keys import read_private, read_public
    from release.publish.reference import Reference
    from release.publish.signature import find

    read_private(new)
    public = read_public(old)
    digests = []
    for reference in references:
        where = Reference.parse(reference)
        registry = Registry.at(where)
        index, _ = registry.get_manifest(where.digest or where.tag)
        with tempfile.TemporaryDirectory(prefix="release-rotate-") as scratch:
            if not find(registry, index.digest, [public], Path(scratch)).signers:
                raise UnsignedError(f"{reference} is not signed by {old}", next_step="release sign signs what you vouch for")
        digests.append(f"{where.host}/{where.name}@{index.digest}")
    return [line for digest in digests for line in sign_release(digest, new)]
