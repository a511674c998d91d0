"""Tags by night: each build has its own, one that is another release is told before any work, and no extra makes a release another one."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from command import release
from distribution import Distribution, registry
from laid import Built, built

from release.build import refuse_taken, target_of
from release.errors import UsageError
from release.house import House
from release.publish.reference import Reference
from release.types import JSON

__all__ = ["built", "registry"]

CELL = "cpu/tiny-qwq@bf16"
AT = "registry.example.org/models"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.open((), tmp_path / "store", "docker")


@pytest.fixture
def taken(registry: Distribution, built: Built) -> Reference:
    """The tag of the cell, under which another release is published."""
    where = Reference(registry.host, f"team-{uuid.uuid4().hex[:12]}/cpu/tiny-qwq", "bf16")
    built.publish(where)
    return where


def keep(house: House, digest: str) -> None:
    """Put a result of the cell's stage publish into the store: an index of this digest."""
    task = house.graph(CELL, None).task(CELL, "publish")
    text = json.dumps({"index": {"digest": digest}})
    facts: JSON = {**task.facts, "inputs": {}}
    house.store.put(task.key, facts, lambda out: _write(out / "publish.json", text))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("cell", "tag", "wanted"),
    [
        (CELL, None, "cpu/tiny-qwq:bf16"),
        (CELL, "nightly", "cpu/tiny-qwq:nightly"),
        (CELL, "{precision}-20261128", "cpu/tiny-qwq:bf16-20261128"),
        ("nvidia/qwq-32b@bf16~native", "7.{precision}", "nvidia/qwq-32b:7.bf16-native"),
    ],
)
def test_a_tag_may_name_the_precision_and_variant_of_its_cell(cell: str, tag: str | None, wanted: str) -> None:
    assert str(target_of(cell, AT, tag)) == f"{AT}/{wanted}"


@pytest.mark.parametrize("tag", ["{precison}-1", "{}", "{precision}:1", "{precision", "-{precision}"])
def test_a_tag_that_no_registry_takes_is_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="is not a reference"):
        target_of(CELL, AT, tag)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "said"),
    [(("--to", AT, "--tag", "20261128"), "cells of one model would have one tag"), (("--tag", "x"), "give --to")],
)
def test_cells_that_would_have_one_tag_and_a_tag_for_no_registry_are_refused(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    answer = release("build", "--select", "cpu/tiny-r1@*", *words, store=tmp_path / "store")
    assert answer.status == 2 and said in answer.err


@pytest.mark.integration
@pytest.mark.parametrize("words", [("--select", CELL), ("--chip", "cpu", "--model", "tiny-qwq")])
def test_a_tag_that_is_another_release_is_told_before_any_work(taken: Reference, words: tuple[str, ...], tmp_path: Path) -> None:
    to = f"{taken.host}/{taken.name.removesuffix('/cpu/tiny-qwq')}"
    answer = release("build", *words, "--to", to, store=tmp_path / "store", cwd=tmp_path)
    assert answer.status == 2 and f"another release is published already as {taken}: " in answer.err
    assert "--tag '{precision}-" in answer.err
    assert not list((tmp_path / "store").rglob("*.jsonl")) and not (tmp_path / "dist").exists(), "no run has begun"


@pytest.mark.integration
def test_a_tag_that_is_this_very_release_or_nobody_s_stops_no_build(house: House, taken: Reference, built: Built) -> None:
    tasks = house.graph(CELL, None)
    with pytest.raises(UsageError, match="another release"):
        refuse_taken(house, tasks, {CELL: taken})
    refuse_taken(house, tasks, {CELL: Reference(taken.host, taken.name, "bf16-20261128")})
    keep(house, json.loads((built.folder / "oci/index.json").read_bytes())["manifests"][0]["digest"])
    refuse_taken(house, tasks, {CELL: taken})


@pytest.mark.integration
def test_a_release_in_the_store_that_is_not_the_published_one_is_refused(house: House, taken: Reference) -> None:
    keep(house, "sha256:" + "0" * 64)
    with pytest.raises(UsageError, match="another release"):
        refuse_taken(house, house.graph(CELL, None), {CELL: taken})


def test_no_stage_has_another_key_where_the_extra_for_pictures_is_missing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = house.graph(CELL, None).of
    monkeypatch.setattr("release.publish.pictures.RENDERER", "no-such-distribution")
    assert house.graph(CELL, None).of == before
