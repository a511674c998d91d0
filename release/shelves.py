"""Where finished stages lie for others: a repository of an OCI registry, or a folder that several machines see. Nothing is taken on trust."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote, urlsplit

from release.errors import PublishError, StoreError, UsageError, VerificationError
from release.oci import CHUNK, IMAGE_MANIFEST, METADATA_LIMIT, Descriptor, Layout, sha256_file
from release.types.words import bared

if TYPE_CHECKING:
    from release.publish.distribution import Registry

SCHEMES: Final = "oci://HOST/NAMESPACE/NAME, or file:///a/shared/folder"


class Shelf(Protocol):
    """Entries by key, each a manifest that names blobs by digest. `where` is how a person knows the place."""

    where: str

    def find(self, key: str) -> bytes | None:
        """Return the manifest of a key, None where there is none."""
        ...

    def get(self, blob: Descriptor, into: Layout) -> None:
        """Bring a blob into a layout, whole and with the digest that it should have, or raise VerificationError."""
        ...

    def put(self, blob: Descriptor, path: Path) -> None:
        """Take a file as a blob."""
        ...

    def enter(self, key: str, manifest: bytes) -> None:
        """Make a manifest, whose blobs are all there, the entry of a key."""
        ...


def shelf_at(address: str) -> Shelf:
    """Return the shelf at an address. Raises UsageError for what is none, and for a folder that is not there."""
    if address.startswith("oci://"):
        return RegistryShelf(address.removeprefix("oci://"))
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return FolderShelf(Path(unquote(parts.path)))
    raise UsageError(f"{bared(address)} is no remote store", next_step=f"write {SCHEMES}")


class RegistryShelf:
    """A repository: a key is a tag, a file of an entry is a blob. Credentials are those that the user keeps for the host."""

    def __init__(self, name: str) -> None:
        from release.publish.reference import Reference

        self.place = Reference.parse(name)
        if self.place.tag or self.place.digest:
            raise UsageError(
                f"{self.place} names one artifact", next_step="a remote store is a whole repository: leave tag and digest out"
            )
        self.where = str(self.place)
        self._each = threading.local()
        self._spoiled: set[str] = set()
        """Digests under which the registry was seen to have something else."""

    @property
    def registry(self) -> Registry:
        """This thread's own connection: stages end at the same time."""
        if not hasattr(self._each, "registry"):
            from release.publish.distribution import Registry

            self._each.registry = Registry.at(self.place)
        found: Registry = self._each.registry
        return found

    def find(self, key: str) -> bytes | None:
        """Return the manifest under the tag `key`."""
        found = self.registry.find_manifest(key)
        return found[1] if found else None

    def get(self, blob: Descriptor, into: Layout) -> None:
        """Download a blob; what the layout has is not fetched again. One that was removed from an entry is as bad as a spoiled one."""
        if not into.blob(blob.digest).is_file():
            try:
                self.registry.get_blob(blob, into)
            except VerificationError:
                self._spoiled.add(blob.digest)
                raise
            except PublishError as problem:
                if self.registry.has_blob(blob):
                    raise
                raise VerificationError(f"{blob.digest} is not there", where=self.where) from problem

    def put(self, blob: Descriptor, path: Path) -> None:
        """Upload a file, unless the registry has it.

        What it has spoiled is uploaded again and looked at: a registry may well say that it took it, and keep what it had (CNCF
        Distribution does). Raises VerificationError then.
        """
        self.registry.put_blob(blob, path, anew=blob.digest in self._spoiled)
        if blob.digest in self._spoiled:
            try:
                with tempfile.TemporaryDirectory(prefix="again-", dir=path.parent) as folder:
                    self.registry.get_blob(blob, Layout.create(Path(folder)))
            except VerificationError as problem:
                raise VerificationError(
                    f"the registry keeps what it has spoiled, though the right bytes were uploaded: {problem.message}; "
                    "only who runs it can remove that from its storage",
                    where=self.where,
                ) from problem
            self._spoiled.discard(blob.digest)

    def enter(self, key: str, manifest: bytes) -> None:
        """Upload the manifest under the tag `key`."""
        self.registry.put_manifest(key, IMAGE_MANIFEST, manifest)


class FolderShelf:
    """A folder: `blobs/<hex>` and `entries/<key>`; each file appears by a rename, whole or not at all."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UsageError(f"there is no folder {path}", next_step="make it, or mount it")
        self.path, self.where = path, str(path)

    def find(self, key: str) -> bytes | None:
        """Return the manifest of a key. Raises VerificationError for one that is too long."""
        path = self._place("entries", key)
        if not path.is_file():
            return None
        with self._refusals(), path.open("rb") as stream:
            data = stream.read(METADATA_LIMIT + 1)
        if len(data) > METADATA_LIMIT:
            raise VerificationError(f"the manifest of {key} has more than {METADATA_LIMIT} bytes", where=self.where)
        return data

    def get(self, blob: Descriptor, into: Layout) -> None:
        """Copy a blob; its digest is taken of the very bytes that are copied."""
        path = self._place("blobs", blob.digest.removeprefix("sha256:"))
        if into.blob(blob.digest).is_file():
            return
        if not path.is_file() or path.stat().st_size != blob.size:
            raise VerificationError(f"{blob.digest} is not there with its {blob.size} bytes", where=self.where)
        with self._refusals(), path.open("rb") as source, into.incoming() as stream:
            self._copy(source, stream, blob)
            into.adopt(stream, blob.digest)

    def put(self, blob: Descriptor, path: Path) -> None:
        """Copy a file, unless the very content is there: what lies under its name may be spoiled, and everybody refuses it."""
        target = self._place("blobs", blob.digest.removeprefix("sha256:"))
        with self._refusals():
            if target.is_file() and target.stat().st_size == blob.size and sha256_file(target) == blob.digest:
                return
        with path.open("rb") as source, self._appearing(target) as stream:
            self._copy(source, stream, blob)

    def enter(self, key: str, manifest: bytes) -> None:
        """Write the manifest."""
        with self._appearing(self._place("entries", key)) as stream:
            stream.write(manifest)

    def _place(self, kind: str, name: str) -> Path:
        return self.path / kind / name[:2] / name

    def _copy(self, source: IO[bytes], target: IO[bytes], blob: Descriptor) -> None:
        found, size = hashlib.sha256(), 0
        while piece := source.read(CHUNK):
            found.update(piece)
            size += len(piece)
            if size > blob.size:
                break
            target.write(piece)
        if size != blob.size or f"sha256:{found.hexdigest()}" != blob.digest:
            raise VerificationError(f"{blob.digest} has other content", where=self.where)

    @contextlib.contextmanager
    def _appearing(self, target: Path) -> Iterator[IO[bytes]]:
        with self._refusals():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".incoming-", delete=False) as stream:
                try:
                    yield stream
                    stream.flush()
                    Path(stream.name).chmod(0o444)
                    Path(stream.name).replace(target)
                finally:
                    Path(stream.name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise StoreError(
                f"{problem.filename or self.where} cannot be used: {problem.strerror}", where=self.where
            ) from problem
