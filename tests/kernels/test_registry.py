"""The switch: which operators the environment asks for, what cannot be had, and what was really called."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from release.kernels.calls import Calls, read_calls, summed
from release.kernels.plugin import LINE, told
from release.kernels.registry import LIBRARIES, beyond, choices, reached, registry, seams


def test_every_operator_has_a_native_implementation_and_no_library_that_the_switch_does_not_know() -> None:
    assert all("native" in row and set(row) <= set(LIBRARIES) for row in registry().values())


def test_the_registry_names_every_operator_of_the_room_with_its_seam_or_why_the_switch_does_not_reach_it() -> None:
    room = json.loads((Path(__file__).parents[2] / "kernels" / "configurations.json").read_bytes())
    assert set(registry()) | set(beyond()) == set(room)
    assert not set(registry()) & set(beyond())
    assert set(seams()) == set(registry())
    assert all(len(why) > 20 for why in beyond().values())


def test_an_operator_that_the_switch_does_not_reach_is_refused_in_a_list_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"the switch does not reach grouped-topk: no seam in vLLM"):
        choices({"RELEASE_OPERATORS": "ours", "RELEASE_OPERATORS_INCLUDE": "grouped_topk"}, {})


def test_without_a_switch_everything_is_native() -> None:
    assert set(choices({}, {})) == set(choices({"RELEASE_OPERATORS": "native"}, {}))
    assert {choice.library for choice in choices({}, {})} == {"native"}


def test_the_switch_chooses_and_the_lists_narrow_it_in_either_spelling() -> None:
    narrowed = {
        "RELEASE_OPERATORS": "ours",
        "RELEASE_OPERATORS_INCLUDE": "rms_norm, silu-mul",
        "RELEASE_OPERATORS_EXCLUDE": "silu_mul",
    }
    found = {choice.operator: (choice.library, choice.reason) for choice in choices(narrowed, {})}
    assert found["rms-norm"] == ("ours", "")
    assert found["silu-mul"] == ("native", "excluded")
    assert found["rotary"] == ("native", "not included")


def test_an_unknown_operator_or_library_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'rms-norm'"):
        choices({"RELEASE_OPERATORS": "ours", "RELEASE_OPERATORS_EXCLUDE": "rms-nrom"}, {})
    with pytest.raises(ValueError, match="did you mean 'flaggems'"):
        choices({"RELEASE_OPERATORS": "flaggem"}, {})
    with pytest.raises(ValueError, match="there are: ours"):
        choices({"RELEASE_OPERATORS": "1"}, {})


def test_what_cannot_be_had_is_native_and_says_why() -> None:
    found = {
        choice.operator: choice
        for choice in choices({"RELEASE_OPERATORS": "flaggems"}, {"flag_gems": "flag_gems is not installed"})
    }
    assert found["rms-norm"].library == "native" and found["rms-norm"].reason == "flag_gems is not installed"
    assert found["rotary"].reason == "none of flaggems is bound here"


def test_the_line_of_the_log_says_what_was_installed_and_where_not_why() -> None:
    chosen = choices({"RELEASE_OPERATORS": "ours", "RELEASE_OPERATORS_EXCLUDE": "rotary"}, {})
    line = told(chosen, ["RMSNorm", "SiluAndMul"], True)
    assert (
        line == f"{LINE}: ours: rms-norm, add-rms-norm, silu-mul, int8-per-token, w8a8-matmul; native (excluded): rotary; "
        "native (none of ours is bound here): expert-matmul; in RMSNorm, SiluAndMul; calls are recorded"
    )


def test_the_line_of_the_log_names_no_library_for_an_operator_whose_layer_is_another_s() -> None:
    chosen = choices({"RELEASE_OPERATORS": "ours"}, {})
    (one, *_), line = reached(chosen, ["silu-mul"]), told(reached(chosen, ["silu-mul"]), ["SiluAndMul"], False)
    assert (one.operator, one.library, one.reason.partition(":")[0]) == ("rms-norm", "native", "no layer took it")
    assert line.startswith(f"{LINE}: ours: silu-mul; native (no layer took it: "), "ours stand first, whatever is left out"
    assert "ours: " not in told(reached(chosen, []), [], False)
    assert reached(chosen, [choice.operator for choice in chosen]) == chosen


@pytest.mark.parametrize(("left_out", "other"), [("w8a8-matmul", "int8-per-token"), ("int8-per-token", "w8a8-matmul")])
def test_both_int8_operators_are_native_where_one_is_and_the_other_says_with_which_it_goes(left_out: str, other: str) -> None:
    found = {one.operator: one for one in choices({"RELEASE_OPERATORS": "ours", "RELEASE_OPERATORS_EXCLUDE": left_out}, {})}
    assert (found[left_out].library, found[left_out].reason) == ("native", "excluded")
    assert (found[other].library, found[other].reason) == ("native", f"goes with {left_out}")
    assert found["rms-norm"].library == "ours"


def test_calls_are_counted_by_operator_library_shape_and_dtype_and_written_whole(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    for rows in (1, 1, 8):
        calls.count("rms-norm", "ours", (rows, 128), "torch.bfloat16")
    calls.count("rms-norm", "native", (1, 128), "torch.bfloat16")
    calls.write()
    (file,) = tmp_path.iterdir()
    written = json.loads(file.read_bytes())["calls"]
    assert [(row["library"], row["shape"], row["dtype"], row["calls"]) for row in written] == [
        ("ours", [1, 128], "bfloat16", 2),
        ("native", [1, 128], "bfloat16", 1),
        ("ours", [8, 128], "bfloat16", 1),
    ]


@pytest.mark.integration
def test_the_first_call_of_each_operator_is_on_disk_at_once_even_if_the_process_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from release.kernels.calls import Calls; calls = Calls(Path(sys.argv[1]))\n"
        "for operator in ('rms-norm', 'rms-norm', 'rotary'): calls.count(operator, 'native', (1, 8), 'torch.float32')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {row["operator"] for row in read_calls(tmp_path)} == {"rms-norm", "rotary"}
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_bytes())["ended"] is False, "counts of a killed process may be too few, and say so"


@pytest.mark.integration
def test_the_end_of_a_process_writes_every_call_and_a_child_keeps_a_record_of_its_own(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from release.kernels.calls import Calls; calls = Calls(Path(sys.argv[1]))\n"
        "for _ in range(3): calls.count('rms-norm', 'native', (1, 8), 'torch.float32')\n"
        "child = os.fork()\n"
        "for _ in range(4): calls.count('rms-norm', 'ours', (1, 8), 'torch.float32')\n"
        "child and os.waitpid(child, 0)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True)
    assert all(json.loads(path.read_bytes())["ended"] for path in tmp_path.iterdir())
    assert summed(read_calls(tmp_path)) == [
        {"operator": "rms-norm", "library": "ours", "calls": 8},
        {"operator": "rms-norm", "library": "native", "calls": 3},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": "release-operator-calls/1", "calls": []}',
        '{"schema": "release-operator-calls/2", "calls": [3]}',
        '{"schema": "release-operator-calls/2", "calls": [{"operator": "a", "library": "b", "dtype": "c", "shape": [1], "calls": -1}]}',
        '{"schema": "release-operator-calls/2", "calls": [{"operator": "a", "library": "b", "dtype": "c", "shape": ["x"], "calls": 1}]}',
        '{"schema": "release-operator-calls/2", "calls": [{"operator": "| a", "library": "b", "dtype": "c", "shape": [1], "calls": 1}]}',
    ],
)
def test_a_record_of_calls_that_is_none_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "calls-1.json").write_text(text)
    with pytest.raises(ValueError, match=r"calls-1\.json is no record of calls"):
        read_calls(tmp_path)


def test_beyond_a_number_of_shapes_calls_are_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.kernels.calls.MOST_SHAPES", 2)
    calls = Calls(None)
    for rows in range(10):
        calls.count("rms-norm", "ours", (rows,), "torch.float32")
    assert sum(calls.counts.values()) == 10 and len(calls.counts) == 3


def test_a_process_that_calls_nothing_leaves_no_record(tmp_path: Path) -> None:
    Calls(tmp_path).write()
    assert list(tmp_path.iterdir()) == []
