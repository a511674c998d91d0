"""Several cells at once over a Ray cluster, with the real parts: what they share is done once, and each is judged by all it asks for."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import yaml
from command import CELL, Answer, Running, release
from far import until

from release.containers import SOCKET, Engine
from release.leases import Lease, leases

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CELLS = ("cpu/tiny-qwq@w8a8", "cpu/tiny-qwen3@bf16")


@pytest.fixture(scope="module")
def batch(built: Answer, store: Path, place: Path) -> Answer:
    """Two cells built at once over a cluster, in the store that has the first one already: it was built without one."""
    words = [word for cell in CELLS for word in ("--select", cell)]
    return release("--engine", "docker", "build", *words, "--executor", "ray", "--json", store=store, cwd=place)


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


def test_ctrl_c_over_a_cluster_leaves_no_container_no_lease_and_no_process(
    built: Answer, overlay: Path, store: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a server starts on a leased device, with what it serves brought by the cluster."""
    cell = overlay / "cells/cpu/tiny-qwq.yaml"
    cell.write_text(cell.read_text().replace("max-num-seqs: 64", "max-num-seqs: 41"))
    (tmp_path / "hosts.yaml").write_text(
        yaml.safe_dump(
            {
                "hosts": {
                    "here": {"docker": os.environ.get("DOCKER_HOST", SOCKET), "chips": {"cpu": {"devices": [f"c-{os.getpid()}"]}}}
                }
            }
        )
    )

    def held() -> list[Lease]:
        return [lease for lease in leases(engine) if lease.device == f"cpu/c-{os.getpid()}"]

    def running() -> list[str]:
        """The ids of all processes that have the build's folder for temporary files: Ray's, the guard and the build itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"TMPDIR={scratch}".encode() in path.read_bytes().split(b"\0"):
                    found.append(path.parent.name)
        return found

    with tempfile.TemporaryDirectory(prefix="r-") as scratch:  # sockets lie below it, whose paths must be short
        monkeypatch.setenv("TMPDIR", scratch)
        words = ["--engine", "docker", "--matrix", str(overlay), "--hosts", str(tmp_path / "hosts.yaml"), "build", *CELL]
        run = Running.start(*words, "--executor", "ray", store=store, cwd=tmp_path)
        run.until(lambda: run.says("waiting for /health"))
        (lease,) = held()
        assert engine.labelled(f"release.held-by={lease.token}")
        assert len(running()) > 4
        assert run.interrupt() == 130
        until(lambda: not engine.labelled(f"release.held-by={lease.token}") and not held() and not running())
        assert list(Path(scratch).iterdir()) == []
        assert not run.says("Traceback")
