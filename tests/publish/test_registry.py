"""Push and pull against a real CNCF Distribution registry."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from distribution import (
    PASSWORD,
    USER,
    Distribution,
    home,
    index,
    layout,
    locked_registry,
    registry,
    small_release,
)

from release.errors import PublishError, VerificationError
from release.oci import (
    IMAGE_INDEX,
    METADATA_LIMIT,
    REF_NAME,
    Descriptor,
    Layout,
    children,
    put_artifact,
)
from release.publish.credentials import Credentials
from release.publish.registry import Registry, pull, push, walk

__all__ = ["home", "layout", "locked_registry", "registry"]

pytestmark = pytest.mark.integration


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request that goes out, `GET manifests`."""
    log: list[str] = []
    original = requests.Session.request

    def request(self: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        log.append(f"{method} {url.split('/model-')[1].split('/')[1]}")
        return original(self, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", request)
    return log


def blobs(layout: Layout) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout.path / "blobs" / "sha256").iterdir()}


def left_over(layout: Layout) -> list[Path]:
    return [path for path in (layout.path / "blobs").rglob("*") if path.name.startswith(".")]


# Against the real registry


def test_what_was_pushed_comes_back_byte_for_byte(registry: Distribution, layout: Layout, tmp_path: Path) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    moved: dict[str, int] = {}
    assert push(layout, root, reference, lambda d, n: moved.__setitem__(d.digest, moved.get(d.digest, 0) + n)) == root.digest
    assert moved == {descriptor.digest: descriptor.size for descriptor in walk(layout, root) if descriptor.size}
    other = Layout.create(tmp_path / "other")
    moved.clear()
    found = pull(reference, other, lambda d, n: moved.__setitem__(d.digest, moved.get(d.digest, 0) + n))
    assert (found.digest, found.size, found.media_type) == (root.digest, root.size, root.media_type)
    assert moved == {descriptor.digest: descriptor.size for descriptor in walk(layout, root) if descriptor.size}
    assert blobs(other) == blobs(layout)
    assert other.find("1.0").digest == root.digest
    other.verify(found)
    assert not left_over(other)
    third = Layout.create(tmp_path / "third")
    pull(replace(reference, tag="", digest=root.digest), third)
    assert [entry.digest for entry in third.index()] == [root.digest]
    assert REF_NAME not in third.index()[0].annotations


def test_a_second_push_and_a_second_pull_send_almost_nothing(
    registry: Distribution, layout: Layout, tmp_path: Path, sent: list[str]
) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    assert sent.count("PUT blobs") == 9
    sent.clear()
    push(layout, root, reference)
    assert sent == ["HEAD manifests"]
    sent.clear()
    push(layout, root, replace(reference, tag="1.0-too"))
    assert "PUT blobs" not in sent
    assert "POST blobs" not in sent
    other = Layout.create(tmp_path / "other")
    pull(reference, other)
    sent.clear()
    pull(reference, other)
    assert sent == ["GET manifests"]


def test_a_published_tag_does_not_move_unless_told_to(registry: Distribution, layout: Layout, sent: list[str]) -> None:
    first, second, reference = small_release(layout), small_release(layout, "other weights"), registry.fresh("1.0")
    push(layout, first, reference)
    sent.clear()
    with pytest.raises(VerificationError, match="never moves") as caught:
        push(layout, second, reference)
    assert caught.value.exit_code == 5
    assert first.digest in str(caught.value)
    assert sent == ["HEAD manifests"]
    push(layout, second, reference, move=True)
    assert Registry.at(reference).digest_of("1.0") == second.digest


def test_a_tag_that_moved_does_not_replace_what_was_pulled(registry: Distribution, layout: Layout, tmp_path: Path) -> None:
    first, second, reference = small_release(layout), small_release(layout, "other weights"), registry.fresh("1.0")
    push(layout, first, reference)
    other = Layout.create(tmp_path / "other")
    pull(reference, other)
    push(layout, second, reference, move=True)
    with pytest.raises(VerificationError, match=second.digest):
        pull(reference, other)
    assert other.find("1.0").digest == first.digest
    pull(replace(reference, digest=first.digest), other)


def test_skopeo_reads_the_image_in_the_index(registry: Distribution, layout: Layout) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    command = ["skopeo", "inspect", "--tls-verify=false", "--override-os=linux", "--override-arch=amd64", f"docker://{reference}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no skopeo: apt-get install skopeo")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["Digest"] == root.digest
    assert found["Layers"] == [children(children(root, layout)[0], layout)[1].digest]


