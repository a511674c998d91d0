"""Encrypted patches open with their key and with nothing else, and every kind of damage has an error of its own."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from release.errors import PatchError
from release.patches import cipher
from release.patches.cipher import Container, container, decrypt, decrypting, encrypt, encrypt_for_flagscale
from release.patches.keys import PrivateKey

PATCH = (
    b"From 0 Mon Sep 17 00:00:00 2001\nSubject: \xe4 secret change\n\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
)
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
HEAD = 12 + 1 + 1 + 8


def theirs(plaintext: bytes, public: Path, padded: bytes | None = None) -> bytes:
    """Write FlagScale's container by its layout, with nothing of ours."""
    key, iv = os.urandom(32), os.urandom(16)
    recipient = serialization.load_pem_public_key(public.read_bytes())
    assert isinstance(recipient, rsa.RSAPublicKey)
    length = 16 - len(plaintext) % 16
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    content = encryptor.update(plaintext + bytes([length] * length) if padded is None else padded) + encryptor.finalize()
    return iv + recipient.encrypt(key, OAEP) + content


def theirs_opened(content: bytes, private: Path) -> bytes:
    """Read FlagScale's container as FlagScale does: of the padding only the last byte counts."""
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    decryptor = Cipher(algorithms.AES(key.decrypt(content[16:528], OAEP)), modes.CBC(content[:16])).decryptor()
    padded = decryptor.update(content[528:]) + decryptor.finalize()
    return padded[: -padded[-1]]


def ours_opened(content: bytes, private: Path) -> bytes:
    """Read our container by the layout in the module's docstring, with nothing of ours."""
    magic, version, count, size = struct.unpack_from(">12sBBQ", content)
    id, length = struct.unpack_from(">32sH", content, 22)
    assert (magic, version, count, length) == (b"\x89release\r\n\x1a\n", 1, 1, 512)
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert id == hashlib.sha256(spki).digest()
    at = 22 + 34 + 512
    assert content[at + 12 : at + 44] == hashlib.sha256(content[: at + 12]).digest()
    inside = AESGCM(key.decrypt(content[56 : 56 + 512], OAEP)).decrypt(
        content[at : at + 12], content[at + 44 :], content[: at + 44]
    )
    assert inside[:32] == hashlib.sha256(inside[32:]).digest() and len(inside) == 32 + size
    return inside[32:]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 582, 4096])
