"""What a chip's or a model's file cannot say: figures that are none, names that say nothing, patterns that find nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import CELL, CHIP, MODEL, write

from release.errors import MatrixError
from release.matrix.load import Matrix

DEVICE = """\
devices:
  a9: {name: Abacus 9, memory: 32, bandwidth: 100, per-host: 8, source: its box}
"""
RULE = """\
rules:
  - {id: even, multiples: {max-model-len: 16}, reason: it says so, source: its box}
"""
TOOL = """\
host:
  tool: {command: [abacus-smi], driver: 'Driver (.*)'}
"""


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("name: Abacus 9\nvendor", 'name: ""\nvendor', "name: '' is not a name"),
        ("vendor: Invented", 'vendor: " "', "vendor: ' ' is not a name"),
        ("precisions: [bf16, w8a8]", "precisions: [bf16, w8a8]\ndtypes: []", "dtypes: "),
        ("memory: 32", "memory: 0", "devices.a9.memory: "),
        ("memory: 32", "memory: -1", "devices.a9.memory: "),
        ("memory: 32", "memory: 1e308", "devices.a9.memory: "),
        ("bandwidth: 100", "bandwidth: 0", "devices.a9.bandwidth: "),
        ("per-host: 8", "per-host: 0", "devices.a9.per-host: "),
        ("{max-model-len: 16}", "{max-model-len: 0}", "rules.0.multiples.max-model-len: "),
        ("(.*)", "(", "host.tool.driver: 'Driver (' is no regular expression"),
        ("(.*)", ".*", "host.tool.driver: 'Driver .*' has 0 groups and must have one"),
        ("(.*)", "(.)(.)", "host.tool.driver: 'Driver (.)(.)' has 2 groups and must have one"),
        *(
            ("shm-size: 2g", f"mounts: ['{mount}']", f"container.mounts.0: {mount!r} is not a mount")
            for mount in ("/only", "relative:/a", "/a:b", "/a:/b:rx", "/a:/b:ro:z", "")
        ),
    ],
)
def test_a_fact_of_a_chip_that_is_none_is_told_with_its_key(old: str, new: str, wanted: str, tmp_path: Path) -> None:
    text = CHIP + DEVICE + RULE + TOOL
    assert Matrix((write(tmp_path, {"chips/abacus.yaml": text}),)).chip("abacus").host.tool
    assert old in text
    with pytest.raises(MatrixError) as caught:
        Matrix((write(tmp_path, {"chips/abacus.yaml": text.replace(old, new, 1)}),)).chip("abacus")
    assert wanted in str(caught.value)
    assert "abacus.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("class: PebbleForCausalLM", 'class: ""', "architecture.class: '' is not a name"),
        ("name: Pebble 7B", 'name: ""', "name: '' is not a name"),
        ("heads: 2\n  kv-heads: 1", "heads: 8\n  kv-heads: 3", "architecture: 8 heads do not share 3 kv-heads equally"),
    ],
)
def test_a_fact_of_a_model_that_is_none_is_told_with_its_key(old: str, new: str, wanted: str, tmp_path: Path) -> None:
    assert old in MODEL
    with pytest.raises(MatrixError) as caught:
        Matrix((write(tmp_path, {"models/pebble-7b.yaml": MODEL.replace(old, new, 1)}),)).model("pebble-7b")
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("experts-per-token: 9", "a token cannot go to 9 of 8 experts"),
        ("experts-per-token: 2, groups: 4", "give both of 'groups' and 'groups-per-token', or neither"),
        ("experts-per-token: 2, groups-per-token: 4", "give both of 'groups' and 'groups-per-token', or neither"),
        ("experts-per-token: 2, groups: 3, groups-per-token: 1", "8 experts make no 3 groups of one size"),
        ("experts-per-token: 2, groups: 8, groups-per-token: 2", "8 experts make no 8 groups of one size, each of two"),
        ("experts-per-token: 2, groups: 4, groups-per-token: 5", "a token cannot use 5 of 4 groups"),
        ("experts-per-token: 3, groups: 4, groups-per-token: 1", "a token cannot go to 3 experts: its 1 groups have 2"),
        ("experts-per-token: 2, scaling: 0", "scaling"),
        ("experts-per-token: 2, scaling: .inf", "scaling"),
        ("experts-per-token: 2, scoring: relu", "scoring"),
        ("experts-per-token: 2, group: 4", "groups"),
    ],
)
def test_a_router_that_no_model_can_have_is_refused_with_file_and_line(more: str, wanted: str, tmp_path: Path) -> None:
    text = MODEL.replace("  context: 64\n", f"  context: 64\n  moe: {{experts: 8, intermediate: 8, {more}}}\n")
    with pytest.raises(MatrixError) as caught:
        Matrix((write(tmp_path, {"models/pebble-7b.yaml": text}),)).model("pebble-7b")
    assert wanted in str(caught.value)
    assert "pebble-7b.yaml:19" in str(caught.value)


@pytest.mark.parametrize("sizes", ["[0]", "[-1]", "[8, 0]"])
def test_a_world_size_of_no_devices_is_refused(sizes: str, tmp_path: Path) -> None:
    text = CELL.replace("serve:\n", f"world-sizes: {sizes}\nserve:\n", 1)
    with pytest.raises(MatrixError, match=r"pebble-7b.yaml:5: world-sizes"):
        Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)).cell_file("abacus", "pebble-7b")
