"""Turning what an engine built into an image whose digest depends on its content alone, and giving it back to the engine.

The engine's `docker save` archive is read in place and never extracted. Formats: moby image/spec/v1.2 ("docker save"),
OCI image-spec 1.1.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from release import oci
from release.builders import tar
from release.builders.compression import DEFAULT, Compression, unpacked
from release.builders.layer import Drop, Rewritten, debris, inside, rewrite_tar
from release.errors import StageError, VerificationError
from release.oci import LAYER_GZIP, LAYER_TAR, METADATA_LIMIT, Descriptor, Layout, canonical, children

__all__ = ["Image", "Layer", "debris", "docker_archive", "normalise", "rewrite_tar"]

KEPT: Final[Mapping[str, type[Any]]] = {
    "User": str,
    "Env": list,
    "Entrypoint": list,
    "Cmd": list,
    "WorkingDir": str,
    "ExposedPorts": dict,
    "Volumes": dict,
    "StopSignal": str,
}
"""What of the engine's container config an image keeps: the keys that the OCI image-spec knows, less the labels."""

LINK_LIMIT: Final = 8
SAVED_LIMIT: Final = 10_000
"""Members that a docker-archive may have, with a KiB of names for each: an engine writes at most four for each of at most 128 layers."""


@dataclass(frozen=True)
class Layer:
    """One layer of an image: digest and bytes of its tar, digest and bytes of the blob in the layout."""

    diff_id: str
    digest: str
    size: int
    uncompressed_size: int


@dataclass(frozen=True)
class Image:
    """An image in a layout, and what compressed its layers: `igzip-1 (isal 1.9.1)`. An engine calls it by `config_digest`."""

    manifest: Descriptor
    config_digest: str
    layers: tuple[Layer, ...]
    compressor: str


@dataclass(frozen=True)
class _Saved:
    """What a docker-archive holds: the image's config, parsed and as it is, its tags, and its layers with the diff_ids of the config."""

    config: dict[str, Any]
    raw: bytes
    tags: tuple[str, ...]
    layers: tuple[tuple[str, BinaryIO], ...]


def normalise(
    archive: Path,
    layout: Layout,
    *,
    epoch: int,
    base_diff_ids: frozenset[str],
    labels: Mapping[str, str],
    created_by: str,
    compression: Compression = DEFAULT,
    drop: Drop = debris,
    on_bytes: Callable[[int], None] | None = None,
) -> Image:
    """Store the one image of a docker-archive in `layout`, normalised, and return it; equal files give equal digests.

    Every layer is rewritten (`rewrite_tar`), but those in `base_diff_ids` keep their very bytes; a layer of which nothing is left
    is gone. The config keeps architecture, os and the keys in KEPT; its labels are `labels` and no others, its times are `epoch`
    (seconds), its history is one entry `created_by` a layer. `on_bytes` hears of the bytes of layer content as they are read.

    Needs free disk for the compressed layers, and for the largest layer where the archive has it compressed. The layout's
    index is left to the caller. Raises StageError for an archive that is not one sound image; the layout then has no new blob.
    """
    try:
        with archive.open("rb") as stream, ExitStack() as stack:
            saved = _open(stream)
            finished: list[tuple[Layer, IO[bytes]]] = []
            for diff_id, content in saved.layers:
                if diff_id in base_diff_ids:
                    write = partial(_repeat, diff_id=diff_id, on_bytes=on_bytes)
                else:
                    write = partial(rewrite_tar, epoch=epoch, drop=drop, on_bytes=on_bytes)
                incoming = stack.enter_context(layout.incoming())
                with layout.incoming() as spool:
                    layer = _compress(_uncompressed(content, spool), incoming, compression, write)
                if layer is not None:
                    finished.append((layer, incoming))
            if not finished:
                raise StageError("nothing is left of the image: every layer is empty")
            config = canonical(_config(saved.config, [layer.diff_id for layer, _ in finished], epoch, labels, created_by))
            for layer, incoming in finished:
                layout.adopt(incoming, layer.digest)
    except OSError as problem:
        raise StageError(f"{archive} cannot be normalised: {problem}") from problem
    except StageError as problem:
        problem.located(archive.name)
        raise
    layers = tuple(layer for layer, _ in finished)
    return _finish(layout, config, layers, compression)


