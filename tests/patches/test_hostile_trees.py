"""Patches, trees and repositories of an enemy: refused before anything is written, and nothing of theirs runs."""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import vendors
from vendors import DEVICE, SHAPES, Checkout, checkout

from release.errors import PatchError
from release.patches import flagscale
from release.patches.links import way_out
from release.patches.mirror import Mirror
from release.patches.parse import Change, changes_in, path_fault
from release.patches.unpatch import Unpatched, unpatch
from release.store import Store


def created(path: str, mode: str = "100644", content: str = "b") -> bytes:
    head = f"diff --git a/{path} b/{path}\nnew file mode {mode}\nindex 0000000..1234567\n"
    return f"{head}--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{content}\n\\ No newline at end of file\n".encode()


def literal(size: int) -> bytes:
    packed = zlib.compress(b"x")
    line = chr(64 + len(packed)).encode() + base64.b85encode(packed, pad=True)
    head = f"diff --git a/x b/x\nnew file mode 100644\nindex {'0' * 40}..{'2' * 40}\nGIT binary patch\nliteral {size}\n"
    return head.encode() + line + b"\n\nliteral 0\nHcmV?d00001\n\n"


HUNKS = b"".join(b"@@ -%d +%d @@\n-a\n+b\n" % (number, number) for number in range(1, 100_001))
CHANGED = b"diff --git a/plain.py b/plain.py\n--- a/plain.py\n+++ b/plain.py\n"
HOSTILE = {
    "an absolute path": (created("/etc/cron.d/x"), "is absolute"),
    "a way out": (created("../x"), "leaves the tree"),
    "a way out in the middle": (created("old/../../x"), "leaves the tree"),
    "a hook": (created(".git/hooks/post-checkout", "100755"), r"reaches into a \.git"),
    "a hook in capitals": (created("old/.GIT/config"), r"reaches into a \.git"),
    "a hook with a dot": (created(".git./config"), r"reaches into a \.git"),
    "a hook by its short name": (created("GIT~1/config"), r"reaches into a \.git"),
    "a hook by its stream": (created(".git::$INDEX_ALLOCATION/config"), r"reaches into a \.git"),
    "a hook with an invisible letter": (
        created("x").replace(b"b/x", b"b/.g\xe2\x80\x8cit/config"),
        r"reaches into a \.git|agree",
    ),
    "through a link of the tree": (created("up/x"), "symbolic link|not in|beyond"),
    "through a link of its own": (created("new", "120000", "old") + created("new/x"), "symbolic link"),
    "a link to the root": (created("evil", "120000", "/etc/passwd"), "leads out of the tree, to '/etc/passwd'"),
    "a link above the tree": (created("old/evil", "120000", "../../x"), "leads out of the tree"),
    "a link above the tree by way of another": (
        created("a", "120000", "old/..") + created("b", "120000", "a/../x"),
        "leads out of the tree",
    ),
    "links in a circle": (created("a", "120000", "b") + created("b", "120000", "a"), "leads out of the tree"),
    "a submodule that was not announced": (
        created("sub", "160000", "Subproject commit " + "1" * 40),
        "submodule that was not announced",
    ),
    "a device of Windows": (created("old/CON"), "names a device"),
    "a device with an ending": (created("aux.py"), "names a device"),
    "a device node": (created("x", "020666"), "not a mode"),
    "a set-uid mode": (created("x", "104755"), "not a mode"),
    "100,000 hunks": (CHANGED + HUNKS, "more than 50000 hunks"),
    "a hunk of 2,000,000,000 lines": (CHANGED + b"@@ -1,2000000000 +1,2000000000 @@\n x\n", "header of a hunk is broken"),
    "a hunk of 900,000,000 lines": (CHANGED + b"@@ -1,900000000 +1,900000000 @@\n x\n", "ends in the middle|shorter than"),
    "a file of 2 GB, declared": (literal(2 << 30), "unfolds to 2147483648 bytes"),
    "files of 2 GB together": (literal(200 << 20) * 10, "unfolds to 209715200 bytes"),
    "a path that has two names": (created("x").replace(b"+++ b/x", b"+++ b/y"), "agree"),
}


def kept(tmp_path: Path, patch: bytes, generation: str = "B") -> Checkout:
    made = checkout(tmp_path / "FlagScale")
    (made.folder / "up").symlink_to("old")
    base = made.commit("a link")
    if generation == "A":
        mail = (
            b"From "
            + b"1" * 40
            + b" Mon Sep 17 00:00:00 2001\nFrom: v <v@v>\nSubject: [PATCH] x\n\n---\n"
            + patch
            + b"-- \n2.39.5\n\n"
        )
        vendors.keep_a(made, mail, base)
    elif generation == "C":
        vendors.keep_c(made, {"a.py": created("fine"), "b.py": patch}, base)
    else:
        vendors.keep_b(made, patch, base)
    return made


