"""The time of the kernels of a model on the device that is here: what the room measured, and what that comes to beside peers and ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from release.hardware import known_as, probe
from release.kernels import figures
from release.operators import DTYPES, ROOM, answers_of, facts_of
from release.types import JSON, Chip, Model

OURS: Final = "ours"
MEASURED: Final = "MEASURED"
UNITS: Final[JSON] = {
    "seconds": "median of the calls of a round, each with a cold cache, by the device's own events; one figure a round",
    "host": "seconds in which the host issues one call; longer than the call takes, and an engine that issues call by call waits for it",
    "waits": "the host, or a wait for the device in the call itself, took longer than the device was kept busy: seconds hold time of the host",
    "host_bound": "ours or the best peer waits, so that their ratio holds time of the host",
    "spread": "how far the rounds lie apart, as a share of their median",
    "gigabytes_per_second": "10⁹ bytes a second, of the bytes that must be read and written at least",
    "teraflops": "10¹² operations a second, a multiply-add as two",
    "share_of_bound": "the least time that the ceilings allow, by the time it took",
    "ratio": "the fastest peer's time by ours: above 1 ours is faster",
}


@dataclass(frozen=True)
class Bench:
    """What a bench found: machine and ceilings as the room saw them, a line for each case, or why there are none."""

    chip: str
    model: str
    machine: JSON
    ceilings: JSON
    lines: tuple[JSON, ...]
    missing: str = ""

    @property
    def measured(self) -> int:
        """Return in how many cases there is a figure of ours."""
        return len([contender for contender in self._ours() if contender["status"] == MEASURED])

    @property
    def failed(self) -> int:
        """Return how many cases failed: ours did, or ended the process, or gave another result with a configuration that was tried."""
        ended = [line for line in self.lines if line.get("status") == "FAILED"]
        rows = (contender for line in self.lines for contender in line["contenders"] if is_ours(contender["name"]))
        return len(ended) + len([row for row in rows if row["status"] == "FAILED"])

    def _ours(self) -> Iterable[JSON]:
        return (contender for line in self.lines for contender in line["contenders"] if contender["name"] == OURS)


def bench(
    chip: Chip,
    model: Model,
    operators: Sequence[str] = (),
    dtypes: Sequence[str] = ("bf16",),
    *,
    trying: bool = False,
    keep: Path | None = None,
    room: Path = ROOM,
) -> Bench:
    """Time operators (all, where none is named) at a model's shapes on the device that is here; where none is, nothing is timed.

    Nor is anything on a device that the matrix does not know as one of the chip. `trying` times ours with every configuration worth it,
    too; `keep` is the file that gets each line as soon as it is known. Dtypes that the chip does not compute in are skipped with that
    reason.
    """
    known = [name for name in dtypes if name in chip.dtypes]
    unknown = tuple(_unsupported(chip.id, name) for name in dtypes if name not in chip.dtypes)
    request = {
        "chip": chip.id,
        "facts": asdict(facts_of(model)),
        "operators": list(operators),
        "dtypes": [DTYPES[name] for name in known],
        "trying": trying,
    }
    if not known:
        return Bench(chip.id, model.id, {}, {}, (), "; ".join(line["why"] for line in unknown))
    seen = read(chip.id, model.id, answers_of("bench", {**request, "looking": True}, room))
    if seen.missing:
        return seen
    host = host_of(chip, seen.machine)
    if host["known_as"] is None:
        why = f"{seen.machine['device']} is none of the devices that the matrix names of {chip.id} ({', '.join(chip.devices) or 'none'})"
        return Bench(chip.id, model.id, {}, {}, (), why)
    found = read(chip.id, model.id, answers_of("bench", request, room, keep=keep))
    return Bench(found.chip, found.model, {**found.machine, **host}, found.ceilings, unknown + found.lines, found.missing)


def read(chip: str, model: str, lines: Iterable[JSON]) -> Bench:
    """Return what the lines of the room come to; what ended its process has failed, and stands there with why."""
    machine: JSON = {}
    ceilings: JSON = {}
    found: list[JSON] = []
    planned: dict[tuple[str, str, str], JSON] = {}
    for line in lines:
        if "missing" in line:
            return Bench(chip, model, {}, {}, (), line["missing"])
        machine = line.get("machine", machine)
        planned |= {_place(one): one for one in line.get("planned", ())}
        if "ceilings" in line:
            seen = line["ceilings"]
            products = {name: _passed(one) for name, one in seen.get("matmul", {}).items()}
            ceilings = (
                {**seen, "copy": _passed(seen["copy"]), "matmul": products} if "copy" in seen else {**seen, "matmul": products}
            )
        if "result" in line:
            planned.pop(_place(line["result"]), None)
            found.append({**line["result"], "contenders": [_passed(row) for row in line["result"]["contenders"]]})
        if "ended" in line:
            operator, case, dtype = line["ended"]
            one = {"operator": operator, "case": case, "dtype": dtype, "contenders": []}
            own = planned.pop(_place(one), {})
            found.append({**own, **one, "status": "FAILED", "why": f"the process ended: {line['why']}"})
    lost = "not timed: the process ended within an earlier case of the operator"
    return Bench(chip, model, machine, ceilings, (*found, *({**one, "contenders": [], "why": lost} for one in planned.values())))


def _place(line: JSON) -> tuple[str, str, str]:
    return line["operator"], line["case"], line["dtype"]


def _passed(timed: JSON) -> JSON:
    """Return what was timed, without a figure and with the reason where the clock saw no time pass in a round."""
    if all(0 < seconds < math.inf for seconds in timed["seconds"]):
        return timed
    why = f"the clock saw no time pass in a round: its seconds are {', '.join(map(str, timed['seconds']))}"
    return {**timed, "seconds": [], "why": why, **({"status": "SKIPPED"} if "status" in timed else {})}


def host_of(chip: Chip, machine: JSON) -> JSON:
    """Return the driver that the chip's own tool names, and as which device of the chip the matrix knows what is here; None if unknown."""
    seen = probe(chip.host.tool) if chip.host.tool else None
    return {"driver": seen.driver if seen else None, "known_as": known_as(str(machine["device"]), chip.devices)}


