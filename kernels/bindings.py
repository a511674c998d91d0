"""FlagGems' operators by our names: what of our inputs each takes, and what it does not offer. Its signatures are those of 5.0.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from .flaggems import library
from .operator import Inputs, NotOffered
from .operators.align_experts import reference as aligned
from .operators.fp8_dequantise import BLOCK
from .pages import repaged

NONE: Final[Mapping[str, str]] = {
    "int8-per-token": "FlagGems has no kernel for it: its experts quantise by torch's operators",
    "int8-per-channel": "FlagGems has no kernel for it",
    "fp8-dequantise": "FlagGems has no kernel for it: its product scales as it multiplies",
}
"""Why an operator has none of FlagGems here."""
PAGE: Final = 16
"""Tokens of a page where a cache is laid out for FlagGems, as engines have it."""


def as_they_are(inputs: Inputs, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return outputs that need no word of explanation."""
    return outputs


@dataclass(frozen=True, slots=True)
class Binding:
    """One operator of FlagGems: `ready(inputs)` lays out what it wants and returns the call, which is what may be timed.

    `same(inputs, outputs)` brings outputs into the one order that ours have, where several are as good.
    """

    ready: Callable[[Inputs], Callable[[], Any]]
    same: Callable[[Inputs, tuple[Any, ...]], tuple[Any, ...]] = as_they_are

    def launch(self, **inputs: Any) -> tuple[Any, ...]:
        """Return the outputs for inputs as ours would; what is not yet written for a device counts as not offered."""
        try:
            outputs = self.ready(inputs)()
        except NotImplementedError as problem:
            raise NotOffered(f"FlagGems: {problem}") from problem
        return self.same(inputs, outputs if isinstance(outputs, tuple) else (outputs,))


def bindings(*, spare: bool = True) -> dict[str, Binding]:
    """Return FlagGems' operators by our names; inputs that it would write over are copied before, to be spared.

    Raises ImportError where FlagGems cannot be imported.
    """
    gems = library()
    found = {name: Binding(partial(ready, gems)) for name, ready in READY.items()}
    if spare:
        found["add-rms-norm"] = Binding(lambda inputs: _add_rms_norm(gems, {**inputs, "x": inputs["x"].clone()}))
    return {**found, "align-experts": Binding(partial(_align_experts, gems), _ordered)}


