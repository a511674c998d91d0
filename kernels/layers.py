"""Classes that stand in for vLLM's layers: each counts a call and hands it to the chosen operator, or on to the layer itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .calls import Calls
from .registry import NATIVE, Implementation

Registry = Mapping[str, Mapping[str, Implementation]]


def _fits(registry: Registry, operator: str, library: str, tensor: Any) -> bool:
    """Say whether a library's operator takes a tensor: it has rows and a dtype that the operator is for."""
    return (
        library != NATIVE and tensor.numel() > 0 and registry[operator][library].takes(str(tensor.dtype).removeprefix("torch."))
    )


def norm(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for RMSNorm: `rms-norm` without a residual, `add-rms-norm` with one. A norm over a part of a row stays the layer's."""
    alone, added = libraries

    class Norm(layer):  # type: ignore[misc]
        def forward(self, x: Any, residual: Any = None) -> Any:
            operator, library = ("rms-norm", alone) if residual is None else ("add-rms-norm", added)
            if self.variance_size_override is not None or not self.has_weight or not _fits(registry, operator, library, x):
                library = NATIVE
            calls.count(operator, library, tuple(x.shape), x.dtype)
            if library == NATIVE:
                return super().forward(x, residual)
            return _normed(library, x, residual, self.weight.data, self.variance_epsilon)

    return Norm


def _normed(library: str, x: Any, residual: Any, weight: Any, epsilon: float) -> Any:
    if library == "flaggems":
        from flag_gems.modules.normalization import gems_rms_forward

        return gems_rms_forward(x, residual, weight, epsilon)
    from .operators import OPERATORS

    if residual is None:
        return OPERATORS["rms-norm"].launch(x, weight, epsilon)
    return OPERATORS["add-rms-norm"].launch(x, residual, weight, epsilon)


def silu(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for SiluAndMul."""
    (asked,) = libraries

    class Silu(layer):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            library = asked if _fits(registry, "silu-mul", asked, x) else NATIVE
            calls.count("silu-mul", library, tuple(x.shape), x.dtype)
            if library == NATIVE:
                return super().forward(x)
            if library == "flaggems":
                from flag_gems.modules.activation import gems_silu_and_mul

                return gems_silu_and_mul(*x.chunk(2, -1))
            from .operators import OPERATORS

            return OPERATORS["silu-mul"].launch(x)

    return Silu


def rotary(layer: Any, libraries: Sequence[str], calls: Calls, registry: Registry) -> Any:
    """Return a class for RotaryEmbedding. Without a key, or with positions of several kinds, it stays the layer's."""
    (asked,) = libraries

    class Rotary(layer):  # type: ignore[misc]
        def forward(self, positions: Any, query: Any, key: Any = None) -> Any:
            library = asked if key is not None and positions.dim() == 1 and _fits(registry, "rotary", asked, query) else NATIVE
            calls.count("rotary", library, tuple(query.shape), query.dtype)
            if library == NATIVE:
                return super().forward(positions, query, key)
            from .operators import OPERATORS

            heads = [x.view(len(positions), -1, self.head_size) for x in (query, key)]
            OPERATORS["rotary"].launch(positions, *heads, self._match_cos_sin_cache_dtype(query), not self.is_neox_style)
            return query, key

    return Rotary