def adopt(
    archive: Path, layout: Layout, *, compression: Compression = DEFAULT, on_bytes: Callable[[int], None] | None = None
) -> tuple[Image, tuple[str, ...]]:
    """Store the one image of a docker-archive in `layout` as it is, config and layers, and return it with the tags that it was saved under.

    Every layer must be a tar, and have the digest that the config gives it. Raises StageError as `normalise` does.
    """
    try:
        with archive.open("rb") as stream, ExitStack() as stack:
            saved = _open(stream)
            finished: list[tuple[Layer, IO[bytes]]] = []
            for diff_id, content in saved.layers:
                incoming = stack.enter_context(layout.incoming())
                with layout.incoming() as spool:
                    write = partial(_repeat, diff_id=diff_id, on_bytes=on_bytes)
                    layer = _compress(_uncompressed(content, spool), incoming, compression, _tar(diff_id, write))
                assert layer is not None
                finished.append((layer, incoming))
            for layer, incoming in finished:
                layout.adopt(incoming, layer.digest)
    except OSError as problem:
        raise StageError(f"{archive} cannot be read: {problem}") from problem
    except StageError as problem:
        problem.located(archive.name)
        raise
    return _finish(layout, saved.raw, tuple(layer for layer, _ in finished), compression), saved.tags


def _finish(layout: Layout, config: bytes, layers: tuple[Layer, ...], compression: Compression) -> Image:
    stored = layout.put(oci.IMAGE_CONFIG, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.IMAGE_MANIFEST,
        "config": stored.to_json(),
        "layers": [Descriptor(compression.media_type, layer.digest, layer.size).to_json() for layer in layers],
    }
    document = json.loads(config)
    platform = {"architecture": document["architecture"], "os": document["os"]}
    descriptor = replace(layout.put_json(oci.IMAGE_MANIFEST, manifest), platform=platform)
    return Image(descriptor, stored.digest, layers, str(compression))


class _Digest:
    """A sink that hashes and counts what it hands on."""

    def __init__(self, target: tar.Sink) -> None:
        self._target, self._hash, self.size = target, hashlib.sha256(), 0

    def write(self, data: bytes, /) -> int:
        self._target.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _compress(
    content: BinaryIO, incoming: IO[bytes], compression: Compression, write: Callable[[BinaryIO, tar.Sink], Rewritten]
) -> Layer | None:
    """Compress what `write` makes of `content` into `incoming`, hashing both sides in one pass; None where nothing is left."""
    blob = _Digest(incoming)
    compressor = compression.open(blob)
    try:
        plain = _Digest(compressor)
        blocks = tar.Blocks(plain)
        rewritten = write(content, blocks)
        blocks.flush()
    finally:
        compressor.close()
    return Layer(plain.digest, blob.digest, blob.size, plain.size) if rewritten.kept else None


def _repeat(content: BinaryIO, target: tar.Sink, *, diff_id: str, on_bytes: Callable[[int], None] | None) -> Rewritten:
    """Write a layer as it is. Raises StageError unless it is the one that `diff_id` names."""
    copied = _Digest(target)
    tar.copy(content, 0, content.seek(0, os.SEEK_END), copied, on_bytes)
    if copied.digest != diff_id:
        raise StageError(f"the base layer {diff_id} of the archive has the content of {copied.digest}")
    return Rewritten(kept=1, dropped=0)


def _tar(diff_id: str, write: Callable[[BinaryIO, tar.Sink], Rewritten]) -> Callable[[BinaryIO, tar.Sink], Rewritten]:
    """Return `write` for a layer of which every header was read before: an engine that loads the image would fall over it later."""

    def checked(content: BinaryIO, target: tar.Sink) -> Rewritten:
        try:
            for _ in tar.read_members(content):
                pass
        except StageError as problem:
            raise StageError(f"the layer {diff_id} is no sound tar: {problem.message}", next_step=problem.next_step) from problem
        return write(content, target)

    return checked


