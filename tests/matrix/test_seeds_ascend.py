"""Huawei's Ascend guide for Qwen, retyped: its feature matrix, its recipes and its prose are what the matrix says, tick for tick."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, Final

import pytest

from release.hardware import read
from release.matrix.check import Asked, plan_of
from release.matrix.load import Matrix
from release.matrix.rules import concerns
from release.types import CellFile, Concern, Plan, Unknown

A2, DUO = "ascend-800i-a2", "ascend-300i-duo"
CHIPS: Final = (A2, DUO)

TABLE: Final = """
model             | 800I A2 | 300I DUO | FP16 BF16 FA PA W8A8 W8A16 KV sparse MOE MindIE TGI long prefix FA3 function LoRA W4A16
qwen2-7b          | 1,2,4,8 | 2,4,8    | ✓    ✓    ✕  ✓  ✓    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen2-72b         | 1,2,4,8 | 2,4,8    | ✓    ✓    ✕  ✓  ✓    ✓     ✓  ✓      ✕   ✓      ✕   ✓    ✓      ✕   ✓        ✓    ✕
gte-qwen2-7b      | 1,2,4   | ✕        | ✓    ✕    ✕  ✓  ✕    ✕     ✕  ✕      ✕   ✕      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen2.5-0.5b      | 1,2,4,8 | 2,4,8    | ✓    ✓    ✕  ✓  ✕    ✕     ✕  ✕      ✕   ✕      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen2.5-1.5b      | 1,2,4,8 | 2,4,8    | ✓    ✓    ✕  ✓  ✕    ✕     ✕  ✕      ✕   ✕      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen2.5-7b        | 1,2,4,8 | 2,4,8    | ✓    ✓    ✕  ✓  ✓    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✓      ✕   ✓        ✕    ✕
qwen2.5-14b       | 2,4,8   | 2,4,8    | ✓    ✓    ✕  ✓  ✓    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✕      ✕   ✓        ✕    ✕
qwen2.5-32b       | 4,8     | ✕        | ✓    ✓    ✕  ✓  ✓    ✕     ✕  ✕      ✕   ✓      ✕   ✕    ✕      ✕   ✓        ✕    ✕
qwen2.5-72b       | 8       | ✕        | ✓    ✓    ✕  ✓  ✕    ✕     ✕  ✕      ✕   ✓      ✕   ✕    ✕      ✓   ✓        ✕    ✓
qwen2.5-coder-7b  | ✕       | 2,4,8    | ✓    ✕    ✕  ✓  ✕    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✓      ✕   ✕        ✕    ✕
qwen2.5-coder-32b | 4,8     | ✕        | ✕    ✓    ✕  ✓  ✕    ✕     ✕  ✕      ✕   ✕      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen3-32b         | 4       | 4        | ✕    ✓    ✕  ✓  ✓    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen3-14b         | 2       | 2        | ✓    ✓    ✕  ✓  ✓    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen3-8b          | 1       | 1        | ✓    ✓    ✕  ✓  ✕    ✕     ✕  ✓      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen3-4b          | ✕       | 1        | ✓    ✕    ✕  ✓  ✕    ✕     ✕  ✕      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen3-30b-a3b     | 2,4     | 2,4      | ✕    ✓    ✕  ✓  ✓    ✕     ✕  ✕      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
qwen3-235b-a22b   | 16      | ✕        | ✕    ✓    ✕  ✓  ✓    ✕     ✕  ✕      ✕   ✓      ✕   ✕    ✕      ✕   ✕        ✕    ✕
"""
"""The guide's feature matrix; it calls the coders QwenCode2.5."""

ARMS: Final = {
    "FP16": ("fp16", CHIPS),
    "BF16": ("bf16", (A2,)),  # 300I DUO: float16 only
    "W8A8": ("w8a8", CHIPS),
    "W8A16": ("w8a16", CHIPS),
    "KV": ("w8a8c8", CHIPS),
    "sparse": ("w8a8sc", (DUO,)),  # the column's own head says so
    "FA3": ("w8a8~fa3", (A2,)),
    "W4A16": ("w4a16", (A2,)),
}
"""What a tick of a precision means as a cell, and on which chips it can be one."""
FEATURES: Final = {
    "FA": ("flash-attention", CHIPS),
    "PA": ("paged-attention", CHIPS),
    "MindIE": ("mindie-service", CHIPS),
    "TGI": ("tgi", CHIPS),
    "long": ("long-sequence", (A2,)),  # 131,072 tokens of Qwen2-72B do not fit eight devices of 24 GB
    "prefix": ("prefix-cache", CHIPS),
    "FA3": ("fa3", (A2,)),
    "function": ("function-call", CHIPS),
    "LoRA": ("multi-lora", (A2,)),  # the guide's limits: 800I A2 only
}
"""What a tick means as a feature, and on which chips."""
BEYOND: Final = {
    f"{DUO}/qwen3-32b@fp16": "the prose runs it, and a card that only computes float16 has no other float cell to compare with",
    f"{A2}/qwen2.5-14b@w8a8c8~pdmix": "a section of the text, against the table",
    f"{A2}/qwen2.5-72b@w8a8c8~pdmix": "a section of the text, against the table",
    f"{A2}/qwen2-72b@bf16~long": "the table's long sequences, which take another config.json",
}
"""Cells that no tick asks for, and why they are there."""

