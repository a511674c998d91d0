"""`release unpatch` and `release patch` as a release engineer types them: exit codes, what is printed, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vendors
from command import CELL, Answer, release
from vendors import DEVICE, EVERYTHING, Checkout, checkout

from release.oci import sha256

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
        (("--commit-id", ""), "which base is not said"),
        (("--revision", "nowhere"), "there is no tag, branch or commit"),
        (("--source", "nowhere/at/all"), "a path that is no folder"),
        (("--source", "file:///nowhere"), "there is no git repository"),
        (("--source", "."), "there is no git repository"),
        (("--format", "series"), "--device-type belongs to --format flagscale"),
        (("--patches", "."), "--patches belongs to --format series"),
        (("--chip", "cpu"), "--chip names a cell"),
        (("--model", "tiny-qwq"), "--model names a cell"),
        (("--device-type", "nope_X1"), "nope_X1"),
        (("--device-type", "../x"), "is not a device type"),
    ],
)
def test_every_mistake_of_usage_ends_with_two_and_leaves_nothing(
    words: tuple[str, ...], wanted: str, made: tuple[Checkout, str, str], tmp_path: Path
) -> None:
    repository, base, _ = made
    answer = unpatch(tmp_path, repository, base, *words, "--into", "build")
    assert (answer.status, answer.out) == (2, "")
    assert wanted in answer.err
    assert not (tmp_path / "build").exists()
    assert not list((tmp_path / "store" / "tmp").glob("*"))


def test_a_patch_that_does_not_apply_ends_with_three_and_leaves_nothing(made: tuple[Checkout, str, str], tmp_path: Path) -> None:
    repository, base, _ = made
    vendors.keep_a(repository, vendors.mailbox(repository).replace(b"-line 7\n", b"-line 77\n"), base)
    answer = unpatch(tmp_path, repository, base, "--into", "build")
    assert (answer.status, answer.out) == (3, "")
    assert "does not apply" in answer.err
    assert not (tmp_path / "build").exists()
    assert not list((tmp_path / "store" / "tmp").glob("*"))


def test_a_folder_that_is_taken_and_a_missing_device_type_are_mistakes_of_usage(
    made: tuple[Checkout, str, str], tmp_path: Path
) -> None:
    repository, base, _ = made
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "mine").write_text("precious")
    answer = unpatch(tmp_path, repository, base, "--into", "build")
    assert (answer.status, "is not an empty folder" in answer.err) == (2, True)
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["mine"]
    answer = say(tmp_path, "unpatch", "--source", str(repository.folder), "--into", "other")
    assert (answer.status, "--device-type" in answer.err) == (2, True)
    answer = say(tmp_path, "unpatch", "--source", str(repository.folder), "--format", "series", "--into", "other")
    assert (answer.status, "--patches" in answer.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("--revision", "HEAD"),
            ("--format", "flagscale"),
            ("--patches", "."),
            ("--submodule", "a=b"),
            ("--device-type", "A_B"),
        ),
        *(("--commit-id", "0" * 8), ("--backend", "vllm"), ("--task", "train"), ("--accept-changed",)),
    ],
)
def test_options_of_a_source_are_refused_for_a_cell(words: tuple[str, ...], tmp_path: Path) -> None:
    answer = say(tmp_path, "unpatch", *CELL, *words)
    assert (answer.status, answer.out) == (2, "")
    assert f"{words[0]} describes a --source" in answer.err


def test_a_cell_without_a_repository_has_no_tree_to_restore(tmp_path: Path) -> None:
    answer = say(tmp_path, "unpatch", *CELL, "--into", "src")
    assert (answer.status, answer.out) == (2, "")
    assert "no source of cpu/tiny-qwq@bf16 is a repository" in answer.err
    assert not (tmp_path / "src").exists()


def test_a_patch_that_is_replaced_in_place_is_noticed_and_taken_only_when_that_is_said(
    made: tuple[Checkout, str, str], tmp_path: Path
) -> None:
    repository, base, _ = made
    kept = repository.id("HEAD")
    first = unpatch(tmp_path, repository, base, "--into", "one", "--json").document[0]["patches"][0]["sha256"]
    vendors.keep_a(repository, content := vendors.mailbox(repository).replace(b"change 1", b"change one"), base)
    repository.git("commit", "-q", "--amend", "-m", "support another model")
    second = sha256(content)
    assert first != second
    answer = unpatch(tmp_path, repository, base, "--into", "two")
    assert (answer.status, answer.out) == (3, "")
    assert first in answer.err and second in answer.err
    assert "support another model" in answer.err and "--accept-changed" in answer.err and kept in answer.err
    assert not (tmp_path / "two").exists()
    taken = unpatch(tmp_path, repository, base, "--into", "two", "--accept-changed", "--json")
    assert taken.status == 0 and taken.document[0]["patches"][0]["sha256"] == second
    for number, words in enumerate([(), ("--revision", kept), ("--offline",)]):
        again = unpatch(tmp_path, repository, base, "--into", f"again{number}", *words)
        assert again.status == 0, "both are known now: " + again.err
    (note,) = (tmp_path / "store" / "mirrors").glob("*/patches.json")
    note.write_text("[]")
    answer = unpatch(tmp_path, repository, base, "--into", "three")
    assert (answer.status, "patches.json is damaged" in answer.err) == (3, True)


def test_the_address_of_a_source_is_printed_once(made: tuple[Checkout, str, str], tmp_path: Path) -> None:
    repository, base, _ = made
    answer = unpatch(tmp_path, repository, base, "--into", "one")
    assert answer.status == 0 and "".join(answer.out.split()).count(f"file://{repository.folder}") == 1


def test_what_is_there_already_is_a_mistake_of_usage(made: tuple[Checkout, str, str], tmp_path: Path) -> None:
    repository, base, _ = made
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "public_key.pem").write_text("mine")
    answer = say(tmp_path, "patch", "keys", "keys")
    assert (answer.status, "never overwritten" in answer.err) == (2, True)
    (tmp_path / "engine" / "base").mkdir(parents=True)
    answer = say(tmp_path, "patch", "--from", str(repository.folder), "--base", base, "--out", "engine/base")
    assert (answer.status, "is there already" in answer.err) == (2, True)


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
    for wanted, status in (("clean", 4), ("fuzz", 4)):
        required = say(tmp_path, *words, "--require", wanted)
        assert (required.status, required.out) == (status, answer.out)
        assert f"fails, not {wanted}" in required.err
    assert say(tmp_path, *words[:3], f"{base}~0", *words[4:], "--require", "clean").status == 0
    empty = say(tmp_path, *words[:3], f"main..{base}", "--repository", str(made.folder))
    assert (empty.status, f"there are no commits in main..{base}" in empty.err) == (2, True)
    by_url = say(tmp_path, *words[:4], "--repository", f"file://{made.folder}", "--branch", "main")
    assert (by_url.status, by_url.out) == (0, answer.out), by_url.err
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
