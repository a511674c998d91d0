"""The records of what is published: of every tag of a repository, or of a layout on disk; each by its digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Final

from release.errors import IncompleteError, PolicyError, UnsignedError, VerificationError, WrongKeyError
from release.oci import IMAGE_INDEX, IMAGE_MANIFEST, METADATA_LIMIT, Descriptor, Layout, children, parse_verified
from release.publish.artifact import RECORD_TYPE
from release.publish.catalogue import Found, Signature
from release.publish.distribution import PAGES_LIMIT, Registry, parse
from release.publish.dsse import strict
from release.publish.keys import Public
from release.publish.reference import Reference
from release.publish.verify import record_of, verify
from release.types.policy import Policy

TAGS_LIMIT: Final = 10_000
PAGE: Final = 1000
"""Tags to ask for at a time: registries refuse to give more."""
REFERRING: Final = "sha256-"
"""How tags begin that stand for signatures and referrers, and for no release."""
LENIENT: Final = Policy(state="built", attested=("verdict",))
"""What a release must be to be called signed: index and image by a key that is given, and its verdict, which names the record."""


def tags(registry: Registry, *, may_lack: bool = False) -> list[str]:
    """Return the tags of a repository that may be releases, sorted; none of one that does not exist, if that `may_lack`.

    Raises PublishError and VerificationError for the registry's answers.
    """
    found: set[str] = set()
    url, seen = f"tags/list?n={PAGE}", set[str]()
    while url:
        if url in seen or len(seen) == PAGES_LIMIT:
            raise VerificationError("the registry's list of tags does not end", where=registry.where)
        seen.add(url)
        response, data = registry.http.fetch(
            url, expect=(200, 404) if may_lack else (200,), limit=METADATA_LIMIT, accept="application/json"
        )
        if response.status_code == 404:
            return []
        document = parse(data, "the list of tags")
        listed = document.get("tags") if isinstance(document, dict) else ()
        if not isinstance(listed or [], list) or not all(isinstance(tag, str) for tag in listed or ()):
            raise VerificationError("the registry's list of tags is none", where=registry.where)
        found |= set(listed or ())
        if len(found) > TAGS_LIMIT:
            raise VerificationError(f"the repository has more than {TAGS_LIMIT} tags", where=registry.where)
        url = registry.next_page(response, "tags/list", "tags")
    return sorted(tag for tag in found if not tag.startswith(REFERRING))


def published(
    where: Reference, keys: Sequence[Public], today: date, scratch: Path, *, may_lack: bool = False
) -> Iterator[tuple[str, Found | None]]:
    """Yield each release that a reference names (of a repository alone: of each of its tags) with its record; None for what is no release.

    A repository that does not exist has none, if that `may_lack`. With keys, each is looked at as `verify` does, and what was found stands
    beside it. Raises VerificationError where something is not what its digest or its signature says, PublishError for a registry that
    cannot be asked.
    """
    registry = Registry.at(where)
    names = [where.digest or where.tag] if where.digest or where.tag else tags(registry, may_lack=may_lack)
    for number, name in enumerate(names):
        folder = scratch / str(number)
        index, data = registry.get_manifest(name)  # by digest from here on: a tag that moves meanwhile moves nothing here
        place = str(Reference(where.host, where.name, "" if name == where.digest else name, index.digest))
        if index.media_type != IMAGE_INDEX:
            yield place, None
            continue
        entries = [Descriptor.from_json(entry) for entry in strict(data, "a release").get("manifests", ())]
        try:
            _, digest = record_of(registry, entries, folder / "listed")
        except IncompleteError:
            yield place, None
            continue
        data = Layout(folder / "listed" / "record").blob(digest).read_bytes()
        yield place, Found(data, place, *(_signed(registry, index.digest, keys, today, folder) if keys else ()))


def _signed(
    registry: Registry, digest: str, keys: Sequence[Public], today: date, scratch: Path
) -> tuple[Signature, tuple[str, ...]]:
    """Return what is found of a release's signature, and the names of the keys that signed its index."""
    try:
        _, checks = verify(registry, digest, keys, LENIENT, today, scratch)
    except UnsignedError:
        return Signature.UNSIGNED, ()
    except WrongKeyError:
        return Signature.STRANGER, ()
    except IncompleteError:
        return Signature.INCOMPLETE, ()
    except PolicyError:  # it is signed and attested: that it is blocked, or its waiver over, its page says in words of its own
        return Signature.SIGNED, ()
    return Signature.SIGNED, tuple(check.found for check in checks if check.what == "index signed by")


def laid_out(layout: Layout) -> Iterator[tuple[str, Found | None]]:
    """Yield each release of a layout with its record; None for what is no release. Raises VerificationError for what its digest denies."""
    for entry in layout.index():
        yield entry.digest, _carried(layout, entry) if entry.media_type == IMAGE_INDEX else None


def _carried(layout: Layout, index: Descriptor) -> Found | None:
    for child in children(index, layout):
        if child.media_type != IMAGE_MANIFEST:
            continue
        layers = children(child, layout)[1:]
        if layout.read(child).get("artifactType") == RECORD_TYPE and layers and layout.blob(layers[0].digest).is_file():
            data = layout.blob(layers[0].digest).read_bytes() if layers[0].size <= METADATA_LIMIT else b""
            parse_verified(data, layers[0])
            return Found(data)
    return None
