"""A layout is chosen from what fits and from what a roofline says, and the choice says why."""

from __future__ import annotations

from math import prod
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import QWEN2_7B, QWEN2_HALF, QWEN3_8B, QWEN3_32B, QWEN3_235B, QWQ, R1, architectures, device, plan

from release.errors import MatrixError
from release.matrix.division import obstacles
from release.matrix.layout import Choice, choose, smallest, spelled
from release.matrix.memory import Demand, Format, kv_bytes, memory_of, weight_bytes
from release.matrix.roofline import compute_of, decode_seconds, estimate, exchange_seconds, prefill_seconds, touched_bytes
from release.matrix.tensors import active_parameters
from release.types import Architecture, Parallel, Plan

UNKNOWN: Final = {"unknown": "nobody has said it yet"}
KNOWN: Final[dict[str, Any]] = {
    **{"memory": 80.0, "bandwidth": 3350.0, "compute": {"bf16": 989.0, "int8": 1979.0, "fp8": 1979.0}, "interconnect": 450.0},
}
SILENT: Final[dict[str, Any]] = {"memory": 80.0, "bandwidth": UNKNOWN}


def best(choice: Choice) -> str:
    assert choice.best is not None
    return spelled(choice.best.parallel)


def test_the_choice_is_what_fits_in_full_and_serves_fastest_and_it_says_why() -> None:
    choice = choose(plan(QWQ, at=KNOWN), 8)
    assert best(choice) == "TP 8"
    assert choice.why.startswith(
        "TP 8: all 8 sequences of 32768 tokens fit: 18.6 of 72.0 GiB; of 3 such layouts 2 give about the most ("
    )
    assert choice.why.endswith(" tokens a second for 8 sequences at best), and it has the shortest time of a token, 6.1 ms")
    assert [each.verdict for each in choice.layouts] == ["full"] * 9 + ["too small"]
    last = "does not start: 61.0 GiB of weights + 8.0 of cache + 3.0 in reserve are 72.03 of 72.00 (0.9 × 80) GiB"
    assert choice.layouts[-1].why == last


def test_many_users_of_a_small_model_are_served_by_replicas() -> None:
    choice = choose(plan(QWEN3_8B, at=KNOWN, args={"max-num-seqs": 64, "max-model-len": 2048}), 8)
    assert choice.best
    assert choice.best.parallel.replicas > 1


def test_a_layout_that_holds_everything_comes_before_a_faster_one_that_does_not() -> None:
    order = [
        each.verdict for each in choose(plan(QWEN3_8B, at=KNOWN, args={"max-num-seqs": 256, "max-model-len": 4096}), 8).layouts
    ]
    assert order == sorted(order, key=["full", "starts", "too small"].index)
    assert {"full", "starts"} <= set(order)


def test_sizes_that_the_arithmetic_forbids_are_left_out_and_it_is_said() -> None:
    choice = choose(plan(QWEN2_7B, at=KNOWN), 8)
    assert choice.left_out == ("tensor-parallel-size 8 does not divide 28 attention heads",)
    assert all(each.parallel.tensor_parallel_size != 8 for each in choice.layouts)


def test_where_the_vendor_lists_sizes_those_alone_are_tried() -> None:
    listed = choose(plan(QWQ, at=KNOWN, world_sizes=[4]), 8)
    assert [spelled(each.parallel) for each in listed.layouts] == ["TP 4 × 2 replicas"]
    padded = choose(plan(QWEN2_HALF, at=KNOWN, world_sizes=[2, 4, 8]), 8)
    assert [spelled(each.parallel) for each in padded.layouts] == ["TP 2 × 4 replicas"]
    only = choose(plan(QWEN2_HALF, at=KNOWN, world_sizes=[4]), 4)
    assert [spelled(each.parallel) for each in only.layouts] == ["TP 4"]


