"""FlagGems over ATen: our lists in its words, its own switch called for real, and its record read as evidence of what it served."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from release.kernels.aten import SCHEMA, Served, covered, logged_as, read_served, together
from release.kernels.coverage import LOST, SERVED, coverage
from release.kernels.plugin import over_aten
from release.kernels.registry import choices, overrides

FUNCTIONS: dict[str, str | None] = {
    "_softmax": "flag_gems.ops.softmax.softmax",
    "mm": "flag_gems.ops.mm.mm",
    "mm.out": "flag_gems.ops.mm.mm_out",
    "eq.Tensor": "flag_gems.ops.eq.eq",
    "eq.Scalar": "flag_gems.ops.eq.eq_scalar",
    "add.Tensor": "flag_gems.ops.add.add",
    "sub.Tensor": None,
    "sort": "flag_gems.ops.sort.sort",
    "argsort": "flag_gems.ops.sort.argsort",
}


def asked(**lists: str) -> dict[str, str]:
    return {"RELEASE_OPERATORS": "flaggems", **{f"RELEASE_OPERATORS_{name}": value for name, value in lists.items()}}


def test_our_names_stand_for_functions_of_flaggems_and_its_own_names_for_themselves() -> None:
    assert overrides(asked()) == (None, ())
    assert overrides(asked(EXCLUDE="rms-norm, log_softmax,copy_")) == (None, ("copy_", "log_softmax", "rms_norm"))
    assert overrides(asked(INCLUDE="softmax,matmul,silu-mul", EXCLUDE="addmm")) == (
        ("addmm_out", "mm", "mm_out", "softmax"),
        ("addmm",),
    )
    assert overrides(asked(INCLUDE="rotary")) == ((), ())


def test_a_name_of_flaggems_is_taken_with_its_switch_and_refused_with_ours() -> None:
    assert {one.library for one in choices(asked(EXCLUDE="copy_,softmax"), {}) if one.operator == "silu-mul"} == {"flaggems"}
    with pytest.raises(ValueError, match="there is no operator 'copy-'"):
        choices({**asked(EXCLUDE="copy_"), "RELEASE_OPERATORS": "ours"}, {})
    with pytest.raises(ValueError, match="the switch does not reach cache-write"):
        choices(asked(INCLUDE="cache-write"), {})


def test_an_operator_is_served_where_its_function_was_called_or_a_helper_in_its_module() -> None:
    called = {"flag_gems.ops.softmax.softmax", "flag_gems.ops.mm.general_mm", "flag_gems.ops.eq.eq_scalar"}
    assert covered(FUNCTIONS, called) == {"_softmax", "mm", "mm.out", "eq.Scalar"}
    assert covered(FUNCTIONS, ()) == set(), "what is registered was not called"
    assert covered(FUNCTIONS, {"flag_gems.ops.sort.radix"}) == set(), "a helper of two operators tells of neither"


def test_a_function_is_recorded_under_its_loggers_name_and_not_under_the_name_of_its_module() -> None:
    code = (
        "def mm():\n    return general_mm()\ndef general_mm():\n    logger.debug('GEMS MM')\ndef mm_out():\n    return silent()\n"
    )
    hopper = "flag_gems.runtime.backend._nvidia.hopper.ops.mm"
    for name, wanted in ((hopper, f"{hopper}.mm"), ("_cambricon.ops.mm", None), ("flag_gems_of_another.mm", None), ("", None)):
        module: dict[str, Any] = {"__name__": "hopper.ops.mm", **({"logger": logging.getLogger(name)} if name else {})}
        exec(f"{code}def silent(): ...", module)
        assert logged_as(module["mm"]) == wanted
        assert logged_as(wraps(module["mm"])(lambda: None)) == wanted, "what wraps a function logs where the function does"
        assert logged_as(module["mm_out"]) is None, "neither it nor what it calls writes a line"


def written(folder: Path, record: str, process: int = 7) -> None:
    table = {"schema": SCHEMA, "version": "5.0.2", "functions": FUNCTIONS}
    (folder / f"flaggems-{process}.json").write_text(json.dumps(table))
    (folder / f"flaggems-{process}.txt").write_text(record)


def test_the_records_of_all_processes_are_read_and_nothing_but_calls_counts(tmp_path: Path) -> None:
    assert read_served(tmp_path) is None
    written(tmp_path, "[DEBUG] flag_gems.ops.softmax.softmax: GEMS SOFTMAX\n[INFO] flag_gems.ops.add.add: no call\nnoise\n")
    written(tmp_path, "[DEBUG] flag_gems.ops.mm.general_mm: GEMS MM, [mm scenario]: general\n", 8)
    found = Served(frozenset({"aten::_softmax", "aten::mm"}), frozenset({"aten::sub"}))
    assert read_served(tmp_path) == found
    assert together([found, Served(frozenset({"aten::sub"}))]) == Served(frozenset({"aten::_softmax", "aten::mm", "aten::sub"}))
    (tmp_path / "flaggems-9.json").write_text((tmp_path / "flaggems-7.json").read_text())
    assert read_served(tmp_path) == replace(found, lost=("flaggems-9.txt",)), "what that process served is not known"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": "x", "functions": {}}', json.dumps({"schema": SCHEMA, "functions": {"mm": "rm -rf"}})]
)
def test_a_table_of_functions_that_is_none_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "flaggems-1.json").write_text(text)
    with pytest.raises(ValueError, match=r"flaggems-1\.json is no table of FlagGems' functions"):
        read_served(tmp_path)


def event(category: str, name: str, link: int | None, start: int) -> dict[str, Any]:
    more = {} if link is None else {"args": {"External id": link}}
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": 5, "pid": 1, "tid": 1, **more}


def test_by_record_operators_count_that_launched_kernels_whatever_called_them() -> None:
    """`aten::linear` launches nothing itself: `aten::mm` does, in it, by FlagGems, whose kernel's name no pattern knows."""
    trace = [
        event("cpu_op", "aten::linear", 1, 0),
        event("cpu_op", "aten::mm", 2, 1),
        event("kernel", "some_kernel_of_a_chip", 2, 100),
        event("cpu_op", "release_kernels::rms_norm", 3, 10),
        event("kernel", "release_rms_norm_kernel", 3, 110),
        event("cpu_op", "vllm::attention", 4, 20),
        event("kernel", "kernel_unified_attention_2d", 4, 120),
        event("kernel", "nvjet_hsh_128x256", 4, 130),
        event("cpu_op", "aten::sub", 5, 30),
        event("kernel", "another_kernel_of_a_chip", 5, 140),
        event("kernel", "fused_moe_kernel", None, 150),  # replayed out of a graph
        event("kernel", "nvjet_hsh_64x8", 99, 160),
        event("cpu_op", "aten::bmm", 6, 40),
        event("kernel", "nvjet_hsh_8x8", 6, 170),
        event("cpu_op", "aten::fill_", 7, 50),
        event("kernel", "fill_kernel_rank_1", 7, 180),
        event("cpu_op", "## Call CompiledFxGraph one", 8, 60),
        event("kernel", "triton_poi_fused_0", 8, 190),
        event("cpu_op", "## Call CompiledFxGraph two", 9, 70),
        event("kernel", "triton_poi_fused_0", 9, 200),
    ]
    served = Served(
        frozenset({"aten::mm", "aten::never_seen", "aten::bmm"}), frozenset({"aten::sub", "aten::neither", "aten::fill_"})
    )
    found = coverage([trace], served)
    share = found.shares[-1]
    assert (share.by, share.part, share.whole, share.definition) == ("kinds, by record", 5, 9, SERVED), (
        "bmm is cuBLAS' by its kernel"
    )
    assert found.unrecorded == ("aten::sub",), "fill_ counts by its kernel's name"
    lost = coverage([trace], replace(served, lost=("flaggems-9.txt",))).shares[-1]
    assert (lost.share, lost.reason) == (None, LOST)
    other = coverage([trace, [event("cpu_op", "aten::add", 2, 0), event("kernel", "an_unknown_kernel", 2, 9)]], served).shares[-1]
    assert (other.part, other.whole) == (5, 10), "each process counts its links from the beginning"


