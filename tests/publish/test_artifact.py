"""A release is one index: what was put together comes apart again, and what anybody changed does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import record

from release import oci
from release.errors import UsageError, VerificationError
from release.oci import Descriptor, Layout
from release.publish import artifact
from release.publish.artifact import CARD_TYPE, FILE_PATH, MODEL_TYPE, RECORD_TYPE, assemble, cell_of, unpack

FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"weights", "deep/tokenizer.json": b"{}"}
PICTURE = b"<svg/>"
EVIDENCE = b'{"id": 1}\n'
LINUX = {"os": "linux", "architecture": "arm64"}


def stage_outputs(folder: Path) -> dict[str, Path]:
    """Write what the stages image, weights and card leave for publish; return their folders."""
    inputs = {name: folder / name for name in ("image", "weights", "card")}
    layout = Layout.create(inputs["image"] / "layout")
    config = layout.put_json(
        oci.IMAGE_CONFIG, {"os": "linux", "architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": []}}
    )
    layer = layout.put(oci.LAYER_TAR, b"layer")
    document = {"schemaVersion": 2, "mediaType": oci.IMAGE_MANIFEST, "config": config.to_json(), "layers": [layer.to_json()]}
    manifest = replace(layout.put_json(oci.IMAGE_MANIFEST, document), platform=LINUX)
    layout.set_index([manifest.named("image")])
    for name, data in FILES.items():
        (inputs["weights"] / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (inputs["weights"] / "model" / name).write_bytes(data)
    made = record()
    made["image"].update(manifest=manifest.to_json(), config=config.digest)
    made["weights"]["files"] = {name: {"sha256": oci.sha256(data), "bytes": len(data)} for name, data in FILES.items()}
    made["evidence"] = [{"path": "evidence/accuracy/samples.jsonl", "sha256": oci.sha256(EVIDENCE), "bytes": len(EVIDENCE)}]
    (inputs["card"] / "evidence" / "accuracy").mkdir(parents=True)
    (inputs["card"] / "evidence" / "accuracy" / "samples.jsonl").write_bytes(EVIDENCE)
    made["pictures"] = [{"path": "pictures/forest.svg", "sha256": oci.sha256(PICTURE), "bytes": len(PICTURE)}]
    (inputs["card"] / "pictures").mkdir()
    (inputs["card"] / "pictures" / "forest.svg").write_bytes(PICTURE)
    (inputs["card"] / "release.json").write_text(json.dumps(made))
    (inputs["card"] / "README.md").write_text("# the card\n")
    (inputs["card"] / "README_zh.md").write_text("# 说明\n", encoding="utf-8")
    return inputs


class Release:
    """A sound release in a layout, and what a stranger may do to it."""

    def __init__(self, folder: Path) -> None:
        self.inputs = stage_outputs(folder / "stages")
        self.entry = assemble(self.inputs, "bf16-native", folder / "oci")
        self.layout = Layout.open(folder / "oci")
        self.target = folder / "pulled" / "release"

    def part(self, kind: str) -> Descriptor:
        return next(e for e in oci.children(self.entry, self.layout) if (e.artifact_type or "image") == kind)

    def index(self, entries: list[Descriptor], **changes: Any) -> Descriptor:
        """Store another index of these entries."""
        document = {**self.layout.read(self.entry), "manifests": [entry.to_json() for entry in entries], **changes}
        return self.layout.put_json(oci.IMAGE_INDEX, document)

    def with_part(self, kind: str, change: Callable[[dict[str, Any]], object]) -> Descriptor:
        """Return the index of a release whose part has another manifest."""
        old = self.part(kind)
        manifest = self.layout.read(old)
        change(manifest)
        new = self.layout.put_json(oci.IMAGE_MANIFEST, manifest)
        changed = replace(old, digest=new.digest, size=new.size)
        return self.index([changed if e.digest == old.digest else e for e in oci.children(self.entry, self.layout)])

    def with_record(self, change: Callable[[dict[str, Any]], object]) -> Descriptor:
        """Return the index of a release with another record, its digests all in order."""
        made = json.loads((self.inputs["card"] / "release.json").read_bytes())
        change(made)
        return self.with_file(RECORD_TYPE, json.dumps(made).encode())

    def with_file(self, kind: str, data: bytes) -> Descriptor:
        """Return the index of a release whose part has other content in its first file."""
        blob = self.layout.put("application/json", data)

        def change(manifest: dict[str, Any]) -> None:
            manifest["layers"][0].update(digest=blob.digest, size=blob.size)

        return self.with_part(kind, change)

    def refused(self, entry: Descriptor, match: str = "") -> None:
        """Check that the release is refused and that nothing of it lies anywhere."""
        with pytest.raises(VerificationError, match=match or None) as caught:
            unpack(self.layout, entry, self.target)
        assert caught.value.exit_code == 5
        assert not self.target.exists()
        assert not self.target.parent.exists() or list(self.target.parent.iterdir()) == []


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def test_what_was_put_together_comes_apart_again(release: Release) -> None:
    pulled = unpack(release.layout, release.layout.find("bf16-native"), release.target)
    found = {str(p.relative_to(release.target)): p.read_bytes() for p in release.target.rglob("*") if p.is_file()}
    card = release.inputs["card"]
    assert found == {
        **{f"weights/{name}": data for name, data in FILES.items()},
        "release.json": (card / "release.json").read_bytes(),
        "README.md": b"# the card\n",
        "README_zh.md": "# 说明\n".encode(),
        "evidence/accuracy/samples.jsonl": EVIDENCE,
        "pictures/forest.svg": PICTURE,
    }
    assert pulled.record["cell"] == cell_of(release.layout, release.entry) == "abacus/pebble-7b@bf16~native"
    assert pulled.image.digest == pulled.record["image"]["manifest"]["digest"]
    assert pulled.folder == release.target
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in release.target.rglob("*") if path.is_file())


@pytest.mark.parametrize("change", [{"sha256": "sha256:" + "0" * 64}, {"path": "pictures/other.svg"}])
def test_a_picture_that_is_not_the_record_s_is_refused(change: dict[str, str], release: Release) -> None:
    release.refused(release.with_record(lambda made: made["pictures"][0].update(change)), match="differ in pictures/")


def test_the_same_stages_make_the_same_release(tmp_path: Path) -> None:
    assert Release(tmp_path / "a").entry.digest == Release(tmp_path / "b").entry.digest


def test_the_index_names_image_weights_record_and_card_and_what_they_are(release: Release) -> None:
    index = release.layout.read(release.entry)
    assert [entry.get("artifactType") for entry in index["manifests"]] == [None, MODEL_TYPE, RECORD_TYPE, CARD_TYPE]
    assert [entry["platform"]["os"] for entry in index["manifests"]] == ["linux", "unknown", "unknown", "unknown"]
    assert index["annotations"] == {
        "org.release.cell": "abacus/pebble-7b@bf16~native",
        "org.release.state": "validated",
        "org.opencontainers.image.created": "2026-11-20T12:00:00+00:00",
    }


def test_record_and_card_refer_to_the_image(release: Release) -> None:
    image = release.part("image")
    for kind in (RECORD_TYPE, CARD_TYPE):
        assert release.layout.read(release.part(kind))["subject"]["digest"] == image.digest


def test_weights_are_raw_layers_one_a_file_as_modelpack_says(release: Release) -> None:
    manifest = release.layout.read(release.part(MODEL_TYPE))
    layers = {layer["annotations"][FILE_PATH]: layer for layer in manifest["layers"]}
    assert set(layers) == set(FILES)
    assert layers["model.safetensors"]["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert layers["config.json"]["mediaType"] == "application/vnd.cncf.model.weight.config.v1.raw"
    assert {name: layer["digest"] for name, layer in layers.items()} == {name: oci.sha256(data) for name, data in FILES.items()}
    config = release.layout.read(Descriptor.from_json(manifest["config"]))
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert (config["descriptor"]["name"], config["config"]["precision"]) == ("Pebble 7B", "bf16")


def test_an_earlier_release_in_the_folder_is_replaced_as_a_whole(release: Release) -> None:
    (release.target / "weights").mkdir(parents=True)
    (release.target / "weights" / "old").touch()
    (release.target / "release.json").write_text("{}")
    unpack(release.layout, release.entry, release.target)
    assert not (release.target / "weights" / "old").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link", "here", "above"])
def test_what_is_no_release_is_never_written_over(
    release: Release, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").write_text("years")
    (mine / "empty").mkdir()
    (tmp_path / "link").symlink_to(mine)
    monkeypatch.chdir(mine / "empty")
    place = {"folder": mine, "file": mine / "thesis", "link": tmp_path / "link", "here": mine / "empty", "above": mine}[kind]
    with pytest.raises(UsageError):
        unpack(release.layout, release.entry, place)
    assert (mine / "thesis").read_text() == "years" and sorted(path.name for path in mine.iterdir()) == ["empty", "thesis"]


@pytest.mark.parametrize(
    "verdicts",
    [
        [],
        [{"name": "x", "status": "FAILED", "measured": "", "wanted": "", "reason": ""}],
        [{"name": "accuracy", "status": "PASSED", "measured": "", "wanted": "", "reason": ""}],
    ],
)
def test_a_record_that_calls_itself_more_than_its_verdicts_is_refused(release: Release, verdicts: list[dict[str, str]]) -> None:
    release.refused(release.with_record(lambda made: made.update(verdicts=verdicts)), "the record speaks of state 'validated'")


def test_a_release_that_is_refused_leaves_the_earlier_one_alone(release: Release) -> None:
    unpack(release.layout, release.entry, release.target)
    with pytest.raises(VerificationError):
        unpack(release.layout, release.with_record(lambda made: made["image"]["manifest"].update(digest="x")), release.target)
    assert (release.target / "weights" / "config.json").read_bytes() == FILES["config.json"]
    assert [path.name for path in release.target.parent.iterdir()] == ["release"]


def test_a_release_that_cannot_take_the_place_of_the_earlier_one_leaves_it_there(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(release.layout, release.entry, release.target)
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if target == release.target and not self.name.endswith(".old"):
            raise OSError("no room")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(VerificationError, match="no room"):
        unpack(release.layout, release.entry, release.target)
    assert (release.target / "weights" / "config.json").read_bytes() == FILES["config.json"]
    assert [path.name for path in release.target.parent.iterdir()] == ["release"]


EVIL = [
    "../evil",
    "../../evil",
    "/tmp/evil",
    "a/../../evil",
    "..",
    ".",
    "",
    "a//../..",
    "a\\b",
    "a\nb",
    "a\x00b",
    "~/x",
    "weights/../../x",
]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize(("kind", "key"), [(MODEL_TYPE, FILE_PATH), (RECORD_TYPE, oci.TITLE), (CARD_TYPE, oci.TITLE)])
def test_no_file_is_written_outside(name: str, kind: str, key: str, release: Release, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*") if "oci" not in path.parts)
    release.refused(
        release.with_part(kind, lambda manifest: manifest["layers"][0]["annotations"].update({key: name})), "names a file"
    )
    after = sorted(path for path in tmp_path.rglob("*") if "oci" not in path.parts and path != release.target.parent)
    assert after == before


@pytest.mark.parametrize("kind", [MODEL_TYPE, RECORD_TYPE, CARD_TYPE])
def test_a_file_without_a_name_is_refused(kind: str, release: Release) -> None:
    release.refused(release.with_part(kind, lambda manifest: manifest["layers"][0].pop("annotations")), "names a file ''")


def twice(manifest: dict[str, Any]) -> None:
    manifest["layers"].append(manifest["layers"][0])


@pytest.mark.parametrize("kind", [MODEL_TYPE, RECORD_TYPE, CARD_TYPE])
def test_a_file_that_is_named_twice_is_refused(kind: str, release: Release) -> None:
    release.refused(release.with_part(kind, twice), "twice")


def named(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["layers"][0]["annotations"].update({oci.TITLE: name})


@pytest.mark.parametrize("name", ["release.json", "evidence/accuracy/samples.jsonl", "weights/config.json", "release.json/x"])
def test_the_card_cannot_replace_what_other_parts_brought(name: str, release: Release) -> None:
    release.refused(release.with_part(CARD_TYPE, named(name)))


def test_a_file_inside_a_file_is_refused(release: Release) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["annotations"][FILE_PATH] = "model.safetensors/x"

    release.refused(release.with_part(MODEL_TYPE, change))


def test_weights_that_the_record_does_not_name_are_refused(release: Release) -> None:
    blob = release.layout.put("application/octet-stream", b"more")
    extra = {**blob.to_json(), "annotations": {FILE_PATH: "extra.bin"}}
    release.refused(
        release.with_part(MODEL_TYPE, lambda manifest: manifest["layers"].append(extra)), "differ in weights/extra.bin"
    )


def test_weights_that_the_record_smuggles_in_are_refused(release: Release) -> None:
    blob = release.layout.put("application/octet-stream", b"more")
    extra = {**blob.to_json(), "annotations": {oci.TITLE: "weights/extra.bin"}}
    release.refused(
        release.with_part(RECORD_TYPE, lambda manifest: manifest["layers"].append(extra)), "differ in weights/extra.bin"
    )


def test_weights_that_are_left_out_are_refused(release: Release) -> None:
    release.refused(
        release.with_part(MODEL_TYPE, lambda manifest: manifest["layers"].pop()), "record and the files of the release differ in"
    )


def test_other_weights_than_the_records_are_refused(release: Release) -> None:
    release.refused(release.with_file(MODEL_TYPE, b"other"), "differ in weights/config.json")


def test_a_record_that_speaks_of_another_image_is_refused(release: Release) -> None:
    other = "sha256:" + "0" * 64
    entry = release.with_record(lambda made: made["image"]["manifest"].update(digest=other))
    release.refused(entry, f"the record speaks of image '{other}', the release carries {release.part('image').digest}")


def test_a_record_that_speaks_of_another_config_is_refused(release: Release) -> None:
    """The engine is asked for the image by its config's digest: a stranger must not choose which one."""
    release.refused(release.with_record(lambda made: made["image"].update(config="sha256:" + "0" * 64)), "config")


