"""Signing keys: P-256, as PEM, in files that only their owner can read; what signs with them and what they have signed.

Only the curve P-256 with SHA-256 is taken: cosign's verifiers hash with SHA-256 whatever the curve, so that others would not verify there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from release.errors import UsageError

PASSPHRASE: Final = "RELEASE_KEY_PASSPHRASE"
"""The environment variable that holds the passphrase of a private key; none: the key is not encrypted."""
LARGEST: Final = 16 << 10
"""Bytes of a key file beyond which it is none."""
FRESH: Final = "release keys new FILE makes one"


@dataclass(frozen=True)
class Public:
    """A public key: `name` is how a person knows it (its file), `hint` how a sigstore bundle names it: base64 of sha256 of its SPKI."""

    key: ec.EllipticCurvePublicKey
    name: str

    @property
    def hint(self) -> str:
        """The key's own digest."""
        der = self.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    def pem(self) -> bytes:
        """Return the key as PEM (SubjectPublicKeyInfo), as cosign takes it."""
        return self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Say whether a signature (ASN.1 ECDSA over SHA-256) of these bytes is by this key."""
        try:
            self.key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Private:
    """A private key; it does not show in a `repr`."""

    _key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return "Private(…)"

    def sign(self, data: bytes) -> bytes:
        """Return the signature of some bytes: ASN.1 ECDSA over SHA-256."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def public(self, name: str = "") -> Public:
        """Return its public key."""
        return Public(self._key.public_key(), name)


def new_key(path: Path) -> Public:
    """Write a new private key to `path` (mode 0600, encrypted if the passphrase is set) and its public key to `path`.pub.

    Raises UsageError where either file is there already: a key is never replaced.
    """
    beside = path.with_name(path.name + ".pub")
    for file in (path, beside):
        if os.path.lexists(file):
            raise UsageError(f"{file} is there already: a key is never replaced", next_step="name another file")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = os.environ.get(PASSPHRASE, "")
    encryption = serialization.BestAvailableEncryption(secret.encode()) if secret else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file_:
        file_.write(pem)
    public = Public(key.public_key(), beside.name)
    beside.write_bytes(public.pem())
    return public


def read_private(path: Path) -> Private:
    """Return the private key in a file. Raises UsageError if others can read it, or it is none, encrypted otherwise, or of another curve."""
    pem = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"{path} can be read by others", next_step=f"chmod 600 {path}; if others may have read it, make a new key"
        )
    secret = os.environ.get(PASSPHRASE, "")
    try:
        key = serialization.load_pem_private_key(pem, secret.encode() if secret and b"ENCRYPTED" in pem else None)
    except TypeError as problem:
        raise UsageError(f"{path} is encrypted", next_step=f"put its passphrase into {PASSPHRASE}") from problem
    except (ValueError, UnsupportedAlgorithm) as problem:
        wrong = f", or {PASSPHRASE} is not its passphrase" if b"ENCRYPTED" in pem else ""
        raise UsageError(f"{path} is no private key in PEM{wrong}", next_step=FRESH) from problem
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"{path} is not a P-256 key", next_step=FRESH)
    return Private(key)


def read_public(path: Path) -> Public:
    """Return the public key in a file. Raises UsageError for anything but one P-256 key in PEM."""
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise UsageError(
            f"{path} is no public key in PEM", next_step="give the .pub file that lies beside the private key"
        ) from problem
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"{path} is not a P-256 key: no other kind is taken", next_step=FRESH)
    return Public(key, path.name)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is no key: it has more than {LARGEST} bytes")
        return path.read_bytes()
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {(problem.strerror or '').lower()}", next_step=FRESH) from problem
