"""How long `release plan --all` takes over a generated matrix: seconds for 250 to 10,000 cells, as a process, medians, and how linear it is.

    python benchmarks/plan_all.py [--cells 250 500 1000 2000 10000] [--rounds 5] [--profile]

Four cells stand in a file, each with arguments, environment, sources, reported results and a conflict as cells of ours have. Sizes
alternate within a round. The named peer is PyYAML's own `yaml.load` with its C loader over the same files, in a process as well: what
reading them costs in any case. Seconds of computing (user and system time of the process) hold on a busy machine too. `MB` is the most
memory that either form of the plan held. --profile prints where a plan of the largest size spends its time.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CELLS_A_FILE = 4
CHIPS = 10
PEER = """\
import sys, yaml
from pathlib import Path
for path in Path(sys.argv[1]).rglob("*.yaml"):
    yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
"""
CHIP = """\
id: abacus-{chip}
name: Abacus {chip}
vendor: Invented
architecture: amd64
precisions: [bf16, w8a8, w8a16, fp8]
dtypes: [bf16, fp16]
devices:
  small:
    name: Abacus {chip} small
    memory: 64.0
    bandwidth: 1600.0
    interconnect: {{unknown: nobody has said it}}
    compute: {{bf16: 300.0, int8: 600.0}}
    per-host: 8
    source: its box
base:
  access: {{kind: request, name: abacus-torch, contact: engineer@example.org}}
container:
  devices: [/dev/abacus0, /dev/abacus1]
  mounts: ["/usr/local/abacus:/usr/local/abacus:ro"]
  shm-size: 2g
  env: {{STACK_SIZE: "256"}}
rules:
  - id: even-world-size
    world-size: even
    reason: an odd number of devices is not supported yet
    source: its guide
  - id: stack
    when: {{parameters-at-least: 32.0}}
    env: {{STACK_SIZE: "256"}}
    reason: large models need the larger stack
    source: its guide
"""
MODEL = """\
id: pebble-{model}
name: Pebble {model}
family: pebble
vendor: Invented
license: mit
description: Counts pebbles.
example: How many?
precision: bf16
architecture:
  class: Qwen3ForCausalLM
  layers: {layers}
  hidden: 5120
  intermediate: 25600
  heads: 64
  kv-heads: 8
  head-dim: 128
  vocabulary: 151936
  context: 40960
  qk-norm: true
checkpoint:
  hub: {{repository: invented/pebble, revision: {revision}}}
requires: {{transformers: ">=4.51.0"}}
source: its config.json
"""
CELL = """\
chip: abacus-{chip}
model: pebble-{model}
engine: vllm
sources:
  - name: scale
    repository: https://example.org/scale.git
    commit: {revision}
    install: ["."]
  - name: operators
    repository: https://example.org/operators.git
    commit: {{unknown: the card names a tag only}}
    tag: v1
packages:
  transformers: 4.51.3
  torch: {{unknown: the card names no version}}
parallel: {{tensor-parallel-size: 4}}
world-sizes: [2, 4, 8]
features: [paged-attention, lora]
serve:
  port: 9010
  args:
    served-model-name: pebble-{model}
    max-model-len: 32768
    max-num-seqs: 8
    gpu-memory-utilization: 0.9
    trust-remote-code: true
    enforce-eager: true
  env: {{A: "1", B: "2"}}
reported:
  - source: its card
    candidate: Pebble-Abacus
    reference: Pebble
    scores:
      - {{benchmark: GSM8K, candidate: 72.63, reference: 72.78}}
      - {{benchmark: MMLU, candidate: 80.02, reference: 79.75}}
conflicts:
  - says: the prose says one thing
    but: the table says another
    source: its guide
documents: [its guide]
cells:
  bf16: {{}}
  fp8:
    reference: abacus-{chip}/pebble-{model}@bf16
  w8a8:
    reference: abacus-{chip}/pebble-{model}@bf16
    serve:
      args: {{quantization: abacus}}
    weights:
      tool: abacus-quant
      commands: [[abacus-quant, $SRC, $DST]]
  bf16~native:
    serve:
      env: {{B: "0"}}
    parallel: {{tensor-parallel-size: 8}}
