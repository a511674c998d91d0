"""Releases that are laid out in a folder, small and whole in their parts. For tests only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from distribution import manifest
from records import record

from release.oci import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    NOWHERE,
    TITLE,
    Layout,
    canonical,
    put_artifact,
    sha256,
)
from release.publish.artifact import CELL, RECORD_TYPE, assemble
from release.publish.keys import new_key
from release.publish.record import CARDS
from release.publish.reference import Reference
from release.publishing import Published, publish_release
from release.types import JSON


@dataclass(frozen=True)
class Built:
    """A release that is laid out in a folder, as `release build` leaves it."""

    folder: Path
    memory: Path

    def publish(self, where: Reference, **options: object) -> Published:
        return publish_release(self.folder, where, self.memory, **options)  # type: ignore[arg-type]


def laid_out(folder: Path, made: JSON, *, content: bytes = b"\0") -> Built:
    """Lay out a release whose parts are as ours are, in small."""
    layout = Layout.create(folder / "bf16" / "oci")
    layer = layout.put(LAYER_TAR, content * 100_000)
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = layout.put_json(IMAGE_CONFIG, {"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    image = replace(layout.put_json(IMAGE_MANIFEST, manifest(config, layer)), platform={"os": "linux", "architecture": "amd64"})
    told = layout.put("application/json", canonical(made), {TITLE: "release.json"})
    part = replace(put_artifact(layout, RECORD_TYPE, [told], subject=image), platform=NOWHERE)
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [image.to_json(), part.to_json()]}
    layout.set_index([layout.put_json(IMAGE_INDEX, {**index, "annotations": {CELL: made["cell"]}}).named("bf16")])
    return Built(folder / "bf16", folder / "pushed.json")


def whole(folder: Path, made: JSON, *, size: int = 0) -> Built:
    """Lay out a release that can be pulled and unpacked: its image is always the same, its weights are the cell's, of at least `size` bytes."""
    inputs = {name: folder / "stages" / name for name in ("image", "weights", "card")}
    image = Layout.create(inputs["image"] / "layout")
    layer = image.put(LAYER_TAR, b"\0" * 1000)
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = image.put_json(IMAGE_CONFIG, {"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    linux = replace(image.put_json(IMAGE_MANIFEST, manifest(config, layer)), platform={"os": "linux", "architecture": "amd64"})
    image.set_index([linux.named("image")])
    data = f"the weights of {made['cell']}".encode().ljust(size, b"\0")
    made["image"].update(manifest=linux.to_json(), config=config.digest)
    made["weights"]["files"] = {"model.safetensors": {"sha256": sha256(data), "bytes": len(data)}}
    made["evidence"], made["pictures"] = [], []
    (inputs["weights"] / "model").mkdir(parents=True)
    (inputs["weights"] / "model" / "model.safetensors").write_bytes(data)
    (inputs["weights"] / "model" / "model.safetensors").chmod(0o444)
    inputs["card"].mkdir()
    (inputs["card"] / "release.json").write_bytes(canonical(made))
    for name in CARDS.values():
        (inputs["card"] / name).write_text(f"# {made['cell']}, {made['created']}\n", encoding="utf-8")
    assemble(inputs, "bf16", folder / "bf16" / "oci")
    return Built(folder / "bf16", folder / "pushed.json")


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """A release that is laid out."""
    return laid_out(tmp_path, record())


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key, not encrypted."""
    monkeypatch.delenv("RELEASE_KEY_PASSPHRASE", raising=False)
    new_key(tmp_path / "key")
    return tmp_path / "key"


def public(key: Path) -> Path:
    """Return where a private key's public key lies."""
    return key.with_name(f"{key.name}.pub")