def test_split_weights_and_a_vendors_even_world_decide_too() -> None:
    cut = choose(plan(QWQ, at=KNOWN, precision="w8a8sc", weights={"split": 4}), 8)
    assert {each.parallel.tensor_parallel_size for each in cut.layouts} == {4}
    even = {"rules": [{"id": "even", "world-size": "even", "reason": "no odd counts", "source": "a paper"}]}
    choice = choose(plan(QWEN2_7B, at=KNOWN, on=even), 6)
    assert {each.parallel.world_size for each in choice.layouts} <= {1, 2, 6}
    assert "world size 3 is odd: no odd counts" in choice.left_out


def test_where_nothing_starts_there_is_no_best_and_the_nearest_is_named() -> None:
    choice = choose(plan(R1, at=KNOWN), 16)
    assert choice.best is None
    assert choice.why.startswith(
        "no layout over 16 devices starts; the nearest, TP 8 × PP 2, does not start: 81.4 GiB of weights + "
    )
    assert all(each.decode_ms is None for each in choice.layouts)
    assert choose(plan(R1, at=KNOWN), 32).best is not None


def test_tensor_parallel_over_hosts_is_the_last_resort() -> None:
    choice = choose(plan(R1, at=KNOWN, precision="fp8"), 16)
    across = [each for each in choice.layouts if each.verdict == "full" and each.across]
    assert [spelled(each.parallel) for each in across] == ["TP 16"]
    assert across[0].why.endswith("tensor parallel over 2 hosts")
    assert choice.best
    assert not choice.best.across


def test_a_pipeline_has_no_more_stages_than_there_are_hosts_where_that_can_be() -> None:
    two, four = (choose(plan(R1, at=KNOWN, precision=precision), devices) for precision, devices in (("fp8", 16), ("bf16", 32)))
    assert (best(two), best(four)) == ("TP 8 × PP 2", "TP 8 × PP 4")
    assert two.why.endswith("; the others that do have groups across hosts or more pipeline stages than hosts")
    odd = choose(plan(QWEN2_7B, at={**KNOWN, "memory": 12.0}, args={"max-num-seqs": 1, "max-model-len": 2048}), 3)
    assert best(odd) == "TP 1 × PP 3"  # 3 divides no number of heads here, and one device is too small
    lonely = choose(plan(QWQ, at={**KNOWN, "per_host": UNKNOWN}), 8)
    assert [each.deep for each in lonely.layouts if each.verdict == "full"] == [False] * 3 + [True] * 6


def test_where_no_layout_is_allowed_the_reasons_are_said() -> None:
    choice = choose(plan(QWQ, at=KNOWN, precision="w8a8sc", weights={"split": 4}), 6)
    assert (choice.layouts, choice.best) == ((), None)
    assert choice.why.startswith("no layout over 6 devices is allowed: tensor-parallel-size 1 is not 4")


def test_without_a_bandwidth_memory_alone_decides_and_that_is_said() -> None:
    choice = choose(plan(QWQ, at=SILENT), 8)
    assert best(choice) == "TP 2 × 4 replicas"
    assert choice.why.endswith("the smallest replica; memory alone decides, since the bandwidth of Abacus 9 is not known")
    assert {(each.decode_ms, each.tokens_per_second, each.prefill_tokens_per_second) for each in choice.layouts} == {(None,) * 3}


def test_without_compute_decoding_is_still_told_and_prefill_is_not() -> None:
    choice = choose(plan(QWQ, at={**KNOWN, "compute": {}, "interconnect": UNKNOWN}), 8)
    assert choice.best
    assert choice.best.decode_ms is not None
    assert choice.best.prefill_tokens_per_second is None
    assert choice.why.endswith("; its compute and the speed between devices are not known and not counted")
    assert choose(plan(QWQ, at={**KNOWN, "interconnect": UNKNOWN}), 8).why.endswith(
        "; the speed between devices is not known and not counted"
    )


