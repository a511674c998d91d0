"""Every reader of documents that strangers write, as a function of bytes; what it may do is return, or raise a ReleaseError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from records import record

from release import oci
from release.matrix import parse
from release.oci import Layout, canonical, sha256
from release.publish.artifact import cell_of, unpack
from release.publish.distribution import check_shape
from release.publish.dsse import bundle, open_bundle, statement, strict, unbase64
from release.publish.hub import pack
from release.publish.keys import Public, new_key, read_private, read_public
from release.types import JSON
from release.types.policy import Policy

HASH: Final = "sha256:" + "a" * 64
POLICY: Final = (
    b"state: validated\nchips: [abacus]\nnot-older-than: 30\nno-waivers: true\nattested: [sbom]\nsources: ['"
    + HASH.encode()
    + b"']\n"
)


@dataclass(frozen=True)
class Reader:
    """A reader, a sound document for it, and whether documents are JSON (and may be changed as such)."""

    read: Callable[[bytes, Path], object]
    sound: bytes
    is_json: bool = True


def manifests(media_type: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        layout = Layout.create(folder / "in")
        descriptor = layout.put(media_type, data)
        check_shape(descriptor, layout.read(descriptor))
        layout.set_index([descriptor])
        layout.verify(descriptor)
        return [cell_of(layout, descriptor), oci.children(descriptor, layout)]

    return read


def index_file(data: bytes, folder: Path) -> object:
    layout = Layout.create(folder / "in")
    (folder / "in" / "index.json").write_bytes(data)
    return [layout.index(), layout.find("bf16")]


def layout_file(data: bytes, folder: Path) -> object:
    Layout.create(folder / "in")
    (folder / "in" / "oci-layout").write_bytes(data)
    return Layout.open(folder / "in")


def policy_file(data: bytes, folder: Path) -> object:
    (folder / "in").mkdir()
    (folder / "in" / "policy.yaml").write_bytes(data)
    return parse.read(folder / "in" / "policy.yaml", Policy)


def record_in_folder(data: bytes, folder: Path) -> object:
    """As a hub's push reads it."""
    (folder / "in" / "evidence" / "accuracy").mkdir(parents=True)
    (folder / "in" / "release.json").write_bytes(data)
    (folder / "in" / "README.md").write_bytes(b"# a card\n")
    (folder / "in" / "evidence" / "accuracy" / "samples.jsonl").write_bytes(b"{}\n")
    return pack(folder / "in", {"gpqa-diamond": ("a/b", "c")}, weights=False)


def record_in_index(data: bytes, folder: Path) -> object:
    """As a pull reads it: with the image and the weights that the sound one speaks of, or does not."""
    layout = Layout.create(folder / "in")
    linux = {"os": "linux", "architecture": "amd64"}
    config = layout.put_json(oci.IMAGE_CONFIG, {**linux, "rootfs": {"type": "layers", "diff_ids": []}})
    image = layout.put_json(oci.IMAGE_MANIFEST, {"schemaVersion": 2, "config": config.to_json(), "layers": []})
    kinds = {"record": "release.json", "card": "README.md", "model": "w"}
    parts = []
    for kind, name in kinds.items():
        key = "org.cncf.model.filepath" if kind == "model" else oci.TITLE
        layer = layout.put("application/json", data if kind == "record" else b"# it\n", {key: name})
        dot = {"record": "vnd.release.record.v1+json", "card": "vnd.release.card.v1", "model": "vnd.cncf.model.manifest.v1+json"}[
            kind
        ]
        parts.append(oci.put_artifact(layout, f"application/{dot}", [layer], annotations={"kind": kind}).to_json())
    entries = [{**image.to_json(), "platform": linux}, *parts]
    cell = {"org.release.cell": "abacus/pebble-7b@bf16~native"}
    document = {"schemaVersion": 2, "mediaType": oci.IMAGE_INDEX, "manifests": entries, "annotations": cell}
    return unpack(layout, layout.put_json(oci.IMAGE_INDEX, document), folder / "out" / "it")


def envelope(keys: list[Public]) -> Callable[[bytes, Path], object]:
    return lambda data, folder: open_bundle(data, keys)


def simple(data: bytes, folder: Path) -> object:
    return [strict(data, "it"), unbase64(data.decode("latin-1"), "it")]


def readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by its name; a key is made in `folder`."""
    new_key(folder / "key")
    key = read_private(folder / "key")
    digest = {"mediaType": oci.IMAGE_CONFIG, "digest": HASH, "size": 2, "annotations": {"a": "b"}}
    image = {"schemaVersion": 2, "mediaType": oci.IMAGE_MANIFEST, "config": digest, "layers": [digest], "subject": digest}
    entry = {**digest, "mediaType": oci.IMAGE_MANIFEST, "platform": {"os": "linux"}, "annotations": {oci.REF_NAME: "bf16"}}
    index = {
        "schemaVersion": 2,
        "mediaType": oci.IMAGE_INDEX,
        "manifests": [entry],
        "annotations": {"org.release.cell": "a/b@bf16"},
    }
    made = record()
    made["pictures"] = []
    made["evidence"] = [{"path": "evidence/accuracy/samples.jsonl", "sha256": sha256(b"{}\n"), "bytes": 3}]
    critical: JSON = {"critical": {"identity": {}, "image": {"docker-manifest-digest": HASH}, "type": "t"}, "optional": None}
    return {
        "manifest": Reader(manifests(oci.IMAGE_MANIFEST), canonical(image)),
        "index": Reader(manifests(oci.IMAGE_INDEX), canonical(index)),
        "index.json": Reader(index_file, canonical(index)),
        "oci-layout": Reader(layout_file, b'{"imageLayoutVersion":"1.0.0"}'),
        "bundle": Reader(envelope([read_public(folder / "key.pub")]), bundle(statement(HASH, "urn:it", {"a": 1}), key)),
        "simple signing": Reader(simple, canonical(critical)),
        "policy": Reader(policy_file, POLICY, is_json=False),
        "record, sent": Reader(record_in_folder, canonical(made)),
        "record, pulled": Reader(record_in_index, canonical(made)),
    }
