"""How much memory a device needs: weights, key-value cache and reserve in bytes, in closed form, and what fits beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

from release.matrix.tensors import Tensor, active_parameters, parameters, tensors
from release.types import Architecture, Dtype, Parallel, Plan, Precision, Unknown

__all__ = [
    "GIB", "Demand", "Format", "Memory", "Tensor", "active_parameters", "assumed", "demand_of", "feed_forward_bytes", "format_of", "kv_bytes",
    "longest", "memory_of", "parameters", "partition", "plain", "settings", "tensors", "weight_bytes",
]  # fmt: skip

GIB: Final = 1 << 30
FLOATS: Final = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a number in a float type."""
CONTEXT: Final = ("maxmodellen", "maxseqlen", "contextlength")
SEQUENCES: Final = ("maxnumseqs", "maxbatchsize", "maxrunningrequests")
UTILIZATION: Final = ("gpumemoryutilization", "memfractionstatic")
"""How engines name one and the same setting, as plain names."""
RESERVE: Final = "RESERVED_MEMORY_GB"
DEFAULT_SEQUENCES: Final = 8
"""Sequences at once where a cell does not say: what the vendors' cards promise (`max_num_seqs: 8`)."""
DEFAULT_UTILIZATION: Final = 0.9
DEFAULT_RESERVE: Final = 3.0
"""GiB for activations and communication: the vendors' RESERVED_MEMORY_GB."""
DEFAULT_BLOCK: Final = 128
"""Side of an FP8 block as in DeepSeek's `weight_block_size`, and inputs of an int4 group, where nobody says."""
CHANNEL: Final = 8
"""Bytes of an int8 output channel beside its weights: two numbers of four bytes (scale and offset; or bias and dequantisation scale)."""


