"""A registry that wants TLS and a login: the certificates and the logins are those of the user's environment."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distribution import PASSWORD, USER, distribution, home, layout, small_release

from release.errors import PublishError
from release.oci import Layout
from release.publish.reference import Reference
from release.publish.registry import Registry, pull, push

__all__ = ["home", "layout"]

pytestmark = pytest.mark.integration

NAME = "registry.example.org"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of NAME that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    none = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none))
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reference]:
    """A place in a registry over TLS that has a name and a login; NAME is this machine, and no proxy is in between."""
    original = socket.getaddrinfo

    def look_up(host: str, *words: object, **options: object) -> object:
        return original("127.0.0.1" if host == NAME else host, *words, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("no_proxy", NAME)
    (tmp_path / "registry").mkdir()
    with distribution(tmp_path / "registry", login=True, tls=certificate(tmp_path)) as running:
        yield Reference(f"{NAME}:{running.host.rpartition(':')[2]}", "team/model", "1.0")


def test_certificates_and_logins_of_the_environment_are_used(
    where: Reference, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_release(layout)
    with pytest.raises(PublishError, match="certificate is not trusted") as caught:
        push(layout, root, where)
    assert "REQUESTS_CA_BUNDLE" in caught.value.next_step
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    with pytest.raises(PublishError, match="wants a login"):
        push(layout, root, where)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {where.host: {"username": USER, "password": PASSWORD}}}))
    push(layout, root, where)
    assert pull(where, Layout.create(tmp_path / "other")).digest == root.digest
    assert Registry.at(where).http.base.startswith("https://")
