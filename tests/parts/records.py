"""A small record of an invented release, as `release.json` holds one."""

from __future__ import annotations

import copy
from typing import Any, Final

from plans import plan

from release.publish.record import IMAGE_WORD, plan_facts, planned
from release.types import Concern, Plan, dump


def digest(sign: str) -> str:
    return "sha256:" + sign * 64


WEIGHTS: Final = {
    "config.json": {"sha256": digest("1"), "bytes": 780},
    "model.safetensors": {"sha256": digest("2"), "bytes": 872024},
}


def _verdict(name: str, status: str, measured: str, wanted: str, **figures: object) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "measured": measured,
        "wanted": wanted,
        "reason": f"{name} was looked at.",
        "figures": figures,
    }


RECORD: Final[dict[str, Any]] = {
    "schema": "release-record/1",
    "made-by": "release 0.1.0",
    "cell": "abacus/pebble-7b@bf16~native",
    "created": "2026-11-20T12:00:00+00:00",
    "state": "validated",
    "chip": {"id": "abacus", "name": "Abacus 9", "vendor": "Invented", "architecture": "arm64"},
    "model": {
        "id": "pebble-7b",
        "name": "Pebble 7B",
        "family": "pebble",
        "vendor": "Invented",
        "license": "mit",
        "languages": ["en", "no"],
        "description": "Counts pebbles inside <think> tags.",
        "example": "How many pebbles are it's 3 & 4?",
        "precision": "fp32",
        "checkpoint": {
            "path": "checkpoints/pebble",
            "recipe": None,
            "hub": None,
            "access": None,
            "files": {"config.json": digest("9")},
        },
        "architecture": {"class": "PebbleForCausalLM", "layers": 2, "context": 64},
    },
    "precision": "bf16",
    "variant": "native",
    "engine": "vllm",
    "pins": {
        "sources": [
            {
                "name": "vllm-abacus",
                "version": "1.0",
                "file": "vllm_abacus-1.0-py3-none-any.whl",
                "sha256": digest("3"),
                "upstream-sha256": digest("4"),
                "bytes": 100,
                "base-tree": "a" * 40,
                "tree": "b" * 40,
                "changed": ["vllm/version.py"],
                "patches": [{"file": "0001-version.patch", "sha256": digest("5")}],
            },
            {
                "name": "plain",
                "version": "2.0",
                "file": "plain-2.0-py3-none-any.whl",
                "sha256": digest("6"),
                "bytes": 7,
                "patches": [],
            },
        ],
        "wheels": [
            {"name": "click", "version": "8.3.0", "file": "click-8.3.0-py3-none-any.whl", "sha256": digest("7"), "bytes": 9}
        ],
        "base": {"kind": "bootstrap", "image": "release-base:abc", "diff-ids": [digest("8")], "packages": {}},
        "checkpoint": {"config.json": digest("9"), "model.safetensors": digest("a")},
        "pylock": digest("b"),
        "dockerfile": digest("c"),
        "questions": digest("d"),
    },
    "image": {
        "manifest": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest("e"), "size": 500},
        "config": digest("f"),
        "layers": [{"diff-id": digest("8"), "digest": digest("0"), "bytes": 10, "unpacked": 20}],
        "compressor": "isal 1.8.0, level 1",
        "built-with": "docker 20.10.24",
    },
    "weights": {"upstream": "fp32", "precision": "bf16", "converted": 2, "kept": 0, "files": WEIGHTS},
    "serve": {
        "command": [
            *("docker", "run", "--rm", "--read-only", "--publish", "127.0.0.1:9000:9000", "--env", "A=it's 1 | 2"),
            *("--volume", "$PWD/weights:/model:ro", digest("f"), "vllm", "serve", "/model", "--served-model-name", "pebble-7b"),
        ],
        "image": digest("f"),
        "port": 9000,
        "health": "/health",
        "model": "pebble-7b",
        "ready-after": 12.5,
    },
    "verdicts": [
        _verdict("models lists the served model", "PASSED", "pebble-7b", "pebble-7b"),
        _verdict("stop ends an answer", "PASSED", "a|b <script>alert(1)</script>\nc", "stop & length"),
        _verdict(
            "consistency/identity", "PASSED", "5 files say the same", "the reference's files", finding="CONSISTENT", seconds=0.7
        ),
        _verdict("consistency/scoring", "PASSED", "KL ≥ 0.0002 nats", "KL ≤ 0.002", finding="CONSISTENT", seconds=20.5),
        _verdict("accuracy", "PASSED", "-0.40 points", "above -2.00 points", finding="CONSISTENT"),
    ],
    "waivers": [],
    "consistency": {
        **{"finding": "CONSISTENT", "caught-by": None, "seconds": 21.2, "reference": digest("4")},
        "limits": {"kl": 0.002, "calibrated": "made up, for tests"},
        "verdicts": [],
    },
    "accuracy": {
        "rule": {"questions": "questions/few.jsonl", "grader": "final-integer", "temperature": 0.0, "max-tokens": 16},
        "candidate": {"n": 1000, "correct": 917, "wrong": 83, "failed": 0, "truncated": 0, "interval": [0.8982, 0.9326]},
        "reference": {"n": 1000, "correct": 921, "wrong": 76, "failed": 1, "truncated": 2, "interval": [0.9025, 0.9361]},
    },
    "reference": {"cell": "abacus/pebble-7b@fp32", "serve": {}},
    "reported": [],
    "evidence": [{"path": "evidence/accuracy/samples.jsonl", "sha256": digest("2"), "bytes": 4321}],
    "stages": [],
}


