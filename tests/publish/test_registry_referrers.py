"""What refers to a manifest: the referrers API, and the fallback tag that clients keep where there is none."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from distribution import (
    BLOB,
    LOGIN,
    SUBJECT,
    Answer,
    Distribution,
    Seen,
    at,
    home,
    index,
    layout,
    registry,
    scripted,
    small_release,
)

from release.errors import PublishError, VerificationError
from release.oci import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    METADATA_LIMIT,
    Descriptor,
    Layout,
    canonical,
    children,
    put_artifact,
    sha256,
)
from release.publish.distribution import REFERRERS_LIMIT
from release.publish.registry import Reference, Registry, push

__all__ = ["home", "layout", "registry"]

pytestmark = pytest.mark.integration


def test_referrers_of_the_image_are_listed_under_the_fallback_tag(registry: Distribution, layout: Layout) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    image = children(root, layout)[0]
    target = Registry.at(reference)
    listed = target.referrers(image.digest)
    assert [entry.artifact_type for entry in listed] == [
        "application/vnd.release.record.v1+json",
        "application/vnd.release.card.v1+json",
    ]
    assert [entry.annotations for entry in listed] == [{"kind": "record"}, {"kind": "card"}]
    address = f"http://{reference.host}/v2/{reference.name}/manifests/{image.digest.replace(':', '-')}"
    session = requests.Session()
    session.trust_env = False
    document = session.get(address, headers={"Accept": IMAGE_INDEX}, timeout=10).json()
    assert [entry["digest"] for entry in document["manifests"]] == [entry.digest for entry in listed]
    assert target.referrers(sha256(b"nothing")) == []


def test_attaching_keeps_entries_of_others_as_they_are(registry: Distribution, layout: Layout) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    target, (image, weights, record, card) = Registry.at(reference), children(root, layout)
    theirs = {**weights.to_json(), "data": "e30=", "annotations": {"a": "b"}}
    document = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [theirs], "annotations": {"keep": "me"}}
    target.put_manifest(weights.digest.replace(":", "-"), IMAGE_INDEX, json.dumps(document).encode())
    target.attach(weights.digest, [record, card, record])
    found = json.loads(target.get_manifest(weights.digest.replace(":", "-"))[1])
    assert found["manifests"][0] == theirs
    assert found["annotations"] == {"keep": "me"}
    assert [entry["digest"] for entry in found["manifests"][1:]] == [record.digest, card.digest]
    assert [entry.digest for entry in target.referrers(image.digest)] == [record.digest, card.digest]


ATTACH = """
import sys
from pathlib import Path
from release.oci import Layout, put_artifact
from release.publish.registry import Reference, Registry
layout, reference, subject, number = Layout.open(Path(sys.argv[1])), Reference.parse(sys.argv[2]), sys.argv[3], sys.argv[4]
entry = put_artifact(layout, f"x/{number}", [])
target = Registry.at(reference)
target.put_blob(*[(d, layout.blob(d.digest)) for d in [layout.put("application/vnd.oci.empty.v1+json", b"{}")]][0])
target.put_manifest(entry.digest, entry.media_type, layout.blob(entry.digest).read_bytes())
sys.stdin.read()
target.attach(subject, [entry])
"""


def test_a_list_is_read_changed_and_written_back_in_one_turn(
    registry: Distribution, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step in between, others on this machine find the turn taken; afterwards they have it."""
    steps: list[str] = []

    def taken() -> bool:
        (file,) = (tmp / f"release-locks-{os.getuid()}").iterdir()
        with file.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def watched(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any) -> Any:
            assert taken(), name
            steps.append(name)
            return act(*words)

        return step

    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    subject = children(root, layout)[1].digest
    target, entry = Registry.at(reference), put_artifact(layout, "x/1", [])
    target.put_manifest(entry.digest, entry.media_type, layout.blob(entry.digest).read_bytes())
    tmp = layout.path.parent / "turns"
    (tmp / f"release-locks-{os.getuid()}").mkdir(parents=True)
    (tmp / f"release-locks-{os.getuid()}" / sha256(f"{target.where}@{subject}".encode())[7:]).touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp))
    monkeypatch.setattr(target, "find_manifest", watched("read", target.find_manifest))
    monkeypatch.setattr(target, "put_manifest", watched("write", target.put_manifest))
    target.attach(subject, [entry], settle=0)
    assert steps == ["read", "write", "read"] and not taken()


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_eight_that_attach_at_once_are_all_listed(registry: Distribution, layout: Layout, how: str) -> None:
    root, reference = small_release(layout), registry.fresh("1.0")
    push(layout, root, reference)
    subject = children(root, layout)[1].digest
    if how == "threads":
        entries = [put_artifact(layout, f"x/{number}", []) for number in range(8)]
        for entry in entries:
            Registry.at(reference).put_manifest(entry.digest, entry.media_type, layout.blob(entry.digest).read_bytes())
        barrier, failed = threading.Barrier(8), []

        def attach(entry: Descriptor) -> None:
            target = Registry.at(reference)
            barrier.wait()
            try:
                target.attach(subject, [entry])
            except Exception as problem:
                failed.append(problem)

        threads = [threading.Thread(target=attach, args=(entry,)) for entry in entries]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
    else:
        command = [sys.executable, "-c", ATTACH, str(layout.path), str(reference), subject]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        running = [subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, env=environ, cwd=layout.path) for n in range(8)]
        for process in running:
            assert process.stdin
            process.stdin.close()
        assert [process.wait(60) for process in running] == [0] * 8
    assert {entry.artifact_type for entry in Registry.at(reference).referrers(subject)} == {f"x/{number}" for number in range(8)}


