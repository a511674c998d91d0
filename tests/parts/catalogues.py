"""Records of many invented releases in every state that a release can have, as a registry or a folder would hold them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

from plans import plan
from records import digest, record, unbuilt

from release.oci import canonical, sha256
from release.publish.catalogue import Found
from release.types import JSON

CHIPS: Final = {
    "abacus": {"id": "abacus", "name": "Abacus 9", "vendor": "Invented", "architecture": "arm64"},
    "quipu-2": {"id": "quipu-2", "name": "Quipu 2", "vendor": "Knots & Cords", "architecture": "amd64"},
    "slide-rule": {"id": "slide-rule", "name": "Slide Rule XL", "vendor": "Logarithmic", "architecture": "amd64"},
    "yupana": {"id": "yupana", "name": "Yupana Duo", "vendor": "Knots & Cords", "architecture": "amd64"},
}
MODELS: Final = {
    "boulder-235b": ("Boulder 235B A22B", "boulder", "Quarry"),
    "gravel-32b": ("Gravel 32B", "gravel", "Quarry"),
    "pebble-7b": ("Pebble 7B", "pebble", "Invented"),
    "sand-0.5b": ("Sand 0.5B Instruct", "sand", "Beach"),
}
KL: Final = {"mean": 1.8e-4, "p50": 0.0, "p90": 1.7e-4, "p99": 3.2e-3, "p99.9": 0.02, "max": 0.13, "limit": 0.002, "floor": 0.0}
LATENCY: Final = {"mean": 41.0, "p50": 40.0, "p90": 60.0, "p99": 80.0}
WAIVER: Final = {
    **{"validator": "accuracy", "benchmark": None, "reason": "the vendor mends the kernel", "issue": "#41", "owner": "ida"},
    **{"expires": "2026-12-31", "bound": 0.03, "outcome": "applied"},
}


def built(
    chip: str,
    model: str,
    precision: str,
    *,
    day: str = "2026-11-20",
    variant: str | None = None,
    status: str = "PASSED",
    **more: Any,
) -> JSON:
    """Return the record of a release of that cell, made on that day, whose accuracy came out as `status`."""
    made = record(**{"precision": precision, "variant": variant, "created": f"{day}T12:00:00+00:00"})
    cell = f"{chip}/{model}@{precision}" + (f"~{variant}" if variant else "")
    name, family, vendor = MODELS[model]
    image = sha256(f"{cell} {day}".encode())
    made |= {
        "cell": cell,
        "chip": CHIPS[chip],
        "model": made["model"] | {"id": model, "name": name, "family": family, "vendor": vendor},
    }
    made["image"] = made["image"] | {"config": image, "manifest": made["image"]["manifest"] | {"digest": sha256(image.encode())}}
    made["reference"] = {"cell": f"{chip}/{model}@fp32", "serve": {"image": digest("f")}}
    accuracy = made["verdicts"][-1]
    finding, delta = {"PASSED": ("CONSISTENT", -0.004), "FAILED": ("REGRESSED", -0.061)}.get(status, ("INCONCLUSIVE", -0.016))
    accuracy |= {"status": status, "measured": f"{100 * delta:.2f} points"}
    ends = {"interval": [delta - 0.007, delta + 0.004], "interval-95": [delta - 0.01, delta + 0.006]}
    accuracy["figures"] = {"finding": finding, "delta": delta, "margin": 0.02, "benchmark": "counting", **ends}
    accuracy["reason"] = f"The difference is {100 * delta:.2f} points over 1000 questions."
    made["consistency"]["verdicts"] = [{"name": "scoring", "figures": {"kl": KL}}]
    made["performance"] = _performance()
    made["state"] = {"PASSED": "validated", "FAILED": "blocked"}.get(status, "built")
    return copy.deepcopy({**made, **more})  # a test that spoils one of them spoils it for itself


def _performance() -> JSON:
    run = {
        **{"seconds": 2.5, "completed": 100, "failed": 0, "requests-per-second": 40.0, "output-tokens-per-second": 2560.0},
        **{"goodput": 39.0, "ttft": LATENCY, "tpot": LATENCY, "itl": LATENCY, "e2el": LATENCY},
    }
    return {
        **{"tool": "vllm bench serve", "version": "vllm 1", "prefix-cache": "off", "slo": {"ttft": 2000.0, "tpot": None}},
        "machine": {"processor": "EPYC", "cores": 2, "device": None, "devices": None},
        "points": [
            {"input-tokens": 128, "output-tokens": 64, "concurrency": n, "requests": 100, "runs": [run] * 3} for n in (1, 8)
        ],
    }


def planned(chip: str, model: str, precision: str) -> JSON:
    """Return the record of a cell that is only planned; some of them have results that others report."""
    made = unbuilt() if model == "pebble-7b" else unbuilt(plan())
    name, family, vendor = MODELS[model]
    made |= {"cell": f"{chip}/{model}@{precision}", "chip": made["chip"] | CHIPS[chip], "precision": precision, "variant": None}
    return copy.deepcopy({**made, "model": made["model"] | {"id": model, "name": name, "family": family, "vendor": vendor}})


def records() -> list[JSON]:
    """Return the records of a catalogue with everything in it."""
    chips, waived = list(CHIPS), {"status": "SKIPPED", "waivers": [WAIVER]}
    reference = built("abacus", "pebble-7b", "fp32", day="2026-11-24")
    stale = {"reference": {"cell": "abacus/pebble-7b@fp32", "serve": {"image": digest("0")}}}
    found = [
        reference,
        built("abacus", "pebble-7b", "bf16", **stale),
        built("abacus", "pebble-7b", "bf16", variant="native", day="2026-11-25"),
        built("abacus", "pebble-7b", "bf16", day="2026-10-02", status="FAILED"),
        built("abacus", "pebble-7b", "bf16", day="2026-10-30", status="INCONCLUSIVE"),
        built("abacus", "pebble-7b", "w8a8", **waived),
        built("abacus", "gravel-32b", "bf16"),
        built("abacus", "gravel-32b", "w8a8", status="FAILED"),
        *(built("quipu-2", model, "bf16", day="2026-11-21") for model in MODELS if model != "boulder-235b"),
        built("quipu-2", "gravel-32b", "w4a16", status="INCONCLUSIVE"),
        built("quipu-2", "pebble-7b", "fp8", status="SKIPPED", waivers=[WAIVER | {"expires": "2026-11-22"}]),
        built("slide-rule", "sand-0.5b", "fp16", status="FAILED", state="validated"),
        built("yupana", "pebble-7b", "w8a8", status="INCONCLUSIVE", day="2026-11-23"),
    ]
    found += [planned(chip, "boulder-235b", precision) for chip in chips for precision in ("bf16", "w8a8")]
    return [*found, *(planned(chip, "pebble-7b", "w4a16") for chip in chips), planned("yupana", "sand-0.5b", "bf16")]


def found() -> list[Found]:
    """Return them as they are found."""
    return [Found(canonical(each)) for each in records()]


def folder(into: Path, these: list[JSON] | None = None) -> Path:
    """Lay records out below a folder, as releases lie in dist/."""
    for number, each in enumerate(these if these is not None else records()):
        path = into / str(number) / "release.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(each), encoding="utf-8")
    return into
