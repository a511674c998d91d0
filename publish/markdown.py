"""A card as its reader meets it: prose, tables and code by the line, and the commands in the code as words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import Final, Literal

FENCE: Final = re.compile(r"\s{0,12}(?P<fence>`{3,}|~{3,})\s*(?P<language>[A-Za-z0-9+-]{0,20})")
HEADING: Final = re.compile(r"\s{0,3}#{1,6}\s(?P<text>.{0,300})")
RULER: Final = re.compile(r"[\s|:-]{3,}")
SHELLS: Final = ("", "bash", "sh", "shell", "console", "zsh", "text")
"""Languages of fences whose lines may be commands: many cards name none, or the wrong one."""
LONGEST_FRONT: Final = 300
LONGEST_QUOTE: Final = 20_000
"""Characters after which a quote counts as a plain sign: an apostrophe in a sentence must not swallow the commands after it."""
QUOTED: Final = re.compile(r"""'[^']*+'|"(?:[^"\\]|\\.)*+\"""", re.DOTALL)
ENDS: Final = "\n;&|()"
ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
BEFORE: Final = ("$", "sudo", "export", "env", "time")
"""What may stand before a command."""


@dataclass(frozen=True)
class Block:
    """A run of lines of one kind under one heading; `line` is the number of the first, from 1; a block of code may not be `closed`."""

    kind: Literal["prose", "table", "code", "front"]
    line: int
    heading: str
    language: str
    lines: tuple[str, ...]
    closed: bool = True

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Yield every line with its number."""
        yield from enumerate(self.lines, self.line)


@dataclass(frozen=True)
class Command:
    """A command of a block of code: its words as a shell would split them, assignments and prompt left out. `block` counts the blocks.

    `literals` are the parts of its words that stood between single quotes.
    """

    line: int
    block: int
    words: tuple[str, ...]
    literals: tuple[str, ...] = ()

    def runs(self, *names: str) -> bool:
        """Say whether the command begins with these words."""
        return self.words[: len(names)] == names


def blocks_of(text: str) -> tuple[Block, ...]:
    """Return the blocks of a Markdown text in order, in one pass. A fence that nobody closes ends with the text."""
    every = text.split("\n")
    front = _front(every)
    found = [Block("front", 2, "", "yaml", tuple(every[1 : front - 1]))] if front else []
    lines: list[str] = []
    kind: Literal["prose", "table", "code"] = "prose"
    heading = language = fence = ""
    start = front + 1

    def close(following: Literal["prose", "table", "code"], first: int) -> None:
        nonlocal lines, kind, start
        if lines:
            found.append(Block(kind, start, heading, language, tuple(lines)))
        lines, kind, start = [], following, first

    for number, line in enumerate(every[front:], front + 1):
        if kind == "code":
            if (bare := line.strip()).startswith(fence) and not bare.strip(fence[0]):
                close("prose", number + 1)
                language = ""
            else:
                lines.append(line)
            continue
        if match := FENCE.match(line):
            close("code", number + 1)
            fence, language = match["fence"], match["language"].lower()
            continue
        if match := HEADING.match(line):
            close("prose", number)
            heading = match["text"].strip()
        elif (wanted := "table" if line.lstrip().startswith("|") else "prose") != kind:
            close("table" if wanted == "table" else "prose", number)
        lines.append(line)
    if kind == "code":
        found.append(Block(kind, start, heading, language, tuple(lines), closed=False))
    else:
        close("prose", 0)
    return tuple(found)


def _front(lines: list[str]) -> int:
    """Return how many lines the front matter takes, both rulers counted; 0 where it is not there or never ends."""
    if lines[0].strip() != "---":
        return 0
    return next((number for number, line in enumerate(lines[1:LONGEST_FRONT], 2) if line.strip() == "---"), 0)


def rows_of(block: Block) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table with their line numbers, head first, the ruler left out; spans of code lose their ticks."""
    for number, line in block.numbered():
        if not RULER.fullmatch(line):
            yield (
                number,
                [cell.strip().strip("`").strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")],
            )


def commands_of(blocks: tuple[Block, ...]) -> tuple[Command, ...]:
    """Return the commands in the blocks of code whose language is a shell's or none."""
    found = []
    for number, block in enumerate(blocks):
        if block.kind == "code" and block.language in SHELLS:
            for line, words, literals in _split("\n".join(block.lines), block.line):
                own = dropwhile(lambda word: word in BEFORE or ASSIGNMENT.match(word) is not None, words)
                if command := tuple(own):
                    found.append(Command(line, number, command, tuple(literals)))
    return tuple(found)


def _split(text: str, line: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield commands as the number of their first line, words, and what was between single quotes, in linear time: roughly as a shell does."""
    at, began = 0, line
    word: list[str] = []
    words: list[str] = []
    literals: list[str] = []
    while at < len(text):
        sign, step = text[at], 1
        if sign in ENDS or sign in " \t\r":
            if word:
                words.append("".join(word))
                word = []
            if sign in ENDS:
                if words:
                    yield began, words, literals
                words, literals, began = [], [], line + (sign == "\n")
        elif sign == "#" and not word:
            end = text.find("\n", at)
            step = (len(text) if end < 0 else end) - at
        elif sign == "\\" and at + 1 < len(text):
            step = 2
            if text[at + 1] != "\n":
                word.append(text[at + 1])
        elif (quoted := QUOTED.match(text, at, at + LONGEST_QUOTE)) and not (sign == "'" and word and word[-1][-1:].isalnum()):
            word.append(quoted[0][1:-1])
            literals += [word[-1]] if sign == "'" else []
            step = len(quoted[0])
        else:
            word.append(sign)
        line += text.count("\n", at, at + step)
        at += step
    if word:
        words.append("".join(word))
    if words:
        yield began, words, literals
