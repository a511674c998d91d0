"""A store that shares: what others have finished is had from a shelf, verified, and what is finished here is put there, signed.

An entry on a shelf is an OCI artifact. Its config is the listing: the key, the facts, and every file with its mode, size and digest. Small
files lie one after the other in one blob, large ones are blobs of their own. A signature is a sigstore bundle over the listing's digest.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from release.errors import ReleaseError, StoreError, UnsignedError, VerificationError, WrongKeyError
from release.listing import LISTING_TYPE, Listing, lay_out, listing_of, read_listing
from release.oci import METADATA_LIMIT, Descriptor, Layout, put_artifact
from release.pipeline import digest, mark
from release.shelves import Shelf
from release.store import Store

if TYPE_CHECKING:
    from release.publish.keys import Private, Public

ENTRY_TYPE: Final = "application/vnd.release.entry.v1+json"
PREDICATE: Final = "urn:release:entry:v1"
"""What is signed of an entry: its listing, and in the predicate the key under which it may stand."""
KEY: Final = "RELEASE_STORE_KEY"
"""The environment variable that names the file of the private key with which entries are signed."""
PATIENCE: Final = 3
"""Failures to reach the shelf after which a run does without it."""


@dataclass(frozen=True)
class Trust:
    """With which key entries are signed, if any, and whose are taken: with no key any entry is, if it is what its digests say."""

    signer: Private | None = None
    keys: Sequence[Public] = ()

    @property
    def takes_its_own(self) -> bool:
        """Whether an entry that is made here would be taken here."""
        return not self.keys or (self.signer is not None and self.signer.public().hint in {key.hint for key in self.keys})

    @classmethod
    def of(cls, trusted: Sequence[Path]) -> Trust:
        """Return the trust of a command line: its public keys, and the private one that the environment names."""
        from release.publish.keys import read_private, read_public

        named = os.environ.get(KEY)
        return cls(read_private(Path(named)) if named else None, tuple(read_public(path) for path in trusted))


class Remote(Store):
    """A local store in front of a shelf. A shelf that cannot be reached, or holds what is refused, costs a warning and no build.

    `warn` is told what was refused and why. With `read_only` nothing is put on the shelf. `brought` and `shared` are the keys that came and
    went.
    """

    def __init__(
        self,
        path: Path,
        shelf: Shelf,
        trust: Trust | None = None,
        *,
        read_only: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(path)
        self.shelf, self.trust, self.read_only, self.warn = shelf, trust or Trust(), read_only, warn
        self.brought: list[str] = []
        self.shared: list[str] = []
        self._refused: set[str] = set()
        self._unreached = 0
        self._lock = threading.Lock()

    def bring(self, key: str) -> bool:
        """Say whether the entry is here, after an attempt to get it from the shelf; what is refused there leaves nothing here."""
        if self.has(key) or key in self._refused or self._unreached >= PATIENCE:
            return self.has(key)
        try:
            with self.in_use(), self.locked(f"{key}.remote"):
                if not self.has(key) and (manifest := self.shelf.find(key)) is not None:
                    self._take(key, manifest)
                    self.brought.append(key)
        except VerificationError as problem:
            self._refused.add(key)
            stays = "" if self.read_only or self.trust.takes_its_own else f" (it stays there: {KEY} names no key that is trusted)"
            self.warn(f"an entry of the remote store is refused, the stage runs here{stays}: {key[:16]}…: {problem}")
        except ReleaseError as problem:
            self._unreachable(problem)
        return self.has(key)

    def share(self, key: str) -> None:
        """Put an entry on the shelf, unless it is there; one that was refused is replaced, if ours would be taken where it was.

        Others may well trust who signed it: an entry that not even this machine would take must not stand in its place.
        """
        if self.read_only or self._unreached >= PATIENCE:
            return
        try:
            replaces = key in self._refused and self.trust.takes_its_own
            if not replaces and self.shelf.find(key) is not None:
                return
        except VerificationError:
            pass  # it is no manifest at all
        except ReleaseError as problem:
            self._unreachable(problem)
            return
        try:
            with self._scratch() as scratch:
                self._give(key, Layout.create(Path(scratch)))
            self.shared.append(key)
            self._refused.discard(key)
        except VerificationError as problem:
            self.warn(f"an entry cannot be shared: {key[:16]}…: {problem}")
        except ReleaseError as problem:
            self._unreachable(problem)

    def _take(self, key: str, manifest: bytes) -> None:
        """Verify an entry and make it one of ours. Raises VerificationError before anything of it is in its place."""
        from release.publish.dsse import strict

        with self._scratch() as scratch:
            layout = Layout.create(Path(scratch))
            document = strict(manifest, "a manifest")
            config = Descriptor.from_json(document.get("config"))
            if document.get("artifactType") != ENTRY_TYPE or config.media_type != LISTING_TYPE:
                raise VerificationError("it is no entry of a store")
            listing = read_listing(self._small(config, layout))
            if self.trust.keys:
                self._check_signature(key, config.digest, document.get("layers"), layout)
            check_key(key, listing)
            needed, free = listing.size, shutil.disk_usage(self.path).free
            if needed > free:
                raise StoreError(f"{key[:16]}… needs {needed} bytes, and the disk has {free}")
            for blob in listing.blobs:
                self.shelf.get(blob, layout)

            def fill(out: Path) -> None:
                lay_out(listing, layout, out)
                if mark(out) != listing.facts.get("mark"):
                    raise VerificationError("its files are not those of its mark")

            self.put(key, listing.facts, fill)

    def _check_signature(self, key: str, listing: str, layers: object, layout: Layout) -> None:
        """Raise UnsignedError or WrongKeyError unless a trusted key has signed that this listing may stand under this key."""
        from release.publish.dsse import BUNDLE_TYPE, open_bundle

        named = [Descriptor.from_json(layer) for layer in layers] if isinstance(layers, list) else []
        bundles = [blob for blob in named if blob.media_type == BUNDLE_TYPE][:8]
        if not bundles:
            raise UnsignedError("it is not signed")
        for bundle in bundles:
            signed = open_bundle(self._small(bundle, layout), self.trust.keys)
            if (
                signed
                and signed.predicate_type == PREDICATE
                and signed.subjects == (listing,)
                and signed.predicate == {"key": key}
            ):
                return
        raise WrongKeyError("no trusted key has signed it as what it is")

    def _give(self, key: str, layout: Layout) -> None:
        """Put listing, files and signature on the shelf, and last the manifest that makes an entry of them."""
        from release.publish.dsse import BUNDLE_TYPE, bundle, statement

        listing = listing_of(key, self.facts(key), self.get(key), layout)
        config = layout.put(LISTING_TYPE, listing.data)
        layers = list(listing.blobs)
        if self.trust.signer is not None:
            layers.append(layout.put(BUNDLE_TYPE, bundle(statement(config.digest, PREDICATE, {"key": key}), self.trust.signer)))
        manifest = put_artifact(layout, ENTRY_TYPE, layers, config=config)
        for blob in (config, *layers):
            self.shelf.put(blob, layout.blob(blob.digest))
        self.shelf.enter(key, layout.blob(manifest.digest).read_bytes())

    def _small(self, blob: Descriptor, layout: Layout) -> bytes:
        if blob.size > METADATA_LIMIT:
            raise VerificationError(f"{blob.digest} claims {blob.size} bytes where {METADATA_LIMIT} are the most")
        self.shelf.get(blob, layout)
        return layout.blob(blob.digest).read_bytes()

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="remote-", dir=self.scratch(), ignore_cleanup_errors=True)

    def _unreachable(self, problem: ReleaseError) -> None:
        with self._lock:
            self._unreached += 1
            count = self._unreached
        if count <= PATIENCE:  # others may have been on their way already
            more = "; this run does without it from now on" if count == PATIENCE else ""
            self.warn(f"the remote store {self.shelf.where} cannot be used: {problem}{more}")


def check_key(key: str, listing: Listing) -> None:
    """Raise VerificationError unless the listing says that it is of this key, and its facts come to it."""
    facts = listing.facts
    if listing.key != key:
        raise VerificationError(f"it is the entry of {listing.key[:16]}…")
    if digest({"stage": facts.get("stage"), **{name: facts.get(name) for name in ("version", "reads", "needs")}}) != key:
        raise VerificationError("stage, version and inputs in its facts do not come to its key")
