"""Vendors' repositories, made on the spot: a base, a tree of the vendor's own, and its patches kept in every generation's way."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DEVICE: Final = "Invented_A1"
SEALED: Final = {
    **os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Checkout:
    """A repository with a work tree."""

    folder: Path

    def git(self, *arguments: str, given: bytes | None = None) -> bytes:
        """Run git in it, with no configuration but the repository's own."""
        done = subprocess.run(["git", *arguments], cwd=self.folder, env=SEALED, check=True, capture_output=True, input=given)
        return done.stdout

    def id(self, revision: str) -> str:
        """Return the id that a revision has."""
        return self.git("rev-parse", revision).decode().strip()

    def commit(self, message: str = "change") -> str:
        """Commit everything that is there and return the commit."""
        self.git("add", "-A", "--force")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.id("HEAD")

    def write(self, path: str, content: bytes) -> None:
        """Write a file."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(content)


def checkout(folder: Path) -> Checkout:
    """Make a repository whose one commit, on the branch main, holds a file of every kind that patches stumble over."""
    folder.mkdir(parents=True)
    made = Checkout(folder)
    made.git("init", "-q", "-b", "main")
    for path, content in {
        "plain.py": b"".join(b"line %d\n" % number for number in range(40)),
        "dos.txt": b"one\r\ntwo\r\nthree\r\n",
        "latin.txt": b"caf\xe9\nna\xefve\n",
        "blanks.py": b"if x:  \n\treturn\t\n    \nend\n",
        "void": b"",
        "data.bin": bytes(range(256)) * 3,
        "old/moved.py": b"".join(b"moved %d\n" % number for number in range(20)),
        "old/stays.py": b"stays\n",
    }.items():
        made.write(path, content)
    made.write("bin/run", b"#!/bin/sh\n")
    (folder / "bin" / "run").chmod(0o755)
    (folder / "inside").symlink_to("old/stays.py")
    made.commit("base")
    return made


def change(path: str, old: bytes, new: bytes) -> Change:
    """Return a change that replaces bytes of a file."""
    return lambda work: (work / path).write_bytes((work / path).read_bytes().replace(old, new))


def move(old: str, new: str) -> Change:
    """Return a change that renames a file."""

    def act(work: Path) -> None:
        (work / new).parent.mkdir(parents=True, exist_ok=True)
        (work / old).rename(work / new)

    return act


def put(path: str | bytes, content: bytes) -> Change:
    """Return a change that writes a file."""
    return lambda work: (work / os.fsdecode(path)).write_bytes(content)


def together(*changes: Change) -> Change:
    """Return a change that is several."""
    return lambda work: [change(work) for change in changes]


def link(path: str, target: str) -> Change:
    """Return a change that makes a symbolic link, in place of what is there."""
    return lambda work: ((work / path).unlink(missing_ok=True), (work / path).symlink_to(target))


SHAPES: Final[dict[str, Sequence[Change]]] = {
    "one line": [change("plain.py", b"line 7\n", b"line seven\n")],
    "several commits": [change("plain.py", b"line 7\n", b"seven\n"), change("plain.py", b"seven\n", b"7\n"), put("n", b"new\n")],
    "binary changed": [put("data.bin", bytes(reversed(range(256))) * 3)],
    "binary new": [put("new.so", bytes(range(256)) * 40)],
    "rename": [move("old/moved.py", "new/name.py")],
    "rename with change": [together(move("old/moved.py", "new/name.py"), change("new/name.py", b"moved 3\n", b"3\n"))],
    "rename, new in its place": [together(move("old/moved.py", "a.py"), put("old/moved.py", b"another\n"))],
    "mode": [lambda work: (work / "plain.py").chmod(0o755), lambda work: (work / "bin" / "run").chmod(0o644)],
    "CRLF changed": [change("dos.txt", b"two", b"TWO")],
    "CRLF new": [put("dos2.txt", b"a\r\nb \r\n\r\n")],
    "CRLF becomes LF": [change("dos.txt", b"\r", b"")],
    "not UTF-8": [change("latin.txt", b"na\xefve", b"\xa4\xff\xfe")],
    "name not UTF-8": [put(b"\xc4\xe3\xba\xc3.txt", b"x\n")],
    "name with blanks": [put('a "b"  c', b"x\n"), put("\u00e4 \u4f60", b"y\n")],
    "empty file": [put("empty", b""), lambda work: (work / "void").unlink()],
    "trailing whitespace": [change("blanks.py", b"end\n", b"end  \n\t \n\n\n"), put("tabs", b" \t x \n")],
    "no newline at the end": [change("plain.py", b"line 39\n", b"line 39")],
    "a form feed and a zero byte": [put("odd", b"a\x0cb\x00c\n"), change("plain.py", b"line 7\n", b"line\x0c7\n")],
    "deleted": [lambda work: (work / "old" / "moved.py").unlink()],
    "link new": [link("link", "old/moved.py")],
    "link changed": [link("inside", "bin/../plain.py")],
    "file becomes link": [link("void", "plain.py")],
    "link becomes file": [together(lambda work: (work / "inside").unlink(), put("inside", b"file\n"))],
    "a diff in the message": [change("plain.py", b"line 7\n", b"diff --git a/x b/x\n--- a/x\n")],
}
"""What a vendor did to its tree, a commit each."""
EVERYTHING: Final = tuple(
    change
    for name in ("several commits", "binary new", "rename with change", "mode", "CRLF changed", "not UTF-8", "link new")
    for change in SHAPES[name]
)


def vendors_tree(made: Checkout, changes: Sequence[Change]) -> str:
    """Commit the changes on a branch `vendor` that begins at `start`, go back to main, and return the id of the vendor's tree."""
    made.git("branch", "start")
    made.git("checkout", "-q", "-b", "vendor")
    for number, act in enumerate(changes, 1):
        act(made.folder)
        made.commit(f"change {number}\n\nwith a reason: na\u00efve")
    tree = made.id("HEAD^{tree}")
    made.git("checkout", "-q", "main")
    return tree


