"""JSON Schemas of the YAML files and of what is attested, for editors and other tools: made from the types, and compared with them by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from release.types import Benchmark, CellFile, Chip, Frozen, Hosts, Model
from release.types.policy import Attested, Policy

FOLDER: Final = Path(__file__).parent / "schemas"
KINDS: Final[dict[str, type[Frozen]]] = {"chip": Chip, "model": Model, "cell": CellFile, "benchmark": Benchmark}
OTHERS: Final[dict[str, type[Frozen]]] = {"policy": Policy, "verdict": Attested, "hosts": Hosts}
TITLES: Final = {"hosts": "the hosts of a user", **{name: f"a {name} of the matrix" for name in KINDS}}


def schemas() -> dict[str, str]:
    """Return the schema files by name: `chip.schema.json`, `model.schema.json`, … (JSON Schema 2020-12)."""
    return {
        f"{name}.schema.json": json.dumps(_schema(name, kind), indent=1, ensure_ascii=False) + "\n"
        for name, kind in (KINDS | OTHERS).items()
    }


def _schema(name: str, kind: type[Frozen]) -> dict[str, Any]:
    schema = kind.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": TITLES.get(name, f"a {name} of a release"),
    }
