"""Patches are applied exactly or not at all, with tree ids that are the same on every host, by a git that knows no user."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from release.errors import PatchError
from release.patches.apply import Applied, apply
from release.patches.parse import changes_in
from release.patches.read import Patch, PatchSet, patch_set

pytestmark = pytest.mark.integration

BASE = "02320a022cb3e6faebb8ece115444621da0e4b4e"
"""Id of the tree that `tree` makes; PATCHED with TWO in a.txt. Both as `git add -A; git write-tree` of git 2.39 gives them."""
PATCHED = "3845ca81a190092380fb3a74f079fc81a6334664"
CAPITALS = b"diff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
LINK = b"diff --git a/evil b/evil\nnew file mode 120000\n--- /dev/null\n+++ b/evil\n@@ -0,0 +1 @@\n+/etc/passwd\n"
SEALED = {
    **os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip

Snapshot = dict[str, tuple[int, int, bytes]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (root := tmp_path / "tree").mkdir()
    fill(root)
    (tmp_path / "scratch").mkdir()
    return root


def fill(root: Path) -> None:
    (root / "bin").mkdir()
    (root / "lib").mkdir()
    (root / "a.txt").write_text("one\ntwo\nthree\n")
    (root / "bin" / "run").write_text("#!/bin/sh\n")
    (root / "bin" / "run").chmod(0o755)
    (root / "lib" / "b.bin").write_bytes(b"\0\1")


def series(tmp_path: Path, *patches: bytes) -> PatchSet:
    (where := tmp_path / "engine" / "1.0").mkdir(parents=True)
    lines = []
    for number, content in enumerate(patches, 1):
        (where / f"{number:04}.patch").write_bytes(content)
        lines.append(f"{number:04}.patch sha256:{hashlib.sha256(content).hexdigest()}\n")
    (where / "series").write_text("".join(lines))
    return patch_set(where)


def run(tmp_path: Path, tree: Path, *patches: bytes) -> Applied:
    return apply(tree, series(tmp_path, *patches), scratch=tmp_path / "scratch")


def snapshot(tree: Path) -> Snapshot:
    found: Snapshot = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(tree))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def git(*arguments: str, cwd: Path) -> bytes:
    return subprocess.run(["git", *arguments], cwd=cwd, env=SEALED, check=True, capture_output=True).stdout


def diff(tmp_path: Path, change: Callable[[Path], object], *options: str) -> bytes:
    """Return what git itself writes for a change to the tree."""
    (work := tmp_path / "work").mkdir()
    fill(work)
    git("init", "-q", cwd=work)
    git("add", "-A", cwd=work)
    git("commit", "-qm", "base", cwd=work)
    change(work)
    git("add", "-A", cwd=work)
    git("commit", "-qm", "change\n\nwith a reason", cwd=work)
    return git("format-patch", "-1", "--stdout", "--binary", "--find-renames", "--find-copies-harder", *options, cwd=work)


def test_a_tree_and_its_patched_form_have_known_ids(tmp_path: Path, tree: Path) -> None:
    assert run(tmp_path, tree, CAPITALS) == Applied(BASE, PATCHED, ("a.txt",))
    assert (tree / "a.txt").read_text() == "one\nTWO\nthree\n"
    assert not list((tmp_path / "scratch").iterdir())
    assert sorted(path.name for path in tree.iterdir()) == ["a.txt", "bin", "lib"]


def test_ids_do_not_depend_on_permissions_times_and_empty_folders(tmp_path: Path, tree: Path) -> None:
    (tree / "a.txt").chmod(0o664)
    (tree / "bin" / "run").chmod(0o700)
    (tree / "empty").mkdir()
    os.utime(tree / "lib" / "b.bin", (1, 1))
    assert run(tmp_path, tree, CAPITALS) == Applied(BASE, PATCHED, ("a.txt",))


def test_the_users_git_configuration_environment_and_repository_mean_nothing(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home := tmp_path / "home").mkdir()
    (hooks := home / "hooks").mkdir()
    for hook in ("post-index-change", "reference-transaction"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {home}/ran\n")
        (hooks / hook).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n autocrlf = true\n fileMode = false\n hooksPath = {hooks}\n attributesFile = {home}/attributes\n"
        "[apply]\n whitespace = error-all\n ignoreWhitespace = change\n"
        f"[init]\n templateDir = {home}\n defaultObjectFormat = sha256\n"
    )
    (home / "attributes").write_text("* text eol=crlf ident whitespace=trailing-space,tab-in-indent\n")
    git("init", "-q", str(tmp_path), cwd=tmp_path)
    before = snapshot(tmp_path / ".git")
    for name, value in {
        "HOME": str(home), "XDG_CONFIG_HOME": str(home), "GIT_DIR": str(tmp_path / ".git"), "GIT_WORK_TREE": str(tree),
        "GIT_INDEX_FILE": str(tmp_path / ".git" / "index"), "GIT_OBJECT_DIRECTORY": str(tmp_path / ".git" / "objects"),
        "GIT_COMMON_DIR": str(tmp_path / ".git"), "GIT_CONFIG_PARAMETERS": "'core.autocrlf'='true'", "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": str(hooks), "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_DEFAULT_HASH": "sha256", "GIT_TEMPLATE_DIR": str(home), "GIT_ATTR_SOURCE": "nothing", "LC_ALL": "de_DE.UTF-8",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run(tmp_path, tree, CAPITALS) == Applied(BASE, PATCHED, ("a.txt",))
    assert not (home / "ran").exists()
    assert snapshot(tmp_path / ".git") == before


def test_attributes_and_ignore_files_in_the_tree_mean_nothing(tmp_path: Path, tree: Path) -> None:
    (tree / ".gitattributes").write_text("* text=auto eol=crlf ident working-tree-encoding=UTF-16\n")
    (tree / ".gitignore").write_text("*\n")
    (tree / "lib" / "crlf").write_bytes(b"$Id$\r\n")
    applied = run(tmp_path, tree, CAPITALS)
    (plain := tmp_path / "plain").mkdir()
    git("init", "-q", cwd=plain)
    entries = []
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            blob = git("hash-object", "-w", "--no-filters", str(path), cwd=plain).decode().strip()
            entries.append(f"{'100755' if os.access(path, os.X_OK) else '100644'},{blob},{path.relative_to(tree)}")
    git("update-index", "--add", *(word for entry in entries for word in ("--cacheinfo", entry)), cwd=plain)
    assert applied.tree == git("write-tree", cwd=plain).decode().strip()
    assert (tree / "lib" / "crlf").read_bytes() == b"$Id$\r\n"


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a rename": (lambda work: (work / "a.txt").rename(work / "c d.txt"), ("a.txt", "c d.txt")),
    "a rename that empties a folder": (lambda work: (work / "lib" / "b.bin").rename(work / "b.bin"), ("b.bin", "lib/b.bin")),
    "a copy": (lambda work: (work / "copy").write_bytes((work / "a.txt").read_bytes()), ("copy",)),
    "a mode": (lambda work: (work / "a.txt").chmod(0o755), ("a.txt",)),
    "a mode taken": (lambda work: (work / "bin" / "run").chmod(0o644), ("bin/run",)),
    "a binary file": (lambda work: (work / "lib" / "b.bin").write_bytes(bytes(range(256)) * 9), ("lib/b.bin",)),
    "a new binary file": (lambda work: (work / "new.bin").write_bytes(b"\0" * 99), ("new.bin",)),
    "an empty file": (lambda work: (work / "empty").touch(), ("empty",)),
    "a file deleted": (lambda work: (work / "lib" / "b.bin").unlink(), ("lib/b.bin",)),
    "a name in another script": (lambda work: (work / 'ä "q"').write_text("x\n"), ('ä "q"',)),
    "no line break at the end": (lambda work: (work / "a.txt").write_text("one\ntwo\nthree"), ("a.txt",)),
    "line breaks of another kind": (lambda work: (work / "a.txt").write_bytes(b"one\r\ntwo\r\nthree \r\n"), ("a.txt",)),
}


@pytest.mark.parametrize(("change", "changed"), CHANGES.values(), ids=CHANGES)
def test_what_git_writes_is_applied_and_gives_gits_own_tree(
    tmp_path: Path, tree: Path, change: Callable[[Path], object], changed: tuple[str, ...]
) -> None:
    patch = diff(tmp_path, change)
    applied = run(tmp_path, tree, patch)
    assert applied.changed == changed
    assert (applied.base_tree, applied.tree) == tuple(
        git("rev-parse", f"{commit}^{{tree}}", cwd=tmp_path / "work").decode().strip() for commit in ("HEAD~", "HEAD")
    )
    tracked = git("ls-files", "-z", cwd=tmp_path / "work").decode().split("\0")[:-1]
    assert sorted(tracked) == sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())
    for path in tracked:
        assert (tree / path).read_bytes() == (tmp_path / "work" / path).read_bytes()
        assert os.access(tree / path, os.X_OK) == os.access(tmp_path / "work" / path, os.X_OK)
    assert (tree / "lib").exists() == any(path.startswith("lib/") for path in tracked)


def test_a_file_can_take_the_place_of_a_folder(tmp_path: Path, tree: Path) -> None:
    def change(work: Path) -> None:
        (work / "lib" / "b.bin").rename(work / "b")
        (work / "lib").rmdir()
        (work / "lib").write_text("now a file\n")

    assert run(tmp_path, tree, diff(tmp_path, change)).changed == ("b", "lib", "lib/b.bin")
    assert (tree / "lib").read_text() == "now a file\n"


def test_hard_links_of_the_tree_keep_their_content(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "store").hardlink_to(tree / "a.txt")
    run(tmp_path, tree, CAPITALS)
    assert (tmp_path / "store").read_text() == "one\ntwo\nthree\n"
    assert (tree / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("patches", "complaint"),
    [
        ([CAPITALS.replace(b"-two", b"-2")], r"0001.patch: patch does not apply: a.txt, hunk 1 of 1 \(@@ -1,3 \+1,3 @@\)"),
        ([CAPITALS, CAPITALS], r"0002.patch: patch does not apply: a.txt, hunk 1 of 1"),
        ([CAPITALS.replace(b"a.txt", b"z.txt")], "z.txt: does not exist in index"),
        (
            [b"diff --git a/a.txt b/a.txt\nnew file mode 100644\n--- /dev/null\n+++ b/a.txt\n@@ -0,0 +1 @@\n+x\n"],
            "a.txt: already exists in index",
        ),
        ([b"diff --git a/bin b/bin\nnew file mode 100644\n--- /dev/null\n+++ b/bin\n@@ -0,0 +1 @@\n+x\n"], "0001.patch: "),
        (
            [b"diff --git a/a.txt/x b/a.txt/x\nnew file mode 100644\n--- /dev/null\n+++ b/a.txt/x\n@@ -0,0 +1 @@\n+x\n"],
            "0001.patch: ",
        ),
    ],
    ids=["other content", "the second of two", "no such file", "a file in the way", "a folder in the way", "a file above"],
)
def test_a_patch_that_does_not_apply_is_named_and_the_tree_unchanged(
    tmp_path: Path, tree: Path, patches: list[bytes], complaint: str
) -> None:
    before = snapshot(tree)
    with pytest.raises(PatchError, match=complaint) as caught:
        run(tmp_path, tree, *patches)
    assert caught.value.next_step
    assert snapshot(tree) == before
    assert not list((tmp_path / "scratch").iterdir())


def test_a_binary_patch_for_other_bytes_does_not_apply(tmp_path: Path, tree: Path) -> None:
    patch = diff(tmp_path, lambda work: (work / "lib" / "b.bin").write_bytes(b"\0\2"))
    (tree / "lib" / "b.bin").write_bytes(b"\0\3")
    with pytest.raises(PatchError, match=r"0001.patch: patch does not apply: lib/b.bin"):
        run(tmp_path, tree, patch)


def test_a_patch_that_is_already_in_the_tree_is_recognised(tmp_path: Path, tree: Path) -> None:
    (tree / "a.txt").write_text("one\nTWO\nthree\n")
    with pytest.raises(PatchError) as caught:
        run(tmp_path, tree, CAPITALS)
    assert "already holds this change" in caught.value.next_step


def test_a_patch_through_or_onto_a_symbolic_link_is_refused(tmp_path: Path, tree: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "a.txt").write_text("one\ntwo\nthree\n")
    (tree / "link").symlink_to(outside)
    (tree / "file").symlink_to(outside / "a.txt")
    for number, path in enumerate((b"link/a.txt", b"file")):
        with pytest.raises(PatchError, match="symbolic link in the tree"):
            run(tmp_path / str(number), tree, CAPITALS.replace(b"a.txt", path))
    assert (outside / "a.txt").read_text() == "one\ntwo\nthree\n"


def test_a_link_in_the_tree_is_hashed_as_a_link(tmp_path: Path, tree: Path) -> None:
    (tree / "link").symlink_to("a.txt")
    applied = run(tmp_path, tree, CAPITALS)
    git("init", "-q", cwd=tree)
    git("add", "-A", cwd=tree)
    assert git("write-tree", cwd=tree).decode().strip() == applied.tree


@pytest.mark.parametrize("where", [".git", "lib/.GIT"])
def test_a_checkout_is_refused(tmp_path: Path, tree: Path, where: str) -> None:
    (tree / where).mkdir()
    with pytest.raises(PatchError, match="a checkout, not an exported source"):
        run(tmp_path, tree, CAPITALS)


def test_a_pipe_in_the_tree_is_refused(tmp_path: Path, tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(PatchError, match="pipe is neither a file nor a folder nor a link"):
        run(tmp_path, tree, CAPITALS)


def test_a_scratch_folder_inside_the_tree_is_refused(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(PatchError, match="lies inside the tree"):
        apply(tree, series(tmp_path, CAPITALS), scratch=tree / "lib")


def test_a_patch_that_changed_after_it_was_read_is_refused(tmp_path: Path, tree: Path) -> None:
    patches = series(tmp_path, CAPITALS)
    patches.patches[0].path.write_bytes(CAPITALS.replace(b"TWO", b"2"))
    with pytest.raises(PatchError, match="when it was read"):
        apply(tree, patches, scratch=tmp_path / "scratch")
    assert (tree / "a.txt").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("content", "claims", "complaint"),
    [
        (LINK, b"diff --git a/evil b/evil\nold mode 100644\nnew mode 100755\n", "would have mode 120000"),
        (
            CAPITALS,
            b"diff --git a/bin/run b/bin/run\nold mode 100755\nnew mode 100644\n",
            "patch does not apply|none of the patches",
        ),
        (
            b"diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+x\n",
            CAPITALS,
            "none of the patches",
        ),
        (
            b"diff --git a/../n b/../n\nnew file mode 100644\n--- /dev/null\n+++ b/../n\n@@ -0,0 +1 @@\n+x\n",
            CAPITALS,
            "0001.patch",
        ),
    ],
    ids=["a link", "a file not announced", "a new file not announced", "a way out"],
)
def test_should_the_reader_be_deceived_git_still_cannot_write(
    tmp_path: Path, tree: Path, content: bytes, claims: bytes, complaint: str
) -> None:
    (tmp_path / "0001.patch").write_bytes(content)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    patch = Patch("0001.patch", tmp_path / "0001.patch", digest, changes_in(claims, "here"))
    before = snapshot(tmp_path)
    with pytest.raises(PatchError, match=complaint):
        apply(tree, PatchSet("engine/1.0", (patch,)), scratch=tmp_path / "scratch")
    assert snapshot(tree) == {path[5:]: entry for path, entry in before.items() if path.startswith("tree/")}
    assert snapshot(tmp_path).keys() == before.keys()


def test_without_git_the_error_says_how_to_get_it(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = series(tmp_path, CAPITALS)
    pytest.importorskip("git")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PatchError, match="git is not installed") as caught:
        apply(tree, patches, scratch=tmp_path / "scratch")
    assert "install git" in caught.value.next_step


def test_without_git_at_the_first_import_the_error_is_the_same_and_importing_is_light(tmp_path: Path, tree: Path) -> None:
    series(tmp_path, CAPITALS)
    program = (
        "import sys; from pathlib import Path; from release.errors import PatchError; from release.patches.apply import apply\n"
        "from release.patches.read import patch_set; assert 'git' not in sys.modules; here = Path(sys.argv[1])\n"
        "try: apply(here / 'tree', patch_set(here / 'engine' / '1.0'), scratch=here / 'scratch')\n"
        "except PatchError as error: print(error, error.next_step)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True,
        cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("git is not installed, or cannot be started install git")


NAMES = st.text(st.sampled_from("ab/ .\t\"\\ä'~→"), min_size=1, max_size=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), content=st.binary(max_size=20), rename=st.booleans())
def test_reader_and_git_agree_on_the_files_of_any_patch(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], content: bytes, rename: bool
) -> None:
    work = tmp_path_factory.mktemp("any")
    (work / "first").write_text("1\n2\n3\n")
    git("init", "-q", cwd=work)
    git("add", "-A", cwd=work)
    git("commit", "-qm", "base", cwd=work)
    for name in names:
        try:
            (work / name).resolve().relative_to(work.resolve())
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
        except (OSError, ValueError):
            continue
    if rename and not (work / "second").exists():
        (work / "first").rename(work / "second")
    git("add", "-A", cwd=work)
    patch = git("diff", "--cached", "--binary", "--find-renames", "HEAD", cwd=work)
    if not patch:
        return
    raw = git("diff", "--cached", "--no-renames", "--name-only", "-z", "HEAD", cwd=work).decode().split("\0")[:-1]
    try:
        changes = changes_in(patch, "here")
    except PatchError as error:
        assert any(bad in path for path in raw for bad in "\t\\"), error
        return
    assert {path for change in changes for path in (change.old, change.new) if path} == set(raw)
