"""What a hostile or broken registry answers: other content than asked for, nothing in time, nothing at all."""

from __future__ import annotations

import gzip
import socket
from pathlib import Path
from typing import Any

import pytest
from distribution import (
    BLOB,
    CONTENT,
    INDEX,
    SUBJECT,
    Answer,
    Seen,
    Shelf,
    at,
    home,
    index,
    layout,
    manifest,
    scripted,
    small_release,
)

from release.errors import PublishError, StoreError, VerificationError
from release.oci import (
    EMPTY_JSON,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    METADATA_LIMIT,
    Descriptor,
    Layout,
    sha256,
)
from release.publish.registry import Reference, Registry, pull, push

__all__ = ["home", "layout"]

pytestmark = pytest.mark.integration


def is_empty(layout: Layout) -> bool:
    return not [path for path in (layout.path / "blobs").rglob("*") if path.is_file()] and layout.index() == []


# Content that is not what its digest says


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(body=CONTENT.replace(b"e", b"E")), "has the content of"),
        (Answer(body=CONTENT[:-1]), "not 27"),
        (Answer(body=CONTENT + b"!"), "not 27"),
        (Answer(body=CONTENT[:-1], length=None), "not 27"),
        (Answer(body=CONTENT + b"!", length=None), "longer than"),
        (Answer(body=CONTENT * 1_000_000, length=None), "longer than"),
        (Answer(body=b"", length=0), "not 27"),
        (Answer(body=gzip.compress(CONTENT), headers={"Content-Encoding": "gzip"}, length=None), "longer than"),
    ],
)
def test_a_blob_with_other_content_is_refused_and_leaves_nothing(layout: Layout, answer: Answer, said: str) -> None:
    with scripted(answer) as server, pytest.raises(VerificationError, match=said) as caught:
        at(server).get_blob(BLOB, layout)
    assert caught.value.exit_code == 5
    assert is_empty(layout)


def test_a_descriptor_with_the_wrong_size_is_refused(layout: Layout) -> None:
    for size in (len(CONTENT) - 1, len(CONTENT) + 1):
        wrong = Descriptor(BLOB.media_type, BLOB.digest, size)
        for length in (-1, None):
            with scripted(Answer(body=CONTENT, length=length)) as server:
                with pytest.raises(VerificationError):
                    at(server).get_blob(wrong, layout)
                if length:
                    with pytest.raises(VerificationError):
                        at(server).has_blob(wrong)
    assert is_empty(layout)


