"""How to lay a model over the devices at hand: every layout that the rules allow, with its memory and speed, the best one first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from release.errors import MatrixError
from release.matrix.division import LARGEST, even, obstacles, sizes
from release.matrix.memory import GIB, Demand, Memory, demand_of, memory_of, up
from release.matrix.roofline import Estimate, compute_of, estimate
from release.matrix.rules import LAYOUT_RULES, budget_of, refused, sum_of
from release.types import Device, Parallel, Plan, Unknown

Verdict = Literal["full", "starts", "too small", "unknown"]
RANKS: Final = ("full", "starts", "too small", "unknown")
ALIKE: Final = 0.9
"""Share of the most tokens a second from which on two estimates count as alike."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay a model over devices. Speeds are upper bounds (see roofline), None where the device's figures are not known.

    `decode_ms` is the time of a token for one user alone, `tokens_per_second` all users' together, `prefill_tokens_per_second` the speed
    of reading prompts, of all replicas. `across` says that a tensor parallel group spans hosts, `deep` that a replica has more pipeline
    stages than hosts.
    """

    parallel: Parallel
    memory: Memory
    decode_ms: float | None
    tokens_per_second: float | None
    prefill_tokens_per_second: float | None
    verdict: Verdict
    why: str
    across: bool = False
    deep: bool = False

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What comes before any speed: what fits, then groups within a host, then no more pipeline stages than hosts.

        Both are how vLLM's guide for several hosts lays models out (docs/serving/parallelism_scaling.md); deep pipelines look better in
        an estimate than they are, since their stages are never equally busy.
        """
        return RANKS.index(self.verdict), self.across, self.deep


@dataclass(frozen=True, slots=True)
class Choice:
    """The layouts of so many devices, best first, and why the first was chosen; `left_out` says what the rules refuse, each reason once."""

    devices: int
    layouts: tuple[Layout, ...]
    why: str
    left_out: tuple[str, ...] = ()

    @property
    def best(self) -> Layout | None:
        """Return the layout to serve with, or None where none even starts."""
        return next((layout for layout in self.layouts[:1] if layout.verdict != "too small"), None)


def choose(plan: Plan, devices: int | None = None, *, device_memory: float | None = None) -> Choice:
    """Return the layouts of a plan over `devices` devices; of the smallest usual number that serves in full where no number is given.

    `device_memory` in GiB replaces what the plan says of its device. A layout that holds all sequences at full length comes before one that
    starts; then the one that gives the most tokens a second to the sequences that the plan asks for; where no speed can be told, the
    smallest replica. Raises MatrixError where the memory of the device is not known.
    """
    if plan.device is None:
        alone = Parallel()
        held = Layout(alone, memory_of(plan, alone), None, None, None, "unknown", "a host processor is one device")
        return Choice(1, (held,), held.why)
    memory = device_memory if device_memory is not None else plan.device.memory
    if isinstance(memory, Unknown):
        raise MatrixError(
            f"{plan.cell}: no layout can be chosen: how much memory {plan.device.name} has is not known: {memory.unknown}",
            next_step="give it with --device-memory GIB, or say the layout with --tensor-parallel-size",
        )
    demand = demand_of(plan)
    count = devices or _usual(plan, demand, plan.device, memory)
    left_out: dict[str, None] = {}
    found = [_judged(plan, demand, plan.device, memory, parallel) for parallel in _allowed(plan, demand, count, left_out)]
    layouts = _ordered(found)
    return Choice(count, layouts, _reason(demand, plan.device, count, layouts, tuple(left_out)), tuple(left_out))


