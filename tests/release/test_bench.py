"""`release kernels bench`: figures out of what the room measured, every gap with its reason, and nothing timed where no device is.

Seconds in these lines are made up, and worked out by hand into what they come to.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from release.bench import Bench, bench, document, read
from release.matrix.load import Matrix
from release.operators import PYTHON, ROOM
from release.publish.pictures import draw
from release.show.bench import benched, roofline
from release.types import JSON
from tests.parts.command import release
from tests.parts.pythons import LACKING, lacking

MATRIX: Final = Matrix()
CPU: Final = MATRIX.chip("cpu")
TINY: Final = MATRIX.model("tiny-qwq")
WITH_DEVICES: Final = next(name for name in MATRIX.chips() if MATRIX.chip(name).devices and "bf16" in MATRIX.chip(name).dtypes)
MACHINE: Final = {
    **{"device": "Made-up Device", "torch": "2.13.0", "triton": "3.7.1", "flag-gems": None, "clock": "device events (made up)"},
    **{"cache_bytes": 50 << 20, "cache_assumed": False, "runtime": "none 1.0", "driver": "1.2.3", "known_as": "made-up"},
}
CEILINGS: Final = {
    "copy": {"moved": 2_000_000_000, "seconds": [0.0009, 0.0011], "why": ""},
    "matmul": {
        "bfloat16": {"flops": 10**12, "seconds": [0.002, 0.002], "why": ""},
        "int8": {"flops": 10**12, "seconds": [], "why": "RuntimeError: no int8 here"},
    },
}
"""2000 GB/s, and 500 TFLOP/s."""


def way(name: str, *seconds: float, status: str = "MEASURED", why: str = "", host: float = 20e-6, waits: bool = False) -> JSON:
    return {"name": name, "status": status, "seconds": list(seconds), "why": why, "host": host, "waits": waits}


def line(operator: str, family: str, *ways: JSON, computes: str = "bfloat16", **figures: Any) -> JSON:
    rest = {"case": f"rows={len(ways)}", "dtype": "bfloat16", "memory_bound": False, "copies": 3, "compared": True, "why": ""}
    return {"result": {"operator": operator, "family": family, "computes": computes, **rest, **figures, "contenders": list(ways)}}


LINES: Final = [
    {"machine": MACHINE},
    {"ceilings": CEILINGS},
    # 100 MB at 2000 GB/s are at least 50 µs; ours takes 100.
    line(
        *("rms-norm", "norm"),
        *(way("ours", 90e-6, 110e-6), way("eager", 300e-6, 300e-6), way("compiled", 200e-6, 200e-6)),
        way("flaggems", status="SKIPPED", why="FlagGems cannot be imported"),
        **{"moved": 100_000_000, "flops": 200_000_000, "memory_bound": True},
    ),
    line(
        "add-rms-norm",
        "norm",
        way("ours", 100e-6, 100e-6),
        way("eager", 50e-6, 50e-6),
        moved=10**8,
        flops=10**8,
        memory_bound=True,
    ),
    # 50 GFLOP at 500 TFLOP/s are at least 100 µs.
    line("matmul", "matmul", way("ours", 200e-6, 200e-6), way("eager", 100e-6, 100e-6), moved=10**6, flops=5 * 10**10),
    line("w8a8-matmul", "w8a8 matmul", way("ours", 200e-6, 200e-6), computes="int8", moved=10**6, flops=5 * 10**10),
    line("softmax", "softmax", way("ours", status="FAILED", why="ValueError: no"), way("eager", 1e-3, 1e-3), moved=8, flops=8),
]


def made(lines: list[JSON] = LINES) -> tuple[Bench, JSON]:
    found = read("some-chip", "a-model", lines)
    return found, document(found)


def ours(case: JSON) -> JSON:
    return next(row for row in case["contenders"] if row["name"] == "ours")


def test_seconds_become_figures_beside_the_ceilings() -> None:
    _, found = made()
    assert found["ceilings"]["copy"]["gigabytes_per_second"] == pytest.approx(2000)
    assert found["ceilings"]["copy"]["spread"] == pytest.approx(0.2)
    assert found["ceilings"]["matmul"]["bfloat16"]["teraflops"] == pytest.approx(500)
    norm, _, matmul, w8a8, _ = found["cases"]
    row = ours(norm)
    assert (row["median"], row["spread"]) == (pytest.approx(100e-6), pytest.approx(0.2))
    assert (row["gigabytes_per_second"], row["teraflops"]) == (pytest.approx(1000), pytest.approx(2))
    assert (norm["bound_seconds"], row["share_of_bound"]) == (pytest.approx(50e-6), pytest.approx(0.5))
    assert (norm["best_peer"], norm["ratio"]) == ("compiled", pytest.approx(2))
    assert (ours(matmul)["share_of_bound"], matmul["ratio"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert w8a8["ratio"] is None


def test_without_the_rate_of_its_dtype_nothing_bounds_a_product() -> None:
    """int8 could not be multiplied by the library: a bound of the memory alone would look like a share of what is possible."""
    _, found = made()
    w8a8 = found["cases"][3]
    assert found["ceilings"]["matmul"]["int8"] == {
        "teraflops": None,
        "seconds": [],
        "spread": None,
        "why": "RuntimeError: no int8 here",
    }
    assert (w8a8["bound_seconds"], ours(w8a8)["share_of_bound"]) == (None, None)
    assert ours(w8a8)["teraflops"] == pytest.approx(250)


def test_families_have_the_geometric_mean_of_those_cases_that_have_a_peer_and_say_of_how_many() -> None:
    _, found = made()
    by = {family["family"]: family for family in found["families"]}
    assert (by["norm"]["ratio"], by["norm"]["cases"], by["norm"]["of"]) == (pytest.approx(1.0), 2, 2)
    assert (by["matmul"]["ratio"], by["matmul"]["cases"], by["matmul"]["of"]) == (pytest.approx(0.5), 1, 1)
    assert (by["w8a8 matmul"]["ratio"], by["w8a8 matmul"]["cases"], by["w8a8 matmul"]["of"]) == (None, 0, 1)
    assert (by["softmax"]["ratio"], by["softmax"]["cases"], by["softmax"]["of"]) == (None, 0, 1)
    assert by["norm"]["least_share_of_bound"] == pytest.approx(0.5)


def test_what_is_not_measured_stands_below_with_its_reason_and_without_a_number() -> None:
    found, document_ = made()
    said = benched(found)
    assert re.search(r"SKIPPED +rms-norm +flaggems +1 +FlagGems cannot be imported", said)
    assert re.search(r"FAILED +softmax +ours +1 +ValueError: no", said)
    assert not re.search(r"^softmax +bfloat16 +rows", said, re.MULTILINE)
    assert ours(document_["cases"][4])["seconds"] == []
    assert (found.measured, found.failed) == (4, 1)


def test_a_case_in_which_ours_failed_says_so_and_why() -> None:
    softmax = made()[1]["cases"][4]
    assert (softmax["status"], softmax["why"]) == ("FAILED", "ValueError: no")
    assert (made()[1]["cases"][0]["status"], made()[1]["cases"][0]["why"]) == ("MEASURED", None)


def test_a_round_in_which_no_time_passed_has_no_figure_and_the_reason_and_the_others_have_theirs() -> None:
    ways = (way("ours", 0.0, 0.0), way("eager", 2e-6, 4e-6), way("compiled", 0.0, 1e-6))
    ceilings = {"copy": {**CEILINGS["copy"], "seconds": [0.0, 0.0]}, "matmul": CEILINGS["matmul"]}
    found, document_ = made([LINES[0], {"ceilings": ceilings}, line("rms-norm", "norm", *ways, moved=8, flops=8), LINES[3]])
    short, other = document_["cases"]
    why = "the clock saw no time pass in a round: its seconds are 0.0, 0.0"
    assert (short["status"], short["why"], short["ratio"], short["best_peer"]) == ("SKIPPED", why, None, "eager")
    assert [(row["status"], row["spread"]) for row in short["contenders"][1:]] == [
        *(("MEASURED", pytest.approx(2 / 3)), ("SKIPPED", None)),
    ]
    assert (document_["ceilings"]["copy"]["gigabytes_per_second"], document_["ceilings"]["copy"]["why"]) == (None, why)
    assert (other["status"], found.measured) == ("MEASURED", 1)
    assert why in benched(found)


def test_the_table_names_device_driver_versions_clock_and_cache() -> None:
    said = benched(made()[0])
    assert "4 cases of a-model timed on Made-up Device (some-chip: made-up)" in said
    assert "driver 1.2.3, torch 2.13.0, triton 3.7.1, flag-gems none, none 1.0" in said
    assert "by device events (made up), medians of two rounds in turns, inputs rotating over a cache of 50 MiB" in said
    assert re.search(
        r"rms-norm +bfloat16 +rows=4 +100\.0 +20% +20\.0 +1000\.0 +2\.0 +50% +300\.0 +200\.0 +– +– +compiled +2\.00", said
    )
    assert re.search(r"copy +2000\.0 GB/s +20%", said)


def test_a_configuration_that_is_tried_is_no_peer_and_the_best_of_them_is_named() -> None:
    tried = (way("ours tile=1024", 40e-6, 60e-6), way("ours tile=4096", status="SKIPPED", why="OutOfResources: shared memory"))
    wrong = way("ours tile=64", status="FAILED", why="another result")
    ways = (way("ours", 100e-6, 100e-6), way("eager", 200e-6, 200e-6), *tried, wrong)
    found, document_ = made([*LINES[:2], line("silu-mul", "activation", *ways, moved=10**6, flops=10**6, memory_bound=True)])
    (case,) = document_["cases"]
    assert (case["best_peer"], case["ratio"]) == ("eager", pytest.approx(2))
    assert case["best_tried"] == {"configuration": "tile=1024", "seconds": pytest.approx(50e-6)}
    assert found.failed == 1
    assert "tile=1024: 50.0 µs" in benched(found)
    spec = roofline(found)
    assert spec is not None
    assert {point["way"] for point in spec["layer"][1]["data"]["values"]} == {"ours", "eager"}


def planned(case: str, dtype: str = "bfloat16") -> JSON:
    return {"operator": "matmul", "family": "matmul", "dtype": dtype, "memory_bound": False, "case": case}


def test_what_ended_the_process_has_failed_and_what_was_lost_with_it_counts_among_its_family() -> None:
    plan = {"planned": [planned("rows=1"), planned("rows=2"), planned("rows=8"), planned("rows=1", "float32")]}
    ended = {"ended": ["matmul", "rows=2", "bfloat16"], "why": "the process was killed"}
    timed = line("matmul", "matmul", way("ours", 2e-6, 2e-6), way("eager", 4e-6, 4e-6), case="rows=1", moved=8, flops=8)
    found, document_ = made([*LINES[:3], plan, timed, ended])
    assert found.failed == 1
    assert [(case["status"], case["case"], case["dtype"]) for case in document_["cases"][1:]] == [
        *(("MEASURED", "rows=1", "bfloat16"), ("FAILED", "rows=2", "bfloat16")),
        *(("SKIPPED", "rows=8", "bfloat16"), ("SKIPPED", "rows=1", "float32")),
    ]
    by = {(family["family"], family["dtype"]): family for family in document_["families"]}
    assert [(one["ratio"], one["cases"], one["of"]) for key, one in by.items() if key[0] == "matmul"] == [
        *((pytest.approx(2), 1, 3), (None, 0, 1)),
    ]
    said = benched(found)
    assert "the process ended: the process was killed" in said
    assert re.search(r"SKIPPED +matmul +all +2 +not timed: the process ended within an earlier case", said)


def test_a_figure_that_holds_time_of_the_host_is_marked_and_counted() -> None:
    slow = way("eager", 50e-6, 50e-6, host=400e-6, waits=True)
    other = way("compiled", 60e-6, 60e-6, host=400e-6, waits=True)
    lines = [
        line("rms-norm", "norm", way("ours", 25e-6, 25e-6), slow, way("compiled", 70e-6, 70e-6), moved=8, flops=8),
        line("add-rms-norm", "norm", way("ours", 25e-6, 25e-6), way("eager", 50e-6, 50e-6), other, moved=8, flops=8),
    ]
    found, document_ = made([*LINES[:2], *lines])
    assert [case["host_bound"] for case in document_["cases"]] == [True, False]
    assert [(one["cases"], one["host_bound"]) for one in document_["families"]] == [(2, 1)]
    said = benched(found)
    assert re.search(r"rms-norm .* 50\.0\* +70\.0 .* eager +2\.00\*", said)
    assert re.search(r"add-rms-norm .* 50\.0 +60\.0\* .* eager +2\.00 ", said)
    assert "holds time in which the device waited for the host" in said


def test_the_roofline_draws_every_figure_below_the_ceilings_and_names_the_clock() -> None:
    spec = roofline(made()[0])
    assert spec is not None
    assert "device events (made up)" in spec["description"]
    roofs, points = (layer["data"]["values"] for layer in spec["layer"])
    knee = next(point for point in roofs if point["intensity"] == pytest.approx(250))
    assert knee["rate"] == pytest.approx(500)
    assert all(point["rate"] <= 500 * 1.000001 for point in roofs)
    assert {(point["way"], point["case"]) for point in points} >= {("ours", "rms-norm rows=4"), ("compiled", "rms-norm rows=4")}
    assert len(points) == 9
    assert b"Roofline" in draw({"roofline": spec})["roofline"]


def test_without_a_figure_there_is_no_roofline() -> None:
    assert roofline(Bench("some-chip", "a-model", {}, {}, (), "no device")) is None


def test_a_dtype_that_the_chip_has_not_is_skipped_and_nothing_is_started() -> None:
    found = bench(CPU, TINY, dtypes=["fp16"])
    assert (found.missing, found.measured) == ("cpu does not compute in fp16", 0)


@pytest.mark.integration
@pytest.mark.parametrize(("flag", "version", "why"), LACKING)
def test_without_torch_or_with_an_old_triton_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, version: str, why: str
) -> None:
    monkeypatch.setenv(PYTHON, str(lacking(tmp_path, flag, version)))
    found = bench(CPU, TINY)
    assert why in found.missing
    assert (found.measured, found.lines) == (0, ())


@pytest.mark.integration
def test_where_no_device_is_nothing_is_timed_and_the_command_ends_with_4(tmp_path: Path) -> None:
    """A copy of the tool's Python that sees no device, whatever this machine has."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nCUDA_VISIBLE_DEVICES= HIP_VISIBLE_DEVICES= exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    words = ("kernels", "bench", "--chip", "cpu", "--model", "tiny-qwq", "--json", "bench.json", "--plot", "roofline.svg")
    done = release(*words, store=tmp_path / "store", env={PYTHON: str(python)}, cwd=tmp_path)
    assert done.status == 4
    assert re.search(r"SKIPPED +every operator +nothing was timed: torch \S+ finds no device here", done.out)
    assert "nothing was timed" in done.err
    assert "roofline.svg is not drawn" in done.err
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert (written["cases"], written["machine"]) == ([], {})
    assert "says nothing about one" in written["missing"]
    assert not (tmp_path / "roofline.svg").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--operator", "rms-nrom"), "there is no operator 'rms-nrom'"),
        (("--plot", "roofline.pdf"), "roofline.pdf is neither .svg nor .png"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_timed(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    done = release("kernels", "bench", "--chip", "cpu", "--model", "tiny-qwq", *words, store=tmp_path)
    assert done.status == 2
    assert why in done.err


@pytest.mark.integration
def test_a_case_that_ends_the_process_has_failed_the_next_operator_goes_on_and_another_device_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room's own program, a copy of which takes no clock, dies in the first operator and is asked for the one behind it.

    It names its device as the model is called, which only a chip of the test has. Lines are kept as they come.
    """
    monkeypatch.delenv(PYTHON, raising=False)
    room = tmp_path / "kernels"
    shutil.copytree(ROOM, room, ignore=shutil.ignore_patterns("__pycache__"))
    program = (room / "bench.py").read_text(encoding="utf-8")
    main = """
if __name__ == "__main__":
    def told(request):
        yield {"machine": {"device": request["facts"]["model"], "cache_bytes": 0}}
        if request.get("looking"):
            return
        names = request["operators"]
        for name in names[names.index(request["after"]) + 1 :] if request["after"] else names:
            yield {"begun": [name, "a case", "bfloat16"]}
            if name == "rms-norm":
                os.abort()
            yield {"result": {"operator": name, "family": "", "case": "", "dtype": "", "contenders": [], "why": "not timed"}}

"""
    (room / "bench.py").write_text(program.replace('if __name__ == "__main__":', main).replace("answers)", "told)"))
    kept = tmp_path / "kept.jsonl"
    known = MATRIX.chip(WITH_DEVICES)
    device = next(iter(known.devices.values()))
    fitting = known.model_copy(update={"devices": {TINY.id: device}})
    found = bench(fitting, TINY, ["rms-norm", "softmax"], room=room, keep=kept)
    assert [line["operator"] for line in found.lines] == ["rms-norm", "softmax"], found.missing
    assert (found.failed, found.machine["known_as"]) == (1, TINY.id)
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [next(iter(line)) for line in lines] == ["machine", "begun", "machine", "begun", "result", "end"]
    refused = bench(known, TINY, ["rms-norm"], room=room, keep=tmp_path / "nothing")
    assert f"{TINY.id} is none of the devices that the matrix names of {known.id}" in refused.missing
    assert not (tmp_path / "nothing").exists()