def pebble(**changes: Any) -> Plan:
    """Return a plan of an invented maker's cell with every fact that a plan can have, some of them unknown."""
    patch = {
        "format": "flagscale",
        "device-type": "Abacus_A9",
        "commit-id": "57637057",
        "base": {"unknown": "the papers name eight digits"},
    }
    facts: dict[str, Any] = {
        "variant": "native",
        "precision": "w8a8",
        "args": {"max-model-len": 4096, "served-model-name": "pebble-7b"},
        "parallel": (2, 1, 4),
        "world-sizes": (1, 2, 4),
        "container": {"devices": ("/dev/abacus0",), "shm-size": "2g"},
        "sources": (
            {"name": "pebblescale", "repository": "https://example.org/pebblescale", "commit": "d" * 40, "tag": "v1.2"}
            | {"vendor-patch": {**patch, "sha256": digest("7"), "encrypted": True, "contact": "keys@example.org"}},
            {
                "name": "pebblegems",
                "repository": "https://example.org/pebblegems",
                "commit": {"unknown": "the card names a tag alone"},
            },
            {"wheel": "pebble==1.0", "sha256": digest("6"), "patches": "pebble/1.0"},
        ),
        "packages": {"torch": "2.1.0", "pebble-driver": {"unknown": "the papers name no version"}},
        "features": ("paged-attention", "multi-lora"),
        "adapters": {"counting": "adapters/counting"},
        "trials": ({"dataset": "pebbles-full", "batch": 4}, {"cases": ((2048, 2048), (256, 256))}),
        "conflicts": ({"says": "about 70 % of all pebbles", "but": "the switch is never set", "source": "the card, line 12"},),
        "documents": ("The maker's guide, https://example.org/guide",),
        "note": "Pebbles are counted twice.",
        "reference": "abacus/pebble-7b@bf16",
        "reported": (
            {"source": "the maker's card", "candidate": "Pebble-7B-A9", "reference": "Pebble-7B-Origin"}
            | {"scores": ({"benchmark": "Counting", "candidate": 80.02, "reference": 79.0},)},
            {"source": "a newspaper", "candidate": "Pebble-7B-A9", "reference": "Pebble-7B-Origin"}
            | {"scores": ({"benchmark": "Sorting", "candidate": 0.8, "reference": 0.608, "unit": "share"},)},
        ),
        "weights": {
            **{"tool": "pebblequant", "version": "1.2", "note": "On one device.", "config": {"quantize": "w8a8"}},
            **{"commands": (("pebblequant", "--from", "$SRC", "--to", "$DST"),), "env": {"PEBBLE_DEVICES": "0,1"}},
        },
        "base": {
            "access": {"kind": "request", "name": "pebble-base v2", "contact": "pebbles@example.org", "note": "your company"}
        },
        "of": {"license": "mit", "description": "Counts pebbles."},
        "on": {
            "host": {
                "driver": "5.1",
                "tool": {"command": ("abacus-smi", "-q")},
                "software": {"AbacusRT": {"unknown": "no paper says it"}},
            }
        },
    }
    return plan(**{**facts, **changes})


MEMORY: Final = {
    **{"weights": 4 << 30, "kv-per-token": 57344, "context": 4096, "asked": 8, "reserve": 3 << 30, "budget": 57 << 30},
    **{"needed": 9 << 30, "starts": True, "full": True},
}


def unbuilt(of: Plan | None = None, **changes: Any) -> dict[str, Any]:
    """Return the record of a plan that is not built, by default the pebbles'."""
    it = of or pebble()
    argv = ["vllm", "serve", "/model", "--port", str(it.serve.port), "--served-model-name", it.served_model_name]
    publish = f"127.0.0.1:{it.serve.port}:{it.serve.port}"
    made = planned(
        it,
        command=["docker", "run", "--rm", "--publish", publish, "--volume", "$PWD/weights:/model:ro", IMAGE_WORD, *argv],
        argv=argv,
        health="/health",
        files={"conf/serve.yaml": "engine_args:\n  model: /model\n\n\n  port: 8000\n"},
        concerns=(Concern(rule="heads", severity="warn", message="7 heads over 2 devices", source="arithmetic", next_step="1"),),
        memory=MEMORY,
        layout=None,
    )
    return {**made, **changes}


RECORD["plan"] = plan_facts(
    dump(plan(conflicts=({"says": "two layers", "but": "three files", "source": "its box"},), documents=("Its box",))),
    **{"files": {"serve.json": '{"layers": 2}\n'}, "concerns": (), "memory": None, "layout": None},
)


def record(**changes: Any) -> dict[str, Any]:
    """Return a copy of the record that a test may change."""
    return {**copy.deepcopy(RECORD), **changes}
