"""An OCI image layout on disk: descriptors, blobs by digest, manifests, one index. Format: OCI image-spec 1.1."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

from release.errors import VerificationError

IMAGE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY_JSON: Final = "application/vnd.oci.empty.v1+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"
TITLE: Final = "org.opencontainers.image.title"

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
METADATA_LIMIT: Final = 4 << 20
"""Bytes that a manifest, an index or a config may have, as registries limit them."""
CHUNK: Final = 1 << 20
NOWHERE: Final = {"architecture": "unknown", "os": "unknown"}
"""Platform of an index entry that is no image, so that engines which choose by platform pass it over."""


def canonical(document: object) -> bytes:
    """Return `document` as JSON bytes with sorted keys and no spaces: equal documents, equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Return the digest of `data`, `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the digest of a file, `sha256:<hex>`, read in constant memory."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of a blob: its media type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    platform: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as the image-spec spells it."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.platform:
            document["platform"] = dict(self.platform)
        return document

    @classmethod
    def from_json(cls, document: object) -> Descriptor:
        """Read a descriptor that a stranger wrote. Raises VerificationError for anything but a sound one."""
        if not isinstance(document, dict):
            raise VerificationError(f"a descriptor is {type(document).__name__}, not an object")
        media_type, digest, size = (document.get(key) for key in ("mediaType", "digest", "size"))
        if not isinstance(media_type, str) or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise VerificationError(f"a descriptor has no usable media type or digest: {str(document)[:200]}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 50:
            raise VerificationError(f"descriptor {digest} has an impossible size {size!r}")
        annotations, platform = document.get("annotations") or {}, document.get("platform") or {}
        if not all(isinstance(m, dict) and all(isinstance(v, str) for v in m.values()) for m in (annotations, platform)):
            platform = {k: v for k, v in platform.items() if isinstance(v, str)} if isinstance(platform, dict) else {}
            annotations = {k: v for k, v in annotations.items() if isinstance(v, str)} if isinstance(annotations, dict) else {}
        artifact_type = document.get("artifactType")
        return cls(media_type, digest, size, annotations, artifact_type if isinstance(artifact_type, str) else "", platform)

    def named(self, tag: str) -> Descriptor:
        """Return the same descriptor as an index entry under `tag`."""
        return replace(self, annotations={**self.annotations, REF_NAME: tag})


class Layout:
    """An OCI image layout folder (`oci-layout`, `index.json`, `blobs/sha256/…`).

    Writing is atomic per blob. Reading checks size and digest of everything that is parsed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Layout:
        """Make an empty layout at `path` (which may exist and be empty) and return it."""
        (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_bytes(canonical({"imageLayoutVersion": "1.0.0"}))
        layout = cls(path)
        layout.set_index([])
        return layout

    @classmethod
    def open(cls, path: Path) -> Layout:
        """Return the layout at `path`. Raises VerificationError where there is none."""
        try:
            version = json.loads(_small(path / "oci-layout"))["imageLayoutVersion"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise VerificationError(f"{path} is not an OCI image layout: {problem}") from problem
        if version != "1.0.0":
            raise VerificationError(f"{path} has OCI layout version {version!r}, known is 1.0.0")
        return cls(path)

    def blob(self, digest: str) -> Path:
        """Return where the blob lies or would lie."""
        if not DIGEST.fullmatch(digest):
            raise VerificationError(f"{digest!r} is not a sha256 digest")
        return self.path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def put(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Store bytes and return their descriptor."""
        descriptor = Descriptor(media_type, sha256(data), len(data), annotations or {})
        target = self.blob(descriptor.digest)
        if not target.exists():
            with self.incoming() as stream:
                stream.write(data)
                stream.flush()
                self._keep(Path(stream.name), target)
        return descriptor

    def put_json(self, media_type: str, document: object, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Store a document in canonical form and return its descriptor."""
        return self.put(media_type, canonical(document), annotations)

    def put_file(self, media_type: str, path: Path, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Store a file, by hard link where the file system allows it, and return its descriptor."""
        descriptor = Descriptor(media_type, sha256_file(path), path.stat().st_size, annotations or {})
        link_or_copy(path, self.blob(descriptor.digest))
        return descriptor

    @contextmanager
    def incoming(self) -> Iterator[IO[bytes]]:
        """Give a temporary file inside the layout, gone afterwards unless `adopt` moved it to its digest."""
        with tempfile.NamedTemporaryFile(dir=self.path / "blobs", prefix=".incoming-", delete=False) as stream:
            try:
                yield stream
            finally:
                Path(stream.name).unlink(missing_ok=True)

    def adopt(self, stream: IO[bytes], digest: str) -> None:
        """Move a finished `incoming` file, whose digest the caller computed, to its place."""
        stream.flush()
        self._keep(Path(stream.name), self.blob(digest))

    @staticmethod
    def _keep(temporary: Path, target: Path) -> None:
        os.chmod(temporary, 0o444)
        os.replace(temporary, target)

    def copy_from(self, other: Layout, descriptor: Descriptor) -> None:
        """Take over a blob of another layout, by hard link where possible."""
        link_or_copy(other.blob(descriptor.digest), self.blob(descriptor.digest))

    def read(self, descriptor: Descriptor) -> Any:
        """Return the JSON document that `descriptor` names. Raises VerificationError unless size and digest agree."""
        if descriptor.size > METADATA_LIMIT:
            raise VerificationError(
                f"{descriptor.digest} claims {descriptor.size} bytes of metadata, the limit is {METADATA_LIMIT}"
            )
        path = self.blob(descriptor.digest)
        try:
            with path.open("rb") as stream:
                data = stream.read(METADATA_LIMIT + 1)
        except FileNotFoundError as problem:
            raise VerificationError(f"blob {descriptor.digest} is missing from {self.path}") from problem
        return parse_verified(data, descriptor)

    def index(self) -> list[Descriptor]:
        """Return the entries of index.json."""
        try:
            document = json.loads(_small(self.path / "index.json"))
            return [Descriptor.from_json(entry) for entry in document["manifests"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise VerificationError(f"{self.path}/index.json cannot be read: {problem}") from problem

    def set_index(self, entries: Sequence[Descriptor]) -> None:
        """Write index.json atomically."""
        document = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entry.to_json() for entry in entries]}
        temporary = self.path / ".index.json"
        temporary.write_bytes(canonical(document))
        os.replace(temporary, self.path / "index.json")

    def find(self, tag: str) -> Descriptor:
        """Return the index entry under `tag`. Raises VerificationError where there is none."""
        for entry in self.index():
            if entry.annotations.get(REF_NAME) == tag:
                return entry
        raise VerificationError(f"{self.path} has nothing under the tag {tag!r}")

    def verify(self, descriptor: Descriptor, on_bytes: Callable[[int], None] | None = None) -> None:
        """Check size and digest of a blob and, for a manifest or an index, of all that it names.

        `on_bytes(n)` hears of every n bytes hashed. Raises VerificationError with the first blob that differs.
        """
        stack, seen = [descriptor], set()
        while stack:
            found = stack.pop()
            if (what := (found.digest, found.media_type, found.size)) not in seen:
                seen.add(what)
                self._verify_blob(found, on_bytes)
                stack += children(found, self)

    def _verify_blob(self, descriptor: Descriptor, on_bytes: Callable[[int], None] | None) -> None:
        path = self.blob(descriptor.digest)
        if not path.is_file():
            raise VerificationError(f"blob {descriptor.digest} is missing from {self.path}")
        if path.stat().st_size != descriptor.size:
            raise VerificationError(
                f"blob {descriptor.digest} has {path.stat().st_size} bytes, its descriptor says {descriptor.size}"
            )
        found = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
                if on_bytes:
                    on_bytes(len(chunk))
        if "sha256:" + found.hexdigest() != descriptor.digest:
            raise VerificationError(f"blob {descriptor.digest} has the content of sha256:{found.hexdigest()}")


def _small(path: Path) -> bytes:
    """Return a small regular file; OSError for anything else (a pipe, a device) and ValueError for a large one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not a file")
    with path.open("rb") as stream:
        data = stream.read(METADATA_LIMIT + 1)
    if len(data) > METADATA_LIMIT:
        raise ValueError(f"{path.name} is larger than {METADATA_LIMIT} bytes")
    return data


def parse_verified(data: bytes, descriptor: Descriptor) -> Any:
    """Return JSON `data` after its size and digest were found to be those of `descriptor`; VerificationError otherwise."""
    if len(data) != descriptor.size or sha256(data) != descriptor.digest:
        raise VerificationError(
            f"{descriptor.digest} ({descriptor.size} bytes) has the content of {sha256(data)} ({len(data)} bytes)"
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise VerificationError(f"{descriptor.digest} is not JSON: {problem}") from problem


def children(descriptor: Descriptor, layout: Layout) -> list[Descriptor]:
    """Return the descriptors inside a manifest or an index (config and layers, or entries); none for any other blob."""
    if descriptor.media_type not in (IMAGE_MANIFEST, IMAGE_INDEX):
        return []
    document = layout.read(descriptor)
    if not isinstance(document, dict):
        raise VerificationError(f"{descriptor.digest} is not a manifest")
    if descriptor.media_type == IMAGE_INDEX:
        entries = document.get("manifests")
    else:
        layers = document.get("layers")
        entries = [document.get("config"), *layers] if isinstance(layers, list) else None
    if not isinstance(entries, list):
        raise VerificationError(f"{descriptor.digest} is not a manifest")
    return [Descriptor.from_json(entry) for entry in entries]


def put_artifact(
    layout: Layout,
    artifact_type: str,
    layers: Sequence[Descriptor],
    *,
    config: Descriptor | None = None,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Descriptor:
    """Store an artifact manifest (image-spec 1.1 "artifact usage"; the config is the empty JSON object unless given)."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": artifact_type,
        "config": (config or layout.put(EMPTY_JSON, b"{}")).to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    if subject is not None:
        manifest["subject"] = Descriptor(subject.media_type, subject.digest, subject.size).to_json()
    if annotations:
        manifest["annotations"] = dict(annotations)
    stored = layout.put_json(IMAGE_MANIFEST, manifest)
    return replace(stored, artifact_type=artifact_type, annotations=dict(annotations or {}))


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same content as `source`: a hard link on one file system, else a copy; never half a file."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
