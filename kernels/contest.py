"""Ways of one operator timed by turns, on inputs that no cache holds, those alone that come to the same result. Any clock will do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from . import figures
from .check import root_of, several
from .operator import Inputs, NotOffered, Operator, size_of

if TYPE_CHECKING:
    from .clock import Clock

OURS: Final = "ours"
EAGER: Final = "eager"
"""The way of torch whose result the others are compared with first."""
COMPILED: Final = "compiled"
FLAGGEMS: Final = "flaggems"
REPEATS: Final = 2
"""Rounds in which all take turns; how far they lie apart is shown."""
APART: Final = 2.0
"""How many tolerances two may lie apart of which each lies within one of the truth."""
PIECE: Final = 1 << 24
"""Elements that are compared at once."""
COVERS: Final = 32
"""How often the cache is emptied before a call at most, so that the device is still busy when the host has the whole call issued."""
ROOM: Final = "there is not memory enough"

Reasons = dict[str, tuple[str, str]]
"""Why a contender has no figure, by name: SKIPPED or FAILED, and the reason."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of an operator: `ready(inputs)` returns the call that is timed, or is None and `why` says why not.

    `ties` are the outputs that are not compared; `same(inputs, outputs)` brings those that are into the order in which ours come.
    """

    name: str
    ready: Callable[[Inputs], Callable[[], Any]] | None
    why: str = ""
    ties: tuple[int, ...] = ()
    same: Callable[[Inputs, tuple[Any, ...]], tuple[Any, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How a contender is timed: calls in a round, emptyings of the cache before each, the host's seconds for one.

    `waits`: the host needs longer than those emptyings take, or waits for the device itself, so that the figures hold time of the host.
    """

    calls: int
    covers: int
    host: float
    waits: bool


class Walk:
    """The calls of one contender, each on the next copy of the inputs, through all rounds: a copy comes again when all others were met."""

    def __init__(self, contender: Contender, sets: Sequence[Inputs]) -> None:
        self.contender, self.sets, self.place = contender, sets, 0
        self.made: dict[int, Callable[[], Any]] = {}

    def take(self, count: int) -> list[Callable[[], Any]]:
        """Return the next calls, all laid out."""
        assert self.contender.ready is not None
        found = []
        for _ in range(count):
            number = self.place % len(self.sets)
            if number not in self.made:
                self.made[number] = self.contender.ready(self.sets[number])
            found.append(self.made[number])
            self.place += 1
        return found


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is timed: seconds of calls in a round and before the first, and how many calls at least and at most."""

    budget: float = 0.1
    warm: float = 0.025
    fewest: int = 10
    most: int = 200


def measure(
    operator: Operator, inputs: Inputs, asked: Sequence[Contender], clock: Clock, effort: Effort | None = None
) -> dict[str, Any]:
    """Time contenders by turns (ours, peer, …, ours, peer, …) on rotating copies of inputs, those alone that give the right result.

    Returns `copies`, whether results were `compared`, and `contenders`: name, status (MEASURED, SKIPPED, FAILED), the median seconds of
    each round, why there are none, the `host` seconds of issuing a call, and whether the figure `waits` for the host.
    """
    import torch

    effort = effort or Effort()
    torch._dynamo.reset()  # what was compiled for other shapes neither helps nor hinders
    why: Reasons = {contender.name: ("SKIPPED", contender.why) for contender in asked if contender.ready is None}
    compared = compare(operator, inputs, [contender for contender in asked if contender.name not in why], clock, why)
    left = [contender for contender in asked if contender.name not in why]
    size = sum(size_of(value) for value in inputs.values() if isinstance(value, torch.Tensor))
    copies = figures.rotation(clock.cache, size)
    seconds, paces = rounds(left, inputs, copies, clock, effort, why)
    rows = []
    for name in (contender.name for contender in asked):
        status, reason = why.get(name, ("MEASURED", ""))
        pace = None if reason else paces[name]
        own = {"host": pace.host, "waits": pace.waits} if pace else {"host": None, "waits": False}
        rows.append({"name": name, "status": status, "seconds": seconds[name] if pace else [], "why": reason, **own})
    return {"copies": copies, "compared": compared, "contenders": rows}


def compare(operator: Operator, inputs: Inputs, asked: Sequence[Contender], clock: Clock, why: Reasons) -> bool:
    """Call each contender once and note why of those that raise or give a wrong result; say whether there was one to compare with.

    First with eager's, which costs little; where one differs, all with the float64 reference, for eager may be the one that is wrong, and
    so where eager gives none. Where the device has no float64, or no memory for it, eager's word stands; without that, nobody has a figure.
    """
    expected: tuple[Any, ...] | None = None
    doubted: Reasons = {}
    for contender in sorted(asked, key=lambda contender: contender.name != EAGER):
        outputs = guarded(contender.name, clock, why, partial(_once, contender, inputs))
        if contender.name == EAGER:
            expected = outputs
        elif outputs is not None and expected is not None:
            _weigh(operator, inputs, contender, outputs, expected, APART, "torch's eager", clock, doubted)
    left = [contender.name for contender in asked if contender.name not in why]
    if not left or (expected is not None and not doubted):
        return expected is not None
    spare: Reasons = {}
    truth = guarded("", clock, spare, lambda: several(operator.reference(**inputs)))
    if truth is None and expected is not None:
        why |= doubted
        return True
    if truth is None:
        gaps = f"torch's eager ({why.get(EAGER, ('', 'not asked'))[1]}), the float64 reference ({spare[''][1]})"
        why |= dict.fromkeys(left, ("SKIPPED", f"there is no result to compare with: {gaps}"))
        return False
    for contender in asked:
        outputs = guarded(contender.name, clock, why, partial(_once, contender, inputs)) if contender.name not in why else None
        if outputs is not None:
            _weigh(operator, inputs, contender, outputs, truth, 1.0, "the float64 reference", clock, why)
    return True


def _weigh(
    operator: Operator,
    inputs: Inputs,
    contender: Contender,
    outputs: tuple[Any, ...],
    expected: tuple[Any, ...],
    limit: float,
    whose: str,
    clock: Clock,
    why: Reasons,
) -> None:
    apart = guarded(contender.name, clock, why, partial(away, operator, inputs, outputs, expected, contender.ties))
    if apart is not None and apart > limit:
        why[contender.name] = ("FAILED", f"another result than {whose}: {apart:.2g} times the tolerance away")


def rounds(
    asked: Sequence[Contender], inputs: Inputs, copies: int, clock: Clock, effort: Effort, why: Reasons
) -> tuple[dict[str, list[float]], dict[str, Pace]]:
    """Return the median seconds of each round of each contender, which take turns, and its pace; why is noted of those that raise."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in asked}
    paces: dict[str, Pace] = {}
    spare: Reasons = {}
    sets = guarded("", clock, spare, lambda: [inputs, *(copied(inputs) for _ in range(copies - 1))])
    if sets is None:
        why |= dict.fromkeys(seconds, ("SKIPPED", f"{spare[''][1]}, for {copies} copies of its inputs"))
        return seconds, paces
    walks = {contender.name: Walk(contender, sets) for contender in asked}
    for name, walk in walks.items():
        paces[name] = guarded(name, clock, why, partial(pace_of, walk, clock, effort))
    for _ in range(REPEATS):
        for name, walk in walks.items():
            if name not in why:
                seconds[name].append(guarded(name, clock, why, partial(turn, walk, paces[name], clock)))
    return seconds, paces


