"""Killed in the middle of a shard and started again: nothing is made twice, nothing half-made is taken, the result is the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import BF16, checkpoint, deepseek, quiet

from release.builders.weights import plan_conversion
from release.builders.weights import run as running
from release.builders.weights.disk import Target
from release.builders.weights.run import run
from release.errors import StageError, StoreError
from release.oci import sha256_file

PROGRAM = """
import io, os, sys, time
from pathlib import Path
from release.builders.weights import disk, plan_conversion
from release.builders.weights.run import run
from release.progress import Plain

write = disk.Target.write
def slow(self, chunk, size, offset):
    write(self, chunk, size, offset)
    if offset > 0 and self.path.name.startswith("model-00002"):
        Path(sys.argv[3]).touch()
        time.sleep(60)
disk.Target.write = slow
run(plan_conversion(Path(sys.argv[1]), "bf16"), Path(sys.argv[2]), Plain(io.StringIO()).line("c", "w"))
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def three_shards(folder: Path) -> Path:
    """Write fp32 shards of 24 MB: each is several chunks."""
    rng = np.random.default_rng(1)
    shards = {
        f"model-{number:05d}-of-00003.safetensors": {
            f"layer.{number}.weight": rng.standard_normal((3000, 2000), dtype=np.float32)
        }
        for number in (1, 2, 3)
    }
    return checkpoint(folder, shards, {"torch_dtype": "float32"})


