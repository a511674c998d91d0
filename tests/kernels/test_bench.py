"""The bench's own machinery, run for real on the host processor by a clock of the tests: peers, turns, copies, refusals, events.

The product has no such clock: its only one asks a device. What is timed here is looked at for its shape and never for its size.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from release.bench import document, read
from release.show.bench import benched

ROOM: Final = Path(__file__).parents[2] / "kernels"

HOST: Final = """
import json, time
from dataclasses import replace
import torch
from room import bench, contest, figures
from room.cases import generator
from room.clock import DeviceClock
from room.native import NATIVE
from room.operator import Facts, NotOffered
from room.operators import OPERATORS
from room.tolerances import distance


class HostClock:
    name, device, cache, cover = "perf_counter of the host processor, in a test", torch.device("cpu"), 1 << 16, 0.0

    def __init__(self):
        self.asked = []

    def issue(self, calls, covers=1):
        return [0.0 for call in calls if call() is not self]

    def time(self, calls, covers=1):
        self.asked.append(len(calls))
        found = []
        for call in calls:
            began = time.perf_counter()
            call()
            found.append(max(time.perf_counter() - began, 1e-9))
        return found

    def settle(self):
        self.asked.append("settle")


FEW = contest.Effort(budget=0.002, warm=0.001, fewest=2, most=6)
CPU = torch.device("cpu")
found = {}
"""

NATIVE: Final = """
found["native"] = []
assert list(NATIVE) == list(OPERATORS), set(NATIVE) ^ set(OPERATORS)
for name, operator in OPERATORS.items():
    for dtype in (getattr(torch, dtype) for dtype in operator.dtypes):
        cases = {case: operator.inputs(sizes, dtype, CPU, generator(CPU)) for case, sizes in operator.edges.items() if case != "empty"}
        cases |= operator.adversarial(dtype, CPU, generator(CPU)) if operator.adversarial else {}
        for case in ("without a number", "more than a band"):  # what a router of others does then is its own, and bands are ours
            cases.pop(case, None)
        if name == "expert-matmul":
            even = {"rows": 9, "experts": 6, "best": 2, "share": 2, "size": 16, "columns": 64, "depth": 32}
            cases |= {"even": operator.inputs(even, dtype, CPU, generator(CPU))}
        for case, inputs in cases.items():
            wanted = contest.several(operator.reference(**inputs))
            native = NATIVE[name]
            for way, (call, known) in {"eager": (native.eager, native.known), **native.others}.items():
                try:
                    outputs = contest.several(call(**known(contest.copied(inputs))))
                except NotOffered:
                    continue
                except (RuntimeError, ValueError) as problem:
                    found["native"].append([name, str(dtype), case, way, str(problem)])
                    continue
                for number, (output, reference) in enumerate(zip(outputs, wanted, strict=True)):
                    far = distance(output, reference, max(1, operator.reduces(inputs)), operator.steps)
                    if number not in native.ties or (dtype is torch.float32 and case not in ("all equal", "huge logits")):
                        found["native"].append([name, str(dtype), case, way, far])
from torch._subclasses import FakeTensorMode
plain = OPERATORS["fp8-matmul"].inputs({"rows": 5, "columns": 256, "depth": 512}, torch.bfloat16, CPU, generator(CPU))
call, known = NATIVE["fp8-matmul"].others["scaled_mm"]
laid = known(plain)
found["laid"] = [list(laid["a"].shape), list(laid["a_scale"].shape), laid["a_scale"].stride(0), list(laid["w_scale"].shape)]
with FakeTensorMode(allow_non_fake_inputs=True) as mode:
    other = {key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for key, value in laid.items()}
    found["scaled"] = list(call(**other).shape)
"""

TURNS: Final = """
norm = OPERATORS["rms-norm"]
inputs = norm.inputs({"rows": 4, "width": 256}, torch.float32, CPU, generator(CPU))
log, seen = [], set()


def way(name, spoil=lambda value: value):
    def ready(inputs):
        def call():
            log.append(name)
            seen.add(inputs["x"].data_ptr())
            return spoil(NATIVE["rms-norm"].eager(**inputs))

        return call

    return contest.Contender(name, ready)


def raising(problem):
    def spoil(value):
        raise problem

    return lambda value=None, **others: spoil(value)


