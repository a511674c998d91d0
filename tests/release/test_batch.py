"""Many cells at once: which are meant, what they share, what a failure costs, and what is told of it."""

from __future__ import annotations

import io
import json
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from command import CELL, release
from folders import write
from rich.console import Console

from release.batch import Batch, Fate, build_all, expected, local_limits, select
from release.errors import MatrixError, StageError, UsageError, VerdictError
from release.grid import Grid, grid_for
from release.house import House
from release.pipeline import Graph, Run, Task, missing
from release.progress import Plain
from release.schedule import Limits
from release.show.batch import batch as batch_text
from release.stages import STAGES
from release.triage import triage

NAMES = [stage.name for stage in STAGES]
PLAIN = "nvidia/*"
"""Cells whose stages up to `render` need no network: their base is an image, and they have no wheels of ours."""
UNKNOWN = "cambricon/*"
"""Cells of which a source's commit is unknown: they fail at `fetch`."""
QWQ = "chip: nvidia\nmodel: qwq-32b\nengine: vllm\nbase: {unknown: nobody said}\nparallel: {tensor-parallel-size: 8}\n"


def house(tmp_path: Path, *overlays: Path) -> House:
    return House.open(overlays, tmp_path / "store", "docker")


def built(house: House, *patterns: str, keep_going: bool = True, jobs: int = 2) -> Batch:
    cells = select(house, patterns, {})
    return build_all(house, cells, until="render", limits=Limits(jobs), keep_going=keep_going)


def test_patterns_and_options_choose_cells(tmp_path: Path) -> None:
    here = house(tmp_path)
    everything = select(here, (), {})
    assert len(everything) == len(list(here.matrix.cells()))
    assert select(here, ("*/tiny-qwq@w*",), {}) == ("cpu/tiny-qwq@w8a8", "cpu/tiny-qwq@w4a16", "cpu/tiny-qwq@w4a16~gptq")
    assert select(here, ("*@w8a16", "*@fp16"), {"model": "qwq-32b"}) == ("vastai/qwq-32b@fp16", "vastai/qwq-32b@w8a16")
    assert {cell.partition("@")[2] for cell in select(here, (), {"precision": "w8a8sc"})} == {"w8a8sc"}


def test_no_cell_that_fits_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no cell fits gpu/\*, qwq$"):
        select(house(tmp_path), ("gpu/*",), {"model": "qwq"})


def test_a_pattern_that_no_cell_fits_is_refused_whatever_the_others_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no cell fits ascned/\*$"):
        select(house(tmp_path), (PLAIN, "ascned/*"), {})


def test_what_cells_share_is_done_once_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    here = house(tmp_path)
    first = built(here, PLAIN)
    assert {fate.state for fate in first.fates} == {"done"}
    assert len(first.ran) == first.tasks < first.wanted
    assert max(Counter(first.ran).values()) == 1
    again = built(here, PLAIN)
    assert again.ran == ()
    assert "nothing had to run" in batch_text(again, as_json=False)


def test_a_failure_costs_only_the_cells_that_stand_on_it_and_is_told_once(tmp_path: Path) -> None:
    result = built(house(tmp_path), PLAIN, UNKNOWN)
    states = {fate.cell: fate.state for fate in result.fates}
    assert {state for cell, state in states.items() if cell.startswith("nvidia/")} == {"done"}
    assert {state for cell, state in states.items() if cell.startswith("cambricon/")} == {"failed"}
    assert all(cause.stage == "fetch" and "commit of flaggems is unknown" in cause.reason for cause in result.causes)
    text = batch_text(result, as_json=False)
    assert "2 failed" in text
    for cause in result.causes:
        assert text.count(cause.reason) == 1
        assert cause.detail and cause.detail.split()[0] in text, "what to do next stands below"
    with pytest.raises(StageError, match="2 of 6 cells could not be built, for 2 reasons"):
        result.require("built")


def test_one_failed_piece_of_work_is_one_cause_over_all_cells_that_share_it(tmp_path: Path) -> None:
    source = "sources:\n  - {name: engine, repository: 'https://example.org/engine', commit: {unknown: nobody said}}\n"
    text = QWQ + source + "cells:\n  bf16: {}\n  bf16~long: {serve: {args: {max-model-len: 16384}}}\n"
    overlay = write(tmp_path / "matrix", {"cells/nvidia/qwq-32b.yaml": text})
    result = built(house(tmp_path, overlay), "nvidia/qwq-32b@*")
    assert len(result.fates) == 2
    assert {fate.state for fate in result.fates} == {"failed"}, result.causes
    (cause,) = result.causes
    assert len(cause.cells) == len(result.fates)


