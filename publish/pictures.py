"""Pictures of a record, as Vega-Lite says them: the forest of differences, how far tokens are apart, throughput against latency.

`pictures_of` is data from data; `draw` needs the extra `report` (vl-convert, which carries its own Vega and asks nobody).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any, Final

from release.errors import TemplateError, UsageError
from release.types import JSON
from release.types.performance import TAIL

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v5.json"
RENDERER: Final = "vl-convert-python"
COLOURS: Final = {
    "CONSISTENT": "#1a7f37",
    "REGRESSED": "#cf222e",
    "INCONCLUSIVE": "#9a6700",
    "UNVERIFIABLE": "#6e7781",
    "reported": "#8250df",
}
"""Of a verdict: what a reader's eye goes to first. What others report is told by shape, too: hollow, and without an interval."""
LEAST: Final = 1e-9
"""Nats below which a divergence is drawn: a logarithm has no zero."""
RANKS: Final = ("p50", "p90", "p99", "p99.9", "max")
WIDTH: Final = 460
PAINT: Final = re.compile(rb'( (?:fill|stroke)=")([a-z]+|#[0-9a-f]{3,6})(?=")"')
DARK: Final = {
    **{b"white": b"#151b23", b"black": b"#e6edf3", b"#000": b"#e6edf3", b"#888": b"#9da7b3", b"#e6e8eb": b"#2b323b"},
    **{b"#57606a": b"#9da7b3", b"#6e7781": b"#9da7b3", b"#0969da": b"#79b8ff", b"#cf222e": b"#ff8e85"},
    **{b"#1a7f37": b"#6fdd8b", b"#9a6700": b"#f2cc60", b"#8250df": b"#cbb2ff"},
}
"""What each colour of a picture becomes on a dark page."""
STYLE: Final[JSON] = {
    "background": "white",
    "config": {
        "font": "Helvetica, Arial, sans-serif",
        "axis": {"labelFontSize": 12, "titleFontSize": 12, "labelLimit": 260, "gridColor": "#e6e8eb"},
        "title": {"fontSize": 14, "anchor": "start", "subtitleFontSize": 12, "subtitleColor": "#57606a"},
        "view": {"stroke": None},
    },
}


def renderer() -> str | None:
    """Return name and version of what draws, None where the extra is not installed."""
    try:
        return f"{RENDERER} {version(RENDERER)}"
    except PackageNotFoundError:
        return None


def pictures_of(record: JSON) -> dict[str, JSON]:
    """Return the pictures that a record has figures for: a Vega-Lite specification by name, each with its `description` in words."""
    made = {"forest": forest(record), "divergence": divergence(record), "throughput": throughput(record)}
    return {name: {"$schema": SCHEMA, **STYLE, **spec} for name, spec in made.items() if spec}


def draw(specs: Mapping[str, JSON], kind: str = "svg") -> dict[str, bytes]:
    """Return each picture as SVG or PNG. Raises UsageError without the extra `report`, TemplateError."""
    try:
        import vl_convert
    except ImportError as problem:
        raise UsageError("pictures need the extra `report`", next_step="pip install 'release[report]'") from problem
    found = {}
    for name, spec in specs.items():
        try:
            text = json.dumps(spec)
            found[name] = (
                vl_convert.vegalite_to_svg(text).encode() if kind == "svg" else vl_convert.vegalite_to_png(text, scale=2)
            )
        except ValueError as problem:
            raise TemplateError(f"picture {name} cannot be drawn: {problem!s:.300}") from problem
    return found


def night(svg: bytes) -> bytes:
    """Return a picture for a dark page: the same drawing in other colours."""
    return PAINT.sub(lambda found: found[1] + DARK.get(found[2], found[2]) + b'"', svg)


def forest(record: JSON) -> JSON | None:
    """Return the differences candidate − reference in points: what was measured with its intervals and margin, and what is reported."""
    rows = [*_measured(record), *_reported(record)]
    if not rows:
        return None
    y = {"field": "what", "type": "nominal", "sort": None, "title": None}
    colour = {
        "field": "finding",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(COLOURS), "range": list(COLOURS.values())},
        "legend": None,
    }

    def across(field: str, title: str | None = None) -> JSON:
        return {"field": field, "type": "quantitative", "title": title}

    title = "points, candidate − reference"
    measured = {"filter": "datum.low90 != null"}
    words = "; ".join(f"{row['what']}: {row['delta']:+.2f} points, {row['finding']}" for row in rows)
    return {
        "description": f"Differences candidate minus reference. {words}",
        "title": {
            "text": "Answers: candidate − reference",
            "subtitle": "thick 90 %, thin 95 % interval; the bar is the margin; hollow: reported by others, with no n",
        },
        "width": WIDTH,
        "height": {"step": 30},
        "data": {"values": rows},
        "layer": [
            {"mark": {"type": "rule", "color": "#57606a"}, "encoding": {"x": {"datum": 0}}},
            {
                "transform": [measured],
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"y": y, "x": across("low95", title), "x2": {"field": "high95"}, "color": colour},
            },
            {
                "transform": [measured],
                "mark": {"type": "rule", "strokeWidth": 5},
                "encoding": {"y": y, "x": across("low90", title), "x2": {"field": "high90"}, "color": colour},
            },
            {
                "transform": [measured],
                "mark": {"type": "tick", "color": "#cf222e", "thickness": 2, "size": 20},
                "encoding": {"y": y, "x": across("margin", title)},
            },
            {
                "mark": {"type": "point", "size": 80, "opacity": 1, "fill": "white", "strokeWidth": 2},
                "encoding": {"y": y, "x": across("delta", title), "color": colour},
            },
        ],
    }