RECIPES: Final = {
    ("qwen2-7b", "w8a8"): "qwen_w8a8",
    ("qwen2.5-7b", "w8a8"): "qwen_w8a8",
    ("qwen2.5-14b", "w8a8"): "qwen_w8a8",
    ("qwen2.5-32b", "w8a8"): "qwen_w8a8",
    ("qwen2-7b", "w8a8sc"): "qwen_w8a8s",
    ("qwen2.5-7b", "w8a8sc"): "qwen_w8a8s",
    ("qwen2.5-14b", "w8a8sc"): "qwen_w8a8s",
    ("qwen2-72b", "w8a16"): "qwen_w8a16",
    ("qwen2-72b", "w8a8c8"): "qwen2_72b_w8a8c8",
    ("qwen2-72b", "w8a8"): "qwen2_72b_w8a8",
    ("qwen2-72b", "w8a8sc"): "qwen2_72b_w8a8s",
    ("qwen2.5-72b", "w8a8~fa3"): "qwen2p5_fa3",
    ("qwen2.5-72b", "w4a16"): "qwen_w4a16",
    ("qwen2.5-coder-7b", "w8a8sc"): "qwencode_w8a8s",
    ("qwen2.5-72b", "w8a8c8~pdmix"): "qwen2p5_72b_w8a8c8_pdmix",
    ("qwen2.5-14b", "w8a8c8~pdmix"): "qwen2p5_14b_w8a8c8_pdmix",
    ("qwen3-14b", "w8a8"): "w8a8",
    ("qwen3-32b", "w8a8"): "w8a8",
    ("qwen3-8b", "w8a8sc"): "w8a8s",
    ("qwen3-14b", "w8a8sc"): "w8a8s",
    ("qwen3-32b", "w8a8sc"): "w8a8s",
}
"""The type that each section's command names."""
NO_RECIPE: Final = {("qwen3-30b-a3b", "w8a8"), ("qwen3-235b-a22b", "w8a8")}
"""Ticked, and no command is given."""

MATRIX: Final = Matrix()


def rows() -> dict[str, dict[str, Any]]:
    head, *lines = (line.split("|") for line in TABLE.strip().splitlines())
    columns = head[3].split()
    table = {}
    for name, a2, duo, ticks in lines:
        assert len(ticks.split()) == len(columns)
        sizes = {chip: tuple(map(int, re.findall(r"\d+", text))) for chip, text in ((A2, a2), (DUO, duo))}
        table[name.strip()] = {
            "sizes": sizes,
            "ticks": {c for c, tick in zip(columns, ticks.split(), strict=True) if tick == "✓"},
        }
    return table


ROWS: Final = rows()
OFFERED: Final = [(chip, model) for model, row in ROWS.items() for chip in CHIPS if row["sizes"][chip]]
CELLS: Final = [cell for cell, file in MATRIX.cells() if file.chip in CHIPS]
QUANTISED: Final = [cell for cell in CELLS if cell.split("@")[1].startswith("w")]


def file_of(chip: str, model: str) -> CellFile:
    return MATRIX.cell_file(chip, model)[0]


def ticked() -> set[str]:
    """Every cell that a tick asks for."""
    found = set()
    for model, row in ROWS.items():
        for column, (arm, chips) in ARMS.items():
            found |= {f"{chip}/{model}@{arm}" for chip in chips if column in row["ticks"] and row["sizes"][chip]}
    return found


def said(plan: Plan, rule: str) -> list[Concern]:
    return [concern for concern in concerns(plan) if concern.rule == rule]