def test_flagscales_container_is_read_and_written_to_the_byte(key_folder: Path, key: PrivateKey, size: int) -> None:
    plaintext = (PATCH * 40)[:size]
    made = theirs(plaintext, key_folder / "public_key.pem")
    assert decrypt(made, key) == plaintext
    ours = encrypt_for_flagscale(plaintext, key.public)
    assert len(ours) == len(made) == 528 + 16 * (size // 16 + 1)
    assert theirs_opened(ours, key_folder / "private_key.pem") == decrypt(ours, key) == plaintext
    assert container(ours) == Container("flagscale") and not container(ours).authenticated


def test_our_container_has_the_layout_that_is_written_down(key_folder: Path, key: PrivateKey) -> None:
    made = encrypt(PATCH, [key.public])
    assert ours_opened(made, key_folder / "private_key.pem") == PATCH
    assert len(made) == HEAD + 34 + 512 + 12 + 32 + 32 + len(PATCH) + 16
    assert container(made) == Container("release-1", (key.public.id,), len(PATCH)) and container(made).authenticated


def test_the_same_patch_is_never_encrypted_to_the_same_bytes(key: PrivateKey) -> None:
    assert encrypt(PATCH, [key.public]) != encrypt(PATCH, [key.public])
    assert encrypt_for_flagscale(PATCH, key.public) != encrypt_for_flagscale(PATCH, key.public)


def test_each_of_several_recipients_opens_it(key: PrivateKey, other_key: PrivateKey) -> None:
    made = encrypt(PATCH, [key.public, other_key.public])
    assert decrypt(made, key) == decrypt(made, other_key) == PATCH
    assert container(made).recipients == (key.public.id, other_key.public.id)


@given(plaintext=st.binary(max_size=300))
@settings(max_examples=30)
def test_any_plaintext_comes_back_from_both_formats(key: PrivateKey, plaintext: bytes) -> None:
    assert decrypt(encrypt(plaintext, [key.public]), key) == plaintext
    assert decrypt(encrypt_for_flagscale(plaintext, key.public), key) == plaintext


@given(data=st.data(), bit=st.integers(0, 7))
@settings(max_examples=150)
def test_a_bit_flipped_anywhere_in_our_container_is_noticed(key: PrivateKey, data: st.DataObject, bit: int) -> None:
    made = bytearray(encrypt(PATCH, [key.public]))
    at = data.draw(st.integers(0, len(made) - 1))
    made[at] ^= 1 << bit
    with pytest.raises(PatchError) as caught:
        decrypt(bytes(made), key, "x.patch.encrypted")
    assert caught.value.where == "x.patch.encrypted" and caught.value.next_step
    assert "secret change" not in caught.value.message + caught.value.next_step


@given(data=st.data(), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_a_bit_flipped_in_flagscales_key_or_padding_is_noticed(
    key_folder: Path, key: PrivateKey, data: st.DataObject, bit: int
) -> None:
    plaintext = PATCH[: len(PATCH) // 16 * 16]  # a whole block of padding: a flip in the block before it changes a byte of it
    made = bytearray(theirs(plaintext, key_folder / "public_key.pem"))
    at = data.draw(
        st.integers(16, 527) | st.integers(len(made) - 32, len(made) - 17)
    )  # one in the last makes noise of it, 1 in 256 sound
    made[at] ^= 1 << bit
    with pytest.raises(PatchError, match="does not open the patch" if at < 528 else "padding is wrong") as caught:
        decrypt(bytes(made), key)
    assert caught.value.next_step


@given(st.binary(max_size=700) | st.binary(max_size=100).map(lambda tail: cipher.MAGIC + b"\x01\x01" + tail))
def test_foreign_bytes_end_in_one_kind_of_error(key: PrivateKey, content: bytes) -> None:
    with pytest.raises(PatchError):
        decrypt(content, key)


def test_every_truncation_of_our_container_is_called_one(key: PrivateKey) -> None:
    made = encrypt(PATCH, [key.public])
    for length in range(cipher.START.size, len(made)):
        with pytest.raises(PatchError, match="is truncated") as caught:
            decrypt(made[:length], key)
        assert caught.value.next_step


def test_every_truncation_of_flagscales_container_is_refused(key: PrivateKey) -> None:
    made = encrypt_for_flagscale(PATCH, key.public)
    for length in range(1, len(made)):
        with pytest.raises(PatchError, match="truncated"):
            decrypt(made[:length], key)


def damaged(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def test_each_kind_of_fault_has_a_message_of_its_own(key: PrivateKey, other_key: PrivateKey) -> None:
    made = encrypt(PATCH, [key.public])
    faults = {
        "the file is empty": b"",
        "a plain patch, not an encrypted one": PATCH,
        "no encrypted patch that is known here": b"\0" * 999,
        "ends inside its header": made[:100],
        f"ends after {len(made) - 1} of {len(made)} bytes": made[:-1],
        "followed by 2 foreign bytes": made + b"\r\n",
        "as when line ends are converted": made.replace(b"\r\n", b"\n", 1),
        "version 9; 1 is known": damaged(made, 12, b"\x09"),
        "checksum is not that of its header": damaged(made, 30, b"\0\0\0\0"),
        "its authentication fails": damaged(made, len(made) - 1, bytes([made[-1] ^ 1])),
        rf"is encrypted for {other_key.public.id[:8]}…; the private key at hand is {key.public.id[:8]}…": encrypt(
            PATCH, [other_key.public]
        ),
    }
    for complaint, content in faults.items():
        with pytest.raises(PatchError, match=complaint) as caught:
            decrypt(content, key, "series/0001.patch.encrypted")
        assert str(caught.value).startswith("series/0001.patch.encrypted: ") and caught.value.next_step


def forged(key: PrivateKey, secret: bytes, inside: bytes, size: int | None = None, wrapped: bytes | None = None) -> bytes:
    """Write our container with a header that is whole, around what its maker would never put there."""
    wrapped = key.public.wrap(secret) if wrapped is None else wrapped
    head = cipher.START.pack(cipher.MAGIC, 1, 1, len(inside) - 32 if size is None else size)
    head += cipher.RECIPIENT.pack(bytes.fromhex(key.public.id), len(wrapped)) + wrapped + b"\0" * 12
    head += hashlib.sha256(head).digest()
    return head + AESGCM(secret.ljust(32, b"\0")).encrypt(b"\0" * 12, inside, head)


def test_what_only_a_forger_would_write_is_refused(key: PrivateKey) -> None:
    secret, digest = os.urandom(32), hashlib.sha256(PATCH).digest()
    assert decrypt(forged(key, secret, digest + PATCH), key) == PATCH
    for complaint, content in {
        "does not open, although it names this key": forged(key, secret, digest + PATCH, wrapped=b"\1" * 512),
        "content key in the container does not open": forged(key, secret[:16], digest + PATCH),
        "not the one whose sha256 lies inside": forged(key, secret, digest + PATCH + b"!"),
        "truncated": forged(key, secret, digest + PATCH, size=len(PATCH) + 1),
        "at most 268435456": forged(key, secret, digest + PATCH, size=1 << 63),
    }.items():
        with pytest.raises(PatchError, match=complaint):
            decrypt(content, key)
    nobody = cipher.START.pack(cipher.MAGIC, 1, 0, 0) + b"\0" * 12
    nobody += hashlib.sha256(nobody).digest() + b"\0" * 48
    with pytest.raises(PatchError, match="encrypted for nobody"):
        decrypt(nobody, key)


@pytest.mark.parametrize(
    "padded",
    [b"x" * 15 + b"\0", b"x" * 15 + b"\x11", b"x" * 14 + b"\x01\x02", b"x" + b"\x10" * 14 + b"\x10", b"\x0f" * 15 + b"\x10"],
)
def test_flagscales_padding_is_checked_as_a_whole(key_folder: Path, key: PrivateKey, padded: bytes) -> None:
    with pytest.raises(PatchError, match="the padding is wrong"):
        decrypt(theirs(b"", key_folder / "public_key.pem", padded), key)


def test_flagscales_container_for_another_key_says_so(tmp_path: Path, key: PrivateKey) -> None:
    stranger = rsa.generate_private_key(65537, 4096).public_key()
    spki = stranger.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public_key.pem").write_bytes(spki)
    with pytest.raises(
        PatchError, match=f"private key {key.public.id[:8]}… does not open the patch: it was encrypted for another"
    ):
        decrypt(theirs(PATCH, tmp_path / "public_key.pem"), key)


def test_flagscales_container_takes_keys_of_one_size_only(key: PrivateKey, other_key: PrivateKey) -> None:
    with pytest.raises(PatchError, match="RSA key of 4096 bits, this one has 3072"):
        encrypt_for_flagscale(PATCH, other_key.public)
    with pytest.raises(PatchError, match="RSA key of 4096 bits, this one has 3072"):
        decrypt(encrypt_for_flagscale(PATCH, key.public), other_key)


def test_a_wrapped_key_of_another_length_is_no_key(key: PrivateKey) -> None:
    made = encrypt_for_flagscale(PATCH, key.public)
    with pytest.raises(PatchError, match="does not open the patch"):
        decrypt(made[:16] + key.public.wrap(b"16 bytes, no more") + made[528:], key)


def test_sizes_are_bounded_and_recipients_counted(
    key: PrivateKey, other_key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for recipients in ([], [key.public, key.public], [key.public] * 65):
        with pytest.raises(PatchError, match="1 to 64 different recipients"):
            encrypt(PATCH, recipients)
    made = (encrypt(PATCH, [key.public]), encrypt_for_flagscale(PATCH + b"\0" * 64, key.public))
    monkeypatch.setattr(cipher, "LIMIT", len(PATCH) - 1)
    for content in made:
        with pytest.raises(PatchError, match="at most"):
            decrypt(content, key)
    for fails in (lambda: encrypt(PATCH, [key.public]), lambda: encrypt_for_flagscale(PATCH, key.public)):
        with pytest.raises(PatchError, match="at most"):
            fails()


def test_a_key_is_asked_for_once_and_only_when_it_is_needed(key: PrivateKey) -> None:
    asked: list[int] = []

    def bring() -> PrivateKey:
        asked.append(1)
        return key

    opened = decrypting(bring)
    assert not asked
    assert opened(encrypt(PATCH, [key.public]), "a") == opened(encrypt_for_flagscale(PATCH, key.public), "b") == PATCH
    assert len(asked) == 1