def test_without_a_device_or_a_record_no_share_is_told_by_record() -> None:
    for trace, served in (
        ([event("cpu_op", "aten::mm", 1, 0)], Served(frozenset({"aten::mm"}))),
        ([event("kernel", "k", 1, 0)], None),
    ):
        assert [share.by for share in coverage([trace], served).shares] == ["kinds", "launches", "time"]


def test_where_flaggems_cannot_run_the_line_says_why_and_that_atens_operators_are_native(tmp_path: Path) -> None:
    assert over_aten(asked(), tmp_path, "no device") == "release operators: native (no device): ATen's operators"
    if find_spec("flag_gems") is None:
        assert over_aten(asked(), None).startswith("release operators: native (flag_gems.enable: ModuleNotFoundError: ")
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import sys
from pathlib import Path
import torch
from release.kernels import flaggems
from release.kernels.aten import Served, _exists, logged_as, read_served
from release.kernels.interpreter import mend
from release.kernels.plugin import over_aten

mend()
flag_gems = flaggems.library()
from flag_gems.runtime.backend.device import DeviceDetector

DeviceDetector().dispatch_key = "CPU"  # no other device is here
folder, asked = Path(sys.argv[1]), {"RELEASE_OPERATORS": "flaggems"}
try:
    over_aten({**asked, "RELEASE_OPERATORS_EXCLUDE": "sofmax"}, folder)
