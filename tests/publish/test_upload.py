"""A blob on its way up: in pieces, taken up where it broke, or taken over from a neighbour."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cutting import cutting
from distribution import Answer, Distribution, Seen, at, home, layout, registry, scripted, small_release

from release.errors import PublishError, VerificationError
from release.oci import Descriptor, Layout, sha256
from release.publish import upload
from release.publish.distribution import Registry
from release.publish.registry import push
from release.publish.transport import Passing

__all__ = ["home", "layout", "registry"]

pytestmark = pytest.mark.integration

SIZE = 3_000_000


@pytest.fixture
def blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Descriptor, Path]:
    """A blob of three pieces."""
    monkeypatch.setattr(upload, "PIECE", 1 << 20)
    path = tmp_path / "shard"
    path.write_bytes(os.urandom(SIZE))
    return Descriptor("application/octet-stream", sha256(path.read_bytes()), SIZE), path


class Slow:
    """A registry that keeps uploads, and does once what it is told to: drop a piece's end, lie about it, or forget it."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.data, self.pieces, self.kept = fault, b"", 0, set[str]()

    def __call__(self, seen: Seen) -> Answer:  # noqa: PLR0911 (an answer a method)
        place = {"Location": "/v2/team/model/blobs/uploads/1?state=x", "Range": f"0-{len(self.data) - 1}"}
        if seen.method == "HEAD":
            return Answer(200 if seen.path.rpartition("/")[2] in self.kept else 404)
        if seen.method == "POST":
            self.data = b""
            return Answer(202, headers={"Location": place["Location"]})
        if seen.method == "GET":
            return Answer(404) if self.fault == "forgets" else Answer(204, headers=place)
        if seen.method == "PATCH":
            self.pieces += 1
            start = int(re.match("[0-9]+", seen.headers["Content-Range"])[0])  # type: ignore[index]
            assert start == len(self.data), "a piece that does not begin where the last one ended"
            fault = self.pieces == 2 and self.fault
            self.data += seen.body[: -1000 if fault in ("drops", "short") else None]
            if fault in ("drops", "forgets"):
                return Answer(503)
            there = len(self.data) + (500_000 if fault == "boasts" else 0)
            return Answer(
                202, headers={"Location": place["Location"], **({} if fault == "silent" else {"Range": f"0-{there - 1}"})}
            )
        self.data += seen.body
        wanted = parse_qs(urlsplit(seen.path).query)["digest"][0]
        if sha256(self.data) != wanted:
            return Answer(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
        self.kept.add(wanted)
        return Answer(201, headers={"Docker-Content-Digest": wanted})


@pytest.mark.parametrize(("fault", "pieces"), [("", 3), ("drops", 3), ("forgets", 5)])
def test_a_blob_goes_up_in_pieces_and_on_where_it_broke(fault: str, pieces: int, blob: tuple[Descriptor, Path]) -> None:
    told: list[int] = []
    slow = Slow(fault)
    with scripted(slow) as server:
        assert at(server).put_blob(*blob, told.append)
    assert hashlib.sha256(slow.data).hexdigest() == blob[0].digest.removeprefix("sha256:")
    assert slow.pieces == pieces
    assert sum(told) == SIZE


@pytest.mark.parametrize("fault", ["boasts", "short", "silent"])
def test_a_registry_that_has_other_bytes_than_were_sent_ends_the_upload(fault: str, blob: tuple[Descriptor, Path]) -> None:
    slow = Slow(fault)
    with scripted(slow) as server, pytest.raises(PublishError, match="bytes were sent, and the registry says it has"):
        at(server).put_blob(*blob)
    assert not slow.kept


def test_a_registry_that_is_down_for_good_is_given_up(blob: tuple[Descriptor, Path]) -> None:
    with scripted(lambda seen: Answer(404 if seen.method == "HEAD" else 503)) as server:
        with pytest.raises(Passing, match="503"):
            at(server, attempts=3).put_blob(*blob)
        assert len(server.asked("POST")) == 3


def test_a_blob_of_another_size_is_not_begun(blob: tuple[Descriptor, Path]) -> None:
    blob[1].write_bytes(b"short")
    with scripted(Slow()) as server, pytest.raises(VerificationError, match="has 5 bytes"):
        at(server).put_blob(*blob)


@pytest.mark.parametrize("piece", [1 << 20, 256 << 20], ids=["pieces", "whole"])
def test_a_connection_that_breaks_on_the_way_up_costs_what_was_on_its_way(
    piece: int, blob: tuple[Descriptor, Path], registry: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PIECE", piece)
    told: list[int] = []
    with cutting(registry.host, up=1_500_000) as relay:
        target = Registry(relay.host, registry.fresh().name, pause=0.01)
        assert target.put_blob(*blob, told.append)
        assert target.has_blob(blob[0])
    assert sum(told) == SIZE and min(told) < 0
    assert (
        relay.passed["up"] < 2 * SIZE
    )  # Distribution 2.8 gives an upload up whose last piece came in part ("resumed at wrong offset")


def test_a_connection_that_breaks_on_the_way_down_goes_on_where_it_was(
    blob: tuple[Descriptor, Path], registry: Distribution, layout: Layout
) -> None:
    name = registry.fresh().name
    Registry(registry.host, name).put_blob(*blob)
    with cutting(registry.host, down=1_000_000, times=2) as relay:
        Registry(relay.host, name, pause=0.01).get_blob(blob[0], layout)
    assert layout.blob(blob[0].digest).read_bytes() == blob[1].read_bytes()
    assert relay.passed["down"] < SIZE + 500_000


def test_what_a_neighbour_has_does_not_travel(registry: Distribution, layout: Layout) -> None:
    root, first, second = small_release(layout), registry.fresh("1.0"), registry.fresh("1.0")
    push(layout, root, first)
    with cutting(registry.host) as relay:
        target = Registry(relay.host, second.name)
        push(layout, root, second, registry=target, neighbours=lambda digest: first.name)
    assert Registry.at(second).digest_of("1.0") == root.digest
    assert relay.passed["up"] < 20_000, "manifests and questions alone"


def test_a_neighbour_that_has_not_got_it_costs_nothing(registry: Distribution, layout: Layout) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference, neighbours=lambda digest: "team/nobody")
    assert Registry.at(reference).digest_of("1.0") == root.digest
