"""A build is a graph of stages: each key once, in order, side by side, explained, and never on inputs that are others by now."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from release.errors import StageError, StoreError
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.pipeline import Graph, Stage, Work, changes, digest, flat, graph, is_valid, mark, missing
from release.progress import Line, Progress
from release.schedule import run
from release.session import Session
from release.store import Store
from release.types import JSON, Plan

ONE, TWO = "cpu/tiny-qwq@bf16", "cpu/tiny-qwq@fp32"
SESSION = cast(Session, None)
"""Toy stages need no engine and no server."""


class Quiet:
    """A progress that only remembers."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def line(self, cell: str, stage: str) -> Line:
        self.lines.append(Line(cast(Progress, self), cell, stage))
        return self.lines[-1]

    def changed(self, line: Line) -> None: ...
    def moved(self, line: Line) -> None: ...
    def close(self) -> None: ...

    def states(self) -> dict[str, str]:
        return {f"{line.cell.split('@')[1]}: {line.stage}": line.state for line in self.lines}


class House:
    """A store, the two plans of our own matrix, and a log of what ran."""

    def __init__(self, path: Path) -> None:
        self.store, self.matrix, self.progress = Store(path), Matrix(), Quiet()
        self.plans = {cell: plan_of(self.matrix, cell) for cell in (ONE, TWO)}
        self.log: list[str] = []

    def stage(
        self,
        name: str,
        *needs: str,
        reads: Callable[[Plan], JSON] = lambda plan: {},
        work: Callable[[Work], object] = lambda work: None,
        version: int = 1,
    ) -> Stage:
        def logged(given: Work) -> str:
            self.log.append(name)
            work(given)
            (given.out / name).write_text(json.dumps(given.reads))
            return f"{name} is done"

        return Stage(name, version, needs, lambda plan, matrix: reads(plan), logged)

    def run(self, tasks: Graph, until: str, cell: str = ONE, jobs: int = 4) -> tuple[str, ...]:
        self.log.clear()
        self.progress = Quiet()
        return run(tasks, [tasks.of[cell, until]], self.matrix, self.store, SESSION, self.progress, jobs)

    def graph(self, *stages: Stage, cell: str = ONE) -> Graph:
        return graph(stages, self.plans, self.matrix, [cell], stages[-1].name)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "store")


def precision(plan: Plan) -> JSON:
    return {"precision": plan.precision}


def test_a_stage_gets_its_reads_its_inputs_and_empty_folders(house: House) -> None:
    seen: dict[str, Any] = {}

    def look(work: Work) -> None:
        seen.update(
            reads=work.reads, inputs=dict(work.inputs), out=list(work.out.iterdir()), scratch=list(work.scratch.iterdir())
        )
        (work.scratch / "big").touch()
        work.write("x.json", {"é": 1})

    tasks = house.graph(house.stage("a"), house.stage("b", "a", reads=precision, work=look))
    assert house.run(tasks, "b") == (f"{ONE}: a", f"{ONE}: b")
    assert seen["reads"] == {"precision": "bf16"}
    assert seen["inputs"] == {"a": house.store.get(tasks.of[ONE, "a"])}
    assert seen["out"] == seen["scratch"] == []
    entry = house.store.get(tasks.of[ONE, "b"])
    assert json.loads((entry / "x.json").read_bytes()) == {"é": 1}
    assert list((house.store.path / "tmp").iterdir()) == []


def test_a_second_run_does_nothing(house: House) -> None:
    tasks = house.graph(house.stage("a"), house.stage("b", "a"))
    house.run(tasks, "b")
    assert house.run(tasks, "b") == ()
    assert house.log == []
    assert house.progress.lines == []


