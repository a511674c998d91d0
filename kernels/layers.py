"""Classes that stand in for vLLM's layers: each counts a call and hands it to the chosen operator, or on to the layer itself.

In a model that torch compiles, Python runs once for each graph and not for each call: there nothing is counted, and the profile alone
tells what ran.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .calls import Calls
from .registry import NATIVE, Implementation

Registry = Mapping[str, Mapping[str, Implementation]]


def _count(calls: Calls, operator: str, library: str, tensor: Any) -> None:
    """Count a call with the shape and dtype of its first tensor, unless this is the tracing of a graph."""
    if not torch.compiler.is_compiling():
        calls.count(operator, library, tuple(tensor.shape), tensor.dtype)


def _ours(*libraries: str) -> Any:
    """Return our operators as torch's, which loads Triton, if any of the libraries is ours."""
    if "ours" not in libraries:
        return None
    from .ops import ops

    return ops()


def _fits(registry: Registry, operator: str, library: str, tensor: Any) -> bool:
    """Say whether a library's operator takes a tensor: it has rows and a dtype that the operator is for."""
    return (
        library != NATIVE and tensor.numel() > 0 and registry[operator][library].takes(str(tensor.dtype).removeprefix("torch."))
    )


def _in_rows(tensor: Any, dimensions: Sequence[int] = (2,)) -> bool:
    """Say whether a tensor is rows that ours take without a copy: whole, or of so many dimensions, the last of which is."""
    return bool(tensor.is_contiguous() or (tensor.dim() in dimensions and tensor.stride(-1) == 1))


def norm(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for RMSNorm: `rms-norm` without a residual, `add-rms-norm` with one.

    A norm over a part of a row stays the layer's. Heads that were split off a product (Qwen3's q_norm) are normalised where they lie.
    """
    (alone, added), ours = libraries, _ours(*libraries)

    class Norm(layer):  # type: ignore[misc]
        def forward(self, x: Any, residual: Any = None) -> Any:
            operator, library = ("rms-norm", alone) if residual is None else ("add-rms-norm", added)
            fit = _in_rows(x, (2, 3)) if residual is None else _in_rows(x) and _in_rows(residual)
            own = self.variance_size_override is not None or not self.has_weight or not fit
            if own or not _fits(registry, operator, library, x):
                library = NATIVE
            _count(calls, operator, library, x)
            if library == NATIVE:
                return super().forward(x, residual)
            if library == "flaggems":
                from flag_gems.modules.normalization import gems_rms_forward

                return gems_rms_forward(x, residual, self.weight.data, self.variance_epsilon)
            if residual is None:
                return ours.rms_norm(x, self.weight.data, self.variance_epsilon)
            return ours.add_rms_norm(x, residual, self.weight.data, self.variance_epsilon), residual

    return Norm


def silu(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for SiluAndMul."""
    (asked,), ours = libraries, _ours(*libraries)

    class Silu(layer):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            library = asked if _in_rows(x) and _fits(registry, "silu-mul", asked, x) else NATIVE
            _count(calls, "silu-mul", library, x)
            if library == NATIVE:
                return super().forward(x)
            if library == "flaggems":
                from flag_gems.modules.activation import gems_silu_and_mul

                return gems_silu_and_mul(*x.chunk(2, -1))
            return ours.silu_mul(x)

    return Silu


def rotary(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for RotaryEmbedding. Without a key, or with positions of several kinds, it stays the layer's."""
    (asked,), ours = libraries, _ours(*libraries)

    class Rotary(layer):  # type: ignore[misc]
        def forward(self, positions: Any, query: Any, key: Any = None) -> Any:
            library = asked if key is not None and positions.dim() == 1 and _fits(registry, "rotary", asked, query) else NATIVE
            _count(calls, "rotary", library, query)
            if library == NATIVE:
                return super().forward(positions, query, key)
            heads = [x.view(x.shape[0], -1, self.head_size) for x in (query, key)]
            ours.rotary(positions, *heads, self._match_cos_sin_cache_dtype(query), not self.is_neox_style)
            return query, key

    return Rotary


def experts(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for UnquantizedFusedMoEMethod, which counts the calls of its experts, routed outside of it or (monolithic) inside."""

    class Experts(layer):  # type: ignore[misc]
        def forward(self, layer: Any, x: Any, *words: Any, **more: Any) -> Any:
            _count(calls, "expert-matmul", NATIVE, x)
            return super().forward(layer, x, *words, **more)

        def apply_monolithic(self, layer: Any, x: Any, *words: Any, **more: Any) -> Any:
            _count(calls, "expert-matmul", NATIVE, x)
            return super().apply_monolithic(layer, x, *words, **more)

    return Experts


def scaled(kernel: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a kernel of int8 linear layers in place of the one that vLLM would choose.

    Ours takes weights [columns, depth] with one scale a column and quantises activations token by token; layers with zero points, with a
    fixed scale of their activations or in another dtype stay the engine's, and so does everything where both operators are not chosen.
    """
    asked = "ours" if set(libraries) == {"ours"} else NATIVE
    ours = _ours(asked)

    class Scaled(kernel):  # type: ignore[misc]
        own = False

        def process_weights_after_loading(self, layer: Any) -> None:
            weight, scale, *rest = self.layer_param_names
            dtype = str(getattr(layer, "params_dtype", None)).removeprefix("torch.")
            fixed = self.config.is_static_input_scheme or not self.config.input_symmetric
            if asked == NATIVE or fixed or not registry["w8a8-matmul"][asked].takes(dtype):
                super().process_weights_after_loading(layer)
                return
            self.own = True
            of_columns = getattr(layer, scale).data.float().reshape(-1)
            if not self.config.is_channelwise:  # one scale for each of the layers that were joined into this one
                of_columns = of_columns.repeat_interleave(of_columns.new_tensor(layer.logical_widths).long())
            self.kept = getattr(layer, weight).data, of_columns[:, None].contiguous()
            for name in rest:
                setattr(layer, name, None)

        def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
            library = asked if self.own else NATIVE
            for operator in ("int8-per-token", "w8a8-matmul"):
                _count(calls, operator, library, x)
            if not self.own:
                return super().apply_weights(layer, x, bias)
            weights, of_columns = self.kept
            out = ours.w8a8_linear(x.reshape(-1, x.shape[-1]), weights, of_columns, bias)
            return out.reshape(*x.shape[:-1], len(weights))

    Scaled.__name__ = f"Release{kernel.__name__}"
    return Scaled
