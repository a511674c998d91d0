"""What FlagScale keeps for a device is found in every generation, and what is not there is said with what is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vendors
from vendors import DEVICE, SHAPES, Checkout, checkout

from release.errors import PatchError, RequestError
from release.matrix.parse import plain
from release.patches.delivery import Delivery
from release.patches.flagscale import HISTORY, Wanted, delivery
from release.patches.mirror import Mirror
from release.store import Store

pytestmark = pytest.mark.integration


def read_yaml(data: bytes) -> Any:
    return plain(data, "their.yaml")


@pytest.fixture
def made(tmp_path: Path) -> Checkout:
    made = checkout(tmp_path / "FlagScale")
    vendors.vendors_tree(made, SHAPES["one line"])
    return made


@pytest.fixture
def find(tmp_path: Path, made: Checkout) -> Callable[..., Delivery]:
    def act(*words: Any, **options: Any) -> Delivery:
        return delivery(Mirror(Store(tmp_path / "store"), str(made.folder)), Wanted(*words), read_yaml=read_yaml, **options)

    return act


def test_generation_a_takes_eight_digits_or_more(made: Checkout, find: Callable[..., Delivery]) -> None:
    base = made.id("HEAD")
    commit = vendors.keep_a(made, vendors.mailbox(made), base)
    for id in (base[:8], base[:12], base):
        found = find(DEVICE, id)
        assert (found.format, found.source, found.roots[0].commit) == ("A", commit, base)
    with pytest.raises(RequestError, match="which base is not said") as caught:
        find(DEVICE, "")
    assert "--commit-id" in caught.value.next_step and base[:8] in caught.value.next_step
    for id in (base[:7], "0" * 8, base[:7] + "G"):
        with pytest.raises(PatchError, match="no patch is kept for the base commit") as caught:
            find(DEVICE, id)
        assert base[:8] in caught.value.next_step
    with pytest.raises(PatchError, match=r"there is no tag, branch or commit|there is no commit"):
        find(DEVICE, base[:8] + "0" * 32)


@pytest.mark.parametrize("device", ["", "invented", "../x", "Invented/A1", "-x_y", "In_vented;rm"])
def test_a_device_type_that_is_none_is_refused(find: Callable[..., Delivery], device: str) -> None:
    with pytest.raises(PatchError, match="is not a device type"):
        find(device)


def test_a_device_that_is_not_there_is_said_with_those_that_are(made: Checkout, find: Callable[..., Delivery]) -> None:
    with pytest.raises(PatchError, match="there are no patches for Invented_A1"):
        find(DEVICE)
    vendors.keep_b(made, vendors.diff(made), made.id("HEAD"))
    with pytest.raises(PatchError, match=r"there are no patches for invented_A1 .*did you mean 'Invented_A1'\?") as caught:
        find("invented_A1")
    assert caught.value.next_step == "there are patches for Invented_A1"


def test_backends_are_spelled_as_flagscale_spells_them(made: Checkout, find: Callable[..., Delivery]) -> None:
    vendors.keep_b(made, vendors.diff(made), made.id("HEAD"))
    assert {find(DEVICE, "", names).format for names in ((), ("fs",), ("FlagScale",), ("flagscale", "FS"))} == {"B"}
    with pytest.raises(PatchError, match=r"there is no backend 'vlm' \(did you mean 'vllm'\?\)"):
        find(DEVICE, "", ("vlm",))
    with pytest.raises(PatchError, match="no patches for vllm are kept") as caught:
        find(DEVICE, "", ("vllm",))
    assert caught.value.next_step == "name one or more of FlagScale"
    vendors.keep_b(made, vendors.diff(made), made.id("HEAD"), "sglang")
    with pytest.raises(PatchError, match="there are patches for several backends"):
        find(DEVICE)


def test_the_history_names_the_commit_at_which_patches_are_kept(made: Checkout, find: Callable[..., Delivery]) -> None:
    base = made.id("HEAD")
    first = vendors.keep_b(made, vendors.diff(made), base)
    made.git("rm", "-rqf", "hardware")
    vendors.keep_c(made, vendors.pieces(made), base)
    made.write(HISTORY, json.dumps({DEVICE: {"inference": {"FlagScale": ["0" * 40, first]}, "train": {"vllm": [base]}}}).encode())
    second = made.commit("history")
    assert [(found.format, found.source) for found in (find(DEVICE), find(DEVICE, second), find(DEVICE, first[:9]))] == [
        ("B", first), ("C", second), ("B", first),
    ]  # fmt: skip
    assert find(DEVICE, "", ("fs",), "train").source == second
    made.write(HISTORY, json.dumps({DEVICE: {"inference": {"FlagScale": [first]}, "train": {"FlagScale": [first]}}}).encode())
    made.commit("two tasks")
    with pytest.raises(PatchError, match="has patches for several tasks"):
        find(DEVICE)
    assert find(DEVICE, "", (), "train").source == first


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        (b"[]", "it is not a mapping"),
        (b"commit: 5\n", "commit is 5, not a commit"),
        (b"commit: HEAD\n", "commit is 'HEAD', not a commit"),
        (b"commit: --help\n", "commit is '--help', not a commit"),
        (b"commit: &a 1\n", "anchors and aliases are not allowed"),
        (b"{", "did not find|expected"),
        (b"commit: %s\nbackends_commit: {vllm: main}\n" % (b"1" * 40), "backends_commit is not a mapping"),
        (b"commit: %s\n" % (b"1" * 40), "there is no commit 1111"),
        (b"#" * 2_000_000, "at most 1048576 are read"),
        (b"", "is empty"),
    ],
)
def test_a_yaml_file_that_does_not_say_what_it_must_is_refused(
    made: Checkout, find: Callable[..., Delivery], facts: bytes, complaint: str
) -> None:
    made.write(f"hardware/{DEVICE}/FlagScale/diff.patch", vendors.diff(made))
    made.write(f"hardware/{DEVICE}/FlagScale/diff.yaml", facts)
    made.commit("keep")
    with pytest.raises(PatchError, match=complaint) as caught:
        find(DEVICE)
    assert caught.value.exit_code == 3


def test_what_is_kept_as_something_else_than_files_is_refused(made: Checkout, find: Callable[..., Delivery]) -> None:
    base = made.id("HEAD")
    made.write("elsewhere", vendors.diff(made))
    vendors.keep_c(made, {}, base)
    with pytest.raises(PatchError, match="there are 0 patches"):
        find(DEVICE)
    (made.folder / "hardware" / DEVICE / "FlagScale" / "diff.patch").symlink_to("../../../elsewhere")
    made.commit("a link")
    with pytest.raises(PatchError, match=r"diff\.patch: it is not a plain file"):
        find(DEVICE)
    made.write(f"hardware/{DEVICE}/FlagScale/other.patch", b"x")
    made.commit("one more")
    with pytest.raises(PatchError, match=r"beside diff\.patch there are other patches"):
        find(DEVICE)


def test_the_newest_base_of_several_backends_is_taken(tmp_path: Path, made: Checkout, find: Callable[..., Delivery]) -> None:
    engine = checkout(tmp_path / "vllm")
    made.write(".gitmodules", b'[submodule "v"]\n\tpath = third_party/vllm\n\turl = https://git.example.org/vllm\n')
    made.git("add", ".gitmodules")
    made.git("update-index", "--add", "--cacheinfo", f"160000,{engine.id('HEAD')},third_party/vllm")
    made.git("commit", "-qm", "submodule")
    old = made.id("HEAD")
    made.git("commit", "-q", "--allow-empty", "-m", "newer")
    new = made.id("HEAD")
    made.git("update-index", "--force-remove", "third_party/vllm")
    vendors.keep_b(made, vendors.diff(made), old)
    vendors.keep_b(made, vendors.diff(made), new, "vllm")
    announced = {"third_party/vllm": Mirror(Store(tmp_path / "store"), str(engine.folder))}
    found = find(DEVICE, "", ("fs", "vllm"), submodules=announced)
    assert [(root.path, root.commit, len(root.patches)) for root in found.roots] == [
        ("", new, 1), ("third_party/vllm", engine.id("HEAD"), 1),
    ]  # fmt: skip
    with pytest.raises(PatchError, match="submodule third_party/vllm, which was not announced") as caught:
        find(DEVICE, "", ("vllm",))
    assert caught.value.next_step.endswith("the tree's .gitmodules says 'https://git.example.org/vllm'")
    with pytest.raises(PatchError, match="third_party/verl was announced, but is no submodule"):
        find(DEVICE, "", ("fs",), submodules={"third_party/verl": announced["third_party/vllm"]})