def test_the_key_is_of_name_version_reads_and_needs(house: House) -> None:
    def key(*stages: Stage, cell: str = ONE) -> str:
        tasks = house.graph(*stages, cell=cell)
        return tasks.of[cell, stages[-1].name]

    first = key(house.stage("a"), house.stage("b", "a"))
    assert key(house.stage("a"), house.stage("b", "a")) == first
    assert key(house.stage("a"), house.stage("b", "a"), cell=TWO) == first
    others = [
        key(house.stage("a"), house.stage("c", "a")),
        key(house.stage("a"), house.stage("b", "a", version=2)),
        key(house.stage("a"), house.stage("b", "a", reads=precision)),
        key(house.stage("a", reads=precision), house.stage("b", "a")),
        key(house.stage("a"), house.stage("b")),
    ]
    assert len({first, *others}) == 6
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in others)


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_two_cells_share_a_stage_that_reads_the_same(house: House) -> None:
    tasks = house.graph(
        house.stage("wheels"), house.stage("serve", "wheels", reads=precision), house.stage("compare", "serve", "reference:serve")
    )
    assert tasks.of[ONE, "wheels"] == tasks.of[TWO, "wheels"]
    assert tasks.of[ONE, "serve"] != tasks.of[TWO, "serve"]
    house.run(tasks, "compare")
    assert sorted(house.log) == ["compare", "serve", "serve", "wheels"]


def test_the_reference_is_left_out_where_there_is_none(house: House) -> None:
    tasks = house.graph(house.stage("serve", reads=precision), house.stage("compare", "serve", "reference:serve"), cell=TWO)
    assert set(tasks.task(TWO, "compare").needs) == {"serve"}
    tasks = house.graph(house.stage("serve", reads=precision), house.stage("compare", "serve", "reference:serve"), cell=ONE)
    assert set(tasks.task(ONE, "compare").needs) == {"serve", "reference:serve"}
    assert tasks.task(ONE, "compare").needs["reference:serve"] == tasks.of[TWO, "serve"]


def test_a_reference_stage_that_reads_what_the_cell_reads_is_the_same_task(house: House) -> None:
    tasks = house.graph(house.stage("serve"), house.stage("compare", "serve", "reference:serve"))
    assert len(tasks.tasks) == 2
    house.run(tasks, "compare")
    assert house.log == ["serve", "compare"]


def test_nothing_runs_before_what_it_needs(house: House) -> None:
    stages = (house.stage("a"), house.stage("b", "a"), house.stage("c", "a"), house.stage("d", "b", "c"))
    tasks = house.graph(*stages)
    assert list(tasks.tasks) == [tasks.of[ONE, name] for name in "abcd"]
    house.run(tasks, "d")
    assert house.log[0] == "a"
    assert sorted(house.log[1:3]) == ["b", "c"]
    assert house.log[3] == "d"


def test_stages_that_do_not_depend_on_one_another_run_side_by_side(house: House) -> None:
    meeting = threading.Barrier(3)

    def meet(_: Work) -> None:
        meeting.wait(20)

    stages = [house.stage(name, work=meet) for name in ("a", "b", "c")]
    house.run(house.graph(*stages, house.stage("d", "a", "b", "c")), "d", jobs=3)
    assert house.log[-1] == "d"


def test_no_more_stages_run_at_once_than_jobs(house: House) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(_: Work) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    stages = [house.stage(f"s{n}", work=work) for n in range(6)]
    house.run(house.graph(*stages, house.stage("end", *(stage.name for stage in stages))), "end", jobs=2)
    assert most == 2


def fail(problem: BaseException) -> Callable[[Work], object]:
    def work(_: Work) -> None:
        raise problem

    return work


def test_a_failure_stops_new_work_and_keeps_what_was_finished(house: House) -> None:
    going, done = threading.Event(), threading.Event()

    def slow(_: Work) -> None:
        going.set()
        done.wait(20)

    def broken(_: Work) -> None:
        going.wait(20)
        threading.Timer(0.05, done.set).start()
        raise StageError("it broke", next_step="mend it")

    tasks = house.graph(
        house.stage("slow", work=slow),
        house.stage("broken", work=broken),
        house.stage("next", "slow"),
        house.stage("end", "next", "broken"),
    )
    with pytest.raises(StageError, match=r"^cpu/tiny-qwq@bf16: broken: it broke$") as caught:
        house.run(tasks, "end")
    assert caught.value.next_step == "mend it"
    assert sorted(house.log) == ["broken", "slow"]
    assert house.store.has(tasks.of[ONE, "slow"])
    assert not house.store.has(tasks.of[ONE, "broken"])
    assert house.progress.states() == {"bf16: slow": "done", "bf16: broken": "failed"}


