"""What patches were when they were first restored from a repository: one that is replaced in place is noticed, as a tag that moves is.

A file `patches.json` in the repository's mirror: base commit and path → every sha256 that was restored, each with the commit of the
repository that kept it then. A new base is a new patch, so that the files of a series of releases may have one name.
"""

from __future__ import annotations

import json
from typing import Any, Final

from release.errors import PatchError
from release.patches.delivery import SERIES, Delivery
from release.patches.unpatch import last_change
from release.store import Store, write_whole

MEMORY: Final = "patches.json"

Known = dict[str, list[dict[str, str]]]


def compare(delivery: Delivery) -> None:
    """Raise PatchError with both digests, and the commit that made the change, where a patch is none of those that were restored before.

    A set of ours pins its own patches, and is not looked at.
    """
    known = _known(delivery)
    for key, (path, digest, _) in _found(delivery).items():
        before = known.get(key, [])
        if before and digest not in [each["sha256"] for each in before]:
            last = before[-1]
            raise PatchError(
                f"patch was {last['sha256']} at commit {last['commit'][:12]}, it is {digest} now",
                where=f"{delivery.name}: {path}",
                next_step=f"it was replaced in place{last_change(delivery, path)}: look at what changed, and say --accept-changed if it is "
                f"meant, or --revision {last['commit']} for the one before",
            )


def remember(store: Store, delivery: Delivery) -> None:
    """Note the digests of patches that were restored."""
    found = _found(delivery)
    folder = delivery.roots[0].mirror.folder
    with store.locked(f"patches-{folder.name}"):
        known = _known(delivery)
        for key, (_, digest, commit) in found.items():
            if digest not in [each["sha256"] for each in known.setdefault(key, [])]:
                known[key].append({"sha256": digest, "commit": commit})
        if known != _known(delivery):
            write_whole(folder / MEMORY, json.dumps(known, indent=1, sort_keys=True))


def _found(delivery: Delivery) -> dict[str, tuple[str, str, str]]:
    """Return path, digest and commit of every patch that a repository keeps, by base and path."""
    if delivery.format == SERIES:
        return {}
    return {
        f"{root.commit} {patch.path}": (patch.path, patch.sha256, delivery.source)
        for root in delivery.roots
        for patch in root.patches
    }


def _known(delivery: Delivery) -> Known:
    """Return what was noted. Raises PatchError where the note is damaged: what it held is not to be forgotten silently."""
    file = delivery.roots[0].mirror.folder / MEMORY
    try:
        known: Any = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        known = None
    if isinstance(known, dict) and all(isinstance(each, list) and all(map(_is_note, each)) for each in known.values()):
        return known
    raise PatchError(f"{file} is damaged", where=delivery.name, next_step="remove it, and with it what is known of these patches")


def _is_note(each: object) -> bool:
    return isinstance(each, dict) and all(isinstance(each.get(name), str) for name in ("sha256", "commit"))
