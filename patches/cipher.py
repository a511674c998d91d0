"""Encrypted patches: an authenticated container of ours, and FlagScale's, which has no proof of being whole; both in memory only.

Ours, integers big-endian:

    magic        12 bytes  89 'release' 0D 0A 1A 0A: broken by whoever converts line ends
    version       1 byte   1
    recipients    1 byte   how many, at least 1
    size          8 bytes  of the plaintext
    each recipient:
        key id   32 bytes  sha256 of the SubjectPublicKeyInfo in DER
        length    2 bytes  of the next
        key               content key, RSA-OAEP with SHA-256
    nonce        12 bytes
    checksum     32 bytes  sha256 of all bytes before it, so that damage is told from a wrong key
    ciphertext            AES-256-GCM of sha256(plaintext) and plaintext, tag at the end; all bytes before it are associated data

FlagScale's (tools/patch/encryption_utils.py): IV (16), the AES key under RSA-4096-OAEP-SHA256 (512), AES-256-CBC with PKCS#7.
It holds no MAC and no key id: a changed IV changes the first 16 bytes of the plaintext, and nothing in the file can tell. What
proves such a file is its sha256, in a series or a lock. The same is true of who made a container, ours or theirs: anybody may
encrypt for a public key.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from release.errors import PatchError
from release.patches.keys import PrivateKey, PublicKey

RELEASE: Final = "release-1"
FLAGSCALE: Final = "flagscale"
"""The two formats."""
LIMIT: Final = 256 << 20
"""Bytes of plaintext that a container may hold."""

MAGIC: Final = b"\x89release\r\n\x1a\n"
VERSION: Final = 1
MOST_RECIPIENTS: Final = 64
START: Final = struct.Struct(">12sBBQ")
RECIPIENT: Final = struct.Struct(">32sH")
NONCE: Final = 12
DIGEST: Final = 32
TAG: Final = 16
KEY: Final = 32
IV: Final = 16
BLOCK: Final = 16
WRAPPED: Final = 512
AGAIN: Final = "fetch the file again from the one who made it, and compare its sha256"
OTHER_KEY: Final = (
    "use the private key that belongs to the public key it was encrypted for, or ask the sender for a copy for yours"
)


@dataclass(frozen=True)
class Container:
    """What a container says of itself: its format, the ids of the keys that open it, its plaintext's size; none in FlagScale's."""

    format: str
    recipients: tuple[str, ...] = ()
    size: int | None = None

    @property
    def authenticated(self) -> bool:
        """Whether damage is noticed from the container alone."""
        return self.format == RELEASE


@dataclass(frozen=True)
class _Head:
    """The header of our container: wrapped content keys by key id, the nonce, the size of the plaintext, where the header ends."""

    keys: dict[str, bytes]
    nonce: bytes
    size: int
    end: int


def encrypt(plaintext: bytes, recipients: Sequence[PublicKey]) -> bytes:
    """Return `plaintext` in a container of ours that each of the recipients can open.

    Raises PatchError for more than 256 MiB, and for none, too many or repeated recipients.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    _bounded(len(plaintext))
    ids = [recipient.id for recipient in recipients]
    if not 0 < len(ids) <= MOST_RECIPIENTS or len(set(ids)) < len(ids):
        raise PatchError(
            f"a patch is encrypted for 1 to {MOST_RECIPIENTS} different recipients, not for {len(ids)}",
            next_step="name each recipient's public key once",
        )
    key, nonce = os.urandom(KEY), os.urandom(NONCE)
    wrapped = [(bytes.fromhex(recipient.id), recipient.wrap(key)) for recipient in recipients]
    head = START.pack(MAGIC, VERSION, len(wrapped), len(plaintext))
    head += b"".join(RECIPIENT.pack(id, len(secret)) + secret for id, secret in wrapped) + nonce
    head += hashlib.sha256(head).digest()
    return head + AESGCM(key).encrypt(nonce, hashlib.sha256(plaintext).digest() + plaintext, head)