ways = [
    way("ours"),
    way("eager"),
    way("wrong", lambda value: value * 1.01),
    way("other shape", lambda value: value[:1]),
    way("refusing", raising(RuntimeError("not on this device"))),
    way("not offered", raising(contest.NotOffered("whole heads only"))),
    way("too large", raising(torch.OutOfMemoryError("CUDA out of memory"))),
    contest.Contender("absent", None, "it is not here"),
]
clock = HostClock()
found["turns"] = contest.measure(norm, inputs, ways, clock, FEW)
found["log"], found["seen"], found["asked"] = list(log), len(seen), clock.asked
bad = [way("ours"), way("eager", lambda value: value * 1.01), way("also right")]
found["eager is wrong"] = contest.measure(norm, inputs, bad, HostClock(), FEW)
blind = replace(norm, reference=raising(RuntimeError("this device has no float64")))
found["no float64"] = contest.measure(blind, inputs, [way("ours"), way("eager"), way("wrong", lambda value: value * 1.01)], HostClock(), FEW)
mute = way("eager", raising(torch.OutOfMemoryError("CUDA out of memory")))
alone = [way("ours"), mute, way("wrong", lambda value: value * 1.01)]
found["no eager"] = contest.measure(norm, inputs, alone, HostClock(), FEW)
found["nothing to compare with"] = contest.measure(blind, inputs, alone, HostClock(), FEW)
found["ours alone"] = contest.measure(norm, inputs, [way("ours", raising(ValueError("no rows")))], HostClock(), FEW)


class Covering(HostClock):
    cover, host = 0.0001, 0.00021

    def __init__(self):
        super().__init__()
        self.covers = []

    def issue(self, calls, covers=1):
        return [self.host for _ in calls]

    def time(self, calls, covers=1):
        self.covers.append(covers)
        return super().time(calls)


class Hindered(Covering):
    def issue(self, calls, covers=1):
        return [covers * self.cover + self.host for _ in calls]


for name, clock in (("covered", Covering()), ("hindered", Hindered())):
    found[name] = contest.measure(norm, inputs, [way("eager")], clock, FEW)["contenders"][0]
    found[name]["covers"] = sorted(set(clock.covers[1:]))


def backwards(inputs, outputs):
    return tuple(output.flip(0) for output in outputs)


turned = contest.Contender("turned", way("turned", lambda value: value.flip(0)).ready, same=backwards)
found["turned"] = contest.measure(norm, inputs, [way("eager"), turned], HostClock(), FEW)


class Lost(HostClock):
    def settle(self):
        raise RuntimeError("an illegal memory access was encountered")


try:
    contest.measure(norm, inputs, [way("eager"), way("ours", raising(RuntimeError("an illegal access")))], Lost(), FEW)
except RuntimeError as problem:
    found["lost"] = str(problem)
"""

EVENTS: Final = """
events, numbers = [], iter(range(100))


class Event:
    def __init__(self, enable_timing):
        self.number = next(numbers)

    def record(self):
        events.append(f"record {self.number}")

    def elapsed_time(self, other):
        events.append(f"read {self.number} {other.number}")
        return 2.5


class Module:
    Event = Event

    def synchronize(self):
        events.append("synchronize")


