"""A remote store: others get what is finished without running it, and whatever is not what it should be is refused and run here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from distribution import Answer, Distribution, Seen, distribution, registry, scripted
from night import JOURNAL, build, journal, night

from release.errors import UsageError, VerificationError
from release.listing import Item, Listing, check
from release.oci import IMAGE_MANIFEST, Descriptor, Layout, canonical, sha256
from release.publish.keys import new_key, read_private, read_public
from release.remote import Remote, Trust
from release.shelves import FolderShelf, RegistryShelf, shelf_at
from release.store import Store

__all__ = ["registry"]
GRAPH, WANTED = night(4)
NAMES = sorted(task.stage.name for task in GRAPH.tasks.values())


@pytest.fixture(autouse=True)
def kept_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    (tmp_path / "shelf").mkdir()


def remote(tmp_path: Path, name: str, trust: Trust | None = None, **options: Any) -> tuple[Remote, list[str]]:
    told: list[str] = []
    return Remote(tmp_path / name, FolderShelf(tmp_path / "shelf"), trust, warn=told.append, **options), told


def entry(tmp_path: Path, key: str) -> Path:
    return tmp_path / "shelf" / "entries" / key[:2] / key


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else (path.stat().st_mode, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


def test_what_one_store_finished_another_has_without_running_anything(tmp_path: Path) -> None:
    first, _ = remote(tmp_path, "a")
    second, told = remote(tmp_path, "b")
    assert len(build(first, GRAPH, WANTED).ran) == len(NAMES)
    assert build(second, GRAPH, WANTED).ran == []
    assert sorted(journal()) == NAMES
    assert told == []
    for key in WANTED:
        assert contents(first.get(key)) == contents(second.get(key))
        assert second.facts(key) == first.facts(key)
    assert second.shared == []


@pytest.mark.integration
def test_a_registry_is_a_remote_store(tmp_path: Path, registry: Distribution) -> None:
    place = str(registry.fresh())
    first, second = (Remote(tmp_path / name, RegistryShelf(place), warn=pytest.fail) for name in "ab")
    build(first, GRAPH, WANTED)
    assert build(second, GRAPH, WANTED).ran == []
    assert sorted(journal()) == NAMES
    assert contents(first.get(WANTED[0])) == contents(second.get(WANTED[0]))


def test_a_read_only_remote_store_gets_nothing(tmp_path: Path) -> None:
    store, told = remote(tmp_path, "a", read_only=True)
    build(store, GRAPH, WANTED)
    assert list((tmp_path / "shelf").iterdir()) == []
    assert told == []


def keys(tmp_path: Path, name: str) -> Trust:
    return Trust(read_private(_new(tmp_path, name)), (read_public(tmp_path / f"{name}.pub"),))


def _new(tmp_path: Path, name: str) -> Path:
    new_key(tmp_path / name)
    return tmp_path / name


def test_a_signed_entry_is_taken_by_who_trusts_its_key(tmp_path: Path) -> None:
    trust = keys(tmp_path, "mine")
    build(remote(tmp_path, "a", trust)[0], GRAPH, WANTED)
    second, told = remote(tmp_path, "b", Trust(keys=trust.keys))
    assert build(second, GRAPH, WANTED).ran == []
    assert told == []


@pytest.mark.parametrize("signed", [True, False])
def test_an_entry_that_no_trusted_key_signed_is_refused_and_the_stage_runs_here(tmp_path: Path, signed: bool) -> None:
    build(remote(tmp_path, "a", keys(tmp_path, "theirs") if signed else None)[0], GRAPH, WANTED)
    second, told = remote(tmp_path, "b", keys(tmp_path, "mine"))
    assert len(build(second, GRAPH, WANTED).ran) == len(NAMES)
    assert len(told) == len(NAMES)
    assert all(("no trusted key" if signed else "not signed") in text for text in told)
    third, told = remote(tmp_path, "c", second.trust)  # what was refused has been replaced
    assert (build(third, GRAPH, WANTED).ran, told) == ([], [])


@pytest.mark.parametrize("signer", [None, "other"])
def test_who_signs_with_no_key_that_it_trusts_leaves_the_entries_of_others_where_they_are(
    tmp_path: Path, signer: str | None
) -> None:
    theirs = keys(tmp_path, "theirs")
    build(remote(tmp_path, "a", theirs)[0], GRAPH, WANTED)
    mine = Trust(keys(tmp_path, signer).signer if signer else None, keys(tmp_path, "mine").keys)
    second, told = remote(tmp_path, "b", mine)
    assert len(build(second, GRAPH, WANTED).ran) == len(NAMES)
    assert second.shared == []
    assert len(told) == len(NAMES) and all(
        "it stays there: RELEASE_STORE_KEY names no key that is trusted" in text for text in told
    )
    third, told = remote(tmp_path, "c", Trust(keys=theirs.keys))
    assert (build(third, GRAPH, WANTED).ran, told) == ([], [])


def tampered(tmp_path: Path, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Put an entry on the shelf that says of itself what `change` makes of it, with digests that are right."""
    shelf = FolderShelf(tmp_path / "shelf")
    layout = Layout.create(tmp_path / f"scratch-{key[:8]}")
    manifest = json.loads(entry(tmp_path, key).read_bytes())
    shelf.get(config := Descriptor.from_json(manifest["config"]), layout)
    listing = json.loads(layout.blob(config.digest).read_bytes())
    change(listing)
    made = layout.put(config.media_type, canonical(listing))
    shelf.put(made, layout.blob(made.digest))
    shelf.enter(key, canonical({**manifest, "config": made.to_json()}))


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "leaves by a path": lambda listing: listing["items"].append(["../../escaped", "file", 0o644, 0, ""]),
    "leaves by an absolute path": lambda listing: listing["items"].append(["/tmp/escaped", "file", 0o644, 0, ""]),
    "leaves by a link": lambda listing: listing["items"].append(["out", "link", "../../../x"]),
    "writes through a link": lambda listing: listing["items"].append(["latest/x", "file", 0o644, 0, ""]),
    "stands twice": lambda listing: listing["items"].append(listing["items"][-1]),
    "is oversized": lambda listing: listing["items"].append(["big", "file", 0o644, 1 << 49, sha256(b"big")]),
    "has a setuid bit": lambda listing: listing["items"].append(["program", "file", 0o4755, 0, ""]),
    "has other small files": lambda listing: listing["items"][-1].__setitem__(3, 7),
    "lacks a file": lambda listing: listing["items"].pop(),
    "is of another key": lambda listing: listing.update(key="f" * 64),
    "has other facts": lambda listing: listing["facts"].update(version=2),
    "has no rows": lambda listing: listing.update(items="no"),
    "has its own entry file": lambda listing: listing["items"].append([".entry.json", "file", 0o644, 0, ""]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_entry_that_is_refused_writes_nothing_and_its_stage_runs_here(tmp_path: Path, what: str) -> None:
    build(remote(tmp_path, "a")[0], GRAPH, WANTED[:1])
    tampered(tmp_path, WANTED[0], HOSTILE[what])
    second, told = remote(tmp_path, "b", read_only=True)
    assert second.bring(WANTED[0]) is False
    assert [path for path in second.path.rglob("*") if path.is_file() and path.parent.name != "locks"] == []
    assert len(told) == 1, told
    assert build(second, GRAPH, WANTED[:1]).ran == [f"{GRAPH.tasks[WANTED[0]].cell}: {GRAPH.tasks[WANTED[0]].stage.name}"]
    assert not list(tmp_path.rglob("escaped"))


def test_an_entry_under_the_key_of_another_is_refused(tmp_path: Path) -> None:
    trust = keys(tmp_path, "mine")
    build(remote(tmp_path, "a", trust)[0], GRAPH, WANTED)
    entry(tmp_path, WANTED[0]).chmod(0o644)
    entry(tmp_path, WANTED[0]).write_bytes(entry(tmp_path, WANTED[1]).read_bytes())
    for each in (Trust(keys=trust.keys), None):
        second, told = remote(tmp_path, f"b{each is None}", each)
        assert second.bring(WANTED[0]) is False
        assert len(told) == 1


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"config": 3}', b"\xff", b"x" * (5 << 20)])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    build(remote(tmp_path, "a")[0], GRAPH, WANTED[:1])
    entry(tmp_path, WANTED[0]).chmod(0o644)
    entry(tmp_path, WANTED[0]).write_bytes(data)
    second, told = remote(tmp_path, "b")
    assert second.bring(WANTED[0]) is False
    assert len(told) == 1


