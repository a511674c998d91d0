"""Builds that are killed, and builds at the same time: what is finished is kept, what is done is done once. Real processes, counted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from night import JOURNAL, build, build_night, journal, night, process

from release.store import Store

pytestmark = pytest.mark.integration

KILLS = 20
CELLS = 16


@pytest.fixture(autouse=True)
def kept_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))


def finished(store: Store, names: dict[str, str]) -> set[str]:
    return {name for key, name in names.items() if store.has(key)}


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_kill_at_any_moment_the_next_run_redoes_only_what_was_running(tmp_path: Path, seed: int) -> None:
    chance, store, seconds = random.Random(seed), Store(tmp_path / "store"), 0.03
    graph, wanted = night(CELLS, seconds)
    names = {key: task.stage.name for key, task in graph.tasks.items()}
    interrupted: Counter[str] = Counter()
    killed = 0
    for _ in range(KILLS // 2):
        before, began = finished(store, names), len(journal())
        driver = process(build_night, store.path, CELLS, seconds, tmp_path / "told", str(tmp_path / "journal"))
        while len(journal()) == began and driver.is_alive():  # its start is long, and nothing happens in it
            driver.join(0.001)
        driver.join(chance.uniform(0, 0.06))
        killed += driver.is_alive()
        driver.kill()
        driver.join()
        started = journal()[began:]
        assert before & set(started) == set(), "what was finished was begun again"
        running = set(started) - finished(store, names)
        assert len(running) <= 2
        interrupted.update(running)
    assert killed >= KILLS // 4
    assert sum(interrupted.values()) >= KILLS // 4
    build(store, graph, wanted)
    assert Counter(journal()) == Counter(names.values()) + interrupted
    assert finished(store, names) == set(names.values())
    assert list((store.path / "tmp").iterdir()) == []
    assert build(store, graph, wanted).ran == []


def test_two_builds_at_once_share_the_work_and_both_succeed(tmp_path: Path) -> None:
    graph, wanted = night(CELLS, 0.03)
    told = [tmp_path / "first", tmp_path / "second"]
    drivers = [process(build_night, tmp_path / "store", CELLS, 0.03, path, str(tmp_path / "journal")) for path in told]
    for driver in drivers:
        driver.join(60)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    names = sorted(task.stage.name for task in graph.tasks.values())
    assert sorted(journal()) == names
    ran = [json.loads(path.read_text()) for path in told]
    assert len(ran[0]) + len(ran[1]) == len(names)
    assert min(map(len, ran)) > 0
    assert all(Store(tmp_path / "store").has(key) for key in wanted)


def test_a_build_that_waits_for_one_that_is_killed_takes_its_work_over(tmp_path: Path) -> None:
    graph, wanted = night(2, 0.4)
    first = process(build_night, tmp_path / "store", 2, 0.4, tmp_path / "first", str(tmp_path / "journal"))
    pause = threading.Event()
    while not journal() and first.is_alive():
        pause.wait(0.005)
    threading.Timer(0.1, first.kill).start()
    build(Store(tmp_path / "store"), graph, wanted)
    first.join()
    counts = Counter(journal())
    assert set(counts) == {task.stage.name for task in graph.tasks.values()}
    assert sum(counts.values()) - len(counts) == len([name for name in counts if counts[name] > 1]) <= 2


def test_two_commands_at_once_build_each_stage_once(tmp_path: Path) -> None:
    words = ["build", "--select", "nvidia/*", "--until", "render", "--json"]
    line = [sys.executable, "-m", "release", "--store", str(tmp_path / "store"), *words]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)]
    told = [one.communicate(timeout=60) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    documents = [json.loads(out) for out, _ in told]
    ran = Counter(name for document in documents for name in document["ran"])
    assert set(ran.values()) == {1}
    assert {cell["state"] for document in documents for cell in document["cells"]} == {"done"}
