"""How the patches of a set fit one commit: as they are, with patience for whitespace or context, or at which hunks not."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from release.errors import PatchError
from release.patches import mailbox
from release.patches.cipher import MAGIC
from release.patches.git import SUBMODULE, Repository, last_line
from release.patches.parse import GIT_HEADER, Change, changes_in
from release.patches.read import ENCRYPTED, PATCH_LIMIT, SERIES, Decrypt, patch_set, read_whole, verified
from release.patches.unpatch import BROKEN

CLEAN: Final = "clean"
WHITESPACE: Final = "whitespace"
FUZZ: Final = "fuzz"
FAILS: Final = "fails"
FITS: Final = (CLEAN, WHITESPACE, FUZZ, FAILS)
"""From good to bad. `fuzz` is less context than the patch has, or a three-way merge: a person has to look at what comes out."""
WAYS: Final = (
    (CLEAN, "--whitespace=nowarn"),
    (WHITESPACE, "--whitespace=fix"),
    (WHITESPACE, "--ignore-whitespace"),
    (FUZZ, "-C2"),
    (FUZZ, "-C1"),
    (FUZZ, "--3way"),
)
"""Options of `git apply`, in the order in which they are tried."""
APPLY: Final = ("-c", "core.quotePath=false", "apply", "--cached", "-p1")

MOVED: Final = re.compile(r"^Hunk #\d+ succeeded at \d+ \(offset -?\d+ lines?\)\.$", re.MULTILINE)
OUTCOME: Final = re.compile(r"(?P<what>Applying patch|Applied patch|Rejected hunk #|Hunk #)(?P<rest>.*)")
REJECTS: Final = re.compile(r" (?P<name>.*) with \d+ rejects?\.\.\.")
HUNK: Final = re.compile(rb"^@@ -\d+(?:,(?P<old>\d+))? ", re.MULTILINE)
SHOWN: Final = 80
"""Characters of a line that a reason quotes."""


@dataclass(frozen=True)
class Piece:
    """One patch to try: its name, its content, what it changes. Of a `secret` one, no reason quotes a line."""

    name: str
    content: bytes = field(repr=False)
    changes: tuple[Change, ...]
    secret: bool = False

    @property
    def touched(self) -> tuple[str, ...]:
        """Every path that the patch reads, writes or removes, sorted."""
        return tuple(sorted({path for change in self.changes for path in (change.old, change.new) if path}))


@dataclass(frozen=True)
class Failure:
    """What does not fit: a file, and which of its hunks, counted from 1, with its header line; hunk 0 is the file as a whole.

    `follows` says that an earlier patch of the set failed in this file already, so that this failure may go away with that one.
    """

    path: str
    hunk: int
    hunks: int
    header: str
    reason: str
    follows: bool = False


@dataclass(frozen=True)
class Step:
    """How one patch fits: one of FITS, the option of `git apply` that it took, how many hunks moved to other lines, what fails.

    `already` says that the tree holds the whole change.
    """

    patch: str
    fit: str
    way: str = ""
    moved: int = 0
    failures: tuple[Failure, ...] = ()
    already: bool = False


def piece(name: str, content: bytes, *, secret: bool = False) -> Piece:
    """Check a patch and return it as something to try. Raises PatchError as `changes_in` does for the patch of a vendor."""
    return Piece(name, content, changes_in(content, name, vendor=True), secret)


def pieces_of(place: Path, decrypt: Decrypt | None = None, *, scratch: Path | None = None) -> tuple[Piece, ...]:
    """Read what is to be tried: the folder of a patch set, or a file with a mailbox (a piece for each mail) or a diff.

    Encrypted ones are opened with `decrypt`; mails lie in a private folder under `scratch` meanwhile. Raises PatchError for what is
    none of these, and for unsafe patches.
    """
    if not place.is_dir():
        return pieces_in([(place.name, read_whole(place, PATCH_LIMIT, place.name))], decrypt, scratch=scratch)
    if not (place / SERIES).exists():
        raise PatchError(f"there is no {SERIES} in the folder", where=str(place), next_step="name a patch set, or one patch file")
    patches = patch_set(place, decrypt).patches
    return tuple(Piece(patch.file, verified(patch), patch.changes, patch.decrypt is not None) for patch in patches)


def pieces_in(
    patches: Iterable[tuple[str, bytes]], decrypt: Decrypt | None = None, *, whole: str = "", scratch: Path | None = None
) -> tuple[Piece, ...]:
    """Return what is to be tried of some patches, by name and content as they were found, as `pieces_of` does for a file.

    With `whole`, they are one diff that was cut into files: it is put together again, and that is its name.
    """
    opened = [_opened(name, content, decrypt) for name, content in patches]
    if whole:
        joined = b"".join(text if text.endswith(b"\n") else text + b"\n" for _, text, _ in opened)
        return (piece(whole, joined, secret=any(secret for _, _, secret in opened)),)
    pieces: list[Piece] = []
    with tempfile.TemporaryDirectory(prefix="mails-", dir=scratch) as folder:
        repository = Repository.create(Path(folder), "mailbox")
        for name, text, secret in opened:
            mails = [text]
            if text.startswith(mailbox.START):
                mails = mailbox.diffs(repository, text, name, keep_cr=not BROKEN.search(text))
            names = [name] if len(mails) == 1 else [f"{name}#{number}" for number in range(1, len(mails) + 1)]
            pieces += [piece(one, mail, secret=secret) for one, mail in zip(names, mails, strict=True)]
    return tuple(pieces)


def _opened(name: str, content: bytes, decrypt: Decrypt | None) -> tuple[str, bytes, bool]:
    """Return name, plaintext, and whether the patch was encrypted."""
    if not (name.endswith(ENCRYPTED) or content.startswith(MAGIC)):
        return name, content, False
    if not decrypt:
        raise PatchError(
            "the patch is encrypted, and no key is at hand", where=name, next_step="name the private key for it with --key FILE"
        )
    return name, decrypt(content, name), True


def try_on(repository: Repository, commit: str, pieces: Sequence[Piece]) -> tuple[Step, ...]:
    """Apply the pieces in order to the tree of `commit`, in the index of `repository` and nowhere else; say how each of them fits.

    What fits of a patch that does not is applied all the same, file by file, so that the next ones are judged by themselves.
    """
    repository.run("read-tree", commit)
    steps: list[Step] = []
    broken: set[str] = set()
    for one in pieces:
        step = _fitted(repository, one) or _failed(repository, one, broken)
        broken.update(failure.path for failure in step.failures)
        steps.append(step)
    return tuple(steps)


def worst(fits: Sequence[str]) -> str:
    """Return the worst of some fits."""
    return max(fits, key=FITS.index, default=CLEAN)


def _fitted(repository: Repository, one: Piece) -> Step | None:
    """Apply a patch in the first of WAYS that works. What the tree holds already is not merged into it once more."""
    for fit, way in WAYS:
        if way == "-C2" and _held(repository, one):
            return None
        before = repository.tree() if way == "--3way" else ""
        status, _, told = repository.execute(*APPLY, "-v", way, "-", given=one.content)
        if not status:
            return Step(one.name, fit, "" if fit == CLEAN else way, len(MOVED.findall(told)))
        if before:  # a merge with conflicts leaves them in the index
            repository.run("read-tree", before)
    return None


def _held(repository: Repository, one: Piece) -> bool:
    return not repository.execute(*APPLY, "--whitespace=nowarn", "--reverse", "--check", "-", given=one.content)[0]


def _failed(repository: Repository, one: Piece, broken: set[str]) -> Step:
    """Find out what does not fit, then apply the files that do."""
    _see_files(repository, one)
    for path in one.touched:  # git lists the hunks that it rejects only where it can write them down
        with contextlib.suppress(OSError):
            (repository.folder / "nowhere" / path).parent.mkdir(parents=True, exist_ok=True)
    outcomes = repository.execute(*APPLY, "--whitespace=nowarn", "--reject", "-", given=one.content)[2]
    complaint = repository.execute(*APPLY, "--whitespace=nowarn", "--check", "-", given=one.content)[2]
    failures = tuple(_failures(repository, one, outcomes, complaint, broken))
    already = _held(repository, one)
    if not already:
        left_out = {re.sub(r"([*?\[\\])", r"\\\1", failure.path) for failure in failures}
        exclude = [f"--exclude={path}" for path in sorted(left_out)]
        repository.execute(*APPLY, "--whitespace=nowarn", *exclude, "-", given=one.content)
    return Step(one.name, FAILS, failures=failures, already=already)


def _see_files(repository: Repository, one: Piece) -> None:
    """Raise PatchError where git does not have a file that the patch is for: nothing is known of the patch then."""
    touched = set(one.touched)
    lines = (line.partition("\t") for line in repository.run("ls-files", "--stage", "-z").split("\0")[:-1])
    ids = {path: head.split()[1] for head, _, path in lines if path in touched and not head.startswith(SUBMODULE)}
    answers = repository.run("cat-file", "--batch-check", given="".join(f"{id}\n" for id in ids.values()).encode()).splitlines()
    for path, answer in zip(ids, answers, strict=True):
        if answer.endswith(" missing"):
            raise PatchError(
                f"the repository lacks the content of {path!r}",
                where=repository.name,
                next_step="fetch it: this is a partial clone",
            )


def _failures(repository: Repository, one: Piece, outcomes: str, complaint: str, broken: set[str]) -> Iterator[Failure]:
    """Read what git says: with `--reject`, which hunks it rejected; with `--check`, which files it could not begin with."""
    hunks, reasons = _rejected(outcomes, one.changes), _reasons(complaint, one.touched)
    sections = re.split(rb"^(?=%s)" % GIT_HEADER, one.content, flags=re.MULTILINE)[1:]
    found = False
    for change, section, numbers in zip(one.changes, sections, hunks, strict=True):
        path = change.new or change.old or ""
        follows = bool(broken & {change.old, change.new})
        reason = next((reasons[name] for name in (change.old, change.new) if name and name in reasons), "")
        for number in numbers:
            why = "" if one.secret else _missing(repository, change.old or path, section, number)
            header = change.hunks[number - 1] if number <= len(change.hunks) else ""
            yield Failure(path, number, len(change.hunks), header, why or "its lines are not there", follows)
        if reason and not numbers:
            yield Failure(path, 0, len(change.hunks), "", reason, follows)
        found = found or bool(numbers or reason)
    if not found:
        yield Failure(
            one.touched[0] if len(one.touched) == 1 else "", 0, 0, "", last_line(complaint), bool(broken & set(one.touched))
        )


def _rejected(told: str, changes: Sequence[Change]) -> list[list[int]]:
    """Return the rejected hunks of each change. What git says of outcomes stands at the end, after all lines that it quotes."""
    lines = told.rstrip("\n").split("\n")
    start = next((number for number in range(len(lines), 0, -1) if not OUTCOME.match(lines[number - 1])), 0)
    found: list[list[int]] = [[] for _ in changes]
    open_ = {place: _shown(change) for place, change in enumerate(changes)}
    current: list[int] = []
    for line in lines[start:]:
        if line.startswith("Applying patch") and (match := REJECTS.fullmatch(line.removeprefix("Applying patch"))):
            place = next((place for place, name in open_.items() if name == match["name"]), None)
            current = found[place] if place is not None else []
            open_.pop(place if place is not None else -1, None)
        elif line.startswith("Rejected hunk #"):
            current.append(int(line.removeprefix("Rejected hunk #").rstrip(".")))
    return found


def _shown(change: Change) -> str:
    """Return how git names a change in what it says."""
    old, new = (
        f'"{name.replace(chr(34), chr(92) + chr(34))}"' if '"' in name else name for name in (change.old or "", change.new or "")
    )
    return f"{old} => {new}" if old and new and old != new else new or old


def _reasons(complaint: str, paths: Sequence[str]) -> Mapping[str, str]:
    """Return why git could not begin with a file, for those where it says so. Without `-v`, no line of a file is quoted."""
    reasons: dict[str, str] = {}
    known = set(paths)
    for line in complaint.split("\n"):
        path, mark, reason = line.removeprefix("error: ").rpartition(": ")
        if mark and line.startswith("error: ") and path in known and not re.fullmatch(r"\d+", reason):
            last = "patch does not apply"
            if path not in reasons or reasons[path] == last:
                reasons[path] = reason
    binary = "its content is not the one that the change was made for"
    return {path: binary if reason == "patch does not apply" else reason for path, reason in reasons.items()}


def _missing(repository: Repository, path: str, section: bytes, number: int) -> str:
    """Say which line a hunk looks for in vain, the first one, or that all are there but not in a row."""
    status, content, _ = repository.execute("cat-file", "blob", f":0:{path}")
    starts = [match.start() for match in HUNK.finditer(section)]
    if status or number > len(starts):
        return ""
    match = HUNK.match(section, starts[number - 1])
    left = int(match["old"] or 1) if match else 0
    there = set(content.split(b"\n"))
    for line in section[starts[number - 1] :].split(b"\n")[1:]:
        if left and line[:1] in (b"", b" ", b"-"):
            left -= 1
            if line[1:] not in there:
                return f"there is no line {_legible(line[1:])!r}"
    return "its lines are there, but not one after the other"


def _legible(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
