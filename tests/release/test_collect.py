"""Clearing up the store: what a cell needs stays, what is young stays, and a dry run says what a real one does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.collect import Collected, collect
from release.errors import StoreError
from release.house import House

CELL = "cpu/tiny-qwq@bf16"
OLD = time.time() - 100 * 86_400
STALE, YOUNG, LAST, WHEEL = "5" * 64, "6" * 64, "7" * 64, "8" * 64


def put(house: House, key: str, *, made: float = OLD, shares: str = "") -> Path:
    """Put an entry of 1,000 bytes into the store, and share a downloaded file with it."""

    def work(out: Path) -> None:
        (out / "result").write_bytes(b"\0" * 1000)
        if shares:
            os.link(house.store.blob(f"sha256:{shares}"), out / "wheel")

    entry = house.store.put(key, {"stage": "any"}, work)
    os.utime(entry, (made, made))
    return entry


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield House.open((), tmp_path / "store", "auto")


def filled(house: House) -> str:
    """Fill the store; return the key that a plan needs."""
    needed = house.graph(CELL, None).of[CELL, "checkpoint"]
    for name in (WHEEL, "9" * 64):
        house.store.blob(f"sha256:{name}").write_bytes(b"w" * 500)
        house.store.note_blob(f"sha256:{name}", "a.whl")
        os.utime(house.store.blob(f"sha256:{name}"), (OLD, OLD))
    put(house, needed, shares="9" * 64)
    put(house, STALE, shares=WHEEL)
    put(house, YOUNG, made=time.time())
    put(house, LAST)
    (house.store.path / "cells").mkdir()
    (house.store.path / "cells" / "cpu+tiny-qwq@bf16.json").write_text(json.dumps({"card": LAST}))
    half = house.store.partial("a" * 64)
    (half / "samples").write_bytes(b"s" * 100)
    os.utime(half, (OLD, OLD))
    return needed


def test_what_no_plan_and_no_last_build_names_goes_and_nothing_else(house: House) -> None:
    needed = filled(house)
    told = collect(house, 30, dry_run=True)
    assert set(house.store.entries()) == {needed, STALE, YOUNG, LAST}
    done = collect(house, 30)
    assert set(house.store.entries()) == {needed, YOUNG, LAST}
    assert done.entries == told.entries == 1 and done.files == told.files == 1 and done.halves == told.halves == 1
    assert told.kept == done.kept == 2
    assert told.bytes == done.bytes >= 1000 + 500 + 100
    assert not house.store.blob(f"sha256:{WHEEL}").exists() and not house.store.blob_name(f"sha256:{WHEEL}").exists()
    assert house.store.blob("sha256:" + "9" * 64).exists(), "a wheel that a needed entry shares"
    assert list((house.store.path / "tmp").iterdir()) == []
    assert collect(house, 30) == Collected(0, 0, 0, 0, 2)


def test_nothing_is_removed_while_a_build_works_in_the_store(house: House) -> None:
    filled(house)
    with house.store.in_use(), pytest.raises(StoreError, match="a build works in the store"):
        collect(house, 0)
    assert house.store.has(STALE)


def test_an_empty_store_is_cleared_up_too(house: House) -> None:
    assert collect(house, 0) == Collected(0, 0, 0, 0, 0)