def test_after_a_failure_only_what_is_missing_runs(house: House) -> None:
    first, end = house.stage("a"), house.stage("end", "a", "b")
    with pytest.raises(StageError):
        house.run(house.graph(first, house.stage("b", "a", work=fail(StageError("x"))), end), "end")
    assert house.run(house.graph(first, house.stage("b", "a"), end), "end") == (f"{ONE}: b", f"{ONE}: end")
    assert house.progress.states() == {"bf16: a": "cached", "bf16: b": "done", "bf16: end": "done"}


@pytest.mark.parametrize(
    "problem", [FileNotFoundError(2, "No such file", "/x/y"), ConnectionError("reset"), TimeoutError("late")]
)
def test_an_error_of_the_system_becomes_one_of_the_stage(problem: OSError, house: House) -> None:
    with pytest.raises(StageError, match=r"^cpu/tiny-qwq@bf16: a: ") as caught:
        house.run(house.graph(house.stage("a", work=fail(problem))), "a")
    assert caught.value.exit_code == 3


def test_a_full_disk_is_reported_with_cell_and_stage(house: House) -> None:
    with pytest.raises(StoreError, match=r"^cpu/tiny-qwq@bf16: a: no space left on the disk"):
        house.run(house.graph(house.stage("a", work=fail(OSError(28, "No space left on device")))), "a")
    assert list((house.store.path / "tmp").iterdir()) == []


def test_the_folder_for_resuming_outlives_a_failure_and_ends_with_success(house: House) -> None:
    def half(work: Work) -> None:
        (work.partial() / "half").write_text("x")
        raise StageError("killed")

    found = []
    with pytest.raises(StageError):
        house.run(house.graph(house.stage("a", work=half)), "a")
    tasks = house.graph(house.stage("a", work=lambda work: found.extend(path.name for path in work.partial().iterdir())))
    house.run(tasks, "a")
    assert found == ["half"]
    assert list(house.store.partial(tasks.of[ONE, "a"]).iterdir()) == []


def test_two_builds_that_need_the_same_key_do_it_once(house: House) -> None:
    def slow(_: Work) -> None:
        time.sleep(0.1)

    tasks = house.graph(house.stage("a", work=slow))
    results: list[tuple[str, ...]] = []

    def build() -> None:
        results.append(run(tasks, [tasks.of[ONE, "a"]], house.matrix, house.store, SESSION, cast(Progress, Quiet())))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [(), (), (f"{ONE}: a",)]
    assert house.log == ["a"]


def rebuild(house: House, key: str, text: str) -> None:
    """Put another result under a key, as another engine or another day would."""
    facts = {name: value for name, value in house.store.facts(key).items() if name != "mark"}
    house.store.put(key, facts, lambda folder: (folder / "other").write_text(text) and facts.update(mark=mark(folder)))


def test_a_result_whose_input_was_rebuilt_differently_does_not_stand(house: House) -> None:
    tasks = house.graph(house.stage("image"), house.stage("serve", "image"), house.stage("card", "serve"))
    house.run(tasks, "card")
    assert is_valid(house.store, tasks.task(ONE, "serve"))
    rebuild(house, tasks.of[ONE, "image"], "another image")
    assert is_valid(house.store, tasks.task(ONE, "image"))
    assert not is_valid(house.store, tasks.task(ONE, "serve"))


def test_a_result_stands_when_its_input_was_rebuilt_to_the_same(house: House) -> None:
    tasks = house.graph(house.stage("image"), house.stage("serve", "image"))
    house.run(tasks, "serve")
    image = tasks.of[ONE, "image"]
    facts = house.store.facts(image)
    house.store.put(image, facts, lambda folder: (folder / "image").write_text("{}") and None)
    assert is_valid(house.store, tasks.task(ONE, "serve"))


