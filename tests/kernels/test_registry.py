"""The switch: which operators the environment asks for, what cannot be had, and what was really called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from release.kernels.calls import Calls
from release.kernels.plugin import LINE, told
from release.kernels.registry import LIBRARIES, choices, registry


def test_every_operator_has_a_native_implementation_and_no_library_that_the_switch_does_not_know() -> None:
    assert all("native" in row and set(row) <= set(LIBRARIES) for row in registry().values())


def test_the_registry_names_no_operator_of_ours_that_the_room_has_not() -> None:
    room = json.loads((Path(__file__).parents[2] / "kernels" / "configurations.json").read_bytes())
    assert {operator for operator, row in registry().items() if "ours" in row} <= set(room)


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
    assert found["rotary"].reason == "flaggems has none"


def test_the_line_of_the_log_says_what_was_installed_and_where_not_why() -> None:
    chosen = choices({"RELEASE_OPERATORS": "ours", "RELEASE_OPERATORS_EXCLUDE": "rotary"}, {})
    line = told(chosen, ["RMSNorm", "SiluAndMul"], True)
    assert (
        line
        == f"{LINE}: ours: rms-norm, add-rms-norm, silu-mul; native (excluded): rotary; in RMSNorm, SiluAndMul; calls are recorded"
    )


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


def test_beyond_a_number_of_shapes_calls_are_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.kernels.calls.MOST_SHAPES", 2)
    calls = Calls(None)
    for rows in range(10):
        calls.count("rms-norm", "ours", (rows,), "torch.float32")
    assert sum(calls.counts.values()) == 10 and len(calls.counts) == 3


def test_a_process_that_calls_nothing_leaves_no_record(tmp_path: Path) -> None:
    Calls(tmp_path).write()
    assert list(tmp_path.iterdir()) == []