def test_without_a_memory_nothing_is_chosen() -> None:
    with pytest.raises(MatrixError, match="no layout can be chosen: how much memory Abacus 9 has is not known") as caught:
        choose(plan(QWQ, at={"memory": UNKNOWN}), 8)
    assert "--device-memory" in caught.value.next_step
    assert best(choose(plan(QWQ, at={**KNOWN, "memory": UNKNOWN}), 8, device_memory=80)) == "TP 8"


def test_a_host_processor_is_one_device() -> None:
    choice = choose(plan(QWEN2_HALF, device=None))
    assert (best(choice), choice.devices, choice.why) == ("TP 1", 1, "a host processor is one device")


@pytest.mark.parametrize(
    ("about", "devices"),
    [
        (plan(QWQ, at=SILENT), 2),
        (plan(QWEN3_32B, at={"memory": 32.0}, world_sizes=[4]), 4),
        (plan(QWEN3_32B, at={"memory": 64.0}, world_sizes=[8, 2, 4]), 4),
        (plan(QWEN3_8B, at={"memory": 64.0}), 1),
        (plan(QWEN2_HALF, at={"memory": 64.0}, world_sizes=[4, 8, 2]), 2),
        (plan(R1, at={"memory": 80.0}), 32),
        (plan(R1, at={"memory": 8.0}), 64),
        (plan(QWQ, at={"memory": 64.0}, precision="w8a8sc", weights={"split": 8}), 8),
    ],
)
def test_where_no_number_is_given_the_smallest_usual_one_that_serves_in_full_is_taken(about: Plan, devices: int) -> None:
    assert choose(about).devices == devices
    assert smallest(about).world_size == devices


def test_a_device_of_unknown_memory_gets_the_vendors_smallest_size() -> None:
    assert smallest(plan(QWQ, at={"memory": UNKNOWN}, world_sizes=[8, 4])).world_size == 4
    assert smallest(plan(QWQ, device=None)).world_size == 1


def test_layouts_are_spelled_as_people_say_them() -> None:
    assert spelled(Parallel()) == "TP 1"
    assert spelled(Parallel(tensor_parallel_size=4, pipeline_parallel_size=2, replicas=3)) == "TP 4 × PP 2 × 3 replicas"


@given(architectures(), st.integers(1, 12), st.sampled_from([1e-6, 1e-5, 1e-4, 80.0]))
def test_every_layout_takes_all_devices_and_meets_the_arithmetic(shape: Architecture, devices: int, memory: float) -> None:
    about = plan(
        shape, at={**KNOWN, "memory": memory}, env={"RESERVED_MEMORY_GB": "0"}, args={"max-model-len": 4, "max-num-seqs": 2}
    )
    choice = choose(about, devices)
    assert len({spelled(each.parallel) for each in choice.layouts}) == len(choice.layouts)
    for each in choice.layouts:
        p = each.parallel
        assert prod((p.tensor_parallel_size, p.pipeline_parallel_size, p.replicas)) == devices
        assert obstacles(shape, Format("bf16", 2), p) == ()
        held = memory_of(about, p)
        assert each.verdict == ("full" if held.full else "starts" if held.starts else "too small")
    assert choice.why


def demand(shape: Architecture = QWQ, **changes: Any) -> Demand:
    return Demand(**{"architecture": shape, "format": Format("bf16", 2), "context": 4096, "sequences": 8, **changes})


def test_a_token_of_one_user_takes_the_bytes_over_the_bandwidth() -> None:
    alone = decode_seconds(demand(), device(bandwidth=1000.0), Parallel(), 1)
    # Everything but the table of embeddings, and the cache of half the context.
    moved = weight_bytes(QWQ, Format("bf16", 2)) - 152064 * 5120 * 2 + 2048 * 256 * 1024
    assert alone == pytest.approx(moved / 1e12)


def test_a_large_batch_takes_the_operations_over_the_compute() -> None:
    slow = device(bandwidth=1e9, compute={"bf16": 100.0})
    attention = 4 * 64 * 40 * 128 * 2048
    assert decode_seconds(demand(), slow, Parallel(), 64) == pytest.approx(64 * (2 * active_parameters(QWQ) + attention) / 1e14)


