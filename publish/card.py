"""The card, README.md and README_zh.md: what a reader sees of a release, in English and in Chinese, from its record alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import prod
from statistics import median
from types import MappingProxyType
from typing import Any, Final, Literal

from release.errors import UsageError
from release.publish.conversion import conversion_of
from release.publish.licenses import license_of
from release.publish.record import FACTS
from release.templates.render import render
from release.types import JSON, PRECISIONS, family, tag_of
from release.types.performance import METRICS, TAIL

Language = Literal["en", "zh"]
TEMPLATES: Final = {"en": "cards/card.md.j2", "zh": "cards/card_zh.md.j2"}
PARTS: Final = "cards/parts.j2"
EMPTY: Final[JSON] = dict.fromkeys((*FACTS, "context", "layout", "memory")) | {
    **{name: [] for name in ("sources", "world-sizes", "features", "trials", "conflicts", "documents", "concerns")},
    **{name: {} for name in ("packages", "adapters", "files")},
    "note": "",
}
"""The plan of a record that was written before records kept one: it says nothing."""
ODD: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
UNYAML: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What YAML's printable characters leave out (YAML 1.2, 5.1), line breaks, and the byte order mark."""
LAYOUT: Final = ("tensor-parallel-size", "pipeline-parallel-size", "replicas")
EVERYWHERE: Final = "0.0.0.0"
"""What a server is told that is to listen on every address."""
HUBS: Final = {"huggingface": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}
QUANTISED: Final = tuple(name for name in PRECISIONS if name not in ("fp32", "fp16", "bf16"))
REPOSITORY: Final = re.compile("[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
FENCE: Final = re.compile("`{3,}")
FILLED: Final = re.compile(r"\$(?:SRC|DST)\b")
"""Folders that the weights stage writes into the files it gives to a tool."""
MOST_PLACES: Final = 6
SYNTAX: Final = {"yaml": "yaml", "yml": "yaml", "json": "json", "sh": "bash", "py": "python", "toml": "toml"}


def render_card(record: JSON, language: str = "en", pictures: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the card of a record as Markdown with front matter, in English (`en`) or Chinese (`zh`).

    `pictures` are those that lie beside it as pictures/NAME.svg, each with what it says in words.
    Raises UsageError for another language, TemplateError for a record that lacks something it must have in its state.
    """
    if language not in TEMPLATES:
        raise UsageError(f"there is no card in {language!r}", next_step=f"there are: {', '.join(TEMPLATES)}")
    model = record["model"]
    facts = {**EMPTY, **record.get("plan", {})}
    serve = record["serve"]
    url = f"http://127.0.0.1:{serve['port']}/v1"
    which = ["--chip", record["chip"]["id"], "--model", model["id"], "--precision", arm(record)]
    values: dict[str, Any] = {
        "record": record,
        "plan": facts,
        "built": record["state"] != "planned",
        "front": {name: json.dumps(value, ensure_ascii=False) for name, value in front_matter(record).items()},
        **_found(record),
        "pictures": pictures,
        "reported": [_as_printed(table) for table in record["reported"]],
        "embeds": model.get("kind") == "embed",
        "devices": prod(int(facts["layout"][name]) for name in LAYOUT) if facts["layout"] else 0,
        "everywhere": any(EVERYWHERE in text for text in (*map(str, serve.get("argv", ())), *map(str, facts["files"].values()))),
        "calls": bool(serve["health"]) and (record["state"] != "planned" or bool(serve["command"])),
        "conversion": conversion_of(facts["weights"]),
        "fills": [name for name, text in facts["files"].items() if FILLED.search(str(text))],
        "on_host": bool(facts["container"]) and facts["container"]["network"] == "host",
        "url": url,
        "curl": _curl(url, record),
        "words": {
            name: literal(str(value))
            for name, value in {"url": url, "model": serve["model"], "example": model["example"]}.items()
        },
        "context": facts["context"] or model["architecture"]["context"],
        "build": ["release", "build", *which, "--until", "render"],
        "pull": ["release", "pull", *which],
        "folder": f"pulled/{record['chip']['id']}/{model['id']}/{tag_of(arm(record))}",
        "pages": _pages(model.get("checkpoint") or {}),
        "wheels": sorted(
            [*(record["pins"]["wheels"] or ()), *(record["pins"]["sources"] or ())], key=lambda wheel: str(wheel["name"])
        ),
        "unknown_facts": list(
            _unknown(
                {name: facts[name] for name in ("base", "sources", "weights", "device", "packages")}
                | {"checkpoint": model.get("checkpoint"), "host": record["chip"].get("host")}
            )
        ),
        "files": [(name, text, SYNTAX.get(name.rpartition(".")[2], "text")) for name, text in facts["files"].items()],
        "download": _download(model.get("checkpoint") or {}, facts["weights"]),
    }
    return tidy(render(TEMPLATES[language], values))


def _found(record: JSON) -> JSON:
    """Return what was found about a release, as its card tells it: verdicts by kind, waivers, loads, and the decision over all sets."""
    verdicts = record["verdicts"]
    checks = [verdict for verdict in verdicts if family(verdict["name"]) == "conformance"]
    return {
        "accuracy": next((verdict for verdict in verdicts if verdict["name"] == "accuracy"), None),
        "checks": checks,
        "layers": [verdict for verdict in verdicts if family(verdict["name"]) == "consistency"],
        "waivers": record.get("waivers") or [],
        "loads": loads_of(record.get("performance")),
        "further": [verdict for verdict in verdicts if verdict["name"].startswith("accuracy/")],
        "settlement": record.get("settlement"),
        "judged": [verdict for verdict in verdicts if family(verdict["name"]) in ("performance", "operators")],
        "coverage": record.get("coverage"),
        "passed": sum(verdict["status"] == "PASSED" for verdict in checks),
    }


def loads_of(performance: JSON | None) -> list[JSON]:
    """Return each measured load as a row of text: medians of the repeats, the span of the throughput, and no tail of too few requests."""
    rows = []
    for point in (performance or {}).get("points", ()):
        runs = point["runs"]
        rates = sorted(run["output-tokens-per-second"] for run in runs)
        row = {
            "load": f"{point['input-tokens']} + {point['output-tokens']}",
            "concurrency": str(point["concurrency"]),
            "rate": f"{median(rates):.0f} [{rates[0]:.0f}, {rates[-1]:.0f}]",
            "requests": f"{median(run['requests-per-second'] for run in runs):.2f}",
            "failed": f"{sum(run['failed'] for run in runs)} of {sum(run['failed'] + run['completed'] for run in runs)}",
            "goodput": f"{median(run['goodput'] for run in runs):.2f}"
            if all(run["goodput"] is not None for run in runs)
            else "–",
        }
        tail = min(run["completed"] for run in runs) >= TAIL
        for metric in METRICS:
            known = [run[metric] for run in runs if run[metric]]
            ranks = ["p50", "p90", *(["p99"] if tail else [])]
            row[metric] = " / ".join(
                f"{median(run[rank] for run in known):.1f}"
                for rank in ranks
                if known and all(run[rank] is not None for run in known)
            )
        rows.append({"tail": tail, **row})
    return rows


def arm(record: JSON) -> str:
    """Return precision and variant as the command line takes them: `bf16`, `bf16~native`."""
    return str(record["precision"]) + (f"~{record['variant']}" if record["variant"] else "")


def front_matter(record: JSON) -> JSON:
    """Return the metadata block that model hubs read (Hugging Face model card metadata)."""
    model = record["model"]
    hub = (model.get("checkpoint") or {}).get("hub")
    base = {"base_model": hub["repository"]} if hub else {}
    if hub and record["precision"] in QUANTISED and record["precision"] != model.get("precision"):
        base["base_model_relation"] = "quantized"  # hubs have no word for the same weights on another chip
    found = {
        **license_of(model),
        "language": list(model["languages"]),
        "pipeline_tag": "feature-extraction" if model.get("kind") == "embed" else "text-generation",
        "library_name": record["engine"],
        **base,
        "tags": [f"chip:{record['chip']['id']}", f"precision:{record['precision']}", f"state:{record['state']}"],
    }
    clean: JSON = _printable(found)
    return clean


def tidy(text: str) -> str:
    """Return Markdown with one blank line where there were several; fenced blocks stay as they are."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif match := FENCE.match(line):
            fence = match[0]
        elif not line and lines and not lines[-1]:
            continue
        lines.append(line)
    return "\n".join(lines).rstrip("\n") + "\n"


def literal(text: str) -> str:
    """Return a text as a literal that is one and the same in JSON and in Python, on one line."""
    return ODD.sub(lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(text, ensure_ascii=False))


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _printable(item) for name, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else UNYAML.sub(" ", str(value))


def _curl(url: str, record: JSON) -> list[str]:
    """Return the call of the served model as an argv."""
    model, example = literal(str(record["serve"]["model"])), literal(str(record["model"]["example"]))
    if record["model"].get("kind") == "embed":
        return [
            "curl",
            f"{url}/embeddings",
            "--header",
            "Content-Type: application/json",
            "--data",
            f'{{"model": {model}, "input": {example}}}',
        ]
    data = f'{{"model": {model}, "messages": [{{"role": "user", "content": {example}}}]}}'
    return ["curl", f"{url}/chat/completions", "--header", "Content-Type: application/json", "--data", data]


def _as_printed(table: JSON) -> JSON:
    """Return a reported table with its figures as its source printed them: every row with as many places as the longest has."""
    figures = [Decimal(repr(score[side])).normalize() for score in table["scores"] for side in ("reference", "candidate")]
    places = min(MOST_PLACES, max([2, *(-int(figure.as_tuple().exponent) for figure in figures if figure.is_finite())]))
    rows = [{**score, **{side: f"{score[side]:.{places}f}" for side in ("reference", "candidate")}} for score in table["scores"]]
    return {**table, "scores": rows, "units": sorted({score["unit"] for score in table["scores"]})}


def _unknown(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield where something is unknown, and the reason that stands there."""
    if isinstance(value, dict):
        if value.keys() == {"unknown"}:
            yield place, value["unknown"]
            return
        for name, item in value.items():
            yield from _unknown(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            name = item.get("name", number) if isinstance(item, dict) else number
            yield from _unknown(item, f"{place}.{name}")


def _pages(checkpoint: JSON) -> list[str]:
    """Return the pages of the upstream weights on the hubs that have them."""
    hub = checkpoint.get("hub")
    if not hub or not REPOSITORY.fullmatch(hub["repository"]):
        return []
    return [HUBS[site] + hub["repository"] for site in hub["sites"] if site in HUBS]


def _download(checkpoint: JSON, recipe: JSON | None) -> list[str] | None:
    """Return the command that brings the upstream weights at their revision, or None where no command could name one."""
    hub = checkpoint.get("hub")
    if not hub or not isinstance(hub["revision"], str):
        return None
    folder = "upstream" if recipe else "weights"
    if hub["sites"][0] == "modelscope":
        return ["modelscope", "download", "--model", hub["repository"], "--revision", hub["revision"], "--local_dir", folder]
    return ["hf", "download", hub["repository"], "--revision", hub["revision"], "--local-dir", folder]