def _unsupported(chip: str, dtype: str) -> JSON:
    why = f"{chip} does not compute in {dtype}"
    return {"operator": "all", "case": "", "dtype": DTYPES.get(dtype, dtype), "contenders": [], "why": why}


def document(found: Bench) -> JSON:
    """Return a bench as JSON: every figure with what it rests on, and every gap with its reason."""
    copy, rates = ceilings_of(found)
    cases = [case_of(line, copy, rates.get(line.get("computes", ""))) for line in found.lines]
    return {
        "chip": found.chip,
        "model": found.model,
        "missing": found.missing or None,
        "machine": found.machine,
        "units": UNITS,
        "ceilings": {
            "copy": _ceiling(found.ceilings.get("copy"), "gigabytes_per_second", copy),
            "matmul": {
                name: _ceiling(ceiling, "teraflops", rates.get(name))
                for name, ceiling in found.ceilings.get("matmul", {}).items()
            },
        },
        "cases": cases,
        "families": families(cases),
    }


def ceilings_of(found: Bench) -> tuple[float | None, dict[str, float]]:
    """Return the device's copy bandwidth in GB/s, if it was measured, and its products' rates in TFLOP/s by dtype, where they were."""
    copy, products = found.ceilings.get("copy", {}), found.ceilings.get("matmul", {})
    gigabytes = figures.bandwidth(copy["moved"], median(copy["seconds"])) if copy.get("seconds") else None
    rates = {name: figures.rate(one["flops"], median(one["seconds"])) for name, one in products.items() if one["seconds"]}
    return gigabytes, rates


def _ceiling(seen: JSON | None, unit: str, value: float | None) -> JSON | None:
    if seen is None:
        return None
    spread = figures.spread(seen["seconds"]) if seen["seconds"] else None
    return {unit: value, "seconds": seen["seconds"], "spread": spread, "why": seen["why"] or None}


