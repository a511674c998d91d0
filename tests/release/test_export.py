"""A pipeline for a CI is what the CI's own schema takes, runs each cell after what it is compared with, and holds no secret's value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from release.errors import UsageError
from release.export import KINDS, PASSWORD, export, pipeline
from release.house import House

CELLS = ("cpu/tiny-r1@bf16", "ascend-800i-a2/qwen3-32b@w8a8")
TO = "registry.example.org/models"
IMAGE = "registry.example.org/release:1"
Golden = Callable[[str, str], None]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.open((), tmp_path / "store", "docker")


def made(house: House, kind: str, **more: Any) -> Any:
    return yaml.safe_load(export(kind, house, CELLS, to=TO, image=IMAGE if kind == "argo" else "", **more))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_the_golden_one(house: House, kind: str, golden: Golden) -> None:
    golden(f"pipeline-{kind}.yml", export(kind, house, CELLS, to=TO, image=IMAGE if kind == "argo" else ""))


@pytest.mark.parametrize(("kind", "schema"), [("github", "vendor.github-workflows"), ("gitlab", "vendor.gitlab-ci")])
def test_a_pipeline_is_what_the_published_schema_takes(house: House, kind: str, schema: str) -> None:
    wanted = jsonschema.validators.validator_for(get_builtin_schema(schema))(get_builtin_schema(schema))
    everything = [cell for cell, _ in house.matrix.cells() if house.study(cell).refusal is None]
    assert list(wanted.iter_errors(made(house, kind))) == []
    whole = yaml.safe_load(export(kind, house, everything, to=TO))
    assert list(wanted.iter_errors(whole)) == []
    broken = made(house, kind)
    (broken["jobs"] if kind == "github" else broken)["cpu-tiny-r1-bf16"]["needs"] = 3
    assert list(wanted.iter_errors(broken)), "the schema tells a pipeline that is wrong"


def test_every_cell_comes_after_what_it_is_compared_with_and_after_its_chip_s_images(house: House) -> None:
    jobs = pipeline(house, CELLS, TO, "built")
    names = [job.name for job in jobs]
    for job in jobs:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
        plan = house.plan(job.cell) if job.cell else None
        if plan and plan.reference:
            assert plan.reference in [other.cell for other in jobs if other.name in job.needs]
    assert {job.device for job in jobs if job.cell.startswith("cpu/")} == {False}
    assert {job.device for job in jobs if job.cell.startswith("ascend")} == {True}


def test_argo_s_tasks_name_templates_and_tasks_that_are_there(house: House) -> None:
    spec = made(house, "argo")["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    tasks = templates[spec["entrypoint"]]["dag"]["tasks"]
    names = {task["name"] for task in tasks}
    volumes = {volume["name"] for volume in spec["volumes"]}
    for task in tasks:
        wanted = {parameter["name"] for parameter in templates[task["template"]]["inputs"]["parameters"]}
        assert {parameter["name"] for parameter in task["arguments"]["parameters"]} == wanted
        assert set(task.get("dependencies", ())) <= names
        assert {mount["name"] for mount in templates[task["template"]]["container"]["volumeMounts"]} <= volumes


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_stand_there_by_name_alone_and_only_where_something_is_pushed(
    house: House, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "hunter2-of-the-registry")
    text = json.dumps(made(house, kind))
    assert "hunter2" not in text and PASSWORD in text
    assert PASSWORD not in export(kind, house, CELLS, image=IMAGE)
    assert "docker login" not in export(kind, house, CELLS, image=IMAGE)


@pytest.mark.parametrize("to", ["registry.example.org/${{ github.token }}", "https://user:pass@host/x", "a b/c", "x; rm -rf /"])
def test_a_registry_that_is_none_is_refused(house: House, to: str) -> None:
    with pytest.raises(UsageError):
        export("github", house, CELLS, to=to)


def test_argo_needs_an_image(house: House) -> None:
    with pytest.raises(UsageError, match="which one"):
        export("argo", house, CELLS)
