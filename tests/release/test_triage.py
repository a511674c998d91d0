"""The morning after: each cause once, by evidence, with what the failed cells share, and nobody is blamed before a control cell was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from release.batch import Batch, Fate, build_all, build_one
from release.errors import StageError, UsageError
from release.failures import BY_STAGE, KINDS, failures_of
from release.house import House
from release.journal import KEPT, Journal, read, runs
from release.pins import Pin, wheel_named
from release.pipeline import Run
from release.schedule import Limits
from release.show.batch import batch as batch_text
from release.show.night import status as status_text
from release.show.night import triage as triage_text
from release.stages import STAGES
from release.status import standings
from release.triage import AGAIN, Control, Triage, again, shared_by, triage
from release.types import Unknown

A, B, C, D = (f"ascend-800i-a2/qwen2.5-{size}@bf16" for size in ("0.5b", "1.5b", "7b", "14b"))
FATE = ("cell", "state", "stage", "reason", "key", "error", "detail")
OOM = "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (device 0; 29.50 GiB total)"


def house(tmp_path: Path) -> House:
    return House.open((), tmp_path / "store", "docker")


def fate(cell: str, **said: Any) -> dict[str, Any]:
    return {
        "cell": cell,
        "state": "failed",
        "stage": "",
        "reason": "",
        "detail": "",
        "error": "StageError",
        "verdicts": [],
        "pins": {},
    } | said


def serve(cell: str, detail: str, **said: Any) -> dict[str, Any]:
    return fate(cell, stage="serve", reason="the server ended with status 1 before it was healthy", detail=detail, **said)


def past(here: House, *fates: dict[str, Any], cells: Sequence[str] = (), ended: bool = True) -> None:
    journal = Journal.begin(here.store, cells or [each["cell"] for each in fates], None)
    for each in fates:
        journal.note(each)
    if ended:
        journal.end(1.0)


@pytest.mark.parametrize(
    ("stage", "reason", "detail", "kind", "sign"),
    [
        ("image", "no space left on the disk of /store", "", "infrastructure", "disk full"),
        ("accuracy", "the server answered nothing", "E: device lost at 0x7f", "infrastructure", "device lost"),
        ("fetch", "https://x: Connection refused", "", "infrastructure", "network"),
        ("serve", "it ended with status 137", "", "infrastructure", "killed by the host"),
        ("fetch", "the commit of flaggems is unknown: the card names a tag", "", "build", "pin unknown"),
        ("unpatch", "patch 0001 does not apply", "", "build", "patch"),
        ("wheels", "torch: the lock says sha256:aa", "", "build", "digest differs"),
        ("serve", "the server ended with status 1", OOM, "start-up", "device memory"),
        ("serve", "the server ended with status 1", "ImportError: libabacus.so: no", "start-up", "import"),
        ("serve", "the server was not healthy after 600 s", "", "start-up", "not ready in time"),
        ("accuracy", "Connection refused", "", "accuracy", "StageError"),
        ("accuracy", "the server was not healthy after 300 s", "", "start-up", "not ready in time"),
        ("trace", "the server died at question a-7: no answer", "its log is empty", "start-up", "server died"),
        ("accuracy", "the server died at question a-7: no answer", OOM, "start-up", "device memory"),
        (
            "trace",
            "HTTP 500: EngineCore had an issue",
            "the server died:\nit said: RuntimeError: no offset",
            "start-up",
            "error in its log",
        ),
        ("serve", "the server ended with status 1", "it said: KeyError: 'q_proj'\nmore", "start-up", "error in its log"),
        ("serve", "the server ended with status 1", "ValueError: the format is unknown", "start-up", "error in its log"),
        (
            "serve",
            "the server ended with status 1",
            "OSError: No space left on device: '/dev/shm/x'",
            "start-up",
            "shared memory full",
        ),
        ("weights", "llm-compressor is not installed here", "pip install it", "infrastructure", "not installed here"),
        ("image", "pull: Connection reset by peer", "", "infrastructure", "network"),
        ("trace", "odd", "", "consistency", "StageError"),
        ("performance", "odd", "", "performance", "StageError"),
    ],
)
def test_evidence_tells_the_kind_and_is_quoted(stage: str, reason: str, detail: str, kind: str, sign: str) -> None:
    (found,) = failures_of(fate(A, stage=stage, reason=reason, detail=detail))
    assert (found.kind, found.sign) == (kind, sign)
    assert found.evidence in f"{reason}\n{detail}" and found.evidence


def test_every_stage_and_every_verdict_has_a_kind() -> None:
    assert set(BY_STAGE) == {stage.name for stage in STAGES}
    verdicts = [
        {"name": name, "status": "FAILED", "measured": "1", "wanted": "2"}
        for name in ("accuracy/gsm8k", "consistency/decoding", "performance/last", "operators/proof", "protocol/stream")
    ]
    kinds = [found.kind for found in failures_of(fate(A, state="blocked", verdicts=verdicts))]
    assert kinds == ["accuracy", "consistency", "performance", "conformance", "conformance"]
    assert {*kinds, *BY_STAGE.values()} <= set(KINDS)
    assert failures_of(fate(A, state="validated")) == [] == failures_of(fate(A, state="refused", reason="no", stage="plan"))


def test_one_cause_over_many_cells_is_one_entry_that_names_the_shared_pin(tmp_path: Path) -> None:
    here = house(tmp_path)
    pins = {"chip": "ascend-800i-a2", "gems": "5.3.3"}
    failed = [serve(cell, OOM.replace("29.50", f"{n}.5"), pins={**pins, "model": str(n)}) for n, cell in enumerate((A, B, C))]
    past(here, *failed, fate(D, state="validated", pins={**pins, "gems": "5.3.2"}))
    found = triage(here)
    (entry,) = found.entries
    assert (entry.kind, entry.sign, entry.cells) == ("start-up", "device memory", (A, B, C))
    assert entry.shared == {"gems": "5.3.3"}
    assert found.passed == 1
    assert "nobody yet (suspect: gems 5.3.3): no cell of the chip is known to be good" in triage_text(found, as_json=False)
    assert json.loads(triage_text(found, as_json=True))["causes"][0]["shared"] == {"gems": "5.3.3"}


def test_what_is_said_after_a_sign_may_differ_and_what_is_refused_has_not_passed(tmp_path: Path) -> None:
    here = house(tmp_path)
    said = ("the commit of gems is unknown: the card clones a tag", "the commit of gems is unknown: the card says nothing")
    past(
        here,
        *(fate(cell, stage="fetch", reason=why) for cell, why in zip((A, B), said, strict=True)),
        fate(C, state="refused", reason="no"),
    )
    found = triage(here)
    assert [entry.cells for entry in found.entries] == [(A, B)]
    assert (found.passed, found.refused) == (0, 1)


def test_servers_that_die_of_different_errors_are_different_causes(tmp_path: Path) -> None:
    here = house(tmp_path)
    second = "the last lines of its log:\nRuntimeError: Engine core initialization failed. See root cause above."
    said = ("ValueError: 12 heads by 8", "ValueError: 16 heads by 8", "KeyError: 'q_proj'", "DistBackendError: NCCL")
    fates = [serve(cell, f"it said: {words}\n{second}") for cell, words in zip((A, B, C, D), said, strict=True)]
    past(here, *fates)
    assert [entry.cells for entry in triage(here).entries] == [(A, B), (C,), (D,)]
    batch = Batch(tuple(Fate(**{name: each.get(name, "") for name in FATE}) for each in fates), (), 0, 0, 0.0)
    assert [cause.cells for cause in batch.causes] == [(A, B), (C,), (D,)]
    assert all(words in batch_text(batch, as_json=False) for words in (said[0], *said[2:]))


FRAME = 'File "/opt/venv/lib/python3.12/site-packages/{}/model.py", line 7, in load'
PINS = {
    Pin("wheel", "flag-gems"): f"5.3.3 sha256:{'a' * 64}",
    Pin("wheel", "torch"): f"2.9.0 sha256:{'b' * 64}",
    Pin("package", "triton"): "3.5.0",
    Pin("package", "apex"): Unknown(unknown="nobody has said"),
}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (FRAME.format("flag_gems") + "\n" + FRAME.format("flag_gems/ops"), "flag-gems==5.3.3"),
        (FRAME.format("triton"), "triton==3.5.0"),
        ("ImportError: /usr/lib/python3/dist-packages/torch/lib/libtorch.so: undefined symbol: x", "torch==2.9.0"),
        ("ERROR: torch-2.9.0-cp312-cp312-manylinux_2_28_x86_64.whl is not a supported wheel", "torch==2.9.0"),
        ("pip: No matching distribution found for torch==2.9.0", "torch==2.9.0"),
        (FRAME.format("flag_gems") + "\n" + FRAME.format("torch"), ""),
        (FRAME.format("flag_gems") + "\n" + FRAME.format("vllm"), ""),
        (FRAME.format("vllm"), ""),
        (FRAME.format("apex"), ""),
        ("torch is mentioned, and x==3 is none; --flag==1", ""),
        ("RuntimeError: no", ""),
        *((odd * 100_000, "") for odd in ("a.", "a-1-", "torch=", "site-packages/")),
    ],
)
def test_a_wheel_is_named_by_its_files_alone_and_where_no_other_is(words: str, wanted: str) -> None:
    assert wheel_named(words, PINS) == wanted


def test_the_entry_names_the_wheel_that_all_its_cells_name_and_no_other(tmp_path: Path) -> None:
    here = house(tmp_path)
    for wheels, wanted in ((("torch==2.9.0",) * 2, "torch==2.9.0"), (("torch==2.9.0", "torch==2.8.0"), ""), (("", ""), "")):
        past(here, *(serve(cell, OOM, wheel=wheel) for cell, wheel in zip((A, B), wheels, strict=True)))
        found = triage(here)
        assert [entry.wheel for entry in found.entries] == [wanted]
        assert ("wheel     torch==2.9.0" in triage_text(found, as_json=False)) == bool(wanted)
        assert json.loads(triage_text(found, as_json=True))["causes"][0]["wheel"] == wanted


def test_what_the_engine_itself_said_is_in_the_documents_too(tmp_path: Path) -> None:
    here, said = house(tmp_path), "docker: Error response from daemon: could not select device driver\nSee 'docker run --help'."
    failed = fate(A, stage="serve", reason="docker run ended with status 125", detail=said)
    past(here, failed)
    (cause,) = json.loads(triage_text(triage(here), as_json=True))["causes"]
    assert cause["detail"] == said
    batch = Batch((Fate(**{name: failed.get(name, "") for name in FATE}),), (), 0, 0, 0.0)
    assert said.splitlines()[0] in batch_text(batch, as_json=False)
    told = json.loads(batch_text(batch, as_json=True))
    assert (told["cells"][0]["detail"], told["causes"][0]["detail"]) == (said, said)


def test_a_disk_that_was_full_is_no_flake_once_it_has_room(tmp_path: Path) -> None:
    here, key = house(tmp_path), "d" * 64
    past(here, fate(A, stage="image", reason="no space left on the disk", detail="release gc", key=key))
    here.store.put(key, {}, lambda out: None)
    (entry,) = triage(here).entries
    assert (entry.kind, entry.next_step) == ("infrastructure", "release gc")
    assert "next      release gc" in triage_text(triage(here), as_json=False)


def test_what_a_passing_cell_has_too_is_not_named() -> None:
    failed = [{"pins": {"a": "1", "b": "1"}}, {"pins": {"a": "1", "b": "2"}}]
    assert shared_by(failed, []) == {"a": "1"}
    assert shared_by(failed, [{"pins": {"a": "1"}}]) == {}
    assert shared_by([], []) == {} == shared_by([{"pins": "no"}], [])


def release(here: House, cell: str, state: str, **more: Any) -> None:
    """Put a release of a cell into the store as a build would, under the keys that its plan has now."""
    tasks = here.graph(cell, None)
    for key, task in tasks.tasks.items():
        facts = {**task.facts, "created": "2026-01-01", "mark": key}
        facts["inputs"] = dict(task.needs)
        record = {"state": state, "verdicts": [], "waivers": [], **more}
        here.store.put(key, facts, lambda out, record=record: void((out / "release.json").write_text(json.dumps(record))))  # type: ignore[misc]
    here.remember(tasks)


def void(_: object) -> None: ...


def test_a_known_good_cell_of_the_chip_is_the_control_and_its_answer_decides(tmp_path: Path) -> None:
    here = house(tmp_path)
    release(here, D, "validated")
    past(here, serve(A, OOM, pins={"gems": "1"}), serve(B, OOM, pins={"gems": "1"}))
    found = triage(here)
    (entry,) = found.entries
    assert entry.controls == (Control("ascend-800i-a2", D, "not run"),)
    assert "run the control cells first" in entry.blame
    good, bad = (
        replace(entry, controls=(replace(entry.controls[0], state=state, reason="x"),)) for state in ("passed", "failed")
    )
    assert good.blame == "gems 1; the chip serves its control cell"
    assert bad.blame.startswith(f"chip or host, no operator: the control cell {D} fails too")


def test_a_control_that_cannot_be_started_is_said_and_blames_no_operator(tmp_path: Path) -> None:
    here = house(tmp_path)
    release(here, D, "validated")
    past(here, serve(A, OOM), serve(B, OOM))
    (entry,) = triage(here, control=True).entries
    assert entry.controls[0].state == "failed" and entry.controls[0].reason
    assert "no operator" in entry.blame


def test_a_control_cell_is_served_and_checked_anew_and_all_before_it_comes_from_the_store(tmp_path: Path) -> None:
    here = house(tmp_path)
    from release.pipeline import graph

    plans = here.plans([D])
    usual, fresh = (graph(each, plans, here.matrix, [D], "conformance") for each in (STAGES, again(STAGES, "now")))
    assert {stage for (_, stage), key in fresh.of.items() if key not in usual.tasks} == set(AGAIN)


def test_what_a_control_cell_that_passed_has_too_is_no_suspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = house(tmp_path)
    release(here, D, "validated")
    pins = {"chip": "ascend-800i-a2", "gems": "1"}
    past(here, serve(A, OOM, pins=pins), serve(B, OOM, pins=pins))
    assert triage(here).entries[0].shared == pins
    monkeypatch.setattr("release.triage._run", lambda house, control, session: replace(control, state="passed"))
    assert triage(here, control=True).entries[0].shared == {"gems": "1"}


def test_infrastructure_and_builds_need_no_control(tmp_path: Path) -> None:
    here = house(tmp_path)
    past(here, fate(A, stage="image", reason="no space left on device"), fate(B, stage="unpatch", reason="odd", pins={"g": "1"}))
    disk, patch = sorted(triage(here).entries, key=lambda entry: entry.stage)
    assert disk.blame.startswith("the host") and patch.blame == "an input of this cell alone"
    assert disk.controls == patch.controls == ()


def test_a_failure_whose_result_is_there_now_was_flaky(tmp_path: Path) -> None:
    here = house(tmp_path)
    key = "c" * 64
    past(here, serve(A, "it hung", key=key))
    here.store.put(key, {}, lambda out: None)
    (entry,) = triage(here).entries
    assert entry.kind == "flaky" and "equal inputs" in entry.blame
    past(here, fate(A, state="validated"))
    (entry,) = triage(here).entries
    assert entry.kind == "flaky" and "and passed since" in entry.evidence


def test_a_store_without_a_run_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run is known"):
        triage(house(tmp_path))


def test_a_torn_last_line_costs_that_line_alone_and_the_rest_is_told(tmp_path: Path) -> None:
    here = house(tmp_path)
    past(here, serve(A, OOM), cells=(A, B, C), ended=False)
    (path,) = (here.store.path / "journal").iterdir()
    path.write_bytes(path.read_bytes() + b'{"cell": "' + B.encode()[:9])
    found: Triage = triage(here)
    assert [entry.cells for entry in found.entries] == [(A,)]
    assert found.untold == 2


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"[1]", b"[" * 5000),
        *(b'{"schema": "other", "cells": []}', b'{"schema": "release-journal/1", "cells": 3}'),
    ],
)
def test_a_file_that_is_no_journal_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    assert read(tmp_path / "x.jsonl") is None
    assert read(tmp_path / "gone.jsonl") is None


def test_old_journals_go_and_a_store_that_cannot_be_written_costs_no_build(tmp_path: Path) -> None:
    here = house(tmp_path)
    for _ in range(KEPT + 3):
        Journal.begin(here.store, [A], None)
    assert len(runs(here.store)) == KEPT
    Journal(Path("/proc/none/x.jsonl")).note({})


def test_a_build_of_many_cells_keeps_what_became_of_each(tmp_path: Path) -> None:
    here = house(tmp_path)
    cells = ("cambricon/qwq-32b@bf16", "nvidia/qwq-32b@bf16~native")
    build_all(here, cells, until="render", limits=Limits(2), runner=lambda *words: Run(*words, moved=["a stage: its host died"]))
    (past,) = runs(here.store)
    assert past.moved == ("a stage: its host died",)
    assert past.ended and {cell: each["state"] for cell, each in past.fates.items()} == dict(
        zip(cells, ("failed", "done"), strict=True)
    )
    assert past.fates[cells[0]]["pins"]["flaggems"] == "deepseek_release_cambricon"
    (entry,) = triage(here).entries
    assert (entry.kind, entry.sign, entry.stage) == ("build", "pin unknown", "fetch")


def test_a_build_of_one_cell_is_a_run_too_whatever_becomes_of_it(tmp_path: Path) -> None:
    here = house(tmp_path)
    good, bad = "nvidia/qwq-32b@bf16~native", "cambricon/qwq-32b@bf16"
    assert build_one(here, good, until="render", dist=tmp_path).ran
    with pytest.raises(StageError, match="the commit of"):
        build_one(here, bad, until="render", dist=tmp_path, runner=lambda *words: Run(*words, moved=["a stage: its host died"]))
    (entry,) = triage(here).entries
    assert (entry.cells, entry.sign) == ((bad,), "pin unknown")

    def stop(*words: Any) -> Run:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_one(here, bad, dist=tmp_path, runner=stop)
    with pytest.raises(UsageError, match="nothing can be pushed"):
        build_one(here, bad, until="render", to="registry.example.org/x", dist=tmp_path)
    stopped, failed, done = runs(here.store)
    assert (stopped.cells, stopped.fates, stopped.ended) == ((bad,), {}, None), "and what never began is no run"
    assert failed.ended and failed.moved == ("a stage: its host died",) and failed.fates[bad]["stage"] == "fetch"
    assert failed.fates[bad]["pins"]["flaggems"] == "deepseek_release_cambricon" and failed.fates[bad]["key"]
    assert done.ended and done.fates[good]["state"] == "done"
    assert [each.state for each in standings(here, [bad])] == ["failed"]


def test_the_heat_map_tells_states_by_letters_and_fits_80_columns(tmp_path: Path) -> None:
    here = house(tmp_path)
    waiver = {"validator": "accuracy", "expires": "2026-12-31", "outcome": "applied"}
    release(here, A, "validated")
    release(here, B, "built", waivers=[waiver])
    release(here, C, "blocked")
    past(here, serve(D, OOM))
    cells = [cell for cell, _ in here.matrix.cells()]
    found = {each.cell: each for each in standings(here, cells)}
    assert [found[cell].state for cell in (A, B, C, D)] == ["validated", "waived", "blocked", "failed"]
    assert found[B].why == "until 2026-12-31: accuracy"
    text = status_text(list(found.values()), as_json=False)
    head = text.split("\n\n")
    assert max(len(line) for block in head[:-1] for line in block.splitlines()) <= 80
    assert "F " + D + ": start-up, serve: " + OOM in text
    assert json.loads(status_text(list(found.values()), as_json=True))["counts"]["missing"] == len(cells) - 4


def test_a_changed_input_makes_a_release_stale_and_says_which(tmp_path: Path) -> None:
    here = house(tmp_path)
    release(here, A, "validated")
    history = here.history(A)
    old = here.store.get(history["serve"]) / ".entry.json"
    facts = json.loads(old.read_text())
    facts["reads"]["argv"] = [*facts["reads"]["argv"], "--max-num-seqs", "8"]
    here.store.put("d" * 64, facts, lambda out: None)
    old.unlink()
    path = next((here.store.path / "cells").glob("*0.5b*"))
    path.write_text(json.dumps({**history, "serve": "d" * 64}))
    (each,) = standings(here, [A])
    assert (each.state, each.was) == ("stale", "validated")
    assert each.why.startswith("serve: argv.")
