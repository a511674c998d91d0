"""One release as one OCI index: image, weights (CNCF ModelPack), record and card; and back from the index to files."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from release import oci
from release.errors import UsageError, VerificationError
from release.oci import Descriptor, Layout
from release.publish.record import CARDS, SCHEMA, state_from
from release.types import JSON, RELATIVE, split_cell

RECORD_TYPE: Final = "application/vnd.release.record.v1+json"
CARD_TYPE: Final = "application/vnd.release.card.v1"
MODEL_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
FILE_PATH: Final = "org.cncf.model.filepath"
CELL: Final = "org.release.cell"


def assemble(inputs: Mapping[str, Path], tag: str, target: Path) -> Descriptor:
    """Write the release whose stage outputs are `inputs` into a new layout at `target` and return its index under `tag`.

    Record and card are referrers of the image (`subject`) and carry the cell's id, because several cells may share one image; the
    index names them too, so that one digest pins everything.
    """
    record = json.loads((inputs["card"] / "release.json").read_bytes())
    layout = Layout.create(target)
    cell = {CELL: record["cell"]}
    built = Layout.open(inputs["image"] / "layout")
    image = built.find("image")
    for blob in (image, *oci.children(image, built)):
        layout.copy_from(built, blob)
    image = replace(image, annotations={})
    evidence = [
        layout.put_file("application/octet-stream", inputs["card"] / file["path"], {oci.TITLE: file["path"]})
        for file in record["evidence"]
    ]
    record_file = layout.put_file("application/json", inputs["card"] / "release.json", {oci.TITLE: "release.json"})
    cards = [layout.put_file("text/markdown", inputs["card"] / name, {oci.TITLE: name}) for name in CARDS.values()]
    cards += [
        layout.put_file("image/svg+xml", inputs["card"] / file["path"], {oci.TITLE: file["path"]})
        for file in record.get("pictures", ())
    ]
    entries = [
        image,
        oci.put_artifact(
            layout,
            MODEL_TYPE,
            _weights(layout, inputs["weights"] / "model"),
            config=_model_config(layout, record),
            annotations=cell,
        ),
        oci.put_artifact(layout, RECORD_TYPE, [record_file, *evidence], subject=image, annotations=cell),
        oci.put_artifact(layout, CARD_TYPE, cards, subject=image, annotations=cell),
    ]
    index = {
        "schemaVersion": 2,
        "mediaType": oci.IMAGE_INDEX,
        "manifests": [entry.to_json() if entry.platform else replace(entry, platform=oci.NOWHERE).to_json() for entry in entries],
        "annotations": {**cell, "org.release.state": record["state"], "org.opencontainers.image.created": record["created"]},
    }
    entry = layout.put_json(oci.IMAGE_INDEX, index)
    layout.set_index([entry.named(tag)])
    return entry


@dataclass(frozen=True)
class Pulled:
    """What a release brought: its record, the folder with weights, card and evidence, and where its image lies."""

    record: JSON
    folder: Path
    layout: Layout
    image: Descriptor


def unpack(layout: Layout, entry: Descriptor, folder: Path) -> Pulled:
    """Check every digest of the release under `entry` and write weights/, release.json, the cards and evidence/ into `folder`.

    The record must speak of exactly what is carried, and say what its own verdicts come to. A release that lies in `folder` is
    replaced; any other folder that is not empty is refused (UsageError). Raises VerificationError, and then `folder` is as it was.
    """
    refuse_foreign(folder)
    layout.verify(entry)
    parts = _parts(layout, entry)
    temporary, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{suffix}") for suffix in ("", ".old"))
    try:
        (temporary / "weights").mkdir(parents=True)
        for manifest, key, target in (
            (parts["weights"], FILE_PATH, temporary / "weights"),
            (parts["record"], oci.TITLE, temporary),
            (parts["card"], oci.TITLE, temporary),
        ):
            _write_files(layout, manifest, key, target)
        record = json.loads((temporary / "release.json").read_bytes())
        config = oci.children(parts["image"], layout)[0]
        _check_record(record, layout, entry, parts["image"], config, temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except (OSError, ValueError, RecursionError) as problem:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise VerificationError(f"the release cannot be unpacked: {problem}") from problem
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return Pulled(record, folder, layout, parts["image"])


def refuse_foreign(folder: Path) -> None:
    """Refuse to put a release where something else is: a file, a link, the working folder, a folder without a release in it."""
    where = folder.resolve()
    if folder.is_symlink() or Path.cwd().resolve().is_relative_to(where) or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"a release cannot be written to {folder}", next_step="name a folder that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "release.json").is_file():
        raise UsageError(f"{folder} is not empty and holds no release", next_step="name a folder that does not exist yet")


def _parts(layout: Layout, entry: Descriptor) -> dict[str, Descriptor]:
    kinds = {MODEL_TYPE: "weights", RECORD_TYPE: "record", CARD_TYPE: "card"}
    found: dict[str, Descriptor] = {}
    for child in oci.children(entry, layout):
        if child.media_type != oci.IMAGE_MANIFEST:
            raise VerificationError(f"{child.digest} is a {child.media_type}, not a manifest")
        manifest = layout.read(child)
        if not isinstance(manifest, dict):
            raise VerificationError(f"{child.digest} is not a manifest")
        kind = kinds.get(str(manifest.get("artifactType")), "image" if child.platform.get("os") == "linux" else "")
        if not kind or kind in found:
            raise VerificationError(f"{entry.digest} is not a release: it has {'two of ' + kind if kind else 'an unknown part'}")
        found[kind] = child
    if missing := {"image", "weights", "record", "card"} - found.keys():
        raise VerificationError(f"{entry.digest} is not a release: it has no {', '.join(sorted(missing))}")
    return found


def _write_files(layout: Layout, manifest: Descriptor, key: str, target: Path) -> None:
    _, *layers = oci.children(manifest, layout)
    for layer in layers:
        name = layer.annotations.get(key, "")
        if not RELATIVE.fullmatch(name):
            raise VerificationError(f"{manifest.digest} names a file {name!r}")
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise VerificationError(f"{manifest.digest} names the file {name!r} twice")
        shutil.copyfile(layout.blob(layer.digest), path)
        os.chmod(path, 0o644)


def _check_record(record: Any, layout: Layout, entry: Descriptor, image: Descriptor, config: Descriptor, folder: Path) -> None:
    """Check that a record speaks of what the release carries, and calls itself no more than its verdicts come to."""
    try:
        said = {
            "schema": record["schema"],
            "cell": record["cell"],
            "image": record["image"]["manifest"]["digest"],
            "image config": record["image"]["config"],
            "state": record["state"],
        }
        weights = {f"weights/{name}": file["sha256"] for name, file in record["weights"]["files"].items()}
        evidence = {file["path"]: file["sha256"] for file in (*record["evidence"], *record.get("pictures", ()))}
        state = state_from(record["verdicts"]).value
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise VerificationError(f"the record is not one: {problem!r}") from problem
    carried = {
        "schema": SCHEMA,
        "cell": cell_of(layout, entry),
        "image": image.digest,
        "image config": config.digest,
        "state": state,
    }
    for name, value in carried.items():
        if said[name] != value:
            raise VerificationError(f"the record speaks of {name} {str(said[name])[:100]!r}, the release carries {value}")
    there = {str(path.relative_to(folder)): oci.sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in ("release.json", "README.md"):
        if there.pop(name, None) is None:
            raise VerificationError(f"the release carries no {name}")
    for name in CARDS.values():  # a card in another language may be missing
        there.pop(name, None)
    named = {**weights, **evidence}
    if there != named:
        differing = sorted(name for name in there.keys() | named.keys() if there.get(name) != named.get(name))
        raise VerificationError(f"the record and the files of the release differ in {', '.join(differing)}")


def _weights(layout: Layout, folder: Path) -> list[Descriptor]:
    """Store weight files as raw layers, one a file (ModelPack media types; the spec advises no compression)."""
    kinds = {
        ".safetensors": "weight",
        ".json": "weight.config",
        ".jinja": "weight.config",
        ".txt": "weight.config",
        ".model": "weight.config",
    }
    return [
        layout.put_file(
            f"application/vnd.cncf.model.{kinds.get(path.suffix, 'doc')}.v1.raw", path, {FILE_PATH: str(path.relative_to(folder))}
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _model_config(layout: Layout, record: JSON) -> Descriptor:
    """Store the ModelPack config (model-spec v1 config.md): what the model is, and the digests of its layers."""
    model = record["model"]
    config = {
        "descriptor": {
            "name": model["name"],
            "family": model["family"],
            "vendor": model["vendor"],
            "licenses": [model["license"]],
        },
        "modelfs": {"type": "layers", "diffIds": [file["sha256"] for _, file in sorted(record["weights"]["files"].items())]},
        "config": {"architecture": "transformer", "format": "safetensors", "precision": record["precision"]},
    }
    return layout.put_json(MODEL_CONFIG, config)


def cell_of(layout: Layout, entry: Descriptor) -> str:
    """Return the id of the cell that a release index says it is. Raises VerificationError where it does not say a sound one."""
    index = layout.read(entry)
    annotations = index.get("annotations") if isinstance(index, dict) else None
    cell = annotations.get(CELL) if isinstance(annotations, dict) else None
    try:
        split_cell(str(cell))
    except ValueError as problem:
        raise VerificationError(f"{entry.digest} is not a release: it names the cell {cell!r}") from problem
    return str(cell)