def test_a_record_of_another_cell_is_refused(release: Release) -> None:
    release.refused(release.with_record(lambda made: made.update(cell="abacus/pebble-7b@fp32")), "cell")


def test_evidence_that_is_not_what_the_record_names_is_refused(release: Release) -> None:
    other = release.layout.put("application/octet-stream", b"forged")

    def forge(manifest: dict[str, Any]) -> None:
        manifest["layers"][1].update(digest=other.digest, size=other.size)

    release.refused(release.with_part(RECORD_TYPE, forge), "evidence")
    release.refused(release.with_part(RECORD_TYPE, lambda manifest: manifest["layers"].pop()), "evidence")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"1", b'"x"', b"{}", b'{"image": 1}', b"\xff", b"[" * 100_000])
def test_a_record_that_is_none_is_refused(data: bytes, release: Release) -> None:
    release.refused(release.with_file(RECORD_TYPE, data))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.pop("image"),
        lambda made: made.pop("weights"),
        lambda made: made.update(weights=[]),
        lambda made: made["weights"].update(files=[1]),
        lambda made: made["weights"]["files"].update({"config.json": 1}),
        lambda made: made["image"].update(manifest=None),
    ],
)
def test_a_record_that_lacks_something_is_refused(change: Callable[[dict[str, Any]], object], release: Release) -> None:
    release.refused(release.with_record(change))


