"""Signing what is published, and verifying it: the registry, the keys, and the policy of whoever asks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from release.errors import UsageError
from release.types.policy import Policy

if TYPE_CHECKING:
    from release.publish.verify import Check


def sign_release(reference: str, key: Path) -> list[str]:
    """Sign the index and the image of a published release, in both forms, and attest of the image its bill of materials, its provenance and
    its verdict; return what was signed, a line each.

    Raises UsageError for a key that is none, PublishError and VerificationError for the registry's answers.
    """
    from release.oci import Descriptor, Layout
    from release.publish.distribution import Registry
    from release.publish.dsse import statement, strict
    from release.publish.keys import read_private
    from release.publish.provenance import BILL, VERDICT, provenance, verdict
    from release.publish.provenance import PREDICATE as PROVENANCE
    from release.publish.reference import Reference
    from release.publish.sbom import sbom
    from release.publish.signature import attest, publish, put, sign
    from release.publish.verify import record_of

    private, where = read_private(key), Reference.parse(reference)
    registry = Registry.at(where)
    index, data = registry.get_manifest(where.digest or where.tag)
    entries = [Descriptor.from_json(entry) for entry in strict(data, "a release").get("manifests", ())]
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
            statements = {BILL: sbom(record), PROVENANCE: provenance(record, digest), VERDICT: verdict(record, digest)}
            for kind, predicate in statements.items():
                made = attest(layout, image, statement(image.digest, kind, predicate), kind, private)
                put(registry, layout, image.digest, made)
                signed.append(f"attested {kind} of {image.digest}")
    return signed


def verify_release(
    reference: str, keys: Sequence[Path], policy: Path | None, today: date | None = None
) -> tuple[str, list[Check]]:
    """Verify a published release; return its digest and what was looked at. Raises as `publish.verify.verify`, MatrixError for a policy file."""
    from release.matrix import parse
    from release.publish.distribution import Registry
    from release.publish.keys import read_public
    from release.publish.reference import Reference
    from release.publish.verify import verify

    where = Reference.parse(reference)
    if not where.tag and not where.digest:
        raise UsageError(f"{reference} names neither a tag nor a digest", next_step="add :TAG or @sha256:…")
    rules = parse.read(policy, Policy) if policy else Policy()
    public = [read_public(path) for path in keys]
    with tempfile.TemporaryDirectory(prefix="release-verify-") as scratch:
        registry = Registry.at(where)
        return verify(registry, where.digest or where.tag, public, rules, today or date.today(), Path(scratch))