def test_bytes_that_are_not_those_of_their_digest_are_refused(tmp_path: Path) -> None:
    build(remote(tmp_path, "a")[0], GRAPH, WANTED[:1])
    for blob in (tmp_path / "shelf" / "blobs").rglob("*"):
        if blob.is_file():
            blob.chmod(0o644)
            blob.write_bytes(b"?" * blob.stat().st_size)
    second, told = remote(tmp_path, "b")
    assert second.bring(WANTED[0]) is False
    assert "has other content" in told[0]


def test_a_spoiled_blob_is_replaced_by_what_the_next_machine_makes(tmp_path: Path) -> None:
    build(remote(tmp_path, "a")[0], GRAPH, WANTED)
    for blob in (tmp_path / "shelf" / "blobs").glob("*/*"):
        data = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    second, told = remote(tmp_path, "b")
    assert len(build(second, GRAPH, WANTED).ran) == len(told) == len(NAMES)
    third, told = remote(tmp_path, "c")
    assert (build(third, GRAPH, WANTED).ran, told) == ([], [])


class Overwriting:
    """The script of a registry that keeps whatever comes last under a name: blobs, manifests by tag."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def __call__(self, seen: Seen) -> Answer:
        path, _, question = seen.path.partition("?")
        if seen.method == "POST":
            return Answer(202, headers={"Location": path + "one"})
        if seen.method == "PUT":
            digest = unquote(question.removeprefix("digest=")) or sha256(seen.body)
            self.kept[f"blobs/{digest}" if question else "/".join(path.split("/")[-2:])] = seen.body
            return Answer(201, headers={"Docker-Content-Digest": digest})
        found = self.kept.get("/".join(path.split("/")[-2:]))
        headers = {"Content-Type": IMAGE_MANIFEST} if "/manifests/" in path else {}
        return Answer(404) if found is None else Answer(body=found, headers=headers)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.integration
def test_a_blob_that_a_registry_has_spoiled_is_uploaded_again(tmp_path: Path) -> None:
    script = Overwriting()
    with scripted(script) as server:

        def store(name: str) -> tuple[Remote, list[str]]:
            told: list[str] = []
            return Remote(tmp_path / name, RegistryShelf(f"{server.host}/team/store"), warn=told.append), told

        build(store("a")[0], GRAPH, WANTED)
        for manifest in [json.loads(data) for name, data in script.kept.items() if name.startswith("manifests/")]:
            name = f"blobs/{manifest['layers'][0]['digest']}"
            script.kept[name] = flipped(script.kept[name])
        second, told = store("b")
        assert len(build(second, GRAPH, WANTED).ran) == len(told) == len(second.shared) == len(NAMES), told
        third, told = store("c")
        assert (build(third, GRAPH, WANTED).ran, told) == ([], [])


@pytest.mark.integration
def test_a_registry_that_keeps_what_it_has_spoiled_is_told_of_and_nothing_is_called_shared(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    with distribution(tmp_path / "registry") as running:
        place, told = str(running.fresh()), list[str]()
        build(Remote(tmp_path / "a", RegistryShelf(place), warn=pytest.fail), GRAPH, WANTED[:1])
        pack = str(json.loads(RegistryShelf(place).find(WANTED[0]) or b"")["layers"][0]["digest"])
        blobs = tmp_path / "registry" / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256"
        spoiled = blobs / pack[7:9] / pack[7:] / "data"
        right = spoiled.read_bytes()
        spoiled.write_bytes(flipped(right))
        second = Remote(tmp_path / "b", RegistryShelf(place), warn=told.append)
        assert len(build(second, GRAPH, WANTED[:1]).ran) == 1 and second.shared == []
        assert "is refused, the stage runs here" in told[0] and "cannot be shared" in told[1], told
        assert "keeps what it has spoiled, though the right bytes were uploaded" in told[1]
        spoiled.unlink()  # as who runs the registry does
        build(third := Remote(tmp_path / "c", RegistryShelf(place), warn=told.append), GRAPH, WANTED[:1])
        assert f"{pack} is not there" in told[2] and third.shared == WANTED[:1]
        assert spoiled.read_bytes() == right


def test_a_shelf_that_is_gone_costs_warnings_and_no_build(tmp_path: Path) -> None:
    store, told = remote(tmp_path, "a")
    (tmp_path / "shelf").rmdir()
    (tmp_path / "shelf").write_text("no folder")
    assert len(build(store, GRAPH, WANTED).ran) == len(NAMES)
    assert len(told) == 3
    assert any(text.endswith("does without it from now on") for text in told)


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../..", "a/../../b", "x/..", "../../deep"])
def test_a_link_that_might_lead_out_is_refused(target: str) -> None:
    items = (Item("link", target=target, kind="link"),)
    with pytest.raises(VerificationError, match="leads out"):
        check(Listing("k", {}, items, Descriptor("application/octet-stream", sha256(b""), 0)))


@pytest.mark.parametrize(
    "address", ["http://x/y", "oci://", "oci://host.example/name:tag", "file://host/x", "/x", "file:///nowhere/at/all"]
)
def test_an_address_that_is_no_remote_store_is_an_error_of_usage(address: str) -> None:
    with pytest.raises(UsageError):
        shelf_at(address)


def test_a_password_in_an_address_that_is_no_remote_store_is_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        shelf_at("https://me:hunter2@registry.example.org/x")
    assert str(refused.value) == "https://…@registry.example.org/x is no remote store"


def test_a_stage_whose_result_lies_outside_its_folder_is_not_shared(tmp_path: Path) -> None:
    from dataclasses import replace

    from release.pipeline import Graph

    tasks = {key: replace(task, stage=replace(task.stage, local=True)) for key, task in GRAPH.tasks.items()}
    store, _ = remote(tmp_path, "a")
    build(store, Graph(tasks, {}), WANTED)
    assert (store.shared, Store(store.path).has(WANTED[0])) == ([], True)
