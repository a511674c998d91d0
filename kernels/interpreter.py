"""Triton's interpreter, mended where it computes what no device would, and watched for programs that get in one another's way.

What is mended (seen in Triton 3.7.1, `runtime/interpreter.py`): conversion to bfloat16 truncates instead of rounding to even, and to FP8 it
loses the carry; `tl.dot` multiplies the bit patterns of bfloat16, and other arithmetic works on them, too; `minimum` and `maximum` keep NaN
where devices drop it; `and` and `or` of masks are Python's; arguments on the host are copied, and after a launch onto themselves. Kernels
therefore need no code of their own for the interpreter.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

VARIABLE: Final = "TRITON_INTERPRET"
"""Environment variable that Triton reads while it is imported."""
JOINED: Final = "_release_joined"
"""The name under which kernels find what joins conditions."""


def interpreted() -> bool:
    """Say whether kernels run in the interpreter."""
    return os.environ.get(VARIABLE) == "1"


def mend() -> None:
    """Put right what the interpreter gets wrong, for this process; doing it twice is harmless."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter as machine

    eights = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}

    def widened(handle: Any) -> Any:
        kind, data = handle.dtype.scalar, np.ascontiguousarray(handle.data)
        if kind == tl.bfloat16:
            return (data.astype(np.uint32) << 16).view(np.float32)
        if kind in eights:
            return torch.from_numpy(data).view(eights[kind]).float().numpy()
        return handle.data

    def narrowed(data: Any, kind: Any) -> Any:
        if kind == tl.bfloat16:
            return torch.from_numpy(np.array(data, dtype=np.float32)).bfloat16().view(torch.uint16).numpy()
        if kind in eights:
            most = torch.finfo(eights[kind]).max
            values = torch.from_numpy(np.array(data, dtype=np.float32)).clamp(-most, most)
            return values.to(eights[kind]).view(torch.uint8).numpy()
        return data.astype(machine._get_np_dtype(kind))

    def cast(builder: Any, source: Any, wanted: Any, rounding: Any = None) -> Any:
        return machine.TensorHandle(narrowed(widened(source), wanted.scalar), wanted.scalar)

    def dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        return machine.TensorHandle(np.matmul(widened(a), widened(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)

    def binary(builder: Any, a: Any, b: Any, operation: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return plain(builder, a, b, operation)
        found = operation(widened(a), widened(b))
        return machine.TensorHandle(found if found.dtype == bool else narrowed(found, tl.bfloat16), tl.bfloat16)

    def as_they_are(executor: Any, given: Any, named: Any) -> Any:
        return list(given), dict(named)

    def nothing(executor: Any, *arguments: Any) -> None:
        """Copy nothing back: the kernel wrote into the arguments themselves."""

    machine.FunctionRewriter.ast_transformer = _elementwise(machine)
    np.seterr(all="ignore")  # infinities and NaN are meant
    builder = machine.InterpreterBuilder
    plain = builder.binary_op
    builder.binary_op = binary
    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = cast, cast, dot
    builder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    machine.GridExecutor._init_args_hst, machine.GridExecutor._restore_args_dev = as_they_are, nothing


def _elementwise(machine: Any) -> ast.NodeTransformer:
    """Return the rewriting of kernels that makes `and` and `or` of tensors work by element, as they do where Triton compiles them."""
    import triton.language as tl

    def joined(name: str, first: Any, then: Any) -> Any:
        if isinstance(first, tl.tensor):
            return getattr(first, f"logical_{name}")(then())
        return first and then() if name == "and" else first or then()

    class Rewriting(machine.ASTTransformer):  # type: ignore[misc]  # a base that is known only here
        def visit_Assign(self, node: ast.Assign) -> Any:
            node.value = self.visit(node.value)
            return super().visit_Assign(node)

        def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
            self.generic_visit(node)
            name = "and" if isinstance(node.op, ast.And) else "or"
            nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
            result = node.values[0]
            for value in node.values[1:]:
                function = ast.Name(id=JOINED, ctx=ast.Load())
                result = ast.Call(
                    func=function, args=[ast.Constant(value=name), result, ast.Lambda(args=nothing, body=value)], keywords=[]
                )
            return result

    setattr(machine, JOINED, joined)  # kernels see the names of that module
    rewriting: ast.NodeTransformer = Rewriting()
    return rewriting


class Watch:
    """What programs read and wrote, and what was wrong with it: addresses outside of all tensors, and two programs at one address."""

    def __init__(self, ranges: Any) -> None:
        self.ranges = ranges
        self.touched: dict[str, list[Any]] = {"reads": [], "writes": []}

    def begin(self) -> None:
        """Forget what an earlier launch did: launches follow one another."""
        self.settle()
        self.touched = {"reads": [], "writes": []}

    def note(self, kind: str, program: tuple[int, int, int], pointers: Any, mask: Any) -> None:
        """Remember the addresses that a program touches. Raises IndexError, before it does, where one lies in no tensor."""
        import numpy as np

        every, mask = np.broadcast_arrays(pointers.data, mask)
        addresses = np.unique(every[mask])
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        inside = np.zeros(addresses.shape, dtype=bool)
        for start, end in self.ranges():
            inside |= (addresses >= start) & (addresses + size <= end)
        if not inside.all():
            raise IndexError(f"program {program} {kind[:-1]}s {int((~inside).sum())} elements outside of every tensor")
        number = program[0] << 42 | program[1] << 21 | program[2]
        self.touched[kind].append((np.full(addresses.shape, number, dtype=np.int64), addresses))

    def settle(self) -> None:
        """Compare all programs of a launch. Raises RuntimeError where one writes what another reads or writes."""
        import numpy as np

        if not self.touched["writes"]:
            return
        programs, written = (np.concatenate(parts) for parts in zip(*self.touched["writes"], strict=True))
        both = np.unique(np.stack([written.astype(np.int64), programs]), axis=1)
        again = both[0, 1:] == both[0, :-1]
        if again.any():
            raise RuntimeError(f"a race: {int(again.sum())} elements are written by more than one program")
        if self.touched["reads"]:
            programs, read = (np.concatenate(parts) for parts in zip(*self.touched["reads"], strict=True))
            place = np.minimum(np.searchsorted(both[0], read.astype(np.int64)), both.shape[1] - 1)
            other = (both[0, place] == read.astype(np.int64)) & (both[1, place] != programs)
            if other.any():
                raise RuntimeError(f"a race: {int(other.sum())} elements are read by one program and written by another")


@contextmanager
def watched(ranges: Any) -> Iterator[Watch]:
    """Watch all launches inside; `ranges()` gives first and past-the-last address of each tensor. Raises what Watch raises."""
    from triton.runtime import interpreter as machine

    builder, watch = machine.InterpreterBuilder, Watch(ranges)
    load, store, dim = builder.create_masked_load, builder.create_masked_store, builder.set_grid_dim

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        watch.note("reads", self.grid_idx, pointers, mask.data if hasattr(mask, "data") else mask)
        return load(self, pointers, mask, *rest, **named)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        watch.note("writes", self.grid_idx, pointers, mask.data if hasattr(mask, "data") else mask)
        return store(self, pointers, value, mask, *rest, **named)

    def watched_dim(self: Any, *grid: int) -> None:
        watch.begin()
        dim(self, *grid)

    builder.create_masked_load, builder.create_masked_store, builder.set_grid_dim = watched_load, watched_store, watched_dim
    try:
        yield watch
        watch.settle()
    finally:
        builder.create_masked_load, builder.create_masked_store, builder.set_grid_dim = load, store, dim
