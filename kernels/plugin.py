"""The plugin that vLLM loads in each of its processes (`vllm.general_plugins`): it puts the chosen operators into vLLM's layers.

vLLM lets a class stand in for a layer of its own (`CustomOp.register_oot` in vllm/model_executor/custom_op.py, 0.20 to 0.32). The class
that stands in here counts each call and hands it on: to a kernel of ours, to FlagGems, or to the layer that it replaces. For int8
linear layers it lets a kernel be registered (`register_linear_kernel`, 0.32).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from .calls import RECORD, Calls
from .registry import NATIVE, SWITCH, TOGETHER, Choice, choices, reached, registry

LINE: Final = "release operators"
"""How the line of the log begins that a cell may name as its proof."""


def install() -> None:
    """Put the operators that the environment asks for into vLLM's layers, and say in one line what was installed, and where not why.

    Raises ValueError for a switch or an operator that does not exist: a server that was told nonsense does not start.
    """
    folder = os.environ.get(RECORD)
    if SWITCH not in os.environ and not folder:
        return
    chosen = choices(os.environ, missing())
    calls = Calls(Path(folder) if folder else None)
    libraries = {choice.operator: choice.library for choice in chosen}
    layers = {**_replace(libraries, calls), **_put_before(libraries, calls)}
    from vllm.logger import init_logger

    init_logger("vllm.release_kernels").info(
        "%s", told(reached(chosen, layers), list(dict.fromkeys(layers.values())), bool(folder))
    )


def missing() -> dict[str, str]:
    """Return the modules that cannot be used here, each with the reason: not installed, or nothing that Triton could drive."""
    found = {name: f"{name} is not installed" for name in ("triton", "flag_gems") if find_spec(name) is None}
    if "triton" not in found:
        from triton.backends import backends

        if not any(backend.driver.is_active() for backend in backends.values()) and not os.environ.get("TRITON_INTERPRET"):
            found["triton"] = "triton has no active driver here"
    return found


def told(chosen: tuple[Choice, ...], replaced: list[str], recorded: bool) -> str:
    """Return the line of the log: operators by library, reasons, and the layers whose calls are counted."""
    by_library: dict[str, list[str]] = {}
    for choice in chosen:
        why = f" ({choice.reason})" if choice.reason else ""
        by_library.setdefault(choice.library + why, []).append(choice.operator)
    parts = [f"{library}: {', '.join(names)}" for library, names in by_library.items()]
    return f"{LINE}: {'; '.join(parts)}; in {', '.join(replaced) or 'no layer'}{'; calls are recorded' if recorded else ''}"


def _replace(libraries: dict[str, str], calls: Calls) -> dict[str, str]:
    """Register a class in place of each layer; return its name by operator. What another plugin has replaced stays as that has it."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    from .layers import experts, norm, rotary, silu

    done: dict[str, str] = {}
    for layer, names, make in (
        (RMSNorm, ("rms-norm", "add-rms-norm"), norm),
        (SiluAndMul, ("silu-mul",), silu),
        (RotaryEmbedding, ("rotary",), rotary),
        *((layer, ("expert-matmul",), experts) for layer in _moe_layers()),
    ):
        if layer.__name__ not in op_registry_oot:
            name = layer.name  # the layer's own, by which vLLM's configuration switches it: registering gives it another
            stand_in = make(layer, [libraries.get(operator, NATIVE) for operator in names], calls, registry())
            layer.register_oot(stand_in)
            stand_in.name = name
            done |= dict.fromkeys(names, layer.__name__)
    return done


def _moe_layers() -> list[Any]:
    """Return the layer of fused experts, if this vLLM has it where 0.32 does."""
    try:
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    except ImportError:
        return []
    return [UnquantizedFusedMoEMethod]


def _put_before(libraries: dict[str, str], calls: Calls) -> dict[str, str]:
    """Put a kernel before those that vLLM chooses from for int8 linear layers; return its name by operator: the first that can is taken.

    `register_linear_kernel` (vllm/model_executor/kernels/linear, 0.32) puts a new one last, behind kernels that take every layer.
    """
    try:
        from vllm.model_executor.kernels import linear
        from vllm.platforms import current_platform

        possible = linear._POSSIBLE_INT8_KERNELS[current_platform._enum]
    except (ImportError, AttributeError, KeyError):
        return {}
    from .layers import scaled

    base = next((kernel for kernel in possible if kernel.is_supported()[0]), None)
    if base is None:
        return {}
    kernel = scaled(base, [libraries.get(name, NATIVE) for name in TOGETHER], calls, registry())
    linear.register_linear_kernel(kernel, current_platform._enum, "int8")
    possible.insert(0, possible.pop())
    return dict.fromkeys(TOGETHER, base.__name__)