def test_only_what_is_wanted_is_fetched(registry: Distribution, layout: Layout, tmp_path: Path) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    other = Layout.create(tmp_path / "other")
    pull(reference, other, want=lambda descriptor: "cncf" not in descriptor.artifact_type)
    image, weights, *_ = children(root, layout)
    other.verify(image)
    assert not other.blob(weights.digest).exists()
    assert not any(other.blob(child.digest).exists() for child in children(weights, layout)[1:])
    pull(reference, other)
    assert blobs(other) == blobs(layout)


def test_a_damaged_blob_in_the_layout_is_fetched_again(registry: Distribution, layout: Layout, tmp_path: Path) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    other = Layout.create(tmp_path / "other")
    pull(reference, other)
    for path in (other.path / "blobs" / "sha256").iterdir():
        path.chmod(0o644)
        path.write_bytes(b"x" * path.stat().st_size)
    pull(reference, other)
    assert blobs(other) == blobs(layout)


def test_a_damaged_layout_is_not_published(registry: Distribution, layout: Layout) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    shard = layout.blob(children(children(root, layout)[1], layout)[1].digest)
    whole = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(b"x" + whole[1:])
    with pytest.raises(VerificationError, match="DIGEST_INVALID"):
        push(layout, root, reference)
    shard.write_bytes(whole[1:])
    with pytest.raises(VerificationError, match="bytes"):
        push(layout, root, reference)
    shard.unlink()
    with pytest.raises(VerificationError, match="is not in"):
        push(layout, root, reference)
    assert Registry.at(reference).digest_of("1.0") is None
    shard.write_bytes(whole)
    push(layout, root, reference)


def test_a_push_that_was_interrupted_shows_no_tag_and_goes_on_where_it_was(
    registry: Distribution, layout: Layout, sent: list[str]
) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")

    def stop(descriptor: Descriptor, size: int) -> None:
        if sent.count("PUT blobs") >= 6:  # four are on their way at most: two have arrived
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(layout, root, reference, stop)
    assert Registry.at(reference).digest_of("1.0") is None
    sent.clear()
    push(layout, root, reference)
    assert 0 < sent.count("PUT blobs") <= 7
    assert Registry.at(reference).digest_of("1.0") == root.digest


def test_what_is_not_in_the_registry_is_a_clear_error(registry: Distribution, layout: Layout) -> None:
    with pytest.raises(PublishError, match=r"has no 1\.0") as caught:
        pull(registry.fresh("1.0"), layout)
    assert caught.value.next_step
    assert layout.index() == []


def test_a_registry_that_wants_a_login_gets_the_stored_one(
    locked_registry: Distribution, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, reference = small_release(layout), locked_registry.fresh("1.0")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(PublishError, match="wants a login") as caught:
        push(layout, root, reference)
    assert caught.value.next_step == f"docker login {reference.host}"
    entry = {"username": USER, "password": PASSWORD}
    (tmp_path / "config.json").write_text(json.dumps({"auths": {reference.host: entry}}))
    push(layout, root, reference)
    pull(reference, Layout.create(tmp_path / "other"))
    wrong = Registry(reference.host, reference.name, Credentials(USER, "hunter2"))
    with pytest.raises(PublishError, match="does not accept") as caught:
        wrong.digest_of("1.0")
    assert "hunter2" not in str(caught.value)


def test_a_large_blob_is_streamed_both_ways(registry: Distribution, layout: Layout, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    with (tmp_path / "shard").open("wb") as stream:
        for _ in range(64):
            stream.write(block)
    artifact = put_artifact(layout, "x/y", [layout.put_file("application/octet-stream", tmp_path / "shard")])
    root, reference = layout.put_json(IMAGE_INDEX, index(artifact)), registry.fresh("1.0")
    pieces: list[int] = []
    push(layout, root, reference, lambda descriptor, size: pieces.append(size))
    assert max(pieces) <= 1 << 20
    other = Layout.create(tmp_path / "other")
    pull(reference, other)
    assert blobs(other) == blobs(layout)


def test_a_manifest_above_the_limit_is_refused_before_it_is_sent(registry: Distribution, layout: Layout, sent: list[str]) -> None:
    big = layout.put_json(IMAGE_INDEX, {**index(), "annotations": {"x": "y" * METADATA_LIMIT}})
    with pytest.raises(VerificationError, match="limit"):
        push(layout, big, registry.fresh("1.0"))
    assert sent == ["HEAD manifests"]
