"""A repository behind the distribution API: blobs, manifests and referrers, none taken on trust (distribution-spec 1.1)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import requests

from release.errors import PublishError, StoreError, VerificationError
from release.oci import DIGEST, IMAGE_INDEX, IMAGE_MANIFEST, METADATA_LIMIT, Descriptor, Layout, canonical, sha256
from release.publish.credentials import Credentials, stored_credentials
from release.publish.reference import Reference
from release.publish.transport import Broken, Transport, pieces
from release.publish.upload import Upload

MANIFESTS: Final = (IMAGE_MANIFEST, IMAGE_INDEX)
DOCKER_MANIFESTS: Final = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ACCEPT: Final = ", ".join(MANIFESTS + DOCKER_MANIFESTS)
"""All four, always: a registry that misses one converts the manifest to schema1, which has another digest."""
REFERRERS_LIMIT: Final = 10_000
PAGES_LIMIT: Final = 100
ATTACH_ATTEMPTS: Final = 12
SETTLE: Final = 0.1
"""Seconds, at least, between writing a fallback index and reading it again: longer than another client's read and write."""


class Registry:
    """One repository of one registry: blobs, manifests and referrers, each checked against its digest on the way in and out.

    Credentials are those the user keeps for the host, unless given. `options` go to Transport (timeout, attempts, pause).
    Raises UsageError for a host or a name that no reference could have.
    """

    def __init__(self, host: str, name: str, credentials: Credentials | None = None, **options: Any) -> None:
        place = Reference(host, name)
        self.http = Transport(place.host, place.name, credentials or stored_credentials(host), **options)
        self.where = self.http.where
        self.sent: list[int] = []
        """The sizes of the blobs that were uploaded, rather than found or taken over."""

    @classmethod
    def at(cls, reference: Reference) -> Registry:
        """Return the repository that `reference` is in."""
        return cls(reference.host, reference.name)

    # Blobs

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the registry has the blob. Raises VerificationError where it has it with another size."""
        response = self.http.request("HEAD", f"blobs/{descriptor.digest}", expect=(200, 404))
        if response.status_code == 200:
            self._check_length(response, descriptor, descriptor.size)
        return response.status_code == 200

    def put_blob(
        self,
        descriptor: Descriptor,
        path: Path,
        on_bytes: Callable[[int], None] = lambda size: None,
        *,
        neighbour: str = "",
        anew: bool = False,
    ) -> bool:
        """Upload a file, unless the registry has it, also in its repository `neighbour`; return whether it had to be sent.

        With `anew` it is sent in any case: what the registry has was seen to be something else.
        Raises VerificationError where the file is not what `descriptor` says, by size here and by digest at the registry.
        """
        if not anew and self.has_blob(descriptor):
            on_bytes(descriptor.size)
            return False
        response = Upload(self.http, descriptor, path, on_bytes).send(neighbour)
        if (response is None or "Docker-Content-Digest" not in response.headers) and not self.has_blob(descriptor):
            raise PublishError(f"the registry does not have blob {descriptor.digest} after its upload", where=self.where)
        if response is not None:
            self._check_digest(response, descriptor.digest)
            self.sent.append(descriptor.size)
        return response is not None

    def get_blob(self, descriptor: Descriptor, layout: Layout, on_bytes: Callable[[int], None] = lambda size: None) -> None:
        """Download a blob into `layout`; it appears there whole and verified, or not at all.

        A connection that breaks is taken up where it broke. Raises VerificationError at the first byte too many, or for other
        content, StoreError where the disk has no room for it.
        """
        if descriptor.size > shutil.disk_usage(layout.path).free:
            raise StoreError(f"{layout.path} has no room for the {descriptor.size} bytes of {descriptor.digest}")
        with layout.incoming() as stream:
            arrival = Arrival(descriptor, stream, on_bytes)
            for attempt in range(self.http.attempts):
                if self._receive(arrival):
                    break
                self.http.rest(attempt)
            else:
                raise PublishError(f"the connection keeps breaking in blob {descriptor.digest}", where=self.where)
            arrival.check()
            layout.adopt(stream, descriptor.digest)

    def _receive(self, arrival: Arrival) -> bool:
        """Take what one connection gives, and say whether the blob is through."""
        wanted, done = arrival.descriptor, arrival.done
        headers = {"Range": f"bytes={done}-"} if done else {}
        response = self.http.request("GET", f"blobs/{wanted.digest}", expect=(200, 206) if done else (200,), headers=headers)
        with response:
            if response.status_code == 200:
                arrival.restart()
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise PublishError(f"the registry sends another part of {wanted.digest} than was asked for", where=self.where)
            self._check_length(response, wanted, wanted.size - arrival.done)
            try:
                for piece in pieces(response, wanted.size - arrival.done + 1):
                    arrival.write(piece)
            except Broken:
                return arrival.done == wanted.size
        return True

    # Manifests

    def digest_of(self, tag: str) -> str | None:
        """Return the digest that `tag` has in the registry, None where there is no such tag."""
        response = self.http.request("HEAD", f"manifests/{tag}", expect=(200, 404), headers={"Accept": ACCEPT})
        if response.status_code == 404:
            return None
        digest = response.headers.get("Docker-Content-Digest", "")
        return digest if DIGEST.fullmatch(digest) else self.get_manifest(tag)[0].digest

    def find_manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes] | None:
        """Return a manifest or an index with its descriptor, or None where the registry has none.

        Checked: one of the four media types, at most 4 MiB, the digest that was asked for (for a tag: that the registry names),
        and that the document is of the kind its media type says. Raises VerificationError otherwise.
        """
        response, data = self.http.fetch(f"manifests/{tag_or_digest}", expect=(200, 404), limit=METADATA_LIMIT, accept=ACCEPT)
        if response.status_code == 404:
            return None
        media_type = content_type(response)
        if media_type not in MANIFESTS + DOCKER_MANIFESTS:
            shown = "schema1" if "v1+" in media_type and "docker" in media_type else "something else"
            raise VerificationError(f"the registry answers with {shown}, not with a manifest or an index", where=self.where)
        descriptor = Descriptor(media_type, sha256(data), len(data))
        if DIGEST.fullmatch(tag_or_digest) and tag_or_digest != descriptor.digest:
            raise VerificationError(f"{tag_or_digest} has the content of {descriptor.digest}", where=self.where)
        self._check_digest(response, descriptor.digest)
        check_shape(descriptor, parse(data, descriptor.digest))
        return descriptor, data

    def get_manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes]:
        """Return a manifest or an index as `find_manifest` does. Raises PublishError where the registry has none."""
        found = self.find_manifest(tag_or_digest)
        if found is None:
            raise PublishError(f"the registry has no {tag_or_digest}", where=self.where, next_step="check name, tag and digest")
        return found

    def put_manifest(self, tag_or_digest: str, media_type: str, data: bytes) -> bool:
        """Upload a manifest or an index; return whether the registry says that it lists it as a referrer itself."""
        headers = {"Content-Type": media_type}
        response = self.http.request("PUT", f"manifests/{tag_or_digest}", expect=(201,), headers=headers, body=data)
        self._check_digest(response, sha256(data))
        return bool(response.headers.get("OCI-Subject"))

    # Referrers

    def referrers(self, subject: str) -> list[Descriptor]:
        """Return what refers to the manifest with digest `subject`, from the referrers API or else from the fallback tag.

        What an entry says of its artifact type is a hint (cosign writes a wrong one): open the manifest. Raises VerificationError
        for more than REFERRERS_LIMIT entries, pages that go round, or pages on another host.
        """
        found: list[Descriptor] = []
        url, seen = f"referrers/{subject}", set[str]()
        while url:
            if url in seen or len(seen) == PAGES_LIMIT:
                raise VerificationError("the registry's list of referrers does not end", where=self.where)
            first = not seen
            seen.add(url)
            response, data = self.http.fetch(url, expect=(200, 404), limit=METADATA_LIMIT, accept=IMAGE_INDEX)
            if response.status_code == 404 or content_type(response) != IMAGE_INDEX:
                if not first:
                    raise PublishError("the registry's list of referrers stops in the middle", where=self.where)
                document, url = self._fallback(subject), ""
            else:
                document, url = parse(data, "the list of referrers"), self.next_page(response, "referrers/", "referrers")
            found += [Descriptor.from_json(entry) for entry in entries_of(document)]
            if len(found) > REFERRERS_LIMIT:
                raise VerificationError(f"{subject} has more than {REFERRERS_LIMIT} referrers", where=self.where)
        return found

    def attach(self, subject: str, entries: Sequence[Descriptor], settle: float = SETTLE) -> None:
        """Add `entries` to the fallback index of `subject`, for a registry that keeps no list of referrers itself.

        The tag `sha256-<hex>` can only be read, changed and written back, so two clients can undo one another. Clients on
        this machine take turns; and what was written is read again after a pause, and written again where it is gone.
        """
        for attempt in range(ATTACH_ATTEMPTS):
            with exclusive(f"{self.where}@{subject}"):
                started = time.monotonic()
                document = self._fallback(subject)
                listed = {Descriptor.from_json(entry).digest for entry in entries_of(document)}
                missing = {entry.digest: entry.to_json() for entry in entries if entry.digest not in listed}
                if not missing:
                    return
                document["manifests"] += missing.values()
                data = canonical(document)
                if len(data) > METADATA_LIMIT:
                    raise PublishError(f"the list of referrers of {subject} is full", where=self.where)
                self.put_manifest(subject.replace(":", "-"), IMAGE_INDEX, data)
                window = time.monotonic() - started
            time.sleep(max(settle, 3 * window) * random.uniform(1, 1.5 + attempt / 2))
        raise PublishError(f"others keep overwriting the list of referrers of {subject}", where=self.where, next_step="try again")

    def _fallback(self, subject: str) -> dict[str, Any]:
        found = self.find_manifest(subject.replace(":", "-"))
        if found is None:
            return {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}
        if found[0].media_type != IMAGE_INDEX:
            raise VerificationError(f"the list of referrers of {subject} is not an index", where=self.where)
        document: dict[str, Any] = json.loads(found[1])
        return document

    def next_page(self, response: requests.Response, place: str, what: str) -> str:
        """Return the address of the next page of a list, or nothing. Raises VerificationError where it is not at `place` in this repository."""
        link = response.links.get("next", {}).get("url", "")
        if not link:
            return ""
        url = self.http.address(link, base=self.http.base + place)
        if not url.startswith(self.http.base + place):
            raise VerificationError(f"the registry's list of {what} goes on elsewhere", where=self.where)
        return url

    def _check_digest(self, response: requests.Response, wanted: str) -> None:
        said = response.headers.get("Docker-Content-Digest")
        if said is not None and said != wanted:
            shown = said if DIGEST.fullmatch(said) else "something else"
            raise VerificationError(f"the registry says {shown}, the content is {wanted}", where=self.where)

    def _check_length(self, response: requests.Response, descriptor: Descriptor, wanted: int) -> None:
        said = response.headers.get("Content-Length", "")
        if said.isdecimal() and len(said) < 20 and int(said) != wanted:
            raise VerificationError(f"blob {descriptor.digest} has {said} bytes at the registry, not {wanted}", where=self.where)


class Arrival:
    """A blob on its way down: hashed as it is written, cut off at the size that its descriptor says."""

    def __init__(self, descriptor: Descriptor, stream: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self.descriptor, self.done = descriptor, 0
        self._stream, self._on_bytes, self._hash = stream, on_bytes, hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Take the next bytes. Raises VerificationError where that is more than the blob has."""
        if self.done + len(piece) > self.descriptor.size:
            raise VerificationError(f"blob {self.descriptor.digest} is longer than its {self.descriptor.size} bytes")
        self._stream.write(piece)
        self._hash.update(piece)
        self.done += len(piece)
        self._on_bytes(len(piece))

    def restart(self) -> None:
        """Forget what came so far."""
        if self.done:
            self._on_bytes(-self.done)
        self._stream.seek(0)
        self._stream.truncate()
        self.done, self._hash = 0, hashlib.sha256()

    def check(self) -> None:
        """Raise VerificationError unless all has come and has the digest."""
        found = f"sha256:{self._hash.hexdigest()}"
        if self.done != self.descriptor.size:
            raise VerificationError(f"blob {self.descriptor.digest} has {self.done} bytes, not {self.descriptor.size}")
        if found != self.descriptor.digest:
            raise VerificationError(f"blob {self.descriptor.digest} has the content of {found}")