@dataclass(frozen=True, slots=True)
class Format:
    """How weights lie in memory: the precision of the linear layers, bytes of a number of all others, side of a block or group.

    `block` counts for fp8 (blocks of block × block), w8a16 and w4a16 (groups of inputs); None takes 128 for fp8 and w4a16, and
    output channels for w8a16.
    """

    precision: Precision
    floating: int
    block: int | None = None

    def linear(self, outputs: int, inputs: int) -> int:
        """Return the bytes of a linear layer [outputs, inputs].

        Layouts: fp8 as DeepSeek-V3 (1 byte, a float32 for each block); w8a8, w8a16, w8a8c8 and w8a8s as msmodelslim writes them
        (1 byte, 8 bytes a channel or group); w4a16 as compressed-tensors (half a byte, a 2-byte scale a group). What w8a8sc
        compresses to is only known afterwards: taken as w8a8s, an upper bound.
        """
        if self.precision in FLOATS:
            return outputs * inputs * FLOATS[self.precision]
        if self.precision == "fp8":
            side = self.block or DEFAULT_BLOCK
            return outputs * inputs + 4 * up(outputs, side) * up(inputs, side)
        if self.precision == "w4a16":
            return up(outputs * inputs, 2) + 2 * outputs * up(inputs, self.block or DEFAULT_BLOCK)
        groups = up(inputs, self.block) if self.precision == "w8a16" and self.block else 1
        return outputs * inputs + CHANNEL * outputs * groups

    def cached(self, channels: int) -> int:
        """Return the bytes that a quantised cache adds to a key or value projection: scale and offset for each channel, with w8a8c8."""
        return CHANNEL * channels if self.precision == "w8a8c8" else 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be held: an architecture in a format, `context` tokens a sequence, `sequences` of them at once.

    `kv` is bytes of one number in the cache, `utilization` the share of a device's memory that the engine may take, `reserve` bytes for
    activations and communication inside that share.
    """

    architecture: Architecture
    format: Format
    context: int
    sequences: int
    kv: int = 2
    utilization: float = DEFAULT_UTILIZATION
    reserve: int = int(DEFAULT_RESERVE * GIB)


@dataclass(frozen=True, slots=True)
class Memory:
    """What one device holds, in bytes, in the fullest stage of a replica.

    `weights`; `kv_per_token`; `kv_one`: one sequence of full length; `kv_full`: all sequences that were asked for, at full length;
    `budget` is None where the device's memory is not known, and then so are all answers.
    """

    weights: int
    kv_per_token: int
    context: int
    asked: int
    reserve: int
    budget: int | None

    @property
    def facts(self) -> dict[str, Any]:
        """Return everything as a record has it."""
        own = {name.replace("_", "-"): value for name, value in asdict(self).items()}
        return {**own, "needed": self.needed, "starts": self.starts, "full": self.full}

    @property
    def kv_one(self) -> int:
        """Return the cache of one sequence of full length."""
        return self.kv_per_token * self.context

    @property
    def kv_full(self) -> int:
        """Return the cache of all sequences asked for, at full length: an upper bound, since engines page it."""
        return self.kv_one * self.asked

    @property
    def needed(self) -> int:
        """Return what full concurrency takes."""
        return self.weights + self.kv_full + self.reserve

    @property
    def starts(self) -> bool | None:
        """Say whether the engine starts: engines such as vLLM ask for room for one sequence of full length."""
        return None if self.budget is None else self.weights + self.kv_one + self.reserve <= self.budget

    @property
    def full(self) -> bool | None:
        """Say whether all sequences asked for fit at full length."""
        return None if self.budget is None else self.needed <= self.budget

    @property
    def tokens(self) -> int | None:
        """Return how many tokens the cache has room for."""
        return None if self.budget is None else max(0, self.budget - self.weights - self.reserve) // self.kv_per_token

    @property
    def sequences(self) -> int | None:
        """Return how many sequences of full length fit."""
        return None if self.tokens is None else self.tokens // self.context


def demand_of(plan: Plan) -> Demand:
    """Return what a plan asks a device to hold.

    From the settings, in any engine's spelling: tokens of a sequence (else the model's context), sequences at once (else 8), share of the
    memory (else 0.9), a cache of 8 bits (`kv-cache-dtype`). RESERVED_MEMORY_GB in the environment, else 3 GiB, is the reserve.
    """
    a, said = plan.model.architecture, settings(plan)

    def number(names: tuple[str, ...], otherwise: float) -> float:
        return _number(next((said[name] for name in names if name in said), None), otherwise)

    eight = plan.precision == "w8a8c8" or str(said.get("kvcachedtype", "")).startswith(("fp8", "int8"))
    reserve = _number(plan.serve.env.get(RESERVE) or plan.container.env.get(RESERVE), DEFAULT_RESERVE)
    return Demand(
        architecture=a,
        format=format_of(plan),
        context=max(1, int(number(CONTEXT, a.context))),
        sequences=max(1, int(number(SEQUENCES, DEFAULT_SEQUENCES))),
        kv=1 if eight else _floating(plan.precision, plan.dtype),
        utilization=number(UTILIZATION, DEFAULT_UTILIZATION) or DEFAULT_UTILIZATION,
        reserve=int(reserve * GIB),
    )


def assumed(plan: Plan) -> bool:
    """Say whether nobody says how many sequences are served at once, so that 8 are assumed."""
    said = settings(plan)
    return not any(_number(said.get(name), -1) >= 0 for name in SEQUENCES)


def longest(plan: Plan) -> float:
    """Return how many tokens a sequence may have: the model's context, or what stretches it (`rope_scaling`) makes of that.

    A stretch stands in the edits of config.json or in the serving arguments; one that says no factor sets no bound.
    """
    context = plan.model.architecture.context
    for place in (plan.weights.config if plan.weights else {}, plan.engine_config, plan.serve.args):
        for stretch in _stretches(place):
            facts = stretch if isinstance(stretch, Mapping) else {}
            factor = _number(facts.get("factor"), 0)
            start = _number(facts.get("original_max_position_embeddings"), context)
            return max(context, factor * start) if factor else float("inf")
    return context


def _stretches(tree: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what is said of stretched positions at any depth, JSON in a text included."""
    for name, value in tree.items():
        inner = value
        if isinstance(value, str) and value.startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                inner = json.loads(value)
        if plain(name) in ("ropescaling", "ropeparameters") and inner:
            yield inner
        elif isinstance(inner, Mapping):
            yield from _stretches(inner)


