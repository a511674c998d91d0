"""A patch set that is made from a tree gives exactly that tree back, whatever it holds; what no patch can hold is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from release.errors import PatchError
from release.oci import sha256
from release.patches import make as making
from release.patches.apply import apply
from release.patches.cipher import container, decrypting
from release.patches.keys import PrivateKey
from release.patches.make import Made, make
from release.patches.read import patch_set

pytestmark = pytest.mark.integration

SEALED = {
    **os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "Änne", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip
CONTENTS = {
    "empty": b"",
    "text": b"one\ntwo \nthree\n",
    "no end": b"one\ntwo",
    "crlf": b"one\r\ntwo\r\n\r\n",
    "latin": b"gr\xfc\xdfe\n" * 5,
    "binary": bytes(range(256)) * 40,
    "mail": b"From 0 Mon\n\ndiff --git a/x b/x\n--- a/x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n-- \n2.39.5\n",
}


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, env=SEALED, check=True, capture_output=True, text=True).stdout.strip()


def fill(root: Path) -> None:
    for folder in ("lib/deep", "bin"):
        (root / folder).mkdir(parents=True)
    for name, content in CONTENTS.items():
        (root / "lib" / name).write_bytes(content)
    (root / "bin" / "run").write_text("#!/bin/sh\n")
    (root / "bin" / "run").chmod(0o755)
    (root / "lib" / "deep" / "moved.py").write_text("".join(f"line {number}\n" for number in range(40)))
    (root / "lib" / "link").symlink_to("text")


def change(root: Path) -> None:
    """Do to a tree what vendors do."""
    (root / "lib" / "text").write_bytes(b"one\r\ntwo\nTHREE \n\n")
    (root / "lib" / "no end").write_bytes(b"one\ntwo\n")
    (root / "lib" / "crlf").write_bytes(b"one\r\nTWO\r\n\r\n")
    (root / "lib" / "latin").write_bytes(b"gr\xfc\xdfe\n" * 4 + b"\xff\n")
    (root / "lib" / "binary").write_bytes(bytes(range(256)) * 39 + b"\0")
    (root / "lib" / "empty").unlink()
    (root / "lib" / "mail").write_bytes(CONTENTS["mail"] * 2)
    (root / "new").mkdir()
    (root / "new" / "empty file").touch()
    (root / "new" / "ä → b").write_bytes(b"\0\1")
    (root / "lib" / "deep" / "moved.py").rename(root / "new" / "moved.py")
    (root / "new" / "moved.py").write_text((root / "new" / "moved.py").read_text().replace("line 7\n", "seven\n"))
    (root / "bin" / "run").chmod(0o644)
    (root / "lib" / "no end").chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout whose first commit is tagged `base`, and whose second holds the change."""
    (root := tmp_path / "checkout").mkdir()
    fill(root)
    git("init", "-qb", "main", cwd=root)
    git("add", "-A", cwd=root)
    git("commit", "-qm", "base", cwd=root)
    git("tag", "base", cwd=root)
    change(root)
    git("add", "-A", cwd=root)
    git("commit", "-qm", "change", cwd=root)
    return root


def exported(checkout: Path, commit: str, to: Path) -> Path:
    to.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=checkout, env=SEALED, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(to)], input=archive, check=True)
    return to


def applied(tmp_path: Path, made: Made, base: Path, **options: Any) -> str:
    """Apply the set to a copy of `base`, as a build does, and return the id of the tree."""
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    shutil.copytree(base, work, symlinks=True)
    scratch.mkdir(exist_ok=True)
    return apply(work, patch_set(made.folder, **options), scratch=scratch).tree


