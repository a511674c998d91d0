"""The share of a served model that Triton computes, counted from a profile of its server in three ways that each say what they count."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

from .aten import Served

LARGEST: Final = 1 << 30
"""Bytes of an unpacked trace that are read. A longer one profiles too much to be looked at."""
LONGEST_NAME: Final = 400
MOST_EVENTS: Final = 10_000_000
UNDETERMINED: Final = "undetermined"
DEFINITIONS: Final = {
    True: {
        "kinds": "distinct names of kernels on the device: those in Triton, of all, each counted once",
        "launches": "launches of kernels on the device: those in Triton, of all",
        "time": "summed durations of kernels on the device: of those in Triton, of all",
    },
    False: {
        "kinds": "distinct names of operators that no other operator calls, on the host processor: those in Triton, of all, each counted once",
        "launches": "calls of operators that no other operator calls, on the host processor: those in Triton, of all",
        "time": "self CPU time, without what it calls, of every operator on the host processor: of those in Triton, of all",
    },
}
"""What each share counts, where a device's kernels were seen and where only a processor's operators were."""
RECORDED: Final = {
    "kinds": "kinds of operators of the registry that the plugin saw called: those of which ours or FlagGems served any call, of all",
    "launches": "calls of operators of the registry that the plugin counted since the server started: those ours or FlagGems served, of all",
}
"""What the shares of recorded calls count: of the operators that the plugin can replace alone, and not of the whole model. What the engine
served itself may be Triton's as well (vLLM's fused experts are, on a device): only the profile tells."""
SWITCHED: Final = ("ours", "flaggems")
"""Libraries of the registry that stand in for the engine's own."""
SERVED: Final = (
    "by record: distinct names of operators that launched kernels of the device, and of kernels that belong to none: those all of whose "
    "kernels are in Triton by their names, and those of ATen that FlagGems' own record says it served since the server started, whichever "
    "of their overloads, and none of whose kernels is known as another library's, of all, each counted once"
)
"""What the share counts that needs FlagGems' record. It is near the rule of FlagOS' own tool (vllm-plugin-FL, tools/operator_profile), and
not that: the tool goes over a run without FlagGems, and counts an operator that one kernel in Triton belongs to."""
INTERPRETED: Final = (
    "the profile has no kernels of a device, so what is in Triton ran in its interpreter, or its kernels were not seen: a share of the host's "
    "time says nothing of any device"
)
LOST: Final = "FlagGems' record of a process is lost, and what it served there is not known"
RULES: Final = (
    "Communication and what no pattern knows stay in the total; what no pattern knows never counts as Triton. A switch that is set counts "
    "for nothing: only what the profile shows ran. On a host processor, what is in Triton runs in its interpreter."
)


@dataclass(frozen=True, slots=True)
class Library:
    """Whose kernels have names that fit a pattern, and whether they are written in Triton."""

    library: str
    triton: bool
    pattern: re.Pattern[str]


class Span(NamedTuple):
    """One kernel or operator of a trace: its microseconds, its thread, and the number that links a kernel with what launched it."""

    kind: str
    name: str
    start: float
    end: float
    thread: str
    link: int | None


@dataclass(slots=True)
class Kind:
    """All calls of one name: how many, and their microseconds on the device (self time on a host processor)."""

    name: str
    library: str
    triton: bool
    launches: int = 0
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """One number with its definition: `part` of `whole`; none of nothing, and none where there is a reason to give none."""

    by: str
    part: float
    whole: float
    definition: str
    reason: str = ""

    @property
    def share(self) -> float | None:
        """The part of the whole from 0 to 1, None where nothing was observed or nothing follows from it."""
        return self.part / self.whole if self.whole and not self.reason else None


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a profile shows: every kind of operator, the three shares, and whether a device's kernels or a processor's operators were seen.

    `unrecorded` are operators of ATen that launched kernels and may be FlagGems', whose record cannot tell: they count for nothing.
    """

    kinds: tuple[Kind, ...]
    shares: tuple[Share, ...]
    device: bool
    unrecorded: tuple[str, ...] = ()


def libraries() -> tuple[tuple[Library, ...], re.Pattern[str]]:
    """Return the table of libraries, the first that fits wins, and the pattern of events that are no operators."""
    table = json.loads(Path(__file__).with_name("libraries.json").read_bytes())
    rows = tuple(Library(row["library"], row["triton"], re.compile(row["pattern"])) for row in table["libraries"])
    return rows, re.compile(table["waiting"])


def read_trace(path: Path) -> list[Any]:
    """Return the events of a trace of torch's profiler (Chrome's trace format; `.gz` is unpacked).

    Raises ValueError for what is no such trace, is damaged, or unpacks to more than LARGEST bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB, unpacked")
        document = json.loads(data)
    except (OSError, EOFError, zlib.error, RecursionError, ValueError) as problem:
        raise ValueError(f"{path.name} is no trace: {problem!s:.200}") from problem
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise ValueError(f"{path.name} is no trace: it has no list of traceEvents")
    if len(events) > MOST_EVENTS:
        raise ValueError(f"{path.name} has {len(events)} events: profile fewer requests")
    return events