def case_of(line: JSON, copy: float | None, rate: float | None) -> JSON:
    """Return one case with all that its seconds come to. `copy` is the ceiling in GB/s, `rate` in TFLOP/s of the dtype it multiplies in.

    Without a rate nothing bounds what is not bound by memory.
    """
    moved, flops = line.get("moved", 0), line.get("flops", 0)
    bounded = copy is not None and (rate is not None or line.get("memory_bound", False))
    bound = figures.bound(moved, flops, copy, rate) if copy is not None and bounded else None
    rows = [_contender(contender, moved, flops, bound) for contender in line["contenders"]]
    own = next((row for row in rows if row["name"] == OURS), {"status": "SKIPPED", "why": None})
    times = {row["name"]: row["median"] for row in rows if row["median"] is not None}
    ours = times.pop(OURS, None)
    peer = figures.best({name: seconds for name, seconds in times.items() if not is_ours(name)})
    tried = figures.best({name: seconds for name, seconds in times.items() if is_ours(name)})
    return {
        **{
            name: line.get(name)
            for name in ("operator", "family", "case", "rows", "dtype", "computes", "memory_bound", "copies", "compared")
        },
        "status": line.get("status") or own["status"],
        "why": line.get("why") or own["why"],
        "bytes": moved,
        "operations": flops,
        "intensity": figures.intensity(moved, flops),
        "bound_seconds": bound,
        "contenders": rows,
        "best_peer": peer[0] if peer else None,
        "ratio": peer[1] / ours if peer and ours is not None else None,
        "host_bound": any(row["waits"] for row in rows if row["name"] in (OURS, peer[0] if peer else OURS)),
        "best_tried": {"configuration": tried[0].removeprefix(OURS).strip(), "seconds": tried[1]} if tried else None,
    }


def _contender(seen: JSON, moved: int, flops: int, bound: float | None) -> JSON:
    seconds = seen["seconds"] if seen["status"] == MEASURED else []
    middle = median(seconds) if seconds else None
    return {
        "name": seen["name"],
        "status": seen["status"],
        "why": seen["why"] or None,
        "seconds": seconds,
        "median": middle,
        "spread": figures.spread(seconds) if seconds else None,
        "host": seen.get("host"),
        "waits": bool(seen.get("waits")),
        "gigabytes_per_second": figures.bandwidth(moved, middle) if middle and moved else None,
        "teraflops": figures.rate(flops, middle) if middle and flops else None,
        "share_of_bound": bound / middle if middle and bound else None,
    }


def families(cases: Sequence[JSON]) -> list[JSON]:
    """Return of each family in each dtype the geometric mean of the ratios to the best peer, of how many of its cases, and the rest.

    Cases without a figure of ours and of a peer are in `of` and in no mean, whatever lost them; `host_bound` counts those in the mean
    whose ratio holds time of the host.
    """
    names = dict.fromkeys((case["family"], case["dtype"]) for case in cases if case["family"] and case["case"])
    found: list[JSON] = []
    for family, dtype in names:
        own = [case for case in cases if (case["family"], case["dtype"]) == (family, dtype) and case["case"]]
        timed = [case for case in own if case["ratio"] is not None]
        shares = [row["share_of_bound"] for case in own for row in case["contenders"] if row["name"] == OURS]
        known = [share for share in shares if share is not None]
        found.append(
            {
                "family": family,
                "dtype": dtype,
                "ratio": figures.geometric_mean([case["ratio"] for case in timed]) if timed else None,
                "cases": len(timed),
                "of": len(own),
                "host_bound": len([case for case in timed if case["host_bound"]]),
                "least_share_of_bound": min(known, default=None),
            }
        )
    return found


def is_ours(name: str) -> bool:
    """Say whether a contender is ours, with the configuration that holds or with one that is tried; the latter are no peers."""
    return name.split(" ", 1)[0] == OURS


def contender(case: JSON, name: str) -> dict[str, Any] | None:
    """Return a contender of a case by its name."""
    return next((row for row in case["contenders"] if row["name"] == name), None)
