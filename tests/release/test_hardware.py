"""What a host's own tool prints, read by the expressions of a chip's file; and this host looked at as a host of a chip."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from folders import CELL, CHIP, MODEL, write

from release import hardware
from release.doctor import _chips, examine_chip
from release.house import House
from release.matrix.load import Matrix
from release.new import new_cell, new_chip, new_model
from release.store import Store
from release.types import Tool

TOOL = Tool(command=("abacus-smi", "-L"), driver=r"Driver (\S+)", device=r"(?m)^\d+: (Abacus [^,]+)", memory=r"(\d+) MiB total")
PRINTED = "abacus-smi 1.0  Driver 6.2.15\n0: Abacus 9, 32768 MiB total\n1: Abacus 9, 32768 MiB total\n"
SCRIPT = f"#!/bin/sh\ncat <<'END'\n{PRINTED}END\n"
HOST = """\
devices:
  default:
    name: Abacus 9
    memory: 32
    bandwidth: {unknown: nobody has measured it}
    per-host: 2
    source: invented
host:
  driver: "6.2.9"
  tool:
    command: [abacus-smi, -L]
    driver: 'Driver (\\S+)'
    device: '(?m)^\\d+: (Abacus [^,]+)'
    memory: '(\\d+) MiB total'
  software: {runtime: {unknown: the vendor does not say}}
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "abacus-smi").write_text(SCRIPT)
    (folder / "abacus-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "abacus-smi"


def matrix(tmp_path: Path, chip: str = CHIP + HOST, model: str = MODEL) -> Matrix:
    file = CELL.replace("wheels: wheels/abacus.txt\n", "")
    files: dict[str, str | None] = {
        "chips/abacus.yaml": chip,
        "models/pebble-7b.yaml": model,
        "cells/abacus/pebble-7b.yaml": file,
    }
    return Matrix((write(tmp_path / "matrix", files),))


def house(tmp_path: Path) -> House:
    return House(matrix(tmp_path), Store(tmp_path / "store"), "auto")


def test_the_expressions_find_driver_devices_and_memory() -> None:
    found = hardware.read(TOOL, PRINTED)
    assert (found.driver, found.devices, found.memory, found.gib) == ("6.2.15", ("Abacus 9", "Abacus 9"), (32768, 32768), 32)


def test_a_tool_that_prints_something_else_finds_nothing() -> None:
    found = hardware.read(TOOL, "command failed: no device\n")
    assert (found.driver, found.devices, found.gib) == (None, (), None)


@pytest.mark.parametrize(
    ("version", "least", "old"),
    [("6.2.15", "6.2.9", False), ("6.2.9", "6.2.15", True), ("550.54", "535", False), ("24.1.rc1", "24.1.rc1", False)],
)
def test_versions_are_compared_number_by_number(version: str, least: str, old: bool) -> None:
    assert hardware.older(version, least) is old


@pytest.mark.integration
def test_a_host_that_has_the_chip_is_told_which_cells_fit(tool: Path, tmp_path: Path) -> None:
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert (findings["abacus-smi"].state, findings["abacus-smi"].found) == ("ok", "2 devices, 32 GiB each: Abacus 9")
    assert (findings["driver"].state, findings["driver"].found) == ("ok", "6.2.15; wanted: 6.2.9 or newer")
    assert findings["device /dev/abacus0"].state == "missing"
    assert "unknown (the vendor does not say)" in findings["runtime"].found
    assert findings["abacus/pebble-7b@bf16"].state == "ok"
    assert re.match(
        r"starts on TP \d.*, with room for all \d+ sequences of \d+ tokens at once; base", findings["abacus/pebble-7b@bf16"].found
    )
    assert "device" not in findings
    assert "memory" not in findings
    assert "registry.example.org/abacus@sha256:aaaa" in findings["abacus/pebble-7b@bf16"].found


@pytest.mark.integration
def test_an_old_driver_is_missing_with_what_to_install(tool: Path, tmp_path: Path) -> None:
    tool.write_text(SCRIPT.replace("6.2.15", "6.1.0"))
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert (findings["driver"].state, findings["driver"].found) == ("missing", "6.1.0; wanted: 6.2.9 or newer")
    assert "at least 6.2.9" in findings["driver"].next_step


@pytest.mark.integration
def test_a_cell_that_does_not_fit_what_is_here_says_why(tool: Path, tmp_path: Path) -> None:
    tool.write_text(SCRIPT.replace("32768", "2048"))
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert findings["abacus/pebble-7b@bf16"].state == "note"
    assert "does not start" in findings["abacus/pebble-7b@bf16"].found


@pytest.mark.integration
def test_a_tool_that_hangs_is_said_to_hang(tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "PATIENCE", 0.5)
    tool.write_text("#!/bin/sh\nsleep 60\n")
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert (findings["abacus-smi"].state, findings["abacus-smi"].found) == ("missing", "did not answer within 0.5 s")
    assert "by hand" in findings["abacus-smi"].next_step


@pytest.mark.integration
def test_a_tool_that_fails_is_said_to_fail(tool: Path, tmp_path: Path) -> None:
    tool.write_text("#!/bin/sh\nexit 9\n")
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert findings["abacus-smi"].found.startswith("failed: abacus-smi ended with status 9")


@pytest.mark.integration
def test_a_device_that_the_matrix_does_not_know_is_planned_for_with_what_the_tool_shows(tool: Path, tmp_path: Path) -> None:
    tool.write_text(SCRIPT.replace("Abacus 9,", "Abacus 10X,"))
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert findings["device"].state == "note"
    assert findings["device"].found == (
        "Abacus 10X: the matrix does not know this device; figures are taken from what the tool shows"
    )
    assert findings["abacus/pebble-7b@bf16"].found.startswith("starts on TP ")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (PRINTED.replace("32768 MiB", "[N/A]"), "not shown by the tool: the matrix's figure of Abacus 9 is taken, 32 GiB"),
        (PRINTED.replace("32768 MiB", "[N/A]", 1), "shown for 1 of 2 devices; the smallest that is shown counts for all"),
    ],
)
def test_memory_that_the_tool_does_not_show_is_said(printed: str, said: str, tool: Path, tmp_path: Path) -> None:
    tool.write_text(SCRIPT.replace(PRINTED, printed))
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert findings["memory"].found == said


