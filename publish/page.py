"""A card under examination: its blocks and commands read once, the record it should speak of, and what may be found wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from release.publish.markdown import Block, Command, blocks_of, commands_of
from release.types import JSON

MEANINGS: Final = {
    "not-a-card": "a file that is no text, or has no heading",
    "too-long": "a card, or a line of it, that is too long to be read",
    "unclosed-fence": "a block of code that nothing ends",
    "unpinned-clone": "git clone with no commit after it",
    "mutable-checkout": "a branch, a tag or half a commit, which may mean something else tomorrow",
    "unpinned-image": "an image without a digest, or of no registry",
    "unpinned-package": "a package for pip without a version",
    "mutable-link": "a link to a branch",
    "unexpanded-variable": "a variable between single quotes",
    "swallowed-flag": "a flag of docker run that takes the next flag for its value",
    "checkpoint-address": "a checkpoint that is to be cloned and is no address",
    "switch-missing": "operators are claimed whose switch no environment here sets",
    "wrong-folder": "cd into a folder that was never made, or from within it",
    "config-name": "a configuration that names another file than there is",
    "mixed-models": "names of another model",
    "mixed-schemas": "the old and the new schema of serving files side by side",
    "port-differs": "clients ask at another port than the server listens on",
    "name-differs": "clients ask for another model than is served",
    "name-unset": "clients ask for a model by a name that nothing here sets",
    "path-differs": "the server reads weights from another place than they were put",
    "empty-score": "a score of 0, or none",
    "other-baseline": "a baseline of another model",
    "placeholder": "text that was to be replaced",
    "undefined-share": "a share of operators without its definition",
    "state-differs": "another state than the record has",
    "version-differs": "another version in the text than in the image's name",
    "package-index": "a package index of somebody's own",
    "secret": "a key or token",
}
"""Every rule, and what it finds."""

QUOTING: Final = re.compile(r"contradict|矛盾", re.IGNORECASE)
"""Headings under which a card repeats what others claim, to contradict it."""


@dataclass(frozen=True, order=True)
class Defect:
    """One thing that is wrong with a card: the line (from 1), the rule (a key of MEANINGS) and what is wrong there."""

    line: int
    rule: str
    message: str


@dataclass(frozen=True)
class Page:
    """A card that was read once: its blocks, the commands in them, and the record that it should speak of, if there is one."""

    blocks: tuple[Block, ...]
    commands: tuple[Command, ...]
    record: JSON | None = None

    @classmethod
    def of(cls, text: str, record: JSON | None) -> Page:
        """Return the page of a text."""
        blocks = blocks_of(text)
        return cls(blocks, commands_of(blocks), record)

    @cached_property
    def code(self) -> str:
        """All lines of code."""
        return "\n".join(line for block in self.blocks if block.kind == "code" for line in block.lines)

    def fact(self, *path: str) -> Any:
        """Return what the record says there, or None."""
        value: Any = self.record
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def prose(self, *kinds: str) -> Iterator[tuple[int, str, Block]]:
        """Yield the lines of blocks of these kinds, but for those that quote others to contradict them."""
        for block in self.blocks:
            if block.kind in kinds and (block.kind == "code" or not QUOTING.search(block.heading)):
                for number, line in block.numbered():
                    yield number, line, block