def _allowed(plan: Plan, demand: Demand, devices: int, left_out: dict[str, None]) -> Iterator[Parallel]:
    """Yield the layouts that no rule refuses; where the vendor lists world sizes, those among them, without a pipeline.

    Sizes that the vendor lists against the arithmetic are offered only where there are no others: an engine that pads can run them.
    """
    shape = demand.architecture, demand.format
    listed = [size for size in plan.world_sizes if devices % size == 0]
    listed = [size for size in listed if not obstacles(*shape, Parallel(tensor_parallel_size=size))] or listed
    for tp in listed or _divisors(devices):
        for pp in (1,) if listed else _divisors(devices // tp):
            parallel = Parallel(tensor_parallel_size=tp, pipeline_parallel_size=pp, replicas=devices // tp // pp)
            reason = refused(plan.model_copy(update={"parallel": parallel}), LAYOUT_RULES)
            if reason:
                left_out[reason] = None
            elif even(demand.architecture, pp):
                yield parallel


def _judged(plan: Plan, demand: Demand, device: Device, memory: float, parallel: Parallel) -> Layout:
    held = memory_of(demand, parallel, device_memory=memory)
    fit = held.sequences or 0
    verdict: Verdict = "full" if held.full else "starts" if held.starts else "too small"
    served = min(held.asked, max(1, fit) * parallel.replicas)
    speed = estimate(demand, device, parallel, served) if verdict != "too small" else Estimate(0, None, None, None, None)
    host = LARGEST if isinstance(device.per_host, Unknown) else device.per_host
    hosts, deep = up(parallel.tensor_parallel_size, host), parallel.pipeline_parallel_size > up(parallel.world_size, host)
    if verdict == "full":
        why = f"all {held.asked} sequences of {held.context} tokens fit: {held.needed / GIB:.1f} of {(held.budget or 0) / GIB:.1f} GiB"
    elif verdict == "starts":
        why = f"{fit} of {held.asked} sequences of {held.context} tokens fit in {(held.budget or 0) / GIB:.1f} GiB"
    else:
        why = f"does not start: {sum_of(held, 1)} {budget_of(held, demand, memory)} GiB"
    if hosts > 1:
        why += f"; tensor parallel over {hosts} hosts"
    return Layout(
        parallel, held, speed.decode_ms, speed.tokens_per_second, speed.prefill_tokens_per_second, verdict, why, hosts > 1, deep
    )


def _ordered(layouts: list[Layout]) -> tuple[Layout, ...]:
    """Return layouts best first: by kind, then tokens a second, sequences that fit, no pipeline, small replicas.

    Of those whose estimates lie within a tenth of the fastest (an estimate tells no more), the shortest time of a token decides.
    """
    fastest: dict[object, float] = {}
    for layout in layouts:
        fastest[layout.kind] = max(fastest.get(layout.kind, 0.0), layout.tokens_per_second or 0.0)

    def rank(layout: Layout) -> tuple[float, ...]:
        if layout.verdict == "too small":
            return (RANKS.index(layout.verdict), layout.across, layout.memory.weights + layout.memory.kv_one)
        speed = layout.tokens_per_second or 0.0
        near = speed >= ALIKE * fastest[layout.kind]
        by_speed = (0.0, layout.decode_ms or 0.0) if near else (1.0, -speed)
        together = (layout.memory.sequences or 0) * layout.parallel.replicas if layout.verdict == "starts" else 0
        return (*layout.kind, *by_speed, -together, layout.parallel.pipeline_parallel_size, layout.parallel.world_size)

    return tuple(sorted(layouts, key=rank))


def _reason(demand: Demand, device: Device, devices: int, layouts: tuple[Layout, ...], left_out: tuple[str, ...]) -> str:
    """Return in one sentence why the first layout is the best, or why there is none."""
    if not layouts:
        return f"no layout over {devices} devices is allowed: {'; '.join(left_out)}"
    best = layouts[0]
    if best.verdict == "too small":
        return f"no layout over {devices} devices starts; the nearest, {spelled(best.parallel)}, {best.why}"
    same = [layout for layout in layouts if layout.kind == best.kind]
    fits, silent = f"{spelled(best.parallel)}: {best.why}", _silent(demand, device)
    if len(same) == 1:
        rest = "no other does as well" if len(layouts) > 1 else "no other is allowed"
        if any(layout.verdict == best.verdict for layout in layouts[1:]):
            rest = "the others that do have groups across hosts or more pipeline stages than hosts"
        return f"{fits}; {rest}{silent}"
    if best.tokens_per_second is None or best.decode_ms is None:
        return f"{fits}; of {len(same)} such layouts the smallest replica{silent}"
    alike = [each for each in same if (each.tokens_per_second or 0) >= ALIKE * max(e.tokens_per_second or 0 for e in same)]
    speed = f"{best.tokens_per_second:.0f} tokens a second for {best.memory.asked} sequences"
    if len(alike) == 1:
        return f"{fits}; of {len(same)} such layouts it gives the most, {speed} at best{silent}"
    return (
        f"{fits}; of {len(same)} such layouts {len(alike)} give about the most ({speed} at best), and it has the shortest time "
        f"of a token, {best.decode_ms:.1f} ms{silent}"
    )


def _silent(demand: Demand, device: Device) -> str:
    """Return what is not known of the device and therefore not counted."""
    if isinstance(device.bandwidth, Unknown):
        return f"; memory alone decides, since the bandwidth of {device.name} is not known"
    missing = [
        *(["its compute"] if compute_of(demand, device) is None else []),
        *(["the speed between devices"] if isinstance(device.interconnect, Unknown) else []),
    ]
    return f"; {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not known and not counted" if missing else ""


def _usual(plan: Plan, demand: Demand, device: Device, memory: float) -> int:
    """Return the smallest usual number of devices that serves in full, else the smallest that starts, else the largest.

    Usual are the world sizes that the vendor lists, else those that the arithmetic allows.
    """
    shape = demand.architecture, demand.format
    cut = plan.weights.split if plan.weights else None
    listed = sorted(plan.world_sizes)
    possible = [size for size in listed if not obstacles(*shape, Parallel(tensor_parallel_size=size))] or listed
    usual = (cut,) if cut else tuple(possible) or sizes(*shape, LARGEST)
    starting = None
    for size in usual:
        parallel = Parallel(tensor_parallel_size=size)
        held = memory_of(demand, parallel, device_memory=memory)
        if not held.starts or refused(plan.model_copy(update={"parallel": parallel}), LAYOUT_RULES):
            continue
        if held.full:
            return size
        starting = starting or size
    return starting or usual[-1]


def smallest(plan: Plan) -> Parallel:
    """Return the layout of a plan that says none, without weighing any: tensor parallel over the smallest usual number of devices.

    What is usual is said by `choose`; of a device whose memory is not known, the first that the vendor lists, or one.
    """
    if plan.device is None or isinstance(plan.device.memory, Unknown):
        return Parallel(tensor_parallel_size=min(plan.world_sizes, default=1))
    return Parallel(tensor_parallel_size=_usual(plan, demand_of(plan), plan.device, plan.device.memory))


def spelled(parallel: Parallel) -> str:
    """Return a layout as people say it: `TP 8`, `TP 4 × PP 2`, `TP 2 × 4 replicas`."""
    parts = [f"TP {parallel.tensor_parallel_size}"]
    if parallel.pipeline_parallel_size > 1:
        parts.append(f"PP {parallel.pipeline_parallel_size}")
    if parallel.replicas > 1:
        parts.append(f"{parallel.replicas} replicas")
    return " × ".join(parts)


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(divisor for divisor in range(1, number + 1) if number % divisor == 0)