except ValueError as problem:
    assert "did you mean" in str(problem), problem
else:
    raise AssertionError("an operator that nobody has was taken")
assert over_aten({**asked, "RELEASE_OPERATORS_INCLUDE": "rotary"}, folder).endswith("native (not included): ATen's operators")
before = torch.randn(4, 300)
wanted = before.double().softmax(-1).float(), before.double().log_softmax(-1).float()
line = over_aten({**asked, "RELEASE_OPERATORS_INCLUDE": "softmax,log-softmax,matmul", "RELEASE_OPERATORS_EXCLUDE": "mm_out,matmul"}, folder)
assert set(flag_gems.all_registered_keys()) == {"_log_softmax", "_softmax"}
assert read_served(folder) == Served(frozenset()), "registered, and not called"
found = before.softmax(-1)
assert read_served(folder) == Served(frozenset({"aten::_softmax"})), read_served(folder)
torch.testing.assert_close(found, wanted[0])
torch.testing.assert_close(before.log_softmax(-1), wanted[1])
assert read_served(folder) == Served(frozenset({"aten::_softmax", "aten::_log_softmax"}))
missing = [row[0] for row in flag_gems._FULL_CONFIG if not _exists(row[0])]
assert 0 < len(missing) < 20, f"registered for operators that this torch lacks, and never called: {missing}"
kept = {key: logged_as(one) for key, one in ((row[0], row[1]) for row in flag_gems._FULL_CONFIG)}
silent = {key for key, name in kept.items() if name is None}
assert "tril" in silent and "mm" not in silent and len(silent) < 40, silent
print(line)
"""


@pytest.mark.integration
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here")
def test_flaggems_own_switch_serves_aten_with_our_lists_and_its_record_says_what_was_called(tmp_path: Path) -> None:
    """FlagGems itself is installed for this test alone, of what it asks for only what it imports: its pins would replace our torch."""
    site, file = tmp_path / "site", tmp_path / "program.py"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, "flag-gems==5.0.2", "sqlalchemy==2.0.48", "pyyaml", "packaging"], check=True, capture_output=True)
    file.write_text(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, str(file), str(tmp_path / "calls")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "release operators: flaggems: 2 of ATen's operators, which it records"