"""


def make(folder: Path, cells: int) -> None:
    """Write a matrix of about `cells` cells: ten chips, and as many models as it takes."""
    models = max(1, cells // CELLS_A_FILE // CHIPS)
    for part in ("chips", "models", "cells"):
        (folder / part).mkdir(parents=True)
    revision = "c" * 40
    for model in range(models):
        text = MODEL.format(model=model, layers=32 + model % 32, revision=revision)
        (folder / "models" / f"pebble-{model}.yaml").write_text(text)
    for chip in range(CHIPS):
        (folder / "chips" / f"abacus-{chip}.yaml").write_text(CHIP.format(chip=chip))
        (folder / "cells" / f"abacus-{chip}").mkdir()
        for model in range(models):
            text = CELL.format(chip=chip, model=model, revision=revision)
            (folder / "cells" / f"abacus-{chip}" / f"pebble-{model}.yaml").write_text(text)


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is timed over a matrix, by name."""
    release = [str(Path(sys.executable).with_name("release")), "--matrix", str(folder), "plan", "--all", "--chip", "abacus-*"]
    return {
        "plan --all --json": [*release, "--json"],
        "plan --all": release,
        "yaml.load": [sys.executable, "-c", PEER, str(folder)],
    }


def seconds(command: Sequence[str], scratch: Path) -> tuple[float, float, float]:
    """Return how long a process takes, how long it computes, and its largest resident memory in MB (10^6 bytes); its output goes to a file."""
    began = time.monotonic()
    with (scratch / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


def measure(sizes: Sequence[int], rounds: int, scratch: Path) -> None:
    """Time every size `rounds` times, alternating, and print medians."""
    taken: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for size in sizes:
        make(scratch / str(size), size)
    for _ in range(rounds):
        for size in sizes:
            for name, command in commands(scratch / str(size)).items():
                taken.setdefault((size, name), []).append(seconds(command, scratch))
    clock = {key: statistics.median(wall for wall, _, _ in times) for key, times in taken.items()}
    work = {key: statistics.median(computing for _, computing, _ in times) for key, times in taken.items()}
    print(f"{rounds} rounds, medians, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(
        "| cells | --json s | min–max s | computing s | ms a cell more | table s | computing s | yaml.load computing s | × yaml.load | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    first, js, table, peer = sizes[0], *commands(scratch)
    for size in sizes:
        walls = [wall for wall, _, _ in taken[size, js]]
        memory = max(most for name in (js, table) for _, _, most in taken[size, name])
        more = f"{1000 * (work[size, js] - work[first, js]) / (size - first):.2f}" if size > first else ""
        row = f"| {size:,} | {clock[size, js]:.2f} | {min(walls):.2f}–{max(walls):.2f} | {work[size, js]:.2f} | {more} "
        row += f"| {clock[size, table]:.2f} | {work[size, table]:.2f} | {work[size, peer]:.2f} | {work[size, js] / work[size, peer]:.1f} "
        row += f"| {memory:.0f} |"
        print(row)


def profile(folder: Path) -> None:
    """Print the functions in which one `plan --all --json` spends most of its own time."""
    from release.cli import cli

    profiler = cProfile.Profile()
    arguments = commands(folder)["plan --all --json"][1:]
    with (folder / "output").open("w") as output:
        standard, sys.stdout = sys.stdout, output
        try:
            profiler.runcall(cli.main, arguments, standalone_mode=False)
        finally:
            sys.stdout = standard
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[250, 500, 1000, 2000, 10000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the largest size spends its time, and stop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["RELEASE_STORE"] = str(scratch / "store")
        if options.profile:
            make(scratch / "profile", max(options.cells))
            profile(scratch / "profile")
        else:
            measure(sorted(options.cells), options.rounds, scratch)


if __name__ == "__main__":
    main()