def test_a_result_stands_when_its_input_is_gone(house: House) -> None:
    """What nobody has any more cannot be joined with anything."""
    import shutil

    tasks = house.graph(house.stage("image"), house.stage("serve", "image"))
    house.run(tasks, "serve")
    shutil.rmtree(house.store.get(tasks.of[ONE, "image"]))
    assert is_valid(house.store, tasks.task(ONE, "serve"))
    assert house.run(tasks, "serve") == ()


def test_what_stands_on_a_rebuilt_input_runs_again(house: House) -> None:
    tasks = house.graph(house.stage("image"), house.stage("serve", "image"), house.stage("card", "serve", "image"))
    house.run(tasks, "card")
    rebuild(house, tasks.of[ONE, "image"], "another image")
    house.run(tasks, "card")
    assert house.log == ["serve", "card"]


def test_a_mark_tells_names_sizes_and_small_contents_apart(tmp_path: Path) -> None:
    def marked(**files: bytes) -> str:
        folder = tmp_path / digest({name: len(data) for name, data in files.items()} | {"x": str(sorted(files.items()))})
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return mark(folder)

    found = [marked(a=b"1"), marked(a=b"2"), marked(b=b"1"), marked(a=b"11"), marked(a=b"1", b=b"")]
    assert len(set(found)) == 5


def test_nothing_is_missing_when_all_that_is_wanted_stands(house: House) -> None:
    tasks = house.graph(house.stage("a"), house.stage("b", "a"))
    wanted = [tasks.of[ONE, "b"]]
    assert missing(tasks, wanted, house.store) == set(tasks.tasks)
    house.run(tasks, "b")
    assert missing(tasks, wanted, house.store) == set()


def explained(house: House, before: Stage, after: Stage) -> list[str]:
    old, new = house.graph(before), house.graph(after)
    house.run(old, before.name)
    return changes(house.store, new.task(ONE, after.name), old.of[ONE, before.name])


def test_a_changed_input_is_named_with_both_values(house: House) -> None:
    before = house.stage("serve", reads=lambda plan: {"serve": {"args": {"max-model-len": 1024, "dtype": "auto"}}})
    after = house.stage("serve", reads=lambda plan: {"serve": {"args": {"max-model-len": 2048, "dtype": "auto"}}})
    assert explained(house, before, after) == ["serve.args.max-model-len: 1024 → 2048"]


def test_what_came_and_what_went_is_named(house: House) -> None:
    before = house.stage("a", reads=lambda plan: {"x": 1, "list": [1, 2]})
    after = house.stage("a", reads=lambda plan: {"y": 2, "list": [1]})
    assert explained(house, before, after) == ["list.1: 2 → (nothing)", "x: 1 → (nothing)", "y: (nothing) → 2"]


def test_digests_and_long_values_are_shortened(house: House) -> None:
    before = house.stage("a", reads=lambda plan: {"d": "sha256:" + "a" * 64, "t": "x" * 100})
    after = house.stage("a", reads=lambda plan: {"d": "sha256:" + "b" * 64, "t": "y" * 100})
    found = explained(house, before, after)
    assert found[0] == "d: sha256:aaaaaaaaaaaa… → sha256:bbbbbbbbbbbb…"
    assert len(found[1]) < 120


def test_a_new_version_of_a_stage_is_named(house: House) -> None:
    assert explained(house, house.stage("a"), house.stage("a", version=2)) == ["the stage itself changed (version 1 → 2)"]


def test_a_changed_need_is_named(house: House) -> None:
    old = house.graph(house.stage("a"), house.stage("b", "a"))
    house.run(old, "b")
    new = house.graph(house.stage("a", reads=precision), house.stage("b", "a"))
    assert changes(house.store, new.task(ONE, "b"), old.of[ONE, "b"]) == ["needs a"]


def test_what_was_never_built_says_so(house: House) -> None:
    tasks = house.graph(house.stage("a"))
    for previous in (None, "0" * 64):
        assert changes(house.store, tasks.task(ONE, "a"), previous) == ["has not been built yet"]


def test_a_document_lies_flat_by_dotted_place() -> None:
    assert flat({"a": {"b": [1, {"c": None}], "d": {}}, "e": ()}) == {"a.b.0": 1, "a.b.1.c": None, "a.d": {}, "e": ()}
