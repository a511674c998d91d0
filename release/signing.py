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
    from release.oci import Descriptor
    from release.publish.distribution import Registry
    from release.publish.keys import Private, Public
    from release.publish.verify import Check

Statements = Sequence[tuple[str, bytes]]
"""Predicate types, and the statements of in-toto to be signed, to the byte."""


def sign_release(reference: str, key: Path) -> list[str]:
    """Sign the index and the image of a published release, in both forms, and attest of the image its bill of materials, its provenance and
    its verdict; return what was signed, a line each.

    Raises UsageError for a key that is none, PublishError and VerificationError for the registry's answers.
    """
    from release.publish.distribution import Registry
    from release.publish.dsse import statement
    from release.publish.keys import read_private
    from release.publish.reference import Reference
    from release.publish.verify import image_of, record_of, released

    private, where = read_private(key), Reference.parse(reference)
    registry = Registry.at(where)
    index, entries = released(registry, where.digest or where.tag)
    image = image_of(entries)
    told: list[tuple[Descriptor, Statements]] = [(index, ())]
    if image is not None:
        with tempfile.TemporaryDirectory(prefix="release-sign-") as scratch:
            said = predicates_of(*record_of(registry, entries, Path(scratch)))
        told.append((image, [(kind, statement(image.digest, kind, predicate)) for kind, predicate in said.items()]))
    return _put_signed(registry, told, private)


def _put_signed(registry: Registry, told: Sequence[tuple[Descriptor, Statements]], key: Private) -> list[str]:
    """Put a signature of each subject into a registry, and of each statement that is told of it; return what was signed."""
    from release.oci import Layout
    from release.publish.signature import attest, publish, refuse_full, sign

    for subject, _ in told:
        refuse_full(registry, subject.digest)
    with tempfile.TemporaryDirectory(prefix="release-sign-") as scratch:
        layout = Layout.create(Path(scratch))
        for subject, statements in told:
            said = [attest(layout, subject, payload, kind, key) for kind, payload in statements]
            publish(registry, layout, subject.digest, *sign(layout, subject, key, registry.where), *said)
    signed = [f"signed {subject.digest}" for subject, _ in told]
    return signed + [f"attested {kind} of {subject.digest}" for subject, statements in told for kind, _ in statements]


def predicates_of(record: JSON, digest: str) -> dict[str, JSON]:
    """Return what is attested of a release's image, by predicate type: bill of materials, provenance and verdict, all from its record."""
    from release.publish.provenance import BILL, PREDICATE, VERDICT, provenance, verdict
    from release.publish.sbom import sbom

    return {BILL: sbom(record, digest), PREDICATE: provenance(record, digest), VERDICT: verdict(record, digest)}


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

    All of it is checked with `old` first: each release's index and image must bear its signature, and only statements that it has signed of this
    very release are attested anew, as they are. What others said beside them stays theirs. Raises UnsignedError or VerificationError, and
    signs nothing, where one of the releases is not so: a rotation vouches for nothing new.
    """
    from release.publish.keys import read_private, read_public

    private, public = read_private(new), read_public(old)
    known = [_vouched(reference, public) for reference in references]
    return [line for each in known for line in _put_signed(*each, private)]


def _vouched(reference: str, key: Public) -> tuple[Registry, list[tuple[Descriptor, Statements]]]:
    """Return a release's registry, and its index and image, which `key` has signed, each with what the key has attested of it."""
    from release.publish.distribution import Registry
    from release.publish.reference import Reference
    from release.publish.signature import find
    from release.publish.verify import image_of, record_of, released, spoken

    where = Reference.parse(reference)
    registry = Registry.at(where)
    index, entries = released(registry, where.digest or where.tag)
    image = image_of(entries)
    told: list[tuple[Descriptor, Statements]] = []
    with tempfile.TemporaryDirectory(prefix="release-rotate-") as scratch:
        record = record_of(registry, entries, Path(scratch))
        for what, subject in (("index", index), *((("image", image),) if image else ())):
            found = find(registry, subject.digest, [key], Path(scratch) / what)
            if not found.signers:
                raise UnsignedError(
                    f"the {what} of {reference} is not signed by {key.name}", next_step="release sign signs what you vouch for"
                )
            said = spoken(found.attested, *record, registry.where)
            told.append((subject, [(each.predicate_type, each.payload) for of in said.values() for each in of]))
    return registry, told
