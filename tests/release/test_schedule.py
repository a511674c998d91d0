"""Many tasks, few workers and devices: each key once, within the limits, what a failure does not touch goes on, servers come and go."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from release.errors import ServingError, StageError
from release.matrix.load import Matrix
from release.pipeline import Graph, Run, Stage, Task, Work, digest
from release.progress import Line, Progress
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.store import Store
from release.types import Lent, Seat
from release.validators.endpoint import RefusedError

MATRIX = Matrix()


class Silent:
    """A progress that says nothing."""

    def line(self, cell: str, stage: str) -> Line:
        return Line(cast(Progress, self), cell, stage)

    def changed(self, line: Line) -> None: ...
    def moved(self, line: Line) -> None: ...
    def close(self) -> None: ...


@dataclass
class World:
    """Toy tasks with what they need, use and talk to; counts what is done, at once and at all."""

    store: Store
    log: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    up: set[str] = field(default_factory=set)
    held: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    tasks: dict[str, Task] = field(default_factory=dict)
    dies: str = ""

    def add(
        self,
        name: str,
        *needs: str,
        uses: Mapping[str, int] | None = None,
        on: str = "",
        seconds: float = 0.0,
        work: Callable[[], object] = lambda: None,
    ) -> str:
        """Add a task; `on` names the task whose server it talks to."""
        keys = {need: digest(need) for need in needs}
        server = digest(on) if on else ""
        own = dict(uses or {})

        def do(given: Work) -> str:
            holds = {} if server else own
            with self.lock:
                if server and server not in self.up:
                    self.up.add(server)
                    self._take(self.tasks[server].uses)
                self._take({**holds, "workers": 1, f"on {on}": 1})
                self.log.append(name)
            time.sleep(seconds)
            try:
                work()
            finally:
                with self.lock:
                    self.held.subtract({**holds, "workers": 1, f"on {on}": 1})
            return name

        stage = Stage(name, 1, needs, lambda plan, matrix: {}, do)
        self.tasks[digest(name)] = Task(stage, f"chip/{name}@bf16", {}, keys, digest(name), own, server)
        return digest(name)

    def _take(self, units: Mapping[str, int]) -> None:
        self.held.update(units)
        for name, count in self.held.items():
            self.most[name] = max(self.most[name], count)

    def last_words(self, key: str, patience: float) -> str:
        """Stand in for Session.last_words, where a server dies some seconds after its last answer."""
        return self.dies if key in self.up and patience else ""

    def stop(self, key: str) -> None:
        """Stand in for Session.stop."""
        with self.lock:
            if key in self.up:
                self.up.remove(key)
                self.held.subtract(self.tasks[key].uses)
                self.stops.append(self.tasks[key].stage.name)

    def run(self, *wanted: str, jobs: int = 2, keep_going: bool = False, weigh: bool = False, **units: int) -> Ledger:
        graph = Graph(self.tasks, {})
        work = Run(graph, MATRIX, self.store, cast(Session, self), cast(Progress, Silent()))
        keys = [digest(name) for name in wanted] or list(self.tasks)
        options: dict[str, Any] = {"seconds": lambda task: float(task.stage.name.partition(" ")[2] or 1)} if weigh else {}
        return carry_out(graph, keys, work, Limits(jobs, units), keep_going=keep_going, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store(tmp_path / "store"))


def broken() -> None:
    raise StageError("it broke")


def test_a_server_that_dies_of_what_it_is_asked_is_told_of_and_its_whole_log_is_kept_until_the_stage_is_done(
    world: World,
) -> None:
    cause = "RuntimeError: worker 0 died"
    world.dies = "\n".join(["begin", cause, *("200 OK" for _ in range(30)), "the end"])
    answers = [RefusedError("EngineCore encountered an issue", 500), RefusedError("no such model", 400)]

    def asked() -> None:
        if answers:
            raise answers.pop(0)

    world.add("serve")
    key = world.add("accuracy", "serve", on="serve", work=asked)
    told = world.run(keep_going=True).failed[key]
    assert isinstance(told, ServingError) and f"it said: {cause}" in told.next_step and "the end" in told.next_step
    kept = Path(told.next_step.splitlines()[-1].removeprefix("all of it: "))
    assert kept.read_text() == world.dies
    refused = world.run(keep_going=True).failed[key]
    assert "log" not in getattr(refused, "next_step", ""), "a refusal kills nobody: nothing is waited for"
    assert not world.run().failed and not kept.exists()


def test_a_resource_bounds_how_many_work_at_once(world: World) -> None:
    for number in range(8):
        world.add(f"fetch{number}", uses={"network": 1}, seconds=0.01)
    world.run(jobs=8, network=2)
    assert len(world.log) == 8
    assert world.most["network"] == 2


def test_what_asks_for_more_than_there_is_fails_with_the_figures_and_the_rest_goes_on(world: World) -> None:
    world.add("big", uses={"device:x": 16})
    world.add("after", "big")
    world.add("small", uses={"device:x": 8})
    ledger = world.run(keep_going=True, **{"device:x": 8})
    assert world.log == ["small"]
    assert str(ledger.failed[digest("big")]).endswith("needs 16 of device:x, and there are 8")
    assert ledger.unreached == {digest("after"): digest("big")}


def test_without_keep_going_nothing_new_starts_after_a_failure(world: World) -> None:
    world.add("a", work=broken)
    world.add("b", "a")
    world.add("c")
    world.add("d", "c")
    ledger = world.run(jobs=1)
    assert world.log == ["a"]
    assert set(ledger.failed) == {digest("a")}


def test_with_keep_going_only_what_stands_on_a_failure_is_left_out(world: World) -> None:
    world.add("a", work=broken)
    world.add("b", "a")
    world.add("b2", "b")
    world.add("c")
    world.add("d", "c")
    world.add("join", "b", "d")
    ledger = world.run(keep_going=True)
    assert sorted(world.log) == ["a", "c", "d"]
    assert set(ledger.unreached) == {digest("b"), digest("b2"), digest("join")}
    assert set(ledger.unreached.values()) == {digest("a")}
    assert sorted(ledger.ran) == ["chip/c@bf16: c", "chip/d@bf16: d"]


def test_two_failures_below_one_task_leave_it_out_once(world: World) -> None:
    world.add("serve", uses={"host": 1}, on="serve")
    world.add("a", work=broken)
    world.add("b", work=broken)
    world.add("ask", "a", "b", "serve", on="serve")
    ledger = world.run(keep_going=True, host=1)
    assert set(ledger.unreached) == {digest("ask")}
    assert world.stops == ["serve"]
    assert not world.up


def test_the_longest_way_to_the_end_goes_first(world: World) -> None:
    world.add("short 1")
    world.add("long 5")
    world.add("middle 3")
    world.run(jobs=1, weigh=True)
    assert world.log == ["long 5", "middle 3", "short 1"]


def test_a_server_is_stopped_when_the_last_that_talks_to_it_is_done(world: World) -> None:
    world.add("serve", uses={"host": 1}, on="serve")
    world.add("check", "serve", on="serve")
    world.add("ask", "check", "serve", on="serve")
    world.add("card", "ask")
    world.run(host=1)
    assert world.log == ["serve", "check", "ask", "card"]
    assert world.stops == ["serve"]


def test_one_task_at_a_time_talks_to_a_server(world: World) -> None:
    world.add("serve", on="serve")
    for number in range(4):
        world.add(f"ask{number}", "serve", on="serve", seconds=0.01)
    world.run(jobs=8)
    assert world.most["on serve"] == 1


def test_a_reference_server_gets_room_from_a_candidate_that_waits_for_it(world: World) -> None:
    world.add("candidate", uses={"host": 1}, on="candidate")
    world.add("reference", uses={"host": 1}, on="reference")
    world.add("trace", "reference", on="reference")
    world.add("consistency", "candidate", "trace", on="candidate")
    world.run(jobs=4, host=1)
    assert sorted(world.log) == ["candidate", "consistency", "reference", "trace"]
    assert world.most["host"] == 1
    assert not world.up


def test_servers_of_one_chip_never_hold_more_than_its_devices(world: World) -> None:
    for number in range(5):
        world.add(f"serve{number}", uses={"device:x": 4}, on=f"serve{number}", seconds=0.005)
        world.add(f"ask{number}", f"serve{number}", on=f"serve{number}", seconds=0.005)
    world.run(jobs=8, **{"device:x": 8})
    assert world.most["device:x"] == 8
    assert len(world.log) == 10
    assert not world.up


def test_what_the_store_has_is_not_done_again(world: World) -> None:
    world.add("a")
    world.add("b", "a")
    world.run("b")
    world.add("c", "b")
    assert world.run("c").ran == ["chip/c@bf16: c"]
    assert world.run("c").ran == []


Shape = list[tuple[list[int], bool, int, bool]]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Draw tasks: whom of the earlier ones each needs, whether it fails, what it uses, whether it has a server."""
    found: Shape = []
    for number in range(draw(st.integers(1, 14))):
        needs = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        found.append((needs, draw(st.integers(0, 9)) == 0, draw(st.integers(0, 3)), draw(st.booleans())))
    return found