clock = DeviceClock(CPU, Module(), lambda: events.append("flush"), 0)
found["seconds"] = clock.time([lambda: events.append("first"), lambda: events.append("second")])
found["events"] = list(events)
events.clear()
found["issued"] = clock.issue([lambda: events.append("first"), lambda: events.append("second")], 2)
found["issuing"] = events
"""

WHOLE: Final = """
import os
found["absent"] = bench.absent()
os.environ["TRITON_INTERPRET"] = "1"
found["interpreted"] = bench.absent()
del os.environ["TRITON_INTERPRET"]
operator = OPERATORS["matmul"]
asked = [one for one in bench.contenders(operator, NATIVE["matmul"], "FlagGems cannot be imported") if one.name != "compiled"]
line = bench.case(operator, {"rows": 8, "columns": 64, "depth": 64}, "float32", asked, HostClock())
found["lines"] = [
    {"machine": {"device": "a host processor", "torch": torch.__version__, "triton": "?", "clock": HostClock.name, "cache_bytes": 65536}},
    {"ceilings": bench.ceilings(HostClock(), ["float32", "bfloat16", "int8", "float8_e4m3fn"], FEW, side=128, copied=1 << 16)},
    {"result": {**bench.label(operator, "float32"), "case": "rows=8", **line}},
    {"result": bench.skipped(operator, "float16", "the device does not compute in it")},
]
"""

MOVED: Final = """
found["tries"] = [one.name for one in bench.tries(OPERATORS["silu-mul"], 8, torch.float32)]
facts = Facts(**dict.fromkeys(("model", "layers", "hidden", "intermediate", "vocabulary", "context", "heads", "kv_heads", "head_dim"), 8))
without = [OPERATORS["softmax-topk"], replace(OPERATORS["cache-write"], dtypes=("float32", "bfloat16"))]
lines = [line for one in without for line in bench.lines_of(one, facts, ["float16"], HostClock(), "none", trying=False)]
found["without"] = [line["result"]["why"] for line in lines if "result" in line]
peers = bench.contenders(OPERATORS["fp8-dequantise"], NATIVE["fp8-dequantise"], {})
found["unbound"] = [one.why for one in peers if one.name == "flaggems"]
found["distinct"] = bench.distinct([{"rows": 1, "width": 8}, {"rows": 2, "width": 8}, {"width": 8, "rows": 1}])
sizes = {"rows": 10, "heads": 3, "size": 20, "page": 8, "narrow": 1}
write = OPERATORS["cache-write"]
found["moved"] = {"cache": write.moved(write.inputs(sizes, torch.bfloat16, CPU, generator(CPU)))}
prefill = OPERATORS["prefill-attention"]
sizes = {"rows": 30, "groups": 2, "share": 3, "wide": 16, "slim": 16, "count": 2, "prefix": 40}
one = prefill.inputs(sizes, torch.bfloat16, CPU, generator(CPU))
found["moved"]["prefill"], found["moved"]["prefix"] = prefill.moved(one), int(one["prefixes"].sum())
latent = OPERATORS["latent-attention"]
one = latent.inputs({"rows": 1, "heads": 3, "latent": 48, "rope": 24, "page": 16, "context": 40, "head": 48}, torch.float32, CPU, generator(CPU))
found["moved"]["latent"] = latent.flops(one)
"""

COMPILED: Final = """
operator = OPERATORS["silu-mul"]
inputs = operator.inputs({"rows": 7, "width": 96}, torch.float32, CPU, generator(CPU))
asked = [one for one in bench.contenders(operator, NATIVE["silu-mul"], "none") if one.name in ("eager", "compiled")]
found["compiled"] = contest.measure(operator, inputs, asked, HostClock(), FEW)
"""


def host(folder: Path, *pieces: str) -> Any:
    """Run pieces of a program that knows the room as `room`, on the host processor, and return what they `found`."""
    (folder / "room").symlink_to(ROOM)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "".join((HOST, *pieces, "\nprint(json.dumps(found))"))],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TORCHINDUCTOR_VEC_ISA_OK": "0", **caches},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return host(tmp_path_factory.mktemp("host"), NATIVE, TURNS, EVENTS, WHOLE, MOVED)


def rows(measured: Any) -> dict[str, Any]:
    return {row["name"]: row for row in measured["contenders"]}


REFUSED: Final = {
    "scaled_mm": "Invalid scaling configuration",  # torch scales by blocks on devices alone
    "grouped_mm": "strides should be multiple of 16 bytes",  # of odd sizes, as no model has
    "varlen_attn": "_flash_attention_forward",  # torch has it on devices alone
}
"""What torch's own ways say of what they do not take here."""
INEXACT: Final = ("log-softmax", "torch.bfloat16")
"""What torch sums in bfloat16 on host processors (up to 12 tolerances away, depending on their vectors): its float32 is looked at."""


@pytest.mark.integration
def test_every_peer_of_torch_gives_what_the_float64_reference_gives(found: Any) -> None:
    def right(operator: str, dtype: str, case: str, way: str, far: float | str) -> bool:
        if isinstance(far, str):
            return REFUSED.get(way, "no refusal is known") in far
        return far <= 1 or (operator, dtype) == INEXACT

    wrong = [line for line in found["native"] if not right(*line)]
    assert wrong == []
    ways = {(line[0], line[3]) for line in found["native"] if isinstance(line[4], float)}
    assert {operator for operator, way in ways if way == "eager"} == {line[0] for line in found["native"]}
    assert ("expert-matmul", "grouped_mm") in ways


@pytest.mark.integration
def test_what_the_scaled_product_takes_is_laid_out_as_torch_wants_it(found: Any) -> None:
    """Rows in fours, their scales with rows next to one another, those of the weight as [depth, columns]; torch's own shape check agrees."""
    assert found["laid"] == [[8, 512], [8, 4], 1, [4, 2]]
    assert found["scaled"] == [5, 256]


