"""Keys for encrypted patches: RSA, read from a private file or from the environment, and never replaced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from release.errors import PatchError, RequestError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

PRIVATE_FILE: Final = "private_key.pem"
PUBLIC_FILE: Final = "public_key.pem"
"""FlagScale's names for the two files of a key folder."""
VARIABLE: Final = "RELEASE_PATCH_KEY"
PASSPHRASE: Final = "RELEASE_PATCH_KEY_PASSPHRASE"
BITS: Final = 4096
FEWEST_BITS: Final = 3072
FILE_LIMIT: Final = 64 << 10
"""Bytes that the file of a key may have."""
PRIVATE_PEM: Final = re.compile(r"-----BEGIN (?:RSA |ENCRYPTED )?PRIVATE KEY-----")
PUBLIC_PEM: Final = re.compile(r"-----BEGIN (?:RSA )?PUBLIC KEY-----")
HOW: Final = f"name its file with --key FILE (mode 0600), or put its PEM text into the environment as {VARIABLE}"
MISTAKEN: Final = "this is a public key, not the private one that is needed"
NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says that knows no hard links."""


@dataclass(frozen=True, repr=False)
class PublicKey:
    """A recipient of encrypted patches: an RSA key and its id, sha256 of its SubjectPublicKeyInfo in DER, 64 hex digits."""

    _key: RSAPublicKey
    id: str

    @property
    def bits(self) -> int:
        """Size of the modulus."""
        return self._key.key_size

    def wrap(self, secret: bytes) -> bytes:
        """Encrypt a short secret: RSA-OAEP with SHA-256 in both places and no label (RFC 8017 §7.1); `bits / 8` bytes."""
        return self._key.encrypt(secret, _oaep())

    def pem(self) -> bytes:
        """Return the key as SubjectPublicKeyInfo in PEM, for the one who encrypts."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def __repr__(self) -> str:
        return f"PublicKey({self.id[:8]}…)"


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """A private RSA key and the public one that belongs to it."""

    _key: RSAPrivateKey
    public: PublicKey

    def unwrap(self, wrapped: bytes) -> bytes:
        """Undo `PublicKey.wrap`. Raises ValueError when the secret was wrapped for another key, or is damaged."""
        return self._key.decrypt(wrapped, _oaep())

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id[:8]}…)"


def private_key(path: Path | None = None) -> PrivateKey:
    """Read a private key, PKCS#1 or PKCS#8 in PEM: from `path`, a file or a folder with `private_key.pem`, else from $RELEASE_PATCH_KEY.

    A passphrase comes from $RELEASE_PATCH_KEY_PASSPHRASE. Nothing is written, whether or not the public key lies beside it.
    Raises PatchError when there is no key, when others than its owner may touch the file, when it is locked and the passphrase is
    missing or wrong, and when it is no RSA key of at least 3072 bits. No message quotes the key.
    """
    if path is None:
        if not (text := os.environ.get(VARIABLE, "").strip()):
            raise PatchError("there is no private key for encrypted patches", next_step=HOW)
        return _private(text + "\n", f"${VARIABLE}")
    file = path / PRIVATE_FILE if path.is_dir() else path
    return _private(_text(file, secret=True), str(file))


def public_key(path: Path) -> PublicKey:
    """Read a recipient's public key from `path`: a PEM file, or a folder with `public_key.pem`.

    Where the folder holds only the private key, the public key that belongs to it is worked out in memory. Raises PatchError when
    there is no such key or it is no RSA key of at least 3072 bits, and for the file of a private key: who has one to give is mistaken.
    """
    file = path
    if path.is_dir():
        file = path / PUBLIC_FILE
        if not file.exists() and (path / PRIVATE_FILE).exists():
            return private_key(path).public
    text = _text(file)
    if PRIVATE_PEM.search(text):
        raise RequestError(
            "this is a private key: give its public half",
            where=str(file),
            next_step=f"it is the {PUBLIC_FILE} that was made with it, or `openssl rsa -in {file} -pubout`",
        )
    return public_key_in(text, str(file))