@pytest.mark.parametrize("kind", ["image", MODEL_TYPE, RECORD_TYPE, CARD_TYPE])
def test_a_release_that_lacks_a_part_is_refused(kind: str, release: Release) -> None:
    gone = release.part(kind)
    entries = [entry for entry in oci.children(release.entry, release.layout) if entry.digest != gone.digest]
    release.refused(release.index(entries), "is not a release: it has no (image|weights|record|card)")


@pytest.mark.parametrize("kind", ["image", MODEL_TYPE, RECORD_TYPE, CARD_TYPE])
def test_a_release_with_two_of_a_part_is_refused(kind: str, release: Release) -> None:
    entries = [*oci.children(release.entry, release.layout), release.part(kind)]
    release.refused(release.index(entries), "is not a release: it has two of")


@pytest.mark.parametrize("media_type", [oci.IMAGE_MANIFEST, oci.IMAGE_INDEX, "text/plain"])
@pytest.mark.parametrize("document", [{}, [], 1, {"artifactType": ["x"]}, {"layers": [], "config": {}}])
def test_a_release_with_a_part_that_nobody_knows_is_refused(media_type: str, document: object, release: Release) -> None:
    extra = release.layout.put_json(media_type, document)
    release.refused(release.index([*oci.children(release.entry, release.layout), extra]))


