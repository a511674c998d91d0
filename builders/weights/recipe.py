"""How a plan's weights are made, as data: what the weights stage reads, and which planner or tool follows it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from release.builders.engines import engine_named
from release.builders.weights.catalogue import read_catalogue
from release.builders.weights.config import difference, edited, read_config
from release.builders.weights.formats import GROUP, LAYOUTS, Choice, quantised
from release.builders.weights.plan import Conversion, check
from release.builders.weights.recipes import Options, plan_conversion
from release.errors import MatrixError, StageError
from release.types import Dtype, Frozen, Plan, Precision, Weights

OURS: Final = "release"
"""The tool that is this package."""
FLOATS: Final = ("bf16", "fp16", "fp32")
KEYS: Final = ("format", "exclude", "allow", "drop-mtp")
"""What `weights.build` may say where the tool is ours: the layout, patterns of modules that stay float, counts that are no errors, whether
the layers for multi-token prediction are left out."""
EDITS: Final = "config-edits.json"
ADAPTERS: Final = "lora_adapter.json"
"""Files of an engine that are meant for the checkpoint: a merge patch of its config.json, and the adapters, to lie beside it."""


class Recipe(Frozen):
    """How weights of `precision` are made of a checkpoint in `upstream`. All of it goes into the key of the stage.

    `dtype` is what stays float; `layout`, `exclude`, `group`, `allow`, `mtp` are for conversions of our own; `config` is a merge patch, `files`
    are texts for beside the weights (or for the tool, where a command names one); the rest is what a tool is told.
    """

    upstream: Precision
    precision: Precision
    dtype: Dtype
    tool: str = OURS
    layout: str = ""
    exclude: tuple[str, ...] = ()
    group: int = GROUP
    allow: tuple[str, ...] = ()
    mtp: bool = True
    config: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    version: str | None = None
    type: str | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    split: int | None = None
    calibration: tuple[str, ...] = ()
    build: dict[str, Any] = Field(default_factory=dict)


def recipe_for(plan: Plan) -> Recipe:
    """Return how the plan's weights are made. Raises MatrixError for a `weights.build` that nothing here understands."""
    said = plan.weights or Weights()
    for_checkpoint = _from_engine(plan, said)
    patch = {**json.loads(for_checkpoint.pop(EDITS, "{}")), **said.config}
    ours = _build(plan, said) if said.tool == OURS else _told(plan, said)
    return Recipe(
        upstream=plan.model.precision,
        precision=plan.precision,
        dtype=plan.dtype,
        tool=said.tool,
        group=said.block or GROUP,
        config=patch,
        files=for_checkpoint,
        version=said.version if isinstance(said.version, str) else None,
        type=said.type,
        commands=said.commands,
        env=said.env,
        packages=said.packages,
        split=said.split,
        calibration=said.calibration,
        **ours,
    )


def conversion_of(recipe: Recipe, source: Path) -> Conversion:
    """Return the conversion that a recipe of ours is, for the checkpoint in `source`. Raises StageError where there is none."""
    if recipe.tool != OURS:
        raise StageError(f"{recipe.precision} weights are made by {recipe.tool}, not by a conversion of ours")
    options = Options(mtp=recipe.mtp, allow=frozenset(recipe.allow))
    if recipe.precision == recipe.upstream or recipe.precision in FLOATS:
        planned = plan_conversion(source, recipe.precision, upstream=recipe.upstream, options=options)
        return with_edits(planned, recipe.config, recipe.files)
    if recipe.upstream not in FLOATS:
        raise StageError(
            f"no conversion from {recipe.upstream} to {recipe.precision} is known",
            next_step="make bf16 weights of it first: `release weights convert … --to bf16`, and start from those",
        )
    choice = Choice(
        layout=recipe.layout or _layout(recipe.precision),
        precision=recipe.precision,
        dtype=recipe.dtype,
        exclude=recipe.exclude,
        group=recipe.group,
        config=recipe.config,
        files=recipe.files,
        options=options,
    )
    return check(quantised(read_catalogue(source), choice))


def with_edits(conversion: Conversion, patch: Mapping[str, Any], files: Mapping[str, str]) -> Conversion:
    """Return a conversion whose config.json gets a merge patch after its own edits, with more files beside it."""
    if not patch and not files:
        return conversion
    if not patch:
        return replace(conversion, files={**conversion.files, **files})
    config = read_config(conversion.source)
    return replace(
        conversion, config=difference(config, edited(config, conversion.config, patch)), files={**conversion.files, **files}
    )


def _layout(precision: str) -> str:
    """Return the layout of a precision where a recipe names none: vLLM's where it has one."""
    names = [name for name, made in LAYOUTS if made == precision]
    if not names:
        known = ", ".join(sorted({made for _, made in LAYOUTS}))
        raise StageError(
            f"no conversion of ours makes {precision}", next_step=f"ours make {known}; name a tool that makes it in weights.tool"
        )
    return names[0]


def _build(plan: Plan, said: Weights) -> dict[str, Any]:
    for key in said.build:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise MatrixError(f"{plan.cell}: weights.build.{key}: unknown key{hint}", next_step=f"the keys are {', '.join(KEYS)}")
    layout = said.build.get("format", "")
    layouts = sorted({name for name, _ in LAYOUTS})
    if layout and layout not in layouts:
        raise MatrixError(f"{plan.cell}: weights.build.format: {layout!r} is none of {', '.join(layouts)}")
    drop = said.build.get("drop-mtp", False)
    if not isinstance(drop, bool):
        raise MatrixError(f"{plan.cell}: weights.build.drop-mtp is true or false, not {drop!r}")
    return {
        "layout": layout,
        "exclude": _words(plan, said.build.get("exclude", ()), "exclude"),
        "allow": _words(plan, said.build.get("allow", ()), "allow"),
        "mtp": not drop,
    }


def _told(plan: Plan, said: Weights) -> dict[str, Any]:
    """Return what a tool of others is told: its build file as it is, and what stays float where that is said in our words."""
    return {"build": said.build, "exclude": _words(plan, said.build.get("exclude", ()), "exclude")}


def _words(plan: Plan, value: Any, key: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(word, str) and word for word in value):
        raise MatrixError(f"{plan.cell}: weights.build.{key}: is not a list of words")
    return tuple(value)


def _from_engine(plan: Plan, said: Weights) -> dict[str, str]:
    """Return the engine's files that are meant for the checkpoint, or for a command that names them."""
    words = {word for command in said.commands for word in command}
    made = engine_named(plan.engine).files(plan)
    return {name: text for name, text in made.items() if name in (EDITS, ADAPTERS) or name in words}
