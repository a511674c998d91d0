"""Paged caches laid out anew: every sequence's keys and values in one piece, its new tokens behind those that were there."""

from __future__ import annotations

from itertools import pairwise

import torch

from .cases import generator
from .operator import Inputs


def sequences(inputs: Inputs) -> list[list[torch.Tensor]]:
    """Return of every sequence the keys and the values, [tokens, key heads, size], that it attends to, itself included.

    Of paged-attention's inputs these are the cached tokens; of prefill-attention's the prefix and the sequence's own, as an engine has
    them that writes its cache first.
    """
    found: list[list[torch.Tensor]] = []
    befores = inputs["prefixes"] if "prefixes" in inputs else inputs["lengths"]
    owns = [slice(*pair) for pair in pairwise(inputs["starts"].tolist())] if "starts" in inputs else [None] * len(befores)
    for number, (own, before) in enumerate(zip(owns, [0] * len(owns) if befores is None else befores.tolist(), strict=True)):
        parts = []
        for name in ("key", "value"):
            cache = inputs[f"{name}_cache"]
            held = [] if cache is None else [cached(cache, inputs["tables"][number], before)]
            parts.append(torch.cat([*held, *([] if own is None else [inputs[name][own]])]))
        found.append(parts)
    return found


def packed(inputs: Inputs) -> Inputs:
    """Return `key` and `value` of all sequences one behind the other, `ends` from 0 on (int32), and the `longest` of them."""
    whole = sequences(inputs)
    lengths = [len(key) for key, _ in whole]
    ends = torch.tensor([0, *lengths], device=inputs["query"].device).cumsum(0, dtype=torch.int32)
    key, value = (torch.cat([parts[number] for parts in whole]) for number in range(2))
    return {"key": key, "value": value, "ends": ends, "longest": max(lengths)}


def repaged(inputs: Inputs, page: int) -> Inputs:
    """Return `key_cache` and `value_cache` in pages of `page` tokens, `tables` and `lengths`. What no token fills is zero.

    Pages lie in no order, as those of an engine that has served for a while: in order they would be read faster than ours are.
    """
    whole = sequences(inputs)
    lengths = [len(key) for key, _ in whole]
    counts = [-(-length // page) for length in lengths]
    device = inputs["query"].device
    tables = torch.zeros(len(counts), max(1, *counts), dtype=torch.int32, device=device)
    caches = [part.new_zeros(max(1, sum(counts)), page, *part.shape[1:]) for part in whole[0]]
    order = torch.randperm(sum(counts), generator=generator(device), device=device)
    for number, count in enumerate(counts):
        mine = order[sum(counts[:number]) :][:count]
        tables[number, :count] = mine
        for cache, part in zip(caches, whole[number], strict=True):
            rest = part.new_zeros(count * page - len(part), *part.shape[1:])
            cache[mine] = torch.cat([part, rest]).unflatten(0, (count, page))
    there = torch.tensor(lengths, dtype=torch.int32, device=device)
    return {"key_cache": caches[0], "value_cache": caches[1], "tables": tables, "lengths": there}


def cached(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """Return the first `length` tokens that a table leads to in a cache [blocks, page, …]."""
    return cache[table[: -(-length // cache.shape[1])].long()].flatten(0, 1)[:length]