@given(shapes(), st.integers(1, 4), st.integers(2, 4), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_graph_ends_with_each_task_done_once_or_a_reason(
    tmp_path: Path, shape: Shape, jobs: int, units: int, keep_going: bool
) -> None:
    world = World(Store(Path(mkdtemp(dir=tmp_path))))
    failing = {f"t{number}" for number, (_, fails, _, _) in enumerate(shape) if fails}
    for number, (needs, fails, uses, serves) in enumerate(shape):
        name, served = f"t{number}", [f"t{need}" for need in needs if shape[need][3]]
        on = name if serves else served[0] if served else ""
        world.add(name, *(f"t{need}" for need in needs), uses={"u": uses}, on=on, work=broken if fails else lambda: None)
    ledger = world.run(jobs=jobs, keep_going=keep_going, u=units)
    assert max(Counter(world.log).values(), default=0) <= 1
    assert world.most["u"] <= units
    assert world.most["workers"] <= jobs
    if keep_going:
        done = {line.rpartition(" ")[2] for line in ledger.ran}
        names = {task.key: task.stage.name for task in world.tasks.values()}
        told = done | {names[key] for key in (*ledger.failed, *ledger.unreached)}
        assert told == {f"t{number}" for number in range(len(shape))}
        assert done.isdisjoint(failing)
        assert not world.up


class Fleeting:
    """Stands in for a fleet: hosts that were told to be at fault, or not."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = faults

    def fault(self, seat: Seat) -> str:
        return self.faults.get(seat.host, "")


def on_hosts(world: World, faults: Mapping[str, str], work: Callable[[str], None], **hosts: Lent) -> tuple[Ledger, list[str]]:
    """Run one server's task with `work(host)`; return the ledger and the hosts that it was on, in order."""
    visited: list[str] = []
    seats: dict[str, Seat] = {}
    world.fleet = Fleeting(faults)  # type: ignore[attr-defined]
    world.seat = seats.__setitem__  # type: ignore[attr-defined]

    def do() -> None:
        visited.append(seats[digest("serve")].host)
        work(visited[-1])

    world.add("serve", uses={"device:chip": 2}, on="serve", work=do)
    run = Run(Graph(world.tasks, {}), MATRIX, world.store, cast(Session, world), cast(Progress, Silent()))
    return carry_out(run.graph, list(world.tasks), run, Limits(2, {}, {"device:chip": hosts}), keep_going=True), visited


def fails_on(*names: str) -> Callable[[str], None]:
    def work(host: str) -> None:
        if host in names:
            raise StageError("it broke")

    return work


TWO, EIGHT = Lent(devices=2), Lent(devices=8, visible="MINE")


def test_a_server_goes_to_the_host_that_has_least_to_spare(world: World) -> None:
    ledger, visited = on_hosts(world, {}, fails_on(), large=EIGHT, small=TWO)
    assert visited == ["small"] and ledger.moved == [] and not ledger.failed
    assert world.store.facts(digest("serve"))["host"] == "small"


def test_a_stage_leaves_a_host_that_is_at_fault_and_its_key_stays(world: World) -> None:
    ledger, visited = on_hosts(world, {"small": "no disk"}, fails_on("small"), large=EIGHT, small=TWO)
    assert visited == ["small", "large"] and not ledger.failed and ledger.ran == ["chip/serve@bf16: serve"]
    assert ledger.moved == ["chip/serve@bf16: serve: host small is at fault: no disk"]


def test_a_cell_at_fault_is_not_tried_on_another_host(world: World) -> None:
    ledger, visited = on_hosts(world, {}, fails_on("small", "large"), large=EIGHT, small=TWO)
    assert visited == ["small"] and str(ledger.failed[digest("serve")]).endswith("it broke")


def test_a_stage_under_which_three_hosts_fail_takes_no_fourth_with_it(world: World) -> None:
    names = ("a", "b", "c", "d")
    ledger, visited = on_hosts(world, dict.fromkeys(names, "it hangs"), fails_on(*names), **dict.fromkeys(names, TWO))
    assert len(visited) == 3 and "at fault" in str(ledger.failed[digest("serve")])


def test_where_no_host_is_left_or_large_enough_the_reason_is_told(world: World) -> None:
    ledger, visited = on_hosts(world, {"small": "no disk"}, fails_on("small"), small=TWO, tiny=Lent(devices=1))
    assert visited == ["small"]
    assert "needs 2 of device:chip, and no host has them but those at fault (host small is at fault: no disk)" in str(
        ledger.failed[digest("serve")]
    )
