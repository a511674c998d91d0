"""Weights of a recipe, made: by a conversion of ours, or by the tool that the recipe names, and checked before anyone sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from release.builders.weights.catalogue import read_catalogue
from release.builders.weights.recipe import FLOATS, OURS, Recipe, conversion_of
from release.builders.weights.recipes import precision_of
from release.errors import StageError
from release.oci import sha256_file
from release.progress import Line
from release.types import JSON, Dtype, tuples

LOG: Final = "conversion.log"
"""What a tool said, beside the facts of the stage."""


def make(
    recipe: Recipe,
    source: Path,
    out: Path,
    *,
    line: Line,
    partial: Path | None = None,
    scratch: Path | None = None,
    log: Path | None = None,
    files: Mapping[str, Path] | None = None,
) -> JSON:
    """Make the weights of `recipe` from the checkpoint `source` in the empty folder `out`; return the facts of the stage.

    `partial` is a folder that outlives a kill, for conversions of ours; `scratch` is an empty one, `log` a file to be written and `files` the
    calibration texts by the names in the recipe, for tools. facts: `upstream`, `precision`, `converted` and `kept` (tensors), `files` with
    sha256 and bytes of each; of a tool also `tool`, `tool-version`, `commands`, `warnings` and `log`. Raises StageError.
    """
    pair = {"upstream": recipe.upstream, "precision": recipe.precision}
    if recipe.tool != OURS:
        if scratch is None or log is None:
            raise StageError(f"{recipe.precision} weights are made by {recipe.tool}, which needs a scratch folder and a log")
        return {**pair, **_driven(recipe, source, out, scratch, log, line, files or {})}
    from release.builders.weights.run import run

    facts = run(conversion_of(recipe, source), out, line, partial=partial).facts
    if recipe.precision != recipe.upstream and recipe.precision not in FLOATS:
        from release.builders.weights.check import refuse

        refuse(out, f"the {recipe.precision} weights", numbers=False)
    return {**pair, **facts}


def requested(
    source: Path,
    to: str,
    *,
    layout: str = "",
    dtype: Dtype | None = None,
    exclude: Sequence[str] = (),
    group: int | None = None,
    allow: Sequence[str] = (),
    drop_mtp: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe that a command line asks for: `to` a precision, from what the checkpoint in `source` is in.

    `dtype` is what stays float: the checkpoint's own if not said, bf16 for a checkpoint in fp32. `config` is a merge patch of config.json.
    """
    upstream = precision_of(read_catalogue(source))
    kept = dtype or ("bf16" if upstream in ("fp32", "fp8") else upstream)
    said = {
        "upstream": upstream,
        "precision": to,
        "dtype": to if to in FLOATS else kept,
        "layout": layout,
        "exclude": tuple(exclude),
        "allow": tuple(allow),
        "mtp": not drop_mtp,
        "config": dict(config or {}),
        **({"group": group} if group else {}),
    }
    return Recipe.model_validate(tuples(said))


def _driven(recipe: Recipe, source: Path, out: Path, scratch: Path, log: Path, line: Line, files: Mapping[str, Path]) -> JSON:
    from release.builders.weights.drivers import drive

    facts = drive(recipe, source, out, scratch=scratch, log=log, line=line, files=files)
    made = {
        path.relative_to(out).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    return {
        **facts,
        "log": {"sha256": sha256_file(log), "bytes": log.stat().st_size},
        "files": made,
    }
