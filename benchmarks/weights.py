"""Weights: FP8 → BF16 end to end against the reference library and the official algorithm, and the loops against torch.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install torch compressed-tensors safetensors
    python benchmarks/weights.py --peer-python /tmp/peer/bin/python [--megabytes 4050] [--shards 4] [--pairs 5] [--folder DIR]

Every contender is a process of its own; they take turns, each round in another order, on the same files. Before each run the files are
put out of the page cache; the time ends when the output is durable. Importing libraries, and loading numba's machine code, is not
counted, and stands in a column of its own. Needs about four times
--megabytes on the disk of --folder. The named peers: compressed-tensors' convert_checkpoint, and DeepSeek's fp8_cast_bf16 (its algorithm,
rewritten for the CPU). `copy` is the ceiling: as many bytes read and written through our own path, with the digest and no arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from weights_data import fp8_checkpoint

HERE = Path(__file__).parent
PEERS = ("compressed-tensors", "official")
OURS = ("ours", "copy", "copy-unhashed")
Results = dict[str, list[dict[str, Any]]]


def forget(folder: Path) -> None:
    """Put the files of a folder out of the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def perform(python: str, what: str, *words: str) -> dict[str, Any]:
    """Run one contender and return what it says of itself."""
    script = HERE / ("weights_ours.py" if what in OURS or python == sys.executable else "weights_peers.py")
    done = subprocess.run([python, str(script), what, *words], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return found
    raise SystemExit(f"{what} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def end_to_end(peer: str, source: Path, target: Path, pairs: int, peers: tuple[str, ...]) -> Results:
    """Run all contenders `pairs` times, taking turns."""
    field = [*OURS, *peers]
    results: Results = {name: [] for name in field}
    for turn in range(pairs):
        for name in field[turn % len(field) :] + field[: turn % len(field)]:
            shutil.rmtree(target, ignore_errors=True)
            forget(source)
            found = perform(peer if name in PEERS else sys.executable, name, str(source), str(target))
            if name != "ours" or turn:
                shutil.rmtree(target)
            results[name].append(found)
            print(
                f"  {turn + 1}/{pairs} {name}: {found['seconds']:.2f} s, load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
                flush=True,
            )
    return results


def table(results: Results, size: int) -> None:
    """Print medians, spans, and ratios pair by pair."""
    middle = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    print("| contender | s, median | min–max | GB/s | CPU s | libraries s | peak RSS MB | × ours (median of pairs) |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        ratio = statistics.median(run["seconds"] / ours["seconds"] for run, ours in zip(runs, results["ours"], strict=True))
        speed = f"{size / middle[name] / 1e9:.2f}"
        cpu, resident = statistics.median(run["cpu"] for run in runs), max(run["resident"] for run in runs) * 1024 / 1e6
        libraries = statistics.median(run["libraries"] for run in runs)
        span = f"{min(seconds):.2f}–{max(seconds):.2f}"
        print(f"| {name} | {middle[name]:.2f} | {span} | {speed} | {cpu:.1f} | {libraries:.1f} | {resident:.0f} | {ratio:.2f} |")


def in_memory(peer: str, pairs: int) -> None:
    """Print the loops of both sides, taking turns."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(pairs):
        ours.append(perform(sys.executable, "loops", "4", "5"))
        theirs.append(perform(peer, "loops", "4", "5"))
    print("\n| loop, one thread | numba GB/s | torch GB/s | ratio (median of pairs) |\n|---|---|---|---|")
    for name, what in (
        ("fp8", "FP8 block → BF16, against torch's view-broadcast"),
        ("int8", "BF16 → int8 a row, against the torch formula"),
    ):
        mine, other = ([run[name] / 1e9 for run in runs] for runs in (ours, theirs))
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        print(f"| {what} | {statistics.median(mine):.1f} | {statistics.median(other):.2f} | {ratio:.1f} |")


def versions(results: Results) -> str:
    """Return what was measured, by name and version."""
    known = ("release", "numba", "numpy", "torch", "safetensors", "compressed-tensors")
    found = {key: str(runs[0][key]) for runs in results.values() for key in known if runs and key in runs[0]}
    return ", ".join(f"{key} {value}" for key, value in found.items())


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the interpreter of an environment with the peers")
    parser.add_argument("--megabytes", type=int, default=4050)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made, and removed again")
    parser.add_argument("--peers", default=",".join(PEERS), help="which of them; empty for none")
    parser.add_argument("--only", choices=["loops", "files"])
    options = parser.parse_args()
    if options.only != "files":
        in_memory(options.peer_python, options.pairs)
    if options.only == "loops":
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        source, target = Path(scratch) / "in", Path(scratch) / "out"
        size = fp8_checkpoint(source, options.megabytes, options.shards)
        peers = tuple(name for name in options.peers.split(",") if name)
        results = end_to_end(options.peer_python, source, target, options.pairs, peers)
        written = results["ours"][0]["written"]
        print(
            f"\nFP8 → BF16: {size / 1e9:.2f} GB in, {written / 1e9:.2f} GB out, {options.shards} shards, {options.pairs} rounds,"
        )
        print(f"{os.cpu_count()} cores; {versions(results)}\n")
        table(results, size + written)


if __name__ == "__main__":
    main()