def test_the_table_has_seventeen_rows_of_seventeen_columns() -> None:
    assert len(ROWS) == 17
    assert {column for row in ROWS.values() for column in row["ticks"]} <= {*ARMS, *FEATURES}, "MOE is ticked for no model"


def test_every_tick_has_its_cell_and_every_cell_has_its_tick() -> None:
    assert set(CELLS) - ticked() == set(BEYOND)
    assert ticked() - set(CELLS) == set()


def test_a_chip_that_the_table_does_not_offer_a_model_on_has_no_file_for_it() -> None:
    files = {name for name in MATRIX.cell_files() if name.startswith("ascend-")}
    assert files == {f"{chip}/{model}" for chip, model in OFFERED}


@pytest.mark.parametrize(("chip", "model"), OFFERED)
def test_world_sizes_are_those_of_the_table(chip: str, model: str) -> None:
    file, sizes = file_of(chip, model), ROWS[model]["sizes"][chip]
    assert file.world_sizes == sizes
    assert all(arm.world_sizes is None for arm in file.cells.values())
    assert (file.parallel.world_size if file.parallel else None) == (sizes[0] if len(sizes) == 1 else None)


@pytest.mark.parametrize(("chip", "model"), OFFERED)
def test_features_are_those_of_the_table(chip: str, model: str) -> None:
    file, ticks = file_of(chip, model), ROWS[model]["ticks"]
    there = {*file.features, *(feature for arm in file.cells.values() for feature in arm.features)}
    assert there == {feature for column, (feature, chips) in FEATURES.items() if column in ticks and chip in chips}


@pytest.mark.parametrize("cell", QUANTISED)
def test_quantised_weights_are_made_with_the_guides_command(cell: str) -> None:
    model, arm = cell.split("/")[1].split("@")
    weights = plan_of(MATRIX, cell).weights
    assert weights and weights.tool == "msmodelslim"
    if (model, arm) in NO_RECIPE:
        assert (weights.type, weights.commands) == (None, ())
        assert "gives no command" in weights.note
        return
    assert weights.type == RECIPES[model, arm]
    assert all(weights.type in first for first in weights.commands[:1])
    words = {word for command in weights.commands for word in command}
    assert {"$SRC", "$DST"} <= words
    assert all(re.fullmatch(r"\$(SRC|DST|DST-w8a8s|LLM_PATH/\S+|MSMODELSLIM)", word) for word in words if "$" in word)


def test_every_recipe_of_the_guide_is_used() -> None:
    used = {tuple(cell.split("/")[1].split("@")) for cell in QUANTISED}
    assert used == {*RECIPES, *NO_RECIPE}


@pytest.mark.parametrize("cell", QUANTISED)
def test_quantised_weights_are_compared_with_float_ones(cell: str) -> None:
    plan = plan_of(MATRIX, cell)
    assert plan.reference
    chip, _, arm = re.split("[/@]", plan.reference)
    assert arm in ("bf16", "fp16")
    # Qwen3-30B-A3B has no float cell on the card that computes float16 only.
    assert chip == plan.chip.id or cell == f"{DUO}/qwen3-30b-a3b@w8a8"


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.endswith("@w8a8sc")])
def test_sparse_weights_are_made_in_two_steps_and_run_as_they_were_cut(cell: str) -> None:
    plan = plan_of(MATRIX, cell)
    assert plan.weights and plan.parallel
    make, compress = plan.weights.commands
    assert "$DST-w8a8s" in make
    assert compress[:3] == ("torchrun", "--nproc_per_node", str(plan.weights.split))
    assert plan.weights.split == plan.parallel.tensor_parallel_size
    assert plan.weights.split in plan.world_sizes
    assert plan.weights.config["torch_dtype"] == "float16"
    assert (plan.weights.env == {"IGNORE_INFER_ERROR": "1"}) is not plan.model.id.startswith("qwen3")


def test_the_edits_of_config_json_are_those_of_the_guide() -> None:
    edits = {cell: (weights.config if (weights := plan_of(MATRIX, cell).weights) else {}) for cell in CELLS}
    assert edits[f"{A2}/qwen2-72b@w8a16"] == {"torch_dtype": "bfloat16", "quantize": "w8a16", "quantization": {"group_size": 0}}
    assert edits[f"{A2}/qwen2-72b@w8a8"] == edits[f"{A2}/qwen2-72b@w8a8c8"] == {}, "the script edits it by itself"
    assert edits[f"{DUO}/qwen2-72b@w8a8sc"]["quant_type"] == "w8a8s"
    assert edits[f"{A2}/qwen2.5-72b@w8a8~fa3"] == {"quantize": "w8a8", "quantization_config": {"fa_quant_type": "FAQuant"}}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    assert edits[f"{A2}/qwen2-72b@bf16~long"] == {"rope_scaling": yarn}
    assert all(edit["torch_dtype"] == "float16" for cell, edit in edits.items() if cell.startswith(DUO))


