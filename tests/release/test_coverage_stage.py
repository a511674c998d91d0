"""The stage that profiles a server: what is added for it, which cells ask for it, and what it takes out of a container."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from folders import CELL, write

from release.cli.kernels import kernels
from release.coverage import CALLS, TRACES, _fetch, _leave_hosts_out, calls_of, profile, reads_profile
from release.errors import StageError, UsageError
from release.kernels.coverage import read_trace
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.pipeline import Graph, Stage, Task, Work, graph
from release.progress import Line
from release.session import Session
from release.stages import STAGES
from release.store import Store
from release.trial import reads_serve
from release.types import Plan
from release.validators.serving import Server

ASKING = "    operators: {library: ours, env: {RELEASE_OPERATORS: ours}, proof: release operators, plugin: true, share: true}\n"
LOADED = "    performance: {grid: [[16, 16]], concurrency: [1]}\n"


def plan(cell: str = "cpu/tiny-qwen3@bf16") -> Plan:
    return plan_of(Matrix(), cell)


def tasks_of(matrix: Matrix, cell: str) -> Graph:
    plans, following = {}, cell
    while following:
        plans[following] = plan_of(matrix, following)
        following = plans[following].reference or ""
    return graph(STAGES, plans, matrix, [cell], "card")


def test_the_server_is_started_with_the_profiler_and_the_record_and_nothing_else_is_changed() -> None:
    before, reads = reads_serve(plan(), Matrix()), reads_profile(plan(), Matrix())
    after = reads["serve"]
    assert after["argv"] == before["argv"] + reads["profiler"] and TRACES in reads["profiler"]
    assert after["serve"]["env"] == {**before["serve"]["env"], "RELEASE_OPERATORS_RECORD": CALLS}
    assert {name for name in before if before[name] != after[name]} == {"argv", "serve"}
    assert {name for name in before["serve"] if before["serve"][name] != after["serve"][name]} == {"env"}


def test_only_a_cell_that_asks_for_its_share_is_profiled_in_a_build(tmp_path: Path) -> None:
    assert ("cpu/tiny-qwq@bf16", "profile") not in tasks_of(Matrix(), "cpu/tiny-qwq@bf16").of
    text = (Path(Matrix().file("cells/cpu/tiny-qwq.yaml"))).read_text().replace("  bf16:\n", "  bf16:\n" + ASKING, 1)
    (tmp_path / "cells" / "cpu").mkdir(parents=True)
    (tmp_path / "cells" / "cpu" / "tiny-qwq.yaml").write_text(text)
    tasks = tasks_of(Matrix((tmp_path,)), "cpu/tiny-qwq@bf16")
    card = tasks.task("cpu/tiny-qwq@bf16", "card")
    assert card.needs["profile"] == tasks.of["cpu/tiny-qwq@bf16", "profile"]
    assert "plugin" in tasks.task("cpu/tiny-qwq@bf16", "wheels").reads
    assert "plugin" not in tasks.task("cpu/tiny-qwq@fp32", "wheels").reads


@pytest.mark.parametrize(("asking", "loaded", "waits"), [(ASKING, LOADED, True), (ASKING, "", False), ("", LOADED, False)])
def test_a_server_is_profiled_after_its_speed_is_measured_where_a_build_does_both(
    asking: str, loaded: str, waits: bool, tmp_path: Path
) -> None:
    text = (Path(Matrix().file("cells/cpu/tiny-qwq.yaml"))).read_text().replace("  bf16:\n", "  bf16:\n" + asking + loaded, 1)
    (tmp_path / "cells" / "cpu").mkdir(parents=True)
    (tmp_path / "cells" / "cpu" / "tiny-qwq.yaml").write_text(text)
    matrix, cell = Matrix((tmp_path,)), "cpu/tiny-qwq@bf16"
    plans = {cell: plan_of(matrix, cell).model_copy(update={"reference": None})}
    tasks = graph(STAGES, plans, matrix, [cell], "profile")
    assert ((cell, "performance") in tasks.of) is waits
    assert ("performance" in tasks.task(cell, "profile").needs) is waits


def test_an_engine_of_whose_profiler_nothing_is_known_is_refused_with_the_way_by_hand(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": CELL.replace("engine: vllm", "engine: sglang")}),))
    reads = reads_profile(plan_of(matrix, "abacus/pebble-7b@w8a8"), matrix)
    task = Task(Stage("profile", 1, (), lambda plan, matrix: {}, lambda work: ""), "c", reads, {}, "a" * 64)
    store = Store(tmp_path / "store")
    with pytest.raises(StageError, match="nothing is known of a profiler of sglang") as caught:
        profile(Work(task, {}, tmp_path, tmp_path, matrix, store, cast(Session, None), cast(Line, None)))
    assert "release kernels coverage FOLDER" in caught.value.next_step


class Container:
    """Answers for a container whose folder holds what a test says, names and content."""

    def __init__(self, files: dict[str, bytes | str]) -> None:
        self.files = files

    def execute(self, container: str, argv: Sequence[str]) -> tuple[int, str, str]:
        if argv[0] == "ls":
            return 0, "\n".join(self.files), ""
        data = self.files[argv[-1].rpartition("/")[2]]
        return 0, data if isinstance(data, str) else base64.b64encode(data).decode(), ""


def fetched(tmp_path: Path, files: dict[str, bytes | str]) -> dict[str, bytes]:
    _fetch(Server("", "c", (), 0.0, cast(Any, Container(files))), "/tmp/x", tmp_path)
    return {path.name: path.read_bytes() for path in tmp_path.rglob("*")}


def test_only_plain_names_of_json_files_are_taken_out_of_a_container(tmp_path: Path) -> None:
    there: dict[str, bytes | str] = {
        **dict.fromkeys(("../up.json", "/etc/x.json", ".hidden.json", "a b.json", "-rf.json", "x.sh"), b"1"),
        **{"rank0.1.pt.trace.json.gz": b"\x1f\x8b", "calls-7.json": b"{}"},
    }
    assert fetched(tmp_path, there) == {"rank0.1.pt.trace.json.gz": b"\x1f\x8b", "calls-7.json": b"{}"}


def test_a_file_that_cannot_be_read_whole_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"a\.json cannot be read out of the container"):
        fetched(tmp_path, {"a.json": "no base64 !"})
    with pytest.raises(StageError, match="has 300 files"):
        fetched(tmp_path, {f"{number}.json": b"" for number in range(300)})
    assert not list(tmp_path.iterdir())


def test_no_trace_that_becomes_evidence_names_its_host(tmp_path: Path) -> None:
    """Two processes of one host as torch and vLLM name them, and one by its ranks, whose name stays."""
    for name in (
        "box-7.corp_71.async_llm.5.pt.trace.json.gz",
        "box-7.corp_72.5.pt.trace.json.gz",
        "dp0_tp0_rank0.5.pt.trace.json.gz",
    ):
        trace = {"host_name": "box-7.corp", "traceEvents": [{"name": "aten::mm", "ts": 1}], "traceName": f"/tmp/{name}"}
        (tmp_path / name).write_bytes(gzip.compress(json.dumps(trace).encode()))
    _leave_hosts_out(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("dp0_tp0_rank0.5.pt.trace.json.gz", "process-1.async_llm.5.pt.trace.json.gz", "process-2.5.pt.trace.json.gz"),
    ]
    for path in tmp_path.iterdir():
        told = json.loads(gzip.decompress(path.read_bytes()))
        assert "box-7" not in json.dumps(told) and told["traceEvents"] == [{"name": "aten::mm", "ts": 1}]
        assert read_trace(path) == told["traceEvents"]


@pytest.mark.integration
def test_torch_itself_writes_the_host_where_it_is_left_out(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from torch.profiler import profile, tensorboard_trace_handler as kept\n"
        "with profile(on_trace_ready=kept(sys.argv[1], use_gzip=True)): torch.ones(3) + 1"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    (path,) = tmp_path.iterdir()
    before, events = json.loads(gzip.decompress(path.read_bytes())), len(read_trace(path))
    assert before["host_name"] == socket.gethostname() and path.name.startswith(f"{socket.gethostname()}_")
    _leave_hosts_out(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("process-1.") and len(read_trace(path)) == events
    after = json.loads(gzip.decompress(path.read_bytes()))
    assert {name for name in before if before[name] != after[name]} == {"host_name", "traceName"}


def test_the_recorded_calls_beside_the_traces_are_told_with_their_definition(tmp_path: Path) -> None:
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1, "pid": 1, "tid": 1}
    (tmp_path / "a.trace.json").write_text(json.dumps([event]))
    bare = json.loads(CliRunner().invoke(kernels, ["coverage", "--json", str(tmp_path)]).output)
    assert bare["recorded"] is None
    row = {"shape": [1, 8], "dtype": "bfloat16"}
    calls = [
        {**row, "operator": "rms-norm", "library": "ours", "calls": 3},
        {**row, "operator": "rms-norm", "library": "native", "calls": 1},
        {**row, "operator": "rotary", "library": "native", "calls": 6},
    ]
    (tmp_path / "calls-1.json").write_text(json.dumps({"schema": "release-operator-calls/2", "ended": False, "calls": calls}))
    told = json.loads(CliRunner().invoke(kernels, ["coverage", "--json", str(tmp_path)]).output)["recorded"]
    assert [(share["by"], share["triton"], share["total"]) for share in told["shares"]] == [("kinds", 1, 2), ("launches", 3, 10)]
    assert all("plugin" in share["definition"] for share in told["shares"])
    assert told["beyond"]["grouped-topk"].startswith("no seam in vLLM 0.32")
    shown = CliRunner().invoke(kernels, ["coverage", str(tmp_path)]).output
    assert "rms-norm" in shown and "GroupedTopk is registered as a CustomOp and never made" in " ".join(shown.split())
    (tmp_path / "calls-2.json").write_text("{")
    with pytest.raises(UsageError, match=r"calls-2\.json is no record of calls"):
        calls_of([tmp_path])


@pytest.mark.parametrize("words", [(), ("--chip", "cpu"), ("--model", "tiny-qwq")])
def test_coverage_of_nothing_and_of_half_a_cell_is_refused(words: tuple[str, ...]) -> None:
    found = CliRunner().invoke(kernels, ["coverage", *words])
    assert isinstance(found.exception, UsageError) and "--chip and the --model" in str(found.exception)