def test_an_image_that_runs_nowhere_is_no_image(release: Release) -> None:
    entries = [replace(entry, platform=oci.NOWHERE) for entry in oci.children(release.entry, release.layout)]
    release.refused(release.index(entries), "unknown part")


def test_an_index_of_nothing_is_refused(release: Release) -> None:
    release.refused(release.index([]), "it has no card, image, record, weights")


def test_an_image_alone_is_no_release(release: Release) -> None:
    release.refused(release.part("image"))


@pytest.mark.parametrize("kind", ["image", MODEL_TYPE, RECORD_TYPE, CARD_TYPE])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_tampered_blob_is_refused(kind: str, depth: int, release: Release) -> None:
    part = release.part(kind)
    blob = part if depth == 0 else oci.children(part, release.layout)[1]
    path = release.layout.blob(blob.digest)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    release.refused(release.entry, "has the content of sha256:")


def test_a_missing_blob_is_refused(release: Release) -> None:
    release.layout.blob(oci.sha256(FILES["model.safetensors"])).unlink()
    release.refused(release.entry, "is missing")


@pytest.mark.parametrize(
    "said", [None, {}, [], {"org.release.cell": 1}, {"org.release.cell": "../../x"}, {"org.release.cell": "a/b@bf17"}]
)
def test_an_index_that_names_no_cell_is_refused(said: object, release: Release) -> None:
    entry = release.index(oci.children(release.entry, release.layout), annotations=said)
    with pytest.raises(VerificationError, match="is not a release: it names the cell"):
        cell_of(release.layout, entry)


def test_the_media_types_are_the_published_ones() -> None:
    assert artifact.MODEL_CONFIG == "application/vnd.cncf.model.config.v1+json"
    assert MODEL_TYPE == "application/vnd.cncf.model.manifest.v1+json"
    assert FILE_PATH == "org.cncf.model.filepath"


def test_a_release_of_before_with_a_card_in_one_language_can_be_pulled(release: Release) -> None:
    entry = release.with_part(CARD_TYPE, lambda manifest: manifest["layers"].pop(1))
    assert not (unpack(release.layout, entry, release.target).folder / "README_zh.md").exists()


def test_a_release_without_its_card_is_refused(release: Release) -> None:
    release.refused(release.with_part(CARD_TYPE, lambda manifest: manifest["layers"].pop(0)), "the release carries no README.md")


def test_what_is_only_planned_is_no_release(release: Release) -> None:
    def unmake(made: dict[str, Any]) -> None:
        made.update(state="planned", image=None, weights=None, verdicts=[])

    release.refused(release.with_record(unmake), "the record is not one")