@pytest.mark.integration
def test_contenders_take_turns_in_each_round(found: Any) -> None:
    """The log ends with the rounds: ours, eager, ours, eager, as many calls each as the clock was asked for last."""
    counts = [count for count in found["asked"] if count != "settle"]
    last = counts[-4:]
    assert last[0] == last[2]
    assert last[1] == last[3]
    turns = [name for name, count in zip(("ours", "eager") * 2, last, strict=True) for _ in range(count)]
    assert found["log"][-sum(last) :] == turns
    assert [len(rows(found["turns"])[name]["seconds"]) for name in ("ours", "eager")] == [2, 2]


@pytest.mark.integration
def test_calls_go_round_so_many_copies_of_the_inputs_as_fill_the_cache_however_few_calls_a_round_has(found: Any) -> None:
    """4 × 256 float32 and their weight are 5120 bytes: 13 copies fill the clock's cache of 64 KiB. A round has six calls at most."""
    assert found["turns"]["copies"] == 14
    assert found["seen"] >= 14


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("wrong", "FAILED", "another result than the float64 reference"),
        ("other shape", "FAILED", "another result than the float64 reference: inf"),
        ("refusing", "SKIPPED", "RuntimeError: not on this device"),
        ("not offered", "SKIPPED", "whole heads only"),
        ("too large", "SKIPPED", "there is not memory enough"),
        ("absent", "SKIPPED", "it is not here"),
    ],
)
def test_what_gives_no_right_result_gets_no_figure(found: Any, name: str, status: str, why: str) -> None:
    row = rows(found["turns"])[name]
    assert (row["status"], row["seconds"]) == (status, [])
    assert why in row["why"]


@pytest.mark.integration
def test_where_eager_is_the_one_that_is_wrong_the_reference_says_so_and_ours_is_timed(found: Any) -> None:
    wrong = rows(found["eager is wrong"])
    assert {name: row["status"] for name, row in wrong.items()} == {
        "ours": "MEASURED",
        "eager": "FAILED",
        "also right": "MEASURED",
    }
    assert "another result than the float64 reference" in wrong["eager"]["why"]


@pytest.mark.integration
def test_where_a_device_has_no_float64_the_word_of_eager_stands(found: Any) -> None:
    blind = rows(found["no float64"])
    assert {name: row["status"] for name, row in blind.items()} == {"ours": "MEASURED", "eager": "MEASURED", "wrong": "FAILED"}
    assert "another result than torch's eager" in blind["wrong"]["why"]


@pytest.mark.integration
def test_where_eager_gives_no_result_all_are_compared_with_the_reference(found: Any) -> None:
    alone = rows(found["no eager"])
    assert {name: row["status"] for name, row in alone.items()} == {"ours": "MEASURED", "eager": "SKIPPED", "wrong": "FAILED"}
    assert "another result than the float64 reference" in alone["wrong"]["why"]
    assert found["no eager"]["compared"]


@pytest.mark.integration
def test_where_there_is_no_result_to_compare_with_nobody_has_a_figure(found: Any) -> None:
    nobody = rows(found["nothing to compare with"])
    assert {(row["status"], len(row["seconds"])) for row in nobody.values()} == {("SKIPPED", 0)}
    assert nobody["ours"]["why"] == (
        "there is no result to compare with: torch's eager (there is not memory enough), "
        "the float64 reference (RuntimeError: this device has no float64)"
    )
    assert not found["nothing to compare with"]["compared"]


@pytest.mark.integration
def test_what_ours_refuses_has_failed_and_is_not_skipped(found: Any) -> None:
    assert rows(found["ours alone"])["ours"]["status"] == "FAILED"
    assert not found["ours alone"]["compared"]


@pytest.mark.integration
def test_a_device_that_is_lost_ends_the_program(found: Any) -> None:
    assert "illegal memory access" in found["lost"]


@pytest.mark.integration
def test_the_cache_is_emptied_before_each_call_and_events_are_read_after_the_last(found: Any) -> None:
    assert found["events"] == [
        *("flush", "record 0", "first", "record 1", "flush", "record 2", "second", "record 3"),
        *("synchronize", "read 0 1", "read 2 3"),
    ]
    assert found["seconds"] == [0.0025, 0.0025]


@pytest.mark.integration
def test_the_host_s_time_of_a_call_is_taken_while_the_device_is_kept_busy_and_nothing_else_waits(found: Any) -> None:
    assert found["issuing"] == [
        *("synchronize", "flush", "flush", "first", "synchronize", "flush", "flush", "second", "synchronize"),
    ]
    assert len(found["issued"]) == 2