@pytest.mark.parametrize("cell", CELLS)
def test_trials_and_environment_are_those_of_the_guide(cell: str) -> None:
    plan = plan_of(MATRIX, cell)
    env = {**plan.container.env, **plan.serve.env}
    assert (env["BIND_CPU"], env["RESERVED_MEMORY_GB"]) == ("1", "3")
    assert ("INF_NAN_MODE_ENABLE" in env) is cell.startswith(f"{DUO}/qwen3-32b@")
    assert "LONG_SEQ_ENABLE" not in env
    if plan.model.kind == "embed":
        assert (plan.serve.args, plan.trials) == ({"embedding": True}, ())
        return
    assert plan.serve.args["chat"] is plan.serve.args["trust-remote-code"] is True
    accuracy, performance = plan.trials
    assert accuracy.dataset == ("full_HumanEval_X" if "coder" in cell else "full_BoolQ")
    assert performance.cases == ((2048, 2048), (1024, 1024), (512, 512), (256, 256))
    assert performance.env == {"HCCL_DETERMINISTIC": "false", "LCCL_DETERMINISTIC": "0", "HCCL_BUFFSIZE": "120"}


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_plans_without_refusal_at_a_size_that_the_guide_lists(cell: str) -> None:
    first = plan_of(MATRIX, cell)
    sizes = (first.parallel.world_size,) if first.parallel else first.world_sizes
    refusals = {}
    for size in sizes:
        found = concerns(plan_of(MATRIX, cell, Asked(tensor_parallel_size=size)))
        refusals[size] = [concern.message for concern in found if concern.severity == "refuse"]
    assert [] in refusals.values(), refusals


@pytest.mark.parametrize(("chip", "model"), OFFERED)
def test_a_size_that_the_heads_forbid_is_a_conflict(chip: str, model: str) -> None:
    heads = MATRIX.model(model).architecture.heads
    told = " ".join(conflict.says for conflict in file_of(chip, model).conflicts)
    for size in ROWS[model]["sizes"][chip]:
        if heads % size:
            assert re.search(rf"world sizes? .*\b{size}\b", told)


@pytest.mark.parametrize(("chip", "model"), OFFERED)
def test_a_size_beyond_the_key_value_heads_is_a_conflict_with_the_guides_own_rule(chip: str, model: str) -> None:
    kv_heads = MATRIX.model(model).architecture.kv_heads
    if max(ROWS[model]["sizes"][chip]) > kv_heads:
        assert any("key-value heads" in conflict.but for conflict in file_of(chip, model).conflicts)


def test_a_tick_for_fp16_on_the_800i_a2_is_warned_about_where_the_prose_says_bf16_only() -> None:
    (warning,) = said(plan_of(MATRIX, f"{A2}/qwen2.5-7b@fp16"), "qwen2-in-bf16")
    assert warning.severity == "warn"
    assert said(plan_of(MATRIX, f"{A2}/qwen2.5-7b@bf16"), "qwen2-in-bf16") == []
    assert said(plan_of(MATRIX, f"{A2}/qwen3-14b@fp16"), "qwen2-in-bf16") == []


def test_the_300i_duo_computes_float16_only() -> None:
    chip = MATRIX.chip(DUO)
    assert chip.dtypes == ("fp16",)
    assert "bf16" not in chip.precisions
    assert all(plan_of(MATRIX, cell).dtype == "fp16" for cell in CELLS if cell.startswith(DUO))
    assert "w8a8sc" not in MATRIX.chip(A2).precisions


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("size", "refused"), [(3, True), (2, False), (1, False)])
def test_an_odd_number_of_devices_is_refused(chip: str, size: int, refused: bool) -> None:
    found = said(plan_of(MATRIX, f"{chip}/qwen2-72b@w8a8", Asked(tensor_parallel_size=size)), "even-world-size")
    assert bool(found) is refused


