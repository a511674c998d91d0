"""How well many cells share a machine: a night of 40 cells of sleeping stages against the shortest time possible, and against snakemake.

    python benchmarks/schedule.py [--cells 40] [--slots 8] [--scale 1.0] [--rounds 5] [--snakemake /path/to/snakemake]

The stages are those of a build, with what cells share: five chips share sources and base, eight models a checkpoint, each model and
precision its weights. They sleep, so that only the scheduling counts. The shortest time is the longer of two bounds: the longest way
through the graph, and all work divided by the slots. Contenders take turns on the same graph, each round; every run has an empty store.
What ran is counted: each piece of work once. `--scale 0` leaves the sleeping out, and shows what a stage costs by itself. The named peer
gets the same graph as rules whose shell command sleeps and writes a file; its start is counted, as it is for a user of it.
Stages that talk to a server hold a device: 16 of each chip, so that devices do not bind here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from release.matrix.load import Matrix
from release.pipeline import Graph, Run, Stage, Task, Work, digest
from release.progress import Line, Progress
from release.schedule import Limits, carry_out
from release.session import Session
from release.store import Store

PRECISIONS = ("bf16", "w8a8")


@dataclass(frozen=True)
class Piece:
    """A piece of work: what it is called, what it needs, and how long it sleeps in seconds at scale 1."""

    name: str
    needs: tuple[str, ...]
    seconds: float


def night(cells: int) -> dict[str, Piece]:
    """Return the pieces of work of so many cells, by name, needs first; what cells share stands there once."""
    found: dict[str, Piece] = {}

    def add(name: str, seconds: float, *needs: str) -> str:
        found.setdefault(name, Piece(name, needs, seconds))
        return name

    for number in range(cells):
        chip, model, precision = number % 5, number % 8, PRECISIONS[number // 8 % 2]
        source = add(f"fetch-{chip}", 0.3)
        tree = add(f"unpatch-{chip}", 0.2, source)
        wheels = add(f"wheels-{chip}", 0.6)
        base = add(f"base-{chip}", 0.5)
        image = add(f"image-{chip}", 0.9, base, wheels, tree)
        checkpoint = add(f"checkpoint-{model}", 0.5)
        weights = add(f"weights-{model}-{precision}", 0.4 + 0.1 * model, checkpoint)
        serve = add(f"serve-{number}", 0.3, image, weights)
        conformance = add(f"conformance-{number}", 0.1, serve)
        accuracy = add(f"accuracy-{number}", 0.3 + 0.05 * (number % 7), conformance)
        compare = add(f"compare-{number}", 0.02, accuracy, f"accuracy-{number % 8}") if number > 8 else accuracy
        card = add(f"card-{number}", 0.02, compare, weights)
        add(f"publish-{number}", 0.02, card)
    return found


def shortest(pieces: dict[str, Piece], slots: int, scale: float) -> float:
    """Return the seconds below which no schedule can be."""
    way: dict[str, float] = {}
    for piece in pieces.values():
        way[piece.name] = piece.seconds + max((way[need] for need in piece.needs), default=0.0)
    return scale * max(*way.values(), sum(piece.seconds for piece in pieces.values()) / slots)


class _Silent:
    def line(self, cell: str, stage: str) -> Line:
        return Line(cast(Progress, self), cell, stage)

    def changed(self, line: Line) -> None: ...
    def moved(self, line: Line) -> None: ...
    def close(self) -> None: ...


def ours(pieces: dict[str, Piece], slots: int, scale: float, folder: Path) -> float:
    """Run the night with our own scheduler; return the seconds it took. Exits where anything ran twice."""
    done: Counter[str] = Counter()
    tasks: dict[str, Task] = {}
    for piece in pieces.values():

        def sleep(work: Work, piece: Piece = piece) -> str:
            time.sleep(scale * piece.seconds)
            done[piece.name] += 1
            return "slept"

        key = digest(piece.name)
        stage = Stage(piece.name, 1, piece.needs, lambda plan, matrix: {}, sleep)
        tasks[key] = Task(stage, "chip/model@bf16", {}, {need: digest(need) for need in piece.needs}, key)
    work = Run(Graph(tasks, {}), Matrix(), Store(folder), cast(Session, None), cast(Progress, _Silent()))
    began = time.perf_counter()
    carry_out(work.graph, tasks, work, Limits(slots), seconds=lambda task: pieces[task.stage.name].seconds)
    took = time.perf_counter() - began
    if len(done) != len(pieces) or max(done.values()) > 1:
        raise SystemExit("something ran twice, or not at all")
    return took


def snakemake(program: str, pieces: dict[str, Piece], slots: int, scale: float, folder: Path) -> float:
    """Run the night with snakemake; return the seconds it took as a process."""
    rules = [f"rule all:\n    input: {', '.join(repr(name) for name in pieces)}\n"]
    rules += [
        f"rule r_{piece.name.replace('-', '_')}:\n"
        f"    input: {', '.join(repr(need) for need in piece.needs)}\n"
        f"    output: {piece.name!r}\n"
        f"    shell: 'sleep {scale * piece.seconds:.3f}; touch {piece.name}'\n"
        for piece in pieces.values()
    ]
    (folder / "Snakefile").write_text("\n".join(rules))
    began = time.perf_counter()
    words = [program, "--cores", str(slots), "--quiet", "all", "--latency-wait", "0", "--directory", str(folder)]
    done = subprocess.run([*words, "--snakefile", str(folder / "Snakefile")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"snakemake failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began


def main() -> None:
    """Let the contenders take turns, and print medians and ratios."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--cells", type=int, default=40)
    words.add_argument("--slots", type=int, default=8)
    words.add_argument("--scale", type=float, default=1.0)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--snakemake", metavar="PROGRAM")
    asked = words.parse_args()
    pieces = night(asked.cells)
    bound = shortest(pieces, asked.slots, asked.scale)
    results: dict[str, list[float]] = {"ours": []} | ({"snakemake": []} if asked.snakemake else {})
    for turn in range(asked.rounds):
        for name in sorted(results, reverse=bool(turn % 2)):
            with tempfile.TemporaryDirectory() as scratch:
                run: Any = ours if name == "ours" else lambda *given: snakemake(asked.snakemake, *given)
                results[name].append(run(pieces, asked.slots, asked.scale, Path(scratch)))
            print(
                f"  {turn + 1}/{asked.rounds} {name}: {results[name][-1]:.2f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr
            )
    print(f"{asked.cells} cells, {len(pieces)} pieces of work, {asked.slots} slots; the shortest possible: {bound:.2f} s\n")
    print("| contender | s, median | min–max | × the shortest | ms a stage beyond it |")
    print("|---|---|---|---|---|")
    for name, seconds in results.items():
        middle = statistics.median(seconds)
        ratio = f"{middle / bound:.2f}" if bound else "–"
        print(
            f"| {name} | {middle:.2f} | {min(seconds):.2f}–{max(seconds):.2f} | {ratio} | {1000 * (middle - bound) / len(pieces):.2f} |"
        )


if __name__ == "__main__":
    main()
