"""The tree that comes out is the vendor's own, bit for bit, in every generation; and nothing comes out by half."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vendors
from vendors import DEVICE, EVERYTHING, SHAPES, Checkout, checkout

from release.errors import PatchError
from release.oci import sha256
from release.patches import delivery as deliveries
from release.patches import flagscale
from release.patches.git import Repository
from release.patches.mirror import Mirror
from release.patches.read import patch_set
from release.patches.unpatch import EXACT, FIXED, Unpatched, pass_through, unpatch
from release.store import Store

pytestmark = pytest.mark.integration


def restored(tmp_path: Path, made: Checkout, commit_id: str = "", name: str = "out", **options: Any) -> Unpatched:
    """Unpatch what the repository keeps for the one device into `<tmp_path>/out`."""
    (scratch := tmp_path / "scratch").mkdir(exist_ok=True)
    wanted = flagscale.Wanted(DEVICE, commit_id, options.pop("backends", ()))
    submodules = options.pop("submodules", None)
    found = flagscale.delivery(
        Mirror(Store(tmp_path / "store"), str(made.folder)), wanted, submodules=submodules, read_yaml=json.loads
    )
    return unpatch(found, into=tmp_path / name, scratch=scratch, **options)


def by_a(made: Checkout, base: str) -> str:
    vendors.keep_a(made, vendors.mailbox(made), base)
    return base[:8]


def by_b(made: Checkout, base: str) -> str:
    vendors.keep_b(made, vendors.diff(made), base)
    return ""


def by_c(made: Checkout, base: str) -> str:
    vendors.keep_c(made, vendors.pieces(made), base)
    return ""


def by_transition(made: Checkout, base: str) -> str:
    made.write(f"hardware/{DEVICE}/FlagScale/{base[:7]}.patch", vendors.diff(made))
    vendors.tell(made, base, "FlagScale", base[:7], {})
    return base[:7]


GENERATIONS = {"A": by_a, "transitional": by_transition, "B": by_b, "C": by_c}
TABLE = [(name, shape) for name in ("A", "B", "C") for shape in SHAPES] + [("transitional", "several commits")]


@pytest.mark.parametrize(("generation", "shape"), TABLE, ids=[f"{name} | {shape}" for name, shape in TABLE])
def test_the_tree_is_the_vendors_own(tmp_path: Path, generation: str, shape: str) -> None:
    made = checkout(tmp_path / "FlagScale")
    base, tree = made.id("HEAD"), vendors.vendors_tree(made, SHAPES[shape])
    result = restored(tmp_path, made, GENERATIONS[generation](made, base))
    assert (result.base, result.base_tree, result.tree) == (base, made.id(f"{base}^{{tree}}"), tree)
    assert {patch.how for patch in result.patches} == {EXACT}
    assert result.source == made.id("HEAD")
    changed = made.git("diff", "--name-only", "--no-renames", "-z", base, "vendor").split(b"\0")[:-1]
    assert sorted(map(os.fsencode, result.changed)) == sorted(changed)
    assert_same_files(made, "vendor", tmp_path / "out")


def assert_same_files(made: Checkout, revision: str, folder: Path) -> None:
    lines = made.git("ls-tree", "-r", "-z", revision).split(b"\0")[:-1]
    modes = {os.fsdecode(line.partition(b"\t")[2]): line.split(b" ")[0] for line in lines}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert there == set(modes)
    for path, mode in modes.items():
        wanted = made.git("cat-file", "blob", f"{revision}:{path}")
        found = folder / path
        assert (os.fsencode(found.readlink()) if mode == b"120000" else found.read_bytes()) == wanted
        if mode != b"120000":
            assert stat.S_IMODE(found.stat().st_mode) == (0o755 if mode == b"100755" else 0o644)


def test_a_submodule_is_patched_at_its_own_commit_and_the_others_stay_empty(tmp_path: Path) -> None:
    engine = checkout(tmp_path / "vllm")
    start, tree = engine.id("HEAD"), vendors.vendors_tree(engine, EVERYTHING)
    made = checkout(tmp_path / "FlagScale")
    for path, commit in (("third_party/vllm", engine.id("vendor")), ("third_party/verl", start)):
        made.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        (made.folder / path).mkdir(parents=True)
        (made.folder / path / ".git").write_text(f"gitdir: {engine.folder / '.git'}\n")
    made.git("commit", "-qm", "submodules")
    base, own = made.id("HEAD"), vendors.vendors_tree(made, SHAPES["rename"])
    made.git("update-index", "--force-remove", "third_party/vllm", "third_party/verl")
    for path in ("third_party/vllm", "third_party/verl"):
        (made.folder / path / ".git").unlink()
    vendors.keep_b(made, vendors.diff(made), base)
    vendors.keep_c(made, vendors.pieces(engine), base, "vllm", backends_commit={"vllm": start})
    with pytest.raises(PatchError, match="submodule third_party/vllm, which was not announced"):
        restored(tmp_path, made, backends=("vllm", "fs"))
    announced = {"third_party/vllm": Mirror(Store(tmp_path / "store"), str(engine.folder))}
    result = restored(tmp_path, made, backends=("vllm", "fs"), submodules=announced)
    (tmp_path / "index").unlink(missing_ok=True)
    made.git("fetch", "-q", str(engine.folder), "vendor:engine")
    made.git("read-tree", own)
    made.git("update-index", "--force-remove", "third_party/vllm")
    made.git("read-tree", "--prefix=third_party/vllm/", tree)
    assert result.tree == made.git("write-tree").decode().strip()
    assert result.submodules == {"third_party/vllm": start, "third_party/verl": start}
    assert (tmp_path / "out" / "third_party" / "vllm" / "new" / "name.py").is_file()
    assert list((tmp_path / "out" / "third_party" / "verl").iterdir()) == []
    assert "third_party/vllm/new/name.py" in result.changed and "new/name.py" in result.changed


def test_a_series_of_ours_on_a_git_source_and_a_source_without_patches(tmp_path: Path) -> None:
    made = checkout(tmp_path / "source")
    base, tree = made.id("HEAD"), vendors.vendors_tree(made, SHAPES["rename with change"])
    (folder := tmp_path / "source-set" / base).mkdir(parents=True)
    (folder / "0001.patch").write_bytes(patch := vendors.mailbox(made))
    (folder / "series").write_text(f"0001.patch {sha256(patch)}\n")
    mirror = Mirror(Store(tmp_path / "store"), str(made.folder))
    (scratch := tmp_path / "scratch").mkdir()
    result = unpatch(deliveries.series(mirror, base, patch_set(folder)), into=tmp_path / "out", scratch=scratch)
    assert (result.tree, result.source, [patch.path for patch in result.patches]) == (tree, "", ["0001.patch"])
    plain = unpatch(deliveries.series(mirror, base, None), into=tmp_path / "plain", scratch=scratch)
    assert (plain.tree, plain.base_tree, plain.patches, plain.changed) == (made.id(f"{base}^{{tree}}"),) * 2 + ((), ())
    assert_same_files(made, base, tmp_path / "plain")


def damaged(made: Checkout, base: str) -> bytes:
    """Return the mailbox of a change to CRLF lines as a mail program leaves it: without its carriage returns."""
    return vendors.mailbox(made).replace(b"\r\n", b"\n")


def foreign(made: Checkout, base: str) -> bytes:
    """Return the mailbox with a carriage return at the end of every line, as a checkout on Windows has it."""
    return vendors.mailbox(made).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@pytest.mark.parametrize(("shape", "spoil"), [("CRLF changed", damaged), ("one line", foreign)], ids=["CR lost", "CR everywhere"])
def test_whitespace_is_fixed_only_where_that_is_said_and_allowed(
    tmp_path: Path, shape: str, spoil: Callable[[Checkout, str], bytes]
) -> None:
    made = checkout(tmp_path / "FlagScale")
    base = made.id("HEAD")
    vendors.vendors_tree(made, SHAPES[shape])
    vendors.keep_a(made, spoil(made, base), base)
    with pytest.raises(PatchError, match="applies only after its whitespace is changed"):
        restored(tmp_path, made, base[:8], fix_whitespace=False)
    assert not (tmp_path / "out").exists()
    assert [patch.how for patch in restored(tmp_path, made, base[:8]).patches] == [FIXED]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_patch_that_does_not_fit_says_where_and_leaves_nothing(tmp_path: Path, generation: str) -> None:
    made = checkout(tmp_path / "FlagScale")
    vendors.vendors_tree(made, [change for name in ("one line", "CRLF new") for change in SHAPES[name]])
    made.write("plain.py", b"nothing of it\n" * 9)
    id = GENERATIONS[generation](made, made.commit("another base"))
    with pytest.raises(PatchError, match=r"patch does not apply: .*plain.py, hunk 1 of 1") as caught:
        restored(tmp_path, made, id)
    assert caught.value.exit_code == 3 and caught.value.next_step
    assert not (tmp_path / "out").exists() and not list((tmp_path / "scratch").iterdir())


def test_a_patch_replaced_in_place_is_an_error_that_says_what_changed(tmp_path: Path) -> None:
    made = checkout(tmp_path / "FlagScale")
    base = made.id("HEAD")
    vendors.vendors_tree(made, SHAPES["one line"])
    vendors.keep_a(made, first := vendors.mailbox(made), base)
    path = f"hardware/{DEVICE}/{base[:8]}/{base[:8]}.patch"
    pins = {path: sha256(first)}
    result = restored(tmp_path, made, base[:8], pins=pins)
    assert [(patch.path, patch.sha256, patch.plaintext) for patch in result.patches] == [(path, sha256(first), sha256(first))]
    made.write(path, second := first.replace(b"line seven", b"line SEVEN"))
    made.commit("support another model (#416)")
    with pytest.raises(PatchError) as caught:
        restored(tmp_path, made, base[:8], "again", pins=pins)
    assert str(caught.value).endswith(f"{path}: patch sha256 is {sha256(second)[7:15]}…, the matrix says {sha256(first)[7:15]}…")
    assert "support another model (#416)" in caught.value.next_step
    for pins, complaint in (({}, "is new"), ({path: sha256(second), "x.patch": sha256(b"")}, "x.patch is gone")):
        with pytest.raises(PatchError, match=complaint):
            restored(tmp_path, made, base[:8], "again", pins=pins)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("generation", ["A", "B", "C"])
def test_an_encrypted_patch_is_opened_in_private_and_leaves_no_plaintext(tmp_path: Path, generation: str) -> None:
    made = checkout(tmp_path / "FlagScale")
    base, tree = made.id("HEAD"), vendors.vendors_tree(made, SHAPES["one line"])
    text = vendors.mailbox(made) if generation == "A" else vendors.diff(made)
    if generation == "C":
        made.write(f"hardware/{DEVICE}/FlagScale/plain.py.patch.encrypted", text[::-1])
        vendors.tell(made, base, "FlagScale", "diff", {})
    else:
        (vendors.keep_a if generation == "A" else vendors.keep_b)(made, text[::-1], base, ending=".patch.encrypted")
    id = base[:8] if generation == "A" else ""
    with pytest.raises(PatchError, match="is encrypted, and no key is at hand"):
        restored(tmp_path, made, id)
    seen = []

    def decrypt(content: bytes, where: str) -> bytes:
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "scratch").iterdir())
        return content[::-1]

    result = restored(tmp_path, made, id, decrypt=decrypt)
    assert (result.tree, seen) == (tree, [0o700])
    assert [(patch.encrypted, patch.sha256, patch.plaintext) for patch in result.patches] == [
        (True, sha256(text[::-1]), sha256(text))
    ]
    assert not list((tmp_path / "scratch").iterdir())
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and text[-200:] in path.read_bytes()]
    assert kept == []


@pytest.mark.parametrize("moment", ["decrypt", "apply", "checkout-index"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    made = checkout(tmp_path / "FlagScale")
    base = made.id("HEAD")
    vendors.vendors_tree(made, SHAPES["one line"])
    vendors.keep_a(made, vendors.mailbox(made), base, ".patch.encrypted")
    execute = Repository.execute

    def interrupted(self: Repository, *arguments: str, **options: Any) -> tuple[int, bytes, str]:
        answer = execute(self, *arguments, **options)
        if arguments[0] == moment:
            raise KeyboardInterrupt
        return answer

    def decrypt(content: bytes, where: str) -> bytes:
        if moment == "decrypt":
            raise KeyboardInterrupt
        return content

    monkeypatch.setattr(Repository, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restored(tmp_path, made, base[:8], decrypt=decrypt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FlagScale", "scratch", "store"]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    made = checkout(tmp_path / "FlagScale")
    base = made.id("HEAD")
    vendors.vendors_tree(made, SHAPES["one line"])
    id = by_a(made, base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(PatchError, match="is not an empty folder"):
        restored(tmp_path, made, id)
    (tmp_path / "out" / "mine").unlink()
    assert restored(tmp_path, made, id).tree
    before = made.git("status", "--porcelain", "--branch"), made.id("HEAD")
    assert before == (b"## main\n", made.id("main"))


def test_the_same_delivery_gives_the_same_result_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = checkout(tmp_path / "FlagScale")
    base = made.id("HEAD")
    vendors.vendors_tree(made, EVERYTHING)
    id = by_a(made, base)
    first = restored(tmp_path, made, id)
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    previous = os.umask(0o077)
    try:
        assert restored(tmp_path, made, id, "again") == first
    finally:
        os.umask(previous)
    assert_same_files(made, "vendor", tmp_path / "again")


def test_a_plugin_passes_through_by_its_digest(tmp_path: Path) -> None:
    (wheel := tmp_path / "plugin-1.0-py3-none-any.whl").write_bytes(b"wheel")
    (into := tmp_path / "into").mkdir()
    with pytest.raises(PatchError, match=r"plugin sha256 is .*, the matrix says 00000000…"):
        pass_through(wheel, "sha256:" + "0" * 64, into)
    assert list(into.iterdir()) == []
    assert pass_through(wheel, sha256(b"wheel"), into).read_bytes() == b"wheel"


@pytest.mark.parametrize("disk", ["full", "out of files", "well"])
def test_a_disk_that_is_full_is_said_to_be_that_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    made = checkout(tmp_path / "FlagScale")
    base = made.id("HEAD")
    vendors.vendors_tree(made, SHAPES["one line"])
    vendors.keep_a(made, vendors.mailbox(made), base)
    run, look = Repository.run, os.statvfs

    def failing(repository: Repository, *words: str, **more: Any) -> str:
        if words[0] == "checkout-index":
            raise PatchError("git checkout-index ended with status 1: unable to write file plain.py")
        return run(repository, *words, **more)

    def statvfs(path: str | Path) -> Any:
        facts = look(path)
        free = {"f_bavail": 0 if disk == "full" else facts.f_bavail, "f_favail": 0 if disk == "out of files" else 1000}
        return SimpleNamespace(f_frsize=facts.f_frsize, f_files=10_000, **free)

    monkeypatch.setattr(Repository, "run", failing)
    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(PatchError, match="ended with status 1" if disk == "well" else "no space left on the disk of") as caught:
        restored(tmp_path, made, base[:8])
    assert disk == "well" or "free some space" in caught.value.next_step
    assert not (tmp_path / "out").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
