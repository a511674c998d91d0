"""Several cells at once, with the real parts: what they share is done once, and each is judged by all that its cell asks for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from command import Answer, release

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CELLS = ("cpu/tiny-qwq@w8a8", "cpu/tiny-qwen3@bf16")


@pytest.fixture(scope="module")
def batch(built: Answer, store: Path, place: Path) -> Answer:
    """Two cells built at once, in the store that has the first one already."""
    words = [word for cell in CELLS for word in ("--select", cell)]
    return release("--engine", "docker", "build", *words, "--json", store=store, cwd=place)


def test_every_cell_is_validated_and_each_piece_of_work_is_done_once(batch: Answer) -> None:
    assert batch.status == 0, batch.err
    document = batch.document
    assert {cell["cell"]: cell["state"] for cell in document["cells"]} == dict.fromkeys(CELLS, "validated"), batch.err
    assert max(Counter(document["ran"]).values()) == 1
    assert document["tasks"] < document["stages"], "references are counted on both sides, and what is shared once"
    assert not {line.split(": ")[1] for line in document["ran"]} & {"image", "wheels", "base", "unpatch", "fetch", "render"}


def test_what_was_measured_and_settled_stands_in_the_record_and_on_the_card(batch: Answer, place: Path) -> None:
    folder = place / "dist/cpu/tiny-qwen3/bf16"
    record = json.loads((folder / "release.json").read_text())
    (point,) = record["performance"]["points"]
    assert len(point["runs"]) == 3 and all(run["completed"] == 100 and run["failed"] == 0 for run in point["runs"])
    assert record["settlement"]["decision"] == "RELEASE", record["settlement"]
    assert {one["benchmark"] for one in record["settlement"]["benchmarks"]} == {"questions", "sampled-addition"}
    card = (folder / "README.md").read_text()
    assert "### How fast" in card and "Over all question sets: **RELEASE**" in card
    assert (folder / "pictures/throughput.svg").is_file() and "](pictures/throughput.svg)" in card


def test_a_second_build_of_all_of_them_does_nothing(batch: Answer, store: Path, place: Path) -> None:
    words = [word for cell in CELLS for word in ("--select", cell)]
    again = release("build", *words, "--json", store=store, cwd=place)
    assert again.status == 0 and again.document["ran"] == []
