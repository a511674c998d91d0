"""Clearing up the store: what a cell needs stays, what is young stays, and a dry run says what a real one does."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distribution import Distribution, registry
from laid import whole
from records import record

from release.batch import build_all
from release.build import SMALL, build, deliver
from release.collect import Collected, collect
from release.errors import StoreError, UsageError
from release.house import House
from release.matrix.load import OURS
from release.pipeline import Graph, Run
from release.progress import progress_for
from release.publishing import publish_release
from release.pull import pull
from release.schedule import Limits, carry_out
from release.session import Session

__all__ = ["registry"]

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


def test_a_build_holds_the_store_from_before_it_looks_until_its_release_lies_there(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(house)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "release.json").write_text("{}")
    tried: list[str] = []

    def trying(what: str, result: object) -> Callable[..., object]:
        def act(*arguments: object) -> object:
            with pytest.raises(StoreError, match="a build works in the store"):
                collect(house, 0)
            tried.append(what)
            return result

        return act

    monkeypatch.setattr("release.schedule.missing", trying("looks", set()))
    monkeypatch.setattr("release.build.deliver", trying("lays out", tmp_path / "there"))
    build(house, CELL, dist=tmp_path / "dist")
    assert tried == ["looks", "lays out"]
    session = Session("auto")
    carry_out(Graph({}, {}), [], Run(Graph({}, {}), house.matrix, house.store, session, progress_for(sys.stderr)), Limits(1))
    session.close()
    assert tried == ["looks", "lays out", "looks"], "whoever else runs stages"
    collect(house, 0)
    assert not house.store.has(STALE), "and then it lets go"


def test_a_batch_holds_the_store_too(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def carry(*arguments: object, **options: object) -> object:
        with pytest.raises(StoreError, match="a build works in the store"):
            collect(house, 0)
        raise UsageError("far enough")

    monkeypatch.setattr("release.batch.carry", carry)
    with pytest.raises(UsageError, match="far enough"):
        build_all(house, [CELL], limits=Limits(1), dist=tmp_path)


def test_a_base_that_was_imported_for_a_cell_stays(tmp_path: Path) -> None:
    overlay = tmp_path / "matrix"
    for name in ("chips/cpu.yaml", "models/tiny-qwq.yaml", "cells/cpu/tiny-qwq.yaml"):
        (overlay / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(OURS / name, overlay / name)
    chip = overlay / "chips" / "cpu.yaml"
    text = chip.read_text()
    start, end = text.index("  bootstrap:"), text.index("python:")
    chip.write_text(f"{text[:start]}  image: debian@sha256:{LAST}\n{text[end:]}")
    house = House.open((overlay,), tmp_path / "store", "auto")
    assert house.graph(CELL, None).task(CELL, "base").reads["base"]["image"] == f"debian@sha256:{LAST}"
    for key in (LAST, STALE):
        put(house, key)
    assert collect(house, 30).entries == 1
    assert house.store.entries() == [LAST]


@pytest.mark.integration
def test_what_was_laid_out_can_be_published_and_pulled_when_nothing_of_it_is_in_the_store(
    house: House, registry: Distribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release is of a matrix that changed since: no plan names its stages, which are put into the store by hand and laid out for real."""
    monkeypatch.chdir(tmp_path)
    made = whole(tmp_path / "made", record(cell=CELL), size=2 * SMALL)
    outputs = {
        "publish": made.folder,
        "card": tmp_path / "made" / "stages" / "card",
        "render": tmp_path / "empty",
        "unpatch": tmp_path / "empty",
    }
    (tmp_path / "empty").mkdir()
    now = house.graph(CELL, None)
    tasks = {f"{number:064x}": replace(now.task(CELL, stage), key=f"{number:064x}") for number, stage in enumerate(outputs)}
    for key, task in tasks.items():
        entry = house.store.put(
            key, {"stage": task.stage.name}, lambda out, source=outputs[task.stage.name]: _copied(source, out)
        )
        os.utime(entry, (OLD, OLD))
    graph = Graph(tasks, {(CELL, task.stage.name): key for key, task in tasks.items()})
    folder = deliver(house, graph, CELL, tmp_path / "dist")
    weights = next(path for path in (folder / "oci" / "blobs" / "sha256").iterdir() if path.stat().st_size == 2 * SMALL)
    assert weights.stat().st_nlink == 2, "it shares nothing with the store, and shows nothing"
    assert collect(house, 30).entries == 4 and house.store.entries() == []
    assert weights.stat().st_nlink == 1
    where = registry.fresh("bf16")
    publish_release(folder, where, house.pushed)
    for place in (str(folder / "oci"), str(where)):
        pulled = pull(house, place, tmp_path / "pulled" / place[-4:], into_engine=False)
        assert (pulled.folder / "weights" / "model.safetensors").stat().st_size == 2 * SMALL


def _copied(source: Path, out: Path) -> None:
    shutil.copytree(source, out, dirs_exist_ok=True)


def test_an_empty_store_is_cleared_up_too(house: House) -> None:
    assert collect(house, 0) == Collected(0, 0, 0, 0, 0)