def test_a_blob_larger_than_the_disk_is_refused_before_it_is_asked_for(layout: Layout) -> None:
    with scripted(Answer(404)) as server, pytest.raises(StoreError, match="no room"):
        at(server).get_blob(Descriptor(BLOB.media_type, BLOB.digest, 1 << 49), layout)
    assert server.seen == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(layout: Layout) -> None:
    def script(seen: Seen) -> Answer:
        start = int(seen.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        part = CONTENT[start : start + 10]
        headers = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
        return Answer(206 if start else 200, part, headers, len(CONTENT) - start)

    told: list[int] = []
    with scripted(script) as server:
        at(server).get_blob(BLOB, layout, told.append)
    assert [seen.headers.get("Range") for seen in server.seen] == [None, "bytes=10-", "bytes=20-"]
    assert layout.blob(BLOB.digest).read_bytes() == CONTENT
    assert sum(told) == len(CONTENT)


def test_a_registry_without_ranges_starts_again_and_in_the_end_we_give_up(layout: Layout) -> None:
    told: list[int] = []
    with scripted(lambda seen: Answer(body=CONTENT[:10], length=len(CONTENT))) as server:
        with pytest.raises(PublishError, match="keeps breaking"):
            at(server).get_blob(BLOB, layout, told.append)
        assert len(server.seen) == 4
    assert sum(told) == 10
    assert is_empty(layout)


def test_another_range_than_was_asked_for_is_refused(layout: Layout) -> None:
    def script(seen: Seen) -> Answer:
        if "Range" in seen.headers:
            return Answer(206, CONTENT[5:], {"Content-Range": "bytes 5-26/27"})
        return Answer(body=CONTENT[:10], length=len(CONTENT))

    with scripted(script) as server, pytest.raises(PublishError, match="another part"):
        at(server).get_blob(BLOB, layout)
    assert is_empty(layout)


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        (sha256(b"x"), Answer(body=INDEX, headers={"Content-Type": IMAGE_INDEX}), "has the content of"),
        (
            "1.0",
            Answer(body=INDEX, headers={"Content-Type": IMAGE_INDEX, "Docker-Content-Digest": sha256(b"x")}),
            "the registry says",
        ),
        ("1.0", Answer(body=INDEX, headers={"Content-Type": IMAGE_INDEX, "Docker-Content-Digest": "\x1b[2J"}), "something else"),
        (
            "1.0",
            Answer(body=INDEX, headers={"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}),
            "schema1",
        ),
        ("1.0", Answer(body=INDEX, headers={"Content-Type": "text/html"}), "something else"),
        ("1.0", Answer(body=INDEX), "something else"),
        ("1.0", Answer(body=INDEX, headers={"Content-Type": IMAGE_MANIFEST}), "says otherwise"),
        ("1.0", Answer(body=b"[]", headers={"Content-Type": IMAGE_INDEX}), "neither"),
        ("1.0", Answer(body=b"{", headers={"Content-Type": IMAGE_INDEX}), "not JSON"),
        ("1.0", Answer(body=b"[" * 100_000, headers={"Content-Type": IMAGE_INDEX}), "not JSON"),
        ("1.0", Answer(body=b"\xff\xfe", headers={"Content-Type": IMAGE_INDEX}), "not JSON"),
        ("1.0", Answer(body=INDEX + b" " * METADATA_LIMIT, headers={"Content-Type": IMAGE_INDEX}), "more than"),
        ("1.0", Answer(body=INDEX * 100_000, headers={"Content-Type": IMAGE_INDEX}, length=None), "more than"),
        (
            sha256(INDEX),
            Answer(body=gzip.compress(INDEX), headers={"Content-Type": IMAGE_INDEX, "Content-Encoding": "gzip"}),
            "has the content of",
        ),
    ],
)
def test_a_manifest_that_is_not_what_was_asked_for_is_refused(name: str, answer: Answer, said: str) -> None:
    with scripted(answer) as server, pytest.raises(VerificationError, match=said) as caught:
        at(server).get_manifest(name)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400
    accepted = server.seen[0].headers["Accept"]
    assert accepted.count("application/vnd.") == 4


def pull_from(shelf: Shelf, layout: Layout, tag: str = "1.0") -> None:
    with scripted(shelf) as server:
        pull(Reference(server.host, "team/model", tag), layout, registry=at(server))


def test_a_pull_of_a_release_that_lies_somewhere_is_refused_and_enters_no_tag(layout: Layout) -> None:
    shelf = Shelf()
    config, layer = shelf.add_blob(b"{}", EMPTY_JSON), shelf.add_blob(CONTENT)
    good = shelf.add(manifest(config, layer), IMAGE_MANIFEST)
    deep = shelf.add(index(shelf.add(index(shelf.add(index(shelf.add(index(good))))))))
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    bad: list[tuple[str, dict[str, Any]]] = [
        ("nested deeper", index(deep)),
        ("not an OCI manifest", index(Descriptor(docker, good.digest, good.size))),
        ("media type or size", index(Descriptor(good.media_type, good.digest, good.size + 1))),
        ("media type or size", index(Descriptor(IMAGE_INDEX, good.digest, good.size))),
        ("at most", index(Descriptor(good.media_type, good.digest, METADATA_LIMIT + 1))),
        ("impossible size", {**index(), "manifests": [{**good.to_json(), "size": -1}]}),
        ("impossible size", {**index(), "manifests": [{**good.to_json(), "size": 1 << 63}]}),
        ("usable", {**index(), "manifests": [{**good.to_json(), "digest": "sha256:../../../../etc/passwd"}]}),
        ("no entries", {"schemaVersion": 2}),
        ("not a manifest", {**index(), "manifests": {}}),
        ("27 bytes", index(shelf.add(manifest(config, Descriptor(LAYER_TAR, layer.digest, 26)), IMAGE_MANIFEST))),
        ("blob should be", index(shelf.add(manifest(config, good), IMAGE_MANIFEST))),
    ]
    for number, (said, document) in enumerate(bad):
        shelf.add(document, tag=str(number))
        with pytest.raises(VerificationError, match=said):
            pull_from(shelf, layout, str(number))
        assert layout.index() == []
    shelf.add(index(good), tag="1.0")
    pull_from(shelf, layout)
    layout.verify(layout.find("1.0"))


def test_an_old_tag_in_a_registry_is_never_written_over_a_newer_check(layout: Layout) -> None:
    """The tag moves between our first look and our last: what others published stays."""
    root, looks = small_release(layout), [Answer(404), Answer(200, headers={"Docker-Content-Digest": sha256(b"theirs")})]

    def script(seen: Seen) -> Answer:
        if seen.method == "HEAD":
            return looks.pop(0) if seen.path.endswith("/1.0") else Answer(200, length=None)
        return Answer(201, headers={"OCI-Subject": SUBJECT})

    with scripted(script) as server, pytest.raises(VerificationError, match="never moves"):
        push(layout, root, Reference(server.host, "team/model", "1.0"), registry=at(server))
    assert not [seen for seen in server.asked("PUT") if seen.path.endswith("/1.0")]


def test_a_registry_that_stores_other_bytes_than_were_sent_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    said = {"Docker-Content-Digest": sha256(b"x"), "Location": "/v2/team/model/blobs/uploads/1"}
    with scripted(lambda seen: Answer({"HEAD": 404, "POST": 202}.get(seen.method, 201), headers=said)) as server:
        with pytest.raises(VerificationError, match="the registry says"):
            at(server).put_blob(BLOB, tmp_path / "blob")
        with pytest.raises(VerificationError, match="the registry says"):
            at(server).put_manifest("1.0", IMAGE_INDEX, INDEX)
    del said["Docker-Content-Digest"]
    with (
        scripted(lambda seen: Answer({"HEAD": 404, "POST": 202}.get(seen.method, 201), headers=said)) as server,
        pytest.raises(PublishError, match="after its upload"),
    ):
        at(server).put_blob(BLOB, tmp_path / "blob")


# Registries that are away, slow or talkative


def test_a_passing_answer_is_waited_out_for_reading_only() -> None:
    answers = [
        Answer(500),
        Answer(503),
        Answer(429, headers={"Retry-After": "0"}),
        Answer(body=INDEX, headers={"Content-Type": IMAGE_INDEX}),
    ]
    with scripted(lambda seen: answers.pop(0)) as server:
        assert at(server).get_manifest("1.0")[1] == INDEX
    with scripted(Answer(503)) as server, pytest.raises(PublishError, match="503"):
        at(server).put_manifest("1.0", IMAGE_INDEX, INDEX)
    assert len(server.seen) == 1
    with scripted(Answer(502)) as server, pytest.raises(PublishError, match="502"):
        at(server).has_blob(BLOB)
    assert len(server.seen) == 4
    with scripted(Answer(501)) as server, pytest.raises(PublishError, match="501"):
        at(server).has_blob(BLOB)
    assert len(server.seen) == 1


def test_a_manifest_that_breaks_off_is_read_again() -> None:
    answers = [Answer(body=INDEX[:9], length=len(INDEX)), Answer(body=INDEX)]
    for answer in answers:
        answer.headers["Content-Type"] = IMAGE_INDEX
    with scripted(lambda seen: answers.pop(0)) as server:
        assert at(server).get_manifest("1.0")[1] == INDEX


def test_a_registry_that_is_not_there_is_one_clear_line(layout: Layout) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PublishError) as caught:
            pull(Reference(host, "team/model", "1.0"), layout, registry=Registry(host, "team/model", pause=0.001))
    assert str(caught.value) == f"{host}/team/model: the registry cannot be reached: connection refused"
    assert caught.value.next_step
    assert caught.value.__suppress_context__


def test_a_registry_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        host = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(PublishError, match="no answer in time"):
            Registry(host, "team/model", timeout=0.1, attempts=2, pause=0.001).has_blob(BLOB)