def test_a_registry_that_lists_referrers_itself_gets_no_fallback_tag(layout: Layout) -> None:
    subject = put_artifact(layout, "x/y", [])
    entry = put_artifact(layout, "x/z", [], subject=subject)
    tagged: list[str] = []

    def script(seen: Seen) -> Answer:
        if seen.method == "PUT" and seen.path.endswith("/1.0"):
            tagged.append("1.0")
        if seen.method == "HEAD" and seen.path.endswith("/1.0"):
            return Answer(200, headers={"Docker-Content-Digest": root.digest}) if tagged else Answer(404)
        return Answer(200, length=None) if seen.method == "HEAD" else Answer(201, headers={"OCI-Subject": subject.digest})

    root = layout.put_json(IMAGE_INDEX, index(subject, entry))
    with scripted(script) as server:
        push(layout, root, Reference(server.host, "team/model", "1.0"), registry=at(server))
    assert not [seen for seen in server.seen if "/sha256-" in seen.path]
    assert tagged == ["1.0"]


# Hostile answers


def listing(count: int, **headers: str) -> Answer:
    entries = [Descriptor(IMAGE_MANIFEST, sha256(str(number).encode()), 10, artifact_type="x/y") for number in range(count)]
    return Answer(body=canonical(index(*entries)), headers={"Content-Type": IMAGE_INDEX, **headers})


def test_ten_thousand_referrers_on_one_page_are_read_and_one_more_is_refused() -> None:
    with scripted(lambda seen: listing(REFERRERS_LIMIT)) as server:
        assert len(at(server).referrers(SUBJECT)) == REFERRERS_LIMIT
    with scripted(lambda seen: listing(REFERRERS_LIMIT + 1)) as server, pytest.raises(VerificationError, match="more than"):
        at(server).referrers(SUBJECT)


def test_pages_are_followed_on_the_registry_only_and_not_for_ever() -> None:
    pages = {"": listing(3, Link=f'</v2/team/model/referrers/{SUBJECT}?page=2>; rel="next"'), "page=2": listing(2)}
    with scripted(lambda seen: pages[seen.path.partition("?")[2]]) as server:
        assert len(at(server).referrers(SUBJECT)) == 5
    with (
        scripted(lambda seen: listing(1, Link=f'<{seen.path}>; rel="next"')) as server,
        pytest.raises(VerificationError, match="not end"),
    ):
        at(server).referrers(SUBJECT)
    with (
        scripted(lambda seen: listing(1, Link=f'<{seen.path}0>; rel="next"')) as server,
        pytest.raises(VerificationError, match="not end"),
    ):
        at(server).referrers(SUBJECT)
    with scripted(lambda seen: listing(1), "127.0.0.2") as other:
        for link in (
            f"{other.url}/v2/team/model/referrers/x",
            "/v2/somebody/else/referrers/x",
            "/v2/team/model/referrers/../../x",
        ):
            page = listing(1, Link=f'<{link}>; rel="next"')
            with scripted(page) as server, pytest.raises(VerificationError, match="elsewhere"):
                at(server, LOGIN).referrers(SUBJECT)
    assert other.seen == []


@pytest.mark.parametrize("first", [Answer(404), Answer(200, b"<html>", {"Content-Type": "text/html"})])
def test_without_a_referrers_api_the_fallback_tag_is_read(first: Answer) -> None:
    with scripted(lambda seen: listing(2) if seen.path.endswith(SUBJECT.replace(":", "-")) else first) as server:
        assert len(at(server).referrers(SUBJECT)) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=canonical({"schemaVersion": 2, "manifests": {}}), headers={"Content-Type": IMAGE_INDEX}),
        Answer(body=canonical({"schemaVersion": 2, "manifests": [{"digest": "../x"}]}), headers={"Content-Type": IMAGE_INDEX}),
        Answer(body=canonical({"schemaVersion": 2, "config": {}, "layers": []}), headers={"Content-Type": IMAGE_MANIFEST}),
        Answer(body=b" " * (METADATA_LIMIT + 1), headers={"Content-Type": IMAGE_INDEX}),
    ],
)
def test_a_fallback_tag_that_is_no_list_of_referrers_is_refused_and_not_overwritten(answer: Answer) -> None:
    with scripted(lambda seen: Answer(404) if "/referrers/" in seen.path else answer) as server:
        with pytest.raises(VerificationError):
            at(server).referrers(SUBJECT)
        with pytest.raises(VerificationError):
            at(server).attach(SUBJECT, [Descriptor(IMAGE_MANIFEST, BLOB.digest, 10)])
    assert server.asked("PUT") == []


def test_an_entry_that_others_overwrite_is_written_again_and_in_the_end_we_say_so() -> None:
    held: list[bytes] = []
    lose = 3

    def script(seen: Seen) -> Answer:
        nonlocal lose
        if seen.method == "PUT":
            held[:] = [] if lose else [seen.body]
            lose -= 1 if lose else 0
            return Answer(201)
        return Answer(body=held[0], headers={"Content-Type": IMAGE_INDEX}) if held else Answer(404)

    entry = Descriptor(IMAGE_MANIFEST, BLOB.digest, 10)
    with scripted(script) as server:
        at(server).attach(SUBJECT, [entry], settle=0.001)
        assert len(server.asked("PUT")) == 4
        assert [found.digest for found in at(server).referrers(SUBJECT)] == [entry.digest]
        held.clear()
        lose = 1000
        with pytest.raises(PublishError, match="overwriting"):
            at(server).attach(SUBJECT, [entry], settle=0.001)
