"""An entry of the store exists completely or not at all, whatever happens while it is made."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from release.errors import StoreError
from release.oci import sha256
from release.store import ENTRY, Store, default_path

KEY = "0123456789abcdef" * 4
OTHER = "f" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def files(store: Store) -> list[str]:
    """Return everything below the store but its locks."""
    return sorted(
        str(path.relative_to(store.path))
        for path in store.path.rglob("*")
        if path.is_file() and path.relative_to(store.path).parts[0] != "locks"
    )


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_text("a")


def test_what_was_put_is_there_with_its_facts(store: Store) -> None:
    assert not store.has(KEY)
    entry = store.put(KEY, {"stage": "x", "seconds": 1.5}, fill)
    assert store.has(KEY)
    assert store.get(KEY) == entry
    assert (entry / "deep" / "a").read_text() == "a"
    assert store.facts(KEY) == {"stage": "x", "seconds": 1.5}
    assert not list((store.path / "tmp").iterdir())


def test_facts_may_be_completed_while_the_work_is_done(store: Store) -> None:
    facts: dict[str, str] = {}
    store.put(KEY, facts, lambda folder: facts.update(summary="done"))
    assert store.facts(KEY) == {"summary": "done"}


def test_an_entry_is_not_there_while_it_is_made(store: Store) -> None:
    seen = []

    def work(folder: Path) -> None:
        fill(folder)
        seen.append(store.has(KEY))

    store.put(KEY, {}, work)
    assert seen == [False]


@pytest.mark.parametrize("problem", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_work_that_fails_leaves_nothing(store: Store, problem: BaseException) -> None:
    def work(folder: Path) -> None:
        fill(folder)
        raise problem

    with pytest.raises(type(problem)):
        store.put(KEY, {}, work)
    assert not store.has(KEY)
    assert files(store) == []


def test_facts_that_are_no_json_leave_nothing(store: Store) -> None:
    with pytest.raises(TypeError):
        store.put(KEY, {"x": object()}, fill)
    assert files(store) == []


def test_an_entry_that_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match=f"has no entry {KEY}"):
        store.get(KEY)
    with pytest.raises(StoreError, match="has no entry"):
        store.facts(KEY)


def test_a_damaged_entry_is_named_with_what_to_do(store: Store) -> None:
    (store.put(KEY, {}, fill) / ENTRY).write_text('{"stage": "x')
    with pytest.raises(StoreError, match=f"entry {KEY} is damaged") as caught:
        store.facts(KEY)
    assert str(store.get(KEY)) in caught.value.next_step


def test_half_an_entry_does_not_count_and_is_replaced(store: Store) -> None:
    entry = store.path / "entries" / KEY[:2] / KEY
    entry.mkdir(parents=True)
    (entry / "old").touch()
    assert not store.has(KEY)
    store.put(KEY, {}, fill)
    assert not (entry / "old").exists()
    assert (entry / "deep" / "a").exists()


def test_putting_again_replaces_the_whole_entry(store: Store) -> None:
    store.put(KEY, {"n": 1}, lambda folder: (folder / "one").touch())
    store.put(KEY, {"n": 2}, lambda folder: (folder / "two").touch())
    assert store.facts(KEY) == {"n": 2}
    assert sorted(path.name for path in store.get(KEY).iterdir()) == [ENTRY, "two"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_what_to_do_and_leaves_nothing(store: Store, code: int) -> None:
    def work(folder: Path) -> None:
        fill(folder)
        raise OSError(code, os.strerror(code), str(folder / "big"))

    with pytest.raises(StoreError, match="no space left on the disk of") as caught:
        store.put(KEY, {}, work)
    assert "RELEASE_STORE" in caught.value.next_step
    assert caught.value.exit_code == 3
    assert files(store) == []


def test_a_folder_that_cannot_be_written_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Store(tmp_path / "file").put(KEY, {}, fill)
    assert "RELEASE_STORE" in caught.value.next_step


def test_an_error_of_the_work_about_its_own_files_stays_what_it_is(store: Store) -> None:
    def work(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/x")

    with pytest.raises(FileNotFoundError):
        store.put(KEY, {}, work)


def test_leftovers_of_killed_stages_are_swept_by_the_first_to_come(store: Store) -> None:
    leftover = store.path / "tmp" / "killed"
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    with store.in_use():
        assert not leftover.exists()


def test_leftovers_are_not_swept_while_another_build_works(store: Store) -> None:
    with store.in_use():
        running = store.path / "tmp" / "running"
        running.mkdir(parents=True)
        with store.in_use():
            assert running.exists()
    with store.in_use():
        assert not running.exists()


def test_sweeping_a_store_that_does_not_exist_does_nothing(store: Store) -> None:
    store.sweep()
    assert not store.path.exists()


def test_the_folder_for_resuming_outlives_a_failure_and_ends_when_settled(store: Store) -> None:
    (store.partial(KEY) / "half").write_text("x")
    with store.in_use():
        assert (store.partial(KEY) / "half").read_text() == "x"
    store.settle(KEY)
    store.settle(KEY)
    assert list(store.partial(KEY).iterdir()) == []


def test_a_blob_is_kept_under_its_digest(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"a")
    digest = sha256(b"a")
    assert store.keep_blob(source, digest) == store.blob(digest)
    assert store.keep_blob(source, digest).read_bytes() == b"a"
    assert store.blob(digest).name == digest.removeprefix("sha256:")


def test_a_lock_lets_one_thread_in_at_a_time(store: Store) -> None:
    inside, most, waited = 0, 0, []
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with store.locked(KEY, on_wait=lambda: waited.append(1)):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 1
    assert waited


def test_locks_of_different_keys_do_not_wait_for_one_another(store: Store) -> None:
    waited: list[int] = []
    with store.locked(KEY), store.locked(OTHER, on_wait=lambda: waited.append(1)):
        assert waited == []


def test_a_lock_is_free_again_after_a_failure(store: Store) -> None:
    waited: list[int] = []
    with pytest.raises(RuntimeError), store.locked(KEY):
        raise RuntimeError
    with store.locked(KEY, on_wait=lambda: waited.append(1)):
        assert waited == []


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"RELEASE_STORE": "/a/b"}, "/a/b"),
        ({"RELEASE_STORE": "", "XDG_CACHE_HOME": "/c"}, "/c/release"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/release"),
    ],
)
def test_the_store_lies_where_the_environment_says(environ: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELEASE_STORE", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert default_path() == Path(wanted)


def child(program: str, store: Store) -> subprocess.Popen[str]:
    text = f"import sys, time\nfrom pathlib import Path\nfrom release.store import Store\nstore = Store(Path(sys.argv[1]))\n{program}"
    return subprocess.Popen([sys.executable, "-c", text, str(store.path)], stdout=subprocess.PIPE, text=True, cwd="/")


@pytest.mark.integration
def test_a_lock_holds_between_processes_and_is_free_when_its_holder_is_killed(store: Store) -> None:
    held = child(f"with store.locked({KEY!r}):\n    print('in', flush=True)\n    time.sleep(60)", store)
    assert held.stdout is not None
    try:
        assert held.stdout.readline() == "in\n"
        waited, entered = threading.Event(), threading.Event()

        def work() -> None:
            with store.locked(KEY, on_wait=waited.set):
                entered.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert waited.wait(20)
        assert not entered.wait(0.2)
        held.send_signal(signal.SIGKILL)
        assert entered.wait(20)
        thread.join(20)
    finally:
        held.kill()
        held.wait()
        held.stdout.close()


@pytest.mark.integration
def test_a_stage_that_is_killed_leaves_no_entry_and_its_leftovers_are_swept(store: Store) -> None:
    body = "def work(folder):\n    (folder / 'half').touch()\n    print('in', flush=True)\n    time.sleep(60)\n"
    killed = child(f"{body}with store.in_use():\n    store.put({KEY!r}, {{}}, work)", store)
    assert killed.stdout is not None
    try:
        assert killed.stdout.readline() == "in\n"
        with store.in_use():
            assert [path for path in files(store) if path.endswith("half")], "swept under a build that works"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not store.has(KEY)
        with store.in_use():
            assert files(store) == []
    finally:
        killed.kill()
        killed.wait()
        killed.stdout.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and a kernel that lets it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.integration
def test_a_disk_that_is_really_full_is_said_and_leaves_nothing(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    with pytest.raises(StoreError, match="no space left on the disk of"):
        store.put(KEY, {}, lambda folder: (folder / "big").write_bytes(b"x" * (1 << 20)) and None)
    assert files(store) == []
    store.put(OTHER, {}, fill)
    assert store.has(OTHER)


def test_a_store_that_nobody_may_write_into_can_still_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store" / "locks").mkdir(parents=True)

    def refuse(path: Path, *words: object, **named: object) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with store.in_use():
        assert not store.has(KEY)
