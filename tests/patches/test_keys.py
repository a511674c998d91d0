"""Private keys are read only where nobody else can, are never replaced, and never quoted."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from release.errors import PatchError, RequestError
from release.patches import keys
from release.patches.keys import PrivateKey, new_keys, private_key, public_key

PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


def secret(place: Path, content: bytes | str, mode: int = 0o600) -> Path:
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    place.chmod(mode)
    return place


def text(key: PrivateKey, form: serialization.PrivateFormat, passphrase: bytes = b"") -> str:
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else PLAIN
    return key._key.private_bytes(PEM, form, lock).decode()


def test_a_pair_is_written_as_flagscale_writes_it_and_the_private_file_is_private(key_folder: Path, key: PrivateKey) -> None:
    assert sorted(path.name for path in key_folder.iterdir()) == ["private_key.pem", "public_key.pem"]
    assert stat.S_IMODE((key_folder / "private_key.pem").stat().st_mode) == 0o600
    assert (key_folder / "private_key.pem").read_text().startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert (key_folder / "public_key.pem").read_text().startswith("-----BEGIN PUBLIC KEY-----\n")
    assert key.public.bits == 4096
    loaded = serialization.load_pem_public_key((key_folder / "public_key.pem").read_bytes())
    spki = loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert key.public.id == public_key(key_folder).id == hashlib.sha256(spki).hexdigest()
    assert key.public.pem() == (key_folder / "public_key.pem").read_bytes()


@pytest.mark.parametrize("there", ["private_key.pem", "public_key.pem"])
@pytest.mark.parametrize("form", ["file", "dangling link"])
def test_no_key_is_ever_overwritten(tmp_path: Path, there: str, form: str) -> None:
    if form == "file":
        (tmp_path / there).write_text("precious")
    else:
        (tmp_path / there).symlink_to(tmp_path / "nothing")
    with pytest.raises(PatchError, match="never overwritten") as caught:
        new_keys(tmp_path)
    assert caught.value.where == str(tmp_path / there) and caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert form == "dangling link" or (tmp_path / there).read_text() == "precious"


def test_a_missing_public_key_is_worked_out_and_nothing_is_written(tmp_path: Path, key_folder: Path, key: PrivateKey) -> None:
    pem = (key_folder / "private_key.pem").read_bytes()
    secret(tmp_path / "private_key.pem", pem)
    assert private_key(tmp_path).public.id == public_key(tmp_path).id == key.public.id
    assert [path.name for path in tmp_path.iterdir()] == ["private_key.pem"]
    assert (tmp_path / "private_key.pem").read_bytes() == pem


def test_the_wrong_half_of_a_pair_is_said_to_be_that(tmp_path: Path, key_folder: Path) -> None:
    with pytest.raises(RequestError, match="this is a private key: give its public half") as caught:
        public_key(key_folder / "private_key.pem")
    assert "public_key.pem" in caught.value.next_step
    with pytest.raises(RequestError, match="this is a public key, not the private one that is needed") as caught:
        private_key(key_folder / "public_key.pem")  # of mode 0644, which is no fault of a public key
    assert "--key FILE" in caught.value.next_step


@pytest.mark.parametrize("broken", ["private", "public"])
def test_on_a_full_disk_no_key_is_left_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(keys, "BITS", 3072)
    calls: list[int] = []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == {"private": 1, "public": 2}[broken]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PatchError, match="cannot be written: No space left") as caught:
        new_keys(tmp_path)
    assert "no key was made" in caught.value.next_step
    assert list(tmp_path.iterdir()) == []
    assert new_keys(tmp_path).bits == 3072


def test_where_there_are_no_hard_links_a_pair_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*where: object, **how: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(keys, "BITS", 3072)
    monkeypatch.setattr(os, "link", none)
    new_keys(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["private_key.pem", "public_key.pem"]
    with pytest.raises(RequestError, match="never overwritten"):
        new_keys(tmp_path)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.TraditionalOpenSSL, serialization.PrivateFormat.PKCS8])
@pytest.mark.parametrize("passphrase", ["", "öffne dich"])
def test_both_forms_are_read_with_and_without_passphrase_from_file_and_environment(
    tmp_path: Path, other_key: PrivateKey, monkeypatch: pytest.MonkeyPatch, form: serialization.PrivateFormat, passphrase: str
) -> None:
    pem = text(other_key, form, passphrase.encode())
    monkeypatch.setenv("RELEASE_PATCH_KEY_PASSPHRASE", passphrase)
    monkeypatch.setenv("RELEASE_PATCH_KEY", pem.strip())
    assert private_key().public.id == other_key.public.id
    assert private_key(secret(tmp_path / "any.pem", pem)).public.id == other_key.public.id
    monkeypatch.setenv("RELEASE_PATCH_KEY_PASSPHRASE", "not this one")
    if passphrase:
        with pytest.raises(PatchError, match="passphrase does not open"):
            private_key()
        monkeypatch.delenv("RELEASE_PATCH_KEY_PASSPHRASE")
        with pytest.raises(PatchError, match="locked with a passphrase"):
            private_key()
    else:
        assert private_key().public.id == other_key.public.id


def test_a_pair_can_be_made_with_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "BITS", 3072)
    made = new_keys(tmp_path / "new", "a passphrase")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert "ENCRYPTED" in (tmp_path / "new" / "private_key.pem").read_text()
    monkeypatch.setenv("RELEASE_PATCH_KEY_PASSPHRASE", "a passphrase")
    assert private_key(tmp_path / "new").public.id == made.id


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660, 0o601, 0o700])
def test_a_private_key_that_others_may_touch_is_refused(tmp_path: Path, key_folder: Path, mode: int) -> None:
    file = secret(tmp_path / "private_key.pem", (key_folder / "private_key.pem").read_bytes(), mode)
    for read in (private_key, public_key):
        with pytest.raises(PatchError, match=f"mode {mode:04o}") as caught:
            read(tmp_path)
        assert caught.value.next_step == f"chmod 600 {file}"


def test_a_key_that_even_its_owner_cannot_change_is_taken(tmp_path: Path, key_folder: Path, key: PrivateKey) -> None:
    file = secret(tmp_path / "key", (key_folder / "private_key.pem").read_bytes(), 0o400)
    assert private_key(file).public.id == key.public.id


def test_without_any_key_the_error_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  \n"):
        monkeypatch.setenv("RELEASE_PATCH_KEY", value)
        with pytest.raises(PatchError, match="there is no private key") as caught:
            private_key()
        assert "0600" in caught.value.next_step and "RELEASE_PATCH_KEY" in caught.value.next_step


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN)


def public_pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_private_key_that_is_none_or_too_weak_is_refused(tmp_path: Path, key_folder: Path) -> None:
    pem = (key_folder / "private_key.pem").read_bytes()
    for content, complaint in {
        b"": "no private key in PEM form",
        b"\0" * 99: "no private key in PEM form",
        b"x" * (keys.FILE_LIMIT + 1): "more than",
        (key_folder / "public_key.pem").read_bytes(): "a public key, not the private one",
        pem[: len(pem) // 2]: "is damaged",
        pem[:40] + pem[40:].replace(b"A", b"B"): "is damaged",
        pem.replace(b"\n", b"\xff\n"): "is damaged",
        pem_of(ec.generate_private_key(ec.SECP256R1())): "is no RSA key",
        pem_of(rsa.generate_private_key(65537, 2048)): "has 2048 bits; at least 3072",
    }.items():
        with pytest.raises(PatchError, match=complaint) as caught:
            private_key(secret(tmp_path / "key", content))
        assert caught.value.where == str(tmp_path / "key") and caught.value.next_step
        assert caught.value.__suppress_context__ or not caught.value.__context__


def test_a_public_key_that_is_none_or_too_weak_is_refused(tmp_path: Path, key_folder: Path) -> None:
    pem = (key_folder / "public_key.pem").read_bytes()
    for content, complaint in {
        b"": "no public key in PEM form",
        pem[:200]: "is damaged",
        public_pem_of(ec.generate_private_key(ec.SECP256R1())): "is no RSA key",
        public_pem_of(rsa.generate_private_key(65537, 2048)): "has 2048 bits; at least 3072",
    }.items():
        with pytest.raises(PatchError, match=complaint) as caught:
            public_key(secret(tmp_path / "key", content, 0o644))
        assert caught.value.where == str(tmp_path / "key") and caught.value.next_step


def test_a_missing_file_a_folder_and_a_pipe_are_no_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    for name, complaint in {"nothing": "No such file", "folder": "No such file", "pipe": "no plain file"}.items():
        for read in (private_key, public_key):
            with pytest.raises(PatchError, match=complaint):
                read(tmp_path / name)


def test_keys_do_not_show_what_they_hold(key: PrivateKey) -> None:
    assert repr(key) == f"PrivateKey({key.public.id[:8]}…)"
    assert repr(key.public) == f"PublicKey({key.public.id[:8]}…)"


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=40))
def test_foreign_bytes_in_a_key_never_end_in_another_error_and_no_message_quotes_the_key(
    key_folder: Path, at: int, noise: bytes
) -> None:
    pem = (key_folder / "private_key.pem").read_bytes()
    file = key_folder.parent / "noisy.pem"
    secret(file, pem[:at] + noise + pem[at + len(noise) :])
    try:
        private_key(file)
    except PatchError as error:
        told = str(error) + error.next_step
        assert not any(line in told for line in pem.decode().splitlines() if len(line) > 40)