def restored(tmp_path: Path, made: Checkout) -> Unpatched:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    base = next((folder.name for folder in (made.folder / "hardware" / DEVICE).iterdir() if folder.name != "FlagScale"), "")
    wanted = flagscale.Wanted(DEVICE, base)
    found = flagscale.delivery(Mirror(Store(tmp_path / "store"), str(made.folder)), wanted, read_yaml=json.loads)
    return unpatch(found, into=tmp_path / "out", scratch=tmp_path / "scratch")


@pytest.mark.integration
@pytest.mark.parametrize("generation", ["A", "B", "C"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_patch_is_refused_before_anything_is_written(tmp_path: Path, what: str, generation: str) -> None:
    patch, complaint = HOSTILE[what]
    made = kept(tmp_path, patch, generation)
    with pytest.raises(PatchError, match=complaint) as caught:
        restored(tmp_path, made)
    assert caught.value.exit_code == 3
    assert caught.value.where.startswith("file://") and caught.value.next_step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FlagScale", "scratch", "store"]
    assert not list((tmp_path / "scratch").iterdir())
    assert made.git("status", "--porcelain") == b""


@pytest.mark.integration
def test_a_base_with_a_link_that_leads_out_is_refused_and_one_that_stays_inside_is_not(tmp_path: Path) -> None:
    made = kept(tmp_path, created("fine"))
    assert restored(tmp_path, made).tree
    (other := tmp_path / "other").mkdir()
    made = checkout(other / "FlagScale")
    (made.folder / "etc").symlink_to("/etc")
    vendors.keep_b(made, created("fine"), made.commit("a link"))
    with pytest.raises(PatchError, match="'etc' leads out of the tree, to '/etc'"):
        restored(other, made)


@pytest.mark.integration
def test_what_a_patch_declares_takes_no_memory(tmp_path: Path) -> None:
    made = kept(tmp_path, literal(2 << 30))
    program = (
        "import json, sys; from pathlib import Path; from release.errors import PatchError; from release.patches import flagscale\n"
        "from release.patches.mirror import Mirror; from release.patches.unpatch import unpatch; from release.store import Store\n"
        "here = Path(sys.argv[1]); wanted = flagscale.Wanted(sys.argv[2])\n"
        "mirror = Mirror(Store(here / 'store'), str(here / 'FlagScale'))\n"
        "try: unpatch(flagscale.delivery(mirror, wanted, read_yaml=json.loads), into=here / 'out', scratch=here)\n"
        "except PatchError as error: print(error)\n"
    )
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), DEVICE], capture_output=True, text=True, cwd=tmp_path, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert "unfolds to 2147483648 bytes" in done.stdout
    assert made.folder.is_dir()


