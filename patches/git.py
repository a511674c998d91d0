"""Git as this room uses it: a repository of our own, in which nothing that came from elsewhere can run anything."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from release.errors import PatchError
from release.processes import FULL, find, tied

if TYPE_CHECKING:
    from git import Git

FILE: Final = "100644"
PROGRAM: Final = "100755"
LINK: Final = "120000"
SUBMODULE: Final = "160000"
NOTHING: Final = "000000"
CHUNK: Final = 1 << 20
EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
PROTOCOLS: Final = ("https", "ssh", "file")
"""How a repository may be reached. Everything else is refused by git itself: `ext::` runs a command, `git` and `http` prove nothing."""
IDENTITY: Final = ("release", "release@localhost")
DATE: Final = "@1793491200 +0000"
"""1 November 2026: every commit that we make has this date and IDENTITY, so that its id depends on what it holds alone."""
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
INSTALL: Final = "install git (Debian: apt-get install git), or name it in GIT_PYTHON_GIT_EXECUTABLE"
HELD_BACK: Final = 5.0
"""Seconds that git gets to remove its own temporary files when it is stopped."""
CONFIGURATION: Final = """\
[core]
\trepositoryformatversion = 0
\tbare = false
\tattributesFile = /dev/null
\tautocrlf = false
\texcludesFile = /dev/null
\tfileMode = true
\tfsmonitor = false
\thooksPath = /dev/null
\tignoreCase = false
\tlogAllRefUpdates = false
\tprecomposeUnicode = false
\tprotectHFS = false
\tprotectNTFS = false
[advice]
\tdetachedHead = false
[fetch]
\trecurseSubmodules = false
\twriteCommitGraph = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[protocol]
\tallow = never
"""
PRIVATE: Final = "[core]\n\tcompression = 0\n"
"""What a repository that lives for one piece of work has besides: its objects are not worth compressing."""
ATTRIBUTES: Final = "* -text !eol -ident !filter !working-tree-encoding !diff !merge !whitespace !export-ignore !export-subst\n"
"""In `info/attributes`, which has the last word: what the `.gitattributes` of a tree say means nothing."""
REACHING: Final = re.compile(
    r"url\..*\.insteadof|credential\..*|http\..*|core\.sshcommand|ssh\.variant|safe\.directory", re.DOTALL
)
"""Keys of the user's own configuration that decide how a repository is reached; no others are looked at."""


@dataclass(frozen=True)
class Entry:
    """A file of a tree as git knows it: mode and id of its content."""

    mode: str
    id: str


