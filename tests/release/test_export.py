"""A pipeline for a CI is what the CI's own schema takes, runs each cell after what it is compared with, and holds no secret's value."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from command import release

from release.cli import cli
from release.errors import UsageError
from release.export import HOST, KINDS, PASSWORD, SHELF, Job, Wanted, export, pipeline
from release.house import House
from release.matrix.load import OURS

CELLS = ("cpu/tiny-r1@bf16", "ascend-800i-a2/qwen3-32b@w8a8")
TO = "registry.example.org/models"
IMAGE = "registry.example.org/release:1"
SHARED = "oci://registry.example.org/models/stages"
DISTANT = ("cambricon/qwq-32b@bf16",)
"""A cell that is compared with one of another chip."""
ODD = "910b"
"""A chip whose name begins as no job's may."""
Golden = Callable[[str, str], None]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.open((), tmp_path / "store", "docker")


def wanted(kind: str, **more: Any) -> Wanted:
    return Wanted(**{"to": TO, "shelf": SHARED, "image": IMAGE if kind == "argo" else "", **more})


def made(house: House, kind: str, cells: Sequence[str] = CELLS, **more: Any) -> Any:
    return yaml.safe_load(export(kind, house, cells, wanted(kind, **more)))


def jobs_of(house: House, cells: Sequence[str] = CELLS, **more: Any) -> dict[str, Job]:
    return {job.cell: job for job in pipeline(house, cells, wanted("github", **more), "7")}


def schema_of(name: str) -> Any:
    schema = get_builtin_schema(name)
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.fixture
def odd(tmp_path: Path) -> House:
    """A house with a host processor of another architecture, whose name begins with a digit."""
    overlay = tmp_path / "matrix"
    for name in ("chips/cpu.yaml", "cells/cpu/tiny-qwq.yaml"):
        text = (OURS / name).read_text().replace("architecture: amd64", "architecture: arm64")
        text = (
            text.replace("id: cpu\n", f"id: '{ODD}'\n")
            .replace("chip: cpu\n", f"chip: '{ODD}'\n")
            .replace("cpu/tiny-qwq@", f"{ODD}/tiny-qwq@")
        )
        path = overlay / name.replace("cpu", ODD)
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return House.open((overlay,), tmp_path / "store", "docker")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_the_golden_one(house: House, kind: str, golden: Golden) -> None:
    golden(f"pipeline-{kind}.yml", export(kind, house, CELLS, wanted(kind)))


@pytest.mark.parametrize(("kind", "schema"), [("github", "vendor.github-workflows"), ("gitlab", "vendor.gitlab-ci")])
def test_a_pipeline_is_what_the_published_schema_takes(house: House, odd: House, kind: str, schema: str) -> None:
    published = schema_of(schema)
    everything = [cell for cell, _ in house.matrix.cells() if house.study(cell).refusal is None]
    assert list(published.iter_errors(made(house, kind))) == []
    assert list(published.iter_errors(made(house, kind, everything))) == []
    assert list(published.iter_errors(made(house, kind, CELLS, to=None, shelf=None))) == []
    assert list(published.iter_errors(made(odd, kind, [f"{ODD}/tiny-qwq@bf16"]))) == []
    broken = made(house, kind)
    (broken["jobs"] if kind == "github" else broken)["cell-cpu-tiny-r1-bf16"]["needs"] = 3
    assert list(published.iter_errors(broken)), "the schema tells a pipeline that is wrong"


def test_every_cell_comes_after_what_it_is_compared_with_whatever_became_of_that(house: House) -> None:
    jobs = list(jobs_of(house).values())
    names = [job.name for job in jobs]
    for job in jobs:
        reference = house.plan(job.cell).reference
        assert [other.cell for other in jobs if other.name in job.needs] == [reference] * bool(reference)
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
    after = [job.name for job in jobs if job.needs]
    assert after == ["cell-cpu-tiny-r1-bf16", "cell-ascend-800i-a2-qwen3-32b-w8a8"]
    hub, lab = made(house, "github")["jobs"], made(house, "gitlab")
    assert {hub[name]["if"] for name in after} == {"${{ !cancelled() }}"} and {lab[name]["when"] for name in after} == {"always"}


def test_what_is_compared_with_nothing_is_not_asked_to_be_validated(house: House) -> None:
    least = {cell: job.command.partition("--require ")[2].split()[0] for cell, job in jobs_of(house, least="validated").items()}
    assert least == {cell: "validated" if house.plan(cell).reference else "built" for cell in least}
    assert set(least.values()) == {"validated", "built"}


def test_a_cell_runs_where_its_chip_is_and_on_its_architecture(house: House, odd: House) -> None:
    jobs = made(house, "github")["jobs"]
    assert jobs["cell-ascend-800i-a2-qwen3-32b-w8a8"]["runs-on"] == ["self-hosted", "ascend-800i-a2"]
    assert jobs["cell-cpu-tiny-r1-bf16"]["runs-on"] == "ubuntu-latest"
    assert made(odd, "github", [f"{ODD}/tiny-qwq@fp32"])["jobs"][f"cell-{ODD}-tiny-qwq-fp32"]["runs-on"] == "ubuntu-24.04-arm"
    assert made(house, "gitlab")["cell-cpu-tiny-r1-bf16"]["tags"] == ["cpu"]