@pytest.mark.parametrize(
    ("shown", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA H200", None),
        ("MLU590-M9", "mlu590-m9"),
        ("mlu590 m9d", "mlu590-m9d"),
        ("910B4", "910b4"),
        ("910B4-1", "910b4-1"),
        ("Abacus 9", "default"),
        ("", None),
    ],
)
def test_names_of_devices_are_compared_loosely_and_not_too_loosely(shown: str, device: str | None) -> None:
    chips = [Matrix().chip(name) for name in ("nvidia", "cambricon", "ascend-800i-a2")]
    devices = {name: device for chip in chips for name, device in chip.devices.items()}
    devices["default"] = devices["h20"].model_copy(update={"name": "Abacus 9"})
    assert hardware.known_as(shown, devices) == device


def test_a_chip_with_devices_is_not_here_where_its_tool_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.what: finding for finding in _chips(Matrix())}
    assert (found["chip nvidia"].state, found["chip nvidia"].found) == (
        "note",
        "not here: nvidia-smi, which shows it, is not installed",
    )
    assert (found["chip cpu"].state, found["chip cpu"].found) == ("ok", "needs no device; x86-64 host processor")
    assert [what for what, finding in found.items() if "needs no device" in finding.found] == ["chip cpu"]


@pytest.mark.integration
def test_a_chip_whose_tool_shows_devices_is_here(tool: Path, tmp_path: Path) -> None:
    without = CHIP.replace("  devices: [/dev/abacus0]\n", "")
    (found,) = [one for one in _chips(matrix(tmp_path, without + HOST)) if one.what == "chip abacus"]
    assert (found.state, found.found) == ("ok", "2 devices, 32 GiB each: Abacus 9; Abacus 9")


def test_a_host_without_the_tool_says_so(tmp_path: Path) -> None:
    findings = {finding.what: finding for finding in examine_chip(house(tmp_path), "abacus")}
    assert findings["abacus-smi"].state == "missing"
    assert findings["cells"].found == "no device here, so nothing can be said of what fits"


@pytest.mark.integration
def test_a_new_chip_starts_from_what_the_tool_of_a_known_one_shows(tool: Path, tmp_path: Path) -> None:
    known = matrix(tmp_path)
    path, said = new_chip(known, "abacus-10", tmp_path / "mine")
    assert said == "abacus-smi shows 2 devices"
    chip = Matrix((tmp_path / "mine",)).chip("abacus-10")
    assert path == tmp_path / "mine" / "chips" / "abacus-10.yaml"
    device = chip.devices["default"]
    assert (device.name, device.memory, device.per_host, chip.host.driver) == ("Abacus 9", 32, 2, "6.2.15")
    assert chip.host.tool == known.chip("abacus").host.tool


def test_new_files_are_valid_and_a_second_one_of_a_name_is_refused(tmp_path: Path) -> None:
    from release.errors import UsageError

    mine = tmp_path / "mine"
    new_chip(Matrix((write(tmp_path / "matrix"),)), "acme-x1", mine)
    new_model(Matrix(), "boulder", Path(hardware.__file__).parents[1] / "matrix" / "checkpoints" / "tiny-qwq", mine)
    new_cell(Matrix((mine,)), "acme-x1/boulder", mine)
    (mine / "checkpoints").mkdir()
    assert [cell for cell, _ in Matrix((mine,)).cells() if cell.startswith("acme")] == ["acme-x1/boulder@bf16"]
    with pytest.raises(UsageError, match="is there already"):
        new_model(Matrix(), "boulder", None, mine)
    with pytest.raises(UsageError, match="is no id"):
        new_model(Matrix(), "../boulder", None, mine)
