"""Weights that a chip can eat: the upstream checkpoint, checked file by file, and brought into the cell's precision shard by shard.

The path of a conversion: `catalogue.read_catalogue` (what is there, every header checked) → `recipes.plan_conversion` (what will be made of
it, as data: `plan.Conversion`) → `run.run` (writes it, resumes) → `proof.verify` (recomputes every element from the source, by other means).

A format of one's own needs a planner only: a function from `Catalogue` and `Options` to `Conversion`, entered into `recipes.RECIPES` under
(upstream, precision). It says for every output tensor by which kernel of `kernels.KERNELS` it is made (`plan.Step`), which config.json keys
change (`Conversion.config`), which texts stand beside the shards (`Conversion.files`). Nothing here imports numpy or numba before it computes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from release.builders.weights.recipes import Options, plan_conversion
from release.errors import FetchError
from release.oci import sha256_file
from release.progress import Line

__all__ = ("Options", "check_files", "convert", "plan_conversion")


def check_files(source: Path, files: Mapping[str, str], out: Path, line: Line) -> int:
    """Copy every pinned file of a checkpoint to `out` after its digest was found to be the pinned one; return the bytes.

    Raises FetchError naming the file whose content is another.
    """
    total = 0
    line.expect(sum((source / name).stat().st_size for name in files if (source / name).is_file()), "bytes")
    for name, digest in files.items():
        path = source / name
        if not path.is_file():
            raise FetchError(f"checkpoint file {path} is missing", next_step="the model's YAML lists it under checkpoint.files")
        found = sha256_file(path)
        if found != digest:
            raise FetchError(
                f"checkpoint file {name} has {found}, the model's YAML says {digest}",
                next_step="restore the file, or, if the change is meant, pin the new digest",
            )
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.chmod(target, 0o644)
        total += target.stat().st_size
        line.advance(target.stat().st_size)
    return total


def convert(
    source: Path,
    out: Path,
    *,
    upstream: str,
    precision: str,
    line: Line,
    partial: Path | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Write the checkpoint `source` to the empty folder `out` in `precision` and return the facts of `run.Done`, and both precisions.

    Every conversion rounds to nearest, ties to even; a NaN is an error, and what becomes infinite is one too unless `options` allow it.
    With `partial`, a folder that outlives a kill, a second run goes on where the first one was. Raises StageError for a pair of precisions
    that no recipe knows.
    """
    from release.builders.weights.run import run

    conversion = plan_conversion(source, precision, upstream=upstream, options=options)
    done = run(conversion, out, line, partial=partial)
    return {"upstream": upstream, "precision": precision, **done.facts}
