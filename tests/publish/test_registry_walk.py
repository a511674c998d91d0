"""The walk that push and pull share, and the parts of them that need no registry."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from distribution import (
    Distribution,
    index,
    layout,
    manifest,
    small_release,
)

from release.errors import UsageError, VerificationError
from release.oci import (
    EMPTY_JSON,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    Descriptor,
    Layout,
    children,
    put_artifact,
    sha256,
)
from release.publish.body import Block, Body
from release.publish.distribution import exclusive
from release.publish.registry import ENTRIES_LIMIT, pull, push, walk

__all__ = ["layout"]


# The walk, without a socket


def test_the_walk_gives_children_before_parents_and_each_once(layout: Layout) -> None:
    root = small_release(layout)
    order = list(walk(layout, root))
    assert len({descriptor.digest for descriptor in order}) == len(order)
    assert order[-1] == root
    place = {descriptor.digest: number for number, descriptor in enumerate(order)}
    for descriptor in order:
        assert all(place[child.digest] < place[descriptor.digest] for child in children(descriptor, layout))
    assert {path.name for path in (layout.path / "blobs" / "sha256").iterdir()} == {
        digest.removeprefix("sha256:") for digest in place
    }


def nested(layout: Layout, depth: int) -> Descriptor:
    descriptor = put_artifact(layout, "x/y", [])
    for _ in range(depth):
        descriptor = layout.put_json(IMAGE_INDEX, index(descriptor))
    return descriptor


def test_three_indexes_in_one_another_are_read_and_four_are_refused(layout: Layout) -> None:
    assert len(list(walk(layout, nested(layout, 3)))) == 5
    with pytest.raises(VerificationError, match="nested deeper"):
        list(walk(layout, nested(layout, 4)))


@pytest.mark.parametrize(
    "media_type",
    ["application/vnd.docker.distribution.manifest.v2+json", "text/html", "", "application/vnd.oci.image.layer.v1.tar"],
)
def test_an_entry_that_is_no_oci_manifest_is_refused(layout: Layout, media_type: str) -> None:
    entry = replace(put_artifact(layout, "x/y", []), media_type=media_type)
    with pytest.raises(VerificationError, match="not an OCI manifest"):
        list(walk(layout, layout.put_json(IMAGE_INDEX, index(entry))))


def test_a_manifest_where_a_blob_should_be_is_refused(layout: Layout) -> None:
    inner = put_artifact(layout, "x/y", [])
    outer = layout.put_json(IMAGE_MANIFEST, manifest(layout.put(EMPTY_JSON, b"{}"), inner))
    with pytest.raises(VerificationError, match="where a blob should be"):
        list(walk(layout, outer))


def test_a_document_that_is_two_kinds_at_once_is_refused(layout: Layout) -> None:
    config = layout.put(EMPTY_JSON, b"{}")
    both = layout.put_json(IMAGE_MANIFEST, manifest(config, manifests=[]))
    with pytest.raises(VerificationError, match="at once"):
        list(walk(layout, both))
    liar = layout.put_json(IMAGE_MANIFEST, {**manifest(config), "mediaType": IMAGE_INDEX})
    with pytest.raises(VerificationError, match="says otherwise"):
        list(walk(layout, liar))
    old = layout.put_json(IMAGE_MANIFEST, {**manifest(config), "schemaVersion": 1})
    with pytest.raises(VerificationError, match="schema version"):
        list(walk(layout, old))


def test_a_digest_with_two_sizes_and_too_many_entries_are_refused(layout: Layout) -> None:
    config = layout.put(EMPTY_JSON, b"{}")
    with pytest.raises(VerificationError, match="two sizes"):
        list(walk(layout, layout.put_json(IMAGE_MANIFEST, manifest(config, replace(config, size=3)))))
    many = [Descriptor(LAYER_TAR, sha256(str(n).encode()), 1) for n in range(ENTRIES_LIMIT)]
    with pytest.raises(VerificationError, match="more than"):
        list(walk(layout, layout.put_json(IMAGE_MANIFEST, manifest(config, *many))))


def test_a_file_that_shrinks_while_the_socket_takes_it_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "blob").open("rb") as stream:
        body = Body(stream, 4, lambda size: None)
        body.direct = True
        first, rest = body.read(2), body.read(10)
        assert isinstance(first, Block) and isinstance(rest, Block) and body.read(10) == b""
        first.send(ours)
        assert theirs.recv(10) == b"ab"
        with pytest.raises(VerificationError, match="shorter"):
            rest.send(ours)


def test_a_file_that_shrinks_while_it_is_sent_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    with (tmp_path / "blob").open("rb") as stream:
        told: list[int] = []
        body = Body(stream, 4, told.append)
        assert body.read(10) == b"abc"
        with pytest.raises(VerificationError, match="shorter"):
            body.read(10)
        body.rewind()
        assert body.read(2) == b"ab"
        assert told == [3, -3, 2]


def test_a_push_wants_a_tag_and_a_pull_wants_a_tag_or_a_digest(layout: Layout) -> None:
    somewhere = Distribution("127.0.0.1:9").fresh()
    with pytest.raises(UsageError, match="published"):
        push(layout, nested(layout, 1), somewhere)
    with pytest.raises(UsageError, match="published"):
        push(layout, nested(layout, 1), replace(somewhere, tag="1", digest=sha256(b"")))
    with pytest.raises(UsageError, match="neither"):
        pull(somewhere, layout)


def test_the_lock_keeps_threads_apart() -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with exclusive("a test"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5