def test_a_checkout_and_its_base_make_a_set_that_gives_the_commits_own_tree(tmp_path: Path, checkout: Path) -> None:
    made = make(checkout, "base", tmp_path / "engine" / "1.0")
    assert (made.base, made.commit) == (git("rev-parse", "base", cwd=checkout), git("rev-parse", "HEAD", cwd=checkout))
    assert (made.base_tree, made.tree) == tuple(
        git("rev-parse", f"{commit}^{{tree}}", cwd=checkout) for commit in ("base", "HEAD")
    )
    assert applied(tmp_path, made, exported(checkout, "base", tmp_path / "base")) == made.tree
    listed = git("diff", "--name-only", "-z", "--no-renames", "base", "HEAD", cwd=checkout).split("\0")[:-1]
    assert made.changed == tuple(sorted(listed)) and made.left_out == ()
    assert [patch.file for patch in made.patches] == ["0001.patch"]
    assert made.patches[0].sha256 == sha256((made.folder / "0001.patch").read_bytes())
    assert b"\nrename from lib/deep/moved.py\n" in (made.folder / "0001.patch").read_bytes()
    assert (made.folder / "series").read_text().splitlines()[0] == f"# base {made.base}, result tree {made.tree}"
    assert git("status", "--porcelain", cwd=checkout) == ""
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == ["1.0"]


def test_plain_folders_commits_and_bare_repositories_make_the_same_set(tmp_path: Path, checkout: Path) -> None:
    old, new = exported(checkout, "base", tmp_path / "old"), exported(checkout, "HEAD", tmp_path / "new")
    git("clone", "-q", "--bare", str(checkout), str(tmp_path / "bare"), cwd=tmp_path)
    git("worktree", "add", "-q", "--detach", str(tmp_path / "further"), "HEAD", cwd=checkout)
    sets = [
        make(new, old, tmp_path / "a" / "1"),
        make(new, "base", tmp_path / "b" / "1", repository=checkout),
        make(checkout, old, tmp_path / "c" / "1"),
        make(tmp_path / "bare", "main~", tmp_path / "d" / "1"),
        make(tmp_path / "further", git("rev-parse", "base", cwd=checkout)[:9], tmp_path / "e" / "1"),
    ]
    assert len({(made.patches, made.base_tree, made.tree, made.changed) for made in sets}) == 1
    assert len(sets[0].changed) == 12


def test_a_commit_that_is_not_checked_out_can_be_taken(tmp_path: Path, checkout: Path) -> None:
    made = make(checkout, "main", tmp_path / "engine" / "1.0", commit="base")
    assert made.tree == git("rev-parse", "base^{tree}", cwd=checkout)


def test_what_is_not_committed_is_told(tmp_path: Path, checkout: Path) -> None:
    (checkout / "lib" / "text").write_text("edited\n")
    (checkout / "lib" / "crlf").unlink()
    (checkout / "notes").write_text("new\n")
    (checkout / ".gitignore").write_text("*.o\n.gitignore\n")
    (checkout / "a.o").touch()
    made = make(checkout, "base", tmp_path / "engine" / "1.0")
    assert made.left_out == ("lib/crlf", "lib/text", "notes")
    git("commit", "-q", "--allow-empty", "-m", "newer", cwd=checkout)
    (checkout / "committed").write_text("in the newer commit\n")
    git("add", "committed", cwd=checkout)
    git("commit", "-q", "-m", "newest", cwd=checkout)
    older = make(checkout, "base", tmp_path / "engine" / "2.0", commit="HEAD~2")
    assert older.left_out == made.left_out, "what is committed, though not in this commit, is not left out by mistake"
    git("reset", "-q", "--hard", "HEAD~2", cwd=checkout)
    assert made.tree == git("rev-parse", "HEAD^{tree}", cwd=checkout)


def test_one_patch_for_each_commit_keeps_messages_and_authors(tmp_path: Path, checkout: Path) -> None:
    (checkout / "lib" / "text").write_text("again\n")
    git("commit", "-qam", "Say it: again, Ünder /../ test\n\nwith a reason", cwd=checkout)
    git("commit", "-q", "--allow-empty", "-m", "nothing", cwd=checkout)
    made = make(checkout, "base", tmp_path / "engine" / "1.0", each_commit=True)
    assert [patch.file for patch in made.patches] == [
        "0001-change.patch",
        "0002-Say-it-again-nder-test.patch",
    ]
    assert "\nwith a reason\n" in (made.folder / made.patches[1].file).read_text()
    assert applied(tmp_path, made, exported(checkout, "base", tmp_path / "base")) == git("rev-parse", "HEAD^{tree}", cwd=checkout)
    again = make(checkout, "base", tmp_path / "engine" / "2.0", each_commit=True)
    assert again.patches == made.patches


