"""Between a good and a bad release: the fewest pins that make it bad, by real builds of cheap stages that share what is alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import write
from hypothesis import given
from hypothesis import strategies as st

from release.bisect import Answer, Verdict, bisect, narrow
from release.errors import ReleaseError, StageError, StoreError, UsageError
from release.house import House
from release.pinned import earlier_pins
from release.pins import Pin, Pins, pins_of
from release.pipeline import Stage, Work
from release.show.night import bisect as bisect_text
from release.types import dump

CELL = "abacus/pebble-7b@bf16"
NAMES = ("alpha", "beta", "gamma", "delta", "eta", "theta", "iota", "kappa")
Rule = Callable[[set[str]], None]


def house(tmp_path: Path, version: str) -> House:
    lines = "".join(f"  - {{wheel: {name}=={version}, sha256: 'sha256:{version[0] * 64}'}}\n" for name in NAMES)
    cell = f"chip: abacus\nmodel: pebble-7b\nengine: vllm\nwheels: wheels/abacus.txt\nsources:\n{lines}cells:\n  bf16: {{}}\n"
    return House.open(
        (write(tmp_path / f"matrix-{version}", {"cells/abacus/pebble-7b.yaml": cell}),), tmp_path / "store", "docker"
    )


class Blocked(Exception):
    """What a rule raises for a release that has a FAILED verdict."""


def stages(rule: Rule, ran: Counter[str]) -> tuple[Stage, ...]:
    """Three cheap stages: sources, a server that a rule may break, and a record that a rule may block."""

    def fetch(work: Work) -> str:
        ran["fetch"] += 1
        work.write("sources.json", work.reads["sources"])
        return "fetched"

    def serve(work: Work) -> str:
        ran["serve"] += 1
        try:
            rule({each["wheel"].split("==")[0] for each in work.result("fetch", "sources.json") if each["wheel"].endswith("2.0")})
            work.write("blocked.json", False)
        except Blocked:
            work.write("blocked.json", True)
        return "served"

    def card(work: Work) -> str:
        blocked = work.result("serve", "blocked.json")
        verdict = {"name": "accuracy", "status": "FAILED" if blocked else "PASSED", "measured": "1", "wanted": "2", "reason": ""}
        work.write("release.json", {"state": "blocked" if blocked else "validated", "verdicts": [verdict]})
        return "written"

    def reads(plan: Any, matrix: Any) -> dict[str, Any]:
        return {"sources": [dump(each) for each in plan.sources]}

    def nothing(plan: Any, matrix: Any) -> dict[str, Any]:
        return {}

    return (
        Stage("fetch", 1, (), reads, fetch),
        Stage("serve", 1, ("fetch",), nothing, serve),
        Stage("card", 1, ("serve",), nothing, card),
    )


def ends(tmp_path: Path) -> tuple[House, Pins, Pins]:
    old, new = house(tmp_path, "1.0"), house(tmp_path, "2.0")
    return new, pins_of(old.plan(CELL), old.matrix), pins_of(new.plan(CELL), new.matrix)


def search(tmp_path: Path, rule: Rule, ran: Counter[str] | None = None) -> Verdict:
    here, good, bad = ends(tmp_path)
    return bisect(here, CELL, good, bad, stages=stages(rule, Counter() if ran is None else ran))


def needs(*names: str, how: Exception | None = None) -> Rule:
    def rule(new: set[str]) -> None:
        if set(names) <= new:
            raise how or Blocked

    return rule


def test_one_bad_pin_of_eight_is_found_in_few_builds_and_a_second_search_builds_nothing(tmp_path: Path) -> None:
    ran: Counter[str] = Counter()
    found = search(tmp_path, needs("theta"), ran)
    assert found.culprits == ("theta",) and found.open == () and found.symptoms == ("verdict accuracy",)
    assert len(found.searched) == 8 and len(found.steps) <= 6
    before = ran.total()
    assert search(tmp_path, needs("theta"), ran).culprits == ("theta",)
    assert ran.total() == before
    assert "theta" in bisect_text(found, as_json=False)
    assert json.loads(bisect_text(found, as_json=True))["culprits"] == ["theta"]


def test_two_pins_that_are_bad_only_together_are_both_found(tmp_path: Path) -> None:
    assert set(search(tmp_path, needs("alpha", "kappa")).culprits) == {"alpha", "kappa"}


def test_servers_are_on_the_hosts_that_there_are(tmp_path: Path) -> None:
    here, good, bad = ends(tmp_path)
    (tmp_path / "hosts.yaml").write_text('hosts:\n  rack: {docker: "unix:///run/none.sock", chips: {abacus: {devices: 1}}}\n')
    served = [replace(stage, on="serve") for stage in stages(needs("theta"), Counter())]
    served[0], served[1] = replace(served[0], on=""), replace(served[1], uses=lambda plan: {"device:abacus": 1})
    found = bisect(replace(here, hosts_path=tmp_path / "hosts.yaml"), CELL, good, bad, stages=served)
    assert found.culprits == ("theta",)
    made = [here.store.facts(key) for key in here.store.entries()]
    assert {facts.get("host") for facts in made if facts["stage"] == "serve"} == {"rack"}


def test_a_server_that_does_not_start_is_a_symptom_too(tmp_path: Path) -> None:
    found = search(tmp_path, needs("beta", how=StageError("the server ended with status 1")))
    assert found.culprits == ("beta",) and found.symptoms == ("stage serve",)


def test_a_build_that_shows_something_else_is_passed_over(tmp_path: Path) -> None:
    def rule(new: set[str]) -> None:
        if ("alpha" in new) != ("theta" in new):
            raise StageError("alpha and theta do not fit")
        needs("gamma")(new)

    found = search(tmp_path, rule)
    assert found.culprits == ("gamma",)
    assert Answer.INCONCLUSIVE in {step.answer for step in found.steps}


def test_what_cannot_be_told_apart_is_said_to_be_open(tmp_path: Path) -> None:
    def rule(new: set[str]) -> None:
        if ("alpha" in new) != ("beta" in new):
            raise StageError("alpha and beta do not fit")
        needs("beta")(new)

    found = search(tmp_path, rule)
    assert set(found.culprits) == {"alpha", "beta"} == set(found.open)
    assert "cannot be told apart" in bisect_text(found, as_json=False)


@pytest.mark.parametrize(("end", "rule"), [("bad", ("beta",)), ("good", ())])
@pytest.mark.parametrize("how", [StageError("no space left on device"), StoreError("the store cannot be written")])
def test_a_host_at_fault_proves_nothing_of_either_end(tmp_path: Path, end: str, rule: tuple[str, ...], how: ReleaseError) -> None:
    with pytest.raises(StageError, match=f"the {end} end cannot be judged"):
        search(tmp_path, needs(*rule, how=how))


def test_ends_that_are_not_what_they_are_said_to_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the good end is not good"):
        search(tmp_path, needs())
    with pytest.raises(UsageError, match="all is good here"):
        search(tmp_path / "other", needs("nobody"))
    here, good, _ = ends(tmp_path / "third")
    with pytest.raises(UsageError, match="the same pins"):
        bisect(here, CELL, good, good)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_what_is_found_is_bad_and_nothing_of_it_can_be_left_out(drawn: tuple[int, set[int]]) -> None:
    pins = [Pin("wheel", str(number)) for number in range(drawn[0])]
    culprits = frozenset(pins[number] for number in drawn[1])
    asked: Counter[frozenset[Pin]] = Counter()

    def judge(chosen: frozenset[Pin]) -> Answer:
        asked[chosen] += 1
        return Answer.BAD if culprits <= chosen else Answer.GOOD

    found, unsure = narrow(pins, judge)
    assert set(found) == culprits and unsure == ()
    assert max(asked.values(), default=1) == 1, "no set is judged twice"


def test_of_two_independent_causes_one_is_found(tmp_path: Path) -> None:
    pins = [Pin("wheel", name) for name in NAMES]
    found, _ = narrow(pins, lambda chosen: Answer.BAD if chosen & {pins[1], pins[6]} else Answer.GOOD)
    assert len(found) == 1 and found[0] in (pins[1], pins[6])


def lock_of(plan: Any) -> dict[str, Any]:
    return {
        "cell": CELL,
        "stages": {f"{CELL}: card": {"reads": {"plan": dump(plan)}}, f"{CELL}: unpatch": {"reads": {"patches": {}}}},
    }


def test_a_lock_and_a_record_give_the_pins_of_a_release(tmp_path: Path) -> None:
    old, new = house(tmp_path, "1.0"), house(tmp_path, "2.0")
    then, now = old.plan(CELL), new.plan(CELL)
    (tmp_path / "lock.json").write_text(json.dumps(lock_of(then)))
    assert earlier_pins(new, now, str(tmp_path / "lock.json")) == pins_of(then, old.matrix)
    document = dump(then)
    wheels = [{"name": "Abacus_Runtime", "version": "0.9", "sha256": "sha256:" + "e" * 64}]
    record = {
        "schema": "release-record/1",
        "cell": CELL,
        "plan": document,
        "model": document["model"],
        "pins": {"sources": [], "wheels": wheels},
    }
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/release.json").write_text(json.dumps(record))
    pins = earlier_pins(new, now, str(tmp_path / "dist"))
    assert pins[Pin("wheel", "abacus-runtime")] == "0.9 sha256:" + "e" * 64
    assert pins[Pin("source", "alpha")] == then.sources[0]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "[" * 9999, '{"cell": "a/b@bf16", "stages": {}}', '{"schema": 1, "cell": null}', "\x00"]
)
def test_a_file_that_is_no_release_of_the_cell_is_an_error_of_usage(tmp_path: Path, content: str) -> None:
    here = house(tmp_path, "2.0")
    (tmp_path / "release.json").write_text(content)
    with pytest.raises(UsageError):
        earlier_pins(here, here.plan(CELL), str(tmp_path / "release.json"))
    with pytest.raises(UsageError):
        earlier_pins(here, here.plan(CELL), str(tmp_path / "store"))


def test_a_lock_whose_wheels_or_patches_are_others_now_is_refused(tmp_path: Path) -> None:
    here = house(tmp_path, "2.0")
    plan = here.plan(CELL)
    (tmp_path / "lock.json").write_text(json.dumps(lock_of(plan)))
    (tmp_path / "matrix-2.0/wheels/abacus.txt").write_text("other==1.0 --hash=sha256:" + "1" * 64 + "\n")
    with pytest.raises(UsageError, match="the file is another now"):
        earlier_pins(here, plan, str(tmp_path / "lock.json"))
    patched = plan.model_copy(update={"sources": (plan.sources[0].model_copy(update={"patches": "gone/1.0"}),)})
    (tmp_path / "lock.json").write_text(json.dumps(lock_of(patched)))
    with pytest.raises(UsageError, match=r"a patch set gone/1\.0 that is not the one here"):
        earlier_pins(here, plan, str(tmp_path / "lock.json"))


def test_mixtures_of_wheels_are_written_beside_the_matrix_and_never_into_it(tmp_path: Path) -> None:
    here, good, bad = ends(tmp_path)
    good = {**good, Pin("wheel", "abacus-runtime"): "0.9 sha256:" + "e" * 64}
    seen: list[str] = []

    def wheels(work: Work) -> str:
        seen.append(work.matrix.file(work.reads["pins"]).read_text().split()[0])
        work.write("release.json", {"state": "blocked" if "1.0" in seen[-1] else "built", "verdicts": []})
        return "read"

    made = (Stage("card", 1, (), lambda plan, matrix: {"pins": plan.wheels, "sha256": plan.wheels_sha256}, wheels),)
    before = sorted(path.read_bytes() for path in (tmp_path / "matrix-2.0").rglob("*.*"))
    found = bisect(here, CELL, good, bad, stages=made)
    assert found.culprits == ("abacus-runtime",)
    assert set(seen) == {"abacus-runtime==0.9", "abacus-runtime==1.0"}
    assert sorted(path.read_bytes() for path in (tmp_path / "matrix-2.0").rglob("*.*")) == before
