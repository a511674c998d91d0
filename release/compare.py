"""Two releases side by side, wherever they are: in a registry, in a folder, or as a record alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from release.errors import VerificationError
from release.types import JSON

if TYPE_CHECKING:
    from release.publish.difference import Difference


def compare(first: str, second: str) -> list[Difference]:
    """Return what differs between two releases. Raises UsageError, PublishError, VerificationError for what cannot be read."""
    from release.publish.difference import differences

    return differences(record_at(first), record_at(second))


def record_at(place: str) -> JSON:
    """Return the record of a release: a reference, the folder of a layout, bundle, dist or pulled release, or a release.json."""
    from release.oci import METADATA_LIMIT
    from release.publish.dsse import strict
    from release.publish.folder import source_at
    from release.publish.verify import record_of, released

    path = Path(place)
    file = path if path.is_file() else path / "release.json"
    if file.is_file():
        if file.stat().st_size > 16 * METADATA_LIMIT:
            raise VerificationError(f"{file} is no record: it has {file.stat().st_size} bytes")
        return strict(file.read_bytes(), str(file))
    source, name = source_at(place)
    with tempfile.TemporaryDirectory(prefix="release-compare-") as scratch:
        return record_of(source, released(source, name)[1], Path(scratch))[0]
