"""The picture of a night: a box for each piece of work, over the rows of all cells that share it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command import release

from release.errors import MatrixError
from release.house import House
from release.show.graph import graph

NAME = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> tuple[list[str], list[tuple[str, float]]]:
    """Return the words of a picture, and of each box what it tells and how high it is."""
    root = ElementTree.fromstring(text)
    boxes = [
        (str(group.findtext(f"{NAME}title")), float(str(group.find(f"{NAME}rect").attrib["height"])))  # type: ignore[union-attr]
        for group in root.iter(f"{NAME}g")
    ]
    return [each.text or "" for each in root.iter(f"{NAME}text")], boxes


def test_what_cells_share_is_one_box_over_all_their_rows(tmp_path: Path) -> None:
    house = House.open((), tmp_path / "store", "docker")
    cells = ["cpu/tiny-qwq@bf16", "cpu/tiny-qwq@w8a8", "cpu/tiny-qwen3@bf16"]
    tasks = house.graph_of(cells, None)
    words, boxes = drawn(graph(house, cells))
    rows = {cell for cell, _ in tasks.of}
    assert rows > set(cells), "what they are compared with is shown, too"
    assert words[0] == f"{len(tasks.of)} stages of {len(rows)} cells: {len(tasks.tasks)} pieces of work"
    uses = Counter(tasks.of.values())
    assert len({told for told, _ in boxes}) == len(tasks.tasks)
    images = [(told, height) for told, height in boxes if told.startswith("image ")]
    (key,) = {tasks.of[cell, "image"] for cell in rows}
    assert images == [(f"image {key[:12]}: to do, shared by {uses[key]} cells", 26.0 * len(rows) - 6)]
    assert f"1 for {len(rows)}" in words and f"to do × {len(rows)}" in words


def test_what_the_store_has_is_another_colour_and_says_its_seconds(tmp_path: Path) -> None:
    house = House.open((), tmp_path / "store", "docker")
    cell = "cpu/tiny-qwq@fp32"
    assert 'class="had"' not in graph(house, [cell])
    task = house.graph(cell, "checkpoint").task(cell, "checkpoint")
    house.store.put(task.key, {**task.facts, "inputs": {}, "seconds": 185.2}, lambda out: None)
    text = graph(house, [cell])
    assert text.count('class="had"') == 1 and "checkpoint " + task.key[:12] + ": 3 min 5 s" in text
    assert re.search(r"1 are in the store and took 3 min 5 s; each cell by itself", text)


def test_cells_that_the_rules_refuse_are_left_out_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    cells = tmp_path / "matrix" / "cells" / "cpu"
    cells.mkdir(parents=True)
    ours = Path(__file__).parents[2] / "matrix/cells/cpu/tiny-r1.yaml"
    cells.joinpath("tiny-r1.yaml").write_text(re.sub(r"max-model-len: \d+", "max-model-len: 1048576", ours.read_text()))
    house = House.open((tmp_path / "matrix",), tmp_path / "store", "docker")
    with pytest.raises(MatrixError, match="the rules refuse the plans of all these cells"):
        graph(house, ["cpu/tiny-r1@bf16", "cpu/tiny-r1@fp32"])
    assert "cpu/tiny-r1@bf16" not in drawn(graph(house, ["cpu/tiny-r1@bf16", "cpu/tiny-qwq@fp32"]))[0]


@pytest.mark.integration
def test_the_command_writes_the_picture(tmp_path: Path) -> None:
    done = release("status", "--chip", "cpu", "--graph", str(tmp_path / "night.svg"), store=tmp_path / "store", cwd=tmp_path)
    assert done.status == 0 and done.out.strip() == str(tmp_path / "night.svg")
    assert "cpu/tiny-r1@bf16" in drawn((tmp_path / "night.svg").read_text())[0]