def test_the_name_of_an_encrypted_patch_does_not_tell_its_subject(tmp_path: Path, checkout: Path, key: PrivateKey) -> None:
    made = make(checkout, "base", tmp_path / "engine" / "1.0", each_commit=True, recipients=[key.public])
    assert [patch.file for patch in made.patches] == ["0001.patch.encrypted"]


def test_one_patch_for_each_commit_takes_a_straight_history(tmp_path: Path, checkout: Path) -> None:
    git("checkout", "-qb", "side", "base", cwd=checkout)
    (checkout / "side").touch()
    git("add", "side", cwd=checkout)
    git("commit", "-qm", "side", cwd=checkout)
    with pytest.raises(PatchError, match="is no straight line"):
        make(checkout, "main", tmp_path / "engine" / "1.0", each_commit=True)
    git("merge", "-qm", "merged", "main", cwd=checkout)
    with pytest.raises(PatchError, match="is no straight line"):
        make(checkout, "base", tmp_path / "engine" / "1.0", each_commit=True)
    with pytest.raises(PatchError, match="no ancestor"):
        make(checkout, "side", tmp_path / "engine" / "1.0", commit="base", each_commit=True)
    assert make(checkout, "base", tmp_path / "engine" / "1.0").tree == git("rev-parse", "side^{tree}", cwd=checkout)


def test_a_message_that_holds_a_diff_is_noticed_and_one_patch_is_made_of_all(tmp_path: Path, checkout: Path) -> None:
    (checkout / "lib" / "text").write_text("x\n")
    message = "see\n\ndiff --git a/lib/crlf b/lib/crlf\nold mode 100644\nnew mode 100755\n"
    git("commit", "-qam", message, cwd=checkout)
    with pytest.raises(PatchError, match=r"not [0-9a-f]{40}|does not apply") as caught:
        make(checkout, "base", tmp_path / "engine" / "1.0", each_commit=True)
    assert "one patch of all" in caught.value.next_step
    assert not (tmp_path / "engine").exists()
    assert make(checkout, "base", tmp_path / "engine" / "1.0").tree == git("rev-parse", "HEAD^{tree}", cwd=checkout)


def test_an_encrypted_set_opens_with_its_key_and_leaves_no_plaintext(
    tmp_path: Path, checkout: Path, key: PrivateKey, other_key: PrivateKey
) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    made = make(checkout, "base", tmp_path / "engine" / "1.0", recipients=[key.public, other_key.public], scratch=scratch)
    (patch,) = made.patches
    content = (made.folder / "0001.patch.encrypted").read_bytes()
    assert (patch.file, patch.sha256) == ("0001.patch.encrypted", sha256(content))
    assert container(content).recipients == (key.public.id, other_key.public.id)
    plain = make(checkout, "base", tmp_path / "plain" / "1.0")
    assert patch.plaintext_sha256 == plain.patches[0].sha256
    base = exported(checkout, "base", tmp_path / "base")
    assert applied(tmp_path, made, base, decrypt=decrypting(lambda: other_key)) == plain.tree
    assert not list(scratch.iterdir())
    assert [path for path in (tmp_path / "engine").rglob("*") if path.is_file() and b"THREE" in path.read_bytes()] == []
    with pytest.raises(PatchError, match="is encrypted, and no key is at hand") as caught:
        patch_set(made.folder)
    assert caught.value.where == "engine/1.0/0001.patch.encrypted" and caught.value.next_step


