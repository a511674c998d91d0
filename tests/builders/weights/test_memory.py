"""Memory does not depend on the size of a shard or a tensor: measured in a process of its own, on files that are holes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from shards import CONFIG

pytestmark = pytest.mark.alone

LIMIT = 500_000
"""kB of resident memory."""
PROGRAM = """
import io, sys
from pathlib import Path
from release.builders.weights import disk, plan_conversion
from release.builders.weights.proof import verify
from release.builders.weights.run import run
from release.progress import Plain

written = 0
def drop(self, chunk, size, offset):
    global written
    written += size
if sys.argv[4] == "drop":
    disk.Target.write = drop
conversion = plan_conversion(Path(sys.argv[1]), sys.argv[3])
line = Plain(io.StringIO()).line("c", "w")
run(conversion, Path(sys.argv[2]), line)
if sys.argv[5] == "verify":
    verify(conversion, Path(sys.argv[2]), line)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]), written, conversion.size)
"""


def holes(folder: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """Write a checkpoint of tensors (dtype, shape, bytes) that are zeros and take no room on the disk."""
    folder.mkdir()
    header, reached = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + size]}
        reached += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + reached)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def peak(source: Path, to: str, *, drop: bool = True, verify: bool = False) -> int:
    """Return the kB that a conversion has resident at most. VmHWM, since ru_maxrss is inherited from who starts a process."""
    words = [str(source), str(source.with_name("out")), to, "drop" if drop else "write", "verify" if verify else "trust"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found, written, size = map(int, done.stdout.split())
    assert written == (size if drop else 0)
    return found


@pytest.mark.integration
def test_a_shard_of_eight_gigabytes_takes_less_than_half_a_gigabyte(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": ("F32", [8192, 65536], 1 << 31) for number in range(4)}
    assert peak(holes(tmp_path / "in", tensors), "bf16") < LIMIT


@pytest.mark.integration
def test_a_tensor_of_two_gigabytes_takes_less_than_half_a_gigabyte(tmp_path: Path) -> None:
    shape = [16384, 131072]
    blocks = [shape[0] // 128, shape[1] // 128]
    tensors = {"layer.weight": ("F8_E4M3", shape, 1 << 31), "layer.weight_scale_inv": ("F32", blocks, blocks[0] * blocks[1] * 4)}
    assert peak(holes(tmp_path / "in", tensors), "bf16") < LIMIT


@pytest.mark.integration
def test_one_row_and_one_column_of_a_gigabyte_take_no_more(tmp_path: Path) -> None:
    tensors = {"row": ("BF16", [1, 1 << 28], 1 << 29), "column": ("BF16", [1 << 28, 1], 1 << 29)}
    assert peak(holes(tmp_path / "in", tensors), "fp16") < LIMIT


@pytest.mark.integration
def test_a_hundred_thousand_tensors_take_no_more_and_verification_neither(tmp_path: Path) -> None:
    tensors = {f"model.layers.{number}.a_name_of_usual_length.weight": ("F32", [10], 40) for number in range(100_000)}
    tensors["large"] = ("F32", [1 << 24, 4], 1 << 28)
    assert peak(holes(tmp_path / "in", tensors), "bf16", drop=False, verify=True) < LIMIT
