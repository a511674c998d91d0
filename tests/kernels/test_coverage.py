"""Coverage: three shares counted from traces, and what traces of others may not do."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import release.kernels
from release.coverage import document, measure
from release.errors import UsageError
from release.kernels.coverage import INTERPRETED, UNDETERMINED, Coverage, coverage, read_trace
from release.show.coverage import covered


def call(name: Any, start: Any, duration: Any, kind: str = "cpu_op", thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": duration, "pid": 1, "tid": thread}


def shares(found: Coverage) -> dict[str, tuple[float, float]]:
    return {share.by: (share.part, share.whole) for share in found.shares}


def test_kernels_of_a_device_are_counted_by_kind_by_launch_and_by_time() -> None:
    events = [
        *[call("release_rms_norm_kernel", 10 * number, 5, "kernel") for number in range(3)],
        call("triton_poi_fused_add_0", 40, 5, "kernel"),
        call("nvjet_hsh_128x256", 50, 60, "kernel"),
        call("ncclDevKernel_AllReduce_Sum_bf16", 120, 10, "kernel"),
        call("some_kernel_nobody_knows", 140, 10, "kernel"),
        call("aten::mm", 0, 1000),
    ]
    found = coverage([events])
    assert found.device
    assert shares(found) == {"kinds": (2, 5), "launches": (4, 7), "time": (20, 100)}
    assert {kind.name: kind.library for kind in found.kinds}["some_kernel_nobody_knows"] == UNDETERMINED
    assert "communication" in {kind.library for kind in found.kinds}


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("release_rms_norm_kernel", "ours"),
        ("release_w8a8_matmul_kernel", "ours"),
        ("rms_norm_kernel", "flaggems"),
        ("fused_add_rms_norm_kernel", "flaggems"),
        ("silu_and_mul_kernel_rank_1", "flaggems"),
        ("fused_moe_kernel", "vllm or flaggems"),
        ("kernel_unified_attention_2d", "vllm, Triton"),
        ("softmax_topk_kernel", UNDETERMINED),
        ("my_release_rms_norm_kernel", UNDETERMINED),
    ],
)
def test_a_kernel_is_credited_to_whose_name_it_bears_and_one_of_two_to_neither_alone(name: str, library: str) -> None:
    (kind,) = coverage([[call(name, 0, 1, "kernel")]]).kinds
    assert kind.library == library


def test_every_kernel_of_ours_bears_a_name_that_no_other_library_gives() -> None:
    room = Path(release.kernels.__file__).parent
    trees = [ast.parse(path.read_bytes()) for path in room.rglob("*.py")]
    launched = {
        node.value.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id.endswith("_kernel")
    }
    assert len(launched) > 15
    assert {coverage([[call(name, 0, 1, "kernel")]]).kinds[0].library for name in launched} == {"ours"}


def test_on_a_processor_time_is_each_operators_own_and_only_outermost_calls_count() -> None:
    events = [
        call("aten::linear", 0, 100),
        call("aten::mm", 10, 60),
        call("aten::empty", 20, 10),
        call("aten::mm", 200, 40),
        call("aten::mm", 0, 7, thread=2),
    ]
    found = {kind.name: (kind.launches, kind.time) for kind in coverage([events]).kinds}
    assert found == {"aten::linear": (1, 40), "aten::mm": (2, 97), "aten::empty": (0, 10)}
    assert sum(time for _, time in found.values()) == 147, "all time is counted, and counted once"


def test_kernels_in_one_trace_of_a_server_leave_out_the_operators_of_all() -> None:
    found = coverage([[call("aten::mm", 0, 5)], [call("release_rms_norm_kernel", 0, 5, "kernel")]])
    assert [kind.name for kind in found.kinds] == ["release_rms_norm_kernel"]


def test_no_share_is_without_a_definition_that_says_on_what_it_was_counted() -> None:
    for kind, word in (("kernel", "on the device"), ("cpu_op", "on the host processor")):
        rows = document(coverage([[call("release_rms_norm_kernel", 0, 5, kind)]]))["shares"]
        assert [row["by"] for row in rows] == ["kinds", "launches", "time"]
        assert all(word in row["definition"] for row in rows)
        assert [row["share"] for row in rows] == [1, 1, 1 if kind == "kernel" else None]


def test_names_that_differ_far_behind_are_kinds_of_their_own() -> None:
    names = [f"void cutlass::Kernel<{'Shape, ' * 80}{last}>" for last in "ab"]
    found = coverage([[call(name, 10 * number, 5, "kernel") for number, name in enumerate(names)]])
    assert shares(found)["kinds"] == (0, 2) and all(len(kind.name) < 420 for kind in found.kinds)


def test_of_the_interpreters_time_no_share_is_told_and_the_reason_is() -> None:
    found = coverage([[call("release_kernels::rms_norm", 0, 500), call("aten::mm", 600, 5)]])
    kinds, _, time = found.shares
    assert (kinds.share, kinds.reason) == (0.5, "")
    assert (time.share, time.reason) == (None, INTERPRETED)
    told = covered(found, as_json=False)
    assert "not told" in told and "interpreter" in told and "505" not in told
    assert coverage([[call("aten::mm", 600, 5)]]).shares[2].share == 0, "where nothing was interpreted, nothing stands in the way"


def test_events_that_are_malformed_count_for_nothing() -> None:
    odd: list[Any] = [None, 7, [], {}, call(3, 0, 1), call("a", "0", 1), call("a", 0, None), call("a", 0, -1), call("a", True, 1)]
    odd += [call("a", float("nan"), 1), call("a", float("inf"), 1), call("a", 10**400, 1), {**call("a", 0, 1), "ph": "B"}]
    assert [kind.name for kind in coverage([[*odd, call("aten::mm", 0, 1)]]).kinds] == ["aten::mm"]
    with pytest.raises(ValueError, match="neither a kernel nor an operator"):
        coverage([odd])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.trace.json", b"{"),
        ("a.trace.json", b"\xff\xfe"),
        ("a.trace.json", b"[" * 100_000),
        ("a.trace.json", b'{"traceEvents": {}}'),
        ("a.trace.json", b"3"),
        ("a.trace.json.gz", b"no gzip"),
        ("a.trace.json.gz", gzip.compress(b'{"traceEvents": []}' * 500, mtime=0)[:-20]),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.trace\.json"):
        measure([tmp_path])


def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.kernels.coverage.LARGEST", 1 << 16)
    (tmp_path / "bomb.trace.json.gz").write_bytes(gzip.compress(b" " * (1 << 20)))
    with pytest.raises(ValueError, match="unpacked"):
        read_trace(tmp_path / "bomb.trace.json.gz")


def test_a_folder_without_traces_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no"):
        measure([tmp_path])


def test_all_traces_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.trace.json").write_text(json.dumps({"traceEvents": [call("aten::mm", 0, 1)]}))
    (tmp_path / "two.trace.json.gz").write_bytes(gzip.compress(json.dumps([call("aten::add", 0, 1)]).encode()))
    assert {kind.name for kind in measure([tmp_path]).kinds} == {"aten::mm", "aten::add"}