def test_a_difference_larger_than_a_reader_takes_becomes_several_patches(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(checkout / "lib" / "deep", ignore_errors=True)
    (checkout / "lib" / "deep").write_text("a file in the place of a folder\n")
    (checkout / "big").write_bytes(os.urandom(4000))
    git("add", "-A", cwd=checkout)
    git("commit", "-qm", "more", cwd=checkout)
    monkeypatch.setattr(making, "PATCH_LIMIT", making.ROOM + 6000)
    made = make(checkout, "base", tmp_path / "engine" / "1.0")
    assert [patch.file for patch in made.patches] == ["0001.patch", "0002.patch", "0003.patch"]
    assert applied(tmp_path, made, exported(checkout, "base", tmp_path / "base")) == git("rev-parse", "HEAD^{tree}", cwd=checkout)
    monkeypatch.setattr(making, "PATCH_LIMIT", making.ROOM + 4000)
    with pytest.raises(PatchError, match="more than a reader takes"):
        make(checkout, "base", tmp_path / "engine" / "2.0")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new link": (lambda root: (root / "evil").symlink_to("/etc/passwd"), "'evil' differs.* is a symbolic link"),
    "a link that leads elsewhere": (
        lambda root: ((root / "lib" / "link").unlink(), (root / "lib" / "link").symlink_to("/")),
        "'lib/link' differs.* is a symbolic link",
    ),
    "a link removed": (lambda root: (root / "lib" / "link").unlink(), "'lib/link' differs.* is a symbolic link"),
    "a line break in a name": (lambda root: (root / "a\nb").touch(), "has a control character"),
    "a backslash in a name": (lambda root: (root / "a\\b").touch(), "has a backslash"),
    "a name that is not UTF-8": (lambda root: Path(os.fsdecode(os.fsencode(root) + b"/\xff")).touch(), r"\\xff.* is not UTF-8"),
    "a checkout inside": (lambda root: (root / "sub" / ".git").mkdir(parents=True), "a checkout, not an exported source"),
    "a pipe": (lambda root: os.mkfifo(root / "pipe"), "neither a file nor a folder nor a link"),
    "nothing": (lambda root: None, "does not differ"),
}