def mailbox(made: Checkout) -> bytes:
    """Return the vendor's commits as FlagScale's own tool of generation A writes them."""
    return made.git("format-patch", "start...vendor", "--stdout")


def diff(made: Checkout) -> bytes:
    """Return the vendor's changes as one diff."""
    return made.git("diff", "--binary", "start", "vendor")


def pieces(made: Checkout) -> dict[str, bytes]:
    """Return the diff cut into one piece a source file, by path, as generation C keeps it."""
    paths = [os.fsdecode(path) for path in made.git("diff", "--name-only", "-z", "start", "vendor").split(b"\0")[:-1]]
    sections: list[bytes] = []
    for section in re.split(rb"^(?=diff --git \"?a/)", diff(made), flags=re.MULTILINE)[1:]:
        if sections and sections[-1].split(b"\n")[0] == section.split(b"\n")[0]:  # a file that becomes a link is two sections
            sections[-1] += section
        else:
            sections.append(section)
    return dict(zip(paths, sections, strict=True))


def keep_a(made: Checkout, content: bytes, base: str, ending: str = ".patch") -> str:
    """Keep a patch as generation A does and return the commit."""
    made.write(f"hardware/{DEVICE}/{base[:8]}/{base[:8]}{ending}", content)
    return made.commit("keep")


def keep_b(made: Checkout, content: bytes, base: str, backend: str = "FlagScale", ending: str = ".patch", **facts: Any) -> str:
    """Keep a diff as generation B does and return the commit."""
    made.write(f"hardware/{DEVICE}/{backend}/diff{ending}", content)
    return tell(made, base, backend, "diff", facts)


def keep_c(made: Checkout, found: dict[str, bytes], base: str, backend: str = "FlagScale", **facts: Any) -> str:
    """Keep one patch a source file as generation C does and return the commit."""
    for path, content in found.items():
        made.write(f"hardware/{DEVICE}/{backend}/{path}.patch", content)
    return tell(made, base, backend, "diff", facts)


def tell(made: Checkout, base: str, backend: str, name: str, facts: dict[str, Any]) -> str:
    """Write a diff.yaml (in JSON, which is YAML) and return the commit."""
    known = {"backends_commit": {}, "commit": base, "contact": "", "device_type": DEVICE, "models": [], "task": ["inference"]}
    made.write(f"hardware/{DEVICE}/{backend}/{name}.yaml", json.dumps(known | facts).encode())
    return made.commit("keep")
