"""Converting and checking checkpoints by hand: the weights stage without a cell, for who has a folder and wants another."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from release.progress import progress_for
from release.types import JSON

if TYPE_CHECKING:
    from release.builders.weights.findings import Finding
    from release.builders.weights.recipe import Recipe


@dataclass(frozen=True)
class Converted:
    """What a conversion came to: its facts, what `verify` compared if it was asked for, and how long it took in seconds."""

    summary: JSON
    facts: JSON | None
    proof: dict[str, int] | None
    seconds: float


def convert(source: Path, target: Path, recipe: Recipe, *, dry: bool, proof: bool) -> Converted:
    """Bring the checkpoint in `source` into the recipe's precision in the folder `target`, which is not there yet.

    With `dry`, only say what would be done; with `proof`, recompute every element from the source by other means and compare. A run that
    was killed goes on where it was. Raises StageError, StoreError, VerificationError.
    """
    from release.builders.weights.proof import verify
    from release.builders.weights.recipe import conversion_of
    from release.builders.weights.run import run

    conversion = conversion_of(recipe, source)
    summary = conversion.summary()
    if dry:
        return Converted(summary, None, None, 0.0)
    began = time.monotonic()
    progress = progress_for(sys.stderr)
    try:
        line = progress.line(target.name, "weights")
        line.start()
        done = run(conversion, target, line)
        line.done(f"{done.written / 1e6:.1f} MB written")
        seconds = time.monotonic() - began
        compared = None
        if proof:
            line = progress.line(target.name, "verify")
            line.start()
            compared = verify(conversion, target, line)
            line.done(f"{compared['elements']} elements")
    finally:
        progress.close()
    return Converted(summary, done.facts, compared, seconds)


def check(folder: Path, *, numbers: bool) -> list[Finding]:
    """Return what is wrong with the checkpoint in `folder`; with `numbers`, every byte is read in search of NaN and infinities."""
    from release.builders.weights.check import check as findings

    progress = progress_for(sys.stderr)
    try:
        line = progress.line(folder.name, "check")
        line.start()
        found = findings(folder, line=line, numbers=numbers)
        line.done(f"{len(found)} findings")
    finally:
        progress.close()
    return found
