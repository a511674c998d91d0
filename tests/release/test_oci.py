"""A layout gives back what was put into it, and nothing that a stranger changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release import oci
from release.errors import VerificationError
from release.oci import Descriptor, Layout

GOOD = {"mediaType": "text/plain", "digest": "sha256:" + "0" * 64, "size": 1}
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "layout")


def image(layout: Layout, *layers: bytes) -> Descriptor:
    """Store a small image and return its manifest."""
    config = layout.put_json(oci.IMAGE_CONFIG, {"os": "linux"})
    blobs = [layout.put(oci.LAYER_TAR, layer).to_json() for layer in layers]
    return layout.put_json(
        oci.IMAGE_MANIFEST, {"schemaVersion": 2, "mediaType": oci.IMAGE_MANIFEST, "config": config.to_json(), "layers": blobs}
    )


def tamper(layout: Layout, digest: str, data: bytes) -> None:
    path = layout.blob(digest)
    path.chmod(0o644)
    path.write_bytes(data)


def test_what_was_put_comes_back(layout: Layout) -> None:
    manifest = image(layout, b"one", b"two")
    layout.set_index([manifest.named("v1")])
    again = Layout.open(layout.path)
    found = again.find("v1")
    assert (found.digest, found.size) == (manifest.digest, manifest.size)
    config, *layers = oci.children(found, again)
    assert again.read(config) == {"os": "linux"}
    assert [again.blob(layer.digest).read_bytes() for layer in layers] == [b"one", b"two"]
    again.verify(found)


def test_a_layout_is_what_the_format_says(layout: Layout) -> None:
    assert json.loads((layout.path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout.path / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"], index["manifests"]) == (2, oci.IMAGE_INDEX, [])


def test_equal_documents_have_equal_digests(layout: Layout) -> None:
    assert layout.put_json("a/b", {"x": 1, "y": "é"}).digest == layout.put_json("a/b", {"y": "é", "x": 1}).digest


def test_nothing_temporary_stays_in_a_layout(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    layout.put("a/b", b"a"), layout.put("a/b", b"a"), layout.put_file("a/b", tmp_path / "f")
    with pytest.raises(RuntimeError), layout.incoming() as stream:
        stream.write(b"half")
        raise RuntimeError
    assert sorted(path.name for path in (layout.path / "blobs").rglob("*") if path.is_file()) == sorted(
        oci.sha256(data).removeprefix("sha256:") for data in (b"a", b"f")
    )


def test_an_incoming_file_is_adopted_under_its_digest(layout: Layout) -> None:
    with layout.incoming() as stream:
        stream.write(b"data")
        layout.adopt(stream, oci.sha256(b"data"))
    assert layout.blob(oci.sha256(b"data")).read_bytes() == b"data"


def test_a_blob_of_another_layout_is_taken_over(layout: Layout, tmp_path: Path) -> None:
    other = Layout.create(tmp_path / "other")
    blob = other.put("a/b", b"data")
    layout.copy_from(other, blob)
    layout.verify(blob)


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_tampered_blob_is_refused(part: str, layout: Layout) -> None:
    manifest = image(layout, b"layer")
    config, layer = oci.children(manifest, layout)
    blob = {"manifest": manifest, "config": config, "layer": layer}[part]
    data = layout.blob(blob.digest).read_bytes()
    tamper(layout, blob.digest, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationError, match=f"{blob.digest}.* has the content of sha256:") as caught:
        layout.verify(manifest)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_missing_blob_is_refused(part: str, layout: Layout) -> None:
    manifest = image(layout, b"layer")
    config, layer = oci.children(manifest, layout)
    blob = {"manifest": manifest, "config": config, "layer": layer}[part]
    layout.blob(blob.digest).unlink()
    with pytest.raises(VerificationError, match=f"blob {blob.digest} is missing"):
        layout.verify(manifest)


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_size_that_is_not_the_blobs_is_refused(change: int, layout: Layout) -> None:
    blob = layout.put("a/b", b"data")
    with pytest.raises(VerificationError, match="has 4 bytes, its descriptor says"):
        layout.verify(Descriptor("a/b", blob.digest, blob.size + change))
    manifest = image(layout, b"x")
    with pytest.raises(VerificationError, match="has the content of"):
        layout.read(Descriptor(oci.IMAGE_MANIFEST, manifest.digest, manifest.size + change))


def test_metadata_above_the_limit_is_refused_unread(layout: Layout) -> None:
    with pytest.raises(VerificationError, match="the limit is"):
        layout.read(Descriptor(oci.IMAGE_MANIFEST, "sha256:" + "0" * 64, oci.METADATA_LIMIT + 1))


def test_metadata_that_is_larger_than_it_says_is_not_read_to_its_end(layout: Layout) -> None:
    tamper_target = layout.put(oci.IMAGE_MANIFEST, b"{}")
    tamper(layout, tamper_target.digest, b"{" + b" " * (oci.METADATA_LIMIT * 2))
    with pytest.raises(VerificationError, match=rf"\({oci.METADATA_LIMIT + 1} bytes\)"):
        layout.read(tamper_target)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"nul", b"[" * 200_000])
def test_metadata_that_is_no_json_is_refused(data: bytes, layout: Layout) -> None:
    with pytest.raises(VerificationError, match="is not JSON"):
        layout.read(layout.put(oci.IMAGE_MANIFEST, data))


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../etc/passwd",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "A" * 64,
        "md5:0",
        "",
        "sha256:/etc/passwd",
    ],
)
def test_a_digest_never_leads_out_of_the_layout(digest: str, layout: Layout) -> None:
    with pytest.raises(VerificationError, match="is not a sha256 digest"):
        layout.blob(digest)
    (layout.path / "index.json").write_text(json.dumps({"manifests": [{**GOOD, "digest": digest}]}))
    with pytest.raises(VerificationError, match="no usable media type or digest"):
        layout.index()


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "x",
        1,
        {},
        {**GOOD, "mediaType": None},
        {**GOOD, "mediaType": 1},
        {**GOOD, "digest": None},
        {**GOOD, "digest": ["a"]},
    ],
)
def test_what_is_no_descriptor_is_refused(document: object) -> None:
    with pytest.raises(VerificationError, match="a descriptor"):
        Descriptor.from_json(document)


@pytest.mark.parametrize("size", [None, -1, 1.5, "1", True, 1 << 50, 1 << 200, [1]])
def test_a_size_that_cannot_be_is_refused(size: object) -> None:
    with pytest.raises(VerificationError, match="has an impossible size"):
        Descriptor.from_json({**GOOD, "size": size})


@pytest.mark.parametrize("annotations", [None, {}, {"a": "b"}, {"a": 1, "b": "c"}, [1], "x", 5, {"a": None}])
def test_annotations_of_a_stranger_are_text_or_left_out(annotations: object) -> None:
    found = Descriptor.from_json({**GOOD, "annotations": annotations, "platform": annotations, "artifactType": annotations})
    for kept in (found.annotations, found.platform):
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in kept.items())
    assert found.artifact_type == (annotations if isinstance(annotations, str) else "")


@given(JSONS)
def test_no_json_does_anything_but_become_a_descriptor_or_be_refused(document: Any) -> None:
    for each in (document, {**GOOD, "annotations": document}, {**GOOD, "size": document}, {**GOOD, "digest": document}):
        try:
            found = Descriptor.from_json(each)
        except VerificationError:
            continue
        assert oci.DIGEST.fullmatch(found.digest)


def test_a_descriptor_survives_being_written_and_read() -> None:
    full = Descriptor("a/b", "sha256:" + "1" * 64, 7, {"k": "v"}, "t/u", {"os": "linux", "architecture": "amd64"})
    assert Descriptor.from_json(json.loads(json.dumps(full.to_json()))) == full
    assert Descriptor("a/b", "sha256:" + "1" * 64, 7).to_json() == {"mediaType": "a/b", "digest": "sha256:" + "1" * 64, "size": 7}


@pytest.mark.parametrize(
    "index", ["", "{", "[]", "{}", '{"manifests": 1}', '{"manifests": {"a": 1}}', '{"manifests": [1]}', "null", "[" * 200_000]
)
def test_an_index_that_is_none_is_refused(index: str, layout: Layout) -> None:
    (layout.path / "index.json").write_text(index)
    with pytest.raises(VerificationError):
        layout.index()


@pytest.mark.parametrize(
    "manifest", [[], "x", {}, {"layers": None}, {"layers": {}}, {"layers": [1], "config": GOOD}, {"layers": []}]
)
def test_a_manifest_that_is_none_is_refused(manifest: object, layout: Layout) -> None:
    with pytest.raises(VerificationError):
        oci.children(layout.put_json(oci.IMAGE_MANIFEST, manifest), layout)


@pytest.mark.parametrize(
    "text", [None, "{}", "[]", "nonsense", '{"imageLayoutVersion": "2.0.0"}', '{"imageLayoutVersion": 1}', "[" * 200_000]
)
def test_a_folder_that_is_no_layout_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "oci-layout").write_text(text)
    with pytest.raises(VerificationError, match=r"is not an OCI image layout|has OCI layout version"):
        Layout.open(tmp_path)


def test_a_tag_that_is_not_there_is_refused(layout: Layout) -> None:
    with pytest.raises(VerificationError, match="has nothing under the tag 'v2'"):
        layout.find("v2")


def test_verifying_says_how_many_bytes_were_read(layout: Layout) -> None:
    manifest = image(layout, b"x" * 1000)
    config, layer = oci.children(manifest, layout)
    read: list[int] = []
    layout.verify(manifest, on_bytes=read.append)
    assert sum(read) == manifest.size + config.size + layer.size


def test_a_blob_that_is_named_many_times_is_read_once(layout: Layout) -> None:
    """Thirty indexes, each naming the next one twice, would otherwise be a thousand million reads."""
    entry, size = layout.put("a/b", b"x"), 1
    for _ in range(10):
        entry = layout.put_json(oci.IMAGE_INDEX, {"manifests": [entry.to_json(), entry.to_json()]})
        size += entry.size
    read: list[int] = []
    layout.verify(entry, on_bytes=read.append)
    assert sum(read) == size


def test_an_artifact_names_its_type_its_subject_and_an_empty_config(layout: Layout) -> None:
    subject = image(layout, b"x")
    layer = layout.put("text/markdown", b"# hi", {oci.TITLE: "README.md"})
    found = oci.put_artifact(layout, "application/vnd.x", [layer], subject=subject.named("v1"), annotations={"a": "b"})
    manifest = layout.read(found)
    assert (found.artifact_type, found.annotations) == ("application/vnd.x", {"a": "b"})
    assert manifest["artifactType"] == "application/vnd.x"
    assert manifest["subject"] == {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size}
    assert manifest["config"]["mediaType"] == oci.EMPTY_JSON
    assert layout.blob(manifest["config"]["digest"]).read_bytes() == b"{}"
    assert manifest["annotations"] == {"a": "b"}
    layout.verify(found)


def test_linking_never_overwrites_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    oci.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"


def test_where_no_link_can_be_made_a_copy_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(oci.os, "link", refuse)
    (tmp_path / "a").write_text("a")
    oci.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