def _measured(record: JSON) -> Iterator[JSON]:
    for verdict in record["verdicts"]:
        figures = verdict["figures"]
        if verdict["name"].partition("/")[0] == "accuracy" and figures.get("delta") is not None and figures.get("interval"):
            wide = figures.get("interval-95") or figures["interval"]
            yield {
                "what": figures.get("benchmark") or "question set",
                "finding": str(figures.get("finding")),
                "delta": 100 * figures["delta"],
                "margin": -100 * figures["margin"],
                **dict(zip(("low90", "high90"), (100 * end for end in figures["interval"]), strict=True)),
                **dict(zip(("low95", "high95"), (100 * end for end in wide), strict=True)),
            }


def _reported(record: JSON) -> Iterator[JSON]:
    for table in record["reported"]:
        for score in table["scores"]:
            scale = 100 if score["unit"] == "share" else 1
            delta = scale * (score["candidate"] - score["reference"])
            empty = dict.fromkeys(("margin", "low90", "high90", "low95", "high95"))
            yield {"what": f"{score['benchmark']} (reported)", "finding": "reported", "delta": round(delta, 6), **empty}


def divergence(record: JSON) -> JSON | None:
    """Return the quantiles of the divergence a token, in nats, with the limit of its mean."""
    layers = (record.get("consistency") or {}).get("verdicts", ())
    figures = next((one["figures"]["kl"] for one in layers if one["name"] == "scoring" and "kl" in one["figures"]), None)
    if figures is None:
        return None
    rows = [{"rank": rank, "kl": max(figures[rank], LEAST)} for rank in RANKS if rank in figures]
    mean, limit = max(figures["mean"], LEAST), figures["limit"]
    x = {"field": "kl", "type": "quantitative", "scale": {"type": "log"}, "title": "nats a token", "axis": {"format": ".0e"}}
    said = ", ".join(f"{row['rank']} {row['kl']:.2g}" for row in rows)
    return {
        "description": f"Divergence from the reference, nats a token: mean {mean:.2g}, limit of the mean {limit:.2g}, {said}.",
        "title": {
            "text": "Tokens: divergence from the reference",
            "subtitle": f"quantiles over all scored tokens; the mean is {mean:.2g}, and may be {limit:.2g} (red)",
        },
        "width": WIDTH,
        "height": {"step": 26},
        "layer": [
            {
                "data": {"values": rows},
                "mark": {"type": "point", "filled": True, "size": 90, "color": "#0969da"},
                "encoding": {"y": {"field": "rank", "type": "nominal", "sort": None, "title": None}, "x": x},
            },
            {
                "data": {"values": [{"kl": limit}]},
                "mark": {"type": "rule", "color": "#cf222e", "strokeWidth": 2},
                "encoding": {"x": x},
            },
            {
                "data": {"values": [{"kl": mean}]},
                "mark": {"type": "rule", "color": "#0969da", "strokeDash": [4, 3]},
                "encoding": {"x": x},
            },
        ],
    }


def throughput(record: JSON) -> JSON | None:
    """Return output tokens a second against the time to first token, a point a load: the 99th percentile where runs have requests enough."""
    performance = record.get("performance")
    if not performance:
        return None
    points = performance["points"]
    least = min(run["completed"] for point in points for run in point["runs"])
    rank = "p99" if least >= TAIL else "p90"
    rows = [
        {
            "load": f"{point['input-tokens']}+{point['output-tokens']} × {point['concurrency']}",
            "ttft": median(run["ttft"][rank] for run in point["runs"]),
            "rate": median(run["output-tokens-per-second"] for run in point["runs"]),
        }
        for point in points
        if all(run["ttft"] and run["ttft"][rank] is not None for run in point["runs"])
    ]
    if not rows:
        return None
    x = {"field": "ttft", "type": "quantitative", "title": f"time to first token, {rank}, ms", "scale": {"zero": True}}
    y = {"field": "rate", "type": "quantitative", "title": "output tokens a second", "scale": {"zero": True}}
    layers: list[JSON] = [
        {"mark": {"type": "point", "filled": True, "size": 90, "color": "#0969da"}, "encoding": {"x": x, "y": y}},
        {"mark": {"type": "text", "dy": -12, "fontSize": 12}, "encoding": {"x": x, "y": y, "text": {"field": "load"}}},
    ]
    if (slo := performance.get("slo")) and slo.get("ttft"):
        rule = {"type": "rule", "color": "#cf222e", "strokeDash": [6, 3]}
        layers.append({"data": {"values": [{"ttft": slo["ttft"]}]}, "mark": rule, "encoding": {"x": x}})
    said = "; ".join(f"{row['load']}: {row['rate']:.0f} tokens a second, {row['ttft']:.1f} ms" for row in rows)
    return {
        "description": f"Throughput against the time to first token ({rank}). {said}",
        "title": {"text": "Speed: throughput against latency", "subtitle": "medians of the repeats; red: the service level"},
        "width": WIDTH,
        "height": 240,
        "data": {"values": rows},
        "layer": layers,
    }


def facts_of(specs: Mapping[str, JSON]) -> dict[str, Any]:
    """Return each picture's name with what it says in words, for readers who do not see it."""
    return {name: spec["description"] for name, spec in specs.items()}
