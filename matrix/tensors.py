"""Which tensors a checkpoint has: names and shapes from the architecture, and how many parameters they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from release.types import Architecture, Experts

Kind = Literal["linear", "embedding", "head", "norm", "router", "correction", "bias", "join"]
"""What a tensor is for: of these, quantisation changes the linear layers alone; `join` is `eh_proj` of multi-token prediction."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of an unquantised checkpoint, by its name in the safetensors header; a linear layer's shape is [outputs, inputs]."""

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def tensors(a: Architecture) -> Iterator[Tensor]:
    """Yield every tensor of the checkpoint, layer after layer, the layers for multi-token prediction last.

    Names as in the checkpoints of Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM and DeepseekV3ForCausalLM on their hubs;
    the extra tensors of multi-token prediction as in DeepSeek-V3's README_WEIGHTS.md, which repeats the embeddings and the head there.
    """
    yield Tensor("model.embed_tokens.weight", (a.vocabulary, a.hidden), "embedding")
    for number in range(a.layers):
        yield from _layer(a, number)
    yield Tensor("model.norm.weight", (a.hidden,), "norm")
    if not a.tied_embeddings:
        yield Tensor("lm_head.weight", (a.vocabulary, a.hidden), "head")
    for number in range(a.layers, a.layers + a.nextn_layers):
        at = f"model.layers.{number}."
        yield Tensor(f"{at}embed_tokens.weight", (a.vocabulary, a.hidden), "embedding")
        yield Tensor(f"{at}enorm.weight", (a.hidden,), "norm")
        yield Tensor(f"{at}hnorm.weight", (a.hidden,), "norm")
        yield Tensor(f"{at}eh_proj.weight", (a.hidden, 2 * a.hidden), "join")
        yield from _layer(a, number)
        yield Tensor(f"{at}shared_head.norm.weight", (a.hidden,), "norm")
        yield Tensor(f"{at}shared_head.head.weight", (a.vocabulary, a.hidden), "head")


def parameters(a: Architecture, *, nextn: bool = False) -> int:
    """Return how many parameters the checkpoint has, in closed form; with `nextn`, those of the layers for multi-token prediction too."""
    layers = a.layers + (a.nextn_layers if nextn else 0)
    dense = min(a.moe.dense_layers, layers) if a.moe else layers
    attention = latent_attention(a) if a.mla else grouped_attention(a)
    total = layers * (attention + 2 * a.hidden) + dense * feed_forward(a.hidden, a.intermediate)
    if a.moe:
        total += (layers - dense) * mixture(a.hidden, a.moe)
    total += a.vocabulary * a.hidden * (1 if a.tied_embeddings else 2) + a.hidden
    return total + (layers - a.layers) * (2 * a.vocabulary * a.hidden + 2 * a.hidden * a.hidden + 3 * a.hidden)


def active_parameters(a: Architecture) -> int:
    """Return how many parameters one token is multiplied with: all but the embeddings, the norms, and the experts it does not go to."""
    dense = min(a.moe.dense_layers, a.layers) if a.moe else a.layers
    attention = latent_attention(a) if a.mla else grouped_attention(a)
    total = a.layers * attention + dense * feed_forward(a.hidden, a.intermediate) + a.vocabulary * a.hidden
    if a.moe:
        used = a.moe.experts_per_token + a.moe.shared_experts
        total += (a.layers - dense) * (used * feed_forward(a.hidden, a.moe.intermediate) + a.hidden * a.moe.experts)
    return total


def grouped_attention(a: Architecture) -> int:
    """Return the parameters of one layer's grouped-query attention (arXiv 2305.13245)."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    bias = queries + 2 * keys if a.qkv_bias else 0
    return a.hidden * (2 * queries + 2 * keys) + bias + (2 * a.head_dim if a.qk_norm else 0)


def latent_attention(a: Architecture) -> int:
    """Return the parameters of one layer's multi-head latent attention (arXiv 2405.04434), both of its norms included."""
    assert a.mla
    m = a.mla
    queries = a.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
    q = a.hidden * m.q_lora_rank + m.q_lora_rank + m.q_lora_rank * queries if m.q_lora_rank else a.hidden * queries
    kv = a.hidden * (m.kv_lora_rank + m.qk_rope_head_dim) + m.kv_lora_rank
    return q + kv + m.kv_lora_rank * a.heads * (m.qk_nope_head_dim + m.v_head_dim) + a.heads * m.v_head_dim * a.hidden


