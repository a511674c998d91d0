"""What stands against a plan before any work is done: one small function a rule, in a table, over the plan and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, Literal

from release.matrix.arguments import misspelt, unticked
from release.matrix.division import OBSTACLES, obstacles, sizes
from release.matrix.memory import FLOATS, GIB, Demand, Memory, assumed, demand_of, format_of, longest, memory_of, partition
from release.matrix.vendor import demanded, demanded_of_layout
from release.types import Base, Concern, GitSource, Parallel, Plan, Unknown, Wheel

Severity = Literal["refuse", "warn", "note"]
Check = Callable[[Plan], Iterable[Concern]]


def divided(plan: Plan, name: str) -> Iterator[Concern]:
    """The shapes divide over the devices; where the vendor lists a size that they do not divide by, its engine must pad: that is said."""
    if plan.parallel is None:
        return
    listed = plan.parallel.world_size in plan.world_sizes and name != "pipeline"
    for message in OBSTACLES[name](plan.model.architecture, format_of(plan), plan.parallel):
        if listed:
            text = f"the vendor lists world size {plan.parallel.world_size}, but {message}"
            yield Concern(rule=name, severity="warn", message=text, next_step="an engine that does not pad refuses it")
        else:
            step = _sizes_that_work(plan) if name != "pipeline" else "use fewer pipeline stages: at most one a layer"
            yield Concern(rule=name, severity="refuse", message=message, next_step=step)


def uneven_stages(plan: Plan) -> Iterator[Concern]:
    """Pipeline stages that hold unequally many layers wait for the fullest."""
    layers, pp = plan.model.architecture.layers, plan.parallel.pipeline_parallel_size if plan.parallel else 1
    if pp <= layers and layers % pp:
        shares = ", ".join(map(str, partition(layers, pp)))
        yield Concern(rule="pipeline", severity="note", message=f"{pp} pipeline stages share {layers} layers unequally: {shares}")


def listed_sizes(plan: Plan) -> Iterator[Concern]:
    """The vendor's table of world sizes, as data: a size that it does not list is tried at one's own risk."""
    if not plan.world_sizes:
        return
    listed = f"the vendor lists {_words(plan.world_sizes, 'and')}"
    chosen = plan.parallel.world_size if plan.parallel else None
    if chosen is not None and chosen not in plan.world_sizes:
        yield Concern(
            rule="world-sizes",
            severity="warn",
            message=f"world size {chosen} is not listed: {listed}",
            next_step=_next_size(plan.world_sizes),
        )
    for size in plan.world_sizes:
        against = obstacles(plan.model.architecture, format_of(plan), Parallel(tensor_parallel_size=size))
        if against and size != chosen:
            text = f"{listed}, but {against[0]}"
            yield Concern(rule="world-sizes", severity="note", message=text, next_step="an engine that does not pad refuses it")


def hosts(plan: Plan) -> Iterator[Concern]:
    """A replica that needs more devices than a usual host has spans hosts."""
    if (
        plan.parallel
        and plan.device
        and isinstance(plan.device.per_host, int)
        and plan.parallel.world_size > plan.device.per_host
    ):
        count = -(-plan.parallel.world_size // plan.device.per_host)
        yield Concern(
            rule="hosts",
            severity="note",
            message=f"world size {plan.parallel.world_size} takes {count} hosts of {plan.device.per_host} devices",
            next_step="the engine must be started on each of them",
        )


def split(plan: Plan) -> Iterator[Concern]:
    """Weights that were cut for a tensor parallel size run with that size and no other."""
    cut = plan.weights.split if plan.weights else None
    if cut and plan.parallel and plan.parallel.tensor_parallel_size != cut:
        yield Concern(
            rule="weights-split",
            severity="refuse",
            message=f"tensor-parallel-size {plan.parallel.tensor_parallel_size} is not {cut}, which the weights were split for",
            next_step=f"use --tensor-parallel-size {cut}, or split the weights anew",
        )
    elif plan.precision == "w8a8sc" and not cut:
        yield Concern(
            rule="weights-split",
            severity="note",
            message="w8a8sc weights are split for one tensor parallel size, and the cell does not say which",
            next_step="write weights.split",
        )


def dtype(plan: Plan) -> Iterator[Concern]:
    """The chip computes in the activations' type."""
    if plan.dtype not in plan.chip.dtypes:
        yield Concern(
            rule="dtype",
            severity="refuse",
            message=f"chip {plan.chip.id} does not compute in {plan.dtype}",
            next_step=f"it computes in {_words(plan.chip.dtypes, 'and')}",
        )


def precision(plan: Plan) -> Iterator[Concern]:
    """The chip runs weights of this precision."""
    if plan.precision not in plan.chip.precisions:
        yield Concern(
            rule="precision",
            severity="refuse",
            message=f"chip {plan.chip.id} does not offer {plan.precision}",
            next_step=f"it offers {_words(plan.chip.precisions, 'and')}",
        )


