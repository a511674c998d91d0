"""How fast a layout can be at best: bytes over bandwidth against operations over compute, and what the devices tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from release.matrix.memory import FLOATS, Demand, feed_forward_bytes, kv_bytes, partition, up, weight_bytes
from release.matrix.tensors import active_parameters
from release.types import Architecture, Device, Parallel, Unknown

PROMPT: Final = 2048
"""Tokens of the prompt that the estimate of prefill is for, or the context where that is shorter."""
HOP: Final = 2e-6
"""Seconds that one step of an exchange between two devices takes whatever its size: an assumption, and a mild one."""
TERA: Final = 1e12
GIGA: Final = 1e9


@dataclass(frozen=True, slots=True)
class Estimate:
    """Upper bounds of speed; None where the device's figures that it would take are not known.

    `decode_ms`: a token of one sequence alone. `step_ms`: a token of each of `batch` sequences together in one replica.
    `tokens_per_second` and `prefill_tokens_per_second`: of all replicas.
    """

    batch: int
    decode_ms: float | None
    step_ms: float | None
    tokens_per_second: float | None
    prefill_tokens_per_second: float | None


def estimate(demand: Demand, device: Device, parallel: Parallel, sequences: int) -> Estimate:
    """Return the roofline (Williams et al., doi 10.1145/1498765.1498785) of a layout for so many sequences, shared by its replicas.

    Sequences are half full: `context` / 2 tokens each. A pipeline of p stages works on p parts of the batch at once, so that a token
    takes the time of a whole pass with a p-th of the batch.
    """
    replicas, pp = parallel.replicas, parallel.pipeline_parallel_size
    batch = up(sequences, replicas)
    alone, together = (decode_seconds(demand, device, parallel, up(count, pp)) for count in (1, batch))
    prompt = min(PROMPT, demand.context)
    prefill = prefill_seconds(demand, device, parallel, prompt)
    return Estimate(
        batch=batch,
        decode_ms=None if alone is None else 1000 * alone,
        step_ms=None if together is None else 1000 * together,
        tokens_per_second=None if together is None else sequences / together,
        prefill_tokens_per_second=None if prefill is None else replicas * prompt / prefill,
    )


def decode_seconds(demand: Demand, device: Device, parallel: Parallel, batch: int) -> float | None:
    """Return the seconds of one pass that gives each of `batch` sequences a token; None where the bandwidth is not known.

    max(bytes / bandwidth, operations / compute) + exchanges. Bytes: the weights that the batch touches and its cache, of one tensor
    parallel share. Operations: 2 for each parameter that a token is multiplied with, and attention over the cache. Where the compute is
    not known, bytes alone count: at the batches of a few users they decide.
    """
    if isinstance(device.bandwidth, Unknown):
        return None
    tp, tokens = parallel.tensor_parallel_size, demand.context // 2
    moved = touched_bytes(demand, tp, batch) + batch * tokens * kv_bytes(demand.architecture, demand.kv, tp)
    seconds = moved / (device.bandwidth * GIGA)
    compute = compute_of(demand, device)
    if compute is not None:
        operations = batch * (2 * active_parameters(demand.architecture) + attention_operations(demand.architecture, tokens))
        seconds = max(seconds, operations / tp / (compute * TERA))
    fullest = up(demand.architecture.layers, parallel.pipeline_parallel_size) * parallel.pipeline_parallel_size
    return seconds * fullest / demand.architecture.layers + exchange_seconds(demand, device, parallel, batch)


def prefill_seconds(demand: Demand, device: Device, parallel: Parallel, prompt: int) -> float | None:
    """Return the seconds between two prompts of `prompt` tokens that leave one replica; None where bandwidth or compute is not known.

    All weights are read once for a prompt; its tokens are multiplied with all but the head, which only the last one needs; causal
    attention looks at half of the prompt on average. The stages of a pipeline work on different prompts.
    """
    compute = compute_of(demand, device)
    if compute is None or isinstance(device.bandwidth, Unknown):
        return None
    a, tp, pp = demand.architecture, parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    weights = active_parameters(a) - a.vocabulary * a.hidden
    operations = prompt * (2 * weights + attention_operations(a, prompt // 2, absorbed=False))
    slower = max(operations / tp / (compute * TERA), weight_bytes(a, demand.format, tp) / (device.bandwidth * GIGA))
    return slower * max(partition(a.layers, pp)) / a.layers + exchange_seconds(demand, device, parallel, prompt) / pp


def exchange_seconds(demand: Demand, device: Device, parallel: Parallel, tokens: int) -> float:
    """Return the seconds that devices spend telling one another activations; 0 where nobody knows how fast they are connected.

    Two all-reduces a layer (Megatron-LM, arXiv 1909.08053, 3), each of 2(p-1) steps and 2(p-1)/p of the bytes over a ring (Thakur et al.,
    doi 10.1177/1094342005051521), and one message from each pipeline stage to the next.
    """
    if isinstance(device.interconnect, Unknown):
        return 0.0
    a, tp, pp = demand.architecture, parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    message = tokens * a.hidden * demand.format.floating / (device.interconnect * GIGA)
    reduces = 2 * a.layers * (2 * (tp - 1) * HOP + 2 * (tp - 1) / tp * message) if tp > 1 else 0.0
    return reduces + (pp - 1) * (HOP + message)


def touched_bytes(demand: Demand, tp: int, batch: int) -> float:
    """Return the bytes of weights that a device reads for a pass with `batch` tokens.

    All but the embeddings (of which it reads a row a token) and the experts that no token goes to: with k of E experts for a token, evenly
    and independently, E(1 - (1 - k/E)^batch) are touched.
    """
    a = demand.architecture
    total = weight_bytes(a, demand.format, tp) - (
        0 if a.tied_embeddings else up(a.vocabulary, tp) * a.hidden * demand.format.floating
    )
    if a.moe is None:
        return total
    idle = a.moe.experts * (1 - a.moe.experts_per_token / a.moe.experts) ** batch
    layers = max(0, a.layers - a.moe.dense_layers)
    return total - layers * idle * feed_forward_bytes(a.hidden, up(a.moe.intermediate, tp), demand.format)


def attention_operations(a: Architecture, tokens: int, *, absorbed: bool = True) -> int:
    """Return the operations of one token's attention over `tokens` earlier ones, in all layers and heads.

    Scores and sums take 2 operations a number each. Latent attention works on the compressed vector when decoding (`absorbed`,
    arXiv 2405.04434, 2.1.2), on whole heads in prefill.
    """
    if a.mla is None:
        return 4 * a.layers * a.heads * a.head_dim * tokens
    m = a.mla
    key, value = (m.kv_lora_rank, m.kv_lora_rank) if absorbed else (m.qk_nope_head_dim, m.v_head_dim)
    return 2 * a.layers * a.heads * (key + m.qk_rope_head_dim + value) * tokens


def compute_of(demand: Demand, device: Device) -> float | None:
    """Return the TFLOP/s that the linear layers run at: of their own type where the device has it, else of the activations'."""
    precision, floating = demand.format.precision, ("fp32",) if demand.format.floating == FLOATS["fp32"] else ("bf16", "fp16")
    own = {"fp8": ("fp8",), "w8a8": ("int8",), "w8a8c8": ("int8",), "w8a8s": ("int8",), "w8a8sc": ("int8",)}.get(precision, ())
    rates = (device.compute.get(kind) for kind in (*own, *((precision,) if precision in FLOATS else ()), *floating))
    return next((rate for rate in rates if rate), None)
