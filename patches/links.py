"""Where the symbolic links of a tree lead: as the kernel follows them, without a disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FOLLOWED: Final = 40
"""Links that Linux follows in one path (path_resolution(7))."""
LONGEST: Final = 4095
"""Bytes of a path on Linux."""


def way_out(links: Mapping[str, str]) -> tuple[str, str] | None:
    """Return path and target of the first link that leads out of its tree, in a circle or nowhere that Linux could follow, or None.

    `links` has path → target of every link of the tree. A target that is not there is no fault as long as it lies inside.
    """
    return next(((path, target) for path, target in links.items() if _leaves(path, links)), None)


def _leaves(path: str, links: Mapping[str, str]) -> bool:
    *above, name = path.split("/")
    rest, followed = [name], 0
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not above:
                return True
            above.pop()
            continue
        target = links.get("/".join((*above, part)))
        if target is None:
            above.append(part)
            continue
        followed += 1
        if followed > FOLLOWED or not target or target.startswith("/") or len(target) > LONGEST or "\0" in target:
            return True
        rest += reversed(target.split("/"))
    return False
