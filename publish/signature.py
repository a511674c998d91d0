"""Signatures of what is published, in both forms that cosign reads: the tag `sha256-<hex>.sig`, and a sigstore bundle that refers to it.

Formats: cosign's SIGNATURE_SPEC (simple signing), sigstore bundle v0.3 as a referrer, read from what cosign 2.5 and 3.1 accept.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release.errors import PublishError, VerificationError
from release.oci import IMAGE_CONFIG, METADATA_LIMIT, Descriptor, Layout, canonical, children, put_artifact
from release.publish.distribution import Registry, exclusive
from release.publish.dsse import BUNDLE_TYPE, Signed, bundle, open_bundle, statement, strict, unbase64
from release.publish.keys import Private, Public
from release.publish.registry import referrer
from release.types import JSON

if TYPE_CHECKING:
    from release.publish.folder import Source

SIMPLE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
SIGN: Final = "https://sigstore.dev/cosign/sign/v1"
"""The predicate that says "this is signed", and nothing else of it."""
TYPE: Final = "cosign container image signature"
MOST: Final = 1000
"""Referrers and signatures of one digest that are looked at."""
ROOM: Final = 16
"""Referrers that a release and its signatures need at most: they must fit below MOST, or no release of the same image verifies any more."""
MOST_BUNDLES: Final = 16
"""Bundles in one referrer; cosign and we put one there."""


@dataclass(frozen=True)
class Found:
    """What speaks of a digest: who signed it, what is attested of it by whom, and how many signatures were by no key that is trusted."""

    signers: tuple[str, ...]
    attested: tuple[Signed, ...]
    strangers: int


def sign(layout: Layout, subject: Descriptor, key: Private, name: str) -> tuple[Descriptor, Descriptor]:
    """Put both forms of a signature of `subject` into a layout; return the simple one's manifest and the bundle's.

    `name` is what the signed text calls the image (REGISTRY/NAMESPACE/NAME): readers compare the digest, and may compare that.
    """
    identity = {"docker-reference": name}
    image = {"docker-manifest-digest": subject.digest}
    payload = canonical({"critical": {"identity": identity, "image": image, "type": TYPE}, "optional": None})
    told = {SIGNATURE: base64.b64encode(key.sign(payload)).decode()}
    layer = layout.put(SIMPLE, payload, told)
    config = {
        **{"architecture": "", "created": "0001-01-01T00:00:00Z", "os": "", "config": {}},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }
    manifest = {
        **{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"},
        **{"config": layout.put_json(IMAGE_CONFIG, config).to_json(), "layers": [layer.to_json()]},
    }
    simple = layout.put_json("application/vnd.oci.image.manifest.v1+json", manifest)
    return simple, attest(layout, subject, statement(subject.digest, SIGN, {}), SIGN, key)


def attest(layout: Layout, subject: Descriptor, payload: bytes, predicate_type: str, key: Private) -> Descriptor:
    """Put a signed statement about `subject` into a layout, as a bundle that refers to it; return its manifest."""
    told = {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicate_type}
    layer = layout.put(BUNDLE_TYPE, bundle(payload, key))
    return put_artifact(layout, BUNDLE_TYPE, [layer], subject=subject, annotations=told)


def publish(registry: Registry, layout: Layout, subject: str, simple: Descriptor, *bundled: Descriptor) -> None:
    """Put both forms, and more bundles if there are any, into the registry: what was signed before by others stays."""
    put_simple(registry, layout, subject, simple)
    put(registry, layout, subject, *bundled)


def refuse_full(registry: Registry, subject: str) -> None:
    """Raise PublishError where a digest has so many referrers that another release's would make it unverifiable."""
    if len(registry.referrers(subject)) > MOST - ROOM:
        raise PublishError(
            f"{subject} has nearly {MOST} referrers, and more are not looked at by who verifies",
            where=registry.where,
            next_step="publish into another repository",
        )


def put_simple(registry: Registry, layout: Layout, subject: str, simple: Descriptor) -> None:
    """Put signatures of the older form into the registry, beside those that are there; who signs on this machine takes turns.

    Raises VerificationError where what is there is no list of signatures, PublishError where it is full.
    """
    tag = f"{subject.replace(':', '-')}.sig"
    with exclusive(f"{registry.where}@{tag}"):
        _put_simple(registry, layout, subject, simple, tag)


def _put_simple(registry: Registry, layout: Layout, subject: str, simple: Descriptor, tag: str) -> None:
    layers = children(simple, layout)[1:]
    document = layout.read(simple)
    if known := registry.find_manifest(tag):
        before = [Descriptor.from_json(layer).to_json() for layer in _listed(known[1], subject, registry.where)]
        document["layers"] = [*before, *(layer.to_json() for layer in layers if layer.to_json() not in before)]
        if len(document["layers"]) > MOST:
            raise PublishError(f"{subject} has {MOST} signatures", where=registry.where)
        ids = [layer["digest"] for layer in document["layers"]]
        config = {**layout.read(children(simple, layout)[0]), "rootfs": {"type": "layers", "diff_ids": ids}}
        document["config"] = layout.put_json(IMAGE_CONFIG, config).to_json()
        simple = layout.put_json(simple.media_type, document)
    _put_blobs(registry, layout, simple)
    registry.put_manifest(tag, simple.media_type, layout.blob(simple.digest).read_bytes())