def content_type(response: requests.Response) -> str:
    """Return the media type of an answer without its parameters, in lower case."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def parse(data: bytes, what: str) -> Any:
    """Return JSON that a stranger wrote. Raises VerificationError for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise VerificationError(f"{what} is not JSON: {problem}") from problem


def entries_of(document: Any) -> list[Any]:
    """Return the entries of an index. Raises VerificationError where it has no list of them."""
    entries = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise VerificationError("an index has no list of manifests")
    return entries


def check_shape(descriptor: Descriptor, document: Any) -> None:
    """Raise VerificationError for a document that could be taken for another kind than `descriptor` says (CVE-2021-41190)."""
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise VerificationError(f"{descriptor.digest} is neither a manifest nor an index of schema version 2")
    if document.get("mediaType", descriptor.media_type) != descriptor.media_type:
        raise VerificationError(f"{descriptor.digest} is said to be {descriptor.media_type}, but says otherwise of itself")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise VerificationError(f"{descriptor.digest} is a manifest and an index at once")
    if "manifests" not in document and descriptor.media_type in (IMAGE_INDEX, DOCKER_MANIFESTS[1]):
        raise VerificationError(f"{descriptor.digest} is said to be an index, but has no entries")
    if not all(isinstance(document.get(name, []), list) for name in ("manifests", "layers")):
        raise VerificationError(f"{descriptor.digest} is not a manifest: its entries or layers are no list")


@contextmanager
def exclusive(key: str) -> Iterator[None]:
    """Keep other threads and processes of this user on this machine out while inside, for the same key."""
    folder = Path(tempfile.gettempdir()) / f"release-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # somebody else's: do without, as across machines
        yield
        return
    with (folder / hashlib.sha256(key.encode()).hexdigest()).open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
