"""Keys for encrypted patches, made once: an RSA-4096 pair as `new_keys` writes it, and another, shorter one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from release.patches.keys import PrivateKey, new_keys, private_key


@pytest.fixture(scope="session")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    new_keys(folder := tmp_path_factory.mktemp("keys"))
    return folder


@pytest.fixture(scope="session")
def key(key_folder: Path) -> PrivateKey:
    return private_key(key_folder)


@pytest.fixture(scope="session")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    file = tmp_path_factory.mktemp("other") / "private_key.pem"
    file.touch(mode=0o600)
    file.write_bytes(
        generate_private_key(65537, 3072).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return private_key(file)