def public_key_in(text: str, where: str) -> PublicKey:
    """Return the public key in a PEM text; `where` names its place in errors."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not PUBLIC_PEM.search(text):
        raise PatchError("this is no public key in PEM form", where=where, next_step=f"ask the recipient for {PUBLIC_FILE}")
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PatchError("the public key is damaged", where=where, next_step=f"ask the recipient for {PUBLIC_FILE}") from None
    if not isinstance(key, RSAPublicKey):
        raise PatchError("the public key is no RSA key", where=where, next_step=f"use an RSA key of {BITS} bits")
    return _public(key, where)


def new_keys(folder: Path, passphrase: str = "") -> PublicKey:
    """Make a pair of RSA-4096 keys, write `private_key.pem` (mode 0600) and `public_key.pem` into `folder`, return the public one.

    The private key is PKCS#1 as FlagScale writes it, or encrypted PKCS#8 where there is a passphrase. Raises PatchError when
    either file is there already: no key is ever overwritten. Where the second cannot be written, the first is removed again.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    private, public = folder / PRIVATE_FILE, folder / PUBLIC_FILE
    for file in (private, public):
        if os.path.lexists(file):
            raise _there(file)
    key = generate_private_key(public_exponent=65537, key_size=BITS)
    form = serialization.PrivateFormat.PKCS8 if passphrase else serialization.PrivateFormat.TraditionalOpenSSL
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        lock = serialization.BestAvailableEncryption(passphrase.encode())
    recipient = _public(key.public_key(), str(public))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(private, key.private_bytes(serialization.Encoding.PEM, form, lock), 0o600)
        try:
            _create(public, recipient.pem(), 0o644)
        except BaseException:
            private.unlink()
            raise
    except OSError as problem:
        raise PatchError(
            f"the keys cannot be written: {problem.strerror}",
            where=str(folder),
            next_step="no key was made: free some space, or choose another folder",
        ) from problem
    return recipient


def _create(file: Path, content: bytes, mode: int) -> None:
    """Write a file that was not there before, aside and then in one step; readable by others at no moment where `mode` does not say so."""
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(number, "wb") as stream:
            os.fchmod(number, mode)
            stream.write(content)
            stream.flush()
            os.fsync(number)
        try:
            os.link(aside, file, follow_symlinks=False)
        except OSError as problem:
            if os.path.lexists(file):
                raise _there(file) from None
            if problem.errno not in NO_LINKS:
                raise
            aside.rename(file)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _there(file: Path) -> RequestError:
    return RequestError(
        "there is a key already, and keys are never overwritten",
        where=str(file),
        next_step="choose another folder, or move the old key to a safe place: what was encrypted for it opens with nothing else",
    )


def _text(file: Path, *, secret: bool = False) -> str:
    """Read a PEM file; a `secret` one only where nobody but its owner may read or write it."""
    try:
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:  # a pipe must not block
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PatchError("this is no plain file", where=str(file), next_step=HOW)
            mode = stat.S_IMODE(status.st_mode)
            content = stream.read(FILE_LIMIT + 1)
    except OSError as problem:
        raise PatchError(f"the key cannot be read: {problem.strerror}", where=str(file), next_step=HOW) from problem
    if len(content) > FILE_LIMIT:
        raise PatchError(f"this is no key: it has more than {FILE_LIMIT} bytes", where=str(file), next_step=HOW)
    text = content.decode("ascii", "replace")
    if secret and mode & 0o177 and not _is_public(text):
        raise PatchError(
            f"the private key has mode {mode:04o}: others than its owner may get at it",
            where=str(file),
            next_step=f"chmod 600 {file}",
        )
    return text


def _is_public(text: str) -> bool:
    return PUBLIC_PEM.search(text) is not None and not PRIVATE_PEM.search(text)


def _private(text: str, where: str) -> PrivateKey:
    """Return the private key in a PEM text. What the library says about a key that it cannot read is kept to ourselves."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if _is_public(text):
        raise RequestError(MISTAKEN, where=where, next_step=HOW)
    if not PRIVATE_PEM.search(text):
        raise PatchError("this is no private key in PEM form, PKCS#1 or PKCS#8", where=where, next_step=HOW)
    locked = "ENCRYPTED" in text
    passphrase = os.environ.get(PASSPHRASE, "")
    if locked and not passphrase:
        raise PatchError("the private key is locked with a passphrase", where=where, next_step=f"put it into {PASSPHRASE}")
    try:
        key = load_pem_private_key(text.encode("ascii", "replace"), passphrase.encode() if locked else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "the passphrase does not open the private key" if locked else "the private key is damaged"
        step = f"look at {PASSPHRASE}, or bring the key from its backup" if locked else "bring the key from its backup"
        raise PatchError(problem, where=where, next_step=step) from None
    if not isinstance(key, RSAPrivateKey):
        raise PatchError("the private key is no RSA key", where=where, next_step=f"use an RSA key of {BITS} bits")
    return PrivateKey(key, _public(key.public_key(), where))


def _public(key: RSAPublicKey, where: str) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if key.key_size < FEWEST_BITS:
        raise PatchError(
            f"the key has {key.key_size} bits; at least {FEWEST_BITS} are needed",
            where=where,
            next_step=f"make a key of {BITS} bits",
        )
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key, hashlib.sha256(spki).hexdigest())


def _oaep() -> OAEP:
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.hashes import SHA256

    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
