"""What a host's own tool prints, read by the expressions of a chip's file; and this host looked at as a host of a chip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folders import CELL, CHIP, MODEL, write

from release import hardware
from release.doctor import examine_chip
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
    assert "does not fit" in findings["abacus/pebble-7b@bf16"].found


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
    new_model("boulder", Path(hardware.__file__).parents[1] / "matrix" / "checkpoints" / "tiny-qwq", mine)
    new_cell(Matrix((mine,)), "acme-x1/boulder", mine)
    (mine / "checkpoints").mkdir()
    assert [cell for cell, _ in Matrix((mine,)).cells() if cell.startswith("acme")] == ["acme-x1/boulder@bf16"]
    with pytest.raises(UsageError, match="is there already"):
        new_model("boulder", None, mine)
    with pytest.raises(UsageError, match="is no id"):
        new_model("../boulder", None, mine)
