"""From a plan that is refused to the nearest one that would work: another layout, another precision, or another chip."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from release.errors import MatrixError
from release.matrix.check import MOST_DEVICES, Asked
from release.matrix.division import OBSTACLES
from release.matrix.layout import choose, spelled
from release.matrix.rules import concerns, refused
from release.types import Parallel, Plan, Unknown

ABOUT_LAYOUT = {*OBSTACLES, "weights-split"}
"""Rules that another layout over the same devices can satisfy."""
PLAIN: Final = re.compile(r"[A-Za-z0-9@%+=:,./_-][A-Za-z0-9@%+=:,./_~-]*")
TRIES = 20
"""Alternative cells that are looked at."""


def nearest(plan: Plan, others: Callable[[], Iterable[Plan]], asked: Asked | None = None) -> str | None:
    """Return the nearest plan that no rule refuses, as a next step with its command; None where there is none.

    `others` gives plans of other cells, of any chip and model, with what was `asked` for as far as it can hold for them (`alike`); it is
    called only where they are needed. What another layout over the same devices can mend is mended so; else the same chip in another
    precision comes first, then the same model on another chip over as many devices, then more devices.
    """
    asked = asked or Asked()
    count = asked.devices or _devices(plan)
    count = count if count and count <= MOST_DEVICES else None
    reasons = {concern.rule for concern in concerns(plan) if concern.severity == "refuse"}
    if reasons <= ABOUT_LAYOUT and (found := _over(plan, count)):
        return _step(plan, found, asked)
    for other in islice(_related(plan, others()), TRIES):
        here = other.chip.id == plan.chip.id
        for devices in dict.fromkeys((count, None)):
            if here and devices is None:
                continue
            if found := _over(other, devices):
                return _step(other, found, alike(asked, here=here))
    found = _over(plan, None)
    return _step(plan, found, asked) if found else None


def alike(asked: Asked, *, here: bool) -> Asked:
    """Return what is asked of an alternative: never the layout, which is what may change; the device of the same chip (`here`) alone."""
    mine = replace(asked, tensor_parallel_size=None, pipeline_parallel_size=None, devices=None)
    return mine if here else replace(mine, device=None, memory=None)


def _related(plan: Plan, others: Iterable[Plan]) -> Iterator[Plan]:
    """Yield the plans of the same model: those of this chip first, then those in this precision."""
    same = [other for other in others if other.model.id == plan.model.id and other.cell != plan.cell]
    yield from sorted(same, key=lambda other: (other.chip.id != plan.chip.id, other.precision != plan.precision))


def _over(plan: Plan, devices: int | None) -> Parallel | None:
    """Return a layout over so many devices (None: a usual number) with which no rule refuses the plan."""
    said = plan.parallel
    if said and devices in (None, said.world_size * said.replicas) and not refused(plan):
        return said
    if plan.device is not None and isinstance(plan.device.memory, Unknown):
        return None
    try:
        best = choose(plan, devices).best
    except MatrixError:
        return None
    if best is None or refused(plan.model_copy(update={"parallel": best.parallel})):
        return None
    return best.parallel


def _devices(plan: Plan) -> int | None:
    return plan.parallel.world_size * plan.parallel.replicas if plan.parallel else None


def _step(plan: Plan, parallel: Parallel, asked: Asked) -> str:
    arm = plan.precision + (f"~{plan.variant}" if plan.variant else "")
    words = ["release", "plan", "--chip", plan.chip.id, "--model", plan.model.id, "--precision", arm]
    if asked.device:
        words += ["--device", asked.device]
    if asked.memory is not None:
        words += ["--device-memory", f"{asked.memory:g}"]
    if parallel.replicas == 1:
        words += ["--tensor-parallel-size", str(parallel.tensor_parallel_size)]
        if parallel.pipeline_parallel_size > 1:
            words += ["--pipeline-parallel-size", str(parallel.pipeline_parallel_size)]
    else:
        words += ["--devices", str(parallel.world_size * parallel.replicas)]
    for name, value in asked.args.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return f"{plan.cell} would work with {spelled(parallel)}: {shell(words)}"


def shell(words: Iterable[str]) -> str:
    """Return words as a command that can be pasted; what a shell leaves alone, such as `~` inside a word, stays as it is."""
    return " ".join(word if PLAIN.fullmatch(word) else shlex.quote(word) for word in words)