def encrypt_for_flagscale(plaintext: bytes, recipient: PublicKey) -> bytes:
    """Return `plaintext` in FlagScale's container, for those who open it with FlagScale's tools; RSA-4096 only."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.padding import PKCS7

    _bounded(len(plaintext))
    _flagscale_size(recipient, "")
    key, iv = os.urandom(KEY), os.urandom(IV)
    padder, encryptor = PKCS7(BLOCK * 8).padder(), Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    padded = padder.update(plaintext) + padder.finalize()
    return iv + recipient.wrap(key) + encryptor.update(padded) + encryptor.finalize()


def container(content: bytes, where: str = "") -> Container:
    """Return what an encrypted file says of itself, without a key. Raises PatchError when it is no container, or not a whole one."""
    if content.startswith(MAGIC[:8]):
        head = _head(content, where)
        return Container(RELEASE, tuple(head.keys), head.size)
    if not content:
        raise PatchError("the file is empty", where=where, next_step=AGAIN)
    if content.startswith((b"diff ", b"From ", b"--- ", b"Index: ")):
        raise PatchError("this is a plain patch, not an encrypted one", where=where, next_step="call it `….patch`")
    if len(content) < IV + WRAPPED + BLOCK or (len(content) - IV - WRAPPED) % BLOCK:
        raise PatchError(
            f"this is no encrypted patch that is known here: it has neither the beginning of ours nor a size that FlagScale's"
            f" can have ({len(content)} bytes, not {IV + WRAPPED} and a multiple of {BLOCK}), or it is truncated",
            where=where,
            next_step=AGAIN,
        )
    _bounded(len(content) - IV - WRAPPED - BLOCK, where)
    return Container(FLAGSCALE)


def decrypt(content: bytes, key: PrivateKey, where: str = "") -> bytes:
    """Return the plaintext of an encrypted patch, whichever format it has; `where` names the file in errors.

    Raises PatchError, one message each, when it is no container, truncated, too large, of another version, damaged in its header
    or its content, or encrypted for another key. In FlagScale's format a wrong key and a damaged key look the same, and so do
    damage and other bytes (see above); its padding is checked as a whole.
    """
    if container(content, where).format == RELEASE:
        return _opened(content, key, where)
    return _opened_flagscale(content, key, where)


def decrypting(key: Callable[[], PrivateKey]) -> Callable[[bytes, str], bytes]:
    """Return what `patch_set` needs for encrypted patches: a function of content and place. `key` is called once, when first needed."""
    known: list[PrivateKey] = []

    def open_patch(content: bytes, where: str) -> bytes:
        if not known:
            known.append(key())
        return decrypt(content, known[0], where)

    return open_patch


def _head(content: bytes, where: str) -> _Head:
    """Read and check the header, and that the file has the size that it announces."""
    if len(content) < START.size:
        raise _truncated("inside its header", where)
    magic, version, count, size = START.unpack_from(content)
    if magic != MAGIC:
        raise _damaged("the first bytes are not as they were written, as when line ends are converted", where)
    if version != VERSION:
        raise PatchError(
            f"this container has version {version}; {VERSION} is known here", where=where, next_step="use a newer `release`"
        )
    keys: dict[str, bytes] = {}
    at = START.size
    for _ in range(count):
        if len(content) < at + RECIPIENT.size:
            raise _truncated("inside its header", where)
        id, length = RECIPIENT.unpack_from(content, at)
        at += RECIPIENT.size + length
        keys[id.hex()] = content[at - length : at]
    end = at + NONCE + DIGEST
    if len(content) < end:
        raise _truncated("inside its header", where)
    if hashlib.sha256(content[: end - DIGEST]).digest() != content[end - DIGEST : end]:
        raise _damaged("its checksum is not that of its header", where)
    _bounded(size, where)
    if (wanted := end + DIGEST + size + TAG) > len(content):
        raise _truncated(f"after {len(content)} of {wanted} bytes", where)
    if wanted < len(content):
        raise PatchError(f"the container is followed by {len(content) - wanted} foreign bytes", where=where, next_step=AGAIN)
    return _Head(keys, content[at : at + NONCE], size, end)


def _opened(content: bytes, key: PrivateKey, where: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    head = _head(content, where)
    if key.public.id not in head.keys:
        theirs = ", ".join(f"{id[:8]}…" for id in head.keys) or "nobody"
        raise PatchError(
            f"the patch is encrypted for {theirs}; the private key at hand is {key.public.id[:8]}…",
            where=where,
            next_step=OTHER_KEY,
        )
    try:
        secret = key.unwrap(head.keys[key.public.id])
    except ValueError:
        secret = b""
    if len(secret) != KEY:
        raise PatchError(
            "the content key in the container does not open, although it names this key", where=where, next_step=AGAIN
        )
    try:
        inside = memoryview(AESGCM(secret).decrypt(head.nonce, memoryview(content)[head.end :], content[: head.end]))
    except InvalidTag:
        raise PatchError("the encrypted content is damaged: its authentication fails", where=where, next_step=AGAIN) from None
    if hashlib.sha256(inside[DIGEST:]).digest() != inside[:DIGEST]:
        raise PatchError("the plaintext is not the one whose sha256 lies inside", where=where, next_step=AGAIN)
    return bytes(inside[DIGEST:])


def _opened_flagscale(content: bytes, key: PrivateKey, where: str) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    _flagscale_size(key.public, where)
    try:
        secret = key.unwrap(content[IV : IV + WRAPPED])
    except ValueError:
        secret = b""
    if len(secret) != KEY:
        raise PatchError(
            f"the private key {key.public.id[:8]}… does not open the patch: it was encrypted for another key, or bytes"
            f" {IV} to {IV + WRAPPED - 1} are damaged",
            where=where,
            next_step=OTHER_KEY,
        )
    decryptor = Cipher(algorithms.AES256(secret), modes.CBC(content[:IV])).decryptor()
    padded = decryptor.update(memoryview(content)[IV + WRAPPED :]) + decryptor.finalize()
    length = padded[-1]
    if not 1 <= length <= BLOCK or padded[-length:] != bytes([length]) * length:
        raise PatchError("the padding is wrong: the encrypted content is damaged or truncated", where=where, next_step=AGAIN)
    return padded[:-length]


def _flagscale_size(key: PublicKey, where: str) -> None:
    if key.bits != WRAPPED * 8:
        raise PatchError(
            f"FlagScale's container takes an RSA key of {WRAPPED * 8} bits, this one has {key.bits}",
            where=where,
            next_step="use such a key, or a container of ours",
        )


def _bounded(size: int, where: str = "") -> None:
    if size > LIMIT:
        raise PatchError(
            f"the patch has {size} bytes; at most {LIMIT} are encrypted or decrypted", where=where, next_step="split the patch"
        )


def _truncated(how: str, where: str) -> PatchError:
    return PatchError(f"the container is truncated: it ends {how}", where=where, next_step=AGAIN)


def _damaged(how: str, where: str) -> PatchError:
    return PatchError(f"the header of the container is damaged: {how}", where=where, next_step=AGAIN)
