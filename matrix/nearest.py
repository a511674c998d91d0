"""From a plan that is refused to the nearest one that would work: another layout, another precision, or another chip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from release.errors import MatrixError
from release.matrix.division import OBSTACLES
from release.matrix.layout import choose, spelled
from release.matrix.rules import concerns, refused
from release.types import Parallel, Plan, Unknown

ABOUT_LAYOUT = {*OBSTACLES, "weights-split"}
"""Rules that another layout over the same devices can satisfy."""
TRIES = 20
"""Alternative cells that are looked at."""


def nearest(plan: Plan, others: Callable[[], Iterable[Plan]]) -> str | None:
    """Return the nearest plan that no rule refuses, as a next step with its command; None where there is none.

    `others` gives plans of other cells, of any chip and model; it is called only where they are needed. What another layout over the same
    devices can mend is mended so; else the same chip in another precision comes first, then the same model on another chip over as many
    devices, then more devices.
    """
    reasons = {concern.rule for concern in concerns(plan) if concern.severity == "refuse"}
    if reasons <= ABOUT_LAYOUT and (found := _over(plan, _devices(plan))):
        return _step(plan, found)
    for other in islice(_related(plan, others()), TRIES):
        for devices in dict.fromkeys((_devices(plan), None)):
            if other.chip.id == plan.chip.id and devices is None:
                continue
            if found := _over(other, devices):
                return _step(other, found)
    found = _over(plan, None)
    return _step(plan, found) if found else None


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


def _step(plan: Plan, parallel: Parallel) -> str:
    arm = plan.precision + (f"~{plan.variant}" if plan.variant else "")
    command = f"release plan --chip {plan.chip.id} --model {plan.model.id} --precision {arm}"
    if parallel.replicas == 1:
        command += f" --tensor-parallel-size {parallel.tensor_parallel_size}"
        if parallel.pipeline_parallel_size > 1:
            command += f" --pipeline-parallel-size {parallel.pipeline_parallel_size}"
    else:
        command += f" --devices {parallel.world_size * parallel.replicas}"
    return f"{plan.cell} would work with {spelled(parallel)}: {command}"