def _uncompressed(content: BinaryIO, spool: IO[bytes]) -> BinaryIO:
    """Return a layer as a plain tar, by way of `spool` where the engine saved it compressed, as containerd's store does."""
    magic = content.read(4)
    content.seek(0)
    if magic == b"\x28\xb5\x2f\xfd":
        raise StageError(
            "a layer of the archive is compressed with zstd", next_step="save the image with uncompressed or gzip layers"
        )
    if magic[:2] != b"\x1f\x8b":
        return content
    try:
        for chunk in unpacked(content):
            spool.write(chunk)
    except ValueError as problem:
        raise StageError(f"a layer of the archive is unusable: {problem}") from problem
    spool.seek(0)
    return cast(BinaryIO, spool)


def _open(stream: BinaryIO) -> _Saved:
    """Read manifest.json and the config of a docker-archive and find its layers."""
    members: dict[str, tar.Member] = {}
    for member in tar.read_members(stream, most=SAVED_LIMIT, weight=SAVED_LIMIT << 10):
        if member.name.startswith("/"):
            raise StageError(f"the archive has the absolute path {member.name!r}")
        members[inside(member.name)] = member
    if "manifest.json" not in members:
        raise StageError("the archive has no manifest.json: it is no docker-archive", next_step="save it with `docker save`")
    document = _json(stream, members, "manifest.json")
    if not isinstance(document, list) or len(document) != 1 or not isinstance(document[0], dict):
        raise StageError("manifest.json of the archive does not describe exactly one image", next_step="save one image alone")
    path, layers = document[0].get("Config"), document[0].get("Layers")
    if not isinstance(path, str) or not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise StageError("manifest.json of the archive names no config or no layers")
    raw, config = _bytes(stream, members, path), _json(stream, members, path)
    tags = tuple(str(tag) for tag in document[0].get("RepoTags") or ())
    try:
        diff_ids = config["rootfs"]["diff_ids"]
        sound = all(oci.DIGEST.fullmatch(diff_id) for diff_id in diff_ids) and len(diff_ids) == len(layers)
    except (KeyError, TypeError) as problem:
        raise StageError(f"{path} of the archive is no image config: {problem!r}") from problem
    if not sound:
        raise StageError(f"{path} of the archive has {len(diff_ids)} diff_ids for {len(layers)} layers, or malformed ones")
    found = [tar.section(stream, _find(members, layer)) for layer in layers]
    return _Saved(config, raw, tags, tuple(zip(diff_ids, found, strict=True)))


def _find(members: Mapping[str, tar.Member], path: str) -> tar.Member:
    """Return the regular file that `path` leads to inside the archive, through hard and symbolic links."""
    if path.startswith("/"):
        raise StageError(f"the archive refers to the absolute path {path!r}")
    member = members.get(inside(path))
    for _ in range(LINK_LIMIT):
        if member is None:
            raise StageError(f"{path} is missing from the archive")
        if member.type == tar.FILE:
            return member
        if member.type not in (tar.LINK, tar.SYMLINK) or member.link.startswith("/"):
            raise StageError(f"{path} of the archive is neither a file nor a link to one")
        above = posixpath.dirname(inside(member.name)) if member.type == tar.SYMLINK else ""
        target = posixpath.normpath(posixpath.join(above, member.link))
        member = members.get(inside(target))
    raise StageError(f"{path} of the archive is a link that leads through more than {LINK_LIMIT} others")


def _bytes(stream: BinaryIO, members: Mapping[str, tar.Member], path: str) -> bytes:
    member = _find(members, path)
    if member.size > METADATA_LIMIT:
        raise StageError(f"{path} of the archive has {member.size} bytes, the limit is {METADATA_LIMIT}")
    return tar.section(stream, member).read()


def _json(stream: BinaryIO, members: Mapping[str, tar.Member], path: str) -> Any:
    try:
        return json.loads(_bytes(stream, members, path))
    except (ValueError, RecursionError) as problem:
        raise StageError(f"{path} of the archive is not JSON: {problem}") from problem


