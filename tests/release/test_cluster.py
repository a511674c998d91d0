"""Stages over a Ray cluster: the same results as here, each once, whatever machine is lost; and nothing of Ray left behind. Real Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import far
import pytest
from click.testing import CliRunner
from far import Machines, lasting, run_over, spread, telling, until, weary
from night import JOURNAL, Silent, build, journal, night

from release.cli import cli
from release.cluster import Cluster, Spread
from release.errors import StageError, UsageError
from release.house import House
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.stages import STAGES
from release.store import Store


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """The journal of all that the cluster's processes do."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "journal"


@pytest.fixture(scope="module")
def machines(kept: Path) -> Iterator[Machines]:
    with far.machines(**{JOURNAL: str(kept)}) as made:
        made.add("forge")
        yield made
    assert processes() == []


@pytest.fixture(autouse=True)
def same_journal(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOURNAL, str(kept))
    kept.unlink(missing_ok=True)


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


def command(store: Path, precision: str, *words: str) -> list[str]:
    """Return the command line that makes the weights of a cell."""
    line = [sys.executable, "-m", "release", "--store", str(store), *words, "build", "--chip", "cpu", "--model", "tiny-qwq"]
    return [*line, "--precision", precision, "--until", "weights"]


def everything() -> list[str]:
    """Return the command lines of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((path / "cmdline").read_text())
    return found


def processes(top: int | None = None) -> list[str]:
    """Return what of Ray runs below a process, by default this one."""
    found, children = [], {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, parent = (path / "cmdline").read_text(), int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append((int(path.name), line))
    stack = [top or os.getpid()]
    while stack:
        for number, line in children.get(stack.pop(), ()):
            stack.append(number)
            if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
                found.append(line)
    return found


@pytest.mark.integration
def test_ctrl_c_leaves_no_process_of_a_cluster_or_of_a_stage_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal to the whole group, as a terminal sends it, while a program of a vendor works on another process's behalf."""
    (tmp_path / "matrix" / "cells" / "cpu").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    cell = "chip: cpu\nmodel: tiny-qwq\nengine: vllm\ncells:\n  w8a8:\n    weights: {tool: endless, commands: [[endless, $SRC, $DST]]}\n"
    (tmp_path / "matrix" / "cells" / "cpu" / "tiny-qwq.yaml").write_text(cell)
    program = tmp_path / "endless"
    program.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", far.python_path(tmp_path))
    with tempfile.TemporaryDirectory(prefix="r-") as scratch:  # sockets lie below it, whose paths must be short
        monkeypatch.setenv("TMPDIR", scratch)
        line = [*command(tmp_path / "store", "w8a8", "--matrix", str(tmp_path / "matrix")), "--executor", "ray", "--jobs", "2"]
        with (tmp_path / "said").open("w") as said:
            deaf = signal.signal(signal.SIGINT, signal.default_int_handler)  # as it is where a shell runs us in the background
            going = subprocess.Popen(line, cwd=tmp_path, stderr=said, start_new_session=True)
            signal.signal(signal.SIGINT, deaf)
        try:
            until(lambda: (tmp_path / "pid").is_file() or going.poll() is not None)
            assert processes(going.pid), (tmp_path / "said").read_text()
            os.killpg(going.pid, signal.SIGINT)
            assert going.wait(900) == 130, (tmp_path / "said").read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(going.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())
        until(lambda: not any(scratch in line for line in everything()))
        assert list(Path(scratch).iterdir()) == []