@pytest.mark.integration
@pytest.mark.parametrize("again", [1, 3])
def test_killed_in_the_middle_of_a_shard_it_goes_on_with_that_shard(again: int, tmp_path: Path) -> None:
    source, target = three_shards(tmp_path / "in"), tmp_path / "out"
    for attempt in range(again):
        mark = tmp_path / f"mark{attempt}"
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(source), str(target), str(mark)])
        deadline = time.monotonic() + 120
        while not mark.exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.01)
        assert mark.exists()
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not target.exists()
        files = tmp_path / ".out.partial" / "files"
        assert [path.name for path in files.glob("*.safetensors")] == ["model-00001-of-00003.safetensors"]
        assert (files / ".model-00002-of-00003.safetensors.writing").exists()
    first = (files / "model-00001-of-00003.safetensors").stat()
    done = run(plan_conversion(source, "bf16"), target, quiet())
    assert done.resumed == 1
    assert (target / "model-00001-of-00003.safetensors").stat().st_ino == first.st_ino
    assert (target / "model-00001-of-00003.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    undisturbed = run(plan_conversion(source, "bf16"), tmp_path / "whole", quiet())
    assert digests(target) == digests(tmp_path / "whole")
    assert done.facts == undisturbed.facts
    assert (
        undisturbed.facts["files"]["model-00002-of-00003.safetensors"]["sha256"]
        == digests(target)["model-00002-of-00003.safetensors"]
    )
    assert not (tmp_path / ".out.partial").exists()


class Stopped(Exception):
    """The process ends here."""


def stopped(source: Path, partial: Path, after: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Run until so many shards are written, into a folder that stays."""
    write_shard, made = running.write_shard, []

    def stopping(pool: Any, shard: Any, *rest: Any) -> Any:
        if len(made) == after:
            raise Stopped
        made.append(shard)
        return write_shard(pool, shard, *rest)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(running, "write_shard", stopping)
        run(plan_conversion(source, "bf16", **options), partial.with_name("never"), quiet(), partial=partial)


def test_finished_shards_are_neither_read_nor_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = deepseek(tmp_path / "in")
    partial = tmp_path / "partial"
    stopped(source, partial, 2, monkeypatch)
    opened: list[str] = []
    from release.builders.weights import stream

    class Listening(stream.Source):
        def __init__(self, path: Path) -> None:
            opened.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(stream, "Source", Listening)
    done = run(plan_conversion(source, "bf16"), tmp_path / "out", quiet(), partial=partial)
    assert (done.resumed, opened) == (2, ["model-00003-of-000003.safetensors"])
    assert partial.exists(), "its owner removes it"


@pytest.mark.parametrize("change", ["source", "output", "cut output", "journal", "no journal", "refuse", "kernel"])
def test_a_shard_that_would_be_made_of_something_else_is_made_again(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from release.builders.weights import kernels

    source, _ = deepseek(tmp_path / "in")
    partial = tmp_path / "partial"
    stopped(source, partial, 1, monkeypatch)
    name = "model-00001-of-000003.safetensors"
    made, journal = partial / "files" / name, partial / "journal" / f"{name}.json"
    conversion = plan_conversion(source, "bf16")
    if change == "source":
        os.utime(source / name, ns=(1, 1))
    elif change == "output":
        data = bytearray(made.read_bytes())
        data[-1] ^= 1
        made.write_bytes(data)
    elif change == "cut output":
        os.truncate(made, 100)
    elif change == "journal":
        journal.write_text('{"of": {}, "written": {"sha256": "x", "size": 1, "mtime_ns": 2, "counts": {}}}')
    elif change == "no journal":
        journal.unlink()
    elif change == "refuse":
        conversion = dataclasses.replace(conversion, refuse=frozenset())
    else:
        newer = dataclasses.replace(kernels.KERNELS["fp8-block-to-bf16"], version=99)
        monkeypatch.setattr(running, "KERNELS", {**kernels.KERNELS, newer.name: newer})
    assert run(conversion, tmp_path / "out", quiet(), partial=partial).resumed == 0
    monkeypatch.undo()
    run(plan_conversion(source, "bf16"), tmp_path / "whole", quiet())
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_what_a_former_plan_left_does_not_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = deepseek(tmp_path / "in")
    partial = tmp_path / "partial"
    stopped(source, partial, 2, monkeypatch)
    (partial / "files" / "stranger.safetensors").write_bytes(b"x")
    (partial / "files" / ".half.safetensors.writing").write_bytes(b"x")
    run(plan_conversion(source, "bf16"), tmp_path / "out", quiet(), partial=partial)
    assert not [path for path in (tmp_path / "out").iterdir() if "stranger" in path.name or "half" in path.name]


@pytest.mark.parametrize("when", ["write", "finish"])
@pytest.mark.parametrize("what", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_broken_disk_is_a_clear_error_and_nothing_looks_complete(
    when: str, what: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = deepseek(tmp_path / "in")
    usual = getattr(Target, when)

    def refusing(self: Target, *rest: Any) -> Any:
        if self.path.name.startswith("model-00002"):
            raise OSError(what, os.strerror(what))
        return usual(self, *rest)

    monkeypatch.setattr(Target, when, refusing)
    with pytest.raises(StoreError, match="no space left on the disk" if what != errno.EIO else "cannot be used") as caught:
        run(plan_conversion(source, "bf16"), tmp_path / "out", quiet())
    assert caught.value.next_step or what == errno.EIO
    assert not (tmp_path / "out").exists()
    files = tmp_path / ".out.partial" / "files"
    assert [path.name for path in files.iterdir()] == ["model-00001-of-000003.safetensors"]
    monkeypatch.undo()
    assert run(plan_conversion(source, "bf16"), tmp_path / "out", quiet()).resumed == 1


def test_a_disk_that_cannot_hold_the_result_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    source, _ = deepseek(tmp_path / "in")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"0\.00 GB are still to be written, 0\.00 GB are free"):
        run(plan_conversion(source, "bf16"), tmp_path / "out", quiet())
    assert list((tmp_path / ".out.partial" / "files").iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source, _ = deepseek(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(StoreError, match="there already"):
        run(plan_conversion(source, "bf16"), tmp_path / "out", quiet())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "in", {"model.safetensors": {"a": np.ones(8, np.float32)}}, {"torch_dtype": "float32"})
    write_shard = running.write_shard

    def touching(pool: Any, shard: Any, *rest: Any) -> Any:
        written = write_shard(pool, shard, *rest)
        os.utime(source / "model.safetensors", ns=(1, 1))
        return written

    monkeypatch.setattr(running, "write_shard", touching)
    with pytest.raises(StageError, match="changed while it was read"):
        run(plan_conversion(source, "bf16"), tmp_path / "out", quiet())
    assert not (tmp_path / "out").exists()


def test_a_source_that_ends_early_is_an_error(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"model.safetensors": {"a": np.ones((999, 77), BF16)}}, {})
    conversion = plan_conversion(source, "fp16")
    os.truncate(source / "model.safetensors", 5000)
    with pytest.raises(StageError, match="ends at 5000 while it is read"):
        run(conversion, tmp_path / "out", quiet())
    assert json.loads((source / "config.json").read_bytes()) == {}