def test_stages_of_a_reference_that_nobody_asked_for_are_counted_and_a_run_in_which_all_failed_did_something(
    tmp_path: Path,
) -> None:
    here = house(tmp_path)
    cell = "cambricon/qwq-32b@bf16"
    result = build_all(here, [cell], until="compare", limits=Limits(1), keep_going=False)
    tasks = here.graph_of([cell], "compare")
    assert {owner for owner, _ in tasks.of} > {cell}
    assert (result.wanted, result.tasks) == (len(tasks.of), len(tasks.tasks))
    text = batch_text(replace(result, ran=()), as_json=False)
    assert ", 1 failed, " in text and "nothing had to run" not in text


def test_with_stop_at_failure_what_was_left_alone_is_not_started_and_blamed_for_nothing(tmp_path: Path) -> None:
    here = house(tmp_path)
    result = built(here, UNKNOWN, PLAIN, keep_going=False, jobs=1)
    states = Counter(fate.state for fate in result.fates)
    assert states["failed"] >= 1 and states["not started"] >= 1 and states["unreached"] == 0
    assert "done" not in {fate.state for fate in result.fates if fate.cell.startswith("cambricon/")}
    assert sum(states.values()) == len(result.fates)
    assert {cell for cause in result.causes for cell in cause.cells} == {
        fate.cell for fate in result.fates if fate.state == "failed"
    }
    found = triage(here)
    assert found.untold == states["not started"] and sum(len(entry.cells) for entry in found.entries) == states["failed"]


def test_a_run_that_is_stopped_tells_what_it_has_met_so_far(tmp_path: Path) -> None:
    here, stopped = house(tmp_path), threading.Event()

    class Stopped(Run):
        def perform(self, task: Task, host: str = "") -> bool:
            if task.cell.startswith("nvidia/"):
                signal.raise_signal(signal.SIGINT)
                return stopped.wait(60)
            return super().perform(task, host)

    cells = [*select(here, [UNKNOWN], {}), *select(here, [PLAIN], {})]
    with pytest.raises(KeyboardInterrupt):
        build_all(here, cells, until="render", limits=Limits(1), runner=Stopped)
    stopped.set()
    found = triage(here)
    assert [entry.kind for entry in found.entries] == ["build"]
    assert found.past.ended is None and found.untold == len(cells) - len(found.entries[0].cells)
    with pytest.raises(UsageError, match="no run began at 1999"):
        triage(here, run="1999")
    assert triage(here, run=found.past.began).past.began == found.past.began


def test_a_cell_whose_plan_is_refused_is_told_and_not_built(tmp_path: Path) -> None:
    text = QWQ + "cells:\n  bf16: {parallel: {tensor-parallel-size: 7}}\n"
    overlay = write(tmp_path / "matrix", {"cells/nvidia/qwq-32b.yaml": text})
    result = built(house(tmp_path, overlay), "nvidia/qwq-32b@*", "nvidia/qwen3-32b@bf16")
    states = {fate.cell: fate.state for fate in result.fates}
    assert states["nvidia/qwq-32b@bf16"] == "refused"
    assert states["nvidia/qwen3-32b@bf16"] == "done"
    with pytest.raises(MatrixError, match="the rules refuse nvidia/qwq-32b@bf16"):
        result.require("built")


def test_a_blocked_release_is_a_verdict_and_a_failed_stage_is_not() -> None:
    record = {"state": "blocked", "verdicts": []}
    fates = (Fate("a/b@bf16", "validated", record={"state": "validated"}), Fate("a/c@bf16", "blocked", record=record))
    with pytest.raises(VerdictError, match=r"not built: a/c@bf16"):
        Batch(fates, (), 0, 0, 0.0).require("built")
    Batch(fates[:1], (), 0, 0, 0.0).require("validated")


def test_a_host_has_the_devices_that_the_chip_s_file_says_unless_told_otherwise(tmp_path: Path) -> None:
    here = house(tmp_path)
    units = local_limits(here, ["nvidia/qwq-32b@bf16~native", "cpu/tiny-qwq@bf16"], 3, {"network": 9}).units
    assert units == {"network": 9, "disk": 2, "host-servers": 3, "device:nvidia": 8}


def test_a_task_is_expected_to_take_as_long_as_it_took_and_a_new_one_as_its_stage_does(tmp_path: Path) -> None:
    here = house(tmp_path)
    built(here, "nvidia/qwq-32b@bf16~native")
    tasks = here.graph_of(["nvidia/qwq-32b@bf16~native", "nvidia/qwen3-32b@bf16"], "render")
    seconds = expected(here, tasks)
    took = here.durations({"nvidia/qwq-32b@bf16~native"})["nvidia/qwq-32b@bf16~native", "render"]
    assert seconds(tasks.task("nvidia/qwq-32b@bf16~native", "render")) == took
    assert seconds(tasks.task("nvidia/qwen3-32b@bf16", "render")) == took


def grid(tmp_path: Path, *cells: str, height: int = 40) -> tuple[Grid, Graph]:
    here = house(tmp_path)
    tasks = here.graph_of(cells, None)
    wanted = [tasks.of[cell, "publish"] for cell in cells]
    console = Console(file=io.StringIO(), width=160, height=height, force_terminal=True)
    return Grid(tasks, cells, NAMES, missing(tasks, wanted, here.store), console), tasks