@pytest.mark.integration
def test_the_cache_is_emptied_as_often_as_covers_the_host(found: Any) -> None:
    """A call takes the host 210 µs, an emptying 100: four are half as long again. What the host cannot get ahead of is marked."""
    assert (found["covered"]["covers"], found["covered"]["waits"]) == ([4], False)
    assert found["covered"]["host"] == pytest.approx(0.00021)
    assert (found["hindered"]["waits"], found["hindered"]["status"]) == (True, "MEASURED")


@pytest.mark.integration
def test_what_may_come_in_several_orders_is_compared_in_ours(found: Any) -> None:
    assert {name: row["status"] for name, row in rows(found["turned"]).items()} == {"eager": "MEASURED", "turned": "MEASURED"}


@pytest.mark.integration
def test_bytes_and_operations_leave_out_padding_and_take_in_prefixes(found: Any) -> None:
    """Of ten tokens two are padding: eight of 60 channels, key and value, read in 2 bytes and written in 1; ten slots, two rows of scales.

    Of a prefill: query and result of 6 heads, key and value of 2, 16 channels each, and both of each token of the prefix. One sequence of
    40 tokens, 3 heads: 48 + 24 channels of the score and 48 of the result, two operations each.
    """
    assert found["moved"]["cache"] == 8 * 60 * 2 * 3 + 10 * 8 + 2 * 60 * 4
    assert found["moved"]["prefix"] > 0
    assert found["moved"]["prefill"] == 30 * 16 * 2 * (6 + 6 + 2 + 2) + found["moved"]["prefix"] * 2 * 2 * 16 * 2
    assert found["moved"]["latent"] == 2 * 40 * 3 * (48 + 24 + 48)


@pytest.mark.integration
def test_what_is_tried_is_named_by_what_differs_and_a_shape_counts_once(found: Any) -> None:
    assert found["tries"] == ["ours tile=1024", "ours tile=4096 num_warps=8", "ours tile=8192 num_warps=8"]
    assert found["distinct"] == [{"width": 8, "rows": 1}, {"rows": 2, "width": 8}]


@pytest.mark.integration
def test_what_a_model_has_not_and_what_an_operator_does_not_compute_in_is_skipped_with_the_reason(found: Any) -> None:
    assert found["without"] == ["8 has no such operator", "it does not compute in float16"]


@pytest.mark.integration
def test_an_operator_that_flaggems_has_not_is_told_with_the_reason(found: Any) -> None:
    assert found["unbound"] == ["FlagGems has no kernel for it: its product scales as it multiplies"]


@pytest.mark.integration
def test_nothing_is_timed_in_the_interpreter(found: Any) -> None:
    assert "the time of Triton's interpreter says nothing about a device" in found["interpreted"]


@pytest.mark.integration
def test_lines_of_a_host_become_a_document_that_names_its_clock_and_gives_ours_no_figure(found: Any) -> None:
    """No device launches ours here, so it has failed with Triton's own words, and the peers' figures make no ratio."""
    bench = read("some-chip", "a-model", found["lines"])
    made = document(bench)
    assert (bench.measured, bench.failed) == (0, 1)
    (case, skipped) = made["cases"]
    assert case["computes"] == "float32"
    assert (case["bytes"], case["operations"]) == (4 * (8 * 64 + 64 * 64 + 8 * 64), 2 * 8 * 64 * 64)
    assert {row["name"]: row["status"] for row in case["contenders"]} == {
        **{"ours": "FAILED", "eager": "MEASURED", "flaggems": "SKIPPED"},
    }
    assert case["ratio"] is None
    assert skipped["why"] == "the device does not compute in it"
    assert made["ceilings"]["copy"]["gigabytes_per_second"] > 0
    assert set(made["ceilings"]["matmul"]) == {"float32", "bfloat16", "int8", "float8_e4m3fn"}
    assert all((one["teraflops"] is None) == bool(one["why"]) for one in made["ceilings"]["matmul"].values())
    said = benched(bench)
    assert "perf_counter of the host processor, in a test" in said
    assert "0 cases of a-model timed" in said


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile has no compiler here")
def test_a_peer_that_torch_compiled_is_compared_and_timed(tmp_path: Path) -> None:
    compiled = rows(host(tmp_path, COMPILED)["compiled"])["compiled"]
    assert (compiled["status"], len(compiled["seconds"]), compiled["why"]) == ("MEASURED", 2, "")
