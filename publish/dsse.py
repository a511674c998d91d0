"""DSSE envelopes in sigstore bundles: what is signed, how it is packed, and a reader that takes nothing on trust.

Formats: DSSE 1.0.2 (PAE), in-toto Statement v1, sigstore bundle v0.3 with a public key's hint and no transparency log.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from release.errors import VerificationError
from release.oci import METADATA_LIMIT, canonical
from release.publish.keys import Private, Public
from release.types import JSON

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
MOST_SIGNATURES: Final = 32


@dataclass(frozen=True)
class Signed:
    """A statement that was signed by `key`: the digests of its subjects, what is said of them, and the very bytes of it all."""

    key: Public
    subjects: tuple[str, ...]
    predicate_type: str
    predicate: JSON
    payload: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what a signature is over: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def statement(digest: str, predicate_type: str, predicate: JSON) -> bytes:
    """Return an in-toto statement about `sha256:<hex>`."""
    subject = {"digest": {"sha256": digest.removeprefix("sha256:")}}
    return canonical({"_type": STATEMENT, "subject": [subject], "predicateType": predicate_type, "predicate": predicate})


def bundle(payload: bytes, key: Private) -> bytes:
    """Return a sigstore bundle with the payload in a signed envelope, as cosign 3 writes and reads it."""
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(key.sign(pae(PAYLOAD_TYPE, payload))).decode()}],
    }
    material = {"publicKey": {"hint": key.public().hint}}
    return canonical({"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope})


def open_bundle(data: bytes, keys: Sequence[Public]) -> Signed | None:
    """Return what a bundle says if one of the keys has signed it, None if none has.

    Raises VerificationError for anything but a sound bundle with a sound statement: keys twice in an object, other types than those above,
    text that is no canonical base64, subjects without sha256.
    """
    document = strict(data, "a bundle")
    envelope = _object(document.get("dsseEnvelope"), "a bundle's envelope")
    if document.get("mediaType") != BUNDLE_TYPE or envelope.get("payloadType") != PAYLOAD_TYPE:
        raise VerificationError(f"a bundle of type {document.get('mediaType')!r:.80} with {envelope.get('payloadType')!r:.80}")
    payload = unbase64(envelope.get("payload"), "a bundle's payload")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or not 0 < len(signatures) <= MOST_SIGNATURES:
        raise VerificationError("a bundle without a sound list of signatures")
    made = [unbase64(_object(each, "a signature").get("sig"), "a signature") for each in signatures]
    told = strict(payload, "a statement")
    subjects = told.get("subject")
    if told.get("_type") != STATEMENT or not isinstance(subjects, list) or not isinstance(told.get("predicateType"), str):
        raise VerificationError("a bundle whose payload is no in-toto statement")
    digests = tuple(_digest(_object(each, "a subject")) for each in subjects)
    encoded = pae(PAYLOAD_TYPE, payload)
    signer = next((key for key in keys for signature in made if key.verifies(signature, encoded)), None)
    if signer is None:
        return None
    return Signed(signer, digests, told["predicateType"], _object(told.get("predicate", {}), "a predicate"), payload)


def _digest(subject: JSON) -> str:
    found = _object(subject.get("digest"), "a subject's digest").get("sha256")
    if not isinstance(found, str) or len(found) != 64 or set(found) - set("0123456789abcdef"):
        raise VerificationError("a statement whose subject has no sha256")
    return f"sha256:{found}"


def strict(data: bytes, what: str) -> JSON:
    """Return a JSON object that no two readers take for different things. Raises VerificationError."""

    def once(pairs: list[tuple[str, Any]]) -> JSON:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        if len(data) > METADATA_LIMIT:
            raise ValueError(f"it has more than {METADATA_LIMIT} bytes")
        return _object(json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse), what)
    except (ValueError, RecursionError) as problem:
        raise VerificationError(f"{what} cannot be read: {problem!s:.200}") from problem


def unbase64(text: object, what: str) -> bytes:
    """Return the bytes of canonical base64 (RFC 4648, section 4, padded). Raises VerificationError for any other spelling of them."""
    try:
        if not isinstance(text, str):
            raise ValueError("it is no text")
        found = base64.b64decode(text, validate=True)
        if base64.b64encode(found).decode() != text:
            raise ValueError("it is not canonical")
        return found
    except (ValueError, binascii.Error) as problem:
        raise VerificationError(f"{what} is no base64: {problem}") from problem


def _object(value: object, what: str) -> JSON:
    if not isinstance(value, dict):
        raise VerificationError(f"{what} is no object")
    return value