def format_of(plan: Plan) -> Format:
    """Return how the weights of a plan lie in memory: blocks are the cell's own, for fp8 else the checkpoint's."""
    block = (plan.weights.block if plan.weights else None) or (plan.model.checkpoint.block if plan.precision == "fp8" else None)
    return Format(plan.precision, _floating(plan.precision, plan.dtype), block)


def memory_of(what: Plan | Demand, parallel: Parallel, *, device_memory: float | None = None) -> Memory:
    """Return what one device of one replica holds; every replica takes the sequences that were asked for.

    `device_memory` in GiB, of one device as a process sees it; where it is not given, the plan's device says it, or nobody does.
    """
    demand = what if isinstance(what, Demand) else demand_of(what)
    if device_memory is None and isinstance(what, Plan) and what.device and not isinstance(what.device.memory, Unknown):
        device_memory = what.device.memory
    tp, pp = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    return Memory(
        weights=weight_bytes(demand.architecture, demand.format, tp, pp),
        kv_per_token=kv_bytes(demand.architecture, demand.kv, tp, pp),
        context=demand.context,
        asked=demand.sequences,
        reserve=demand.reserve,
        budget=None if device_memory is None else int(demand.utilization * device_memory * GIB),
    )


def weight_bytes(a: Architecture, f: Format, tp: int = 1, pp: int = 1) -> int:
    """Return the bytes of weights on a device of the fullest stage, without the layers for multi-token prediction.

    Query heads, feed-forwards (each expert's too) and vocabulary are split, the odd one out rounded up; key and value projections are
    split until each device has one head; norms, router and the first projections of latent attention lie on every device in full.
    (vLLM's model_executor/layers/linear.py and vocab_parallel_embedding.py do the same.) Vendor recipes leave some linear layers
    unquantised (often down_proj): their checkpoints are larger than this says.
    """
    dense, sparse = _layer_bytes(a, f, tp)
    ends = up(a.vocabulary, tp) * a.hidden * f.floating
    kinds = min(a.moe.dense_layers, a.layers) if a.moe else a.layers
    fullest, start = 0, 0  # more stages than layers and two: the others are empty
    for stage, layers in enumerate(sizes := partition(a.layers, min(pp, a.layers + 2))):
        plain = max(0, min(kinds, start + layers) - start)
        total = plain * dense + (layers - plain) * sparse
        if stage == 0:
            total += ends
        if stage == len(sizes) - 1:
            total += a.hidden * f.floating + (0 if a.tied_embeddings and pp == 1 else ends)
        fullest, start = max(fullest, total), start + layers
    return fullest


def kv_bytes(a: Architecture, number: int, tp: int = 1, pp: int = 1) -> int:
    """Return the bytes of cache that one token takes on a device; `number` is bytes of a number in the cache.

    Grouped-query: keys and values of this device's heads, at least one. Latent attention keeps one compressed vector and the rotated
    key (arXiv 2405.04434, 2.1.4), on every device of the tensor parallel group.
    """
    layers = up(a.layers, pp)
    if a.mla:
        return layers * (a.mla.kv_lora_rank + a.mla.qk_rope_head_dim) * number
    return 2 * layers * up(a.kv_heads, tp) * a.head_dim * number


def partition(layers: int, pp: int) -> tuple[int, ...]:
    """Return the layers of each stage: those that are left over go to the last stages but one (vLLM's distributed/utils.get_pp_indices)."""
    each, left = divmod(layers, pp)
    return tuple(each + (1 if pp - 1 - left <= stage < pp - 1 else 0) for stage in range(pp))