def _config(
    config: Mapping[str, Any], diff_ids: list[str], epoch: int, labels: Mapping[str, str], created_by: str
) -> dict[str, Any]:
    """Return the OCI image config that keeps of the engine's what makes the container, and nothing of how it was built."""
    engine = config.get("config") or {}
    kept: dict[str, Any] = {}
    for key, kind in KEPT.items():
        value = engine.get(key) if isinstance(engine, dict) else None
        if value and (not isinstance(value, kind) or (kind is list and not all(isinstance(item, str) for item in value))):
            raise StageError(f"the archive's image config has {key} = {str(value)[:80]!r}, which is no {kind.__name__}")
        if value:
            kept[key] = value
    if labels:
        kept["Labels"] = dict(labels)
    architecture, system = config.get("architecture"), config.get("os")
    if not isinstance(architecture, str) or not isinstance(system, str) or not isinstance(engine, dict):
        raise StageError("the archive's image config has no architecture, no os or no config")
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "architecture": architecture,
        "os": system,
        "created": created,
        "config": kept,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": created, "created_by": created_by} for _ in diff_ids],
    }


def docker_archive(layout: Layout, manifest: Descriptor, *, have: frozenset[str] = frozenset(), tag: str = "") -> Iterator[bytes]:
    """Yield a docker-archive of an image in `layout`, in chunks, for `docker load` and `podman load`.

    The engine calls the image by the digest of its config. Layers go unpacked: dockerd 20.10 and podman 4.3 take gzip too, but
    unpack it several times slower than it is done here. A tar header wants the size first, so each gzip layer is read twice.
    `have` are diff_ids of layers that the engine holds; the lowest layers that are all in it are left out, which dockerd takes
    as long as it holds them as that very chain (podman wants every layer: give it none). `tag` is a `name:tag` for the image.

    Raises VerificationError, perhaps in the middle, where the layout is not what the manifest says.
    """
    config, *layers = children(manifest, layout)
    document = layout.read(config)
    diff_ids = document["rootfs"]["diff_ids"]
    if len(diff_ids) != len(layers):
        raise VerificationError(f"image {manifest.digest} has {len(layers)} layers and {len(diff_ids)} diff_ids")
    names = [f"{diff_id.removeprefix('sha256:')}.tar" for diff_id in diff_ids]
    name = f"{config.digest.removeprefix('sha256:')}.json"
    listing = canonical([{"Config": name, "RepoTags": [tag] if tag else None, "Layers": names}])
    yield from _member("manifest.json", len(listing), [listing])
    yield from _member(name, config.size, [layout.blob(config.digest).read_bytes()])
    held = next((n for n, diff_id in enumerate(diff_ids) if diff_id not in have), len(diff_ids))
    for path, layer in dict(zip(names[held:], layers[held:], strict=True)).items():
        size = layer.size if layer.media_type == LAYER_TAR else sum(map(len, _content(layout, layer)))
        yield from _member(path, size, _content(layout, layer))
    yield tar.END


def _member(name: str, size: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield tar.header(tar.Member(name, tar.FILE, 0o644, 0, 0, size, 0, "", 0, 0), 0)
    yield from chunks
    yield tar.padding(size)


def _content(layout: Layout, layer: Descriptor) -> Iterator[bytes]:
    """Yield the tar of a layer. Raises VerificationError where the blob is missing, damaged or of a kind no layer here has."""
    path = layout.blob(layer.digest)
    if not path.is_file() or path.stat().st_size != layer.size:
        raise VerificationError(f"blob {layer.digest} is missing from {layout.path}, or has not {layer.size} bytes")
    if layer.media_type not in (LAYER_TAR, LAYER_GZIP):
        raise VerificationError(f"layer {layer.digest} is {layer.media_type}, known are {LAYER_TAR} and {LAYER_GZIP}")
    with path.open("rb") as stream:
        try:
            yield from unpacked(stream) if layer.media_type == LAYER_GZIP else iter(partial(stream.read, tar.CHUNK), b"")
        except ValueError as problem:
            raise VerificationError(f"layer {layer.digest} is unusable: {problem}") from problem
