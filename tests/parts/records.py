"""A small record of an invented release, as `release.json` holds one."""

from __future__ import annotations

import copy
from typing import Any, Final


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
        _verdict("accuracy", "PASSED", "-0.40 points", "above -2.00 points", finding="CONSISTENT"),
    ],
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


def record(**changes: Any) -> dict[str, Any]:
    """Return a copy of the record that a test may change."""
    return {**copy.deepcopy(RECORD), **changes}