def settings(plan: Plan) -> dict[str, Any]:
    """Return all settings of a plan by their plain names: `max-model-len`, `max_model_len` and `maxModelLen` are one, `maxmodellen`.

    The serving arguments count most, then the engine's configuration and the build of the weights at any depth.
    """
    found: dict[str, Any] = {}
    for place in (plan.weights.build if plan.weights else None, plan.engine_config, plan.serve.args):
        if place:
            _gather(place, found)
    return found


def _gather(tree: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Put every key at any depth into `found`; of one name the outermost counts."""
    for value in tree.values():
        if not isinstance(value, str | int | float) and isinstance(value, Mapping):  # the latter alone is slow
            _gather(value, found)
    for key, value in tree.items():
        found[plain(key)] = value


@cache
def plain(name: str) -> str:
    """Return a setting's name in lower case without `-` and `_`."""
    return name.replace("-", "").replace("_", "").lower()


def up(number: int, parts: int) -> int:
    """Return `number` divided into `parts`, rounded up."""
    return -(-number // parts)


def _layer_bytes(a: Architecture, f: Format, tp: int) -> tuple[int, int]:
    """Return the bytes of a layer with a dense feed-forward and of one with experts (0 where there are none), on one device."""
    shared = 2 * a.hidden * f.floating + (_latent(a, f, tp) if a.mla else _grouped(a, f, tp))
    dense = shared + feed_forward_bytes(a.hidden, up(a.intermediate, tp), f)
    if a.moe is None:
        return dense, 0
    sparse = (
        shared
        + a.moe.experts * feed_forward_bytes(a.hidden, up(a.moe.intermediate, tp), f)
        + a.hidden * a.moe.experts * f.floating
    )
    if a.moe.shared_experts:
        sparse += feed_forward_bytes(a.hidden, up(a.moe.intermediate * a.moe.shared_experts, tp), f)
    return dense, sparse + (4 * a.moe.experts if a.moe.router_bias else 0)  # the correction is float32 in every checkpoint


def _grouped(a: Architecture, f: Format, tp: int) -> int:
    queries, keys = up(a.heads, tp) * a.head_dim, up(a.kv_heads, tp) * a.head_dim
    total = f.linear(queries, a.hidden) + 2 * (f.linear(keys, a.hidden) + f.cached(keys)) + f.linear(a.hidden, queries)
    if a.qkv_bias:
        total += (queries + 2 * keys) * f.floating
    return total + (2 * a.head_dim * f.floating if a.qk_norm else 0)


def _latent(a: Architecture, f: Format, tp: int) -> int:
    assert a.mla
    m, heads = a.mla, up(a.heads, tp)
    queries = heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
    if m.q_lora_rank:
        total = f.linear(m.q_lora_rank, a.hidden) + m.q_lora_rank * f.floating + f.linear(queries, m.q_lora_rank)
    else:
        total = f.linear(queries, a.hidden)
    total += f.linear(m.kv_lora_rank + m.qk_rope_head_dim, a.hidden) + m.kv_lora_rank * f.floating
    total += f.linear(heads * (m.qk_nope_head_dim + m.v_head_dim), m.kv_lora_rank)
    return total + f.linear(a.hidden, heads * m.v_head_dim)


def feed_forward_bytes(hidden: int, intermediate: int, f: Format) -> int:
    """Return the bytes of a gated feed-forward: gate, up and down."""
    return 2 * f.linear(intermediate, hidden) + f.linear(hidden, intermediate)


def _floating(precision: Precision, dtype: Dtype) -> int:
    return FLOATS.get(precision) or FLOATS[dtype]


def _number(said: object, otherwise: float) -> float:
    """Return what an argument says as a number: a bare word (`auto`) says nothing."""
    if isinstance(said, bool) or said is None:
        return otherwise
    try:
        number = float(str(said))
    except ValueError:
        return otherwise
    return number if 0 <= number < float("inf") else otherwise