def test_adapters_lie_over_float_weights_on_the_800i_a2_and_are_ten_at_most() -> None:
    several = {f"adapter{number}": f"/adapters/{number}" for number in range(11)}
    there = plan_of(MATRIX, f"{A2}/qwen2-72b@bf16")
    rule = "adapters-over-float-weights"
    assert said(there.model_copy(update={"adapters": dict(list(several.items())[:10])}), rule) == []
    assert len(said(there.model_copy(update={"adapters": several}), rule)) == 1
    narrow = plan_of(MATRIX, f"{A2}/qwen2-72b@w8a8")
    assert said(narrow, rule) == []
    assert len(said(narrow.model_copy(update={"features": ("multi-lora",)}), rule)) == 1


def test_adapters_are_refused_on_the_300i_duo() -> None:
    plan = plan_of(MATRIX, f"{DUO}/qwen2-72b@fp16")
    assert said(plan, "no-adapters") == []
    (refusal,) = said(plan.model_copy(update={"features": ("multi-lora",)}), "no-adapters")
    assert refusal.severity == "refuse"


@pytest.mark.parametrize("chip", CHIPS)
def test_a_prefix_cache_beside_other_weights_than_fp16_is_warned_about(chip: str) -> None:
    assert said(plan_of(MATRIX, f"{chip}/qwen2-72b@fp16"), "prefix-cache-in-fp16") == []
    other = plan_of(MATRIX, f"{chip}/qwen2-72b@w8a8").model_copy(update={"features": ("prefix-cache",)})
    (warning,) = said(other, "prefix-cache-in-fp16")
    assert warning.severity == "warn"


@pytest.mark.parametrize("chip", CHIPS)
def test_the_recommended_environment_is_missed_where_somebody_changes_it(chip: str) -> None:
    plan = plan_of(MATRIX, f"{chip}/qwen2-72b@w8a8")
    assert said(plan, "reserved-memory") == []
    less = plan.model_copy(update={"serve": plan.serve.model_copy(update={"env": {"RESERVED_MEMORY_GB": "1"}})})
    assert len(said(less, "reserved-memory")) == 1


def test_what_the_guide_does_not_name_is_unknown_with_a_reason() -> None:
    for chip in map(MATRIX.chip, CHIPS):
        assert isinstance(chip.host.driver, Unknown)
        assert all(isinstance(version, Unknown) for version in chip.host.software.values())
        assert chip.base and chip.base.access and isinstance(chip.base.access.name, Unknown)
        assert all(isinstance(device.interconnect, Unknown) for device in chip.devices.values())


A2_TABLE: Final = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B4               | OK            | 89.3        39                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          2861 / 32768         |
+===========================+===============+====================================================+
| 1     910B4               | OK            | 85.0        40                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          30854/ 32768         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 1       0                 | 293029        | python3.11               | 28612                   |
+===========================+===============+====================================================+
"""
DUO_TABLE: Final = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 25.0.rc1.1                               Version: 25.0.rc1.1                                   |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 6       310P3                 | OK              | NA           55                0     / 0             |
| 0       0                     | 0000:83:00.0    | 0            1175 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 6       310P3                 | OK              | NA           52                3262  / 3262          |
| 1       1                     | 0000:83:00.0    | 0            8322 / 43693                            |
+===============================+=================+======================================================+
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
| 6       1                     | 293029          | python3.11               | 6612                      |
+===============================+=================+======================================================+
"""


@pytest.mark.parametrize(
    ("chip", "text", "driver", "devices", "memory"),
    [
        (A2, A2_TABLE, "25.2.0", ("910B4", "910B4"), (32768, 32768)),
        (DUO, DUO_TABLE, "25.0.rc1.1", ("310P3", "310P3"), (44280, 43693)),
    ],
)
def test_what_npu_smi_prints_is_read(
    chip: str, text: str, driver: str, devices: tuple[str, ...], memory: tuple[int, ...]
) -> None:
    tool = MATRIX.chip(chip).host.tool
    assert tool
    found = read(tool, text)
    assert (found.driver, found.devices, found.memory) == (driver, devices, memory)


@pytest.mark.parametrize(("chip", "text"), [*product(CHIPS, ("", "npu-smi: command not found\n", "| 0 | / | 9 / x |\n" * 50))])
def test_nothing_is_read_from_a_table_that_is_none(chip: str, text: str) -> None:
    tool = MATRIX.chip(chip).host.tool
    assert tool
    found = read(tool, text)
    assert (found.driver, found.devices, found.memory) == (None, (), ())


@pytest.mark.parametrize(("chip", "other"), [(A2, DUO_TABLE), (DUO, A2_TABLE)])
def test_one_chips_devices_are_not_taken_for_the_others(chip: str, other: str) -> None:
    tool = MATRIX.chip(chip).host.tool
    assert tool and read(tool, other).devices == ()
