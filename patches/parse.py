"""What one patch changes, read as git reads it and with less patience: anything unclear or unsafe is refused."""

from __future__ import annotations

import base64
import os
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from release.errors import PatchError

INFLATED_LIMIT: Final = 256 << 20
"""Bytes that the binary files of one patch may unfold to, together: git holds them in memory."""
HUNK_LIMIT: Final = 50_000
"""Hunks that one patch may have. The largest patches of vendors have a few thousand."""
HEADER_LIMIT: Final = 16 << 10
"""Bytes of a line `diff --git`: two quoted paths fit."""

GIT_HEADER: Final = b"diff --git "
MODE: Final = re.compile(rb"(?P<what>old mode|new mode|deleted file mode|new file mode) (?P<mode>.*)")
INDEX: Final = re.compile(rb"index [0-9a-f]{4,64}\.\.[0-9a-f]{4,64}(?: (?P<mode>.*))?")
MOVE: Final = re.compile(rb"(?P<what>rename|copy) (?P<end>from|to) (?P<name>.*)")
SIMILARITY: Final = re.compile(rb"(?:dis)?similarity index [0-9]{1,3}%")
HUNK: Final = re.compile(rb"@@ -[0-9]{1,9}(?:,(?P<old>[0-9]{1,9}))? \+[0-9]{1,9}(?:,(?P<new>[0-9]{1,9}))? @@(?: .*)?", re.DOTALL)
BINARY: Final = re.compile(rb"(?P<kind>literal|delta) (?P<size>[0-9]{1,15})")
BASE85: Final = re.compile(rb"[A-Za-z](?:[0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]{5})+")
MODES: Final = (b"100644", b"100755")
VENDOR_MODES: Final = (b"120000", b"160000")
REFUSED_MODES: Final = {b"120000": "a symbolic link", b"160000": "a submodule", b"040000": "a folder"}
ESCAPES: Final = dict(zip(b'abtnvfr"\\', b'\a\b\t\n\v\f\r"\\', strict=True))
REMAKE: Final = "make the patch again with `git format-patch --binary` and put its digest into the series"
REFUSE: Final = (
    "do not use it: ask the vendor what it is for, and for a patch that `git format-patch --binary` makes from a sound tree"
)
INVISIBLE: Final = dict.fromkeys((*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF))
"""Characters that HFS+ leaves out of names (git's utf8.c)."""
DEVICES: Final = frozenset(("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))))
"""Names that are devices on Windows, with any ending."""


@dataclass(frozen=True)
class Change:
    """What a patch does to one file: its path before (None: created) and after (None: deleted), and its hunks' header lines.

    `modes` are the modes that it has or gets where they are not those of a plain file: 120000 a link, 160000 a submodule.
    """

    old: str | None
    new: str | None
    hunks: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()


def path_fault(path: str) -> str:
    """Return why `path` must not be written inside a tree, or an empty string where nothing is wrong with it.

    Good paths are relative, in normal form, without backslashes and control characters, name no device of Windows, and never
    reach into a `.git`, as Linux, NTFS or HFS+ would read it.
    """
    parts = path.split("/")
    encoded = path.encode("utf-8", "surrogateescape")
    faults = {
        "is empty": not path,
        "is absolute": path.startswith("/"),
        "has a backslash": "\\" in path,
        "has a control character": any(ord(char) < 32 or ord(char) == 127 for char in path),
        "leaves the tree with '..'": ".." in parts,
        "is not in normal form": "" in parts or "." in parts,
        "reaches into a .git": any(_plain(part) in (".git", "git~1") for part in parts),
        "names a device": any(_plain(part).split(".")[0].rstrip() in DEVICES for part in parts),
        "is too long": len(encoded) > 4095 or any(len(part) > 255 for part in encoded.split(b"/")),
    }
    return next((fault for fault, found in faults.items() if found), "")


def _plain(part: str) -> str:
    """Return a part of a path as the least exact filesystem compares it: no case, stream, trailing blanks and dots, or HFS+ filler."""
    return part.translate(INVISIBLE).split(":", 1)[0].rstrip(" .").casefold()


def changes_in(content: bytes, where: str, *, vendor: bool = False, submodules: Collection[str] = ()) -> tuple[Change, ...]:
    """Return what a patch changes, read as `git apply -p1` reads it; text around the diffs (a mail, a commit message) is skipped.

    Raises PatchError for absolute paths, `..`, `.git`, backslashes, symbolic links, submodules, binary changes without data or
    with too much of it, too many hunks, merges, diffs that are not in git's form, broken hunks, and a patch without any change.
    The patch of a `vendor`, whose tree is taken as it is, may have links (where they lead is for the one who applies it to look
    at), paths that are not UTF-8 (they come as surrogates), and the `submodules` that were announced.
    Format: git's Documentation/diff-generate-patch.txt and apply.c.
    """
    return _Parser(content, where, vendor, submodules).changes()


class _Parser:
    """A cursor over the lines of one patch. It understands less than git does, and refuses the rest."""

    def __init__(self, content: bytes, where: str, vendor: bool, submodules: Collection[str]) -> None:
        self._lines: Sequence[bytes] = content.split(b"\n")
        if self._lines[-1] == b"":
            self._lines = self._lines[:-1]
        self._at = 0
        self._where, self._vendor, self._submodules = where, vendor, submodules
        self._special: set[str] = set()
        self._hunks = self._inflated = 0

    def changes(self) -> tuple[Change, ...]:
        found: list[Change] = []
        while (line := self._peek()) is not None:
            if line.startswith(GIT_HEADER):
                found.append(self._change())
            elif line.startswith(b"@@ -"):
                self._refuse("a hunk belongs to no file")
            elif line.startswith((b"diff --cc ", b"diff --combined ")):
                self._refuse("it holds the diff of a merge")
            elif line.startswith(b"--- ") and (self._peek(1) or b"").startswith(b"+++ "):
                self._refuse("it is not in git's form: there is no line `diff --git`")
            else:
                self._at += 1
        if not found:
            self._refuse("it changes nothing")
        return tuple(found)

    def _change(self) -> Change:
        header = self._next()[len(GIT_HEADER) :]
        start = self._at
        self._special = set()
        modes, moves = self._extended_header()
        old = new = None
        names = (self._peek() or b"").startswith(b"--- ")
        if names:
            old, new = self._named(b"--- ", b"a/"), self._named(b"+++ ", b"b/")
            if not (self._peek() or b"").startswith(b"@@ -"):
                self._refuse("no hunk follows the line +++")
        elif moves:
            old, new = moves
        else:
            old = new = self._same_name(header)
        if not names and b"new file mode" in modes:
            old = None
        if not names and b"deleted file mode" in modes:
            new = None
        self._agree(header, old, new, modes, moves)
        hunks: list[str] = []
        while names and (self._peek() or b"").startswith(b"@@ -"):
            hunks.append(self._hunk())
        if not names:
            self._binary()
        if self._at == start:
            self._refuse("a line `diff --git` is followed by no change")
        if "160000" in self._special and (strange := {old, new} - {None, *self._submodules}):
            self._refuse(f"path {strange.pop()!r} is a submodule that was not announced")
        return Change(old, new, tuple(hunks), tuple(sorted(self._special)))

    def _extended_header(self) -> tuple[set[bytes], tuple[str, str] | None]:
        """Read the lines after `diff --git`; return which lines on modes there are, and the two ends of a rename or copy."""
        modes: set[bytes] = set()
        ends: dict[bytes, str] = {}
        while (line := self._peek()) is not None:
            if match := MODE.fullmatch(line):
                self._mode(match["mode"])
                modes.add(match["what"])
            elif match := INDEX.fullmatch(line):
                self._mode(match["mode"] or MODES[0])
            elif match := MOVE.fullmatch(line):
                ends[match["end"]] = self._path(self._unquoted(match["name"]))
            elif not SIMILARITY.fullmatch(line):
                break
            self._at += 1
        if len(ends) == 1:
            self._refuse("a rename or copy has only one end")
        return modes, (ends[b"from"], ends[b"to"]) if ends else None

    def _mode(self, mode: bytes) -> None:
        if self._vendor and mode in VENDOR_MODES:
            self._special.add(mode.decode())
        elif mode not in MODES:
            what = REFUSED_MODES.get(mode, "not a mode that a patch may set")
            self._refuse(f"mode {mode.decode('ascii', 'replace')!r} is {what}; plain files, 100644 and 100755, are accepted")

    def _named(self, mark: bytes, prefix: bytes) -> str | None:
        """Read a line `--- a/path` or `+++ b/path`; None for /dev/null."""
        line = self._peek() or b""
        if not line.startswith(mark):
            self._refuse(f"the line {mark.decode().strip()} is missing")
        name = line[len(mark) :]
        name = name if name.startswith(b'"') else name.split(b"\t", 1)[0]
        path = None if name == b"/dev/null" else self._path(self._unquoted(name), prefix)
        self._at += 1
        return path

    def _same_name(self, header: bytes) -> str:
        """Return the path of a section whose only names are those of `diff --git`: both must be the same."""
        names = [old for old, new in self._splits(header) if old[2:] == new[2:]]
        if not names:
            self._refuse("the line `diff --git` does not say one name twice, as `a/name b/name`")
        return self._path(names[0], b"a/")

    def _agree(self, header: bytes, old: str | None, new: str | None, modes: set[bytes], moves: tuple[str, str] | None) -> None:
        """Refuse a section whose lines name different files, so that nobody can read it in two ways."""
        wanted = (b"a/" + os.fsencode(old or new or ""), b"b/" + os.fsencode(new or old or ""))
        told = {b"new file mode": old is None, b"deleted file mode": new is None}
        if (
            wanted not in self._splits(header)
            or (moves and moves != (old, new))
            or (not moves and old != new and None not in (old, new))
            or (old is None and new is None)
            or any((line in modes) != found for line, found in told.items())
        ):
            self._refuse("its lines do not agree on which file is changed")

    def _splits(self, header: bytes) -> list[tuple[bytes, bytes]]:
        """Return every way to read `a/old b/new`; names with spaces are not quoted, so there can be several."""
        if len(header) > HEADER_LIMIT:
            self._refuse("the line `diff --git` is too long")
        found = []
        for split in re.finditer(b" ", header):
            left, right = header[: split.start()], header[split.end() :]
            if left.startswith((b"a/", b'"a/')) and right.startswith((b"b/", b'"b/')):
                try:
                    found.append((self._unquoted(left), self._unquoted(right)))
                except PatchError:
                    continue
        return found

    def _unquoted(self, name: bytes) -> bytes:
        """Undo git's C-style quotes: `"a\\303\\244"`. Names without quotes stay as they are."""
        if not name.startswith(b'"'):
            return name
        match = re.fullmatch(rb'"((?:[^"\\]|\\[abtnvfr"\\]|\\[0-3][0-7]{2})*)"(?:\t.*)?', name, re.DOTALL)
        if not match:
            self._refuse("a quoted path is broken")

        def plain(escape: re.Match[bytes]) -> bytes:
            return bytes([ESCAPES[escape[1][0]] if len(escape[1]) == 1 else int(escape[1], 8)])

        return re.sub(rb"\\([0-7]{3}|.)", plain, match[1])

    def _path(self, name: bytes, prefix: bytes = b"") -> str:
        try:
            path = name.removeprefix(prefix).decode(errors="surrogateescape" if self._vendor else "strict")
        except UnicodeDecodeError:
            self._refuse(f"path {name!r} is not UTF-8")
        if fault := path_fault(path) or ("" if name.startswith(prefix) else f"does not begin with {prefix.decode()}"):
            self._refuse(f"path {path!r} {fault}")
        return path

    def _hunk(self) -> str:
        """Read one hunk, counting its lines as the header announces them."""
        header = self._peek() or b""
        match = HUNK.fullmatch(header)
        if not match:
            self._refuse("the header of a hunk is broken")
        self._at += 1
        self._hunks += 1
        if self._hunks > HUNK_LIMIT:
            self._refuse(f"it has more than {HUNK_LIMIT} hunks")
        old, new = int(match["old"] or 1), int(match["new"] or 1)
        if not old and not new:
            self._refuse("a hunk is empty")
        while old or new:
            mark = (self._next() or b" ")[:1]
            if mark not in b" -+\\":
                self._refuse("a hunk is shorter than its header says", back=1)
            old -= mark in b" -"
            new -= mark in b" +"
            if old < 0 or new < 0:
                self._refuse("a hunk is longer than its header says", back=1)
        if (self._peek() or b"").startswith(b"\\ "):
            self._at += 1
        return header[: header.index(b" @@") + 3].decode("ascii")

    def _binary(self) -> None:
        """Read the data of a binary change where there is one: the way forward and, where given, the way back."""
        line = self._peek() or b""
        if line.startswith((b"Binary files ", b"Files ")) and line.endswith(b" differ"):
            self._refuse("a binary file changes, but the patch does not hold its data")
        if line != b"GIT binary patch":
            return
        self._at += 1
        if not self._binary_part():
            self._refuse("a binary change has no data")
        self._binary_part()

    def _binary_part(self) -> bool:
        match = BINARY.fullmatch(self._peek() or b"")
        if not match:
            return False
        self._at += 1
        start = self._at
        while self._next():
            if not BASE85.fullmatch(self._lines[self._at - 1]):
                self._refuse("the data of a binary change is broken", back=1)
        size = int(match["size"])
        if match["kind"] == b"delta":
            size = max(size, self._delta_target(self._lines[start : self._at - 1]))
        self._inflated += size
        if self._inflated > INFLATED_LIMIT:
            self._refuse(f"a binary change unfolds to {size} bytes; at most {INFLATED_LIMIT} are accepted in one patch")
        return True

    def _delta_target(self, lines: Sequence[bytes]) -> int:
        """Return how many bytes a delta makes. A delta begins with two sizes, seven bits a byte: git's gitformat-pack."""
        unfold, head = zlib.decompressobj(), b""
        try:
            for line in lines:
                length = line[0] - 64 if line[0] < 97 else line[0] - 70
                head += unfold.decompress(unfold.unconsumed_tail + base64.b85decode(line[1:])[:length], 32)
                if len(head) >= 20:
                    break
        except (ValueError, zlib.error):
            self._refuse("the data of a binary change is broken")
        sizes = re.findall(rb"[\x80-\xff]{0,9}[\x00-\x7f]", head[:20], re.DOTALL)
        if len(sizes) < 2:
            self._refuse("the data of a binary change is broken")
        return sum((byte & 127) << 7 * place for place, byte in enumerate(sizes[1]))

    def _peek(self, ahead: int = 0) -> bytes | None:
        place = self._at + ahead
        return self._lines[place] if place < len(self._lines) else None

    def _next(self) -> bytes:
        line = self._peek()
        if line is None:
            self._refuse("it ends in the middle of a change")
        self._at += 1
        return line

    def _refuse(self, why: str, back: int = 0) -> NoReturn:
        line = min(self._at - back, len(self._lines) - 1) + 1
        raise PatchError(f"patch refused at line {line}: {why}", where=self._where, next_step=REFUSE if self._vendor else REMAKE)
