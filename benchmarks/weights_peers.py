"""The peers, in an environment of their own (torch, safetensors, compressed-tensors; not `release`): one job a call, a line of JSON out.

    python weights_peers.py WHAT SOURCE TARGET

WHAT: `compressed-tensors` (convert_checkpoint with its FP8BlockDequantizer, its defaults), `official` (DeepSeek's algorithm on the CPU), or
`loops` (torch in memory, one thread; SOURCE is the number of tensors, TARGET the rounds).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128


def broadcast(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return an FP8 matrix as bfloat16, by a view of its blocks; sides are multiples of 128."""
    rows, columns = weight.shape
    blocks = weight.to(torch.float32).view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    return (blocks * scale[:, None, :, None]).view(rows, columns).to(torch.bfloat16)


def int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes and scales a row, symmetric, in float32."""
    wide = weight.to(torch.float32)
    scale = (wide.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).eps)
    return torch.round(wide / scale).clamp(-127, 127).to(torch.int8), scale


def official(source: Path, target: Path) -> None:
    """Convert shard by shard as the official script does: whole files loaded, two kept, converted tensors collected, then saved."""
    target.mkdir(parents=True)
    weight_map = json.loads((source / "model.safetensors.index.json").read_bytes())["weight_map"]
    loaded: dict[str, dict[str, torch.Tensor]] = {}

    def find(name: str) -> torch.Tensor:
        file = weight_map[name]
        if file not in loaded:
            loaded[file] = load_file(source / file)
        return loaded[file][name]

    for path in sorted(source.glob("*.safetensors")):
        current = load_file(path)
        loaded[path.name] = current
        made = {}
        for name, weight in current.items():
            if name.endswith("_scale_inv"):
                continue
            made[name] = broadcast(weight, find(f"{name}_scale_inv")) if weight.element_size() == 1 else weight
        save_file(made, target / path.name)
        if len(loaded) > 2:
            del loaded[next(iter(loaded))]


def compressed_tensors(source: Path, target: Path) -> None:
    """Convert with the reference library."""
    from compressed_tensors.entrypoints.convert import FP8BlockDequantizer, convert_checkpoint

    convert_checkpoint(str(source), str(target), FP8BlockDequantizer.from_pretrained(str(source)))


def durable(folder: Path) -> None:
    """Write everything to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def resident() -> int:
    """Return the most kB that were resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


def loops(count: int, rounds: int) -> dict[str, float]:
    """Return the best bytes a second (read and written) of both formulas."""
    torch.set_num_threads(1)
    weights = [torch.randint(0, 127, (2048, 7168), dtype=torch.uint8).view(torch.float8_e4m3fn) for _ in range(count)]
    scales = [torch.rand(16, 56) * 1e-3 for _ in range(count)]
    halves = [(torch.randn(2048, 7168) * 0.02).to(torch.bfloat16) for _ in range(count)]

    def best(work: Callable[[], None]) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return 3 * 2048 * 7168 * count / min(times)

    def all_fp8() -> None:
        for weight, scale in zip(weights, scales, strict=True):
            broadcast(weight, scale)

    def all_int8() -> None:
        for half in halves:
            int8(half)

    return {"fp8": best(all_fp8), "int8": best(all_int8)}


def ready(what: str) -> float:
    """Import what the job needs and return the seconds since the process started."""
    if what == "compressed-tensors":
        import compressed_tensors.entrypoints.convert  # noqa: F401
    started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main() -> None:
    """Do one job."""
    what, source, target = sys.argv[1:]
    found: dict[str, object] = {"torch": version("torch"), "safetensors": version("safetensors")}
    found["compressed-tensors"] = version("compressed-tensors")
    if what == "loops":
        found.update(loops(int(source), int(target)))
    else:
        found["libraries"] = ready(what)
        began, cpu = time.perf_counter(), time.process_time()
        {"official": official, "compressed-tensors": compressed_tensors}[what](Path(source), Path(target))
        durable(Path(target))
        found |= {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "resident": resident()}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