def floors(plan: Plan) -> Iterator[Concern]:
    """The libraries in the image are as new as the model needs them."""
    there: dict[str, Any] = {source.name: source.version for source in plan.sources if isinstance(source, Wheel)}
    there |= plan.packages
    for name, floor in plan.model.requires.items():
        version = there.get(name)
        wanted = f"{plan.model.name} needs {name} {floor}"
        if isinstance(version, str):
            if not _meets(version, floor):
                text = f"{wanted}, the image has {version}"
                yield Concern(
                    rule="floor", severity="refuse", message=text, next_step=f"take an image or a wheel with {name} {floor}"
                )
            continue
        reason = version.unknown if version else (f"{plan.wheels} decides" if plan.wheels else "the cell does not say")
        yield Concern(
            rule="floor",
            severity="note",
            message=f"{wanted}; the version in the image is not known: {reason}",
            next_step=f"look with `pip show {name}` in the image, and write packages.{name}",
        )


def adapters(plan: Plan) -> Iterator[Concern]:
    """Adapters (LoRA) lie over float weights, and none has the name of the model without any."""
    if plan.adapters and plan.precision not in FLOATS:
        yield Concern(
            rule="adapters",
            severity="refuse",
            message=f"{len(plan.adapters)} adapters over {plan.precision} weights: adapters lie over float weights only",
            next_step="take a float precision, or leave the adapters out",
        )
    if "base" in plan.adapters:
        text = "an adapter is called 'base', which is what engines call the model without one"
        yield Concern(rule="adapters", severity="refuse", message=text, next_step="give it another name")


def context(plan: Plan) -> Iterator[Concern]:
    """No sequence is longer than the model can read: its context, or what a stretch of its positions makes of that."""
    asked, most = demand_of(plan).context, longest(plan)
    if asked > most:
        yield Concern(
            rule="context",
            severity="refuse",
            message=f"{asked} tokens a sequence are more than the {int(most)} that {plan.model.name} reads",
            next_step=f"set max-model-len to {int(most)} at most, or stretch it: rope_scaling in weights.config (yarn)",
        )


def making(plan: Plan) -> Iterator[Concern]:
    """Somebody says how quantised weights of a float model are made."""
    if plan.weights is None and plan.precision not in FLOATS and plan.model.precision in FLOATS:
        yield Concern(
            rule="weights",
            severity="warn",
            message=f"how the {plan.precision} weights are made out of {plan.model.precision} is not said",
            next_step="write weights: {tool: release} for our own conversion, or the vendor's tool and its commands",
        )


def memory(plan: Plan) -> Iterator[Concern]:
    """The weights, the cache and a reserve fit the device: for one sequence of full length, and for all that are served at once."""
    if plan.device is None or plan.parallel is None:
        return
    if isinstance(plan.device.memory, Unknown):
        yield Concern(
            rule="memory",
            severity="note",
            message=f"how much memory {plan.device.name} has is not known: {plan.device.memory.unknown}",
            next_step="give it with --device-memory GIB, as the host's own tool prints it",
        )
        return
    demand = demand_of(plan)
    held = memory_of(demand, plan.parallel, device_memory=plan.device.memory)
    if not held.starts:
        yield Concern(
            rule="memory",
            severity="refuse",
            message=f"does not start with {held.context} tokens: {sum_of(held, 1)} {budget_of(held, demand, plan.device.memory)} "
            f"GiB on each {plan.device.name}",
            next_step=_smaller(plan, demand, held),
        )
    elif not held.full:
        fit, guess = held.sequences or 0, assumed(plan)
        yield Concern(
            rule="memory",
            severity="note" if guess else "warn",
            message=(f"assumed: {held.asked} sequences; the cell does not say. " if guess else "")
            + f"{fit} of {held.asked} sequences of {held.context} tokens fit at once: with all of them {sum_of(held, held.asked)} "
            f"{budget_of(held, demand, plan.device.memory)} GiB on each {plan.device.name}",
            next_step=f"set max-num-seqs to {fit}, or let sequences wait for one another",
        )


def conflicts(plan: Plan) -> Iterator[Concern]:
    """Where the vendor's papers contradict themselves, every plan says so."""
    for conflict in plan.conflicts:
        yield Concern(rule="conflict", severity="warn", message=f"{conflict.says}, but {conflict.but}", source=conflict.source)


