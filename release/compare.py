"""Two releases side by side, wherever they are: in a registry, in a folder, or as a record alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from release.errors import UsageError, VerificationError
from release.types import JSON

if TYPE_CHECKING:
    from release.publish.difference import Difference


def compare(first: str, second: str) -> list[Difference]:
    """Return what differs between two releases. Raises UsageError, PublishError, VerificationError for what cannot be read."""
    from release.publish.difference import differences

    return differences(record_at(first), record_at(second))


def record_at(place: str) -> JSON:
    """Return the record of a release: a reference, the folder of a layout, bundle, dist or pulled release, or a release.json."""
    from release.oci import METADATA_LIMIT, Descriptor
    from release.publish.distribution import Registry
    from release.publish.dsse import strict
    from release.publish.folder import Folder
    from release.publish.reference import Reference
    from release.publish.verify import record_of

    path = Path(place)
    file = path if path.is_file() else path / "release.json"
    if file.is_file():
        if file.stat().st_size > 16 * METADATA_LIMIT:
            raise VerificationError(f"{file} is no record: it has {file.stat().st_size} bytes")
        return strict(file.read_bytes(), str(file))
    with tempfile.TemporaryDirectory(prefix="release-compare-") as scratch:
        if path.is_dir():
            folder = Folder(path)
            _, data = folder.get_manifest(folder.release)
            entries = [Descriptor.from_json(entry) for entry in strict(data, "a release").get("manifests", ())]
            return record_of(folder, entries, Path(scratch))[0]
        where = Reference.parse(place)
        if not where.tag and not where.digest:
            raise UsageError(f"{place} names neither a tag nor a digest", next_step="add :TAG or @sha256:…")
        registry = Registry.at(where)
        _, data = registry.get_manifest(where.digest or where.tag)
        entries = [Descriptor.from_json(entry) for entry in strict(data, "a release").get("manifests", ())]
        return record_of(registry, entries, Path(scratch))[0]
