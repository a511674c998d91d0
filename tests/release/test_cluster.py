"""Stages over a Ray cluster: the same results as here, each once, whatever machine is lost; and nothing of Ray left behind. Real Ray."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from far import lasting, lose_a_machine, run_over, spread, until, weary
from night import JOURNAL, Silent, build, journal, night

from release.cli import cli
from release.cluster import Cluster, Spread
from release.errors import StageError, UsageError
from release.house import House
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.stages import STAGES
from release.store import Store

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="no ray: pip install 'release[ray]'")


@pytest.fixture(autouse=True)
def kept_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    monkeypatch.setenv(
        "PYTHONPATH", str(Path(__file__).parents[1] / "parts")
    )  # a cluster's processes import the stages from there


def contents(store: Store) -> dict[str, object]:
    """Return all that stands under each key, but when it was made and how long that took."""
    found: dict[str, object] = {}
    for key in store.entries():
        folder = store.get(key)
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        files.pop(".entry.json")
        facts = store.facts(key)
        found[key] = files, {name: facts[name] for name in facts if name not in ("created", "seconds")}
    return found


def processes() -> list[str]:
    """Return what of Ray runs below this process."""
    found, children = [], {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, parent = (path / "cmdline").read_text(), int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append((int(path.name), line))
    stack = [os.getpid()]
    while stack:
        for number, line in children.get(stack.pop(), ()):
            stack.append(number)
            if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
                found.append(line)
    return found


@with_ray
@pytest.mark.integration
def test_a_cluster_comes_to_the_same_results_each_once_and_leaves_no_process_behind_when_it_is_stopped(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    graph, wanted = night(6)
    build(here, graph, wanted)
    once = sorted(journal())
    with Cluster.join(slots=3) as cluster:
        ledger = spread(cluster, there, graph, wanted)
        assert ledger.failed == {}
        assert sorted(journal()[len(once) :]) == once
        assert len(ledger.ran) == len(graph.tasks)
        assert contents(there) == contents(here)
        assert processes()

        failing, ends = night(4, work=weary)
        broken = spread(cluster, there, failing, ends)
        assert broken.failed == {}, "what the store has is not done again"
        broken = spread(cluster, Store(tmp_path / "broken"), failing, ends)
        (problem,) = broken.failed.values()
        assert isinstance(problem, StageError)
        assert (str(problem), problem.next_step) == ("chip1/model1@v1: weights1: the scale is wrong", "weigh it again")
        assert len(broken.unreached) == 2

        chips, ends = night(1, uses={"device:abacus": 1})
        lacking = spread(cluster, Store(tmp_path / "chips"), chips, ends)
        (problem, *_) = lacking.failed.values()
        assert str(problem).endswith("no machine of the cluster has 1 of CPU, 1 of chip:abacus")

        endless, ends = night(2, work=lasting)
        store = Store(tmp_path / "stopped")
        work = run_over(cluster, store, endless)
        stopped: list[Ledger] = []
        thread = threading.Thread(target=lambda: stopped.append(carry_out(endless, ends, work, Limits(3))))
        thread.start()
        until((store.path / "lasting").is_file)
        work.abandon()  # what a Ctrl-C comes to
        thread.join(20)
        assert {str(problem) for problem in stopped[0].failed.values()} == {"the run was stopped"}
    assert processes() == []
    finished = {endless.tasks[key].stage.name for key in store.entries()}
    began = len(journal())
    build(store, *night(2))
    assert finished.isdisjoint(journal()[began:]), "the next run goes on"
    assert list((store.path / "tmp").iterdir()) == []


@with_ray
@pytest.mark.integration
def test_a_stage_whose_machine_is_lost_goes_to_another(tmp_path: Path) -> None:
    """In a process of its own: Ray does not start a second kind of cluster in one."""
    graph, _ = night(2)
    driver = multiprocessing.get_context("spawn").Process(target=lose_a_machine, args=(tmp_path / "store", tmp_path / "told"))
    driver.start()
    driver.join(240)  # seconds, unless the machine is busy
    assert driver.exitcode == 0
    told = json.loads((tmp_path / "told").read_text())
    assert told["failed"] == []
    assert len(told["ran"]) == len(graph.tasks)
    assert told["moved"]
    assert all("its machine was lost" in text for text in told["moved"])
    counts = Counter(journal())
    assert set(counts) == {task.stage.name for task in graph.tasks.values()}
    assert counts["weights1"] == 2
    assert sum(counts.values()) <= len(graph.tasks) + len(told["moved"])
    assert processes() == []


@with_ray
@pytest.mark.integration
def test_the_command_builds_over_a_cluster(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "release", "--store", str(tmp_path / "store"), "build", "--chip", "cpu", "--model", "tiny-qwq"]
    done = subprocess.run(
        [*line, "--until", "weights", "--executor", "ray", "--jobs", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "weights      done" in done.stderr


def test_what_needs_this_machine_stays_and_the_rest_is_sent(tmp_path: Path) -> None:
    """Of the stages of a real cell: sources, the container engine and servers are not on other machines."""
    house = House.open((), tmp_path, "auto")
    tasks = house.graph("cpu/tiny-qwq@bf16", None)
    work = Spread(tasks, house.matrix, house.store, Session(), cast(Any, Silent()), cluster=cast(Any, None))
    sent = {task.stage.name for task in tasks.tasks.values() if work.ships(task)}
    assert sent == {"wheels", "checkpoint", "weights", "render", "compare", "settle", "judge", "card", "publish"}
    assert {stage.name for stage in STAGES if stage.here} == {"base", "image"}


@pytest.mark.parametrize(
    "address", ["ray://127.0.0.1:10001", "127.0.0.1", "nowhere", "a b:1", "http://127.0.0.1:1/", "host:1234567"]
)
def test_what_is_no_address_is_refused_before_ray_is_loaded(address: str) -> None:
    with pytest.raises(UsageError, match="is no address of a cluster"):
        Cluster.join(address)


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError) as told:
        Cluster.join()
    assert told.value.next_step == "pip install 'release[ray]'"


def test_an_address_without_the_executor_is_refused() -> None:
    done = CliRunner().invoke(cli, ["build", "--chip", "cpu", "--model", "tiny-qwq", "--address", "127.0.0.1:6379"])
    assert isinstance(done.exception, UsageError)
    assert "--address is for a cluster" in str(done.exception)