@pytest.mark.integration
def test_a_cluster_comes_to_the_same_results_each_once_with_chips_where_they_are(machines: Machines, tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    graph, wanted = night(6)
    build(here, graph, wanted)
    once = sorted(journal())
    with Cluster.join(machines.address) as cluster:
        assert cluster.slots >= 2, "one that a test before lost may still be counted"
        ledger = spread(cluster, there, graph, wanted)
        assert ledger.failed == {}
        assert sorted(journal()[len(once) :]) == once
        assert len(ledger.ran) == len(graph.tasks)
        assert contents(there) == contents(here)

        failing, ends = night(4, work=weary)
        broken = spread(cluster, there, failing, ends)
        assert broken.failed == {}, "what the store has is not done again"
        broken = spread(cluster, Store(tmp_path / "broken"), failing, ends)
        (problem,) = broken.failed.values()
        assert isinstance(problem, StageError)
        assert (str(problem), problem.next_step) == ("chip1/model1@v1: weights1: the scale is wrong", "weigh it again")
        assert len(broken.unreached) == 2

        chips, ends = night(1, uses={"device:abacus": 1}, work=telling)
        assert spread(cluster, Store(tmp_path / "chips"), chips, ends).failed == {}
        where = {text.partition("@")[2] for text in journal() if "@" in text}
        assert where == {"forge"}, "only where the chip is"
        chips, ends = night(1, uses={"device:abacus": 2})
        lacking = spread(cluster, Store(tmp_path / "lacking"), chips, ends)
        (problem, *_) = lacking.failed.values()
        assert str(problem).endswith("no machine of the cluster has 1 of CPU, 2 of chip:abacus")


@pytest.mark.integration
def test_a_run_that_is_abandoned_ends_on_all_machines_and_the_next_one_goes_on(machines: Machines, tmp_path: Path) -> None:
    endless, ends = night(2, work=lasting, doomed=["", "forge"])
    store = Store(tmp_path / "stopped")
    stopped: list[Ledger] = []
    with Cluster.join(machines.address) as cluster:
        work = run_over(cluster, store, endless)
        thread = threading.Thread(target=lambda: stopped.append(carry_out(endless, ends, work, Limits(2))))
        thread.start()
        until((store.path / "lasting").is_file)
        work.abandon()  # what a Ctrl-C comes to
        thread.join(900)
    assert {str(problem) for problem in stopped[0].failed.values()} == {"the run was stopped"}
    until(lambda: not any("lasting" in line or "labour" in line for line in processes()))
    finished = {endless.tasks[key].stage.name for key in store.entries()}
    began = len(journal())
    build(store, endless, ends)
    assert finished.isdisjoint(journal()[began:]), "what was finished is not done again"
    assert len(journal()[began:]) == len(endless.tasks) - len(finished)
    assert list((store.path / "tmp").iterdir()) == []


@pytest.mark.integration
def test_a_stage_whose_machine_is_lost_goes_to_another(machines: Machines, tmp_path: Path) -> None:
    machines.add("doomed")
    graph, wanted = night(2, work=lasting, doomed=["doomed"])
    store, found = Store(tmp_path / "store"), list[Ledger]()
    with Cluster.join(machines.address) as cluster:
        run = threading.Thread(target=lambda: found.append(spread(cluster, store, graph, wanted)))
        run.start()
        until((store.path / "lasting").is_file)
        machines.kill("doomed")
        run.join(900)
    (ledger,) = found
    assert ledger.failed == {}
    assert len(ledger.ran) == len(graph.tasks)
    assert ledger.moved
    assert all("its machine was lost" in text for text in ledger.moved)
    counts = Counter(journal())
    assert set(counts) == {task.stage.name for task in graph.tasks.values()}
    assert counts[(store.path / "lasting").read_text()] == 2
    assert sum(counts.values()) <= len(graph.tasks) + len(ledger.moved), "nothing finished is done again"


@pytest.mark.integration
def test_the_command_builds_over_a_cluster_what_it_builds_here(machines: Machines, tmp_path: Path) -> None:
    for name, words in {"here": [], "there": ["--executor", "ray", "--address", machines.address]}.items():
        done = subprocess.run([*command(tmp_path / name, "fp32"), *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "weights      done" in done.stderr
    assert contents(Store(tmp_path / "there")) == contents(Store(tmp_path / "here"))


@pytest.mark.integration
def test_a_cluster_that_lets_in_whoever_comes_is_refused_unless_that_is_said(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(UsageError, match="asks for no token") as told:
        Cluster.join(machines.address)
    assert "RAY_AUTH_MODE=token" in told.value.next_step and "RAY_AUTH_MODE=disabled" in told.value.next_step
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with Cluster.join(machines.address) as cluster:
        assert cluster.slots >= 2, "one that a test before lost may still be counted"


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