def _once(contender: Contender, inputs: Inputs) -> tuple[Any, ...]:
    outputs = several(Walk(contender, [copied(inputs)]).take(1)[0]())
    return contender.same(inputs, outputs) if contender.same else outputs


def turn(walk: Walk, pace: Pace, clock: Clock) -> float:
    """Return the median seconds of one round."""
    return median(clock.time(walk.take(pace.calls), pace.covers))


def guarded(name: str, clock: Clock, why: Reasons, call: Callable[[], Any]) -> Any:
    """Return what a call returns; where it raises, note why and return None. Raises what a lost device raises.

    What a peer refuses is skipped with its own words, what ours refuses has failed.
    """
    import torch

    try:
        return call()
    except NotOffered as problem:
        why[name] = ("SKIPPED", str(problem))
    except (MemoryError, torch.OutOfMemoryError):
        why[name] = ("SKIPPED", ROOM)
    except Exception as problem:
        why[name] = ("FAILED" if name == OURS else "SKIPPED", root_of(problem))
    clock.settle()
    return None


def pace_of(walk: Walk, clock: Clock, effort: Effort) -> Pace:
    """Warm up and return the pace: as many calls as fit the budget, the cache emptied as often as covers the host."""
    clock.time(walk.take(1))  # compiles and tunes
    host = median(clock.issue(walk.take(3)))
    covers = figures.covers(host, clock.cover, COVERS)
    if covers > 1:
        host = median(clock.issue(walk.take(3), covers))
    estimate = median(clock.time(walk.take(3), covers))
    estimate = median(clock.time(walk.take(figures.calls(estimate, effort.warm, effort.fewest, effort.most)), covers))
    calls = figures.calls(estimate, effort.budget, effort.fewest, effort.most)
    return Pace(calls, covers, host, 0 < covers * clock.cover < host)


def copied(inputs: Inputs) -> Inputs:
    """Return inputs in memory of their own, laid out as they are."""
    import torch

    def own(value: torch.Tensor) -> torch.Tensor:
        if 0 in value.stride():  # elements that share memory cannot be written one by one
            return value.clone()
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device).copy_(value)

    return {name: own(value) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def away(
    operator: Operator, inputs: Mapping[str, Any], found: tuple[Any, ...], expected: tuple[Any, ...], ties: tuple[int, ...]
) -> float:
    """Return how far outputs lie apart, as a multiple of the check's tolerance; piece by piece, since float64 takes room."""
    from .tolerances import distance

    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return float("inf")
    reduces, furthest = max(1, operator.reduces(dict(inputs))), 0.0
    for number, pair in enumerate(zip(found, expected, strict=True)):
        if number not in ties:
            pieces = zip(*(output.reshape(-1).split(PIECE) for output in pair), strict=True)
            furthest = max(furthest, *(distance(a, b, reduces, operator.steps) for a, b in pieces), 0.0)
    return furthest