def feed_forward(hidden: int, intermediate: int) -> int:
    """Return the parameters of a gated feed-forward: gate, up and down."""
    return 3 * hidden * intermediate


def mixture(hidden: int, moe: Experts) -> int:
    """Return the parameters of one layer's experts, shared experts and router."""
    router = hidden * moe.experts + (moe.experts if moe.router_bias else 0)
    return (moe.experts + moe.shared_experts) * feed_forward(hidden, moe.intermediate) + router


def _layer(a: Architecture, number: int) -> Iterator[Tensor]:
    at = f"model.layers.{number}."
    yield Tensor(f"{at}input_layernorm.weight", (a.hidden,), "norm")
    yield from _latent(a, f"{at}self_attn.") if a.mla else _grouped(a, f"{at}self_attn.")
    yield Tensor(f"{at}post_attention_layernorm.weight", (a.hidden,), "norm")
    if a.moe is None or number < a.moe.dense_layers:
        yield from _gated(a.hidden, a.intermediate, f"{at}mlp.")
        return
    yield Tensor(f"{at}mlp.gate.weight", (a.moe.experts, a.hidden), "router")
    if a.moe.router_bias:
        yield Tensor(f"{at}mlp.gate.e_score_correction_bias", (a.moe.experts,), "correction")
    for expert in range(a.moe.experts):
        yield from _gated(a.hidden, a.moe.intermediate, f"{at}mlp.experts.{expert}.")
    if a.moe.shared_experts:
        yield from _gated(a.hidden, a.moe.intermediate * a.moe.shared_experts, f"{at}mlp.shared_experts.")


def _grouped(a: Architecture, at: str) -> Iterator[Tensor]:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for name, outputs in (("q", queries), ("k", keys), ("v", keys)):
        yield Tensor(f"{at}{name}_proj.weight", (outputs, a.hidden), "linear")
        if a.qkv_bias:
            yield Tensor(f"{at}{name}_proj.bias", (outputs,), "bias")
    if a.qk_norm:
        yield Tensor(f"{at}q_norm.weight", (a.head_dim,), "norm")
        yield Tensor(f"{at}k_norm.weight", (a.head_dim,), "norm")
    yield Tensor(f"{at}o_proj.weight", (a.hidden, queries), "linear")


def _latent(a: Architecture, at: str) -> Iterator[Tensor]:
    assert a.mla
    m = a.mla
    queries = a.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
    if m.q_lora_rank:
        yield Tensor(f"{at}q_a_proj.weight", (m.q_lora_rank, a.hidden), "linear")
        yield Tensor(f"{at}q_a_layernorm.weight", (m.q_lora_rank,), "norm")
        yield Tensor(f"{at}q_b_proj.weight", (queries, m.q_lora_rank), "linear")
    else:
        yield Tensor(f"{at}q_proj.weight", (queries, a.hidden), "linear")
    yield Tensor(f"{at}kv_a_proj_with_mqa.weight", (m.kv_lora_rank + m.qk_rope_head_dim, a.hidden), "linear")
    yield Tensor(f"{at}kv_a_layernorm.weight", (m.kv_lora_rank,), "norm")
    yield Tensor(f"{at}kv_b_proj.weight", (a.heads * (m.qk_nope_head_dim + m.v_head_dim), m.kv_lora_rank), "linear")
    yield Tensor(f"{at}o_proj.weight", (a.hidden, a.heads * m.v_head_dim), "linear")


def _gated(hidden: int, intermediate: int, at: str) -> Iterator[Tensor]:
    yield Tensor(f"{at}gate_proj.weight", (intermediate, hidden), "linear")
    yield Tensor(f"{at}up_proj.weight", (intermediate, hidden), "linear")
    yield Tensor(f"{at}down_proj.weight", (hidden, intermediate), "linear")
