"""The JSON Schemas beside the files: what the types say, and every file of ours is valid by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from release.matrix.load import OURS, Matrix
from release.matrix.schema import FOLDER, schemas


@pytest.mark.parametrize("name", schemas())
def test_the_schema_that_lies_here_is_the_one_of_the_types(name: str) -> None:
    assert (FOLDER / name).read_text() == schemas()[name], "make schemas writes them anew"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("chip", "container"),
        ("model", "architecture"),
        ("cell", "serve"),
        ("benchmark", "margin"),
        ("verdict", "record"),
        ("policy", "state"),
        ("hosts", "registry"),
    ],
)
def test_a_schema_knows_the_keys_as_yaml_spells_them_and_no_others(name: str, key: str) -> None:
    schema = json.loads(schemas()[f"{name}.schema.json"])
    assert key in schema["properties"]
    assert schema["additionalProperties"] is False
    assert not any("_" in word for word in schema["properties"])


def files() -> list[tuple[str, Path]]:
    known = Matrix()
    kinds = (("chip", known.chips()), ("model", known.models()), ("cell", known.cell_files()), ("benchmark", known.benchmarks()))
    return [(kind, path) for kind, paths in kinds for path in paths.values()]


@pytest.mark.parametrize(("kind", "path"), files(), ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_every_file_of_ours_tells_editors_which_schema_it_follows(kind: str, path: Path) -> None:
    up = "../" * (len(path.relative_to(OURS).parts) - 1)
    assert path.read_text().splitlines()[0] == f"# yaml-language-server: $schema={up}schemas/{kind}.schema.json"