def pins(plan: Plan) -> Iterator[Concern]:
    """What is not pinned yet is named: a plan with an unknown in it cannot be built, and a release of it could not be repeated."""
    note = partial(Concern, rule="pin", severity="note")
    if isinstance(plan.base, Unknown):
        yield note(message=f"the base image is not known: {plan.base.unknown}", next_step="write base.image with a digest")
    elif isinstance(plan.base, Base) and plan.base.access:
        way = {"request": "is asked for at", "site": "is taken from", "registry": "is pulled from"}[plan.base.access.kind]
        name = plan.base.access.name
        yield note(
            message=f"the base image {'' if isinstance(name, Unknown) else name + ' '}{way} {plan.base.access.contact}",
            next_step="release base import FILE tells the digest to pin",
        )
    for source in plan.sources:
        if isinstance(source, GitSource):
            yield from (note(message=message, next_step=step) for message, step in _unpinned(source))
    hub = plan.model.checkpoint.hub
    if hub and isinstance(hub.revision, Unknown):
        yield note(
            message=f"the revision of {hub.repository} is not known: {hub.revision.unknown}",
            next_step="write checkpoint.hub.revision, a full commit",
        )


RULES: Final[tuple[Check, ...]] = (
    *(partial(divided, name=name) for name in OBSTACLES),
    uneven_stages,
    listed_sizes,
    hosts,
    split,
    dtype,
    precision,
    floors,
    adapters,
    context,
    memory,
    demanded,
    making,
    misspelt,
    unticked,
    conflicts,
    pins,
)
"""Every rule, in the order in which a reader sees what they say."""
LAYOUT_RULES: Final[tuple[Check, ...]] = (*(partial(divided, name=name) for name in OBSTACLES), split, demanded_of_layout)
"""Those that can refuse one layout over devices and allow another, memory aside."""


def concerns(plan: Plan, rules: Iterable[Check] = RULES) -> tuple[Concern, ...]:
    """Return what the rules say about a plan, as `ordered`."""
    return ordered(concern for rule in rules for concern in rule(plan))


def ordered(found: Iterable[Concern]) -> tuple[Concern, ...]:
    """Return refusals first, then warnings, then notes, each in the order they come in; contradictions of papers are the last warnings."""
    return tuple(sorted(found, key=lambda each: (("refuse", "warn", "note").index(each.severity), each.rule == "conflict")))


def refused(plan: Plan, rules: Iterable[Check] = RULES) -> str | None:
    """Return the first reason to refuse a plan, or None."""
    return next((concern.message for rule in rules for concern in rule(plan) if concern.severity == "refuse"), None)


def sum_of(held: Memory, sequences: int) -> str:
    """Return what a device holds with so many sequences of full length, as a sum in GiB."""
    cache = held.kv_one * sequences
    total = held.weights + cache + held.reserve
    parts = f"{held.weights / GIB:.1f} GiB of weights + {cache / GIB:.1f} of cache + {held.reserve / GIB:.1f} in reserve"
    return f"{parts} are {total / GIB:.2f}"


def budget_of(held: Memory, demand: Demand, memory: float) -> str:
    """Return how much of a device the engine may take, in GiB."""
    return f"of {(held.budget or 0) / GIB:.2f} ({demand.utilization:g} × {memory:g})"


def _smaller(plan: Plan, demand: Demand, held: Memory) -> str:
    """Return what to do about a model that does not start: fewer tokens, or more devices."""
    if held.tokens:
        return f"set max-model-len to {int(min(held.tokens, longest(plan)))} at most, or use more devices"
    assert plan.parallel and plan.device and not isinstance(plan.device.memory, Unknown)
    for size in sizes(demand.architecture, demand.format):
        layout = plan.parallel.model_copy(update={"tensor_parallel_size": size})
        if memory_of(demand, layout, device_memory=plan.device.memory).starts:
            return f"it starts with --tensor-parallel-size {size}"
    return "use a pipeline over more devices, or a smaller precision"


def _sizes_that_work(plan: Plan) -> str:
    return _next_size(sizes(plan.model.architecture, format_of(plan)))


def _next_size(known: Iterable[int]) -> str:
    return f"use --tensor-parallel-size {_words(tuple(known), 'or')}"


def _words(items: Iterable[object], joint: str) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} {joint} {last}" if first else last


def _meets(version: str, floor: str) -> bool:
    wanted = _number_of(floor.lstrip(">="))
    there = _number_of(version)
    length = max(len(wanted), len(there))
    wanted, there = (part + (0,) * (length - len(part)) for part in (wanted, there))
    return there == wanted if floor.startswith("==") else there >= wanted


def _number_of(version: str) -> tuple[int, ...]:
    digits = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, digits[0].split("."))) if digits else ()


def _unpinned(source: GitSource) -> Iterator[tuple[str, str]]:
    where = f"sources.{source.name}"
    if isinstance(source.commit, Unknown):
        yield f"the commit of {source.name} is not known: {source.commit.unknown}", f"write {where}.commit"
    if patch := source.vendor_patch:
        for what, value in (("base", patch.base), ("sha256", patch.sha256)):
            if isinstance(value, Unknown):
                name = {"base": "base commit", "sha256": "digest"}[what]
                yield (
                    f"the {name} of {source.name}'s patch for {patch.device_type} is not known: {value.unknown}",
                    f"write {where}.vendor-patch.{what}",
                )