def test_results_of_another_machine_need_a_place_where_stages_are_shared(house: House) -> None:
    with pytest.raises(UsageError, match="which another machine builds"):
        jobs_of(house, DISTANT, shelf=None)
    assert len(jobs_of(house, DISTANT)) == 2
    assert len(jobs_of(house, CELLS, shelf=None)) == 4, "a machine of the very chip can build its references"


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_pushes_under_tags_of_its_own(house: House, kind: str) -> None:
    text = export(kind, house, CELLS, wanted(kind))
    run = {"github": "$GITHUB_RUN_NUMBER.$GITHUB_RUN_ATTEMPT", "gitlab": "$CI_PIPELINE_IID.$CI_JOB_ID"}
    assert text.count(f'--to {TO} --tag "{{precision}}-{run.get(kind, "{{workflow.creationTimestamp.s}}")}"') == 4
    assert "--tag" not in export(kind, house, CELLS, wanted(kind, to=None))


def test_a_command_of_a_pipeline_is_one_that_the_command_line_takes(house: House) -> None:
    for job in jobs_of(house, options=("--matrix", "my matrix", "--engine", "docker")).values():
        program, *words = shlex.split(job.command)
        root = cli.make_context(program, words, resilient_parsing=True)
        name, command, rest = cli.resolve_command(root, [*root._protected_args, *root.args])
        assert command is not None
        said = command.make_context(name, rest, parent=root).params
        assert root.params["matrix"] == (Path("my matrix"),) and root.params["engine"] == "docker"
        assert (name, said["patterns"], said["to"], said["tag"]) == ("build", (job.cell,), TO, "{precision}-7")


def test_argo_s_tasks_name_templates_and_tasks_that_are_there(house: House) -> None:
    spec = made(house, "argo")["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    dag = templates[spec["entrypoint"]]["dag"]
    names = [task["name"] for task in dag["tasks"]]
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert dag["target"].split() == names, "the failure of each counts"
    for task in dag["tasks"]:
        asked = {parameter["name"] for parameter in templates[task["template"]]["inputs"]["parameters"]}
        assert {parameter["name"] for parameter in task["arguments"]["parameters"]} == asked
        assert {need.rpartition(".")[0] for need in re.findall(r"[\w.-]+", task.get("depends", ""))} <= set(names)
        assert {mount["name"] for mount in templates[task["template"]]["container"]["volumeMounts"]} <= volumes


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_stand_there_by_name_alone_and_only_where_a_registry_is_asked(
    house: House, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "hunter2-of-the-registry")
    text = json.dumps(made(house, kind))
    assert "hunter2" not in text and "registry.example.org" in text and HOST in text and "docker login" not in text
    assert (PASSWORD in text) == (kind != "gitlab"), "GitLab's variables are there by themselves"
    nowhere = export(kind, house, CELLS, wanted(kind, to=None, shelf="file:///shelf"))
    assert PASSWORD not in nowhere and HOST not in nowhere and f"{SHELF}" in nowhere
    shared = export(kind, house, CELLS, wanted(kind, to=None))
    assert HOST in shared, "a shelf in a registry wants a login, too"


@pytest.mark.parametrize("to", ["registry.example.org/${{ github.token }}", "https://user:pass@host/x", "a b/c", "x; rm -rf /"])
def test_a_registry_that_is_none_is_refused(house: House, to: str) -> None:
    with pytest.raises(UsageError):
        export("github", house, CELLS, Wanted(to=to))


@pytest.mark.parametrize(
    "shelf",
    [
        "",
        "registry.example.org/x",
        "oci://user:pass@host/x",
        "oci://host.org/x:tag",
        "file:///${{ x }}",
        "file:///a\nb",
        "s3://x/y",
    ],
)
def test_a_remote_store_that_is_none_is_refused(house: House, shelf: str) -> None:
    with pytest.raises(UsageError):
        export("github", house, CELLS, Wanted(shelf=shelf))


def test_argo_needs_an_image(house: House) -> None:
    with pytest.raises(UsageError, match="which one"):
        export("argo", house, CELLS, Wanted())


@pytest.mark.integration
def test_the_command_passes_its_own_options_on_and_refuses_what_no_checkout_has(odd: House, tmp_path: Path) -> None:
    words = ("export", "github", "--chip", ODD, "--remote-store", SHARED)
    answer = release("--matrix", "matrix", "--engine", "docker", *words, store=tmp_path / "store", cwd=tmp_path)
    assert answer.status == 0 and f"release --engine docker --matrix matrix build --select {ODD}/tiny-qwq@bf16" in answer.out
    (tmp_path / "below").mkdir()
    outside = release("--matrix", "../matrix", *words, store=tmp_path / "store", cwd=tmp_path / "below")
    assert outside.status == 2 and "no checkout has it" in outside.err
