"""JSON Schemas of the YAML files, for editors: made from the types, kept beside the files, compared with the types by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from release.types import Benchmark, CellFile, Chip, Frozen, Model

FOLDER: Final = Path(__file__).parent / "schemas"
KINDS: Final[dict[str, type[Frozen]]] = {"chip": Chip, "model": Model, "cell": CellFile, "benchmark": Benchmark}


def schemas() -> dict[str, str]:
    """Return the schema files by name: `chip.schema.json`, `model.schema.json`, … (JSON Schema 2020-12)."""
    return {
        f"{name}.schema.json": json.dumps(_schema(name, kind), indent=1, ensure_ascii=False) + "\n"
        for name, kind in KINDS.items()
    }


def _schema(name: str, kind: type[Frozen]) -> dict[str, Any]:
    schema = kind.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"a {name} of the matrix"}
