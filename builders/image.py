"""The serving image: a Dockerfile and a lock rendered from what is pinned, built with no network, normalised into one OCI layout."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tomli_w

from release import oci
from release.builders.layer import debris
from release.builders.normalise import docker_archive, normalise
from release.containers import Engine
from release.errors import EngineError
from release.oci import link_or_copy
from release.progress import Line
from release.templates.render import render

TAG: Final = "image"
"""The name of the image inside its layout."""
WHEELS: Final = "wheels"
"""The folder of the context and of the first layers from which wheels are installed."""
BUILD_LABEL: Final = "org.release.build"
UNSENT: Final = (".git", ".env", ".netrc", ".docker")
"""Names that stay out of what the engine is sent, at any depth: histories and logins that somebody left in a tree."""


def pylock(wheels: Sequence[Mapping[str, Any]], python: str) -> str:
    """Return wheels as a pylock.toml (PEP 751), every one by relative path, size and digest; no address of an index."""
    packages = [
        {
            "name": wheel["name"],
            "version": wheel["version"],
            "wheels": [
                {
                    "path": f"wheels/{wheel['file']}",
                    "size": wheel["bytes"],
                    "hashes": {"sha256": wheel["sha256"].removeprefix("sha256:")},
                }
            ],
        }
        for wheel in wheels
    ]
    document = {"lock-version": "1.0", "requires-python": f"=={python}.*", "created-by": "release", "packages": packages}
    return tomli_w.dumps(document)


def requirements(wheels: Sequence[Mapping[str, Any]]) -> str:
    """Return wheels as pip requirements with digests, pip itself left out: it only installs."""
    return "".join(
        f"{wheel['name']}=={wheel['version']} --hash={wheel['sha256']}\n" for wheel in wheels if wheel["name"] != "pip"
    )


def installer(wheels: Sequence[Mapping[str, Any]]) -> str:
    """Return the file of the pip wheel, which installs the others out of itself. Raises EngineError where it is not pinned."""
    for wheel in wheels:
        if wheel["name"] == "pip":
            return str(wheel["file"])
    raise EngineError("the pins do not contain pip, which installs them", next_step="add a pip==… line to the pins file")


def dockerfile(
    template: str,
    *,
    base: str,
    labels: Mapping[str, str],
    wheels: Sequence[Mapping[str, Any]] = (),
    note: str = "",
    files: Sequence[str] = (),
    sources: Sequence[Mapping[str, Any]] = (),
    packages: Mapping[str, str] | None = None,
) -> str:
    """Return the rendered Dockerfile.

    `wheels` are installed by the pip among them, `files` lie under files/ of the context, `sources` (name and folders to install) under
    sources/; `packages` are what the base image must bring, by version; `note` says where an unpinned base comes from.
    """
    return render(
        template,
        {
            "base": base,
            "note": note,
            "installer": installer(wheels) if wheels else None,
            "labels": labels,
            "files": files,
            "sources": sources,
            "packages": packages or {},
        },
    )


def build_image(
    engine: Engine,
    *,
    rendered: Path,
    wheels: Sequence[Path],
    sources: Path,
    labels: Mapping[str, str],
    base: Mapping[str, Any],
    epoch: int,
    key: str,
    use_cache: bool,
    out: Path,
    scratch: Path,
    line: Line,
) -> dict[str, Any]:
    """Build, save and normalise the image into an OCI layout under `out`; return manifest, config, layers and compressor.

    `wheels` are folders of them, `sources` is the folder of restored trees, which need not be there.

    The engine keeps nothing of the first build: what is served and published is the normalised image.
    """
    base_diff_ids = base["diff-ids"]
    archive = _saved(engine, rendered, base, wheels, sources, key, use_cache, scratch, line)
    line.note("normalising")
    line.expect(archive.stat().st_size, "bytes")
    layout = oci.Layout.create(out / "layout")
    made = normalise(
        archive,
        layout,
        epoch=epoch,
        base_diff_ids=frozenset(base_diff_ids),
        labels=labels,
        created_by="release",
        drop=left_out,
        on_bytes=line.advance,
    )
    kept = [layer.diff_id for layer in made.layers[: len(base_diff_ids)]]
    if kept != list(base_diff_ids):
        raise EngineError(f"the engine built on the layers {kept}, the base has {list(base_diff_ids)}")
    layout.set_index([made.manifest.named(TAG)])
    return {
        "manifest": made.manifest.to_json(),
        "config": made.config_digest,
        "layers": [
            {"diff-id": layer.diff_id, "digest": layer.digest, "bytes": layer.size, "unpacked": layer.uncompressed_size}
            for layer in made.layers
        ],
        "compressor": made.compressor,
        "built-with": f"{engine.kind} {engine.version}",
    }


def _saved(
    engine: Engine,
    rendered: Path,
    base: Mapping[str, Any],
    wheels: Sequence[Path],
    sources: Path,
    key: str,
    use_cache: bool,
    scratch: Path,
    line: Line,
) -> Path:
    """Build what was rendered and return `docker save` of it; nothing of the build stays in the engine.

    The engine is sent a folder that is put together here, of nothing but the Dockerfile, the wheels, what was rendered and the restored trees
    without `UNSENT`: neither the working folder nor a home is near it.
    """
    context = scratch / "context"
    (context / WHEELS).mkdir(parents=True)
    text = (rendered / "Dockerfile").read_text(encoding="utf-8")
    if base["kind"] == "imported":  # the engine has it by the name under which it was loaded, and by no digest
        text = text.replace(f"FROM {base['pinned']}\n", f"FROM {base['image']}\n", 1)
    (context / "Dockerfile").write_text(text, encoding="utf-8")
    link_or_copy(rendered / "requirements.txt", context / WHEELS / "requirements.txt")
    if (rendered / "files").is_dir():
        shutil.copytree(rendered / "files", context / "files", ignore=shutil.ignore_patterns(*UNSENT))
    if sources.is_dir():
        shutil.copytree(sources, context / "sources", symlinks=True, ignore=shutil.ignore_patterns(*UNSENT))
    for folder in wheels:
        for wheel in folder.glob("*.whl"):
            link_or_copy(wheel, context / WHEELS / wheel.name)
    tag = f"release-build:{key[:24]}"
    build_label = f"{BUILD_LABEL}={key[:24]}"
    try:
        line.note("sending wheels")
        image = engine.build(context, tag=tag, labels={BUILD_LABEL: key[:24]}, use_cache=use_cache, on_line=line.note)
        archive = scratch / "image.tar"
        line.note("saving")
        line.expect(int(engine.inspect(image)["Size"]), "bytes")
        engine.save(image, archive, on_bytes=line.advance)
    finally:
        engine.remove_images(build_label)
    return archive


def left_out(name: str, layer: Collection[str]) -> bool:
    """Say whether a path of a layer stays out of the release: the wheels that were installed, and what every build leaves behind."""
    return name == WHEELS or name.startswith(f"{WHEELS}/") or debris(name, layer)


def provide_image(facts: Mapping[str, Any], folder: Path, engine: Engine, line: Line) -> str:
    """See to it that the engine holds the normalised image and return its id, which is its config's digest."""
    layout, image = oci.Layout.open(folder / "layout"), str(facts["config"])
    line.note("loading the image into the engine")
    load_image(engine, layout, layout.find(TAG), image)
    return image


def load_image(engine: Engine, layout: oci.Layout, manifest: oci.Descriptor, image: str) -> None:
    """Load an image of a layout into the engine unless it is there under its id. Raises EngineError."""
    if not engine.has(image):
        engine.load(docker_archive(layout, manifest), image)