@pytest.mark.integration
def test_a_repositorys_configuration_hooks_and_attributes_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    (evil := tmp_path / "evil").write_text(f'#!/bin/sh\necho "$0 $*" >> {canary}\ncat\n')
    evil.chmod(0o755)
    made = checkout(tmp_path / "FlagScale")
    attributes = (
        b"* filter=evil diff=evil merge=evil ident text eol=crlf working-tree-encoding=UTF-16 export-subst whitespace=-all\n"
    )
    info = made.folder / ".git" / "info" / "attributes"
    info.write_text("* -text !eol -ident !filter !working-tree-encoding !diff\n")  # while the vendor works on it
    made.write(".gitattributes", attributes)
    made.write("ident.txt", b"$Id$ $Format:%H$\n")
    made.write(".gitmodules", f'[submodule "x"]\n\tpath = x\n\turl = ext::{evil}\n\tupdate = !{evil}\n'.encode())
    base, tree = made.commit("attributes"), vendors.vendors_tree(made, SHAPES["one line"])
    vendors.keep_a(made, vendors.mailbox(made), base)
    info.write_bytes(attributes)
    (hooks := tmp_path / "hooks").mkdir()
    for hook in (
        "post-checkout",
        "reference-transaction",
        "post-index-change",
        "pre-auto-gc",
        "applypatch-msg",
        "fsmonitor-watchman",
    ):
        (hooks / hook).symlink_to(evil)
        (made.folder / ".git" / "hooks" / hook).unlink(missing_ok=True)
        (made.folder / ".git" / "hooks" / hook).symlink_to(evil)
    sections = f"""
[core]\n fsmonitor = {evil}\n hooksPath = {hooks}\n pager = {evil}\n editor = {evil}\n alternateRefsCommand = {evil}\n gitProxy = {evil}
 attributesFile = {tmp_path / "FlagScale" / ".gitattributes"}\n autocrlf = true\n
[filter "evil"]\n clean = {evil}\n smudge = {evil}\n process = {evil}\n required = true\n[diff]\n external = {evil}
[diff "evil"]\n textconv = {evil}\n command = {evil}\n[merge "evil"]\n driver = {evil}\n[uploadpack]\n packObjectsHook = {evil}
[protocol "ext"]\n allow = always\n[remote "origin"]\n url = ext::{evil}\n uploadpack = {evil}\n[apply]\n whitespace = error-all
[alias]\n fetch = !{evil}\n apply = !{evil}\n[gpg]\n program = {evil}\n[trailer "x"]\n command = {evil}\n[init]\n templateDir = {hooks}
"""
    (made.folder / ".git" / "config").open("a").write(
        sections + f"[core]\n sshCommand = {evil}\n[credential]\n helper = !{evil}\n"
    )
    (home := tmp_path / "home").mkdir()
    (home / ".gitconfig").write_text(sections)
    for name, value in {
        "HOME": str(home), "GIT_EXTERNAL_DIFF": str(evil), "GIT_PAGER": str(evil), "GIT_EDITOR": str(evil),
        "GIT_DIR": str(made.folder / ".git"), "GIT_WORK_TREE": str(made.folder), "GIT_ATTR_SOURCE": "HEAD",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.folder)
    result = restored(tmp_path, made)
    assert not canary.exists(), canary.read_text()
    assert result.tree == tree
    assert (tmp_path / "out" / "ident.txt").read_bytes() == b"$Id$ $Format:%H$\n"
    assert (tmp_path / "out" / "plain.py").read_bytes().count(b"line seven\n") == 1
    subprocess.run(["git", "status"], capture_output=True, check=False)
    assert canary.exists(), "the trap does not even catch plain git"


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ({"a": "b", "c/d": "../a", "e": "./f//g/", "h": "c"}, None),
        ({"a": "..", "b": "x"}, "a"),
        ({"c/d": "../.."}, "c/d"),
        ({"c/d": ".."}, None),
        ({"a": "/etc"}, "a"),
        ({"a": "b/../..", "b": "c"}, "a"),
        ({"x/y/m": "l/../x", "x/y/l": "../.."}, "x/y/m"),
        ({"x/y/m": "l/../x", "x/y/l": ".."}, None),
        ({"a": "a"}, "a"),
        ({"a": ""}, "a"),
        ({f"l{number}": f"l{number + 1}" for number in range(39)}, None),
        ({f"l{number}": f"l{number + 1}" for number in range(41)}, "l0"),
    ],
)
def test_links_are_followed_as_the_kernel_does(tmp_path: Path, links: dict[str, str], found: str | None) -> None:
    assert (way_out(links) or (None,))[0] == found


@pytest.mark.parametrize(
    "path",
    [
        "nul",
        "COM1.txt",
        "a/lpt9",
        "aux .c",
        "PRN::$DATA",
        ".gIt",
        "x/.git ",
        ".git...",
        ".git:x/y",
        "GIT~1",
        ".g\u200cit",
        "\ufeff.git",
    ],
)
def test_names_that_other_systems_read_as_something_else_are_refused(path: str) -> None:
    assert path_fault(path)


@pytest.mark.parametrize("path", ["auxiliary.py", "console/com", "null", "com10", ".github/x", ".gitignore", "git/x", "a:b"])
def test_names_that_only_look_like_those_are_not(path: str) -> None:
    assert path_fault(path) == ""


def test_a_vendors_patch_may_have_links_announced_submodules_and_names_that_are_not_utf8() -> None:
    patch = created("l", "120000", "x") + created("s", "160000", "Subproject commit " + "1" * 40)
    latin = created("x").replace(b" b/x", b' "b/\\377"').replace(b" a/x", b' "a/\\377"')
    found = changes_in(patch + latin, "here", vendor=True, submodules=["s"])
    assert [(change.new, change.modes) for change in found] == [
        ("l", ("120000",)),
        ("s", ("160000",)),
        (os.fsdecode(b"\xff"), ()),
    ]
    assert isinstance(found[0], Change)
    for content in (created("l", "120000", "x"), latin):
        with pytest.raises(PatchError):
            changes_in(content, "here")