def coverage(traces: Iterable[list[Any]], served: Served | None = None) -> Coverage:
    """Count the operators of all traces of one server. If any has kernels of a device, kernels alone are counted, in all of them.

    `served` is what FlagGems recorded (`aten.read_served`): with it, and kernels of a device, there is one more share, by that record.
    Raises ValueError where there is neither a kernel nor an operator.
    """
    spans = [[span for event in events if (span := _span(event))] for events in traces]
    device = any(span.kind == "kernel" for trace in spans for span in trace)
    known, waiting = libraries()
    found: dict[str, Kind] = {}
    for trace in spans:
        for name, launched, time in _kernels(trace) if device else _operators(trace):
            if waiting.search(name):
                continue
            if name not in found:
                library = next((row for row in known if row.pattern.search(name)), None)
                found[name] = Kind(name, library.library if library else UNDETERMINED, library is not None and library.triton)
            found[name].launches += launched
            found[name].time += time
    if not found:
        raise ValueError("the profile has neither a kernel nor an operator: was the server asked anything while it was profiled?")
    kinds = tuple(sorted(found.values(), key=lambda kind: (-kind.time, kind.name)))
    shares = _shares(kinds, device)
    if served is None or not device:
        return Coverage(kinds, shares, device)
    launching = _launching(spans, found, waiting)
    triton = {
        name
        for name, kernels in launching.items()
        if all(kernel.triton for kernel in kernels)
        or (name in served.operators and all(kernel.triton or kernel.library == UNDETERMINED for kernel in kernels))
    }
    by_record = Share("kinds, by record", len(triton), len(launching), SERVED, LOST if served.lost else "")
    return Coverage(kinds, (*shares, by_record), device, tuple(sorted((served.unrecorded & set(launching)) - triton)))


def _launching(spans: Iterable[Sequence[Span]], kinds: Mapping[str, Kind], waiting: re.Pattern[str]) -> dict[str, list[Kind]]:
    """Return the operators that launched kernels, each with the kinds of those; a kernel without one is its own.

    torch's profiler gives a kernel the `External id` of the innermost operator that ran as it was launched, one trace at a time.
    """
    found: dict[str, dict[str, Kind]] = defaultdict(dict)
    for trace in spans:
        operators = {span.link: span.name for span in trace if span.kind == "cpu_op" and not waiting.search(span.name)}
        for kernel in (span for span in trace if span.kind == "kernel" and span.name in kinds):
            name = operators.get(kernel.link, kernel.name) if kernel.link is not None else kernel.name
            found[name][kernel.name] = kinds[kernel.name]
    return {name: list(kernels.values()) for name, kernels in found.items()}


def recorded(rows: Iterable[Mapping[str, Any]]) -> tuple[Share, ...]:
    """Return the shares of recorded calls (`calls.read_calls`) that ours or FlagGems served; none where nothing was recorded."""
    calls: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        calls[row["operator"]][row["library"] in SWITCHED] += row["calls"]
    if not calls:
        return ()
    kinds = sum(switched > 0 for _, switched in calls.values())
    return (
        Share("kinds", kinds, len(calls), RECORDED["kinds"]),
        Share("launches", sum(row[1] for row in calls.values()), sum(sum(row) for row in calls.values()), RECORDED["launches"]),
    )


def _shares(kinds: tuple[Kind, ...], device: bool) -> tuple[Share, ...]:
    called = [kind for kind in kinds if kind.launches]
    sums = {
        "kinds": [(kind.triton, 1.0) for kind in called],
        "launches": [(kind.triton, float(kind.launches)) for kind in called],
        "time": [(kind.triton, kind.time) for kind in kinds],
    }
    interpreted = {} if device or not any(kind.triton for kind in kinds) else {"time": INTERPRETED}
    return tuple(
        Share(
            by,
            sum(value for triton, value in rows if triton),
            sum(value for _, value in rows),
            DEFINITIONS[device][by],
            interpreted.get(by, ""),
        )
        for by, rows in sums.items()
    )


def _span(event: Any) -> Span | None:
    """Return a complete event that counts; None of all others and of malformed ones."""
    if not isinstance(event, dict) or event.get("ph") != "X" or event.get("cat") not in ("kernel", "cpu_op"):
        return None
    name, start, duration = event.get("name"), event.get("ts"), event.get("dur")
    if not isinstance(name, str) or not _number(start) or not _number(duration) or duration < 0:
        return None
    more = event.get("args")
    link = more.get("External id") if isinstance(more, dict) else None
    thread = f"{event.get('pid')}/{event.get('tid')}"
    if len(name) > LONGEST_NAME:  # C++ templates differ behind what a table has room for
        name = f"{name[:LONGEST_NAME]}… {hashlib.sha256(name.encode(errors='replace')).hexdigest()[:12]}"
    return Span(event["cat"], name, start, start + duration, thread, link if isinstance(link, int) else None)


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _kernels(spans: Iterable[Span]) -> Iterable[tuple[str, int, float]]:
    return ((span.name, 1, span.end - span.start) for span in spans if span.kind == "kernel")


def _operators(spans: Iterable[Span]) -> Iterable[tuple[str, int, float]]:
    """Yield each operator's name, 1 if no other operator calls it, else 0, and its self time: operators of a thread nest."""
    threads = defaultdict(list)
    for span in spans:
        threads[span.thread].append((span.start, -span.end, span.name))
    for calls in threads.values():
        stack: list[list[Any]] = []  # name, end, microseconds of its own, calls that count
        for start, negative, name in sorted(calls):
            end = -negative
            while stack and stack[-1][1] <= start:
                yield _ended(stack.pop())
            if stack:
                stack[-1][2] -= min(end, stack[-1][1]) - start
            stack.append([name, end, end - start, 0 if stack else 1])
        while stack:
            yield _ended(stack.pop())


def _ended(call: list[Any]) -> tuple[str, int, float]:
    return call[0], call[3], max(0.0, call[2])
