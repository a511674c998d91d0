"""Memory that shows what a kernel did to it: poisoned before, fenced on both sides, and, where wanted, with rows far apart."""

from __future__ import annotations

import mmap
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FENCE: Final = 64
"""Elements before and after a tensor that nothing may touch."""
GAP: Final = 24
"""Elements between rows that lie apart."""
APART: Final = 2**30 + 64
"""Elements from row to row of a far tensor: the third row begins past what 32 bits count."""
NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux' flag for memory that nobody has to vouch for; Python names it from 3.12 on."""
ALLOCATING: Final = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def poison_of(dtype: torch.dtype) -> float | int | bool:
    """Return what no kernel leaves behind by accident: NaN, or a number far from zero."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max - 17


class Memory(TorchDispatchMode):  # type: ignore[misc]  # torch is not looked into
    """While it is entered, what torch allocates is poisoned and fenced, and every tensor's addresses are known.

    `far`: tensors of two and more dimensions get rows APART elements apart, of memory that exists only where it is touched.
    """

    def __init__(self, *, far: bool = False) -> None:
        super().__init__()
        self.far = far
        self.fenced: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.kept: list[tuple[int, int, torch.Tensor]] = []
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        found = func(*args, **(kwargs or {}))
        if not isinstance(found, torch.Tensor) or found.is_sparse or found.numel() == 0:
            return found
        if name in ALLOCATING:
            return self.allocate(found.shape, found.stride(), found.dtype, found.device)
        return self.keep(found)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Know the addresses of a tensor's storage, if they are not known yet, and keep it alive."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.storages:
            self.storages.add(storage.data_ptr())
            self.kept.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes(), tensor))
        return tensor

    def allocate(self, shape: Any, stride: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return a poisoned tensor between fences, or a far one, of which only the rows count as its own."""
        length = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
        size = dtype.itemsize
        if self.far and len(shape) > 1:
            whole = mapped(length + (shape[0] - 1) * (APART - stride[0]), dtype, device)
            tensor = whole.as_strided(shape, (APART, *stride[1:])).fill_(poison_of(dtype))
            row = length - (shape[0] - 1) * stride[0]
            starts = [tensor.data_ptr() + number * APART * size for number in range(shape[0])]
            self.kept += [(start, start + row * size, tensor) for start in starts]
        else:
            whole = torch.empty(length + 2 * FENCE, dtype=dtype, device=device).fill_(poison_of(dtype))
            self.fenced.append((whole[:FENCE], whole[FENCE + length :], whole[:FENCE].clone()))
            tensor = whole.as_strided(shape, stride, FENCE)
            self.kept.append((tensor.data_ptr(), tensor.data_ptr() + length * size, tensor))
        self.storages.add(whole.untyped_storage().data_ptr())
        return tensor

    def place(
        self, tensor: torch.Tensor, *, apart: bool = False, order: tuple[int, ...] = (), spread: bool = False
    ) -> torch.Tensor:
        """Return a copy of a tensor in such memory.

        `apart` leaves poison between its rows, `spread` between its elements. With an `order` its dimensions lie in that, the outermost
        first, and poison behind each step of all but the innermost.
        """
        if tensor.numel() == 0:
            return tensor.clone()
        stride = laid(tensor.shape, order) if order else list(tensor.stride())
        if spread:
            stride = [2 * step for step in stride]
        if apart and tensor.dim() > 1:
            stride[0] += GAP
        return self.allocate(tensor.shape, tuple(stride), tensor.dtype, tensor.device).copy_(tensor)

    def ranges(self) -> list[tuple[int, int]]:
        """Return first and past-the-last address of each tensor, or each row of a far one."""
        return [(start, end) for start, end, _ in self.kept]

    def broken(self) -> int:
        """Return how many elements of fences were written over."""
        return sum(int((bits(side) != bits(was)).sum()) for low, high, was in self.fenced for side in (low, high))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bit patterns, by which NaN equals itself."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def laid(shape: torch.Size, order: tuple[int, ...]) -> list[int]:
    """Return strides of dimensions that lie in an order, the outermost first, with GAP elements behind each step."""
    stride, step = [0] * len(shape), 1
    for dimension in reversed(order):
        stride[dimension] = step
        step = step * shape[dimension] + GAP
    return stride


def mapped(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return so many elements of memory that takes no room until it is written; on a device, of its own memory. Raises MemoryError."""
    if device != torch.get_default_device():
        return torch.empty(length, dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, length * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except OSError as problem:
        raise MemoryError(f"no address space for {length * dtype.itemsize} bytes: {problem}") from problem
    return torch.frombuffer(pages, dtype=dtype)
