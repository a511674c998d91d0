"""How torch attends: over pages that it gathers in the call, over pages that were gathered before, and by its own flash attention.

Gathering every page of a cache in each call is what eager torch has to do and what no engine does: the ways without it are the fairer peers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from .operator import Inputs, NotOffered
from .pages import cached, packed


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Gather every sequence's pages and attend to them."""
    k, v = (_heads_first(cache, tables, query.dtype) for cache in (key_cache, value_cache))
    return paged_gathered(query, k, v, lengths, scale, key_scale, value_scale)


def paged_gathered(
    query: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Attend to keys [sequences, key heads, tokens, size], those of shorter sequences masked; scales go into query and result."""
    share = query.shape[1] // k.shape[1]
    if key_scale is not None:
        query = (query.float() * key_scale.repeat_interleave(share, 0)).to(query.dtype)
    mask = _seen(k.shape[2], lengths)
    out = F.scaled_dot_product_attention(query.unsqueeze(2), k, v, mask, scale=scale, enable_gqa=share > 1).squeeze(2)
    return out if value_scale is None else (out.float() * value_scale.repeat_interleave(share, 0)).to(query.dtype)


def latent_attention(
    query: torch.Tensor, rotated: torch.Tensor, cache: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """Gather every sequence's latents and attend to them."""
    return latent_gathered(query, rotated, cache[tables].flatten(1, 2).unsqueeze(1), lengths, scale)


def latent_gathered(
    query: torch.Tensor, rotated: torch.Tensor, k: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attend to one key for all heads [sequences, 1, tokens, latent + rope]: the heads stand as the queries of one head."""
    q = torch.cat([query, rotated], -1).unsqueeze(1)
    mask = _seen(k.shape[2], lengths)
    return F.scaled_dot_product_attention(q, k, k[..., : query.shape[2]], mask, scale=scale).squeeze(1)


def prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: tuple[int, ...],
    prefixes: tuple[int, ...],
    scale: float,
    key_cache: torch.Tensor | None,
    value_cache: torch.Tensor | None,
    tables: torch.Tensor | None,
) -> torch.Tensor:
    """Attend sequence by sequence, the pages of its prefix gathered before its own keys."""
    found = []
    for number, before in enumerate(prefixes):
        own = slice(starts[number], starts[number + 1])
        q, k, v = query[own], key[own], value[own]
        if before and key_cache is not None and value_cache is not None and tables is not None:
            k = torch.cat([cached(key_cache, tables[number], before), k])
            v = torch.cat([cached(value_cache, tables[number], before), v])
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        mask = causal_lower_right(q.shape[2], k.shape[2]) if before else None
        one = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=not before, enable_gqa=grouped)
        found.append(one.squeeze(0).transpose(0, 1))
    return torch.cat(found)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    asking: int,
    longest: int,
    scale: float,
    slim: int,
) -> torch.Tensor:
    """Attend by torch's flash attention over sequences of different lengths, all keys of one in one piece."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as problem:
        raise NotOffered(f"torch {torch.__version__} has no varlen_attn") from problem
    grouped = query.shape[1] != key.shape[1]
    rest = {"scale": scale, "window_size": (-1, 0), "enable_gqa": grouped}
    found: torch.Tensor = varlen_attn(query, key, value, starts, ends, asking, longest, **rest)
    return found[..., :slim]


def served(inputs: Inputs) -> Inputs:
    """Name no page that does not exist, and put zeros, in place, where the check put NaN: a cache that is served holds numbers."""
    caches = [inputs[name] for name in ("key_cache", "value_cache", "cache") if inputs.get(name) is not None]
    for cache in caches:
        if cache.dtype.is_floating_point:
            cache.nan_to_num_(0.0)
    tables = inputs["tables"]
    return inputs if tables is None else {**inputs, "tables": torch.where(tables < len(caches[0]), tables, 0).long()}


def cut(inputs: Inputs) -> Inputs:
    """Know on the host where sequences begin."""
    starts = tuple(inputs["starts"].tolist())
    befores = (0,) * (len(starts) - 1) if inputs["prefixes"] is None else tuple(inputs["prefixes"].tolist())
    rest = {name: value for name, value in served(inputs).items() if name != "longest"}
    return {**rest, "starts": starts, "prefixes": befores}


def gathered(inputs: Inputs) -> Inputs:
    """Gather every sequence's pages before."""
    known, dtype = served(inputs), inputs["query"].dtype
    k, v = (_heads_first(known[name], known["tables"], dtype).contiguous() for name in ("key_cache", "value_cache"))
    return {"k": k, "v": v, **{name: inputs[name] for name in ("query", "lengths", "scale", "key_scale", "value_scale")}}


def latents(inputs: Inputs) -> Inputs:
    """Gather every sequence's latents before."""
    known = served(inputs)
    rest = {name: inputs[name] for name in ("query", "rotated", "lengths", "scale")}
    return {"k": known["cache"][known["tables"]].flatten(1, 2).unsqueeze(1).contiguous(), **rest}


def one_piece(inputs: Inputs) -> Inputs:
    """Lay out what flash attention takes: all keys of a sequence in one piece, prefix and own, values as wide as keys by zeros."""
    query = inputs["query"]
    if inputs.get("key_scale") is not None:
        raise NotOffered("torch's flash attention reads keys as they are only")
    if "starts" in inputs:
        starts, asking = inputs["starts"], inputs["longest"]
    else:
        starts, asking = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device), 1
    whole = packed(inputs)
    slim = whole["value"].shape[2]
    value = F.pad(whole["value"], (0, query.shape[2] - slim)) if slim < query.shape[2] else whole["value"]
    return {**whole, "query": query, "value": value, "starts": starts, "asking": asking, "scale": inputs["scale"], "slim": slim}


def _heads_first(cache: torch.Tensor, tables: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return cache[tables].flatten(1, 2).to(dtype).transpose(1, 2)


def _seen(tokens: int, lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(tokens, device=lengths.device) < lengths.unsqueeze(1))[:, None, None, :]
