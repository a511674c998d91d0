"""Rewriting one layer tar into the one form that its files determine, as a stream in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from release.builders import tar
from release.builders.tar import Member, Sink
from release.errors import StageError

Drop = Callable[[str, Collection[str]], bool]
"""Says of a path without leading slash, given all paths of its layer, whether it stays out of the image."""

WHITEOUT: Final = ".wh."

DROPPED: Final = frozenset(
    (
        ".dockerenv",
        "etc/apt/apt.conf",
        "etc/apt/auth.conf",
        "etc/apt/sources.list",
        "etc/hostname",
        "etc/hosts",
        "etc/machine-id",
        "etc/mtab",
        "etc/pip.conf",
        "etc/resolv.conf",
        "root/.cache",
        "root/.config/pip",
        "root/.pip",
        "var/lib/dbus/machine-id",
    )
)
"""Paths that stay out of the image with all that is in them: what engines mount over, caches, and the user's index addresses."""

EMPTIED: Final = frozenset(
    (
        "dev",
        "etc/apt/apt.conf.d",
        "etc/apt/auth.conf.d",
        "etc/apt/sources.list.d",
        "proc",
        "run",
        "sys",
        "tmp",
        "var/cache",
        "var/lib/apt/lists",
        "var/log",
        "var/tmp",
    )
)
"""Directories that stay, without their content."""


PACKAGED: Final = frozenset(("etc/apt/apt.conf.d/01autoremove", "etc/apt/apt.conf.d/70debconf"))
"""Files of Debian's own packages in directories that are emptied of the user's; these two name no index."""


def debris(name: str, layer: Collection[str]) -> bool:
    """Say whether `name` is what a build leaves behind: logs, caches, bytecode, index addresses, what engines mount over.

    Bytecode is what stands in `__pycache__`, or beside its source in the same layer; a `.pyc` without source is a module of its
    own (PEP 3147) and stays.
    """
    if name in DROPPED or name == "__pycache__" or name.endswith("/__pycache__") or f"/{name}".find("/__pycache__/") >= 0:
        return True
    if name.endswith(".pyc") and name[:-1] in layer:
        return True
    if name in PACKAGED:
        return False
    above = name
    while (cut := above.rfind("/")) >= 0:
        above = above[:cut]
        if above in DROPPED or above in EMPTIED:
            return True
    return False


@dataclass(frozen=True)
class Rewritten:
    """What became of a layer: the members that were written, and those that stayed out."""

    kept: int
    dropped: int


def rewrite_tar(
    source: Path | BinaryIO, target: Sink, *, epoch: int, drop: Drop = debris, on_bytes: Callable[[int], None] | None = None
) -> Rewritten:
    """Write the layer tar `source` to `target` in a form that depends on its files alone.

    Members stand in the order of their names (bytes; whiteouts before their siblings, so that no whiteout can hide a file of its
    own layer), every mtime is `epoch`, user and group names are empty, ids and modes are kept, of PAX headers only extended
    attributes. Of a set of hard links the first name carries the content. Of members of one name the last wins. Whiteouts are
    kept whatever `drop` says, and a dropped directory is kept while something under it is. The archive ends with two zero
    blocks and nothing more. Memory holds the headers, never the content; `on_bytes` hears of every chunk of content.

    Raises StageError for an archive that is damaged, cut off, or contradicts itself (`..` in a name, a file with children, a
    directory that is also a file, a circle of hard links); what was written to `target` by then is worthless.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return rewrite_tar(stream, target, epoch=epoch, drop=drop, on_bytes=on_bytes)
    nodes = _nodes(tar.read_members(source))
    kept = _kept(nodes, drop)
    carriers: dict[int, str] = {}
    blocks = tar.Blocks(target)
    for name in sorted(kept, key=_order):
        node = nodes[name]
        carrier = carriers.setdefault(node.offset, name)
        if carrier != name:
            node = replace(node, type=tar.LINK, link=carrier, size=0, xattrs=())
        shown = (f"{name}/" if name else "./") if node.type == tar.DIRECTORY else name
        blocks.write(tar.header(replace(node, name=shown), epoch))
        if node.size:
            tar.copy(source, node.offset, node.size, blocks, on_bytes)
            blocks.write(tar.padding(node.size))
    blocks.write(tar.END)
    blocks.flush()
    return Rewritten(len(kept), len(nodes) - len(kept))


def inside(name: str) -> str:
    """Return a path of an archive without leading slash, `.` and doubled slashes; the root is the empty string.

    Raises StageError where a part of it is `..`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise StageError(f"the archive has the path {name!r}, which leads out of it")
    return "/".join(parts)


def _nodes(members: Iterable[Member]) -> dict[str, Member]:
    """Return what each name of the layer finally is. Names of one hard link set share one member, told by its offset."""
    nodes: dict[str, Member] = {}
    for member in members:
        name, node = inside(member.name), member
        if member.type == tar.LINK:
            link = inside(member.link)
            if link == name and link in nodes:
                continue
            node = nodes.get(link, replace(member, link=link))
        known = nodes.get(name, node)
        if (known.type == tar.DIRECTORY) != (node.type == tar.DIRECTORY) or (not name and node.type != tar.DIRECTORY):
            raise StageError(f"the layer has {name or '/'!r} both as a directory and as something else")
        nodes[name] = node
    for name in reversed(nodes):
        if nodes[name].type == tar.LINK:
            nodes[name] = _linked(name, nodes)
    for name, node in nodes.items():
        _check_place(name, node, nodes)
    return nodes


def _linked(name: str, nodes: dict[str, Member]) -> Member:
    """Return what the hard link `name`, which stands before its target, is: the target, or a link into a lower layer."""
    link = nodes[name].link
    target = nodes.get(link, nodes[name])
    if link in nodes and target.type == tar.LINK and target.link in nodes:
        raise StageError(f"the hard links {name!r} and {link!r} of the layer lead to one another")
    return target


def _check_place(name: str, node: Member, nodes: dict[str, Member]) -> None:
    if node.type == tar.DIRECTORY and inside(node.name) != name:
        raise StageError(f"the layer has {name!r} as a hard link to the directory {node.name!r}")
    above = name.rpartition("/")[0]
    while above and above not in nodes:
        above = above.rpartition("/")[0]
    if above and nodes[above].type != tar.DIRECTORY:
        raise StageError(f"the layer has {name!r}, but {above!r} is no directory")


def _kept(nodes: dict[str, Member], drop: Drop) -> set[str]:
    """Return the names that stay: what `drop` leaves, all whiteouts, and the directories above them."""
    names = nodes.keys()
    kept = {name for name in names if name.rpartition("/")[2].startswith(WHITEOUT) or not drop(name, names)}
    for name in tuple(kept):
        above = name.rpartition("/")[0]
        while above and above not in kept:
            if above in nodes:
                kept.add(above)
            above = above.rpartition("/")[0]
    return kept


def _order(name: str) -> bytes:
    return tar.raw(f"/{name}".replace(f"/{WHITEOUT}", f"/\0{WHITEOUT}"))
