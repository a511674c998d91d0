"""Rewriting one layer tar into the one form that its files determine, as a stream in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from release.builders import tar
from release.builders.inventory import Drop, inside, inventory
from release.builders.tar import Sink

__all__ = ["Drop", "Rewritten", "debris", "inside", "rewrite_tar"]

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
    blocks and nothing more. Memory holds neither the content nor, in a layer of very many members, their headers, which go to a
    file in TMPDIR; `on_bytes` hears of every chunk of content.

    Raises StageError for an archive that is damaged, cut off, or contradicts itself (`..` in a name, a file with children, a
    directory that is also a file, a circle of hard links); what was written to `target` by then is worthless.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return rewrite_tar(stream, target, epoch=epoch, drop=drop, on_bytes=on_bytes)
    blocks = tar.Blocks(target)
    with inventory() as layer:
        for member in tar.read_members(source):
            layer.add(member)
        layer.resolve()
        rewritten = Rewritten(*layer.settle(drop))
        for name, node in layer.staying():
            shown = (f"{name}/" if name else "./") if node.type == tar.DIRECTORY else name
            blocks.write(tar.header(replace(node, name=shown), epoch))
            if node.size:
                tar.copy(source, node.offset, node.size, blocks, on_bytes)
                blocks.write(tar.padding(node.size))
    blocks.write(tar.END)
    blocks.flush()
    return rewritten
