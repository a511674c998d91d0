"""What the steps of a card leave open or never do: packages without a version, links that move, variables that no shell fills in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from release.publish.markdown import Command
from release.publish.page import Defect, Page

PIP: Final = re.compile(r"pip[0-9.]*")
REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*+(?:\[[^\]]{0,80}\])?(?P<version>.*)", re.DOTALL)
EXACT: Final = re.compile(r"\s*===?[^*]+")
FROM_GIT: Final = re.compile(r"(?:.{0,80}@\s?)?git\+.+")
AT_COMMIT: Final = re.compile(r"@[0-9a-f]{40}\b")
FLAGS_WITH_VALUES: Final = frozenset(
    (
        *("-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-t", "--target", "-i", "--index-url", "-f"),
        *("--extra-index-url", "--find-links", "--trusted-host", "--prefix", "--root", "--src", "--platform", "--proxy", "--log"),
        *("--python-version", "--timeout", "--retries", "--progress-bar", "--cache-dir", "--no-binary", "--only-binary"),
        *("--upgrade-strategy", "--index", "--default-index", "--python", "-p", "--extra", "--group", "--config-settings", "-C"),
    )
)
"""Flags of `pip install` and `uv pip install` that take the word after them."""
TREE: Final = re.compile(r"https?://[^\s)>\"'`|]{1,300}?/tree/(?:master|main)\b")
FILE: Final = re.compile(r"https?://[^\s)>\"'`|]{1,300}?/(?:tree|raw|blob|resolve)/(?:refs/heads/)?(?:master|main)\b")
RAW: Final = re.compile(r"https?://raw\.githubusercontent\.com/[^/\s]{1,80}/[^/\s]{1,80}/(?:refs/heads/)?(?:master|main)\b")
UNFILLED: Final = re.compile(r"\$\{?[A-Z][A-Z0-9_]*+")
SCRIPTED: Final = (
    "awk",
    "gawk",
    "sed",
    "perl",
    "jq",
    "envsubst",
    "grep",
    "trap",
    "eval",
    "xargs",
    "ssh",
    "find",
    "watch",
    "tmux",
)
"""Commands whose own words `$NAME` may be, or which hand them to another shell."""
SCRIPT_FLAG: Final = re.compile(r"-[a-z]*c|--(?:command|eval|health-cmd|entrypoint)(?:=.*)?", re.DOTALL)


def packages(page: Page) -> Iterator[Defect]:
    """Find packages that pip is to install in whatever version there is on that day."""
    for command in page.commands:
        for word in _installed(command):
            if FROM_GIT.fullmatch(word):
                if not AT_COMMIT.search(word):
                    yield Defect(command.line, "unpinned-package", f"{word[:100]} names no commit")
            elif (match := REQUIREMENT.fullmatch(word)) and not _is_file(word) and not EXACT.fullmatch(match["version"]):
                yield Defect(command.line, "unpinned-package", f"{word[:100]} names no version")


def _installed(command: Command) -> Iterator[str]:
    """Yield what `pip install` is to install: the words after it but for flags and their values."""
    words = command.words
    at = next((number for number, word in enumerate(words[:5]) if PIP.fullmatch(word.rpartition("/")[2])), None)
    if at is None or words[at + 1 : at + 2] != ("install",):
        return
    skip = False
    for word in words[at + 2 :]:
        if not skip and not word.startswith(("-", "$", "<", "{", ">")):
            yield word
        skip = not skip and word in FLAGS_WITH_VALUES


def _is_file(word: str) -> bool:
    return "/" in word or word.endswith((".whl", ".tar.gz", ".zip")) or word in (".", "..")


def links(page: Page) -> Iterator[Defect]:
    """Find links to a branch: to a tree in any step, to a file where a command fetches it."""
    for number, line, block in page.prose("prose", "table", "code"):
        found = FILE.search(line) or RAW.search(line) if block.kind == "code" else TREE.search(line)
        if found:
            yield Defect(number, "mutable-link", f"{found[0][:160]}: a branch, which says something else tomorrow")


def literals(page: Page) -> Iterator[Defect]:
    """Find variables between single quotes, which the shell hands on as they are."""
    for command in page.commands:
        if not command.literals or command.words[0].rpartition("/")[2] in SCRIPTED:
            continue
        if any(SCRIPT_FLAG.fullmatch(word) for word in command.words[1:] if word.startswith("-")):
            continue
        found = next((match[0] for text in command.literals if (match := UNFILLED.search(text))), None)
        if found:
            yield Defect(command.line, "unexpanded-variable", f"{found[:60]} stands between single quotes: no shell fills it in")