@pytest.mark.parametrize(("change", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_no_patch_set_can_hold_is_refused_and_nothing_written(
    tmp_path: Path, change: Callable[[Path], object], complaint: str
) -> None:
    for name in ("old", "new"):
        fill(tmp_path / name)
    change(tmp_path / "new")
    with pytest.raises(PatchError, match=complaint):
        make(tmp_path / "new", tmp_path / "old", tmp_path / "engine" / "1.0")
    assert not (tmp_path / "engine").exists()


def test_a_submodule_that_differs_is_refused_and_one_that_does_not_is_kept(tmp_path: Path, checkout: Path) -> None:
    for where, commit in (("sub", "1" * 40), ("other", "2" * 40)):
        git("update-index", "--add", "--cacheinfo", f"160000,{commit},{where}", cwd=checkout)
        git("commit", "-qm", where, cwd=checkout)
    with pytest.raises(PatchError, match=r"'sub' differs.* is a submodule"):
        make(checkout, "base", tmp_path / "engine" / "1.0", commit="HEAD~")
    git("commit", "-q", "--allow-empty", "-m", "same", cwd=checkout)
    (checkout / "lib" / "text").write_text("x\n")
    git("add", "lib/text", cwd=checkout)
    git("commit", "-qm", "x", cwd=checkout)
    assert make(checkout, "HEAD~", tmp_path / "engine" / "1.0").changed == ("lib/text",)


@pytest.mark.parametrize("base", ["nothing", "", "-h", "base:lib/text", "base\0", "base..main", "1" * 40])
def test_a_base_that_is_no_commit_is_refused(tmp_path: Path, checkout: Path, base: str) -> None:
    with pytest.raises(PatchError, match="there is no commit"):
        make(checkout, base, tmp_path / "engine" / "1.0")


def test_folders_that_are_missing_or_in_the_way_are_refused(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "engine" / "1.0").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for complaint, tree, base, out in (
        ("there already", checkout, "base", tmp_path / "engine" / "1.0"),
        ("two plain names", checkout, "base", tmp_path / "engine" / ".hidden"),
        ("two plain names", checkout, "base", tmp_path / "a b" / "1.0"),
        ("there is no folder", tmp_path / "missing", tmp_path / "empty", tmp_path / "engine" / "2.0"),
        ("there is no folder", tmp_path / "empty", tmp_path / "missing", tmp_path / "engine" / "2.0"),
        ("no git repository", tmp_path / "empty", "base", tmp_path / "engine" / "2.0"),
    ):
        with pytest.raises(PatchError, match=complaint):
            make(tree, base, out)


def test_the_configuration_hooks_filters_and_attributes_of_a_checkout_run_nothing(tmp_path: Path, checkout: Path) -> None:
    (checkout / ".gitattributes").write_text("* filter=evil diff=evil text eol=crlf ident export-ignore\n")
    git("add", ".gitattributes", cwd=checkout)
    git("commit", "-qm", "attributes", cwd=checkout)
    trap = f"touch {tmp_path}/ran; cat"
    for name in ("filter.evil.clean", "filter.evil.smudge", "diff.evil.textconv", "diff.external", "core.fsmonitor", "core.pager",
                 "core.sshCommand", "uploadpack.packObjectsHook", "core.alternateRefsCommand"):  # fmt: skip
        git("config", name, trap, cwd=checkout)
    for hook in ("post-index-change", "reference-transaction", "post-checkout"):
        (checkout / ".git" / "hooks" / hook).write_text(f"#!/bin/sh\n{trap}\n")
        (checkout / ".git" / "hooks" / hook).chmod(0o755)
    tree = git("rev-parse", "HEAD^{tree}", cwd=checkout)
    (tmp_path / "ran").unlink(missing_ok=True)
    made = make(checkout, "base", tmp_path / "engine" / "1.0")
    assert not (tmp_path / "ran").exists()
    assert made.tree == tree


def test_a_set_that_would_not_give_the_tree_is_never_kept(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = making._printed
    monkeypatch.setattr(making, "_printed", lambda *arguments: real(*arguments).replace(b"+THREE", b"+four "))
    with pytest.raises(PatchError, match="applied to the base, the patches give the tree"):
        make(checkout, "base", tmp_path / "engine" / "1.0")
    monkeypatch.setattr(making, "_printed", lambda *arguments: real(*arguments).replace(b"\n one", b"\n eins"))
    with pytest.raises(PatchError, match="patch 1 does not apply to the base"):
        make(checkout, "base", tmp_path / "engine" / "1.0")
    assert not (tmp_path / "engine").exists()


NAMES = st.lists(st.sampled_from(["a", "b", "ä ö", '"q"', "x.txt"]), min_size=1, max_size=3).map("/".join)
FILES = st.tuples(st.sampled_from([*CONTENTS.values(), b"x\n" * 50]) | st.binary(max_size=30), st.booleans())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=st.dictionaries(NAMES, FILES, max_size=5), new=st.dictionaries(NAMES, FILES, max_size=5))
def test_any_two_trees_make_a_set_that_turns_one_into_the_other(
    tmp_path_factory: pytest.TempPathFactory, old: dict[str, tuple[bytes, bool]], new: dict[str, tuple[bytes, bool]]
) -> None:
    place = tmp_path_factory.mktemp("any")
    for name, files in (("old", old), ("new", new)):
        (place / name).mkdir()
        for path, (content, program) in files.items():
            try:
                (place / name / path).parent.mkdir(parents=True, exist_ok=True)
                (place / name / path).write_bytes(content)
            except OSError:  # a file stands where a folder is wanted, or a folder where a file is
                continue
            (place / name / path).chmod(0o755 if program else 0o644)
    try:
        made = make(place / "new", place / "old", place / "engine" / "1.0", scratch=place)
    except PatchError as error:
        assert "does not differ" in error.message
        return
    assert applied(place, made, place / "old") == made.tree
    found = {path.relative_to(place / "work") for path in (place / "work").rglob("*") if path.is_file()}
    assert found == {path.relative_to(place / "new") for path in (place / "new").rglob("*") if path.is_file()}
