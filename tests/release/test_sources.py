"""`release unpatch` and `release patch` as a release engineer types them: exit codes, what is printed, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vendors
from command import Answer, release
from vendors import DEVICE, EVERYTHING, Checkout, checkout

pytestmark = pytest.mark.integration


@pytest.fixture
def made(tmp_path: Path) -> tuple[Checkout, str, str]:
    """Return a vendor's repository that keeps its patch as generation A does, the base, and the vendor's own tree."""
    made = checkout(tmp_path / "FlagScale")
    tree = vendors.vendors_tree(made, EVERYTHING)
    base = made.id("main")
    vendors.keep_a(made, vendors.mailbox(made), base)
    return made, base, tree


def say(tmp_path: Path, *words: str, **options: Any) -> Answer:
    return release(*words, store=tmp_path / "store", cwd=tmp_path, **options)


def unpatch(tmp_path: Path, made: Checkout, base: str, *more: str) -> Answer:
    source = f"file://{made.folder}"
    return say(tmp_path, "unpatch", "--source", source, "--device-type", DEVICE, "--commit-id", base[:8], *more)


def test_the_seeds_command_gives_the_vendors_own_tree_or_an_error(made: tuple[Checkout, str, str], tmp_path: Path) -> None:
    repository, base, tree = made
    answer = unpatch(tmp_path, repository, base, "--into", "build", "--json")
    assert answer.status == 0, answer.err
    (found,) = answer.document
    assert (found["tree"], found["base"]) == (tree, base)
    assert [patch["path"] for patch in found["patches"]] == [f"hardware/{DEVICE}/{base[:8]}/{base[:8]}.patch"]
    assert found["patches"][0]["sha256"].startswith("sha256:")
    assert (tmp_path / "build" / "dos2.txt").exists() is False
    assert repository.git("status", "--porcelain") == b""
    shown = unpatch(tmp_path, repository, base, "--into", "again", "--offline")
    assert shown.status == 0
    assert f"tree    {tree}" in " ".join(shown.out.split()) or tree in shown.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--commit-id", "00000000"), "no patch is kept for the base commit"),
        (("--device-type", "nope_X1"), "nope_X1"),
        (("--device-type", "../x"), "is not a device type"),
    ],
)
def test_every_failure_ends_with_three_and_leaves_nothing(
    words: tuple[str, ...], wanted: str, made: tuple[Checkout, str, str], tmp_path: Path
) -> None:
    repository, base, _ = made
    answer = unpatch(tmp_path, repository, base, *words, "--into", "build")
    assert (answer.status, answer.out) == (3, "")
    assert wanted in answer.err
    assert not (tmp_path / "build").exists()
    assert not list((tmp_path / "store" / "tmp").glob("*"))


def test_a_patch_set_is_made_encrypted_and_opened_again(made: tuple[Checkout, str, str], tmp_path: Path) -> None:
    repository, base, tree = made
    repository.git("checkout", "-q", "-b", "plain", base)
    repository.write("plain.py", b"all new\n")
    commit = repository.commit("ours")
    wanted = repository.id("HEAD^{tree}")
    assert say(tmp_path, "patch", "keys", "keys").status == 0
    assert (tmp_path / "keys" / "private_key.pem").stat().st_mode & 0o777 == 0o600
    words = (
        "--from",
        str(repository.folder),
        "--base",
        base,
        "--commit",
        commit,
        "--out",
        "engine/base",
        "--recipient",
        "keys/public_key.pem",
    )
    answer = say(tmp_path, "patch", *words, "--json")
    assert answer.status == 0, answer.err
    assert answer.document["tree"] == wanted != tree
    (patch,) = answer.document["patches"]
    assert patch["file"].endswith(".patch.encrypted")
    assert b"all new" not in (tmp_path / "engine" / "base" / patch["file"]).read_bytes()
    series = ("--source", f"file://{repository.folder}", "--format", "series", "--patches", "engine/base", "--revision", base)
    closed = say(tmp_path, "unpatch", *series, "--into", "out")
    assert (closed.status, "no private key" in closed.err) == (3, True)
    opened = say(tmp_path, "unpatch", *series, "--into", "out", "--key", "keys", "--json")
    assert opened.status == 0, opened.err
    assert opened.document[0]["tree"] == wanted
    assert (tmp_path / "out" / "plain.py").read_bytes() == b"all new\n"


def test_the_doctor_names_the_commit_and_the_hunk_at_which_a_set_stops_applying(tmp_path: Path) -> None:
    made = checkout(tmp_path / "upstream")
    base = made.id("HEAD")
    made.git("checkout", "-q", "-b", "vendor")
    made.write("plain.py", (made.folder / "plain.py").read_bytes().replace(b"line 7\n", b"seven\n"))
    made.commit("vendor")
    (tmp_path / "set.patch").write_bytes(made.git("diff", "--binary", base, "vendor"))
    made.git("checkout", "-q", "main")
    for number in range(6):
        text = (made.folder / "plain.py").read_bytes()
        made.write("plain.py", text.replace(b"line 8\n", b"renamed\n") if number == 3 else text + b"more\n")
        made.commit(f"upstream {number}")
    words = ("patch", "doctor", "set.patch", f"{base}..main", "--repository", str(made.folder), "--branch", "main")
    answer = say(tmp_path, *words)
    assert answer.status == 0, answer.err
    rows = {line.split("  ")[2].strip(): line for line in answer.out.splitlines() if "upstream" in line and line[:12].isalnum()}
    assert "clean" in rows["upstream 2"]
    assert "fails" in rows["upstream 3"]
    assert "plain.py, hunk 1 of 1" in rows["upstream 3"]
    document = say(tmp_path, *words, "--json").document
    assert document["newest"]["finding"]["commit"]["subject"] == "upstream 2"
    assert json.dumps(document["newest"]["broken_by"])


def test_what_is_not_said_is_asked_for(tmp_path: Path) -> None:
    for words in (("unpatch",), ("patch",), ("patch", "doctor", ".", "--repository", ".")):
        answer = say(tmp_path, *words)
        assert answer.status == 2
        assert "say wh" in answer.err
