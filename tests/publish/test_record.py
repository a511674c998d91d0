"""The record is put together from what the stages left, names its evidence by digest, and never says more than was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from records import MEMORY, pebble, record, unbuilt

from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.oci import sha256
from release.pipeline import Stage, Task, Work
from release.progress import Line
from release.publish.card import render_card
from release.publish.record import IMAGE_WORD, evidence_files, plan_facts, planned, verdicts_of
from release.publish.record import assemble as assemble_with
from release.session import Session
from release.store import Store
from release.types import JSON, Concern, dump

CANDIDATE, REFERENCE = "cpu/tiny-qwq@bf16", "cpu/tiny-qwq@fp32"
PASSED = {"name": "models", "status": "PASSED", "measured": "1", "wanted": "1", "reason": "r", "figures": {}}
ACCURATE = {**PASSED, "name": "accuracy", "figures": {"finding": "CONSISTENT"}}
SAMPLES = b'{"id": "add-0001"}\n'


def outputs(conformance: list[JSON], compare: JSON, consistency: JSON | None = None) -> dict[str, dict[str, Any]]:
    """Return the files that each stage leaves, by stage and name."""
    made = record()
    arm = made["accuracy"]["candidate"]
    return {
        "unpatch": {"sources.json": made["pins"]["sources"], "git.json": made["pins"].get("git", [])},
        "wheels": {"wheels.json": made["pins"]["wheels"]},
        "base": {"base.json": made["pins"]["base"]},
        "checkpoint": {},
        "weights": {"weights.json": made["weights"]},
        "render": {"Dockerfile": b"FROM x\n", "pylock.toml": b"lock\n", "files/conf/serve.yaml": b"port: 8000\n"},
        "image": {"image.json": made["image"]},
        "serve": {"serve.json": made["serve"], "server.log": b"INFO up\n"},
        "conformance": {"conformance.json": conformance},
        "accuracy": {"accuracy.json": arm, "samples.jsonl": SAMPLES, "evaluation.json": {}},
        "consistency": {"consistency.json": consistency, "scores.jsonl": b"{}\n"},
        "compare": {"compare.json": compare},
        "settle": {"settlement.json": {"verdicts": [], "settlement": None}},
        "performance": {"performance.json": None},
        "judge": {"judged.json": []},
        "reference:accuracy": {"accuracy.json": arm, "samples.jsonl": b"reference\n"},
        "reference:serve": {"serve.json": {"port": 8000}},
    }


def work(tmp_path: Path, files: dict[str, dict[str, Any]], cell: str = CANDIDATE) -> Work:
    """Return what the card stage is given when the stages before it left `files`."""
    store, matrix = Store(tmp_path / "store"), Matrix()
    needs = {}
    for number, (need, left) in enumerate(files.items()):
        needs[need] = f"{number:064x}"

        def fill(folder: Path, left: dict[str, Any] = left) -> None:
            for name, content in left.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

        store.put(needs[need], {"created": f"2026-11-20T10:00:{number:02}+00:00", "seconds": number, "summary": ""}, fill)
    plan = plan_of(matrix, cell).model_dump(mode="json", by_alias=True)
    task = Task(Stage("card", 1, tuple(needs), lambda plan, matrix: {}, lambda work: ""), cell, {"plan": plan}, needs, "f" * 64)
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir(), scratch.mkdir()
    inputs = {need: store.get(key) for need, key in needs.items()}
    return Work(task, inputs, out, scratch, matrix, store, cast(Session, None), cast(Line, None))


def assemble(given: Work) -> JSON:
    """Return the record of a release without waivers."""
    return assemble_with(given, verdicts_of(given), [])


def test_the_record_holds_what_the_stages_found(tmp_path: Path) -> None:
    files = outputs([PASSED], ACCURATE)
    made = assemble(work(tmp_path, files))
    assert (made["cell"], made["precision"], made["variant"], made["state"]) == (CANDIDATE, "bf16", None, "validated")
    assert made["image"] == files["image"]["image.json"]
    assert made["weights"] == files["weights"]["weights.json"]
    assert made["verdicts"] == [PASSED, ACCURATE]
    assert made["pins"]["dockerfile"] == sha256(b"FROM x\n")
    assert made["pins"]["pylock"] == sha256(b"lock\n")
    assert made["pins"]["checkpoint"] == made["model"]["checkpoint"]["files"]
    assert made["reference"] == {"cell": REFERENCE, "serve": {"port": 8000}}
    assert made["reported"] == []
    assert json.loads(json.dumps(made)) == made


def test_the_record_is_as_old_as_the_youngest_thing_in_it(tmp_path: Path) -> None:
    assert assemble(work(tmp_path, outputs([PASSED], ACCURATE)))["created"] == "2026-11-20T10:00:16+00:00"


def test_evidence_lies_beside_the_record_and_is_named_by_digest(tmp_path: Path) -> None:
    given = work(tmp_path, outputs([PASSED], ACCURATE))
    evidence = {file["path"]: file for file in assemble(given)["evidence"]}
    assert set(evidence) == {
        "evidence/serve/server.log",
        "evidence/conformance/conformance.json",
        "evidence/consistency/scores.jsonl",
        "evidence/accuracy/samples.jsonl",
        "evidence/accuracy/evaluation.json",
        "evidence/reference-accuracy/samples.jsonl",
    }
    for name, file in evidence.items():
        data = (given.out / name).read_bytes()
        assert (file["sha256"], file["bytes"]) == (sha256(data), len(data))
    assert (given.out / "evidence/accuracy/samples.jsonl").read_bytes() == SAMPLES


LAYER = {**PASSED, "name": "scoring", "figures": {"finding": "CONSISTENT"}}


def test_every_layer_of_the_consistency_check_is_a_verdict_of_the_release(tmp_path: Path) -> None:
    different = {**LAYER, "status": "FAILED", "figures": {"finding": "DIFFERENT"}}
    found = {"finding": "DIFFERENT", "caught-by": "scoring", "verdicts": [{**LAYER, "name": "identity"}, different]}
    made = assemble(work(tmp_path, outputs([PASSED], ACCURATE, found)))
    assert [verdict["name"] for verdict in made["verdicts"]] == [
        "models",
        "consistency/identity",
        "consistency/scoring",
        "accuracy",
    ]
    assert made["state"] == "blocked"
    assert made["consistency"] == found


def test_a_consistency_check_alone_looks_at_too_little_for_a_release(tmp_path: Path) -> None:
    made = assemble(work(tmp_path, outputs([], ACCURATE, {"finding": "CONSISTENT", "verdicts": [LAYER]})))
    assert made["state"] == "blocked"


def test_evidence_that_no_stage_left_is_not_named(tmp_path: Path) -> None:
    assert evidence_files({"serve": tmp_path}) == {}


@pytest.mark.parametrize(
    ("conformance", "compare", "state"),
    [
        ([PASSED], ACCURATE, "validated"),
        ([PASSED], {**ACCURATE, "status": "SKIPPED"}, "built"),
        ([PASSED], {**ACCURATE, "status": "INCONCLUSIVE"}, "built"),
        ([PASSED], {**ACCURATE, "status": "FAILED"}, "blocked"),
        ([{**PASSED, "status": "FAILED"}], ACCURATE, "blocked"),
        ([{**PASSED, "status": "SKIPPED"}, PASSED], ACCURATE, "built"),
    ],
)
def test_the_state_is_what_the_verdicts_say(conformance: list[JSON], compare: JSON, state: str, tmp_path: Path) -> None:
    assert assemble(work(tmp_path, outputs(conformance, compare)))["state"] == state


def test_a_conformance_that_looked_at_nothing_validates_nothing(tmp_path: Path) -> None:
    """One verdict about accuracy does not stand for all the checks that were not made."""
    assert assemble(work(tmp_path, outputs([], ACCURATE)))["state"] != "validated"


def test_a_cell_without_a_reference_has_a_record_and_a_card(tmp_path: Path) -> None:
    files = outputs([PASSED], {**ACCURATE, "status": "SKIPPED", "figures": {}})
    files = {need: left for need, left in files.items() if not need.startswith("reference:")}
    made = assemble(work(tmp_path, files, REFERENCE))
    assert (made["reference"], made["accuracy"]["reference"], made["state"]) == (None, None, "built")
    assert "not validated" in render_card(made)


def test_the_card_tells_how_to_pull_this_very_cell() -> None:
    assert "--precision bf16~native" in render_card(record())
    assert "--precision bf16\n" in render_card(record(variant=None))


def test_the_record_keeps_what_the_plan_says_and_what_the_engine_is_configured_with(tmp_path: Path) -> None:
    given = work(tmp_path, outputs([PASSED], ACCURATE))
    facts, plan = assemble(given)["plan"], given.reads["plan"]
    for name in ("documents", "conflicts", "features", "parallel", "trials", "sources", "packages", "base", "device", "dtype"):
        assert facts[name] == plan[name]
    assert facts["files"] == {"conf/serve.yaml": "port: 8000\n"}
    assert facts["context"] == 1024
    assert (facts["memory"], facts["layout"], facts["concerns"]) == (None, None, [])


def test_what_was_worked_out_from_the_plan_is_kept_if_the_stage_was_given_it(tmp_path: Path) -> None:
    given = work(tmp_path, outputs([PASSED], ACCURATE))
    given.task.reads.update(memory=MEMORY, layout={"replicas": 2}, concerns=[{"rule": "x"}])
    facts = assemble(given)["plan"]
    assert (facts["memory"], facts["layout"], facts["concerns"]) == (MEMORY, {"replicas": 2}, [{"rule": "x"}])


def shape(value: Any) -> Any:
    """Return the names of a document without its values."""
    return {name: shape(item) for name, item in value.items()} if isinstance(value, dict) else None


def test_what_is_planned_has_the_same_shape_as_what_is_built(tmp_path: Path) -> None:
    built, ahead = assemble(work(tmp_path, outputs([PASSED], ACCURATE))), unbuilt()
    assert built.keys() == ahead.keys()
    assert built["plan"].keys() == ahead["plan"].keys()
    assert built["pins"].keys() == ahead["pins"].keys()
    assert built["serve"].keys() <= ahead["serve"].keys()
    assert built["accuracy"].keys() == ahead["accuracy"].keys()
    assert built["schema"] == ahead["schema"]


def test_what_is_planned_has_nothing_that_does_not_exist() -> None:
    made = unbuilt()
    assert made["state"] == "planned"
    assert (made["image"], made["weights"], made["created"], made["verdicts"], made["evidence"], made["stages"]) == (
        None,
        None,
        None,
        [],
        [],
        [],
    )
    assert {name: made["pins"][name] for name in ("sources", "wheels", "base", "pylock", "dockerfile")} == dict.fromkeys(
        ("sources", "wheels", "base", "pylock", "dockerfile")
    )
    assert (made["accuracy"]["candidate"], made["accuracy"]["reference"]) == (None, None)
    assert made["serve"]["ready-after"] is None and made["serve"]["image"] is None
    assert IMAGE_WORD in made["serve"]["command"]
    assert json.loads(json.dumps(made)) == made


def test_what_is_planned_holds_the_plan() -> None:
    plan = pebble()
    made, document = unbuilt(plan), dump(plan)
    assert made["reported"] == document["reported"]
    assert made["plan"]["conflicts"] == document["conflicts"]
    assert made["plan"]["layout"] == {"tensor-parallel-size": 2, "pipeline-parallel-size": 1, "replicas": 4}
    assert made["plan"]["concerns"][0]["severity"] == "warn"
    assert made["reference"] == {"cell": "abacus/pebble-7b@bf16", "serve": None}
    assert (made["serve"]["model"], made["serve"]["port"], made["plan"]["context"]) == ("pebble-7b", 8000, 4096)


def test_a_layout_that_was_chosen_stands_in_place_of_the_plans_own() -> None:
    chosen = {"tensor-parallel-size": 4, "pipeline-parallel-size": 2, "replicas": 1, "why": "it decodes fastest"}
    concerns = (Concern(rule="heads", severity="note", message="it is so"),)
    made = planned(pebble(), command=[], argv=["x"], health="", files={}, concerns=concerns, memory=None, layout=chosen)
    assert made["plan"]["layout"] == chosen
    assert "= 8 devices" in render_card(made)
    assert "it decodes fastest" in render_card(made)
    assert "The command is not known yet." in render_card(made)


@pytest.mark.parametrize(
    ("args", "context"),
    [
        ({"max-model-len": 4096}, 4096),
        ({"max_model_len": 512}, 512),
        ({"context-length": 2048}, 2048),
        ({"max-model-len": "auto"}, 32768),
        ({}, 32768),
    ],
)
def test_the_context_of_clients_is_what_the_engine_is_told_in_any_spelling(args: JSON, context: int) -> None:
    facts = plan_facts(dump(pebble(args=args)), files={}, concerns=(), memory=None, layout=None)
    assert facts["context"] == context