def put(registry: Registry, layout: Layout, subject: str, *referring: Descriptor) -> None:
    """Put what refers to one subject into the registry, and on the list of what does, in one turn."""
    unlisted = []
    for each in referring:
        _put_blobs(registry, layout, each)
        if not registry.put_manifest(each.digest, each.media_type, layout.blob(each.digest).read_bytes()):
            unlisted.append(referrer(each, layout.read(each)))
    if unlisted:
        registry.attach(subject, unlisted)


def _put_blobs(registry: Registry, layout: Layout, manifest: Descriptor) -> None:
    """Put what a manifest names into the registry; what others put there before, and is not here, is there."""
    for blob in children(manifest, layout):
        if layout.blob(blob.digest).is_file():
            registry.put_blob(blob, layout.blob(blob.digest))


def find(registry: Source, digest: str, keys: Sequence[Public], scratch: Path) -> Found:
    """Return what speaks of a digest in the registry. A signature that is no sound one, or of something else, raises VerificationError.

    Only keys that are given count: what strangers signed is counted, and proves nothing. A signed statement of another predicate is no
    signature of the image itself (cosign 3.1 takes one for it).
    """
    layout = Layout.create(scratch / "signatures")
    signers: dict[str, None] = {}
    attested: list[Signed] = []
    strangers = 0
    for payload, signature in _simple(registry, digest, layout):
        signer = next((key for key in keys if key.verifies(signature, payload)), None)
        if signer is None:
            strangers += 1
        elif _subject(payload) != digest:
            raise VerificationError(f"a signature at {digest} is of {_subject(payload)!r:.100}", where=registry.where)
        else:
            signers[signer.name] = None
    for data in _bundles(registry, digest, layout):
        signed = open_bundle(data, keys)
        if signed is None:
            strangers += 1
        elif digest not in signed.subjects:
            raise VerificationError(f"a statement at {digest} is of {', '.join(signed.subjects):.200}", where=registry.where)
        elif signed.predicate_type == SIGN:
            signers[signed.key.name] = None
        else:
            attested.append(signed)
    return Found(tuple(signers), tuple(attested), strangers)


def _simple(registry: Source, digest: str, layout: Layout) -> Iterator[tuple[bytes, bytes]]:
    """Yield payload and signature of each signature of the older form."""
    known = registry.find_manifest(f"{digest.replace(':', '-')}.sig")
    if known is None:
        return
    for layer in map(Descriptor.from_json, _listed(known[1], digest, registry.where)):
        if layer.media_type == SIMPLE:
            yield _blob(registry, layer, layout), unbase64(layer.annotations.get(SIGNATURE), "a signature")


def _listed(manifest: bytes, digest: str, where: str) -> list[Any]:
    """Return the layers of a manifest of signatures, still to be read. Raises VerificationError where it has no list of them, or too many."""
    layers = strict(manifest, "a manifest of signatures").get("layers")
    if not isinstance(layers, list) or len(layers) > MOST:
        raise VerificationError(f"the signatures of {digest} are no sound list", where=where)
    return layers


def _bundles(registry: Source, digest: str, layout: Layout) -> Iterator[bytes]:
    """Yield the bundles that refer to a digest, whatever the list of referrers calls them: their own manifests are opened."""
    entries = registry.referrers(digest)
    if len(entries) > MOST:
        raise VerificationError(f"{digest} has more than {MOST} referrers", where=registry.where)
    for entry in entries:
        _, data = registry.get_manifest(entry.digest)
        manifest = strict(data, "a manifest")
        subject = manifest.get("subject")
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not isinstance(subject, dict) or subject.get("digest") != digest:
            continue  # it does not say that it is of this digest: a list's word is nobody's
        bundles = [layer for layer in map(Descriptor.from_json, layers) if layer.media_type == BUNDLE_TYPE]
        if len(bundles) > MOST_BUNDLES:
            raise VerificationError(f"{entry.digest} has more than {MOST_BUNDLES} bundles", where=registry.where)
        yield from (_blob(registry, each, layout) for each in bundles)


def _blob(registry: Source, descriptor: Descriptor, layout: Layout) -> bytes:
    if descriptor.size > METADATA_LIMIT:
        raise VerificationError(f"{descriptor.digest} claims {descriptor.size} bytes", where=registry.where)
    if not layout.blob(descriptor.digest).is_file():
        registry.get_blob(descriptor, layout)
    return layout.blob(descriptor.digest).read_bytes()


def _subject(payload: bytes) -> object:
    """Return the digest that a signed text of the older form speaks of. Raises VerificationError for another text."""
    critical = strict(payload, "a signed text").get("critical")
    image: JSON | None = critical.get("image") if isinstance(critical, dict) else None
    if not isinstance(critical, dict) or critical.get("type") != TYPE or not isinstance(image, dict):
        raise VerificationError("a signed text that is no signature of an image")
    return image.get("docker-manifest-digest")