class Repository:
    """A git directory `<folder>/git` and an empty work tree beside it, with nothing of the user's: no configuration, hooks, attributes.

    `name` is where an error says that it happened. Several threads may run git in one repository, but there is one index.
    """

    def __init__(self, folder: Path, name: str, *, objects: Sequence[Path] = ()) -> None:
        """Open the repository that `create` made in `folder`; `objects` are the object folders of others that it reads from."""
        self.folder, self.name = folder, name
        self.own = folder / "git"
        self._git = _git()(folder / "nowhere")
        self._reaching: dict[str, str] | None = None
        self._environment = {
            "GIT_DIR": str(self.own),
            "GIT_COMMON_DIR": str(self.own),
            "GIT_WORK_TREE": str(folder / "nowhere"),
            "GIT_INDEX_FILE": str(self.own / "index"),
            "GIT_OBJECT_DIRECTORY": str(self.own / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(_quoted(path) for path in objects),
            "GIT_ALLOW_PROTOCOL": ":".join(PROTOCOLS),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_PARAMETERS": "",
            "GIT_CONFIG_COUNT": "0",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_DEFAULT_HASH": "sha1",
            "GIT_NAMESPACE": "",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TEMPLATE_DIR": str(folder / "nowhere"),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": IDENTITY[0],
            "GIT_AUTHOR_EMAIL": IDENTITY[1],
            "GIT_AUTHOR_DATE": DATE,
            "GIT_COMMITTER_NAME": IDENTITY[0],
            "GIT_COMMITTER_EMAIL": IDENTITY[1],
            "GIT_COMMITTER_DATE": DATE,
            "HOME": str(folder / "nowhere"),
            "XDG_CONFIG_HOME": str(folder / "nowhere"),
        }
        if "GIT_ATTR_SOURCE" in os.environ:
            self._environment["GIT_ATTR_SOURCE"] = EMPTY_TREE

    @classmethod
    def create(cls, folder: Path, name: str, *, objects: Sequence[Path] = (), configuration: str = PRIVATE) -> Self:
        """Make an empty repository in `folder`, which is there and ours alone. No process runs."""
        (folder / "nowhere").mkdir()
        for inner in ("git/objects/pack", "git/objects/info", "git/refs/heads", "git/refs/tags", "git/info"):
            (folder / inner).mkdir(parents=True)
        (folder / "git" / "config").write_text(CONFIGURATION + configuration)
        (folder / "git" / "info" / "attributes").write_text(ATTRIBUTES)
        (folder / "git" / "HEAD").write_text("ref: refs/heads/main\n")
        return cls(folder, name, objects=objects)

    def load(self, entries: Mapping[str, Entry]) -> None:
        """Make `entries` the index."""
        lines = (f"{entry.mode} {entry.id}\t{path}\0" for path, entry in sorted(entries.items()))
        self.run("update-index", "-z", "--index-info", given=b"".join(map(os.fsencode, lines)))

    def keep(self, tree: Path, wanted: Mapping[str, str]) -> None:
        """Take the content of the files at these paths, whose ids are given, into the repository."""
        if not wanted:
            return
        if "\n" in str(tree):
            raise PatchError(f"the path of the tree has a line break: {str(tree)!r}", where=self.name)
        given = os.fsencode("".join(f"{tree / path}\n" for path in wanted))
        if self.run("hash-object", "-w", "--no-filters", "--stdin-paths", given=given).split() != list(wanted.values()):
            raise PatchError(f"the tree {tree} changed while it was read", where=self.name, next_step="start again")

    def tree(self) -> str:
        """Return the id of the tree that the index holds. The files that no patch touches need not be in the repository."""
        return self.run("write-tree", "--missing-ok").strip()

    def changes(self, before: str, after: str) -> dict[str, Entry]:
        """Return the entries that differ between two trees, as they are in the second; a deleted one has the mode NOTHING."""
        fields = self.run("diff-tree", "-r", "-z", "--no-renames", "--no-ext-diff", before, after).split("\0")[:-1]
        pairs = zip(fields[0::2], fields[1::2], strict=True)
        return {path: Entry(mode=head.split()[1], id=head.split()[3]) for head, path in pairs}

    def entries(self, tree: str, under: str = "") -> dict[str, Entry]:
        """Return every file, link and submodule of a tree (or of a commit's tree), by path; only those below the folder `under`."""
        lines = self.run("ls-tree", "-r", "-z", "--full-tree", tree, *([under.rstrip("/") + "/"] if under else [])).split("\0")[
            :-1
        ]
        found = {}
        for line in lines:
            head, _, path = line.partition("\t")
            mode, _, id = head.split(" ")
            found[path] = Entry(mode, id)
        return found

    def sizes(self, tree: str) -> dict[str, int]:
        """Return the bytes of every file and link of a tree, by path."""
        lines = self.run("ls-tree", "-r", "-z", "--long", "--full-tree", tree).split("\0")[:-1]
        heads = {path: head.split() for head, _, path in (line.partition("\t") for line in lines)}
        return {path: int(head[3]) for path, head in heads.items() if head[3] != "-"}

    def contents(self, ids: Sequence[str]) -> dict[str, Path]:
        """Write each blob into a file of its own under the repository's folder, and return where they are, by id."""
        where = Path(tempfile.mkdtemp(prefix="contents-", dir=self.folder))
        for id, size, stream in self._batch(ids):
            with (where / id).open("wb") as sink:
                for at in range(0, size, CHUNK):
                    sink.write(stream.read(min(CHUNK, size - at)))
        return {id: where / id for id in ids}

    def blobs(self, ids: Collection[str], limit: int) -> dict[str, bytes]:
        """Return the content of blobs by id. Raises PatchError, before any is read, when together they have more bytes than `limit`."""
        given = "".join(f"{id}\n" for id in sorted(set(ids))).encode()
        sizes = [line.split()[-1] for line in self.run("cat-file", "--batch-check", given=given).splitlines()] if ids else []
        if (total := sum(int(size) for size in sizes if size.isdecimal())) > limit:
            raise PatchError(f"{len(sizes)} files have {total} bytes; at most {limit} are read", where=self.name)
        return {id: stream.read(size) for id, size, stream in self._batch(ids)}

    def _batch(self, ids: Collection[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
        """Yield id, size and a stream for each blob; whoever gets the stream reads as many bytes from it."""
        if not ids:
            return
        with tempfile.TemporaryFile(dir=self.folder) as stream:
            self.run("cat-file", "--batch", given="".join(f"{id}\n" for id in sorted(set(ids))).encode(), output=stream)
            stream.seek(0)
            while header := stream.readline():
                id, kind, *size = header.decode().split()
                if kind != "blob":
                    raise PatchError(
                        f"object {id} is {'missing' if kind == 'missing' else f'no file but a {kind}'}", where=self.name
                    )
                yield id, int(size[0]), stream
                stream.readline()

    def run(self, *arguments: str, given: bytes = b"", output: IO[bytes] | None = None, umask: int = -1) -> str:
        """Run git and return what it prints, undecodable bytes as surrogates. Raises PatchError with git's last line when it fails.

        `given` is its standard input; with `output`, its standard output goes there and nothing is returned.
        """
        return self._checked(arguments, self.execute(*arguments, given=given, output=output, umask=umask))

    def reach(self, *arguments: str, given: bytes = b"") -> str:
        """Run a git that goes to a server, as `run`. Only here the user's own configuration counts, and of it only REACHING."""
        return self._checked(arguments, self.try_to_reach(*arguments, given=given))

    def try_to_reach(self, *arguments: str, given: bytes = b"") -> tuple[int, bytes, str]:
        """Run a git that goes to a server, and return status, output and complaint, as `execute`.

        The user's home is visible to it, for credential helpers, netrc and ssh; no terminal is asked. It dies when we die.
        """
        environment = {name: value for name, value in self._environment.items() if name not in ("HOME", "XDG_CONFIG_HOME")}
        if self._reaching is None:
            self._reaching = self._users_way()
        return self._start([*tied(), self._program(), *arguments], given, None, {**environment, **self._reaching})

    def execute(
        self, *arguments: str, given: bytes = b"", output: IO[bytes] | None = None, umask: int = -1
    ) -> tuple[int, bytes, str]:
        """Run git and return its status, its output (empty where it went to `output`) and what it complained of."""
        return self._start([self._program(), *arguments], given, output, self._environment, umask=umask)

    def _checked(self, arguments: Sequence[str], answer: tuple[int, bytes, str]) -> str:
        status, printed, complaint = answer
        if status:
            verb = arguments[2] if arguments[0] == "-c" else arguments[0]
            raise PatchError(f"git {verb} ended with status {status}: {last_line(complaint)}", where=self.name)
        return os.fsdecode(printed)

    def _program(self) -> str:
        program = str(self._git.GIT_PYTHON_GIT_EXECUTABLE or "git")
        if not (found := find(program)):
            raise PatchError("git is not installed, or cannot be started", where=self.name, next_step=INSTALL)
        return found

    def _users_way(self) -> dict[str, str]:
        """Return the part of the user's configuration that decides how repositories are reached, as environment variables."""
        environment = {"GIT_DIR": str(self.own)}
        status, printed, complaint = self._start(
            [self._program(), "config", "--list", "--null", "--show-scope", "--includes"], b"", None, environment
        )
        if status:
            raise PatchError(f"your git configuration cannot be read: {last_line(complaint)}", where=self.name)
        fields = os.fsdecode(printed).split("\0")[:-1]
        pairs = [
            (key, value if told else "true")
            for scope, (key, told, value) in zip(fields[0::2], (field.partition("\n") for field in fields[1::2]), strict=True)
            if scope in ("system", "global", "command") and REACHING.fullmatch(key)
        ]
        found = {"GIT_CONFIG_COUNT": str(len(pairs))}
        for number, (key, value) in enumerate(pairs):
            found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return found

    def _start(
        self, argv: Sequence[str], given: bytes, output: IO[bytes] | None, environment: Mapping[str, str], *, umask: int = -1
    ) -> tuple[int, bytes, str]:
        from git.exc import GitError

        with tempfile.TemporaryFile(dir=self.folder) as stream:
            try:
                stream.write(given)
                stream.seek(0)
            except OSError as problem:
                raise no_space(self.folder, self.name) if problem.errno in NO_SPACE else problem from problem
            try:
                running = self._git.execute(list(argv), istream=stream, as_process=True, env=dict(environment), umask=umask)
            except (GitError, OSError) as problem:
                raise PatchError("git is not installed, or cannot be started", where=self.name, next_step=INSTALL) from problem
            with _ended(running.proc) as process:
                if output is None:
                    printed, complaint = process.communicate()
                else:
                    printed, complaint = b"", _copied(process, output)
        text = complaint.decode("utf-8", "replace")
        if process.returncode and FULL in text:
            raise no_space(self.folder, self.name)
        return process.returncode, printed, text


def no_space(place: Path, where: str) -> PatchError:
    """Return the error for a disk that is full."""
    return PatchError(
        f"no space left on the disk of {place}",
        where=where,
        next_step="free some space, or take another disk: RELEASE_STORE for what is fetched, --into for what is restored",
    )


@contextlib.contextmanager
def _ended(process: Any) -> Iterator[Any]:
    """Give back a process, and see that it has ended when we go on, however that comes."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(Exception):
                process.wait(HELD_BACK)
            if process.poll() is None:
                process.kill()
                process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def _copied(process: Any, output: IO[bytes]) -> bytes:
    """Copy what a process prints, and return what it complains of, read meanwhile so that it never waits for us."""
    complaint: list[bytes] = []
    listener = threading.Thread(target=lambda: complaint.append(process.stderr.read()), daemon=True)
    listener.start()
    shutil.copyfileobj(process.stdout, output, CHUNK)
    process.wait()
    listener.join()
    return b"".join(complaint)


def _git() -> type[Git]:
    """Import GitPython, which runs git as it is imported: late, and with an answer where there is no git."""
    try:
        from git import Git
    except ModuleNotFoundError as problem:
        raise PatchError("GitPython is not installed", next_step="pip install gitpython") from problem
    except ImportError as problem:
        raise PatchError("git is not installed, or cannot be started", next_step=INSTALL) from problem
    return Git


def _quoted(path: Path) -> str:
    """Return a path as git reads it in a list with colons: in C's quotes."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def last_line(complaint: str) -> str:
    """Return the last line in which git says what is wrong, without names and passwords of addresses."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    faults = [line for line in lines if line.startswith(("error: ", "fatal: "))] or lines
    line = faults[-1].removeprefix("error: ").removeprefix("fatal: ") if faults else "git does not say why"
    return re.sub(r"://[^/@\s]+@", "://", line)
