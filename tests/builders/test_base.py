"""An image that came by mail is taken in however its archive was compressed, and what is no image, or a bomb, is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from archives import entry, make

from release.builders import base, compression
from release.builders.base import IMPORTED, import_base
from release.builders.normalise import docker_archive
from release.errors import StageError
from release.oci import Layout, sha256
from release.progress import Plain

LAYER: Final = make(entry("etc/vendor", b"smithy\n" * 3000))


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def save(layer: bytes = LAYER, architecture: str = "amd64") -> bytes:
    """Return what `docker save` writes of an image of one layer."""
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
    }
    listing = [{"Config": "config.json", "RepoTags": ["smithy/runtime:1"], "Layers": ["layer.tar"]}]
    return make(
        entry("layer.tar", layer),
        entry("config.json", json.dumps(config).encode()),
        entry("manifest.json", json.dumps(listing).encode()),
    )


def take(folder: Path, content: bytes) -> dict[str, Any]:
    """Import an archive with this content into `folder`/store."""
    shutil.rmtree(out := folder / "store", ignore_errors=True)
    out.mkdir(parents=True)
    (folder / "mail").write_bytes(content)
    return import_base(folder / "mail", out, Plain().line("mail", "base"))


WAYS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "as it is": bytes,
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    "bzip2": bz2.compress,
    "bzip2 in two streams": lambda data: bz2.compress(data[:5000]) + bz2.compress(data[5000:]),
    "xz": lzma.compress,
    "xz in two streams with padding": lambda data: lzma.compress(data[:5000]) + bytes(8) + lzma.compress(data[5000:]) + bytes(4),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_an_archive_is_compressed_it_is_the_same_image(tmp_path: Path, way: str) -> None:
    plain = take(tmp_path / "plain", save())
    facts = take(tmp_path, WAYS[way](save()))
    assert facts == plain
    assert (facts["architecture"], facts["os"], facts["tags"]) == ("amd64", "linux", ["smithy/runtime:1"])
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["layout"], "what was unpacked is removed again"
    layout = Layout.open(tmp_path / "store" / "layout")
    assert LAYER in b"".join(docker_archive(layout, layout.find(IMPORTED)))


def test_what_an_image_runs_on_is_among_its_facts(tmp_path: Path) -> None:
    assert take(tmp_path, save(architecture="riscv64"))["architecture"] == "riscv64"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x28\xb5\x2f\xfd" + bytes(50), "is compressed with zstd"),
        (gzip.compress(save(), mtime=0)[:-20], "no sound gzip file"),
        (gzip.compress(save(), mtime=0)[:40] + bytes(40) + gzip.compress(save(), mtime=0)[80:], "no sound gzip file"),
        (bz2.compress(save())[:-20], "no sound bzip2 file: it was cut off"),
        (lzma.compress(save())[:-20], "no sound xz file"),
        (lzma.compress(save()) + b"more", "no sound xz file"),
        (b"\xfd7zXZ\0" + b"x" * 500, "no sound xz file"),
        (gzip.compress(b"no tar at all" * 100, mtime=0), "tar archive is damaged"),
        (gzip.compress(gzip.compress(save(), mtime=0), mtime=0), "tar archive is damaged"),
        (save(b"no tar at all" * 100), f"layer {sha256(b'no tar at all' * 100)} is no sound tar"),
        (save(LAYER[:1500]), "is no sound tar"),
        (save(b""), "is no sound tar"),
    ],
)
def test_what_is_no_sound_image_is_refused_and_nothing_is_left(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(StageError, match=complaint) as caught:
        take(tmp_path, content)
    assert caught.value.where.startswith("mail") and caught.value.next_step
    assert not list((tmp_path / "store" / "layout" / "blobs" / "sha256").iterdir())
    assert not (tmp_path / "store" / "plain").exists()


def test_a_bomb_is_stopped_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.shutil, "disk_usage", lambda path: Disk(10 << 20, 0, 4 << 20))
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        with pytest.raises(StageError, match="unpacks to more than 4 MB, and the store") as caught:
            take(tmp_path, pack(bytes(5 << 20)))
        assert "RELEASE_STORE" in caught.value.next_step
        assert not (tmp_path / "store" / "plain").exists()


def test_xz_that_claims_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "XZ_MEMORY", 1 << 20)
    with pytest.raises(StageError, match="no sound xz file"):
        take(tmp_path, lzma.compress(save()))


def test_more_than_a_layer_may_unpack_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "UNPACK_LIMIT", 3000)
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        with pytest.raises(StageError, match="unpacks to more than 3000 bytes"):
            take(tmp_path, pack(save()))