def _rms_norm(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    weight = inputs["weight"]
    return partial(gems.rms_norm, inputs["x"], list(weight.shape), weight, inputs["epsilon"])


def _add_rms_norm(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    weight = inputs["weight"]
    return partial(gems.fused_add_rms_norm, inputs["x"], inputs["residual"], list(weight.shape), weight, inputs["epsilon"])


def _rotary(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    if inputs["table"].shape[1] != inputs["query"].shape[2]:
        raise NotOffered("FlagGems turns whole heads only")
    cos, sin = inputs["table"].chunk(2, -1)
    given = (inputs["query"], inputs["key"], cos, sin, inputs["positions"], inputs["interleaved"])
    return partial(gems.apply_rotary_pos_emb, *given, inplace=True)


def _softmax_topk(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    def call(logits: torch.Tensor, best: int, renormalise: bool) -> Any:
        weights = logits.new_empty((len(logits), best), dtype=torch.float32)
        experts, sources = (torch.empty_like(weights, dtype=torch.int32) for _ in range(2))
        if len(logits):
            gems.topk_softmax(weights, experts, sources, logits, renormalise)
        return weights, experts

    return partial(call, **inputs)


def _grouped_topk(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    """Give the router's logits as float32, as engines do: FlagGems keeps scores in their own dtype, and rounded they choose others."""
    logits, groups, best = inputs["logits"].float(), inputs["groups"], inputs["best"]
    if best & (best - 1):
        raise NotOffered("FlagGems chooses a power of two of experts only")
    rest = (groups, inputs["kept"], best, inputs["renormalise"], inputs["factor"], inputs["correction"])
    return lambda: gems.grouped_topk(logits.sigmoid(), *rest)  # one kernel of torch's; FlagGems' own, out of tanh, is four


def _align_experts(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    chosen, experts, size = inputs["chosen"], inputs["experts"], inputs["size"]
    if not chosen.numel() or int(chosen.min()) < 0 or int(chosen.max()) >= experts:
        raise NotOffered("FlagGems orders pairs that all have an expert, one at least")
    pairs = chosen.numel()
    blocks = -(-(pairs + min(pairs, experts + 1) * (size - 1)) // size)

    def call() -> Any:
        order, owners, used = (
            torch.empty(length, dtype=torch.int32, device=chosen.device) for length in (blocks * size, blocks, 1)
        )
        gems.moe_align_block_size_triton(chosen, experts, size, order, owners, used)
        return order, owners, used

    return call


def _ordered(inputs: Inputs, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sort the pairs of each expert, which FlagGems leaves as its programs came, and name no expert behind the blocks in use."""
    order, owners, used = outputs
    blocks = torch.arange(len(owners), device=owners.device)
    owners = owners.masked_fill(blocks * inputs["size"] >= used, -1)
    by = torch.where(owners < 0, inputs["experts"], owners).repeat_interleave(inputs["size"]).long()
    key = by * (inputs["chosen"].numel() + 1) + order  # blocks of an expert are neighbours, so this keeps every pair with its own
    return (key.sort().values % (inputs["chosen"].numel() + 1)).int(), owners, used


def _expert_matmul(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    """Cut and order as FlagGems would for these sizes; the order is made before, as ours finds it made."""
    from flag_gems.fused.fused_moe import try_get_optimal_moe_config
    from triton import language

    a, w, pairs, share, weights = (inputs[name] for name in ("a", "w", "pairs", "share", "weights"))
    if not pairs:
        raise NotOffered("FlagGems multiplies one pair at least")
    order, owners = inputs["order"], inputs["owners"]
    real = order < pairs
    chosen = torch.full((pairs,), -1, dtype=torch.int32, device=a.device)
    chosen[order[real].long()] = owners.repeat_interleave(len(order) // len(owners))[real]
    shape = tuple(w.shape)
    config = try_get_optimal_moe_config(shape, (shape[0], shape[2], shape[1]), share, None, len(a), shape[0])
    laid = tuple(part.int() for part in aligned(chosen.view(-1, share), shape[0], config["BLOCK_SIZE_M"]))
    kind = getattr(language, str(a.dtype).removeprefix("torch."))
    weighted = (None if weights is None else weights.view(-1, 1), *laid, weights is not None, share, config, kind)

    def call() -> torch.Tensor:
        out = torch.empty((len(a), share, shape[1]), dtype=a.dtype, device=a.device)
        gems.invoke_fused_moe_triton_kernel(a, w, out, None, None, *weighted)
        return out.view(pairs, shape[1])

    return call


def _w8a8_matmul(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    a, w, dtype = inputs["a"], inputs["w"], inputs["dtype"]
    if w.shape[0] % 16 or w.shape[1] % 16:
        raise NotOffered("FlagGems multiplies int8 in rows and columns of 16 only")

    def call() -> torch.Tensor:
        out = torch.empty((len(a), w.shape[0]), dtype=dtype, device=a.device)
        gems.cutlass_scaled_mm(out, a, w.t(), inputs["a_scale"], inputs["w_scale"], inputs["bias"])
        return out

    return call


def _fp8_matmul(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    given = (inputs["a"], inputs["w"], inputs["a_scale"], inputs["w_scale"], [BLOCK, BLOCK], inputs["dtype"])
    return partial(gems.w8a8_block_fp8_matmul, *given)


def _cache_write(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    cache, slots = inputs["key_cache"], inputs["slots"]
    if inputs["key_scale"] is not None:
        raise NotOffered("FlagGems writes keys as they are only")
    if bool((slots >= cache.shape[0] * cache.shape[1]).any()):
        raise NotOffered("FlagGems knows padding by −1 alone")
    given = (inputs["key"], inputs["value"], cache, inputs["value_cache"], slots)

    def call() -> Any:
        gems.reshape_and_cache_flash(*given, "auto", None, None)
        return cache, inputs["value_cache"]

    return call


def _attended(gems: Any, inputs: Inputs, **laid: Any) -> Callable[[], Any]:
    query = inputs["query"]
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise NotOffered("FlagGems attends in float16 and bfloat16 only")
    if query.shape[2] % 8 or query.shape[2] > 256:
        raise NotOffered("FlagGems attends with heads of a multiple of 8, 256 at most")
    return partial(gems.flash_attn_varlen_func, query, softmax_scale=inputs["scale"], causal=True, **laid)


def _paged_attention(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    lengths = inputs["lengths"]
    if inputs["key_scale"] is not None:
        raise NotOffered("FlagGems reads keys as they are only")
    if not len(lengths) or int(lengths.min()) < 1:
        raise NotOffered("FlagGems answers sequences that have a token, one at least")
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    return _attended(gems, inputs, max_seqlen_q=1, cu_seqlens_q=starts, max_seqlen_k=int(lengths.max()), **_pages(inputs))


def _pages(inputs: Inputs) -> Inputs:
    """Lay out the cache with numbers wherever a page has no token: a cache that is served holds them."""
    laid = repaged(inputs, PAGE)
    return {"k": laid["key_cache"], "v": laid["value_cache"], "block_table": laid["tables"], "seqused_k": laid["lengths"]}


def _prefill_attention(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    key, value, starts, longest = (inputs[name] for name in ("key", "value", "starts", "longest"))
    if key.shape != value.shape:
        raise NotOffered("FlagGems attends to values as wide as keys only")
    if not len(key):
        raise NotOffered("FlagGems answers one token at least")
    asked = {"max_seqlen_q": longest, "cu_seqlens_q": starts}
    if inputs["prefixes"] is None:
        return _attended(gems, inputs, k=key, v=value, max_seqlen_k=longest, cu_seqlens_k=starts, **asked)
    laid = _pages(inputs)
    return _attended(gems, inputs, max_seqlen_k=int(laid["seqused_k"].max()), **laid, **asked)


def _latent_attention(gems: Any, inputs: Inputs) -> Callable[[], Any]:
    """Put both parts of a query into one, with the scale that FlagGems does not take: its own is 1/√(latent + rope)."""
    query, rotated, cache = inputs["query"], inputs["rotated"], inputs["cache"]
    (count, heads, latent), rope = query.shape, rotated.shape[2]
    if latent & (latent - 1) or rope & (rope - 1) or not count:
        raise NotOffered("FlagGems attends to latents and turned channels of powers of two, in one sequence at least")
    wide = latent + rope
    whole = (torch.cat([query, rotated], -1).float() * (inputs["scale"] * wide**0.5)).to(query.dtype).unsqueeze(1)
    given = (whole, inputs["tables"], cache, 0, cache.shape[1], count, 1, inputs["lengths"], heads, 1, wide, latent, True)
    return lambda: gems.flash_mla(*given).squeeze(1)


READY: Final[dict[str, Callable[[Any, Inputs], Callable[[], Any]]]] = {
    "rms-norm": _rms_norm,
    "add-rms-norm": _add_rms_norm,
    "silu-mul": lambda gems, inputs: partial(gems.silu_and_mul, *inputs["x"].chunk(2, -1)),
    "rotary": _rotary,
    "softmax": lambda gems, inputs: partial(gems.softmax, inputs["x"], -1),
    "log-softmax": lambda gems, inputs: partial(gems.log_softmax, inputs["x"], -1),
    "matmul": lambda gems, inputs: partial(gems.mm, inputs["a"], inputs["b"]),
    "w8a8-matmul": _w8a8_matmul,
    "fp8-matmul": _fp8_matmul,
    "grouped-topk": _grouped_topk,
    "softmax-topk": _softmax_topk,
    "expert-matmul": _expert_matmul,
    "cache-write": _cache_write,
    "paged-attention": _paged_attention,
    "latent-attention": _latent_attention,
    "prefill-attention": _prefill_attention,
}