def test_the_devices_of_a_group_share_the_work_and_pay_for_talking() -> None:
    fast, alone = device(bandwidth=1000.0, interconnect=100.0), Parallel()
    four = Parallel(tensor_parallel_size=4)
    one, split = decode_seconds(demand(), fast, alone, 1), decode_seconds(demand(), fast, four, 1)
    assert one
    assert split
    talk = exchange_seconds(demand(), fast, four, 1)
    assert talk == pytest.approx(2 * 64 * (6 * 2e-6 + 1.5 * 5120 * 2 / 1e11))
    assert split == pytest.approx(one / 4 + talk, rel=0.01)
    assert exchange_seconds(demand(), device(interconnect=UNKNOWN), four, 1) == 0
    assert exchange_seconds(demand(), fast, alone, 1) == 0


def test_a_pipeline_makes_no_token_faster_but_serves_more_at_once() -> None:
    fast = device(bandwidth=1000.0, interconnect=100.0)
    flat, deep = (estimate(demand(), fast, Parallel(pipeline_parallel_size=pp), 8) for pp in (1, 4))
    assert flat.decode_ms
    assert deep.decode_ms
    assert deep.decode_ms >= flat.decode_ms
    assert deep.tokens_per_second == pytest.approx(flat.tokens_per_second, rel=0.2)


def test_of_the_experts_those_are_read_that_a_token_goes_to() -> None:
    shape = demand(QWEN3_235B)
    everything = weight_bytes(QWEN3_235B, Format("bf16", 2)) - 151936 * 4096 * 2
    assert touched_bytes(shape, 1, 1) == pytest.approx(2 * active_parameters(QWEN3_235B), rel=0.001)
    assert touched_bytes(shape, 1, 1) < touched_bytes(shape, 1, 8) < everything
    assert touched_bytes(shape, 1, 1000) == pytest.approx(everything)


def test_prefill_is_bound_by_compute_and_stages_work_on_different_prompts() -> None:
    known = device(bandwidth=3350.0, compute={"bf16": 989.0})
    flat, deep = (prefill_seconds(demand(), known, Parallel(pipeline_parallel_size=pp), 2048) for pp in (1, 4))
    assert flat
    assert deep
    assert flat == pytest.approx(2048 * (2 * (active_parameters(QWQ) - 152064 * 5120) + 4 * 64 * 40 * 128 * 1024) / 989e12)
    assert deep == pytest.approx(flat / 4)
    assert prefill_seconds(demand(), device(compute={}), Parallel(), 2048) is None
    assert prefill_seconds(demand(), device(bandwidth=UNKNOWN, compute={"bf16": 1.0}), Parallel(), 2048) is None


def test_the_cache_of_latent_attention_is_read_in_full_by_every_device_of_a_group() -> None:
    known, wide = device(bandwidth=1000.0), Parallel(tensor_parallel_size=8)
    short, long = (decode_seconds(demand(R1, context=context), known, wide, 1) for context in (2, 20002))
    assert short
    assert long
    assert long - short == pytest.approx(10000 * kv_bytes(R1, 2) / 1e12, rel=1e-3)


def test_the_compute_is_that_of_the_linear_layers_own_type_where_the_device_has_it() -> None:
    known = device(compute={"bf16": 100.0, "int8": 200.0})
    assert compute_of(demand(), known) == 100
    assert compute_of(demand(format=Format("w8a8", 2)), known) == 200
    assert compute_of(demand(format=Format("w8a16", 2)), known) == 100
    assert compute_of(demand(format=Format("fp8", 2)), known) == 100
    assert compute_of(demand(format=Format("fp16", 2)), device(compute={"fp16": 90.0})) == 90
    assert compute_of(demand(format=Format("fp32", 4)), known) is None
