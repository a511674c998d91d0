"""What is printed and drawn of a bench: a line for each case, families, ceilings, every gap with its reason, and the roofline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from release.bench import MEASURED, OURS, ceilings_of, contender, document, is_ours
from release.publish.pictures import SCHEMA, STYLE, WIDTH
from release.show.text import MARKS, counted, table, text
from release.types import JSON

if TYPE_CHECKING:
    from release.bench import Bench

OF_TORCH: Final = ("scaled_mm", "grouped_mm", "varlen_attn", "gathered")
"""Ways of torch beside eager and compiled, which share one column: the fastest stands there."""
NONE: Final = "–"
WAITS: Final = "*"
MARKED: Final = (
    f"{WAITS} holds time in which the device waited for the host, or the call for the device; all other times are the device's alone.\n"
    "host µs: the host's time to issue one call of ours. Where that is longer, an engine that issues call by call waits for the host."
)


def benched(found: Bench) -> str:
    """Return a bench as tables; what was not measured stands below with its reason, and has no number."""
    if found.missing:
        return text(f"{MARKS['SKIPPED']}  every operator  nothing was timed: {found.missing}")
    made = document(found)
    parts: list[object] = []
    timed = [case for case in made["cases"] if case["status"] == MEASURED]
    if timed:
        parts.append(_cases(timed))
        parts.append(MARKED)
        parts.append(_families(made["families"]))
    parts.append(_ceilings(made["ceilings"]))
    if gaps := _gaps(made["cases"]):
        parts.append(gaps)
    parts.append(_where(found))
    return text(*parts)


def _cases(cases: list[JSON]) -> Table:
    rows = []
    for case in cases:
        ours = contender(case, OURS) or {}
        torch_own = [row for name in OF_TORCH if (row := contender(case, name)) and row["median"] is not None]
        own = min(torch_own, key=lambda row: float(row["median"]), default=None)
        peers = (contender(case, "eager"), contender(case, "compiled"), own, contender(case, "flaggems"))
        rows.append(
            (
                *(case["operator"], case["dtype"], case["case"], _time(ours), _share(ours["spread"]), _host(ours)),
                *(_number(ours["gigabytes_per_second"]), _number(ours["teraflops"]), _share(ours["share_of_bound"])),
                *map(_time, peers),
                case["best_peer"] or NONE,
                f"{_number(case['ratio'], 2)}{WAITS if case['host_bound'] else ''}",
                f"{case['best_tried']['configuration']}: {_number(case['best_tried']['seconds'] * 1e6)} µs"
                if case["best_tried"]
                else NONE,
            )
        )
    return table(
        *("operator", "dtype", "case", "ours µs", "rounds apart", "host µs", "GB/s", "TFLOP/s", "of bound"),
        *("eager µs", "compiled µs", "torch's own µs", "FlagGems µs", "best peer", "peer ÷ ours", "best tried"),
        rows=rows,
    )


def _families(families: list[JSON]) -> Table:
    rows = [
        (
            *(family["family"], family["dtype"], _number(family["ratio"], 2), f"{family['cases']} of {family['of']}"),
            *(str(family["host_bound"]), _share(family["least_share_of_bound"])),
        )
        for family in families
    ]
    heads = ("family", "dtype", "best peer ÷ ours, geometric mean", "cases", f"of them {WAITS}", "least of bound")
    return table(*heads, rows=rows)


def _ceilings(ceilings: JSON) -> Table:
    rows = []
    copy = ceilings["copy"] or {}
    rows.append(("copy", _unit(copy.get("gigabytes_per_second"), "GB/s"), _share(copy.get("spread")), copy.get("why") or ""))
    for name, one in ceilings["matmul"].items():
        rows.append((f"matmul {name}", _unit(one["teraflops"], "TFLOP/s"), _share(one["spread"]), one["why"] or ""))
    return table("ceiling", "measured", "rounds apart", "reason", rows=rows)


def _gaps(cases: list[JSON]) -> Table | None:
    """Return what has no figure, once for each reason."""
    counts: dict[tuple[str, str, str, str], int] = {}
    for case in cases:
        if not case["contenders"]:
            key = (case["status"], case["operator"], "all", case["why"] or "")
            counts[key] = counts.get(key, 0) + 1
        for row in case["contenders"]:
            if row["status"] != MEASURED:
                key = (row["status"], case["operator"], row["name"], row["why"] or "")
                counts[key] = counts.get(key, 0) + 1
    if not counts:
        return None
    return table(
        *("not timed", "operator", "way", "cases", "reason"),
        rows=[(status, operator, way, str(count), why) for (status, operator, way, why), count in counts.items()],
    )


def _where(found: Bench) -> str:
    machine = found.machine
    if not machine:
        return "nothing ran"
    versions = ", ".join(f"{name} {machine.get(name) or 'none'}" for name in ("driver", "torch", "triton", "flag-gems"))
    device = f"{machine['device']} ({found.chip}: {machine.get('known_as')})"
    cache = f"a cache of {machine['cache_bytes'] / 2**20:.0f} MiB{' (assumed)' if machine.get('cache_assumed') else ''}"
    lines = (
        f"{counted(found.measured, 'case')} of {found.model} timed on {device}, {versions}, {machine.get('runtime') or 'no runtime'}",
        f"by {machine['clock']}, medians of two rounds in turns, inputs rotating over {cache}",
    )
    return "\n".join(lines)


def _time(row: Any) -> str:
    return f"{_number(row['median'] * 1e6)}{WAITS if row['waits'] else ''}" if row and row["median"] is not None else NONE


def _host(row: Any) -> str:
    return NONE if row["host"] is None else _number(row["host"] * 1e6)


def _number(value: float | None, places: int = 1) -> str:
    return NONE if value is None else f"{value:.{places}f}" if value >= 0.1 else f"{value:.2g}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _unit(value: float | None, unit: str) -> str:
    return NONE if value is None else f"{_number(value)} {unit}"


def roofline(found: Bench) -> JSON | None:
    """Return the picture of a bench in Vega-Lite: every case by its operations a byte and a second, below the measured ceilings.

    None where there is no case with both, or no ceiling to draw. Configurations that were only tried are left out.
    """
    copy, rates = ceilings_of(found)
    points = [
        {
            "intensity": case["intensity"],
            "rate": row["teraflops"],
            "way": row["name"],
            "case": f"{case['operator']} {case['case']}",
        }
        for case in document(found)["cases"]
        for row in case["contenders"]
        if case["intensity"] and row["teraflops"] and (row["name"] == OURS or not is_ours(row["name"]))
    ]
    if not points or copy is None:
        return None
    low, high, roofs = _roofs(points, copy, rates)
    machine = found.machine
    said = f"{len(points)} figures of {found.model} on {machine['device']}, by {machine['clock']}; copy {copy:.0f} GB/s"
    x: JSON = {
        "field": "intensity",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high]},
        "title": "operations a byte",
    }
    y: JSON = {"field": "rate", "type": "quantitative", "scale": {"type": "log"}, "title": "TFLOP/s"}
    return {
        "$schema": SCHEMA,
        **STYLE,
        "description": f"Roofline: {said}; {', '.join(f'{name} {rate:.1f} TFLOP/s' for name, rate in rates.items())}",
        "title": {"text": f"Roofline: {found.model}", "subtitle": said},
        "width": WIDTH,
        "height": 320,
        "layer": [
            {
                "data": {"values": roofs},
                "mark": {"type": "line", "color": "#57606a"},
                "encoding": {"x": x, "y": y, "strokeDash": {"field": "ceiling", "type": "nominal", "title": "ceiling"}},
            },
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "opacity": 0.7, "size": 36},
                "encoding": {
                    **{"x": x, "y": y},
                    "color": {"field": "way", "type": "nominal", "title": "way"},
                    "shape": {"field": "way", "type": "nominal", "title": "way"},
                },
            },
        ],
    }


def _roofs(points: list[JSON], copy: float, rates: dict[str, float]) -> tuple[float, float, list[JSON]]:
    """Return the powers of ten between which all lies, and the corners of each ceiling: up with the bandwidth, then level."""
    reached = [float(point["intensity"]) for point in points]
    knees = [rate * 1e3 / copy for rate in rates.values()]
    low, high = 10.0 ** math.floor(math.log10(min(reached))), 10.0 ** math.ceil(math.log10(max([*reached, *knees])))
    roofs: list[JSON] = []
    for name, rate in rates.items() or {"": math.inf}.items():
        for intensity in [x for x in (low, rate * 1e3 / copy, high) if low <= x <= high]:
            label = f"matmul {name}" if name else "copy"
            roofs.append({"intensity": intensity, "rate": min(copy * intensity / 1e3, rate), "ceiling": label})
    return low, high, roofs
