"""How rows are dealt out to programs: tiles of whole rows where rows are short, pieces of a row where they are long."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton


def tile_of(width: int, configuration: Mapping[str, int]) -> tuple[int, int]:
    """Return rows and columns of a tile, both powers of two, of at most `configuration["tile"]` elements."""
    columns = min(triton.next_power_of_2(max(width, 1)), configuration["tile"])
    return max(1, min(16, configuration["tile"] // columns)), columns


def launched(configuration: Mapping[str, int]) -> dict[str, int]:
    """Return what of a configuration goes to Triton itself and not to the kernel."""
    return {name: value for name, value in configuration.items() if name in ("num_warps", "num_stages")}


def rows_of(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor seen as rows: its last dimension, contiguous, by all others, one stride apart, without copying.

    Raises ValueError where that needs a copy, which would hide what is slow.
    """
    if tensor.dim() == 2 and (tensor.stride(1) == 1 or tensor.size(1) <= 1):
        return tensor
    if tensor.dim() > 0 and tensor.is_contiguous():
        return tensor.view(-1, tensor.size(-1)) if tensor.numel() else tensor.reshape(0, tensor.size(-1))
    raise ValueError(f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()} is no rows of contiguous elements")


def whole(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError where tensors that a kernel reads one element after the other, those that are given, are not contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not contiguous")


def heads_of(tensor: torch.Tensor, name: str) -> tuple[int, int, int, int]:
    """Return how the rows of a tensor lie, without copying: their number, how many are in a group, the strides of groups and in a group.

    Rows are one stride apart (groups of one), or heads of [tokens, heads, width] that a product of more heads holds, as Qwen3's q_norm is
    given them. Raises ValueError for what would have to be copied.
    """
    if tensor.dim() == 3 and not tensor.is_contiguous() and (tensor.stride(2) == 1 or tensor.size(2) <= 1):
        return tensor.size(0) * tensor.size(1), tensor.size(1), tensor.stride(0), tensor.stride(1)
    rows = rows_of(tensor, name)
    return rows.size(0), 1, rows.stride(0), 0