def rows(drawn: Grid) -> dict[str, str]:
    console = Console(file=io.StringIO(), width=160)
    console.print(drawn.picture())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return {line.split()[0]: "".join(line.split()[1:]) for line in lines if "@" in line.split(" ")[0]}


def test_a_shared_task_is_drawn_in_every_row_and_a_failure_strikes_what_stands_on_it(tmp_path: Path) -> None:
    drawn, tasks = grid(tmp_path, "cpu/tiny-qwq@bf16", "cpu/tiny-qwq@fp32")

    def end(stage: str, how: str) -> Task:
        task = tasks.task("cpu/tiny-qwq@bf16", stage)
        line = drawn.line(task.cell, stage)
        line.start()
        (line.done if how == "done" else line.failed)("said")
        return task

    assert set("".join(rows(drawn).values())) == {"·"}
    end("wheels", "done")
    place = NAMES.index("wheels")
    assert [row[place] for row in rows(drawn).values()] == ["✓", "✓"]
    end("image", "failed")
    for row in rows(drawn).values():
        assert row[NAMES.index("image")] == "✗"
        assert set(row[NAMES.index("serve") :]) == {"–"}
        assert row[NAMES.index("weights")] == "·"
    drawn.close()


def test_where_the_screen_is_small_the_rows_where_something_happens_are_drawn(tmp_path: Path) -> None:
    cells = [f"cpu/tiny-qwq@{arm}" for arm in ("fp32", "bf16", "w8a8", "fp8", "w4a16")]
    drawn, tasks = grid(tmp_path, *cells, height=12)
    for stage in ("weights",):
        task = tasks.task("cpu/tiny-qwq@w4a16", stage)
        drawn.line(task.cell, stage).start()
    assert len(rows(drawn)) == 4
    assert "cpu/tiny-qwq@w4a16" in rows(drawn)
    drawn.close()


def test_where_there_is_no_terminal_there_are_plain_lines() -> None:
    assert isinstance(grid_for(io.StringIO(), Graph({}, {}), [], [], []), Plain)


@pytest.mark.integration
def test_the_command_tells_cells_causes_and_exit_code(tmp_path: Path) -> None:
    words = ("build", "--select", PLAIN, "--select", UNKNOWN, "--until", "render")
    answer = release(*words, "--json", store=tmp_path / "store")
    assert answer.status == 3
    assert {cell["state"] for cell in answer.document["cells"]} == {"done", "failed"}
    assert len(answer.document["causes"]) == 2
    assert answer.err.splitlines()[-2].startswith("stage: 2 of 6 cells could not be built")
    assert release("build", store=tmp_path / "store").status == 2
    assert release("build", "--all", "--tag", "x", store=tmp_path / "store").status == 2
    json.loads(answer.out)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("build", "--all", "--limit", "network=none"), "--limit network=none: is not NAME=COUNT"),
        (("build", "--all", "--limit", "devize:cpu=3"), "no resource 'devize:cpu' (did you mean 'device:cpu'"),
        (("build", "--select", PLAIN, "--select", "ascned/*", "--until", "render"), "no cell fits ascned/*"),
        (("plan", "--select", PLAIN, "--select", "ascned/*", "--bump", "base=x"), "no cell fits ascned/*"),
        (("status", "--select", PLAIN, "--select", "ascned/*"), "no cell fits ascned/*"),
        (("export", "github", "--select", PLAIN, "--select", "ascned/*"), "no cell fits ascned/*"),
        (("build", *CELL, "--limit", "disk=1"), "--limit is for many cells"),
        (("build", *CELL, "--stop-at-failure"), "--stop-at-failure is for many cells"),
        (
            ("build", "--all", "--until", "weights", "--to", "registry.example.org/x"),
            "nothing can be pushed before the stage publish",
        ),
        (("build", "--all", "--to", "https://BAD//"), "https://BAD"),
        (("build", *CELL, "--remote-trust", "nowhere.pub"), "--remote-trust is for a remote store"),
        (("build", *CELL, "--remote-read-only"), "--remote-read-only is for a remote store"),
        (("plan", *CELL, "--bump", "torch=9", "--until", "render"), "--bump plans cells as their files say"),
        (("plan", *CELL, "--bump", "torch=9", "--devices", "2"), "--bump plans cells as their files say"),
        (("plan", "--all", "--until", "render"), "--until is for the plan of one cell"),
    ],
)
def test_an_option_that_would_change_nothing_is_an_error_of_usage_before_anything_is_built(
    words: tuple[str, ...], wanted: str, tmp_path: Path
) -> None:
    answer = release(*words, store=tmp_path / "store", env={"RELEASE_REMOTE_TRUST": ""}, timeout=300)
    assert answer.status == 2 and answer.err.startswith("usage: ") and wanted in answer.err
    assert answer.out == "" and not list((tmp_path / "store").rglob(".entry.json"))
